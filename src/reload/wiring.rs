//! Builds a snapshot from a validated model and applies it, at startup and at every reload.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use url::Url;

use crate::admin::{Access, Logos};
use crate::clock::Clock;
use crate::config::Loaded;
use crate::dial::{AddressPolicy, Dialer, EgressProxy, NetworkSettings};
use crate::model::connection::Connection;
use crate::model::origin::Host;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::model::{Listener, Model, Name, Roots, Tracing};
use crate::oauth::{ClientError, HttpClients, OpenIdClient, TokenEndpoint};
use crate::snapshot::{Links, Live, Snapshot, TlsProfiles};
use crate::store::Keyring;
use crate::sync::lock;
use crate::tasks::Tasks;
use crate::telemetry::audit::{Audit, Prepared};
use crate::telemetry::events::Events;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::{CertificateUse, Metrics};
use crate::telemetry::traces::{self, Tracer};
use crate::tls::authority::{Authority, AuthorityError};
use crate::tls::{self, Trust};
use crate::token::slot::TokenSlot;
use crate::token::{Slots, TokenCache};

/// Why a valid configuration could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    #[error("connection {connection}: {source}")]
    Client { connection: Name, source: ClientError },
    #[error("admin.sign_in: {0}")]
    SignIn(#[source] ClientError),
    #[error("listener {listener}: {source}")]
    Listener { listener: Name, source: rustls::Error },
    #[error("tracing: {0}")]
    Tracing(#[from] TracingError),
    #[error("interception: {0}")]
    Interception(#[from] AuthorityError),
    #[error("opening the audit file failed: {0}; set another file under audit.to")]
    Audit(#[from] io::Error),
    #[error("reading the configuration panicked; this is a bug, please report it")]
    Panicked,
}

/// Why traces cannot be exported to the collector.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Exporter(#[from] traces::BuildError),
}

/// The parts that outlive a configuration.
pub struct Parts {
    pub clock: Clock,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub health: Arc<Health>,
    pub cache: Arc<TokenCache>,
    pub access: Arc<Access>,
    pub logos: Arc<Logos>,
    pub events: Events,
    pub audit: Audit,
    /// Seals the links and sessions that browsers send back.
    pub seal: Arc<Keyring>,
    /// Actual addresses of our listeners.
    pub listeners: Vec<Listener>,
}

/// The parts, and the current snapshot.
pub struct Wiring {
    pub parts: Parts,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    profiles: Mutex<TlsProfiles>,
}

impl Wiring {
    /// Applies the first configuration; also returns the shared slots of its active connections.
    pub fn start(parts: Parts, loaded: &Loaded) -> Result<(Wiring, Vec<Arc<TokenSlot>>), WiringError> {
        let model = &loaded.model;
        let mut profiles = TlsProfiles::default();
        let audit = parts.audit(model)?;
        parts.audit.apply(audit);
        let (snapshot, slots) = parts.build(loaded, &mut profiles, None)?;
        parts.metrics.set_certificates(&certificates(model));
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let shared = slots.values().filter_map(|slots| slots.shared().cloned()).collect();
        Ok((Wiring { parts, snapshot, profiles: Mutex::new(profiles) }, shared))
    }

    /// Applies a new configuration, except for its audit, which is returned. Requests in flight finish under the old
    /// one.
    pub fn apply(&self, loaded: &Loaded) -> Result<(Differences, Prepared), WiringError> {
        let model = &loaded.model;
        let mut profiles = lock(&self.profiles);
        let previous = self.snapshot.load_full();
        let audit = self.parts.audit(model)?;
        let (snapshot, slots) = self.parts.build(loaded, &mut profiles, Some(&previous))?;
        self.snapshot.store(Arc::new(snapshot));
        self.parts.cache.retain(&slots.into_keys().collect());
        self.parts.access.apply(model);
        self.parts.logos.retain(model);
        self.parts.metrics.set_certificates(&certificates(model));
        profiles.sweep();
        let previous = previous.connections.iter().map(|bound| &bound.connection);
        Ok((Differences::of(previous, &model.connections), audit))
    }

    /// Reports the current configuration in health and metrics.
    pub fn in_force(&self, fingerprint: &str, restart_required: bool) {
        self.parts.health.set_configuration(fingerprint);
        self.parts.metrics.configuration_applied(self.parts.clock.now().wall, restart_required);
    }
}

/// Names of the connections that differ between two configurations.
#[derive(Debug, Default)]
pub struct Differences {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl Differences {
    fn of<'a>(previous: impl Iterator<Item = &'a Arc<Connection>>, after: &[Arc<Connection>]) -> Differences {
        let mut previous: HashMap<&Name, &Arc<Connection>> =
            previous.map(|connection| (&connection.name, connection)).collect();
        let mut differences = Differences::default();
        for connection in after {
            match previous.remove(&connection.name) {
                None => differences.added.push(connection.name.to_string()),
                Some(old) if old != connection => differences.changed.push(connection.name.to_string()),
                Some(_) => {}
            }
        }
        differences.removed = previous.into_keys().map(Name::to_string).collect();
        differences.removed.sort_unstable();
        differences
    }
}

impl Parts {
    fn audit(&self, model: &Model) -> io::Result<Prepared> {
        self.audit.prepare(&model.audit, |writer| self.tasks.thread("audit".to_owned(), writer))
    }

    fn build(
        &self,
        loaded: &Loaded,
        profiles: &mut TlsProfiles,
        previous: Option<&Snapshot>,
    ) -> Result<(Snapshot, HashMap<TokenKey, Slots>), WiringError> {
        let model = &loaded.model;
        let trust = Trust::new(&model.trust);
        let policy = AddressPolicy::new(model, &self.listeners);
        let egress = &model.egress;
        let egress_proxy = |proxy| EgressProxy::new(proxy, &egress.no_proxy, &trust, &model.trust);
        let egress_proxy = egress.proxy.as_ref().and_then(egress_proxy);
        let settings = NetworkSettings { hosts: &model.hosts, policy, egress_proxy };
        let dialer = Dialer::new(settings, &self.tasks, previous.map(|previous| &previous.dialer));
        let authority = authority(model, previous)?;
        let mut clients = HttpClients::new(trust.clone(), dialer);
        clients.tracer = self.tracer(model, &trust)?;
        // All fallible steps first: a failure must leave the cache unchanged.
        let secure = |(name, tls): (&Name, _)| {
            let failed = |source| WiringError::Listener { listener: name.clone(), source };
            Ok((name.clone(), tls::server_config(tls).map_err(failed)?))
        };
        let secured = model.listener_tls.iter().map(secure).collect::<Result<Vec<_>, WiringError>>()?;
        let sign_in = self.sign_in(model, &clients).map_err(WiringError::SignIn)?;
        let mut endpoints = Vec::new();
        let active = model.connections.iter().filter(|connection| connection.active);
        for connection in active.flat_map(|connection| connection.definitions()) {
            let failed = |source| WiringError::Client { connection: connection.name.clone(), source };
            endpoints.push((connection, Arc::new(TokenEndpoint::new(connection.clone(), &clients).map_err(failed)?)));
        }
        let ensure = |(connection, endpoint): (&Arc<Connection>, Arc<TokenEndpoint>)| {
            let slots = self.cache.ensure(connection, Box::new(endpoint.clone()));
            (connection.token_key(None), Live { slots, endpoint })
        };
        let live: HashMap<TokenKey, Live> = endpoints.into_iter().map(ensure).collect();
        let of = |connection: &Connection| live.get(&connection.token_key(None)).cloned();
        let links = Links::new(self.seal.clone(), self.public_base(model));
        // A listener removed from the configuration stays open until the restart.
        let mut listener_tls = previous.map(|previous| previous.listener_tls.clone()).unwrap_or_default();
        listener_tls.extend(secured);
        let parts = (&self.metrics, links, sign_in);
        let clients = Arc::new(clients);
        let snapshot = Snapshot::build(loaded, &trust, profiles, clients, parts, (listener_tls, authority), of);
        Ok((snapshot, live.into_iter().map(|(key, live)| (key, live.slots)).collect()))
    }

    /// The client of the OpenID provider. Without `redirect_url`, the admin listener is on loopback.
    fn sign_in(&self, model: &Model, clients: &HttpClients) -> Result<Option<Arc<OpenIdClient>>, ClientError> {
        let Some(settings) = &model.admin.sign_in else { return Ok(None) };
        let derived = self.loopback_url(&model.listeners.admin).and_then(|url| url.join("/sign-in/callback").ok());
        let Some(redirect_url) = settings.redirect_url.clone().or(derived) else { return Ok(None) };
        OpenIdClient::new(settings, redirect_url, clients).map(|client| Some(Arc::new(client)))
    }

    /// Public base URL for browsers: as configured, else the address of the listener, if that is on loopback.
    fn public_base(&self, model: &Model) -> Option<Url> {
        let served = model.listeners.public.as_ref().unwrap_or(&model.listeners.admin);
        model.public_url.clone().or_else(|| self.loopback_url(served))
    }

    /// The URL of a listener by its real address, if that is on loopback.
    fn loopback_url(&self, listener: &Listener) -> Option<Url> {
        let real = self.listeners.iter().find(|bound| bound.name == listener.name).unwrap_or(listener);
        let scheme = if real.secure { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{}", real.address.port());
        url.parse().ok().filter(|_| real.address.ip().to_canonical().is_loopback())
    }

    /// Creates a new tracer per configuration; the previous one stops with the last request that uses it.
    fn tracer(&self, model: &Model, trust: &Trust) -> Result<Tracer, TracingError> {
        let Some(Tracing { collector, sample }) = &model.tracing else { return Ok(Tracer::default()) };
        // The collector may have a private address, for this client only: callers cannot reach it through us.
        let host = collector.host_str().and_then(|host| Host::parse(host).ok());
        let policy = AddressPolicy::new(model, &self.listeners);
        let policy = host.into_iter().fold(policy, AddressPolicy::permitting_private);
        let dialer =
            Dialer::new(NetworkSettings { hosts: &model.hosts, policy, egress_proxy: None }, &self.tasks, None);
        let client = HttpClients::new(trust.clone(), dialer).standard()?;
        let (tracer, exporter) = traces::start(client, collector, *sample)?;
        self.tasks.spawn("traces", exporter.run());
        Ok(tracer)
    }
}

/// Reuses the previous interception CA with its cached leaves if its configuration is unchanged.
fn authority(model: &Model, previous: Option<&Snapshot>) -> Result<Option<Arc<Authority>>, AuthorityError> {
    let Some(interception) = &model.interception else { return Ok(None) };
    let reused = previous.and_then(|previous| previous.authority.as_ref()).filter(|reused| reused.is_of(interception));
    reused.cloned().map_or_else(|| Authority::new(interception).map(Arc::new), Ok).map(Some)
}

/// The earliest expiry of each certificate bundle in the configuration.
fn certificates(model: &Model) -> Vec<(CertificateUse, String, WallTime)> {
    let mut found = Vec::new();
    let mut add = |r#use, name: &str, roots: &mut dyn Iterator<Item = &Roots>| {
        let expiries = roots.flat_map(|roots| roots.iter()).filter_map(tls::expiry);
        found.extend(expiries.min().map(|first| (r#use, name.to_owned(), first)));
    };
    add(CertificateUse::Trust, "", &mut std::iter::once(&model.trust));
    for (name, listener) in &model.listener_tls {
        let shown = Roots::from(&listener.certificate.chain[..1]);
        add(CertificateUse::Listener, name.as_str(), &mut std::iter::once(&shown));
        add(CertificateUse::ClientCa, name.as_str(), &mut listener.client_ca.iter());
    }
    let ca = model.interception.as_ref().map(|interception| Roots::from(&interception.chain[..1]));
    add(CertificateUse::Interception, "ca", &mut ca.iter());
    for connection in &model.connections {
        let name = connection.name.as_str();
        let server = &connection.authorization_server.trust;
        add(CertificateUse::AuthorizationServerTrust, name, &mut server.iter());
        let shown = connection.mutual_tls.as_ref().map(|certificate| Roots::from(&certificate.chain[..1]));
        add(CertificateUse::MutualTls, name, &mut shown.iter());
        let upstreams = connection.routes.iter().filter_map(|route| route.tls.trust.as_ref());
        add(CertificateUse::UpstreamTrust, name, &mut { upstreams });
    }
    found
}
