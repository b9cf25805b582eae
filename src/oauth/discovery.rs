//! What an issuer says of itself: authorization server metadata (RFC 8414) or OpenID's.
//!
//! Holds: it fills what the configuration leaves open and overrides nothing; the issuer that answers is the one that was
//! asked, to the letter (RFC 8414 §3.3); an endpoint is https unless the configuration permits otherwise, and its address
//! passes the same rules as every other; what was found is good for a day.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Method, StatusCode, header};
use tokio::sync::OnceCell;
use url::{Host as UrlHost, Url};

use crate::dial::Dialer;
use crate::model::origin::Host;

use super::failure::{Failure, Reason, Refusal};
use super::json::{Json, Members};
use super::transport::{self, Answer};
use super::{refused, retryable};

const PUSHED: &str = "pushed_authorization_request_endpoint";
const GOOD_FOR: Duration = Duration::from_secs(24 * 3600);

/// Endpoints that an issuer has told of. With a client certificate, those for it (RFC 8705 §5) go first.
#[derive(Debug, Default)]
pub struct Metadata {
    pub token: Option<Url>,
    pub revocation: Option<Url>,
    pub authorization: Option<Url>,
    pub device_authorization: Option<Url>,
    /// RFC 9126 §5
    pub pushed_authorization_request: Option<Url>,
    pub requires_pushed_requests: bool,
    /// Its answers name it (RFC 9207 §3).
    pub names_itself: bool,
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
    metadata: OnceCell<(Arc<Metadata>, Duration)>,
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
        let dialer = own.into_iter().fold(dialer, |dialer, host| dialer.naming(host));
        Discovery { issuer, http, dialer, allow_cleartext, mutual_tls, found: ArcSwap::default() }
    }

    /// `boot`: now. Whoever asks meanwhile waits for the same answer.
    pub async fn metadata(&self, boot: Duration) -> Result<Arc<Metadata>, Failure> {
        let found = self.found.load_full();
        if found.metadata.get().is_some_and(|(_, at)| boot.saturating_sub(*at) > GOOD_FOR) {
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
        let mut refusal = incomplete("has no metadata at its well-known places");
        for place in places(&self.issuer) {
            let mut request = reqwest::Request::new(Method::GET, place);
            request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
            let answer = transport::send(&self.http, request).await.map_err(|fault| {
                let detail = Some(fault.detail).filter(|detail| !detail.is_empty());
                Failure::Retryable { reason: fault.reason, retry_after: None, detail }
            })?;
            match self.read(&answer).await {
                Ok(metadata) => return Ok(metadata),
                Err(retryable @ Failure::Retryable { .. }) => return Err(retryable),
                // A server that is no OpenID provider, or knows nothing but that, has the other place.
                Err(failure) if answer.status == StatusCode::OK => return Err(failure),
                Err(failure) => refusal = failure,
            }
        }
        Err(refusal)
    }

    async fn read(&self, answer: &Answer) -> Result<Metadata, Failure> {
        match answer.status.as_u16() {
            200 => {}
            status @ (408 | 425 | 429 | 500..) => return Err(retryable(Reason::HttpStatus(status))),
            status => return Err(incomplete(&format!("answered http_{status} at its well-known places"))),
        }
        let members = Json::object(&answer.body).map_err(|_| incomplete("has metadata that is no JSON object"))?;
        if text(&members, "issuer") != Some(self.issuer.as_str()) {
            let description = Some("the metadata is of another issuer than the one configured".to_owned());
            return Err(Failure::Permanent(Refusal { description, ..Refusal::of_code("issuer_mismatch") }));
        }
        let aliases = match members.get("mtls_endpoint_aliases") {
            Some(Json::Object(aliases)) if self.mutual_tls => Some(aliases),
            _ => None,
        };
        let of = |name: &str| aliases.and_then(|aliases| text(aliases, name)).or_else(|| text(&members, name));
        let is_true = |name: &str| matches!(members.get(name), Some(Json::Bool(true)));
        Ok(Metadata {
            token: self.endpoint("token_endpoint", of("token_endpoint")).await?,
            revocation: self.endpoint("revocation_endpoint", of("revocation_endpoint")).await?,
            authorization: self.endpoint("authorization_endpoint", text(&members, "authorization_endpoint")).await?,
            device_authorization: self
                .endpoint("device_authorization_endpoint", of("device_authorization_endpoint"))
                .await?,
            pushed_authorization_request: self.endpoint(PUSHED, of(PUSHED)).await?,
            requires_pushed_requests: is_true("require_pushed_authorization_requests"),
            names_itself: is_true("authorization_response_iss_parameter_supported"),
        })
    }

    async fn endpoint(&self, name: &str, text: Option<&str>) -> Result<Option<Url>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let wrong = |why: &str| incomplete(&format!("names a {name} that {why}"));
        let url = Url::parse(text).map_err(|_| wrong("is no URL"))?;
        let loopback = url.host().is_some_and(|host| match host {
            UrlHost::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
            UrlHost::Ipv4(address) => address.is_loopback(),
            UrlHost::Ipv6(address) => address.is_loopback(),
        });
        match url.scheme() {
            "https" => {}
            "http" if loopback || self.allow_cleartext => {}
            _ => return Err(wrong("is not https")),
        }
        // A name is checked when it is resolved; an address never is.
        let host = url.host_str().and_then(|host| Host::parse(host).ok()).ok_or_else(|| wrong("has no plain host"))?;
        let port = url.port_or_known_default().unwrap_or(0);
        if matches!(host, Host::Ip(_)) && self.dialer.addresses(&host, port).await.is_err() {
            return Err(wrong("is a private address, and the configuration does not name it"));
        }
        Ok(Some(transport::without_userinfo(&url)))
    }
}

fn text<'a>(members: &'a Members, name: &str) -> Option<&'a str> {
    members.get(name).and_then(Json::as_text).filter(|text| !text.is_empty())
}

pub fn incomplete(why: &str) -> Failure {
    let Failure::Permanent(refusal) = refused("discovery_failed") else { return refused("discovery_failed") };
    Failure::Permanent(Refusal { description: Some(format!("the issuer {why}")), ..refusal })
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
