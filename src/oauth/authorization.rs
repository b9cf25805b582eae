//! Requests that start a person's consent: the authorization request with PKCE (RFC 6749 §4.1.1, RFC 7636), pushed if
//! the server requires it (RFC 9126), and the device authorization request (RFC 8628 §3.1).
//!
//! Invariants: PKCE follows the configuration, never the server's metadata; the query of the authorization URL is kept,
//! except for names that the request sets (`query`); if the server requires pushed requests, the browser carries only
//! `client_id` and `request_uri`.
//! Not here: the callback (`admin::consent`), the exchange of a code (`grant`).

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use oauth2::{AuthUrl, CsrfToken, PkceCodeChallenge, RedirectUrl, Scope};
use url::Url;

use super::call::{Call, Kind};
use super::failure::{Failure, Reason, Refusal};
use super::form::{Fields, field};
use super::grant;
use super::json::{Json, Members};
use super::redact::Redactor;
use super::transport::{self, TokenResponse};
use super::{TokenEndpoint, discovery, query, refused, response, retryable};
use crate::model::connection::Pkce;
use crate::model::secret::Secret;
use crate::script;

/// Poll interval if the response has no `interval` (RFC 8628 §3.2).
const POLL_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Maximum lifetime of a device code; a longer one is capped.
const DEVICE_CODE_LIFETIME_MAX: Duration = Duration::from_secs(30 * 60);
const DEVICE_CODE_LIFETIME_DEFAULT: Duration = Duration::from_secs(10 * 60);
const USER_CODE_CHARS_MAX: usize = 64;

/// The URL for the browser, and the PKCE verifier for the exchange of the code.
pub struct BrowserAuthorization {
    pub url: Url,
    pub verifier: Option<Secret>,
}

/// A device authorization response (RFC 8628 §3.2): the user code for the person, the device code for our polls.
pub struct DeviceAuthorization {
    pub device_code: Secret,
    pub user_code: String,
    pub verification_uri: Url,
    pub verification_uri_complete: Option<Url>,
    pub expires_in: Duration,
    pub interval: Duration,
}

impl TokenEndpoint {
    /// Builds the authorization request, and pushes it to the server first if its metadata requires that.
    pub async fn start_browser_authorization(
        &self,
        state: &Secret,
        redirect_uri: &str,
    ) -> Result<BrowserAuthorization, Failure> {
        self.within_timeout(async {
            let metadata = self.metadata().await?.unwrap_or_default();
            let authorization_url = match &self.connection.endpoints.authorization {
                Some(url) => url.clone(),
                None => {
                    let url = metadata.endpoint(discovery::AUTHORIZATION)?;
                    url.ok_or_else(|| self.endpoint_unknown("authorization_url", discovery::AUTHORIZATION))?
                }
            };
            let (fields, verifier) = self.authorization_fields(&authorization_url, state, redirect_uri)?;
            let fields = self.scripted_fields(&authorization_url, fields)?;
            let url = query::authorization_request(&authorization_url, &fields);
            let pushed = match metadata.requires_pushed_requests {
                true => metadata.endpoint(discovery::PUSHED_AUTHORIZATION_REQUEST)?,
                false => None,
            };
            let url = match pushed {
                Some(endpoint) => self.pushed(&authorization_url, &url, &endpoint).await?,
                None => url,
            };
            Ok(BrowserAuthorization { url, verifier })
        })
        .await
    }

    /// The parameters that the grant and the configuration set.
    fn authorization_fields(
        &self,
        authorization_url: &Url,
        state: &Secret,
        redirect_uri: &str,
    ) -> Result<(Fields, Option<Secret>), Failure> {
        let redirect = RedirectUrl::new(redirect_uri.to_owned()).map_err(|_| refused("invalid_redirect_url"))?;
        let mut bare = authorization_url.clone();
        bare.set_query(None);
        let client = self.oauth.clone().set_auth_uri(AuthUrl::from_url(bare));
        let (challenge, verifier) = match self.connection.authorization.pkce {
            Pkce::S256 => Some(PkceCodeChallenge::new_random_sha256()),
            Pkce::Plain => Some(PkceCodeChallenge::new_random_plain()),
            Pkce::None => None,
        }
        .unzip();
        let mut request = client
            .authorize_url(|| CsrfToken::new(state.expose().to_owned()))
            .set_redirect_uri(Cow::Owned(redirect))
            .add_scopes(self.connection.scopes.iter().map(|scope| Scope::new(scope.clone())));
        if let Some(challenge) = challenge {
            request = request.set_pkce_challenge(challenge);
        }
        let params = self.connection.authorization.params.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in grant::audience_params(&self.connection).chain(params) {
            request = request.add_extra_param(name, value);
        }
        let (url, _) = request.url();
        let fields = url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        Ok((fields, verifier.map(|verifier| Secret::new(verifier.into_secret()))))
    }

    /// Passes the parameters through the script; it does not see the query of the configured URL.
    fn scripted_fields(&self, authorization_url: &Url, fields: Fields) -> Result<Fields, Failure> {
        let Some(script) = self.script.as_ref().filter(|script| script.has_authorization_request()) else {
            return Ok(fields);
        };
        let call = self.preparation(authorization_url.clone());
        let request = script::Request { url: authorization_url.to_string(), headers: Vec::new(), form: fields.clone() };
        let scripted = script.authorization_request(request, &call.script_context());
        let scripted = scripted.map_err(|failure| call.script_failed(failure, &call.redactor_for_fields(&fields)))?;
        Ok(scripted.form)
    }

    /// Pushes the request (RFC 9126 §2); the browser then carries only a reference to it.
    async fn pushed(&self, authorization_url: &Url, url: &Url, endpoint: &Url) -> Result<Url, Failure> {
        // The query of the configured URL is part of the request. The form must name the client (§2.1). If the
        // credential is in a header, nothing else in the form does; otherwise client authentication adds `client_id`.
        let keeps_client_id = self.connection.client_auth.is_in_header();
        let fields = url.query_pairs().filter(|(name, _)| keeps_client_id || name != "client_id");
        let fields: Fields = fields.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        let call = self.preparation(transport::without_userinfo(endpoint));
        let uri = call.authenticate_and_send(&fields, |response, redactor| {
            let members = granted(response, redactor)?;
            let uri = members.get("request_uri").and_then(Json::as_text).filter(|uri| !uri.is_empty());
            uri.map(str::to_owned).ok_or_else(|| retryable(Reason::NotJson))
        });
        let uri = uri.await?;
        let mut url = authorization_url.clone();
        url.query_pairs_mut()
            .clear()
            .append_pair("client_id", &self.connection.client_id)
            .append_pair("request_uri", &uri);
        Ok(url)
    }

    /// Sends the device authorization request (RFC 8628 §3.1).
    pub async fn start_device_authorization(&self) -> Result<DeviceAuthorization, Failure> {
        self.within_timeout(async {
            let url = match &self.connection.endpoints.device_authorization {
                Some(url) => url.clone(),
                None => {
                    let url = self.discovered(discovery::DEVICE_AUTHORIZATION).await?;
                    url.ok_or_else(|| {
                        self.endpoint_unknown("device_authorization_url", discovery::DEVICE_AUTHORIZATION)
                    })?
                }
            };
            let mut fields = Fields::new();
            if !self.connection.scopes.is_empty() {
                fields.push(field("scope", &self.connection.scopes.join(" ")));
            }
            fields.extend(grant::audience_params(&self.connection).map(|(name, value)| field(name, value)));
            let call = self.preparation(transport::without_userinfo(&url));
            call.authenticate_and_send(&fields, |response, redactor| {
                device_authorization(&granted(response, redactor)?).ok_or_else(|| retryable(Reason::NotJson))
            })
            .await
        })
        .await
    }

    /// True if an authorization response with this `iss` parameter comes from the configured issuer (RFC 9207 §2.4).
    pub async fn is_from_issuer(&self, named: Option<&str>) -> Result<bool, Failure> {
        let metadata = self.within_timeout(self.metadata()).await?;
        let iss_required = metadata.is_some_and(|metadata| metadata.sends_iss_parameter);
        Ok(match (named, &self.connection.endpoints.issuer) {
            (Some(named), Some(issuer)) => named == issuer,
            (Some(_), None) => true,
            (None, _) => !iss_required,
        })
    }

    /// Neither the configuration nor the issuer's metadata has the endpoint.
    fn endpoint_unknown(&self, key: &str, member: &str) -> Failure {
        if self.connection.endpoints.issuer.is_some() {
            return discovery::incomplete(&format!("names no {member}"));
        }
        let description = Some(format!("the connection has neither {key} nor an issuer"));
        Failure::Permanent(Refusal { description, ..Refusal::from_code("invalid_configuration") })
    }

    fn preparation(&self, url: Url) -> Call<'_> {
        Call { endpoint: self, url, kind: Kind::Preparation }
    }
}

/// The members of a successful response, else its failure.
fn granted(response: &TokenResponse, redactor: &Redactor) -> Result<Members, Failure> {
    match Json::object(&response.body) {
        Ok(members) if response.status.is_success() && !members.contains_key("error") => Ok(members),
        _ if response.status == StatusCode::OK && response.body.is_empty() => Err(retryable(Reason::Empty)),
        _ => Err(response::refusal(response, redactor)),
    }
}

fn device_authorization(members: &Members) -> Option<DeviceAuthorization> {
    let text = |name: &str| members.get(name).and_then(Json::as_text).filter(|text| !text.is_empty());
    let url = |name: &str| text(name)?.parse::<Url>().ok().filter(|url| matches!(url.scheme(), "https" | "http"));
    let span = |name: &str| members.get(name).and_then(response::seconds);
    let user_code = text("user_code")?;
    let is_ascii_text = user_code.chars().all(|c| ('!'..='~').contains(&c) || c == ' ');
    Some(DeviceAuthorization {
        device_code: Secret::new(text("device_code")?),
        user_code: Some(user_code).filter(|code| is_ascii_text && code.len() <= USER_CODE_CHARS_MAX)?.to_owned(),
        // Google calls it `verification_url`.
        verification_uri: url("verification_uri").or_else(|| url("verification_url"))?,
        verification_uri_complete: url("verification_uri_complete"),
        expires_in: span("expires_in").unwrap_or(DEVICE_CODE_LIFETIME_DEFAULT).min(DEVICE_CODE_LIFETIME_MAX),
        interval: span("interval")
            .filter(|span| !span.is_zero())
            .unwrap_or(POLL_INTERVAL_DEFAULT)
            .min(POLL_INTERVAL_MAX),
    })
}
