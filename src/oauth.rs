//! The OAuth endpoints of one connection: token requests, revocation, and what a person is asked.
//!
//! Not here: when to ask again (`token::schedule`), what becomes of the token (`token::acquire`).
//! Invariants: oauth2 builds the standard requests as forms without a secret, and from there every grant goes one way:
//! `client_auth` → script → `transport::send` → script → `response::read` (`call`). A request carries one client
//! authentication method. No error holds a secret, a token or a body.

mod assertion;
mod authorization;
mod call;
mod client_auth;
mod clients;
mod courier;
mod discovery;
mod failure;
mod form;
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
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use url::Url;

use crate::clock::Clock;
use crate::model::connection::Connection;
use crate::model::secret::Secret;
use crate::model::time::BootTime;
use crate::model::token::{RefreshToken, Subject, TokenSet};
use crate::script::Script;
use crate::telemetry::traces::Tracer;
use assertion::{Moment, Signer};
use client_auth::Proof;
use discovery::{Discovery, Metadata};
use form::{Fields, field};
use verdict::Sent;

pub use authorization::{BrowserAuthorization, DeviceAuthorization};
pub use clients::{ClientError, HttpClients};
pub use failure::{Failure, Outcome, Reason, Refusal};
pub use posted::clean_error;

/// The contract's word for a connection that waits for a person.
pub const CONSENT_REQUIRED: &str = "consent_required";

/// A response that has arrived is read although its deadline has passed: the process or the machine may have stood still.
const LATE: Duration = Duration::from_millis(100);

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

/// What a token request sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenRequestKind {
    FirstGrant,
    Refresh,
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
        let signer = grant::signer(&connection.grant);
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
        grant::first(self, whose).await
    }

    /// One token request with a refresh token, with the same deadline.
    pub async fn refresh(&self, token: &RefreshToken, whose: Whose<'_>) -> Result<TokenSet, Failure> {
        grant::refresh(self, token, whose).await
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

    async fn ask(&self, asked: TokenRequestKind, mut fields: Fields, whose: Whose<'_>) -> Result<TokenSet, Failure> {
        let (grant, sent) = match asked {
            TokenRequestKind::FirstGrant => {
                if let Some(own_name) = &self.connection.grant_type {
                    let named = fields.iter_mut().filter(|(name, _)| name == "grant_type");
                    named.for_each(|(_, value)| value.clone_from(own_name));
                }
                (self.connection.grant.as_str(), Sent::Grant)
            }
            TokenRequestKind::Refresh => {
                let (needs_person, after_empty_400) = (self.connection.grant.needs_person(), whose.after_empty_400);
                ("refresh_token", Sent::RefreshToken { needs_person, after_empty_400 })
            }
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
