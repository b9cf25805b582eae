//! Sign-in at an OpenID provider: the authorization request with PKCE and a nonce, the exchange of the code, and the
//! verified ID token (OpenID Connect Core 1.0 §3.1).
//!
//! Invariants: a role comes only from an ID token that `id_token` has verified; the access token of the response is used
//! for `at_hash` alone and dropped; no error holds a token, a code or a secret.
//! Not here: state, cookies and sessions (`admin`), the provider's keys (`keys`).

mod id_token;
mod keys;

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, header};
use oauth2::PkceCodeChallenge;
use tokio::time::timeout;
use url::{Url, form_urlencoded};

use super::assertion::AssertionContext;
use super::client_auth::{self, ClientCredential};
use super::clients::{ClientError, HttpClients};
use super::discovery::{self, Discovery, Metadata};
use super::failure::{Failure, Reason};
use super::form::{Fields, field};
use super::json::Json;
use super::redact::Redactor;
use super::transport::{self, TokenResponse};
use super::{query, response, retryable};
use crate::clock::Clock;
use crate::model::connection::{AuthorizationServer, BasicEncoding, ServerProxy};
use crate::model::secret::Secret;
use crate::model::token::TokenKey;
use crate::model::{Role, SignIn};
use id_token::Expected;
use keys::ProviderKeys;

pub use id_token::IdTokenError;

/// Timeout of everything that one step of a sign-in requests from the provider.
const SIGN_IN_TIMEOUT: Duration = Duration::from_secs(10);

/// Keybearer as a client of the OpenID provider.
pub struct OpenIdClient {
    pub settings: SignIn,
    /// Where the provider returns the browser.
    pub redirect_url: Url,
    http: reqwest::Client,
    discovery: Discovery,
    keys: ProviderKeys,
}

/// Shows the issuer alone: the settings hold a secret.
impl fmt::Debug for OpenIdClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenIdClient({})", self.settings.issuer)
    }
}

/// The URL for the browser, and the PKCE verifier for the exchange of the code.
pub struct SignInStart {
    pub url: Url,
    pub verifier: Secret,
}

/// The person of a verified ID token.
#[derive(Debug)]
pub struct Identity {
    /// `sub`, unique at the issuer.
    pub subject: String,
    /// A name for people, if the token has one.
    pub display_name: Option<String>,
    /// `None`: no group of the person has a role.
    pub role: Option<Role>,
}

/// Why a sign-in failed.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    #[error("{0}")]
    Provider(#[from] Failure),
    #[error("the ID token {0}")]
    IdToken(#[from] IdTokenError),
    /// RFC 9207 §2.4
    #[error("the response names another issuer")]
    OtherIssuer,
}

impl OpenIdClient {
    pub fn new(settings: &SignIn, redirect_url: Url, clients: &HttpClients) -> Result<OpenIdClient, ClientError> {
        let server = AuthorizationServer { trust: None, proxy: ServerProxy::Inherit, timeout: SIGN_IN_TIMEOUT };
        let http = clients.get(&server, None)?;
        let discovery = clients.sign_in_discovery(&settings.issuer, &http);
        Ok(OpenIdClient { settings: settings.clone(), redirect_url, http, discovery, keys: ProviderKeys::default() })
    }

    /// The page that begins a sign-in, with the token to connect afterwards; it has a query.
    pub fn sign_in_url(&self, target: Option<&TokenKey>) -> Url {
        let mut url = self.redirect_url.clone();
        // The path ends in /sign-in/callback.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop();
        }
        let connect = target.map(|key| [Some(format!("connect={}", key.connection)), key.selection()]);
        let query: Vec<_> = connect.into_iter().flatten().flatten().collect();
        url.set_query(Some(&query.join("&")));
        url
    }

    /// Builds the authentication request (OpenID Connect Core §3.1.2.1).
    pub async fn start(&self, state: &Secret, nonce: &Secret) -> Result<SignInStart, Failure> {
        let metadata = within_timeout(self.discovery.metadata(Clock::system().now().boot)).await?;
        let url = endpoint(&metadata, discovery::AUTHORIZATION)?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let fields = vec![
            field("response_type", "code"),
            field("client_id", &self.settings.client_id),
            field("redirect_uri", self.redirect_url.as_str()),
            field("scope", &self.settings.scopes.join(" ")),
            field("state", state.expose()),
            field("nonce", nonce.expose()),
            field("code_challenge", challenge.as_str()),
            field("code_challenge_method", challenge.method()),
        ];
        let url = query::authorization_request(&url, &fields);
        Ok(SignInStart { url, verifier: Secret::new(verifier.into_secret()) })
    }

    /// Exchanges the code and verifies the ID token. `issuer` is the `iss` parameter of the authorization response.
    pub async fn finish(
        &self,
        code: &Secret,
        verifier: &Secret,
        nonce: &Secret,
        issuer: Option<&str>,
    ) -> Result<Identity, SignInError> {
        within_timeout(async { Ok(self.finish_in_time(code, verifier, nonce, issuer).await) }).await?
    }

    async fn finish_in_time(
        &self,
        code: &Secret,
        verifier: &Secret,
        nonce: &Secret,
        issuer: Option<&str>,
    ) -> Result<Identity, SignInError> {
        let metadata = self.discovery.metadata(Clock::system().now().boot).await?;
        let is_own = issuer.map_or(!metadata.sends_iss_parameter, |issuer| issuer == self.settings.issuer);
        if !is_own {
            return Err(SignInError::OtherIssuer);
        }
        let tokens = self.exchange(&metadata, code, verifier).await?;
        let jwks = endpoint(&metadata, discovery::JWKS)?;
        let expected = Expected {
            issuer: &self.settings.issuer,
            client_id: &self.settings.client_id,
            nonce: nonce.expose(),
            access_token: tokens.access_token.as_ref().map(Secret::expose),
            now: Clock::system().now().wall,
        };
        let now = Clock::system().now().boot;
        let keys = self.keys.current(&self.http, &jwks, now).await?;
        let claims = match id_token::verify(tokens.id_token.expose(), &keys, &expected) {
            Err(IdTokenError::UnknownKey) => {
                let keys = self.keys.after_unknown_key(&self.http, &jwks, now).await?;
                id_token::verify(tokens.id_token.expose(), &keys, &expected)?
            }
            verified => verified?,
        };
        let role = match Json::at(&claims.members, &self.settings.claim) {
            Some(Json::List(groups)) => self.settings.role(groups.iter().filter_map(Json::as_text)),
            Some(group) => self.settings.role(group.as_text()),
            None => None,
        };
        let text = |name: &str| claims.members.get(name).and_then(Json::as_text).filter(|text| !text.is_empty());
        let display_name = text("preferred_username").or_else(|| text("email")).map(str::to_owned);
        Ok(Identity { subject: claims.subject, display_name, role })
    }

    /// Sends the token request (OpenID Connect Core §3.1.3.1).
    async fn exchange(&self, metadata: &Metadata, code: &Secret, verifier: &Secret) -> Result<Tokens, Failure> {
        let url = endpoint(metadata, discovery::TOKEN)?;
        let mut fields = vec![
            field("grant_type", "authorization_code"),
            field("code", code.expose()),
            field("redirect_uri", self.redirect_url.as_str()),
            field("code_verifier", verifier.expose()),
        ];
        let credential = match &self.settings.client_secret {
            None => ClientCredential::ClientId,
            Some(secret) if metadata.announced.wants_secret_in_body() => ClientCredential::Body(secret.clone()),
            Some(secret) => ClientCredential::Basic(secret.clone(), BasicEncoding::Form),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let context = AssertionContext { token_url: url.as_str(), issuer: None, now: Clock::system().now().wall };
        credential.apply(&self.settings.client_id, &context, &mut fields, &mut headers)?;
        let redactor = self.redactor(&fields, &credential, [code, verifier]);
        let mut request = reqwest::Request::new(Method::POST, url);
        *request.headers_mut() = headers;
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&fields).finish();
        *request.body_mut() = Some(body.into());
        let response = transport::send(&self.http, request).await.map_err(|error| retryable(error.reason))?;
        Tokens::read(&response, &redactor)
    }

    fn redactor(&self, fields: &Fields, credential: &ClientCredential, sent: [&Secret; 2]) -> Redactor {
        let secrets = credential.encodings(&self.settings.client_id).into_iter();
        let sent = sent.into_iter().flat_map(|secret| client_auth::encodings(secret.expose()));
        Redactor::new(&self.settings.client_id, fields, secrets.chain(sent).collect())
    }
}

/// What a sign-in uses of the token response (OpenID Connect Core §3.1.3.3).
struct Tokens {
    id_token: Secret,
    access_token: Option<Secret>,
}

impl Tokens {
    fn read(response: &TokenResponse, redactor: &Redactor) -> Result<Tokens, Failure> {
        let members = match Json::object(&response.body) {
            Ok(members) if response.status.is_success() && !members.contains_key("error") => members,
            _ => return Err(response::refusal(response, redactor)),
        };
        let text = |name: &str| members.get(name).and_then(Json::as_text).map(Secret::new);
        let id_token =
            text("id_token").ok_or_else(|| discovery::incomplete("sent no ID token; request the scope openid"))?;
        Ok(Tokens { id_token, access_token: text("access_token") })
    }
}

fn endpoint(metadata: &Metadata, name: &str) -> Result<Url, Failure> {
    let url = metadata.endpoint(name)?.ok_or_else(|| discovery::incomplete(&format!("names no {name}")))?;
    Ok(transport::without_userinfo(&url))
}

async fn within_timeout<T>(step: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(SIGN_IN_TIMEOUT, step).await.unwrap_or_else(|_| Err(retryable(Reason::Timeout)))
}
