//! Which addresses may be dialled.
//!
//! Private networks only for names that the configuration names, or inside `egress.allow_private`; link-local, metadata,
//! unspecified and multicast addresses and our own listeners only where a route names that very address.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;
use url::Url;

use crate::model::connection::{HostPattern, Place};
use crate::model::origin::Host;
use crate::model::{Listener, Model};

/// Why an address is not dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("private, and neither the name is in a route nor the network in egress.allow_private")]
    Private,
    #[error("link-local, metadata, multicast or reserved, and no route names this address")]
    Special,
    #[error("a listener of this proxy")]
    OwnListener,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    allow_private: Vec<IpNet>,
    /// Names that stand exactly in a route, in `hosts` or in a URL of a connection.
    named: HashSet<Host>,
    /// Addresses that a route names literally.
    literal: HashSet<IpAddr>,
    own: Vec<SocketAddr>,
}

impl AddressPolicy {
    /// `own` are the real addresses of our listeners.
    pub fn new(model: &Model, own: &[Listener]) -> AddressPolicy {
        let mut policy = AddressPolicy {
            allow_private: model.egress.allow_private.clone(),
            own: own.iter().map(|listener| listener.address).collect(),
            ..AddressPolicy::default()
        };
        policy.named.extend(model.hosts.iter().map(|entry| entry.host.clone()));
        for connection in &model.connections {
            let endpoints = &connection.endpoints;
            let others = [&endpoints.revocation, &endpoints.authorization, &endpoints.device_authorization];
            let urls = std::iter::once(&endpoints.server).chain(others.into_iter().flatten()).cloned();
            let issuer = endpoints.issuer.as_ref().and_then(|issuer| issuer.parse().ok());
            let hosts = urls.chain(issuer).filter_map(|url: Url| Host::parse(url.host_str()?).ok());
            policy.named.extend(hosts);
            for route in &connection.routes {
                let host = match &route.place {
                    Place::Host { pattern: HostPattern::Exact(host), .. } => host,
                    Place::Host { pattern: HostPattern::Below(_), .. } => continue,
                    Place::Mount { upstream, .. } => &upstream.host,
                };
                policy.named.insert(host.clone());
                if let Host::Ip(address) = host {
                    policy.literal.insert(address.to_canonical());
                }
            }
        }
        policy
    }

    /// The same with one more name that may be private.
    pub fn naming(mut self, host: Host) -> AddressPolicy {
        self.named.insert(host);
        self
    }

    /// May `host`, which resolved to `address`, be dialled?
    pub fn check(&self, host: &Host, address: SocketAddr) -> Result<(), Denied> {
        let ip = unwrap(address.ip());
        if self.literal.contains(&ip) {
            return Ok(());
        }
        if is_special(ip) {
            return Err(Denied::Special);
        }
        if self.own.iter().any(|own| own.port() == address.port() && reaches(own.ip(), ip)) {
            return Err(Denied::OwnListener);
        }
        let allowed =
            !is_private(ip) || self.named.contains(host) || self.allow_private.iter().any(|n| n.contains(&ip));
        if allowed { Ok(()) } else { Err(Denied::Private) }
    }
}

/// Does a listener bound to `own` answer at `ip`? One on every address answers at each of this machine's.
fn reaches(own: IpAddr, ip: IpAddr) -> bool {
    own.to_canonical() == ip || (own.is_unspecified() && UdpSocket::bind((ip, 0)).is_ok())
}

/// The address that is really meant: IPv4 inside IPv6 (mapped, or translated as in RFC 6052) is IPv4.
fn unwrap(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else { return ip.to_canonical() };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => ip,
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_loopback() || ip.is_private() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local(),
    }
}

fn is_special(ip: IpAddr) -> bool {
    /// The metadata address of a cloud provider inside fc00::/7.
    const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match ip {
        IpAddr::V4(ip) => {
            let [a, ..] = ip.octets();
            a == 0 || a >= 224 || ip.is_link_local()
        }
        IpAddr::V6(ip) => {
            let site_local = ip.segments()[0] & 0xffc0 == 0xfec0;
            let compatible = ip.segments()[..6] == [0; 6] && !ip.is_loopback();
            ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || site_local
                || compatible
                || ip == METADATA
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> AddressPolicy {
        AddressPolicy {
            allow_private: vec!["10.1.0.0/16".parse().unwrap()],
            named: [Host::parse("named.test").unwrap()].into(),
            literal: ["169.254.1.1".parse().unwrap()].into(),
            own: vec!["127.0.0.1:8080".parse().unwrap(), "0.0.0.0:8082".parse().unwrap()],
        }
    }

    #[track_caller]
    fn check(host: &str, address: &str, expected: Result<(), Denied>) {
        let host = Host::parse(host).unwrap();
        assert_eq!(policy().check(&host, address.parse().unwrap()), expected, "{host} {address}");
    }

    #[test]
    fn private_networks_need_a_name_or_a_permission() {
        for private in ["127.0.0.1:1", "10.2.0.1:1", "172.16.0.1:1", "192.168.1.1:1", "100.64.0.1:1", "[::1]:1"] {
            check("other.test", private, Err(Denied::Private));
            check("named.test", private, Ok(()));
        }
        check("other.test", "[fc00::1]:1", Err(Denied::Private));
        check("other.test", "[::ffff:127.0.0.1]:1", Err(Denied::Private));
        check("other.test", "[64:ff9b::10.2.0.1]:1", Err(Denied::Private));
        check("other.test", "10.1.2.3:1", Ok(()));
        check("other.test", "192.0.2.1:443", Ok(()));
        check("other.test", "[2001:db8::1]:443", Ok(()));
        check("other.test", "100.128.0.1:443", Ok(()));
    }

    #[test]
    fn special_addresses_need_a_route_that_names_them() {
        let special = [
            "169.254.169.254:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[::]:80",
            "[fe80::1]:80",
            "[ff02::1]:80",
            "[fd00:ec2::254]:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[::127.0.0.1]:80",
        ];
        for address in special {
            check("named.test", address, Err(Denied::Special));
        }
        check("169.254.1.1", "169.254.1.1:80", Ok(()));
    }

    #[test]
    fn our_own_listeners_are_closed() {
        check("named.test", "127.0.0.1:8080", Err(Denied::OwnListener));
        check("named.test", "127.0.0.1:8082", Err(Denied::OwnListener));
        check("named.test", "127.0.0.1:8081", Ok(()));
        check("other.test", "192.0.2.1:8082", Ok(()));
    }
}
