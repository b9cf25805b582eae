//! A name in a certificate's subjectAltName (RFC 5280 §4.2.1.6). Names of different types are never equal.

use std::net::IpAddr;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum San {
    /// In lower case.
    Dns(String),
    Ip(IpAddr),
    Uri(String),
    Mail(String),
}

impl San {
    /// Infers the type of a name in the configuration: an IP address; with a colon, a URI; with an `@`, a mail address;
    /// otherwise a DNS name.
    pub fn parse(text: &str) -> San {
        match text.parse() {
            Ok(address) => San::Ip(address),
            Err(_) if text.contains(':') => San::Uri(text.to_owned()),
            Err(_) if text.contains('@') => San::Mail(text.to_owned()),
            Err(_) => San::dns(text),
        }
    }

    pub fn dns(name: &str) -> San {
        San::Dns(name.to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_a_name_is_inferred() {
        assert_eq!(San::parse("Billing.svc"), San::dns("billing.SVC"));
        assert_eq!(San::parse("10.0.0.1"), San::Ip([10, 0, 0, 1].into()));
        assert_eq!(San::parse("2001:DB8::1"), San::parse("2001:db8:0::1"));
        assert_eq!(San::parse("spiffe://a.test/b@c"), San::Uri("spiffe://a.test/b@c".to_owned()));
        assert_eq!(San::parse("a@b.test"), San::Mail("a@b.test".to_owned()));
        assert_ne!(San::dns("10.0.0.1"), San::parse("10.0.0.1"));
    }
}
