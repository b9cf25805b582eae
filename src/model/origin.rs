//! Scheme, host and port of a destination, parsed once.
//!
//! Route matching, the pool key, dialling, SNI, certificate verification and Host all use an [`Origin`]; nothing else
//! names a destination.
//!
//! Invariant: a host is canonical (lower case, no trailing dot, addresses in one spelling), so hosts compare by
//! equality.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// How an origin is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Cleartext.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// 80 or 443 (RFC 9110 §4.2).
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }

    /// As in a URL, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// A DNS name or an IP address in canonical form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    Name(Arc<str>),
    Ip(IpAddr),
}

impl Host {
    /// Parses the host of an authority: a name, an IPv4 address, or an IPv6 address in brackets.
    ///
    /// Rejects hosts that two parsers could read differently: percent signs, non-ASCII, numbers that only some
    /// resolvers read as an address (`127.3`, `0x7f000001`, `2130706433`), zone identifiers.
    pub fn parse(text: &str) -> Result<Host, HostError> {
        if let Some(inside) = text.strip_prefix('[') {
            let address = inside.strip_suffix(']').ok_or(HostError::Address)?;
            return match address.parse::<Ipv6Addr>() {
                Ok(address) => Ok(Host::Ip(address.into())),
                Err(_) => Err(HostError::Address),
            };
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.len() > 253 {
            return Err(HostError::Long);
        }
        let mut last = "";
        for label in name.split('.') {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            if label.is_empty() || label.len() > 63 || !label.bytes().all(plain) {
                return Err(HostError::Label);
            }
            last = label;
        }
        if is_number(last) {
            return match name.parse::<Ipv4Addr>() {
                Ok(address) => Ok(Host::Ip(address.into())),
                Err(_) => Err(HostError::Address),
            };
        }
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            return Ok(Host::Name(name.to_ascii_lowercase().into()));
        }
        Ok(Host::Name(name.into()))
    }

    /// True for `localhost` and loopback addresses: traffic never leaves the machine.
    pub fn is_loopback(&self) -> bool {
        match self {
            Host::Name(name) => &**name == "localhost",
            Host::Ip(address) => address.to_canonical().is_loopback(),
        }
    }
}

/// True for a last label that some parsers read as a number, which makes the whole host an address (WHATWG URL, "ends
/// in a number").
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    label.bytes().all(|b| b.is_ascii_digit()) || hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(IpAddr::V4(address)) => write!(f, "{address}"),
            Host::Ip(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the host is empty")]
    Empty,
    #[error("the host is longer than 253 characters")]
    Long,
    #[error("the host is not a DNS name (letters, digits, `-`, `_` and dots)")]
    Label,
    #[error("the host is not an address in its usual form (four decimal numbers, or IPv6 in brackets)")]
    Address,
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

/// A host with an optional port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    /// In canonical form.
    pub host: Host,
    /// `None`: the default port of the scheme.
    pub port: Option<u16>,
}

impl Authority {
    /// Parses `host` or `host:port` (RFC 3986 §3.2, without userinfo).
    pub fn parse(text: &str) -> Result<Authority, HostError> {
        let colon = match text.strip_prefix('[') {
            Some(inside) => inside.find(']').map(|at| at + 2).filter(|at| text[*at..].starts_with(':')),
            None => text.find(':'),
        };
        let Some(colon) = colon else {
            return Ok(Authority { host: Host::parse(text)?, port: None });
        };
        Ok(Authority { host: Host::parse(&text[..colon])?, port: Some(parse_port(&text[colon + 1..])?) })
    }
}

/// Parses a port: digits only, 1 to 65535.
pub fn parse_port(text: &str) -> Result<u16, HostError> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(HostError::Port),
    }
}

/// Scheme, host and port (RFC 6454): where a request goes and where a token may go.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Decides the default port, and whether the connection uses TLS.
    pub scheme: Scheme,
    /// In canonical form; also the SNI and the name in the certificate, unless a route overrides them.
    pub host: Host,
    /// Never 0; the default port of the scheme is filled in.
    pub port: u16,
}

impl Origin {
    /// Fills in the default port of `scheme`.
    pub fn new(scheme: Scheme, authority: Authority) -> Origin {
        let port = authority.port.unwrap_or(scheme.default_port());
        Origin { scheme, host: authority.host, port }
    }

    /// The value of `Host` and `:authority`, without the scheme's default port.
    pub fn authority(&self) -> String {
        let mut text = match &self.host {
            Host::Name(name) => String::from(&**name),
            host => host.to_string(),
        };
        if self.port != self.scheme.default_port() {
            let _ = write!(text, ":{}", self.port);
        }
        text
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, expected: Result<&str, HostError>) {
        assert_eq!(Host::parse(input).map(|h| h.to_string()), expected.map(str::to_owned), "{input}");
    }

    #[test]
    fn a_host_is_canonicalized() {
        check("API.Acme.Test.", Ok("api.acme.test"));
        check("127.0.0.1", Ok("127.0.0.1"));
        check("[::1]", Ok("[::1]"));
        check("[0:0:0:0:0:0:0:1]", Ok("[::1]"));
        check("a_b.test", Ok("a_b.test"));
        check("1and1.com", Ok("1and1.com"));
    }

    #[test]
    fn an_ambiguous_host_is_rejected() {
        for number in ["2130706435", "127.3", "0x7f000003", "0177.0.0.1", "127.0.0.1.0x1", "1.2.3.4.5", "a.1"] {
            check(number, Err(HostError::Address));
        }
        for label in ["a..b", ".a", "a b", "a%2e", "ä.test", "a,b", "a/b", "u@a", "a\\b", "::1", "a[b]"] {
            check(label, Err(HostError::Label));
        }
        check("", Err(HostError::Empty));
        check(".", Err(HostError::Empty));
        check("[::1", Err(HostError::Address));
        check("[a.test]", Err(HostError::Address));
        check("[fe80::1%25eth0]", Err(HostError::Address));
    }

    #[test]
    fn ports_are_digits_from_1_to_65535() {
        let port = |text: &str| Authority::parse(text).map(|a| a.port);
        assert_eq!(port("a.test:9443"), Ok(Some(9443)));
        assert_eq!(port("[::1]:80"), Ok(Some(80)));
        assert_eq!(port("[::1]"), Ok(None));
        for bad in ["a:", "a:0", "a:65536", "a:+80", "a:080000", "a:http", "[::1]:", "a:80:80", "[::1]:80:80"] {
            assert!(port(bad).is_err(), "{bad}");
        }
        assert!(port("[::1]x").is_err());
    }

    #[test]
    fn an_origin_omits_the_default_port() {
        let origin = |scheme, text| Origin::new(scheme, Authority::parse(text).unwrap());
        assert_eq!(origin(Scheme::Https, "a.test:443").to_string(), "https://a.test");
        assert_eq!(origin(Scheme::Http, "a.test:443").authority(), "a.test:443");
        assert_eq!(origin(Scheme::Https, "a.test:443"), origin(Scheme::Https, "A.test."));
    }
}
