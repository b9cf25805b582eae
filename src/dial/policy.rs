//! Egress policy: which addresses may be dialled.
//!
//! A private address needs a host that the configuration names, or a network in `egress.allow_private`. Link-local,
//! metadata, unspecified and multicast addresses and our own listeners need a route that names that exact address. A
//! literal address in a route or URL is permitted only on that port, and only to requests that name the address
//! literally. Definitions that were made over the API open no address, and reach the private hosts that files name only at
//! the ports that files name. An address that embeds others (IPv4-mapped, NAT64, 6to4, Teredo) is judged by each of
//! them, since its packets are sent there.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;
use url::Url;

use crate::model::connection::{HostPattern, PortRule, Route, RouteOrigin};
use crate::model::origin::Host;
use crate::model::{Listener, Model};

/// Why the policy denies an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("private; name the host in a route or under hosts, or add its network to egress.allow_private")]
    Private,
    #[error("link-local, metadata, multicast or reserved, and no route names this address")]
    Special,
    #[error("a listener of this proxy")]
    OwnListener,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    allow_private: Vec<IpNet>,
    /// Hosts under `hosts`, and names that appear exactly in a route or in a URL of a connection, with the ports there;
    /// `None`: all ports.
    named: HashMap<Host, HashSet<Option<u16>>>,
    /// A named host may have a private address only at its ports.
    by_port: bool,
    /// Addresses that a route names literally, with the port; `None`: all ports.
    routed: HashSet<(IpAddr, Option<u16>)>,
    /// Literal addresses in the URLs of connections. They may be private, but not special.
    endpoints: HashSet<(IpAddr, u16)>,
    own_listeners: Vec<SocketAddr>,
}

impl AddressPolicy {
    /// `listeners` are our own, with their actual addresses.
    pub fn new(model: &Model, listeners: &[Listener]) -> AddressPolicy {
        let mut policy = AddressPolicy {
            allow_private: model.egress.allow_private.clone(),
            own_listeners: listeners.iter().map(|listener| listener.address).collect(),
            ..AddressPolicy::default()
        };
        model.hosts.iter().for_each(|entry| policy.name(entry.host.clone(), None));
        model.admin.sign_in.iter().filter_map(|sign_in| sign_in.issuer.parse().ok()).for_each(|url| policy.url(&url));
        for connection in model.connections.iter().filter(|connection| connection.written.opens_addresses()) {
            let endpoints = &connection.endpoints;
            let others = [&endpoints.revocation, &endpoints.authorization, &endpoints.device_authorization];
            let urls = std::iter::once(&endpoints.server).chain(others.into_iter().flatten()).cloned();
            let issuer = endpoints.issuer.as_ref().and_then(|issuer| issuer.parse().ok());
            urls.chain(issuer).for_each(|url| policy.url(&url));
            connection.routes.iter().for_each(|route| policy.route(route));
        }
        policy
    }

    /// Permits the host of a configured URL.
    fn url(&mut self, url: &Url) {
        let host = url.host_str().and_then(|host| Host::parse(host).ok());
        match (host, url.port_or_known_default()) {
            (Some(Host::Ip(address)), Some(port)) => self.endpoints.extend([(address.to_canonical(), port)]),
            (host, port) => host.into_iter().for_each(|host| self.name(host, port)),
        }
    }

    fn name(&mut self, host: Host, port: Option<u16>) {
        self.named.entry(host).or_default().insert(port);
    }

    fn route(&mut self, route: &Route) {
        let RouteOrigin { pattern, port, tls_only } = route.origin();
        let port = match port {
            PortRule::Default => Some(if tls_only { 443 } else { 80 }),
            PortRule::Stated(port) => Some(port),
            PortRule::Any => None,
        };
        match pattern {
            HostPattern::Exact(Host::Ip(address)) => self.routed.extend([(address.to_canonical(), port)]),
            HostPattern::Exact(host) => self.name(host, port),
            HostPattern::Subdomains(_) => {}
        }
    }

    #[cfg(test)]
    pub fn with_own_listeners(own_listeners: Vec<SocketAddr>) -> AddressPolicy {
        AddressPolicy { own_listeners, ..AddressPolicy::default() }
    }

    /// The same policy, under which `host` may have a private address, at any port.
    pub fn permitting_private(mut self, host: Host) -> AddressPolicy {
        self.name(host, None);
        self
    }

    /// The same policy for definitions made over the API: named hosts may have private addresses only at the ports that
    /// files name.
    pub fn by_port(&self) -> AddressPolicy {
        AddressPolicy { by_port: true, ..self.clone() }
    }

    /// The same policy without the addresses that connections open: only `hosts` and `allow_private` permit private ones.
    pub fn without_connections<'a>(&self, hosts: impl Iterator<Item = &'a Host>) -> AddressPolicy {
        AddressPolicy {
            allow_private: self.allow_private.clone(),
            named: hosts.map(|host| (host.clone(), HashSet::from([None]))).collect(),
            own_listeners: self.own_listeners.clone(),
            ..AddressPolicy::default()
        }
    }

    /// True if the configuration names exactly this host.
    pub fn names(&self, host: &Host) -> bool {
        self.named.contains_key(host)
    }

    /// True if this host may have a private address at `port`.
    pub fn opens(&self, host: &Host, port: u16) -> bool {
        let ports = self.named.get(host);
        ports.is_some_and(|ports| !self.by_port || ports.contains(&None) || ports.contains(&Some(port)))
    }

    pub fn is_own_listener(&self, address: SocketAddr) -> bool {
        let is_own = |ip: &IpAddr| {
            self.own_listeners.iter().any(|own| own.port() == address.port() && accepts_at(own.ip(), *ip))
        };
        delivered_to(address.ip().to_canonical()).iter().any(is_own)
    }

    /// True if one of our listeners accepts connections at both `address` and `local`.
    pub fn is_same_listener(&self, address: SocketAddr, local: SocketAddr) -> bool {
        let (ports, local_ip) = ((address.port(), local.port()), local.ip().to_canonical());
        let here =
            self.own_listeners.iter().filter(|own| ports == (own.port(), own.port()) && accepts_at(own.ip(), local_ip));
        let targets = delivered_to(address.ip().to_canonical());
        here.into_iter().any(|listener| targets.iter().any(|ip| accepts_at(listener.ip(), *ip)))
    }

    /// Checks whether `host`, which resolved to `address`, may be dialled.
    pub fn check(&self, host: &Host, address: SocketAddr) -> Result<(), Denied> {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        let literal = matches!(host, Host::Ip(_));
        let routed = |port| literal && self.routed.contains(&(ip, port));
        if routed(Some(port)) {
            return Ok(());
        }
        let targets = delivered_to(ip);
        if self.is_own_listener(address) {
            return Err(Denied::OwnListener);
        }
        if routed(None) {
            return Ok(());
        }
        if targets.iter().any(is_special) {
            return Err(Denied::Special);
        }
        let named = self.opens(host, port) || literal && self.endpoints.contains(&(ip, port));
        let is_allowed = |ip: &IpAddr| !is_private(ip) || self.allow_private.iter().any(|network| network.contains(ip));
        if named || targets.iter().all(is_allowed) { Ok(()) } else { Err(Denied::Private) }
    }
}

/// True if a listener bound to `listener` accepts connections at `ip`. A wildcard listener does at every address of
/// this machine.
fn accepts_at(listener: IpAddr, ip: IpAddr) -> bool {
    listener.to_canonical() == ip || (listener.is_unspecified() && UdpSocket::bind((ip, 0)).is_ok())
}

/// Where packets to a canonical address are delivered: to the IPv4 addresses that it embeds, else to itself.
fn delivered_to(ip: IpAddr) -> [IpAddr; 2] {
    let IpAddr::V6(v6) = ip else { return [ip; 2] };
    let v4 = |high: u16, low: u16| IpAddr::from(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match v6.segments() {
        // NAT64 (RFC 6052 §2.1)
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [v4(high, low); 2],
        // 6to4 (RFC 3056 §2): the gateway
        [0x2002, high, low, ..] => [v4(high, low); 2],
        // Teredo (RFC 4380 §4): the server, and the client behind its NAT with all bits inverted
        [0x2001, 0, high, low, _, _, client_high, client_low] => [v4(high, low), v4(!client_high, !client_low)],
        _ => [ip; 2],
    }
}

fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_loopback() || ip.is_private() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(ip) => {
            // Local-use NAT64 (RFC 8215); the position of the embedded IPv4 address is up to the network.
            let local_nat64 = ip.segments()[..3] == [0x64, 0xff9b, 1];
            ip.is_loopback() || ip.is_unique_local() || local_nat64
        }
    }
}

fn is_special(ip: &IpAddr) -> bool {
    /// Metadata and host services outside the link-local ranges: Azure, Oracle Cloud and Alibaba Cloud.
    const METADATA_V4: [Ipv4Addr; 3] =
        [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(100, 100, 100, 200)];
    /// AWS and Google.
    const METADATA_V6: [Ipv6Addr; 2] =
        [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];
    match ip {
        IpAddr::V4(ip) => {
            let [a, ..] = ip.octets();
            a == 0 || a >= 224 || ip.is_link_local() || METADATA_V4.contains(ip)
        }
        IpAddr::V6(ip) => {
            let site_local = ip.segments()[0] & 0xffc0 == 0xfec0;
            let compatible = ip.segments()[..6] == [0; 6] && !ip.is_loopback();
            ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || site_local
                || compatible
                || METADATA_V6.contains(ip)
        }
    }
}
