//! From an origin to an open connection: resolve, check the address, connect to the address that was checked.
//!
//! Serves upstreams and token endpoints alike. Not here: TLS with either (`tls`), pools (`proxy::upstream`).
//! Holds: only an address that [`AddressPolicy`] permits is dialled, and it is the very one that was checked, so a name
//! whose answer changes in between reaches nothing.

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

/// What `localhost` names.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// Addresses of one name that are tried at most.
const ADDRESSES_MAX: usize = 8;
/// How long an attempt runs alone before the next address is tried beside it (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Attempts of all dials that run beside others: each has a socket that no budget of connections counts.
const ATTEMPTS_BESIDE_MAX: usize = 32;

/// What a configuration says of the network.
pub struct Reach<'a> {
    pub hosts: &'a [HostOverride],
    pub policy: AddressPolicy,
    pub way_out: Option<EgressProxy>,
}

/// Resolves and connects; cloned freely.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// Dialers of one number reach the same places: a connection made by one is good for another.
    pub number: usize,
    rules: Arc<Rules>,
    names: Names,
    attempts_beside: Arc<Semaphore>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rules {
    hosts: HashMap<Host, (IpAddr, Option<u16>)>,
    policy: AddressPolicy,
    way_out: Option<EgressProxy>,
    /// For the proxy on the way out alone: its name may be private.
    policy_of_proxy: AddressPolicy,
}

/// The listener of ours to which an authority leads, as far as `hosts` or the authority itself shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnListener {
    /// The one that the connection came in by.
    This,
    Another,
    /// `hosts` sends it elsewhere.
    No,
    Unknown,
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{host} has the address {address}, which is {denied}")]
    Denied { host: Host, address: IpAddr, denied: Denied },
    #[error("the name {host} cannot be resolved")]
    Resolve { host: Host, source: io::Error },
    #[error("no connection to {host} port {port}")]
    Connect { host: Host, port: u16, source: io::Error },
    #[error("no way through the egress proxy {proxy}")]
    Proxy { proxy: String, source: io::Error },
    #[error("the egress proxy {proxy} refused with status {status}")]
    ProxyRefused { proxy: String, status: u16 },
}

impl Dialer {
    /// The dialer for these rules: `before`, if it has the same ones, else one with the next number.
    pub fn new(Reach { hosts, policy, way_out }: Reach<'_>, tasks: &Tasks, before: Option<&Dialer>) -> Dialer {
        let hosts = hosts.iter().map(|entry| (entry.host.clone(), (entry.address, entry.port))).collect();
        let name = way_out.iter().map(|way| way.place().host.clone());
        let policy_of_proxy = name.fold(policy.clone(), AddressPolicy::naming);
        let rules = Rules { hosts, policy, way_out, policy_of_proxy };
        match before {
            Some(before) if *before.rules == rules => before.clone(),
            before => {
                let number = before.map_or(1, |before| before.number + 1);
                // What names mean does not change with the rules.
                let names = before.map_or_else(|| Names::of_system(tasks), |before| before.names.clone());
                let attempts_beside = match before {
                    Some(before) => before.attempts_beside.clone(),
                    None => Arc::new(Semaphore::new(ATTEMPTS_BESIDE_MAX)),
                };
                Dialer { number, rules: Arc::new(rules), names, attempts_beside }
            }
        }
    }

    /// The same with one more name that may be private.
    pub fn naming(&self, host: Host) -> Dialer {
        let Rules { hosts, policy, way_out, policy_of_proxy } = (*self.rules).clone();
        let policy = policy.naming(host);
        let rules = Arc::new(Rules { hosts, policy, way_out, policy_of_proxy });
        Dialer { rules, ..self.clone() }
    }

    /// Does the policy permit `origin`? The same is checked again when it is dialled. Names are looked up in the caller's
    /// `turn`. The caller sets the deadline.
    pub async fn permit(&self, origin: &Origin, turn: &Turn) -> Result<(), DialError> {
        match self.way_out(origin)? {
            Some(_) => Ok(()),
            None => self.permitted(&origin.host, origin.port, &self.rules.policy, turn).await.map(drop),
        }
    }

    /// A stream to `origin`, through the proxy on the way out where there is one. The caller sets the deadline.
    pub async fn connect(&self, origin: &Origin, turn: &Turn) -> Result<Conduit, DialError> {
        match self.way_out(origin)? {
            None => self.reach(origin, &self.rules.policy, turn).await.map(Conduit::Direct),
            Some(way) => way.tunnel(self.reach(way.place(), &self.rules.policy_of_proxy, turn).await?, origin).await,
        }
    }

    /// The same for requests in clear, which such a proxy takes as they are.
    pub async fn connect_for_requests(
        &self,
        origin: &Origin,
        turn: &Turn,
    ) -> Result<(Conduit, Option<Forwarding>), DialError> {
        match self.way_out(origin)? {
            None => Ok((Conduit::Direct(self.reach(origin, &self.rules.policy, turn).await?), None)),
            Some(way) => {
                let stream = self.reach(way.place(), &self.rules.policy_of_proxy, turn).await?;
                Ok((way.reach(stream).await?, Some(way.forwarding())))
            }
        }
    }

    /// The proxy on the way out, if there is one.
    pub fn proxy(&self) -> Option<&ForwardProxy> {
        self.rules.way_out.as_ref().map(|way| &way.proxy)
    }

    /// The proxy by which this host is reached, for whoever dials by itself.
    pub fn proxy_for(&self, host: &Host, port: u16) -> Option<&ForwardProxy> {
        let way = self.rules.way_out.as_ref()?;
        (!self.rules.hosts.contains_key(host) && way.takes(host, port)).then_some(&way.proxy)
    }

    /// The listener of ours to which `origin` leads, seen from a connection with the own address `local` (`None`: a Unix socket).
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

    /// A host under `hosts` is where that says, and nowhere behind a proxy; a literal address is checked here, since the
    /// proxy knows nothing of the rules.
    fn way_out(&self, origin: &Origin) -> Result<Option<&EgressProxy>, DialError> {
        if self.proxy_for(&origin.host, origin.port).is_none() {
            return Ok(None);
        }
        if let Host::Ip(address) = origin.host {
            self.check(&origin.host, SocketAddr::new(address, origin.port), &self.rules.policy)?;
        }
        Ok(self.rules.way_out.as_ref())
    }

    async fn reach(&self, origin: &Origin, policy: &AddressPolicy, turn: &Turn) -> Result<TcpStream, DialError> {
        let addresses = self.permitted(&origin.host, origin.port, policy, turn).await?;
        let stream = race(&addresses, &self.attempts_beside, TcpStream::connect).await;
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

    /// For the program itself: the permitted addresses of a host, in the order in which they are tried. One forbidden address among them
    /// denies the host: an honest name does not point there.
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

/// Alternates the address families, the resolver's first choice first (RFC 8305 §4).
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

/// Happy Eyeballs: the next address joins when the ones before have failed or been silent for [`ATTEMPT_DELAY`]. Without a place
/// in `beside` it takes theirs instead.
async fn race<T, F>(addresses: &[SocketAddr], beside: &Semaphore, connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(address) = waiting.next() {
            let place = if attempts.is_empty() { None } else { beside.try_acquire().ok() };
            if place.is_none() {
                attempts.clear();
            }
            let attempt = connect(*address);
            attempts.push(async move {
                let _place = place;
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

/// For the token endpoints' client, which dials by itself: the same overrides and the same check.
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
