//! What a person is asked, and how: the authorization request with PKCE (RFC 6749 §4.1.1, RFC 7636, RFC 9126), and the
//! device authorization request (RFC 8628 §3.1).
//!
//! Not here: what becomes of the person's answer (`admin::consent`), the exchange of a code (`grant`).
//! Holds: PKCE is what the configuration says, whatever the server says of itself; the query of the authorization URL is
//! kept, but for names that the request sets (`query`); a server that asks for pushed requests gets nothing else through
//! the browser.

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
use super::posted::Posted;
use super::transport::{self, TokenResponse};
use super::{TokenEndpoint, discovery, query, refused, response, retryable};
use crate::model::connection::Pkce;
use crate::model::secret::Secret;
use crate::script;

/// RFC 8628 §3.2: where the answer says nothing.
const INTERVAL: Duration = Duration::from_secs(5);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Longest life of a device code that is believed.
const DEVICE_CODE_MAX: Duration = Duration::from_secs(30 * 60);
const DEVICE_CODE_DEFAULT: Duration = Duration::from_secs(10 * 60);
const USER_CODE_CHARS_MAX: usize = 64;

/// Where the browser goes, and what the exchange of the code will have to show.
pub struct BrowserAuthorization {
    pub url: Url,
    pub verifier: Option<Secret>,
}

/// What a person types elsewhere, and what we ask with meanwhile.
pub struct DeviceAuthorization {
    pub device_code: Secret,
    pub user_code: String,
    pub verification_uri: Url,
    pub verification_uri_complete: Option<Url>,
    pub expires_in: Duration,
    pub interval: Duration,
}

impl TokenEndpoint {
    /// The authorization request, pushed to the server first where it asks for that.
    pub async fn ask_person(&self, state: &Secret, redirect_uri: &str) -> Result<BrowserAuthorization, Failure> {
        self.in_time(async {
            let metadata = self.metadata().await?.unwrap_or_default();
            let place = match &self.connection.endpoints.authorization {
                Some(url) => url.clone(),
                None => {
                    let url = metadata.endpoint(discovery::AUTHORIZATION)?;
                    url.ok_or_else(|| self.nowhere("authorization_url", discovery::AUTHORIZATION))?
                }
            };
            let (fields, verifier) = self.authorization_fields(&place, state, redirect_uri)?;
            let fields = self.shaped_by_script(&place, fields)?;
            let url = query::authorization_request(&place, &fields);
            let pushed = match metadata.requires_pushed_requests {
                true => metadata.endpoint(discovery::PUSHED_AUTHORIZATION_REQUEST)?,
                false => None,
            };
            let url = match pushed {
                Some(endpoint) => self.pushed(&place, &url, &endpoint).await?,
                None => url,
            };
            Ok(BrowserAuthorization { url, verifier })
        })
        .await
    }

    /// The parameters that the grant and the configuration set.
    fn authorization_fields(
        &self,
        place: &Url,
        state: &Secret,
        redirect_uri: &str,
    ) -> Result<(Fields, Option<Secret>), Failure> {
        let redirect = RedirectUrl::new(redirect_uri.to_owned()).map_err(|_| refused("invalid_redirect_url"))?;
        let mut bare = place.clone();
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
        for (name, value) in grant::whom(&self.connection).chain(params) {
            request = request.add_extra_param(name, value);
        }
        let (url, _) = request.url();
        let fields = url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        Ok((fields, verifier.map(|verifier| Secret::new(verifier.into_secret()))))
    }

    /// The parameters as the script wants them; those of the configured URL are not its business.
    fn shaped_by_script(&self, place: &Url, fields: Fields) -> Result<Fields, Failure> {
        let Some(script) = self.script.as_ref().filter(|script| script.has_authorization_request()) else {
            return Ok(fields);
        };
        let call = self.preparation(place.clone());
        let request = script::Request { url: place.to_string(), headers: Vec::new(), form: fields.clone() };
        let shaped = script.authorization_request(request, &call.context());
        let shaped = shaped.map_err(|failure| call.script_failed(failure, &call.posted_fields(&fields)))?;
        Ok(shaped.form)
    }

    /// RFC 9126 §2: the server keeps the parameters, and the browser carries their name.
    async fn pushed(&self, place: &Url, url: &Url, endpoint: &Url) -> Result<Url, Failure> {
        // The query of the configured URL is part of the request, too.
        // It names the client in any case (§2.1); beside `Basic`, nothing else in the form does.
        let unnamed = self.connection.client_auth.is_in_header();
        let fields = url.query_pairs().filter(|(name, _)| unnamed || name != "client_id");
        let fields: Fields = fields.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        let call = self.preparation(transport::without_userinfo(endpoint));
        let uri = call.prove_and_send(&fields, |answer, posted| {
            let members = granted(answer, posted)?;
            let uri = members.get("request_uri").and_then(Json::as_text).filter(|uri| !uri.is_empty());
            uri.map(str::to_owned).ok_or_else(|| retryable(Reason::NotJson))
        });
        let uri = uri.await?;
        let mut url = place.clone();
        url.query_pairs_mut()
            .clear()
            .append_pair("client_id", &self.connection.client_id)
            .append_pair("request_uri", &uri);
        Ok(url)
    }

    /// A code for the person, and one for us.
    pub async fn ask_device(&self) -> Result<DeviceAuthorization, Failure> {
        self.in_time(async {
            let url = match &self.connection.endpoints.device_authorization {
                Some(url) => url.clone(),
                None => {
                    let url = self.discovered(discovery::DEVICE_AUTHORIZATION).await?;
                    url.ok_or_else(|| self.nowhere("device_authorization_url", discovery::DEVICE_AUTHORIZATION))?
                }
            };
            let mut fields = Fields::new();
            if !self.connection.scopes.is_empty() {
                fields.push(field("scope", &self.connection.scopes.join(" ")));
            }
            fields.extend(grant::whom(&self.connection).map(|(name, value)| field(name, value)));
            let call = self.preparation(transport::without_userinfo(&url));
            call.prove_and_send(&fields, |answer, posted| {
                device_asked(&granted(answer, posted)?).ok_or_else(|| retryable(Reason::NotJson))
            })
            .await
        })
        .await
    }

    /// Does an answer in the browser come from the server that was asked (RFC 9207 §2.4)?
    pub async fn is_from_issuer(&self, named: Option<&str>) -> Result<bool, Failure> {
        let metadata = self.in_time(self.metadata()).await?;
        let must = metadata.is_some_and(|metadata| metadata.names_itself);
        Ok(match (named, &self.connection.endpoints.issuer) {
            (Some(named), Some(issuer)) => named == issuer,
            (Some(_), None) => true,
            (None, _) => !must,
        })
    }

    /// Neither the configuration nor the issuer says where.
    fn nowhere(&self, key: &str, member: &str) -> Failure {
        if self.connection.endpoints.issuer.is_some() {
            return discovery::incomplete(&format!("names no {member}"));
        }
        let description = Some(format!("the connection has neither {key} nor an issuer"));
        Failure::Permanent(Refusal { description, ..Refusal::of_code("invalid_configuration") })
    }

    fn preparation(&self, url: Url) -> Call<'_> {
        Call { endpoint: self, url, kind: Kind::Preparation }
    }
}

/// The members of a success, or why it is none.
fn granted(answer: &TokenResponse, posted: &Posted) -> Result<Members, Failure> {
    match Json::object(&answer.body) {
        Ok(members) if answer.status.is_success() && !members.contains_key("error") => Ok(members),
        _ if answer.status == StatusCode::OK && answer.body.is_empty() => Err(retryable(Reason::Empty)),
        _ => Err(response::refusal(answer, posted)),
    }
}

fn device_asked(members: &Members) -> Option<DeviceAuthorization> {
    let text = |name: &str| members.get(name).and_then(Json::as_text).filter(|text| !text.is_empty());
    let url = |name: &str| text(name)?.parse::<Url>().ok().filter(|url| matches!(url.scheme(), "https" | "http"));
    let span = |name: &str| members.get(name).and_then(response::seconds);
    let user_code = text("user_code")?;
    let plain = user_code.chars().all(|c| ('!'..='~').contains(&c) || c == ' ');
    Some(DeviceAuthorization {
        device_code: Secret::new(text("device_code")?),
        user_code: Some(user_code).filter(|code| plain && code.len() <= USER_CODE_CHARS_MAX)?.to_owned(),
        // Google's name for it.
        verification_uri: url("verification_uri").or_else(|| url("verification_url"))?,
        verification_uri_complete: url("verification_uri_complete"),
        expires_in: span("expires_in").unwrap_or(DEVICE_CODE_DEFAULT).min(DEVICE_CODE_MAX),
        interval: span("interval").filter(|span| !span.is_zero()).unwrap_or(INTERVAL).min(INTERVAL_MAX),
    })
}
