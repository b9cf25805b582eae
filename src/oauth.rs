//! The OAuth endpoints of one connection: one wish, and what came of it.
//!
//! Not here: when to ask again (`token::schedule`), what becomes of the token (`token::acquire`).
//! Holds: oauth2 builds the standard requests as forms without a secret, and from there every grant goes one way:
//! `client_auth` → script → `transport::send` → script → `response::read` (`call`). A request carries one client
//! authentication method. No error holds a secret, a token or a body.

mod assertion;
mod authorization;
mod call;
mod client_auth;
mod clients;
mod discovery;
mod failure;
mod grant;
mod json;
mod posted;
mod query;
mod response;
mod retry_after;
mod seen;
#[cfg(test)]
mod tests;
mod transport;
mod verdict;

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use oauth2::basic::BasicErrorResponse;
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse, RequestTokenError};
use url::Url;

use crate::clock::Clock;
use crate::model::connection::{Connection, Grant};
use crate::model::secret::Secret;
use crate::model::time::BootTime;
use crate::model::token::{RefreshToken, Subject, TokenSet};
use crate::script::Script;
use crate::telemetry::traces::Tracer;

use assertion::{Moment, Signer};
use client_auth::Proof;
use discovery::{Discovery, Metadata};
use grant::{Fields, field};
use verdict::Sent;

pub use authorization::{BrowserAsked, DeviceAsked};
pub use clients::{ClientError, HttpClients};
pub use failure::{Failure, Outcome, Reason, Refusal};
pub use posted::clean_error;

/// The contract's word for a connection that waits for a person.
pub const CONSENT_REQUIRED: &str = "consent_required";
/// A grant that needs the caller's own token, and there is none.
const NO_SUBJECT_TOKEN: &str = "subject_token_missing";

/// An answer that has arrived is read although its time has passed: the process or the machine may have stood still.
const LATE: Duration = Duration::from_millis(100);

/// What oauth2 gets to read once `response::read` has taken the real answer: a token that nobody uses.
const PLACEHOLDER: &str = r#"{"access_token":"-","token_type":"bearer"}"#;

/// For whom a token is asked, where a connection has one for each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Whose<'a> {
    pub subject: Option<&'a Subject>,
    /// The caller's own token, to be exchanged.
    pub token: Option<&'a Secret>,
    /// What a person has brought.
    pub consented: Option<&'a Consented>,
    /// Deadline for sending: a request that has not left by then is given up, because another process may then have the
    /// right to send it.
    pub sent_before: Option<BootTime>,
    /// The refresh before this one got a 400 without a body.
    pub after_empty_400: bool,
}

/// What the authorization server hands out once a person has agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consented {
    /// RFC 6749 §4.1.3, with what was said in the authorization request.
    Code { code: Secret, verifier: Option<Secret>, redirect_uri: String },
    /// RFC 8628 §3.4; the person may still be on the way.
    Device { device_code: Secret },
}

/// The OAuth endpoints of one connection.
pub struct TokenEndpoint {
    connection: Arc<Connection>,
    http: reqwest::Client,
    oauth: grant::Client,
    discovery: Option<Arc<Discovery>>,
    proofs: Vec<Proof>,
    /// Of the `jwt_bearer` grant.
    signer: Option<Signer>,
    script: Option<Script>,
    tracer: Tracer,
    /// Which of the client secrets worked last.
    preferred: AtomicUsize,
}

/// Its parts may hold secrets.
impl fmt::Debug for TokenEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenEndpoint({})", self.connection.name)
    }
}

impl TokenEndpoint {
    pub fn new(connection: Arc<Connection>, clients: &HttpClients) -> Result<TokenEndpoint, ClientError> {
        let http = clients.get(&connection.authorization_server, connection.mutual_tls.as_ref())?;
        let discovery = clients.discovery(&connection, &http);
        let oauth = grant::client(&connection.client_id, &transport::without_userinfo(&connection.endpoints.server));
        let signer = match &connection.grant {
            Grant::JwtBearer(assertion) => Some(Signer::of_key(&assertion.key, &assertion.audience)),
            _ => None,
        };
        // It has been compiled before: the configuration is checked.
        let script = connection.script.as_ref().and_then(|source| Script::compile(&source.text).ok());
        Ok(TokenEndpoint {
            http,
            oauth,
            discovery,
            proofs: client_auth::proofs(&connection),
            signer,
            script,
            tracer: clients.tracer.clone(),
            preferred: AtomicUsize::new(0),
            connection,
        })
    }

    /// One token request by the connection's own grant; a grant that needs a person is refused without asking. Of several
    /// client secrets the next one is tried only when the server refuses the client itself, all within one
    /// `authorization_server.timeout`.
    pub async fn first_grant(&self, whose: Whose<'_>) -> Result<TokenSet, Failure> {
        let courier = Courier { endpoint: self, whose, first: true, delivered: OnceLock::new() };
        if let Some(outcome) = grant::standard(&self.oauth, &self.connection, &courier).await {
            return courier.delivered(outcome);
        }
        self.in_time(async {
            let fields = match &self.connection.grant {
                Grant::JwtBearer(assertion) => {
                    let (token_url, client_id) = (self.token_url().await?, &*self.connection.client_id);
                    let signer = self.signer.as_ref().ok_or_else(|| refused("assertion_not_signed"))?;
                    let whom = (client_id, whose.subject.map(Subject::as_str));
                    let signed = signer.grant_assertion(assertion, whom, &self.moment(&token_url))?;
                    Some(grant::of_assertion(&self.connection, signed.expose()))
                }
                Grant::Saml2Bearer { assertion } => {
                    let assertion = grant::saml2_assertion(assertion);
                    Some(grant::of_assertion(&self.connection, assertion.expose()))
                }
                Grant::TokenExchange(exchange) => grant::of_exchange(&self.connection, exchange, whose),
                Grant::DeviceCode => match whose.consented {
                    Some(Consented::Device { device_code }) => Some(grant::of_device(&self.connection, device_code)),
                    _ => return Err(refused(CONSENT_REQUIRED)),
                },
                Grant::ClientCredentials | Grant::Password { .. } | Grant::AuthorizationCode => {
                    return Err(refused(CONSENT_REQUIRED));
                }
            };
            self.ask(fields.ok_or_else(|| refused(NO_SUBJECT_TOKEN))?, true, whose).await
        })
        .await
    }

    /// One token request with a refresh token, in the same way.
    pub async fn refresh(&self, token: &RefreshToken, whose: Whose<'_>) -> Result<TokenSet, Failure> {
        let courier = Courier { endpoint: self, whose, first: false, delivered: OnceLock::new() };
        let outcome = grant::refresh(&self.oauth, &self.connection, token, &courier).await;
        courier.delivered(outcome)
    }

    /// Revokes one token (RFC 7009 §2.1); `false`: the server has no endpoint for it. `hint` is `refresh_token` or
    /// `access_token`.
    pub async fn revoke(&self, token: &str, hint: &str) -> Result<bool, Failure> {
        self.in_time(async {
            let url = match &self.connection.endpoints.revocation {
                Some(url) => Some(url.clone()),
                None => self.discovered(discovery::REVOCATION).await?,
            };
            let Some(url) = url else { return Ok(false) };
            let fields = vec![field("token", token), field("token_type_hint", hint)];
            let call =
                call::Call { endpoint: self, url: transport::without_userinfo(&url), kind: call::Kind::Revocation };
            call.prove_and_send(&fields, response::revoked).await.map(|()| true)
        })
        .await
    }

    async fn ask(&self, mut fields: Fields, first: bool, whose: Whose<'_>) -> Result<TokenSet, Failure> {
        let own_name = self.connection.grant_type.as_ref().filter(|_| first);
        if let Some(own_name) = own_name {
            fields
                .iter_mut()
                .filter(|(name, _)| name == "grant_type")
                .for_each(|(_, value)| value.clone_from(own_name));
        }
        let (needs_person, after_empty_400) = (self.connection.grant.needs_person(), whose.after_empty_400);
        let (grant, sent) = match first {
            true => (self.connection.grant.as_str(), Sent::Grant),
            false => ("refresh_token", Sent::RefreshToken { needs_person, after_empty_400 }),
        };
        let url = transport::without_userinfo(&self.token_url().await?);
        let call = call::Call { endpoint: self, url, kind: call::Kind::Token { grant, whose, sent } };
        let outcome = call.prove_and_send(&fields, |answer, posted| call.token_set(answer, posted)).await;
        if let (Some(discovery), Err(failure)) = (&self.discovery, &outcome)
            && failure.is_of_the_place()
        {
            discovery.forget();
        }
        outcome
    }

    /// Configured, else as the issuer says.
    async fn token_url(&self) -> Result<Url, Failure> {
        if let Some(url) = &self.connection.endpoints.token {
            return Ok(url.clone());
        }
        let token = self.discovered(discovery::TOKEN).await?;
        token.ok_or_else(|| discovery::incomplete("names no token_endpoint"))
    }

    /// An endpoint in the issuer's metadata.
    async fn discovered(&self, name: &str) -> Result<Option<Url>, Failure> {
        self.metadata().await?.map_or(Ok(None), |metadata| metadata.endpoint(name))
    }

    async fn metadata(&self) -> Result<Option<Arc<Metadata>>, Failure> {
        let Some(discovery) = &self.discovery else { return Ok(None) };
        let asked = discovery.metadata(Clock::system().now().boot);
        // Within the time of the whole, so that it is known to have been the discovery that took it.
        let answer = tokio::time::timeout(self.connection.authorization_server.timeout, asked).await;
        answer
            .unwrap_or_else(|_| Err(discovery::not_now("did not answer in time")))
            .map(Some)
            .map_err(Failure::of_discovery)
    }

    fn moment<'a>(&'a self, token_url: &'a Url) -> Moment<'a> {
        let issuer = self.connection.endpoints.issuer.as_deref();
        Moment { token_url: token_url.as_str(), issuer, now: Clock::system().now().wall }
    }

    /// Everything that one wish takes has one deadline.
    async fn in_time<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let timeout = self.connection.authorization_server.timeout;
        tokio::pin!(call);
        if let Ok(answer) = tokio::time::timeout(timeout, &mut call).await {
            return answer;
        }
        tokio::time::timeout(LATE, call).await.unwrap_or_else(|_| Err(retryable(Reason::Timeout)))
    }
}

fn retryable(reason: Reason) -> Failure {
    Failure::Retryable { reason, retry_after: None, detail: reason.remedy().map(str::to_owned) }
}

fn refused(code: &str) -> Failure {
    Failure::Permanent(Refusal::of_code(code))
}

/// The HTTP client that oauth2 sees: carries the form our way and keeps the token it brought back.
struct Courier<'a> {
    endpoint: &'a TokenEndpoint,
    whose: Whose<'a>,
    /// Not a refresh.
    first: bool,
    delivered: OnceLock<TokenSet>,
}

/// What oauth2 says of a request that it could not carry out.
type Failed = RequestTokenError<Failure, BasicErrorResponse>;

impl Courier<'_> {
    fn delivered(self, outcome: Result<(), Failed>) -> Result<TokenSet, Failure> {
        if let Err(RequestTokenError::Request(failure)) = outcome {
            return Err(failure);
        }
        // Nothing delivered and no failure of ours: oauth2 could not even put the request together.
        self.delivered.into_inner().ok_or_else(|| refused("invalid_token_url"))
    }

    async fn carry(&self, request: HttpRequest) -> Result<HttpResponse, Failure> {
        let fields = grant::fields(request.body());
        let token = self.endpoint.in_time(self.endpoint.ask(fields, self.first, self.whose)).await?;
        // A courier serves one request, so the place is empty.
        let _ = self.delivered.set(token);
        Ok(HttpResponse::new(PLACEHOLDER.into()))
    }
}

impl<'c> AsyncHttpClient<'c> for Courier<'_> {
    type Error = Failure;
    // Boxed: the compiler cannot see that a closure's future is `Send` for every lifetime.
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Failure>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.carry(request))
    }
}
