//! HTTP clients for authorization servers: one for each set of trust anchors, client certificate and egress proxy.
//!
//! Holds: no redirect is followed, no proxy of the environment used, no request sent twice; names are resolved, and
//! addresses checked, by the one dialer. Not here: gzip (`transport`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::discovery::Discovery;
use crate::dial::Dialer;
use crate::model::Roots;
use crate::model::connection::{AuthorizationServer, ClientCertificate, Connection, ServerProxy};
use crate::model::origin::Host;
use crate::sync::lock;
use crate::telemetry::traces::Tracer;
use crate::tls::{Proxied, Trust};

/// Token requests are rare and servers close idle connections after 5 seconds or more: an older one is mostly dead.
const POOL_IDLE: Duration = Duration::from_secs(4);
const POOL_IDLE_CONNECTIONS_MAX: usize = 8;

/// Made on first use (that costs 10 ms), then shared.
pub struct HttpClients {
    trust: Trust,
    dialer: Dialer,
    made: Mutex<Vec<(ClientSettings, reqwest::Client)>>,
    /// By issuer, and by what else decides what is found.
    discoveries: Mutex<Discoveries>,
    /// What the users of these clients do is told to it.
    pub tracer: Tracer,
}

/// What discovery depends on besides the HTTP client.
#[derive(PartialEq, Eq, Hash)]
struct DiscoveryKey {
    issuer: String,
    /// http endpoints are accepted.
    cleartext: bool,
    /// `mtls_endpoint_aliases` take precedence (RFC 8705 §5).
    mutual_tls: bool,
}
type Discoveries = HashMap<DiscoveryKey, Vec<(ClientSettings, Arc<Discovery>)>>;

/// How a server is reached.
#[derive(Clone, PartialEq, Eq)]
struct ClientSettings {
    roots: Option<Roots>,
    certificate: Option<ClientCertificate>,
    proxy: ServerProxy,
}

impl ClientSettings {
    fn to(server: &AuthorizationServer, certificate: Option<&ClientCertificate>) -> ClientSettings {
        ClientSettings { roots: server.trust.clone(), certificate: certificate.cloned(), proxy: server.proxy.clone() }
    }
}

impl HttpClients {
    pub fn new(trust: Trust, dialer: Dialer) -> HttpClients {
        let (made, discoveries) = (Mutex::default(), Mutex::default());
        HttpClients { trust, dialer, made, discoveries, tracer: Tracer::default() }
    }

    /// The client that reaches such a server and shows `certificate` to it.
    pub fn get(
        &self,
        server: &AuthorizationServer,
        certificate: Option<&ClientCertificate>,
    ) -> Result<reqwest::Client, ClientError> {
        let settings = ClientSettings::to(server, certificate);
        let mut made = lock(&self.made);
        if let Some((_, client)) = made.iter().find(|(own, _)| *own == settings) {
            return Ok(client.clone());
        }
        let client = self.make(&settings)?;
        made.push((settings, client.clone()));
        Ok(client)
    }

    /// A client over the shared roots, without a proxy.
    pub fn standard(&self) -> Result<reqwest::Client, ClientError> {
        self.make(&ClientSettings { roots: None, certificate: None, proxy: ServerProxy::Direct })
    }

    /// What the connection's issuer says, shared by the connections with the same settings.
    pub fn discovery(&self, connection: &Connection, http: &reqwest::Client) -> Option<Arc<Discovery>> {
        let issuer = connection.endpoints.issuer.clone()?;
        let (cleartext, mutual_tls) = (connection.endpoints.allow_cleartext, connection.mutual_tls.is_some());
        let settings = ClientSettings::to(&connection.authorization_server, connection.mutual_tls.as_ref());
        let mut discoveries = lock(&self.discoveries);
        let alike = discoveries.entry(DiscoveryKey { issuer: issuer.clone(), cleartext, mutual_tls }).or_default();
        if let Some((_, discovery)) = alike.iter().find(|(own, _)| *own == settings) {
            return Some(discovery.clone());
        }
        let discovery = Arc::new(Discovery::new(issuer, http.clone(), self.dialer.clone(), cleartext, mutual_tls));
        alike.push((settings, discovery.clone()));
        Some(discovery)
    }

    #[cfg(test)]
    pub fn made(&self) -> usize {
        lock(&self.made).len()
    }

    fn make(&self, settings: &ClientSettings) -> Result<reqwest::Client, ClientError> {
        let proxy = match &settings.proxy {
            ServerProxy::Inherit => self.dialer.proxy(),
            ServerProxy::Direct => None,
            ServerProxy::Own(proxy) => Some(proxy),
        };
        let proxy_host = proxy.and_then(|proxy| Host::parse(proxy.url.host_str()?).ok());
        // Its own name may be private, for this client alone: callers do not get there by it.
        let dialer =
            proxy_host.iter().fold(self.dialer.clone(), |dialer, host| dialer.permitting_private(host.clone()));
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
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_IDLE_CONNECTIONS_MAX);
        let builder = match proxy {
            None => builder,
            Some(proxy) => {
                let through = match &settings.proxy {
                    ServerProxy::Own(_) => reqwest::Proxy::all(proxy.url.clone()).map_err(ClientError)?,
                    ServerProxy::Inherit | ServerProxy::Direct => through(self.dialer.clone()),
                };
                builder.proxy(match &proxy.credentials {
                    None => through,
                    Some((username, password)) => through.basic_auth(username, password.expose()),
                })
            }
        };
        builder.build().map_err(ClientError)
    }
}

/// The proxy of `egress`, for what does not go around it.
fn through(dialer: Dialer) -> reqwest::Proxy {
    reqwest::Proxy::custom(move |url| {
        let host = Host::parse(url.host_str()?).ok()?;
        dialer.proxy_for(&host, url.port_or_known_default()?).map(|proxy| proxy.url.clone())
    })
}

#[derive(Debug, thiserror::Error)]
#[error("HTTP client cannot be made")]
pub struct ClientError(#[source] reqwest::Error);
