//! What an issuer says of itself: authorization server metadata (RFC 8414) or OpenID's.
//!
//! Holds: it fills what the configuration leaves open and overrides nothing; the issuer that answers is the one that was
//! asked, to the letter (RFC 8414 §3.3); an endpoint is https unless the configuration permits otherwise, and its address
//! passes the same rules as every other, which is judged when it is used; one well-known location never stops the next;
//! what was found is good for a day.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Method, header};
use tokio::sync::OnceCell;
use url::{Host as UrlHost, Url};

use super::failure::{Failure, Reason, Refusal};
use super::json::{Json, Members};
use super::transport::{self, TokenResponse};
use crate::dial::Dialer;
use crate::model::origin::Host;
use crate::model::time::BootTime;

pub const TOKEN: &str = "token_endpoint";
pub const REVOCATION: &str = "revocation_endpoint";
pub const AUTHORIZATION: &str = "authorization_endpoint";
pub const DEVICE_AUTHORIZATION: &str = "device_authorization_endpoint";
/// RFC 9126 §5
pub const PUSHED_AUTHORIZATION_REQUEST: &str = "pushed_authorization_request_endpoint";
const ENDPOINTS: [&str; 5] = [TOKEN, REVOCATION, AUTHORIZATION, DEVICE_AUTHORIZATION, PUSHED_AUTHORIZATION_REQUEST];
const GOOD_FOR: Duration = Duration::from_secs(24 * 3600);

/// What an issuer has told of itself.
#[derive(Debug, Default)]
pub struct Metadata {
    /// By name; `Err`: why it is not to be used.
    endpoints: HashMap<&'static str, Result<Url, &'static str>>,
    pub requires_pushed_requests: bool,
    /// Its answers name it (RFC 9207 §3).
    pub names_itself: bool,
}

impl Metadata {
    /// An endpoint that the issuer has told of. With a client certificate, that for it (RFC 8705 §5) goes first.
    ///
    /// # Errors
    /// It must not be used; others may.
    pub fn endpoint(&self, name: &str) -> Result<Option<Url>, Failure> {
        match self.endpoints.get(name) {
            None => Ok(None),
            Some(Ok(url)) => Ok(Some(url.clone())),
            Some(Err(why)) => Err(incomplete(&format!("names a {name} that {why}"))),
        }
    }
}

/// One issuer, asked once for everybody.
pub struct Discovery {
    pub issuer: String,
    pub http: reqwest::Client,
    pub dialer: Dialer,
    pub allow_cleartext: bool,
    /// We show a certificate.
    pub mutual_tls: bool,
    found: ArcSwap<Found>,
}

#[derive(Default)]
struct Found {
    metadata: OnceCell<(Arc<Metadata>, BootTime)>,
}

/// Why there is no metadata at one location.
enum Missed {
    /// There is something else, or nothing now.
    NotNow(String),
    /// There is metadata that is not to be used.
    Wrong(Failure),
}

impl Discovery {
    pub fn new(
        issuer: String,
        http: reqwest::Client,
        dialer: Dialer,
        allow_cleartext: bool,
        mutual_tls: bool,
    ) -> Discovery {
        // An issuer may name endpoints at other ports of its own address.
        let own = Url::parse(&issuer).ok().and_then(|issuer| Host::parse(issuer.host_str()?).ok());
        let dialer = own.into_iter().fold(dialer, |dialer, host| dialer.permitting_private(host));
        Discovery { issuer, http, dialer, allow_cleartext, mutual_tls, found: ArcSwap::default() }
    }

    /// Concurrent callers share one request. `boot`: now.
    pub async fn metadata(&self, boot: BootTime) -> Result<Arc<Metadata>, Failure> {
        let found = self.found.load_full();
        if found.metadata.get().is_some_and(|(_, at)| boot.since(*at) > GOOD_FOR) {
            self.forget();
            return Box::pin(self.metadata(boot)).await;
        }
        let found = found.metadata.get_or_try_init(async || Ok((Arc::new(self.ask().await?), boot))).await?;
        Ok(found.0.clone())
    }

    /// The next wish asks again.
    pub fn forget(&self) {
        self.found.store(Arc::default());
    }

    async fn ask(&self) -> Result<Metadata, Failure> {
        let (mut seen, mut wrong) = (Vec::new(), None);
        for place in places(&self.issuer) {
            let mut request = reqwest::Request::new(Method::GET, place);
            request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
            let missed = match transport::send(&self.http, request).await {
                Ok(answer) => match self.read(&answer).await {
                    Ok(metadata) => return Ok(metadata),
                    Err(missed) => missed,
                },
                // The other locations are at the same server.
                Err(fault) if matches!(fault.reason, Reason::Unreachable | Reason::Tls) => {
                    let detail = Some(fault.detail).filter(|detail| !detail.is_empty());
                    return Err(Failure::Retryable { reason: fault.reason, retry_after: None, detail });
                }
                Err(fault) => Missed::NotNow(fault.reason.to_string()),
            };
            match missed {
                Missed::NotNow(what) => seen.push(what),
                Missed::Wrong(failure) => wrong = Some(failure),
            }
        }
        Err(wrong.unwrap_or_else(|| not_now(&format!("answers {} at its well-known locations", seen.join(", ")))))
    }

    async fn read(&self, answer: &TokenResponse) -> Result<Metadata, Missed> {
        let status = answer.status.as_u16();
        if answer.status.is_redirection() {
            return Err(Missed::NotNow(format!("http_{status} (redirects are not followed: write the final address)")));
        }
        if status != 200 {
            return Err(Missed::NotNow(format!("http_{status}")));
        }
        let members = Json::object(&answer.body).map_err(|reason| Missed::NotNow(reason.to_string()))?;
        if text(&members, "issuer") != Some(self.issuer.as_str()) {
            let description = Some("the metadata is of another issuer than the one configured".to_owned());
            let refusal = Refusal { description, ..Refusal::of_code("issuer_mismatch") };
            return Err(Missed::Wrong(Failure::Permanent(refusal)));
        }
        let aliases = match members.get("mtls_endpoint_aliases") {
            Some(Json::Object(aliases)) if self.mutual_tls => Some(aliases),
            _ => None,
        };
        let mut endpoints = HashMap::new();
        for name in ENDPOINTS {
            // A browser shows no certificate of ours.
            let alias = aliases.filter(|_| name != AUTHORIZATION).and_then(|aliases| text(aliases, name));
            if let Some(url) = alias.or_else(|| text(&members, name)) {
                endpoints.insert(name, self.endpoint(url).await);
            }
        }
        let is_true = |name: &str| matches!(members.get(name), Some(Json::Bool(true)));
        Ok(Metadata {
            endpoints,
            requires_pushed_requests: is_true("require_pushed_authorization_requests"),
            names_itself: is_true("authorization_response_iss_parameter_supported"),
        })
    }

    async fn endpoint(&self, text: &str) -> Result<Url, &'static str> {
        let url = Url::parse(text).map_err(|_| "is no URL")?;
        let loopback = url.host().is_some_and(|host| match host {
            UrlHost::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
            UrlHost::Ipv4(address) => address.is_loopback(),
            UrlHost::Ipv6(address) => address.is_loopback(),
        });
        match url.scheme() {
            "https" => {}
            "http" if loopback || self.allow_cleartext => {}
            _ => return Err("is not https"),
        }
        // A name is checked when it is resolved; an address never is.
        let host = url.host_str().and_then(|host| Host::parse(host).ok()).ok_or("has no plain host")?;
        let port = url.port_or_known_default().unwrap_or(0);
        if matches!(host, Host::Ip(_)) && self.dialer.addresses(&host, port).await.is_err() {
            return Err("is a private address, and the configuration does not name it");
        }
        Ok(transport::without_userinfo(&url))
    }
}

fn text<'a>(members: &'a Members, name: &str) -> Option<&'a str> {
    members.get(name).and_then(Json::as_text).filter(|text| !text.is_empty())
}

/// The issuer does not say what is needed.
pub fn incomplete(why: &str) -> Failure {
    let description = Some(format!("the issuer {why}"));
    Failure::Permanent(Refusal { description, ..Refusal::of_code("discovery_failed") })
}

/// Nothing that concerns a token has left.
pub fn not_now(why: &str) -> Failure {
    Failure::Retryable { reason: Reason::Discovery, retry_after: None, detail: Some(format!("the issuer {why}")) }
}

/// RFC 8414 §3.1, its form for OpenID, and OpenID Connect Discovery 1.0 §4.
fn places(issuer: &str) -> Vec<Url> {
    let Ok(base) = Url::parse(issuer) else { return Vec::new() };
    let path = base.path().trim_end_matches('/').to_owned();
    let mut places = Vec::new();
    for place in [
        format!("/.well-known/oauth-authorization-server{path}"),
        format!("{path}/.well-known/openid-configuration"),
        format!("/.well-known/openid-configuration{path}"),
    ] {
        let mut url = base.clone();
        url.set_path(&place);
        if !places.contains(&url) {
            places.push(url);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discovery_that_failed_puts_no_refresh_token_in_doubt() {
        assert!(!not_now("answers http_503").may_have_been_granted());
    }

    #[test]
    fn metadata_is_where_the_standards_put_it() {
        let check = |issuer: &str, expected: &[&str]| {
            assert_eq!(places(issuer).iter().map(Url::as_str).collect::<Vec<_>>(), expected);
        };
        let root = [
            "https://as.test/.well-known/oauth-authorization-server",
            "https://as.test/.well-known/openid-configuration",
        ];
        check("https://as.test", &root);
        check("https://as.test/", &root);
        check(
            "https://as.test/tenant/7/",
            &[
                "https://as.test/.well-known/oauth-authorization-server/tenant/7",
                "https://as.test/tenant/7/.well-known/openid-configuration",
                "https://as.test/.well-known/openid-configuration/tenant/7",
            ],
        );
    }
}
