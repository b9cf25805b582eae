//! The configuration as requests see it: routes bound to token slots, callers, TLS profiles, limits.
//!
//! Immutable; a reload replaces all of it. Invariant: a request loads it once, so it never sees two configurations.

mod links;

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderName;
use prometheus::IntCounter;
use rustls::{ClientConfig, ServerConfig};

use crate::config::{Loaded, SetAside};
use crate::dial::Dialer;
use crate::model::connection::{Connection, Inject, OtherBearer, Route, Stripped, UpstreamTls};
use crate::model::origin::Origin;
use crate::model::token::default_profile;
use crate::model::{Caller, Egress, Limits, LogRequests, Name, Roots, Timeouts};
use crate::oauth::{HttpClients, OpenIdClient, TokenEndpoint};
use crate::router::{CallerId, Callers, Label, Router};
use crate::telemetry::metrics::{InjectionCounters, Metrics};
use crate::telemetry::traces::Tracer;
use crate::tls::Trust;
use crate::tls::authority::Authority;
use crate::token::Slots;
pub use links::Links;

#[derive(Debug)]
pub struct Snapshot {
    /// In configuration order.
    pub connections: Vec<BoundConnection>,
    /// Definitions made over the API that are not in force, by name.
    pub set_aside: Vec<SetAside>,
    pub router: Router<BoundRoute>,
    /// The routes of `set_aside`, which get no token and forward nothing.
    refused: Router<()>,
    pub callers: CallerTable,
    pub egress: Egress,
    /// Intercepts TLS in tunnels; `None`: TLS is relayed.
    pub authority: Option<Arc<Authority>>,
    /// TLS profile of requests that match no route.
    pub plain: Arc<TlsProfile>,
    pub dialer: Dialer,
    /// HTTP clients of the token endpoints.
    pub clients: Arc<HttpClients>,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub log_requests: LogRequests,
    pub tracer: Tracer,
    pub links: Links,
    /// Where people sign in to the admin API; `None`: with a user's token only.
    pub sign_in: Option<Arc<OpenIdClient>>,
    /// TLS configurations of the listeners that speak TLS, by name.
    pub listener_tls: HashMap<Name, Arc<ServerConfig>>,
}

/// Token slots and token endpoint of an active connection's definition.
#[derive(Clone)]
pub struct Live {
    pub slots: Slots,
    pub endpoint: Arc<TokenEndpoint>,
}

/// A current connection, as the admin API shows it.
#[derive(Debug)]
pub struct BoundConnection {
    pub connection: Arc<Connection>,
    /// The connection itself first, then its profiles.
    pub definitions: Vec<BoundDefinition>,
    /// TLS profiles of its routes, in configuration order.
    pub tls: Vec<Arc<TlsProfile>>,
}

impl BoundConnection {
    pub fn definition(&self, profile: &str) -> Option<&BoundDefinition> {
        self.definitions.iter().find(|definition| definition.connection.profile.as_str() == profile)
    }
}

/// A connection by one of its profiles, with its tokens. `slots` and `endpoint` are `None` if the connection is
/// inactive.
#[derive(Debug, Clone)]
pub struct BoundDefinition {
    pub connection: Arc<Connection>,
    pub slots: Option<Slots>,
    pub endpoint: Option<Arc<TokenEndpoint>>,
}

/// A route, with everything needed to serve it.
#[derive(Debug)]
pub struct BoundRoute {
    /// The definition that the route serves.
    pub connection: Arc<Connection>,
    pub route: Route,
    /// The tokens injected into requests of this route.
    pub tokens: Vec<BoundToken>,
    /// `None`: credentials that callers send are passed on.
    pub stripping: Option<Stripping>,
    /// Header fields that only the proxy sets or removes.
    pub reserved: Arc<[HeaderName]>,
    pub tls: Arc<TlsProfile>,
    /// Reaches what the connection may reach.
    pub dialer: Dialer,
}

/// Credentials that a route strips from requests.
#[derive(Debug)]
pub struct Stripping {
    pub stripped: Stripped,
    /// Number of stripped credentials, per connection.
    pub removed: IntCounter,
}

impl BoundRoute {
    /// The first inactive connection of the route.
    pub fn inactive(&self) -> Option<&Arc<Connection>> {
        let others = self.tokens.iter().map(|token| &token.connection);
        std::iter::once(&self.connection).chain(others).find(|connection| !connection.active)
    }
}

/// A token that a route injects, with its injection point.
#[derive(Debug)]
pub struct BoundToken {
    pub connection: Arc<Connection>,
    pub inject: Inject,
    /// A further injection point, at which the caller may have sent its own token.
    pub other_bearer: Option<OtherBearer>,
    /// `None`: the connection is inactive.
    pub slots: Option<Slots>,
    pub injections: InjectionCounters,
}

/// TLS settings for upstreams. Pooled connections are never shared between profiles.
#[derive(Debug)]
pub struct TlsProfile {
    pub id: usize,
    /// Offers HTTP/2 and HTTP/1.1 by ALPN.
    pub any: Arc<ClientConfig>,
    /// Offers HTTP/1.1 only.
    pub http1: Arc<ClientConfig>,
}

/// The TLS profiles in use. An ID is never reused, so it identifies the same roots across reloads.
#[derive(Debug, Default)]
pub struct TlsProfiles {
    profiles: Vec<(Roots, UpstreamTls, Arc<TlsProfile>)>,
    last_id: usize,
}

impl TlsProfiles {
    /// The profile for the roots and client certificate of `tls`; without configured roots, for the platform's plus
    /// `extra`.
    fn get(&mut self, trust: &Trust, extra: &Roots, tls: &UpstreamTls) -> Arc<TlsProfile> {
        let (roots, shown) = (tls.trust.as_ref(), tls.certificate.as_ref());
        let same = |entry: &&(Roots, UpstreamTls, Arc<TlsProfile>)| {
            let same_settings = entry.1.trust.as_ref() == roots && entry.1.certificate.as_ref() == shown;
            same_settings && (roots.is_some() || entry.0 == *extra)
        };
        if let Some((.., profile)) = self.profiles.iter().find(same) {
            return profile.clone();
        }
        self.last_id += 1;
        let http1 = trust.client_config(roots, shown);
        let mut any = ClientConfig::clone(&http1);
        any.alpn_protocols.insert(0, b"h2".to_vec());
        let profile = Arc::new(TlsProfile { id: self.last_id, any: Arc::new(any), http1 });
        self.profiles.push((extra.clone(), tls.clone(), profile.clone()));
        profile
    }

    /// Drops the profiles that no snapshot uses.
    pub fn sweep(&mut self) {
        self.profiles.retain(|(.., profile)| Arc::strong_count(profile) > 1);
    }
}

/// The callers, by index and by name.
#[derive(Debug, Default)]
pub struct CallerTable {
    list: Vec<Caller>,
    by_name: HashMap<Name, CallerId>,
}

impl Snapshot {
    /// True if a definition that is set aside has a route to this origin. Without that definition, the request would go
    /// out without a token, and perhaps without TLS.
    pub fn is_refused(&self, origin: &Origin) -> bool {
        self.refused.best_route(origin, None).is_some()
    }

    /// `live` returns the slots and endpoint of an active connection's definition.
    pub fn build(
        loaded: &Loaded,
        trust: &Trust,
        profiles: &mut TlsProfiles,
        clients: Arc<HttpClients>,
        (metrics, links, sign_in): (&Metrics, Links, Option<Arc<OpenIdClient>>),
        (listener_tls, authority): (HashMap<Name, Arc<ServerConfig>>, Option<Arc<Authority>>),
        live: impl Fn(&Connection) -> Option<Live>,
    ) -> Snapshot {
        let model = &loaded.model;
        let callers = CallerTable::new(model.callers.clone());
        let plain = profiles.get(trust, &model.trust, &UpstreamTls::default());
        let (mut connections, mut routes) = (Vec::new(), Vec::new());
        for connection in &model.connections {
            let permitted = callers.permitted(connection.accessible_from.as_deref());
            let bind = |definition: &Arc<Connection>| {
                let (slots, endpoint) = live(definition).map(|live| (live.slots, live.endpoint)).unzip();
                BoundDefinition { connection: definition.clone(), slots, endpoint }
            };
            let definitions: Vec<_> = connection.definitions().map(bind).collect();
            let mut route_profiles = Vec::new();
            for route in &connection.routes {
                let tls = profiles.get(trust, &model.trust, &route.tls);
                route_profiles.push(tls.clone());
                let carried = |definition: &&BoundDefinition| route.carries(&definition.connection.profile);
                for definition in definitions.iter().filter(carried) {
                    let connection = definition.connection.clone();
                    let Connection { name, profile, .. } = &*connection;
                    let bare = route.profile.is_some() || *profile == default_profile();
                    let label = Label { connection: name.clone(), profile: profile.clone(), bare };
                    let named = |name: &Name| model.connections.iter().find(|connection| connection.name == *name);
                    let others =
                        route.others.iter().filter_map(|other| Some((named(&other.connection)?, &other.inject)));
                    let others: Vec<_> = others.collect();
                    let own = Some((&connection, &route.inject)).filter(|(_, inject)| **inject != Inject::Nothing);
                    let mut other_bearer = route.other_bearer();
                    let token = |(connection, inject): (&Arc<Connection>, &Inject)| BoundToken {
                        slots: live(connection).map(|live| live.slots),
                        injections: metrics.injection_counters(connection.name.as_str(), connection.profile.as_str()),
                        connection: connection.clone(),
                        inject: inject.clone(),
                        other_bearer: other_bearer.take(),
                    };
                    let tokens = own.into_iter().chain(others.iter().copied()).map(token).collect();
                    let stripping = Stripped::of(route).map(|stripped| {
                        let removed = metrics.stripped.with_label_values(&[connection.name.as_str()]);
                        Stripping { stripped, removed }
                    });
                    // A caller may use the route only if it may use all of its connections.
                    let of = |other: &Arc<Connection>| callers.permitted(other.accessible_from.as_deref());
                    let all = others.iter().map(|(other, _)| of(other)).fold(permitted.clone(), Callers::both);
                    let reserved = reserved(route, stripping.as_ref());
                    let (route, tls) = (route.clone(), tls.clone());
                    let dialer = clients.dialer_for(&connection.written).clone();
                    let bound = BoundRoute { connection, route, tokens, stripping, reserved, tls, dialer };
                    routes.push((bound.route.clone(), label, all, bound));
                }
            }
            connections.push(BoundConnection { connection: connection.clone(), definitions, tls: route_profiles });
        }
        let mut set_aside = loaded.set_aside.clone();
        set_aside.sort_by(|one, other| one.name.cmp(&other.name));
        let refused = set_aside.iter().flat_map(|aside| {
            let (connection, profile) = (aside.name.clone(), default_profile());
            let label = Label { connection, profile, bare: true };
            aside.routes.iter().map(move |route| (route.clone(), label.clone(), Callers::All, ()))
        });
        Snapshot {
            connections,
            refused: Router::new(refused),
            set_aside,
            router: Router::new(routes),
            callers,
            egress: model.egress.clone(),
            authority,
            plain,
            dialer: clients.dialer.clone(),
            tracer: clients.tracer.clone(),
            clients,
            timeouts: model.timeouts.clone(),
            limits: model.limits.clone(),
            log_requests: model.log.requests,
            links,
            sign_in,
            listener_tls,
        }
    }
}

/// Header fields that the proxy sets on a request, or strips from it.
fn reserved(route: &Route, stripping: Option<&Stripping>) -> Arc<[HeaderName]> {
    let injected = route.injection_points().filter_map(|inject| match inject {
        Inject::Header { header, .. } => Some(header.clone()),
        Inject::Query { .. } | Inject::Nothing => None,
    });
    let set = route.set_headers.iter().map(|(name, _)| name.clone());
    let stripped = stripping.into_iter().flat_map(|stripping| stripping.stripped.headers());
    injected.chain(set).chain(stripped).collect()
}

impl CallerTable {
    pub fn new(list: Vec<Caller>) -> CallerTable {
        let ids = (0..).map(CallerId);
        let by_name = list.iter().map(|caller| caller.name.clone()).zip(ids).collect();
        CallerTable { list, by_name }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (CallerId, &Caller)> {
        (0..).map(CallerId).zip(&self.list)
    }

    pub fn named(&self, name: &str) -> Option<(CallerId, &Caller)> {
        let id = *self.by_name.get(&Name::parse(name)?)?;
        self.list.get(id.0 as usize).map(|caller| (id, caller))
    }

    pub fn get(&self, id: CallerId) -> Option<&Caller> {
        self.list.get(id.0 as usize)
    }

    pub fn name(&self, id: CallerId) -> Option<&Name> {
        self.list.get(id.0 as usize).map(|caller| &caller.name)
    }

    fn permitted(&self, names: Option<&[Name]>) -> Callers {
        match names {
            None => Callers::All,
            Some(names) => Callers::Only(names.iter().filter_map(|name| self.by_name.get(name).copied()).collect()),
        }
    }
}
