//! From a checked model to a snapshot in force, at the start and at every reload.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use url::Url;

use crate::admin::Access;
use crate::clock::Clock;
use crate::dial::{AddressPolicy, Dialer, EgressProxy, Reach};
use crate::model::connection::Connection;
use crate::model::origin::Host;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::model::{Listener, Model, Name, Roots, Tracing};
use crate::oauth::{ClientError, HttpClients, TokenEndpoint};
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

/// Why a valid configuration could not be put into force.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    #[error("connection {connection}: {source}")]
    Client { connection: Name, source: ClientError },
    #[error("listener {listener}: {source}")]
    Listener { listener: Name, source: rustls::Error },
    #[error("tracing: {0}")]
    Tracing(#[from] TracingError),
    #[error("interception: {0}")]
    Interception(#[from] AuthorityError),
    #[error("the audit cannot be opened: {0}; give another file under audit.to")]
    Audit(#[from] io::Error),
    #[error("the configuration could not be read to its end; this is a bug")]
    Panicked,
}

/// Why nothing can be sent to a collector.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Exporter(#[from] traces::BuildError),
}

/// What every configuration is put into force with.
pub struct Parts {
    pub clock: Clock,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub health: Arc<Health>,
    pub cache: Arc<TokenCache>,
    pub access: Arc<Access>,
    pub events: Events,
    pub audit: Audit,
    /// Seals what is handed out and comes back.
    pub seal: Arc<Keyring>,
    /// Real addresses of our listeners.
    pub listeners: Vec<Listener>,
}

/// The parts, and the snapshot that is in force.
pub struct Wiring {
    pub parts: Parts,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    profiles: Mutex<TlsProfiles>,
}

impl Wiring {
    /// Puts the first configuration into force; also gives the shared slots of its active connections.
    pub fn start(parts: Parts, model: &Model) -> Result<(Wiring, Vec<Arc<TokenSlot>>), WiringError> {
        let mut profiles = TlsProfiles::default();
        let audit = parts.audit(model)?;
        parts.audit.apply(audit);
        let (snapshot, slots) = parts.build(model, &mut profiles, None)?;
        parts.metrics.set_certificates(&certificates(model));
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let shared = slots.values().filter_map(|slots| slots.shared().cloned()).collect();
        Ok((Wiring { parts, snapshot, profiles: Mutex::new(profiles) }, shared))
    }

    /// Puts another one into force, all but its audit, which is given back. Requests that have begun end under the old one.
    pub fn apply(&self, model: &Model) -> Result<(Differences, Prepared), WiringError> {
        let mut profiles = lock(&self.profiles);
        let before = self.snapshot.load_full();
        let audit = self.parts.audit(model)?;
        let (snapshot, slots) = self.parts.build(model, &mut profiles, Some(&before))?;
        self.snapshot.store(Arc::new(snapshot));
        self.parts.cache.retain(&slots.into_keys().collect());
        self.parts.access.apply(model);
        self.parts.metrics.set_certificates(&certificates(model));
        profiles.sweep();
        let before = before.connections.iter().map(|bound| &bound.connection);
        Ok((Differences::of(before, &model.connections), audit))
    }

    /// Tells what is in force.
    pub fn in_force(&self, fingerprint: &str, restart_required: bool) {
        self.parts.health.set_configuration(fingerprint);
        self.parts.metrics.configuration_applied(self.parts.clock.now().wall, restart_required);
    }
}

/// Names of connections by which two configurations differ.
#[derive(Debug, Default)]
pub struct Differences {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl Differences {
    fn of<'a>(before: impl Iterator<Item = &'a Arc<Connection>>, after: &[Arc<Connection>]) -> Differences {
        let mut before: HashMap<&Name, &Arc<Connection>> =
            before.map(|connection| (&connection.name, connection)).collect();
        let mut differences = Differences::default();
        for connection in after {
            match before.remove(&connection.name) {
                None => differences.added.push(connection.name.to_string()),
                Some(old) if old != connection => differences.changed.push(connection.name.to_string()),
                Some(_) => {}
            }
        }
        differences.removed = before.into_keys().map(Name::to_string).collect();
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
        model: &Model,
        profiles: &mut TlsProfiles,
        before: Option<&Snapshot>,
    ) -> Result<(Snapshot, HashMap<TokenKey, Slots>), WiringError> {
        let trust = Trust::new(&model.trust);
        let policy = AddressPolicy::new(model, &self.listeners);
        let egress = &model.egress;
        let way = |proxy| EgressProxy::new(proxy, &egress.no_proxy, &trust, &model.trust);
        let way_out = egress.proxy.as_ref().and_then(way);
        let reach = Reach { hosts: &model.hosts, policy, way_out };
        let dialer = Dialer::new(reach, &self.tasks, before.map(|before| &before.dialer));
        let authority = authority(model, before)?;
        let tracer = self.tracer(model, &trust)?;
        let mut clients = HttpClients::new(trust.clone(), dialer.clone());
        clients.tracer = tracer.clone();
        // All clients first: what can fail fails before anything has changed.
        let secure = |(name, tls): (&Name, _)| {
            let failed = |source| WiringError::Listener { listener: name.clone(), source };
            Ok((name.clone(), tls::server_config(tls).map_err(failed)?))
        };
        let secured = model.listener_tls.iter().map(secure).collect::<Result<Vec<_>, WiringError>>()?;
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
        // A listener that has left the configuration stands until the restart that this takes.
        let mut listener_tls = before.map(|before| before.listener_tls.clone()).unwrap_or_default();
        listener_tls.extend(secured);
        let parts = (&self.metrics, tracer, links);
        let snapshot = Snapshot::build(model, &trust, profiles, dialer, parts, (listener_tls, authority), of);
        Ok((snapshot, live.into_iter().map(|(key, live)| (key, live.slots)).collect()))
    }

    /// Where people's browsers reach us: as configured, else where they are served, if that is on loopback.
    fn public_base(&self, model: &Model) -> Option<Url> {
        let listener = |name: &Listener| self.listeners.iter().find(|own| own.name == name.name);
        let served = model.listeners.public.as_ref().unwrap_or(&model.listeners.admin);
        let address = listener(served).unwrap_or(served).address;
        let local = address.ip().to_canonical().is_loopback();
        let default = || format!("http://localhost:{}", address.port()).parse().ok().filter(|_| local);
        model.public_url.clone().or_else(default)
    }

    /// A new tracer with each configuration: the one before ends with the last request that uses it.
    fn tracer(&self, model: &Model, trust: &Trust) -> Result<Tracer, TracingError> {
        let Some(Tracing { collector, sample }) = &model.tracing else { return Ok(Tracer::default()) };
        // The collector's name may be private, for this client alone: callers do not get there by it.
        let host = collector.host_str().and_then(|host| Host::parse(host).ok());
        let policy = AddressPolicy::new(model, &self.listeners);
        let policy = host.into_iter().fold(policy, AddressPolicy::naming);
        let dialer = Dialer::new(Reach { hosts: &model.hosts, policy, way_out: None }, &self.tasks, None);
        let client = HttpClients::new(trust.clone(), dialer).standard()?;
        let (tracer, exporter) = traces::start(client, collector, *sample)?;
        self.tasks.spawn("traces", exporter.run());
        Ok(tracer)
    }
}

/// The one before where its CA is the same: what it has made is kept.
fn authority(model: &Model, before: Option<&Snapshot>) -> Result<Option<Arc<Authority>>, AuthorityError> {
    let Some(interception) = &model.interception else { return Ok(None) };
    let kept = before.and_then(|before| before.authority.as_ref()).filter(|kept| kept.is_of(interception));
    kept.cloned().map_or_else(|| Authority::new(interception).map(Arc::new), Ok).map(Some)
}

/// Of each bundle of certificates in the configuration the first end.
fn certificates(model: &Model) -> Vec<(CertificateUse, String, WallTime)> {
    let mut found = Vec::new();
    let mut add = |r#use, name: &str, roots: &mut dyn Iterator<Item = &Roots>| {
        let ends = roots.flat_map(|roots| roots.iter()).filter_map(tls::expiry);
        found.extend(ends.min().map(|first| (r#use, name.to_owned(), first)));
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
