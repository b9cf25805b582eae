//! OAuth client of one connection: token, revocation, authorization and device authorization requests.
//!
//! Invariants: oauth2 builds the standard requests as forms without a secret; from there every grant follows one path:
//! `client_auth` → script → `transport::send` → script → `response::read` (`call`). A request carries one client
//! authentication method. No error holds a secret, a token or a body.
//! Not here: when to send the next request (`token::schedule`), storing and publishing the token (`token::acquire`).

mod assertion;
mod authorization;
mod call;
mod client_auth;
mod clients;
mod discovery;
mod failure;
mod form;
mod grant;
mod json;
mod oauth2_adapter;
mod openid;
mod preflight;
mod query;
mod redact;
mod response;
mod response_secrets;
mod retry_after;
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
use crate::dial::Dialer;
use crate::model::connection::{Connection, ServerProxy};
use crate::model::origin::Host;
use crate::model::secret::Secret;
use crate::model::time::BootTime;
use crate::model::token::{RefreshToken, Subject, TokenSet};
use crate::script::Script;
use crate::telemetry::traces::Tracer;
use assertion::{AssertionContext, Signer};
use client_auth::ClientCredential;
use discovery::{Discovery, Metadata};
use form::{Fields, field};
use verdict::Sent;

pub use authorization::DeviceAuthorization;
use clients::EndpointClients;
pub use clients::{ClientError, HttpClients};
pub use failure::{Failure, Outcome, Reason, Refusal};
pub use openid::{Identity, OpenIdClient, SignInError};
pub use preflight::{Check, CheckOutcome};
pub use redact::sanitize_error;

/// Error code of a connection that waits for a person's consent.
pub const CONSENT_REQUIRED: &str = "consent_required";

/// Grace period after the deadline for a response that has already arrived: the process or the machine may have been
/// suspended.
const LATE_RESPONSE_GRACE: Duration = Duration::from_millis(100);

/// Parameters of one token request, in addition to the connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenRequestContext<'a> {
    /// The person or account that the token acts for; `None`: a shared token.
    pub subject: Option<&'a Subject>,
    /// The caller's own token, to be exchanged (RFC 8693).
    pub caller_token: Option<&'a Secret>,
    /// The result of a person's consent; `None` for grants that need none.
    pub consent_grant: Option<&'a ConsentGrant>,
    /// A request that has not left by then is abandoned, because another process may then have the right to send it.
    pub send_deadline: Option<BootTime>,
    /// The previous refresh got a 400 without a body.
    pub after_empty_400: bool,
}

/// The authorization grant (RFC 6749 §1.3) that a person's consent yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsentGrant {
    /// RFC 6749 §4.1.3, with the values of the authorization request that the exchange repeats.
    Code { code: Secret, verifier: Option<Secret>, redirect_uri: String },
    /// RFC 8628 §3.4; the person may not have approved it yet.
    Device { device_code: Secret },
}

/// Credential that a token request presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenRequestKind {
    FirstGrant,
    Refresh,
}

/// The OAuth endpoints of one connection.
pub struct TokenEndpoint {
    connection: Arc<Connection>,
    http: EndpointClients,
    /// Resolves names for `http`.
    dialer: Dialer,
    oauth: grant::Client,
    discovery: Option<Arc<Discovery>>,
    credentials: Vec<ClientCredential>,
    /// Signs the assertion of the `jwt_bearer` grant.
    signer: Option<Signer>,
    script: Option<Script>,
    tracer: Tracer,
    /// Index of the credential that the server accepted last; it is tried first.
    preferred: AtomicUsize,
}

/// Shows only the name: the fields may hold secrets.
impl fmt::Debug for TokenEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenEndpoint({})", self.connection.name)
    }
}

impl TokenEndpoint {
    pub fn new(connection: Arc<Connection>, clients: &HttpClients) -> Result<TokenEndpoint, ClientError> {
        let http = clients.of(&connection)?;
        let discovery = clients.discovery(&connection, &http);
        let oauth = grant::client(&connection.client_id, &transport::without_userinfo(&connection.endpoints.server));
        let signer = grant::signer(&connection.grant);
        // Configuration validation has already compiled it.
        let script = connection.script.as_ref().and_then(|source| Script::compile(&source.text).ok());
        Ok(TokenEndpoint {
            http,
            dialer: clients.dialer_for(&connection.written).clone(),
            oauth,
            discovery,
            credentials: client_auth::credentials(&connection),
            signer,
            script,
            tracer: clients.tracer.clone(),
            preferred: AtomicUsize::new(0),
            connection,
        })
    }

    /// Requests a token by the connection's own grant. A grant that needs a person fails without a request unless there
    /// is a `consent_grant`. The next of several client secrets is tried only if the server refuses the client itself.
    /// All attempts share one `authorization_server.timeout`.
    pub async fn first_grant(&self, context: TokenRequestContext<'_>) -> Result<TokenSet, Failure> {
        grant::first(self, context).await
    }

    /// Requests a token with a refresh token, under the same timeout.
    pub async fn refresh(&self, token: &RefreshToken, context: TokenRequestContext<'_>) -> Result<TokenSet, Failure> {
        grant::refresh(self, token, context).await
    }

    /// Revokes one token (RFC 7009 §2.1); returns `false` if the server has no revocation endpoint. `hint` is
    /// `refresh_token` or `access_token`.
    pub async fn revoke(&self, token: &str, hint: &str) -> Result<bool, Failure> {
        self.within_timeout(async {
            let url = match &self.connection.endpoints.revocation {
                Some(url) => Some(url.clone()),
                None => self.discovered(discovery::REVOCATION).await?,
            };
            let Some(url) = url else { return Ok(false) };
            let fields = vec![field("token", token), field("token_type_hint", hint)];
            let call =
                call::Call { endpoint: self, url: transport::without_userinfo(&url), kind: call::Kind::Revocation };
            call.authenticate_and_send(&fields, response::revoked).await.map(|()| true)
        })
        .await
    }

    async fn request_token(
        &self,
        kind: TokenRequestKind,
        mut fields: Fields,
        context: TokenRequestContext<'_>,
    ) -> Result<TokenSet, Failure> {
        let (grant, sent) = match kind {
            TokenRequestKind::FirstGrant => {
                if let Some(own_name) = &self.connection.grant_type {
                    let named = fields.iter_mut().filter(|(name, _)| name == "grant_type");
                    named.for_each(|(_, value)| value.clone_from(own_name));
                }
                (self.connection.grant.as_str(), Sent::Grant)
            }
            TokenRequestKind::Refresh => {
                let (needs_person, after_empty_400) = (self.connection.grant.needs_person(), context.after_empty_400);
                ("refresh_token", Sent::RefreshToken { needs_person, after_empty_400 })
            }
        };
        let url = transport::without_userinfo(&self.token_url().await?);
        let call = call::Call { endpoint: self, url, kind: call::Kind::Token { grant, context, sent } };
        let outcome =
            call.authenticate_and_send(&fields, |response, redactor| call.token_set(response, redactor)).await;
        if let (Some(discovery), Err(failure)) = (&self.discovery, &outcome)
            && failure.is_wrong_endpoint()
        {
            discovery.forget();
        }
        outcome
    }

    /// The configured token endpoint, else the one in the issuer's metadata.
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
        if let Ok(issuer) = Url::parse(&discovery.issuer) {
            self.check_literals(&issuer)?;
        }
        let metadata = discovery.metadata(Clock::system().now().boot);
        // Its own timeout, no longer than the caller's, so that the error names discovery as the step that was slow.
        let result = tokio::time::timeout(self.connection.authorization_server.timeout, metadata).await;
        result
            .unwrap_or_else(|_| Err(discovery::unavailable("did not respond in time")))
            .map(Some)
            .map_err(Failure::during_discovery)
    }

    /// Checks the literal addresses of an endpoint and of the connection's egress proxy, if the connection was made over
    /// the API: a file permits the addresses that it names.
    fn check_literals(&self, endpoint: &Url) -> Result<(), Failure> {
        if self.connection.written.opens_addresses() {
            return Ok(());
        }
        let proxy = match &self.connection.authorization_server.proxy {
            ServerProxy::Own(proxy) => Some(&proxy.url),
            ServerProxy::Inherit | ServerProxy::Direct => None,
        };
        for url in std::iter::once(endpoint).chain(proxy) {
            let host = url.host_str().and_then(|host| Host::parse(host).ok());
            let checked = host.map(|host| self.dialer.permit_literal(&host, url.port_or_known_default().unwrap_or(0)));
            if let Some(Err(error)) = checked {
                let detail = Some(error.to_string());
                return Err(Failure::Retryable { reason: Reason::Unreachable, retry_after: None, detail });
            }
        }
        Ok(())
    }

    fn assertion_context<'a>(&'a self, token_url: &'a Url) -> AssertionContext<'a> {
        let issuer = self.connection.endpoints.issuer.as_deref();
        AssertionContext { token_url: token_url.as_str(), issuer, now: Clock::system().now().wall }
    }

    /// One `authorization_server.timeout` covers everything that one operation sends.
    async fn within_timeout<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let timeout = self.connection.authorization_server.timeout;
        tokio::pin!(call);
        if let Ok(result) = tokio::time::timeout(timeout, &mut call).await {
            return result;
        }
        tokio::time::timeout(LATE_RESPONSE_GRACE, call).await.unwrap_or_else(|_| Err(retryable(Reason::Timeout)))
    }
}

fn retryable(reason: Reason) -> Failure {
    Failure::Retryable { reason, retry_after: None, detail: reason.remedy().map(str::to_owned) }
}

fn refused(code: &str) -> Failure {
    Failure::Permanent(Refusal::from_code(code))
}
