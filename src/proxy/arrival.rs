//! What a downstream connection reveals about its caller before the first request: address, listener, SNI, certificate.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::gate::Turn;
use crate::model::origin::{Host, Origin};
use crate::model::san::San;
use crate::model::{Caller, Name};

/// How a connection reached us.
pub struct Arrival {
    pub from: PeerAddress,
    pub listener: Name,
    /// The connection's local address; `None` for a Unix socket.
    pub local: Option<SocketAddr>,
    /// SNI.
    pub server_name: Option<Host>,
    /// The names in the caller's certificate; `None` if it presented no certificate.
    pub certificate: Option<Vec<San>>,
}

/// The remote end of a downstream socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddress {
    Tcp(SocketAddr),
    /// Unix socket: the peer's user ID, as the kernel reports it.
    Unix(u32),
}

/// What the authority of an HTTP/2 request refers to when no host route names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressee {
    /// The listener that received the request.
    Listener,
    /// Possibly the listener, under a name that the caller resolved to it: it is if a mount matches the path.
    MaybeListener,
    Other,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAddress::Tcp(address) => address.fmt(f),
            PeerAddress::Unix(user) => write!(f, "unix:{user}"),
        }
    }
}

impl PeerAddress {
    /// The queue that a request from here joins; `caller` is `None` where no callers are configured.
    pub fn turn(self, caller: Option<&Name>) -> Turn {
        match (caller, self) {
            (Some(name), _) => Turn::Caller(name.clone()),
            (None, PeerAddress::Tcp(address)) => Turn::Address(address.ip().to_canonical()),
            (None, PeerAddress::Unix(user)) => Turn::User(user),
        }
    }
}

impl Arrival {
    fn ip(&self) -> Option<IpAddr> {
        match self.from {
            PeerAddress::Tcp(address) => Some(address.ip().to_canonical()),
            PeerAddress::Unix(_) => None,
        }
    }

    fn user(&self) -> Option<u32> {
        match self.from {
            PeerAddress::Tcp(_) => None,
            PeerAddress::Unix(user) => Some(user),
        }
    }

    /// Compares a request's authority with the address that the caller connected to. Behind NAT (a container's
    /// published port, a service address) the local address does not settle it, but SNI still names the host.
    pub fn addressee(&self, authority: &Origin) -> Addressee {
        let Some(local) = self.local else { return Addressee::MaybeListener };
        let own_port = authority.port == local.port();
        match &authority.host {
            host if self.server_name.as_ref() == Some(host) => Addressee::Listener,
            host if host.is_loopback() && own_port => Addressee::Listener,
            host if host.is_loopback() => Addressee::MaybeListener,
            Host::Ip(ip) if own_port && ip.to_canonical() == local.ip().to_canonical() => Addressee::Listener,
            Host::Name(_) if own_port && self.server_name.is_none() => Addressee::MaybeListener,
            Host::Ip(_) | Host::Name(_) => Addressee::Other,
        }
    }

    /// True if the connection meets all of the caller's conditions other than its secret.
    pub fn matches(&self, caller: &Caller) -> bool {
        let presented = |name: &San| self.certificate.iter().flatten().any(|presented_name| presented_name == name);
        (caller.cidr.is_empty() || self.ip().is_some_and(|ip| caller.cidr.iter().any(|net| net.contains(&ip))))
            && (caller.listeners.is_empty() || caller.listeners.contains(&self.listener))
            && (caller.unix_users.is_empty() || self.user().is_some_and(|user| caller.unix_users.contains(&user)))
            && (caller.certificate_names.is_empty() || caller.certificate_names.iter().any(presented))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::origin::{Authority, Scheme};

    #[test]
    fn an_authority_is_compared_with_the_address_that_the_caller_connected_to() {
        #[track_caller]
        fn check(local: Option<&str>, server_name: Option<&str>, authority: &str, expected: Addressee) {
            let arrival = Arrival {
                from: PeerAddress::Unix(1),
                listener: Name::parse("proxy").unwrap(),
                local: local.map(|text| text.parse().unwrap()),
                server_name: server_name.map(|text| Host::parse(text).unwrap()),
                certificate: None,
            };
            let authority = Origin::new(Scheme::Http, Authority::parse(authority).unwrap());
            assert_eq!(arrival.addressee(&authority), expected, "{authority} {server_name:?}");
        }
        use Addressee::*;
        let (plain, mapped) = (Some("10.0.0.5:8080"), Some("[::ffff:10.0.0.5]:8080"));
        check(plain, None, "10.0.0.5:8080", Listener);
        check(mapped, None, "10.0.0.5:8080", Listener);
        check(plain, None, "localhost:8080", Listener);
        check(plain, None, "[::1]:8080", Listener);
        // A container's published port.
        check(plain, None, "127.0.0.1:9000", MaybeListener);
        check(plain, None, "keybearer.prod.svc:8080", MaybeListener);
        check(plain, None, "keybearer.prod.svc", Other);
        check(plain, None, "10.0.0.5:3000", Other);
        check(plain, None, "10.0.0.6:8080", Other);
        check(plain, Some("keybearer.prod.svc"), "keybearer.prod.svc:443", Listener);
        check(plain, Some("keybearer.prod.svc"), "evil.test:8080", Other);
        check(plain, Some("keybearer.prod.svc"), "evil.test", Other);
        check(None, None, "kb", MaybeListener);
    }
}
