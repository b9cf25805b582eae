//! Where a connection comes from: what it tells of a caller before a request does.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::model::san::San;
use crate::model::{Caller, Name};

pub struct Arrival {
    pub from: From,
    pub listener: Name,
    /// The names in the certificate that the caller has shown; `None`: it has shown none.
    pub certificate: Option<Vec<San>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Address(SocketAddr),
    /// By a Unix socket; the number of the user, as the system says.
    User(u32),
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            From::Address(address) => address.fmt(f),
            From::User(user) => write!(f, "unix:{user}"),
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

    /// Do all conditions of `caller` hold that a connection can meet?
    pub fn fits(&self, caller: &Caller) -> bool {
        let shown = |name: &San| self.certificate.iter().flatten().any(|own| own == name);
        (caller.cidr.is_empty() || self.ip().is_some_and(|ip| caller.cidr.iter().any(|net| net.contains(&ip))))
            && (caller.listeners.is_empty() || caller.listeners.contains(&self.listener))
            && (caller.unix_users.is_empty() || self.user().is_some_and(|user| caller.unix_users.contains(&user)))
            && (caller.certificate_names.is_empty() || caller.certificate_names.iter().any(shown))
    }
}
