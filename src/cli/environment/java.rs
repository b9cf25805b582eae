//! JVM options for the proxy and its trust store.
//!
//! A JVM reads no PEM. The oldest trust store format, JKS, is readable by every version and without a password, and
//! simple enough to write here. The digest at its end verifies the password.
//! Not here: a caller's secret, which a JVM does not accept as a property.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls::pki_types::CertificateDer;
use url::Url;

use crate::model::origin::Host;
use crate::tls;

const MAGIC: u32 = 0xFEED_FEED;
const VERSION: u32 = 2;
const TRUSTED_CERTIFICATE: u32 = 2;
/// The conventional password; the store contains no secret.
const PASSWORD: &str = "changeit";

/// Options for the proxy and the hosts that bypass it.
pub fn proxy_options(proxy: &Url, no_proxy: &str) -> String {
    let (host, port) = (proxy.host_str().unwrap_or_default(), proxy.port_or_known_default().unwrap_or_default());
    let direct: Vec<_> = no_proxy.split(',').filter(|name| !name.is_empty()).map(pattern).collect();
    let mut options =
        ["http", "https"].map(|scheme| format!("-D{scheme}.proxyHost={host} -D{scheme}.proxyPort={port}"));
    options[0] += &format!(" {}", quoted(&format!("-Dhttp.nonProxyHosts={}", direct.join("|"))));
    options.join(" ")
}

/// Options for the trust store at `path`.
pub fn trust_store_options(path: &str) -> String {
    let store = quoted(&format!("-Djavax.net.ssl.trustStore={path}"));
    format!(" {store} -Djavax.net.ssl.trustStoreType=JKS -Djavax.net.ssl.trustStorePassword={PASSWORD}")
}

/// Converts a name in NO_PROXY to a Java pattern.
fn pattern(name: &str) -> String {
    match name {
        "::1" => "[::1]".to_owned(),
        "*" => "*".to_owned(),
        name if name.starts_with('.') => format!("*{name}"),
        // A name matches itself and its subdomains.
        name if Host::parse(name).is_ok_and(|host| matches!(host, Host::Name(_))) => format!("{name}|*.{name}"),
        name => name.to_owned(),
    }
}

/// Quotes an option, because the launcher splits at unquoted white space.
fn quoted(option: &str) -> String {
    match option.contains([' ', '\t', '|']) {
        true => format!("\"{option}\""),
        false => option.to_owned(),
    }
}

/// Encodes trusted certificates as a JKS store.
pub fn trust_store<'c>(certificates: impl Iterator<Item = &'c CertificateDer<'static>>) -> Vec<u8> {
    let certificates: Vec<_> = certificates.collect();
    let mut store = Vec::new();
    number(&mut store, MAGIC);
    number(&mut store, VERSION);
    number(&mut store, certificates.len() as u32);
    for (index, certificate) in certificates.into_iter().enumerate() {
        number(&mut store, TRUSTED_CERTIFICATE);
        text(&mut store, &format!("ca-{index}"));
        // Creation time in milliseconds. Derived from the certificate, so that the same certificates give the same
        // file.
        let created = tls::expiry(certificate).unwrap_or_default().as_millis();
        store.extend_from_slice(&created.to_be_bytes());
        text(&mut store, "X.509");
        number(&mut store, certificate.len() as u32);
        store.extend_from_slice(certificate);
    }
    let mut digested: Vec<u8> = PASSWORD.encode_utf16().flat_map(u16::to_be_bytes).collect();
    digested.extend_from_slice(b"Mighty Aphrodite");
    digested.extend_from_slice(&store);
    store.extend_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, &digested).as_ref());
    store
}

fn number(store: &mut Vec<u8>, value: u32) {
    store.extend_from_slice(&value.to_be_bytes());
}

/// Writes ASCII text, which Java's modified UTF-8 encodes identically.
fn text(store: &mut Vec<u8>, value: &str) {
    store.extend_from_slice(&(value.len() as u16).to_be_bytes());
    store.extend_from_slice(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_the_proxy_and_direct_hosts() {
        let proxy = "http://billing:secret@127.0.0.1:8080/".parse().unwrap();
        let expected = "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=8080 \
                        \"-Dhttp.nonProxyHosts=*.corp|localhost|*.localhost|10.0.0.1|[::1]\" -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=8080";
        assert_eq!(proxy_options(&proxy, ".corp,localhost,10.0.0.1,::1"), expected);
        assert!(trust_store_options("/a b/c.jks").starts_with(" \"-Djavax.net.ssl.trustStore=/a b/c.jks\" "));
    }
}
