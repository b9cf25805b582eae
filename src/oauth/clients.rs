//! HTTP clients for authorization servers: one for each combination of trust anchors, client certificate and egress
//! proxy.
//!
//! Invariants: no redirect is followed, no proxy variable of the environment is used, no request is sent twice; the one
//! dialer resolves names and checks addresses.
//! Not here: gzip (`transport`).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use url::Url;

use super::discovery::Discovery;
use crate::dial::Dialer;
use crate::model::Roots;
use crate::model::connection::{AuthorizationServer, ClientCertificate, Connection, ServerProxy, WrittenDefinition};
use crate::model::origin::Host;
use crate::sync::lock;
use crate::telemetry::traces::Tracer;
use crate::tls::{Proxied, Trust};

/// Idle timeout of pooled connections. Token requests are rare, and servers close idle connections after 5 seconds or
/// more.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const POOL_IDLE_CONNECTIONS_MAX: usize = 8;

/// Clients are built on first use, which takes 10 ms, then shared.
pub struct HttpClients {
    trust: Trust,
    pub dialer: Dialer,
    /// For definitions made over the API.
    by_port: Dialer,
    clients: Mutex<Vec<(ClientSettings, reqwest::Client)>>,
    discoveries: Mutex<Discoveries>,
    /// Traces the requests that are sent over these clients.
    pub tracer: Tracer,
}

/// Discovery settings, in addition to the HTTP client's.
#[derive(PartialEq, Eq, Hash)]
struct DiscoveryKey {
    issuer: String,
    /// Cleartext `http` endpoints are accepted.
    allow_cleartext: bool,
    /// `mtls_endpoint_aliases` take precedence (RFC 8705 §5).
    mutual_tls: bool,
    /// The issuer's host may have a private address.
    may_be_private: bool,
}
type Discoveries = HashMap<DiscoveryKey, Vec<(ClientSettings, Arc<Discovery>)>>;

/// Settings of one HTTP client.
#[derive(Clone, PartialEq, Eq)]
struct ClientSettings {
    roots: Option<Roots>,
    certificate: Option<ClientCertificate>,
    proxy: ServerProxy,
    /// No host has a private address for this client because of one of its ports.
    closed: bool,
}

impl ClientSettings {
    fn new(server: &AuthorizationServer, certificate: Option<&ClientCertificate>) -> ClientSettings {
        let (roots, certificate, proxy) = (server.trust.clone(), certificate.cloned(), server.proxy.clone());
        ClientSettings { roots, certificate, proxy, closed: false }
    }
}

/// The HTTP clients of one connection's endpoints. An HTTP client resolves names without knowing the port, so a
/// definition made over the API has two: one for the hosts and ports that files name, and one for all others.
pub struct EndpointClients {
    open: reqwest::Client,
    /// `None`: the connection is defined in a file.
    closed: Option<Closed>,
}

struct Closed {
    client: reqwest::Client,
    dialer: Dialer,
    /// The connection's own egress proxy, which is dialled in place of the endpoints.
    proxy: Option<Url>,
}

impl EndpointClients {
    /// The client for requests to `url`.
    pub fn to(&self, url: &Url) -> &reqwest::Client {
        let Some(Closed { client, dialer, proxy }) = &self.closed else { return &self.open };
        let dialled = proxy.as_ref().unwrap_or(url);
        let host = dialled.host_str().and_then(|host| Host::parse(host).ok());
        let is_open = host.zip(dialled.port_or_known_default()).is_some_and(|(host, port)| dialer.opens(&host, port));
        if is_open { &self.open } else { client }
    }
}

/// Shows nothing: the settings may hold secrets.
impl fmt::Debug for HttpClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClients")
    }
}

impl HttpClients {
    pub fn new(trust: Trust, dialer: Dialer) -> HttpClients {
        let (clients, discoveries) = (Mutex::default(), Mutex::default());
        HttpClients { trust, by_port: dialer.by_port(), dialer, clients, discoveries, tracer: Tracer::default() }
    }

    /// Clients with the same trust anchors, dialer and tracer that share nothing else with these: for endpoints that are
    /// not kept, so that their settings are not kept either.
    pub fn separate(&self) -> HttpClients {
        HttpClients { tracer: self.tracer.clone(), ..HttpClients::new(self.trust.clone(), self.dialer.clone()) }
    }

    /// The dialer for the hosts of a definition: what is made over the API reaches less than what a file defines.
    pub fn dialer_for(&self, written: &WrittenDefinition) -> &Dialer {
        if written.opens_addresses() { &self.dialer } else { &self.by_port }
    }

    /// The clients for the endpoints of a connection.
    pub fn of(&self, connection: &Connection) -> Result<EndpointClients, ClientError> {
        let settings = ClientSettings::new(&connection.authorization_server, connection.mutual_tls.as_ref());
        let closed = if connection.written.opens_addresses() {
            None
        } else {
            let proxy = match &settings.proxy {
                ServerProxy::Own(proxy) => Some(proxy.url.clone()),
                ServerProxy::Inherit | ServerProxy::Direct => None,
            };
            let client = self.shared(ClientSettings { closed: true, ..settings.clone() })?;
            Some(Closed { client, dialer: self.by_port.clone(), proxy })
        };
        Ok(EndpointClients { open: self.shared(settings)?, closed })
    }

    /// The client with these settings; it presents `certificate` to the server.
    pub fn get(
        &self,
        server: &AuthorizationServer,
        certificate: Option<&ClientCertificate>,
    ) -> Result<reqwest::Client, ClientError> {
        self.shared(ClientSettings::new(server, certificate))
    }

    fn shared(&self, settings: ClientSettings) -> Result<reqwest::Client, ClientError> {
        let mut clients = lock(&self.clients);
        if let Some((_, client)) = clients.iter().find(|(existing, _)| *existing == settings) {
            return Ok(client.clone());
        }
        let client = self.build(&settings)?;
        clients.push((settings, client.clone()));
        Ok(client)
    }

    /// A client with the global trust anchors and no egress proxy.
    pub fn standard(&self) -> Result<reqwest::Client, ClientError> {
        self.build(&ClientSettings { roots: None, certificate: None, proxy: ServerProxy::Direct, closed: false })
    }

    /// Discovery of the connection's issuer, shared by all connections with the same settings.
    pub fn discovery(&self, connection: &Connection, http: &EndpointClients) -> Option<Arc<Discovery>> {
        let issuer = connection.endpoints.issuer.clone()?;
        let (allow_cleartext, mutual_tls) = (connection.endpoints.allow_cleartext, connection.mutual_tls.is_some());
        let may_be_private = connection.written.opens_addresses();
        let settings = ClientSettings::new(&connection.authorization_server, connection.mutual_tls.as_ref());
        let mut discoveries = lock(&self.discoveries);
        let same_key = discoveries
            .entry(DiscoveryKey { issuer: issuer.clone(), allow_cleartext, mutual_tls, may_be_private })
            .or_default();
        if let Some((_, discovery)) = same_key.iter().find(|(existing, _)| *existing == settings) {
            return Some(discovery.clone());
        }
        // Metadata may name endpoints at other ports of the issuer's own address.
        let url = Url::parse(&issuer).ok();
        let host = url.as_ref().and_then(|url| Host::parse(url.host_str()?).ok()).filter(|_| may_be_private);
        let dialer = self.dialer_for(&connection.written).clone();
        let dialer = host.into_iter().fold(dialer, |dialer, host| dialer.permitting_private(host));
        let http = url.as_ref().map_or(&http.open, |url| http.to(url)).clone();
        let discovery = Arc::new(Discovery::new(issuer, http, dialer, allow_cleartext, mutual_tls));
        same_key.push((settings, discovery.clone()));
        Some(discovery)
    }

    /// Discovery of the OpenID provider at which people sign in.
    pub fn sign_in_discovery(&self, issuer: &str, http: &reqwest::Client) -> Discovery {
        Discovery::new(issuer.to_owned(), http.clone(), self.dialer.clone(), false, false)
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        lock(&self.clients).len()
    }

    fn build(&self, settings: &ClientSettings) -> Result<reqwest::Client, ClientError> {
        let proxy = match &settings.proxy {
            ServerProxy::Inherit => self.dialer.proxy(),
            ServerProxy::Direct => None,
            ServerProxy::Own(proxy) => Some(proxy),
        };
        let proxy_host =
            proxy.filter(|proxy| proxy.may_be_private).and_then(|proxy| Host::parse(proxy.url.host_str()?).ok());
        // The proxy's own name may resolve to a private address, for this client only: callers cannot reach it that
        // way.
        // Names are resolved at port 0: by port, that is open only for hosts that are open at all ports.
        let dialer = if settings.closed { self.by_port.clone() } else { self.dialer.clone() };
        let dialer = proxy_host.into_iter().fold(dialer, |dialer, host| dialer.permitting_private(host));
        let proxied = proxy.filter(|proxy| proxy.url.scheme() == "https");
        let proxied = proxied.and_then(|proxy| Proxied::new(proxy.url.host_str()?, proxy.trust.as_ref()));
        let tls = self.trust.client_config_through(settings.roots.as_ref(), settings.certificate.as_ref(), proxied);
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(Arc::unwrap_or_clone(tls))
            .dns_resolver(Arc::new(dialer))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(POOL_IDLE_CONNECTIONS_MAX);
        let builder = match proxy {
            None => builder,
            Some(proxy) => {
                let egress = match &settings.proxy {
                    ServerProxy::Own(_) => reqwest::Proxy::all(proxy.url.clone()).map_err(ClientError)?,
                    ServerProxy::Inherit | ServerProxy::Direct => inherited(self.dialer.clone()),
                };
                builder.proxy(match &proxy.credentials {
                    None => egress,
                    Some((username, password)) => egress.basic_auth(username, password.expose()),
                })
            }
        };
        builder.build().map_err(ClientError)
    }
}

/// The proxy of `egress.proxy`, for hosts that `no_proxy` does not exempt.
fn inherited(dialer: Dialer) -> reqwest::Proxy {
    reqwest::Proxy::custom(move |url| {
        let host = Host::parse(url.host_str()?).ok()?;
        dialer.proxy_for(&host, url.port_or_known_default()?).map(|proxy| proxy.url.clone())
    })
}

#[derive(Debug, thiserror::Error)]
#[error("HTTP client could not be built")]
pub struct ClientError(#[source] reqwest::Error);
