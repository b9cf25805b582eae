//! Dials an origin: resolves the name, checks the addresses, connects to an address that was checked.
//!
//! Used for upstreams and token endpoints. Not here: TLS (`tls`), connection pools (`proxy::upstream`).
//! Invariant: only an address that [`AddressPolicy`] permits is dialled, and exactly the one that was checked,
//! so DNS rebinding cannot bypass the policy.

mod names;
mod policy;
mod proxy;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::gate::Turn;
use crate::model::HostOverride;
use crate::model::connection::ForwardProxy;
use crate::model::origin::{Host, Origin};
use crate::tasks::Tasks;
use names::{Class, Names};
pub use policy::{AddressPolicy, Denied};
pub use proxy::{Conduit, EgressProxy, Forwarding};

/// Addresses of `localhost`.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// Maximum number of addresses tried per name.
const ADDRESSES_MAX: usize = 8;
/// Connection Attempt Delay: head start of an attempt before the next address is tried in parallel (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Maximum number of parallel attempts across all dials: the descriptor budget does not count their sockets.
const PARALLEL_ATTEMPTS_MAX: usize = 32;

/// The network settings of a configuration.
pub struct NetworkSettings<'a> {
    pub hosts: &'a [HostOverride],
    pub policy: AddressPolicy,
    pub egress_proxy: Option<EgressProxy>,
}

/// Resolves and connects; cloned freely.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// Dialers with equal numbers have equal rules, so they can share connections. Even; odd for [`Dialer::by_port`].
    pub number: usize,
    rules: Arc<Rules>,
    names: Names,
    parallel_attempts: Arc<Semaphore>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rules {
    hosts: HashMap<Host, (IpAddr, Option<u16>)>,
    policy: AddressPolicy,
    egress_proxy: Option<EgressProxy>,
    /// Only for dialling the egress proxy: it may have a private address.
    proxy_policy: AddressPolicy,
}

/// Which of our own listeners an authority resolves to, as far as `hosts` or a literal address shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnListener {
    /// The listener that accepted the downstream connection.
    This,
    Another,
    /// `hosts` maps the authority to another address.
    No,
    Unknown,
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{host} has the address {address}, which is {denied}")]
    Denied { host: Host, address: IpAddr, denied: Denied },
    #[error("the host name {host} cannot be resolved")]
    Resolve { host: Host, source: io::Error },
    #[error("connecting to {host} port {port} failed")]
    Connect { host: Host, port: u16, source: io::Error },
    #[error("the egress proxy {proxy} failed")]
    Proxy { proxy: String, source: io::Error },
    #[error("the egress proxy {proxy} responded with status {status}")]
    ProxyRefused { proxy: String, status: u16 },
}

impl Dialer {
    /// The dialer for these rules: the `previous` one if its rules are equal, else a new one with the next number.
    pub fn new(
        NetworkSettings { hosts, policy, egress_proxy }: NetworkSettings<'_>,
        tasks: &Tasks,
        previous: Option<&Dialer>,
    ) -> Dialer {
        let hosts = hosts.iter().map(|entry| (entry.host.clone(), (entry.address, entry.port))).collect();
        let name = egress_proxy.iter().map(|proxy| proxy.origin().host.clone());
        let proxy_policy = name.fold(policy.clone(), AddressPolicy::permitting_private);
        let rules = Rules { hosts, policy, egress_proxy, proxy_policy };
        match previous {
            Some(previous) if *previous.rules == rules => previous.clone(),
            previous => {
                let number = previous.map_or(0, |previous| previous.number + 2);
                // The DNS cache does not depend on the rules.
                let names = previous.map_or_else(|| Names::system(tasks), |previous| previous.names.clone());
                let parallel_attempts = match previous {
                    Some(previous) => previous.parallel_attempts.clone(),
                    None => Arc::new(Semaphore::new(PARALLEL_ATTEMPTS_MAX)),
                };
                Dialer { number, rules: Arc::new(rules), names, parallel_attempts }
            }
        }
    }

    /// The same dialer, for which `host` may have a private address.
    pub fn permitting_private(&self, host: Host) -> Dialer {
        let Rules { hosts, policy, egress_proxy, proxy_policy } = (*self.rules).clone();
        let policy = policy.permitting_private(host);
        let rules = Arc::new(Rules { hosts, policy, egress_proxy, proxy_policy });
        Dialer { rules, ..self.clone() }
    }

    /// The same dialer for definitions made over the API: hosts that files name may have private addresses only at the
    /// ports that files name.
    pub fn by_port(&self) -> Dialer {
        let Rules { hosts, policy, egress_proxy, proxy_policy } = (*self.rules).clone();
        let rules = Rules { hosts, policy: policy.by_port(), egress_proxy, proxy_policy };
        Dialer { number: self.number + 1, rules: Arc::new(rules), ..self.clone() }
    }

    /// True if this host may have a private address at `port`.
    pub fn opens(&self, host: &Host, port: u16) -> bool {
        self.rules.policy.opens(host, port)
    }

    /// The same dialer, for URLs that open no address themselves: connections permit it no private address, and no
    /// special one.
    pub fn without_connections(&self) -> Dialer {
        let Rules { hosts, policy, egress_proxy, proxy_policy } = &*self.rules;
        let rules = Rules {
            hosts: hosts.clone(),
            policy: policy.without_connections(hosts.keys()),
            egress_proxy: egress_proxy.clone(),
            proxy_policy: proxy_policy.clone(),
        };
        Dialer { rules: Arc::new(rules), ..self.clone() }
    }

    /// Checks whether the policy permits `origin`; dialling checks again. Names are looked up in the caller's `turn`.
    /// Sets no deadline itself.
    pub async fn permit(&self, origin: &Origin, turn: &Turn) -> Result<(), DialError> {
        match self.egress_proxy(origin)? {
            Some(_) => Ok(()),
            None => self.permitted(&origin.host, origin.port, &self.rules.policy, turn).await.map(drop),
        }
    }

    /// Checks a host that is a literal address: clients that dial on their own never resolve it.
    pub fn permit_literal(&self, host: &Host, port: u16) -> Result<(), DialError> {
        match host {
            Host::Ip(address) => self.check(host, SocketAddr::new(*address, port), &self.rules.policy),
            Host::Name(_) => Ok(()),
        }
    }

    /// Connects to `origin`, by a CONNECT tunnel if an egress proxy applies. Sets no deadline itself.
    pub async fn connect(&self, origin: &Origin, turn: &Turn) -> Result<Conduit, DialError> {
        match self.egress_proxy(origin)? {
            None => self.dial(origin, &self.rules.policy, turn).await.map(Conduit::Direct),
            Some(proxy) => proxy.tunnel(self.dial(proxy.origin(), &self.rules.proxy_policy, turn).await?, origin).await,
        }
    }

    /// Connects for cleartext requests, which an egress proxy forwards without a tunnel.
    pub async fn connect_for_requests(
        &self,
        origin: &Origin,
        turn: &Turn,
    ) -> Result<(Conduit, Option<Forwarding>), DialError> {
        match self.egress_proxy(origin)? {
            None => Ok((Conduit::Direct(self.dial(origin, &self.rules.policy, turn).await?), None)),
            Some(proxy) => {
                let stream = self.dial(proxy.origin(), &self.rules.proxy_policy, turn).await?;
                Ok((proxy.handshake(stream).await?, Some(proxy.forwarding())))
            }
        }
    }

    /// The configured egress proxy.
    pub fn proxy(&self) -> Option<&ForwardProxy> {
        self.rules.egress_proxy.as_ref().map(|proxy| &proxy.proxy)
    }

    /// The egress proxy that applies to this host, for clients that dial on their own.
    pub fn proxy_for(&self, host: &Host, port: u16) -> Option<&ForwardProxy> {
        let proxy = self.rules.egress_proxy.as_ref()?;
        (!self.rules.hosts.contains_key(host) && proxy.applies_to(host, port)).then_some(&proxy.proxy)
    }

    /// Which of our own listeners `origin` resolves to, seen from a connection accepted at `local` (`None`: a Unix
    /// socket).
    pub fn own_listener(&self, origin: &Origin, local: Option<SocketAddr>) -> OwnListener {
        let Rules { hosts, policy, .. } = &*self.rules;
        let by_hosts = hosts.get(&origin.host).map(|(ip, port)| SocketAddr::new(*ip, port.unwrap_or(origin.port)));
        let known: Vec<SocketAddr> = match (by_hosts, &origin.host) {
            (Some(address), _) => vec![address],
            (None, Host::Ip(ip)) => vec![SocketAddr::new(*ip, origin.port)],
            (None, host) if host.is_loopback() => LOOPBACK.map(|ip| SocketAddr::new(ip, origin.port)).to_vec(),
            (None, Host::Name(_)) => Vec::new(),
        };
        let is_this = |address: &SocketAddr| local.is_some_and(|local| policy.is_same_listener(*address, local));
        match () {
            () if known.iter().any(is_this) => OwnListener::This,
            () if known.iter().any(|address| policy.is_own_listener(*address)) => OwnListener::Another,
            () if by_hosts.is_some() => OwnListener::No,
            () => OwnListener::Unknown,
        }
    }

    /// The egress proxy that applies to `origin`. A host under `hosts` is always dialled directly; a literal address is
    /// checked here, since the proxy does not know the policy.
    fn egress_proxy(&self, origin: &Origin) -> Result<Option<&EgressProxy>, DialError> {
        if self.proxy_for(&origin.host, origin.port).is_none() {
            return Ok(None);
        }
        if let Host::Ip(address) = origin.host {
            self.check(&origin.host, SocketAddr::new(address, origin.port), &self.rules.policy)?;
        }
        Ok(self.rules.egress_proxy.as_ref())
    }

    async fn dial(&self, origin: &Origin, policy: &AddressPolicy, turn: &Turn) -> Result<TcpStream, DialError> {
        let addresses = self.permitted(&origin.host, origin.port, policy, turn).await?;
        let stream = race(&addresses, &self.parallel_attempts, TcpStream::connect).await;
        if let (Err(_), Host::Name(name)) = (&stream, &origin.host) {
            self.names.forget(name);
        }
        let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        stream.map_err(|source| DialError::Connect { host: origin.host.clone(), port: origin.port, source })
    }

    async fn resolve(
        &self,
        host: &Host,
        port: u16,
        policy: &AddressPolicy,
        turn: &Turn,
    ) -> Result<Vec<SocketAddr>, DialError> {
        let name = match host {
            Host::Ip(address) => return Ok(vec![SocketAddr::new(*address, port)]),
            Host::Name(name) => name,
        };
        let class = if policy.names(host) { Class::Configured } else { Class::Requested };
        let found = self.names.addresses(name, class, turn).await;
        let found = found.map_err(|source| DialError::Resolve { host: host.clone(), source })?;
        Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    fn check(&self, host: &Host, address: SocketAddr, policy: &AddressPolicy) -> Result<(), DialError> {
        let denied = |denied| DialError::Denied { host: host.clone(), address: address.ip(), denied };
        policy.check(host, address).map_err(denied)
    }

    /// The permitted addresses of a host in dialling order, for requests of Keybearer itself. One forbidden address
    /// denies the host: an honest name has none.
    pub async fn addresses(&self, host: &Host, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        self.permitted(host, port, &self.rules.policy, &Turn::Own).await
    }

    async fn permitted(
        &self,
        host: &Host,
        port: u16,
        policy: &AddressPolicy,
        turn: &Turn,
    ) -> Result<Vec<SocketAddr>, DialError> {
        let mut addresses = match self.rules.hosts.get(host) {
            Some((address, own_port)) => vec![SocketAddr::new(*address, own_port.unwrap_or(port))],
            None => self.resolve(host, port, policy, turn).await?,
        };
        for address in &addresses {
            self.check(host, *address, policy)?;
        }
        interleave(&mut addresses);
        Ok(addresses)
    }
}

/// Interleaves the address families, starting with the resolver's first choice (RFC 8305 §4).
fn interleave(addresses: &mut Vec<SocketAddr>) {
    let Some(first) = addresses.first().copied() else { return };
    let (same, other): (Vec<_>, Vec<_>) = addresses.drain(..).partition(|a| a.is_ipv4() == first.is_ipv4());
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    loop {
        let (a, b) = (same.next(), other.next());
        if a.is_none() && b.is_none() {
            return;
        }
        addresses.extend(a.into_iter().chain(b));
    }
}

/// Happy Eyeballs (RFC 8305): starts the next attempt when the previous ones have failed, or after [`ATTEMPT_DELAY`].
/// Without a permit of `parallel`, it replaces the running attempts.
async fn race<T, F>(addresses: &[SocketAddr], parallel: &Semaphore, connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(address) = waiting.next() {
            let permit = if attempts.is_empty() { None } else { parallel.try_acquire().ok() };
            if permit.is_none() {
                attempts.clear();
            }
            let attempt = connect(*address);
            attempts.push(async move {
                let _permit = permit;
                attempt.await
            });
        } else if attempts.is_empty() {
            return Err(failure);
        }
        let patience = if waiting.len() == 0 { Duration::MAX } else { ATTEMPT_DELAY };
        match tokio::time::timeout(patience, attempts.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => failure = error,
            Ok(None) | Err(_) => {}
        }
    }
}

/// Resolver for the token endpoints' HTTP client, which dials on its own: applies the same overrides and the same
/// policy.
impl reqwest::dns::Resolve for Dialer {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let dialer = self.clone();
        Box::pin(async move {
            let host = Host::parse(name.as_str())?;
            let addresses = dialer.addresses(&host, 0).await?;
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests;
