//! Checks of one server: its name and addresses, the network connection with TLS, and its clock.
//!
//! Invariants: an address that the policy denies is never dialled; the probe is a HEAD request of `/` and carries nothing
//! of the connection.

use std::time::Duration;

use http::{HeaderMap, Method, header};
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error};
use tokio::time::timeout;
use url::Url;

use super::{Check, described};
use crate::clock::Clock;
use crate::dial::DialError;
use crate::gate::Turn;
use crate::model::connection::{ForwardProxy, ServerProxy};
use crate::model::origin::{Authority, Host, Origin, Scheme};
use crate::model::time::{WallTime, rfc3339};
use crate::oauth::TokenEndpoint;
use crate::oauth::redact::printable;
use crate::oauth::transport::TransportError;
use crate::tls;

pub const CLOCK: &str = "clock";
const DNS: &str = "dns";
const CONNECT: &str = "connect";

/// Timeout of each step; several of them fit the preflight's deadline.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Clock skew that time-limited assertions and tokens still survive.
const SKEW_WARNED: Duration = Duration::from_secs(30);
/// Clock skew with which signed assertions are refused.
const SKEW_FAILED: Duration = Duration::from_secs(5 * 60);
/// Remedy for an address that the policy denies.
const PERMIT: &str = "use a public address, or permit this one in the configuration file: `egress.allow_private`, or a \
                      route or `hosts` entry with the name";
const ADDRESSES_SHOWN: usize = 8;
const NAMES_CHARS_MAX: usize = 300;

/// The host and port of a URL, for messages.
pub fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The checks of the server that `url` names, until the first that fails.
pub async fn checks(endpoint: &TokenEndpoint, url: &Url) -> Vec<Check> {
    let Some((host, port)) = host_and_port(url) else {
        return vec![Check::failed(DNS, "a URL of the connection has no valid host", "correct the URL")];
    };
    let name = authority(url);
    if let Err(failure) = endpoint.check_literals(url) {
        return vec![Check::failed(DNS, described(&failure), PERMIT)];
    }
    let proxy = egress_proxy(endpoint, &host, port);
    let dns = match proxy {
        Some(proxy) => Check::skipped(
            DNS,
            format!("the egress proxy {} resolves {name}", proxy.url.origin().ascii_serialization()),
        ),
        None => match addresses(endpoint, &host, port).await {
            Ok(check) => check,
            Err(failed) => return vec![failed],
        },
    };
    match connect(endpoint, url, &name).await {
        Err(failed) => vec![dns, failed],
        Ok((connect, headers)) => vec![dns, connect, clock(&headers, &name, Clock::system().now().wall)],
    }
}

fn host_and_port(url: &Url) -> Option<(Host, u16)> {
    Some((Host::parse(url.host_str()?).ok()?, url.port_or_known_default()?))
}

/// The egress proxy that token requests to this host go through.
fn egress_proxy<'a>(endpoint: &'a TokenEndpoint, host: &Host, port: u16) -> Option<&'a ForwardProxy> {
    match &endpoint.connection.authorization_server.proxy {
        ServerProxy::Inherit => endpoint.dialer.proxy_for(host, port),
        ServerProxy::Direct => None,
        ServerProxy::Own(proxy) => Some(proxy),
    }
}

async fn addresses(endpoint: &TokenEndpoint, host: &Host, port: u16) -> Result<Check, Check> {
    let found = match timeout(STEP_TIMEOUT, endpoint.dialer.addresses(host, port)).await {
        Ok(found) => found,
        Err(_) => {
            let detail = format!("the name {host} was not resolved within {} s", STEP_TIMEOUT.as_secs());
            return Err(Check::failed(DNS, detail, "check the DNS servers of this machine"));
        }
    };
    match found {
        Ok(_) if matches!(host, Host::Ip(_)) => Ok(Check::ok(DNS, format!("{host} is an address, which is permitted"))),
        Ok(addresses) => {
            let shown: Vec<_> =
                addresses.iter().take(ADDRESSES_SHOWN).map(|address| address.ip().to_string()).collect();
            Ok(Check::ok(DNS, format!("{host}: {}", shown.join(", "))))
        }
        Err(error @ DialError::Denied { .. }) => Err(Check::failed(DNS, error.to_string(), PERMIT)),
        Err(error) => {
            let remedy = "correct the host in the connection's URLs, or the DNS of this machine";
            Err(Check::failed(DNS, error.to_string(), remedy))
        }
    }
}

/// Connects, with TLS unless the URL is http, and reads the head of one response.
async fn connect(endpoint: &TokenEndpoint, url: &Url, name: &str) -> Result<(Check, HeaderMap), Check> {
    let mut root = url.clone();
    root.set_path("/");
    root.set_query(None);
    root.set_fragment(None);
    // Both fail only for a URL that cannot have them.
    let _ = root.set_username("");
    let _ = root.set_password(None);
    let request = reqwest::Request::new(Method::HEAD, root);
    match timeout(STEP_TIMEOUT, endpoint.http.to(url).execute(request)).await {
        Err(_) => {
            let detail =
                format!("{name} accepted no connection or sent no response within {} s", STEP_TIMEOUT.as_secs());
            Err(Check::failed(CONNECT, detail, "check the port, and the firewalls between this machine and the server"))
        }
        Ok(Ok(response)) => {
            let how = if url.scheme() == "https" { "over TLS, with a valid certificate" } else { "without TLS" };
            Ok((Check::ok(CONNECT, format!("{name} responds {how}")), response.headers().clone()))
        }
        Ok(Err(error)) => {
            if let Some(cause) = tls::cause(&error) {
                let issuer = match is_unknown_issuer(cause) {
                    true => presented_issuer(endpoint, url).await,
                    false => None,
                };
                let (detail, remedy) = tls_failure(cause, issuer.as_deref());
                return Err(Check::failed(CONNECT, format!("{name}: {detail}"), remedy));
            }
            let TransportError { reason, detail } = error.into();
            let remedy = "check the host and the port in the connection's URLs, and whether the server runs";
            Err(Check::failed(CONNECT, format!("{name} is {reason}: {detail}"), remedy))
        }
    }
}

fn is_unknown_issuer(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::UnknownIssuer))
}

/// The issuer that the server's certificate names, from a second handshake, which is aborted. `None` also through a
/// connection's own egress proxy.
async fn presented_issuer(endpoint: &TokenEndpoint, url: &Url) -> Option<String> {
    if matches!(endpoint.connection.authorization_server.proxy, ServerProxy::Own(_)) {
        return None;
    }
    let (host, port) = host_and_port(url)?;
    let origin = Origin::new(Scheme::Https, Authority { host, port: Some(port) });
    let issuer = async {
        let conn = endpoint.dialer.connect(&origin, &Turn::Own).await.ok()?;
        tls::presented_issuer(conn, url.host_str()?).await
    };
    let issuer = timeout(STEP_TIMEOUT, issuer).await.ok().flatten()?;
    Some(issuer.chars().map(printable).take(NAMES_CHARS_MAX).collect())
}

/// What is wrong with a TLS connection, and what to do.
fn tls_failure(error: &Error, issuer: Option<&str>) -> (String, &'static str) {
    let date = |time: &UnixTime| rfc3339(WallTime::from_secs(time.as_secs()));
    let renew = "have the server's certificate renewed; if it is valid, set the clock of this machine";
    match error {
        Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            (format!("the certificate expired at {}", date(not_after)), renew)
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            (format!("the certificate is not valid before {}", date(not_before)), renew)
        }
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
            // rustls writes `DnsName("as.test")`.
            let names = presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name)).collect::<Vec<_>>();
            let names: String = names.join(", ").chars().map(printable).take(NAMES_CHARS_MAX).collect();
            let detail = format!("the certificate is for another name; it covers {names}");
            (
                detail,
                "use a name that the certificate covers in the connection's URLs, or have the certificate replaced",
            )
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            let issuer = issuer.map(|issuer| format!(", {issuer},")).unwrap_or_default();
            let detail = format!("the issuer of the certificate{issuer} is not trusted");
            (detail, "if this is the right server, add the CA of its certificate to `authorization_server.trust`")
        }
        error => {
            let detail = error.to_string().chars().map(printable).take(NAMES_CHARS_MAX).collect();
            (
                detail,
                "check that the port speaks TLS, and whether the server requires a client certificate (`mutual_tls`)",
            )
        }
    }
}

/// Compares the `Date` of a response with our clock; `now` is when the response arrived.
fn clock(headers: &HeaderMap, name: &str, now: WallTime) -> Check {
    let date = headers.get(header::DATE).and_then(|value| value.to_str().ok());
    let Some(server) = date.and_then(|date| httpdate::parse_http_date(date).ok()).map(WallTime::from_system) else {
        return Check::skipped(CLOCK, format!("{name} sends no `Date`"));
    };
    let (ahead, behind) = (server.since(now), now.since(server));
    let (skew, word) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    let detail = format!("the clock of {name} is {} s {word} this machine's", skew.as_secs());
    let remedy = "synchronize the clock of this machine (NTP); if it is right, the server's is wrong";
    match skew {
        _ if skew > SKEW_FAILED => Check::failed(CLOCK, detail, remedy),
        _ if skew > SKEW_WARNED => Check::warning(CLOCK, detail, remedy),
        _ => Check::ok(CLOCK, format!("the clocks of {name} and this machine agree")),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::super::CheckOutcome;
    use super::*;

    #[test]
    fn clock_skew_is_judged_by_the_date_of_the_response() {
        let check = |date: &'static str, outcome: CheckOutcome, text: &str| {
            let headers = [(header::DATE, HeaderValue::from_static(date))].into_iter().collect();
            // 1994-11-06T08:49:37Z
            let check = clock(&headers, "as.test:443", WallTime::from_secs(784_111_777));
            assert_eq!(check.outcome, outcome, "{check:?}");
            assert!(check.detail.contains(text), "{check:?}");
        };
        check("Sun, 06 Nov 1994 08:49:37 GMT", CheckOutcome::Ok, "agree");
        check("Sun, 06 Nov 1994 08:50:07 GMT", CheckOutcome::Ok, "agree");
        check("Sun, 06 Nov 1994 08:50:08 GMT", CheckOutcome::Warning, "31 s ahead of");
        check("Sun, 06 Nov 1994 08:44:37 GMT", CheckOutcome::Warning, "300 s behind");
        check("Sun, 06 Nov 1994 08:44:36 GMT", CheckOutcome::Failed, "301 s behind");
        check("yesterday", CheckOutcome::Skipped, "no `Date`");
    }
}
