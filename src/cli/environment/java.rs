//! What a JVM is told: where the proxy is, and whom to trust.
//!
//! A JVM reads no PEM. Its oldest form of trust store, JKS, is read by every version, needs no password to be read, and is
//! short enough to be written here; the digest at its end is what a password would be compared with.
//! Not here: a caller's secret, for a JVM takes none from its properties.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls::pki_types::CertificateDer;
use url::Url;

use crate::model::origin::Host;
use crate::tls;

const MAGIC: u32 = 0xFEED_FEED;
const VERSION: u32 = 2;
const TRUSTED_CERTIFICATE: u32 = 2;
/// What everybody uses, as the store holds no secret.
const PASSWORD: &str = "changeit";

/// The proxy's place, and the hosts that are called directly.
pub fn options(proxy: &Url, no_proxy: &str) -> String {
    let (host, port) = (proxy.host_str().unwrap_or_default(), proxy.port_or_known_default().unwrap_or_default());
    let direct: Vec<_> = no_proxy.split(',').filter(|name| !name.is_empty()).map(pattern).collect();
    let mut options =
        ["http", "https"].map(|scheme| format!("-D{scheme}.proxyHost={host} -D{scheme}.proxyPort={port}"));
    options[0] += &format!(" {}", quoted(&format!("-Dhttp.nonProxyHosts={}", direct.join("|"))));
    options.join(" ")
}

/// The trust store at `path`.
pub fn trusting(path: &str) -> String {
    let store = quoted(&format!("-Djavax.net.ssl.trustStore={path}"));
    format!(" {store} -Djavax.net.ssl.trustStoreType=JKS -Djavax.net.ssl.trustStorePassword={PASSWORD}")
}

/// A name of NO_PROXY as Java has it.
fn pattern(name: &str) -> String {
    match name {
        "::1" => "[::1]".to_owned(),
        "*" => "*".to_owned(),
        name if name.starts_with('.') => format!("*{name}"),
        // A name stands for itself and for all below it.
        name if Host::parse(name).is_ok_and(|host| matches!(host, Host::Name(_))) => format!("{name}|*.{name}"),
        name => name.to_owned(),
    }
}

/// The launcher divides at white space that is not quoted.
fn quoted(option: &str) -> String {
    match option.contains([' ', '\t', '|']) {
        true => format!("\"{option}\""),
        false => option.to_owned(),
    }
}

/// A store of trusted certificates in the form JKS.
pub fn trust_store<'c>(certificates: impl Iterator<Item = &'c CertificateDer<'static>>) -> Vec<u8> {
    let certificates: Vec<_> = certificates.collect();
    let mut store = Vec::new();
    number(&mut store, MAGIC);
    number(&mut store, VERSION);
    number(&mut store, certificates.len() as u32);
    for (index, certificate) in certificates.into_iter().enumerate() {
        number(&mut store, TRUSTED_CERTIFICATE);
        text(&mut store, &format!("ca-{index}"));
        // When it came, in milliseconds: the same for the same certificates, so that the file is too.
        let made = tls::expiry(certificate).unwrap_or_default().as_millis();
        store.extend_from_slice(&made.to_be_bytes());
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

/// ASCII alone, of which Java's own encoding is the same.
fn text(store: &mut Vec<u8>, value: &str) {
    store.extend_from_slice(&(value.len() as u16).to_be_bytes());
    store.extend_from_slice(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jvm_is_told_of_the_proxy_and_of_direct_hosts() {
        let proxy = "http://billing:secret@127.0.0.1:8080/".parse().unwrap();
        let expected = "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=8080 \
                        \"-Dhttp.nonProxyHosts=*.corp|localhost|*.localhost|10.0.0.1|[::1]\" -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=8080";
        assert_eq!(options(&proxy, ".corp,localhost,10.0.0.1,::1"), expected);
        assert!(trusting("/a b/c.jks").starts_with(" \"-Djavax.net.ssl.trustStore=/a b/c.jks\" "));
    }
}
