//! Where a connection comes from: what it tells of a caller before a request does.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::gate::Turn;
use crate::model::origin::{Host, Origin};
use crate::model::san::San;
use crate::model::{Caller, Name};

pub struct Arrival {
    pub from: From,
    pub listener: Name,
    /// Our own address of the connection; `None`: a Unix socket.
    pub local: Option<SocketAddr>,
    /// The host that the caller asked for in TLS (SNI).
    pub server_name: Option<Host>,
    /// The names in the certificate that the caller has shown; `None`: it has shown none.
    pub certificate: Option<Vec<San>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Address(SocketAddr),
    /// By a Unix socket; the number of the user, as the system says.
    User(u32),
}

/// Whom the authority of a request over HTTP/2 means, where no host route names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressee {
    /// The listener that the request came to.
    Listener,
    /// The caller may have resolved the name to the listener: it is meant if a mount takes the path.
    PerhapsListener,
    Other,
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            From::Address(address) => address.fmt(f),
            From::User(user) => write!(f, "unix:{user}"),
        }
    }
}

impl From {
    /// Whose turn a request from here waits for; `caller` is `None` where no callers are configured.
    pub fn turn(self, caller: Option<&Name>) -> Turn {
        match (caller, self) {
            (Some(name), _) => Turn::Caller(name.clone()),
            (None, From::Address(address)) => Turn::Address(address.ip().to_canonical()),
            (None, From::User(user)) => Turn::User(user),
        }
    }
}

impl Arrival {
    fn ip(&self) -> Option<IpAddr> {
        match self.from {
            From::Address(address) => Some(address.ip().to_canonical()),
            From::User(_) => None,
        }
    }

    fn user(&self) -> Option<u32> {
        match self.from {
            From::Address(_) => None,
            From::User(user) => Some(user),
        }
    }

    /// Compares the authority of a request with what the caller has connected to. Behind a translated address or port (a
    /// container's, a service's) the connection does not tell, but TLS still names the host.
    pub fn addressee(&self, authority: &Origin) -> Addressee {
        let Some(local) = self.local else { return Addressee::PerhapsListener };
        let own_port = authority.port == local.port();
        match &authority.host {
            host if self.server_name.as_ref() == Some(host) => Addressee::Listener,
            host if host.is_loopback() && own_port => Addressee::Listener,
            host if host.is_loopback() => Addressee::PerhapsListener,
            Host::Ip(ip) if own_port && ip.to_canonical() == local.ip().to_canonical() => Addressee::Listener,
            Host::Name(_) if own_port && self.server_name.is_none() => Addressee::PerhapsListener,
            Host::Ip(_) | Host::Name(_) => Addressee::Other,
        }
    }

    /// Do all conditions of `caller` hold that a connection can meet?
    pub fn fits(&self, caller: &Caller) -> bool {
        let shown = |name: &San| self.certificate.iter().flatten().any(|own| own == name);
        (caller.cidr.is_empty() || self.ip().is_some_and(|ip| caller.cidr.iter().any(|net| net.contains(&ip))))
            && (caller.listeners.is_empty() || caller.listeners.contains(&self.listener))
            && (caller.unix_users.is_empty() || self.user().is_some_and(|user| caller.unix_users.contains(&user)))
            && (caller.certificate_names.is_empty() || caller.certificate_names.iter().any(shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::origin::{Authority, Scheme};

    #[test]
    fn an_authority_is_compared_with_what_the_caller_has_connected_to() {
        #[track_caller]
        fn check(local: Option<&str>, server_name: Option<&str>, authority: &str, expected: Addressee) {
            let arrival = Arrival {
                from: From::User(1),
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
        // A published port of a container.
        check(plain, None, "127.0.0.1:9000", PerhapsListener);
        check(plain, None, "keybearer.prod.svc:8080", PerhapsListener);
        check(plain, None, "keybearer.prod.svc", Other);
        check(plain, None, "10.0.0.5:3000", Other);
        check(plain, None, "10.0.0.6:8080", Other);
        check(plain, Some("keybearer.prod.svc"), "keybearer.prod.svc:443", Listener);
        check(plain, Some("keybearer.prod.svc"), "evil.test:8080", Other);
        check(plain, Some("keybearer.prod.svc"), "evil.test", Other);
        check(None, None, "kb", PerhapsListener);
    }
}
