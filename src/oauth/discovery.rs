//! Discovery: authorization server metadata (RFC 8414) or an OpenID provider's configuration.
//!
//! Invariants: metadata fills what the configuration leaves open and overrides nothing; its `issuer` equals the
//! configured one byte for byte (RFC 8414 §3.3); an endpoint is https unless the configuration permits http, and its
//! address passes the same rules as every other, checked when the endpoint is used; a failure at one well-known
//! location never keeps the next from being tried; metadata is cached for a day.

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
/// The keys that sign ID tokens (OpenID Connect Discovery §3).
pub const JWKS: &str = "jwks_uri";
const ENDPOINTS: [&str; 6] =
    [TOKEN, REVOCATION, AUTHORIZATION, DEVICE_AUTHORIZATION, PUSHED_AUTHORIZATION_REQUEST, JWKS];
const METADATA_TTL: Duration = Duration::from_secs(24 * 3600);

/// The members of an issuer's metadata that we use.
#[derive(Debug, Default)]
pub struct Metadata {
    /// By member name; `Err`: why the endpoint must not be used.
    endpoints: HashMap<&'static str, Result<Url, &'static str>>,
    pub requires_pushed_requests: bool,
    /// Authorization responses carry `iss` (RFC 9207 §3).
    pub sends_iss_parameter: bool,
    pub announced: Announced,
}

/// What the issuer supports, as far as it announces it (RFC 8414 §2).
#[derive(Debug, Default)]
pub struct Announced {
    pub grants: Option<Vec<String>>,
    /// At the token endpoint.
    pub authentication_methods: Option<Vec<String>>,
    pub code_challenge_methods: Option<Vec<String>>,
    pub scopes: Option<Vec<String>>,
}

impl Announced {
    fn read(members: &Members) -> Announced {
        let list = |name: &str| match members.get(name) {
            Some(Json::List(items)) => Some(items.iter().filter_map(Json::as_text).map(str::to_owned).collect()),
            _ => None,
        };
        Announced {
            grants: list("grant_types_supported"),
            authentication_methods: list("token_endpoint_auth_methods_supported"),
            code_challenge_methods: list("code_challenge_methods_supported"),
            scopes: list("scopes_supported"),
        }
    }

    /// The token endpoint accepts `client_secret_post`, and not `client_secret_basic`.
    pub fn wants_secret_in_body(&self) -> bool {
        let methods = self.authentication_methods.as_deref().unwrap_or_default();
        let accepts = |method: &str| methods.iter().any(|announced| announced == method);
        accepts("client_secret_post") && !accepts("client_secret_basic")
    }
}

impl Metadata {
    /// The endpoint of this member name. With a client certificate, its mutual-TLS alias (RFC 8705 §5) takes
    /// precedence.
    ///
    /// # Errors
    /// This endpoint must not be used; the others are not affected.
    pub fn endpoint(&self, name: &str) -> Result<Option<Url>, Failure> {
        match self.endpoints.get(name) {
            None => Ok(None),
            Some(Ok(url)) => Ok(Some(url.clone())),
            Some(Err(why)) => Err(incomplete(&format!("names a {name} that {why}"))),
        }
    }
}

/// The metadata of one issuer, requested once for all its connections.
pub struct Discovery {
    pub issuer: String,
    pub http: reqwest::Client,
    pub dialer: Dialer,
    pub allow_cleartext: bool,
    /// We present a client certificate.
    pub mutual_tls: bool,
    cache: ArcSwap<CachedMetadata>,
}

#[derive(Default)]
struct CachedMetadata {
    metadata: OnceCell<(Arc<Metadata>, BootTime)>,
}

/// Why one well-known location yielded no metadata.
enum LocationError {
    /// There is no metadata, or it is temporarily unavailable.
    Unavailable(String),
    /// Metadata that must not be used.
    Unusable(Failure),
}

impl Discovery {
    pub fn new(
        issuer: String,
        http: reqwest::Client,
        dialer: Dialer,
        allow_cleartext: bool,
        mutual_tls: bool,
    ) -> Discovery {
        Discovery { issuer, http, dialer, allow_cleartext, mutual_tls, cache: ArcSwap::default() }
    }

    /// Concurrent calls share one request. `boot` is now.
    pub async fn metadata(&self, boot: BootTime) -> Result<Arc<Metadata>, Failure> {
        let cached = self.cache.load_full();
        if cached.metadata.get().is_some_and(|(_, at)| boot.since(*at) > METADATA_TTL) {
            self.forget();
            return Box::pin(self.metadata(boot)).await;
        }
        let (metadata, _) = cached.metadata.get_or_try_init(async || Ok((Arc::new(self.fetch().await?), boot))).await?;
        Ok(metadata.clone())
    }

    /// Empties the cache: the next use requests the metadata again.
    pub fn forget(&self) {
        self.cache.store(Arc::default());
    }

    /// Requests the metadata anew, past the cache, which stays as it is.
    pub async fn fetch(&self) -> Result<Metadata, Failure> {
        let (mut unavailable_because, mut unusable) = (Vec::new(), None);
        for url in well_known_urls(&self.issuer) {
            let mut request = reqwest::Request::new(Method::GET, url);
            request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
            let error = match transport::send(&self.http, request).await {
                Ok(response) => match self.read(&response).await {
                    Ok(metadata) => return Ok(metadata),
                    Err(error) => error,
                },
                // The other locations are on the same server.
                Err(error) if matches!(error.reason, Reason::Unreachable | Reason::Tls) => {
                    let detail = Some(error.detail).filter(|detail| !detail.is_empty());
                    return Err(Failure::Retryable { reason: error.reason, retry_after: None, detail });
                }
                Err(error) => LocationError::Unavailable(error.reason.to_string()),
            };
            match error {
                LocationError::Unavailable(reason) => unavailable_because.push(reason),
                LocationError::Unusable(failure) => unusable = Some(failure),
            }
        }
        Err(unusable.unwrap_or_else(|| {
            unavailable(&format!("has no metadata at its well-known locations: {}", unavailable_because.join(", ")))
        }))
    }

    async fn read(&self, response: &TokenResponse) -> Result<Metadata, LocationError> {
        let status = response.status.as_u16();
        if response.status.is_redirection() {
            let reason = format!("http_{status} (redirects are not followed; set `issuer` to the final address)");
            return Err(LocationError::Unavailable(reason));
        }
        if status != 200 {
            return Err(LocationError::Unavailable(format!("http_{status}")));
        }
        let members = Json::object(&response.body).map_err(|reason| LocationError::Unavailable(reason.to_string()))?;
        if text(&members, "issuer") != Some(self.issuer.as_str()) {
            let description = Some("the metadata names a different issuer than the configured one".to_owned());
            let refusal = Refusal { description, ..Refusal::from_code("issuer_mismatch") };
            return Err(LocationError::Unusable(Failure::Permanent(refusal)));
        }
        let aliases = match members.get("mtls_endpoint_aliases") {
            Some(Json::Object(aliases)) if self.mutual_tls => Some(aliases),
            _ => None,
        };
        let mut endpoints = HashMap::new();
        for name in ENDPOINTS {
            // A browser does not present our certificate.
            let alias = aliases.filter(|_| name != AUTHORIZATION).and_then(|aliases| text(aliases, name));
            if let Some(url) = alias.or_else(|| text(&members, name)) {
                endpoints.insert(name, self.endpoint(url).await);
            }
        }
        let is_true = |name: &str| matches!(members.get(name), Some(Json::Bool(true)));
        Ok(Metadata {
            endpoints,
            requires_pushed_requests: is_true("require_pushed_authorization_requests"),
            sends_iss_parameter: is_true("authorization_response_iss_parameter_supported"),
            announced: Announced::read(&members),
        })
    }

    async fn endpoint(&self, text: &str) -> Result<Url, &'static str> {
        let url = Url::parse(text).map_err(|_| "is not a URL")?;
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
        // A name is checked when it is resolved. A literal address is never resolved: check it here.
        let host = url.host_str().and_then(|host| Host::parse(host).ok()).ok_or("has no valid host")?;
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

/// The metadata lacks a member, or has one that must not be used: a permanent failure.
pub fn incomplete(why: &str) -> Failure {
    let description = Some(format!("the issuer {why}"));
    Failure::Permanent(Refusal { description, ..Refusal::from_code("discovery_failed") })
}

/// The metadata could not be read: a retryable failure. No token request was sent.
pub fn unavailable(why: &str) -> Failure {
    Failure::Retryable { reason: Reason::Discovery, retry_after: None, detail: Some(format!("the issuer {why}")) }
}

/// The locations of RFC 8414 §3.1, of OpenID Connect Discovery 1.0 §4, and of RFC 8414 §5.
fn well_known_urls(issuer: &str) -> Vec<Url> {
    let Ok(base) = Url::parse(issuer) else { return Vec::new() };
    let path = base.path().trim_end_matches('/').to_owned();
    let mut urls = Vec::new();
    for path in [
        format!("/.well-known/oauth-authorization-server{path}"),
        format!("{path}/.well-known/openid-configuration"),
        format!("/.well-known/openid-configuration{path}"),
    ] {
        let mut url = base.clone();
        url.set_path(&path);
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_discovery_puts_no_refresh_token_in_doubt() {
        assert!(!unavailable("has no metadata").may_have_been_granted());
    }

    #[test]
    fn well_known_locations_follow_the_standards() {
        let check = |issuer: &str, expected: &[&str]| {
            assert_eq!(well_known_urls(issuer).iter().map(Url::as_str).collect::<Vec<_>>(), expected);
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
