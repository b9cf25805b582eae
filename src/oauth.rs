//! The token endpoint client: one request of one connection, and what came of it.
//!
//! Not here: when to ask again (`token::schedule`), what becomes of the token (`token::acquire`).
//! Holds: oauth2 builds each request as a form without a secret, and from there every grant goes one way: `client_auth`,
//! `transport::send`, `response::read`. A request carries one client authentication method. No error holds a secret,
//! a token or a body.

mod client_auth;
mod failure;
mod grant;
mod json;
mod response;
mod retry_after;
#[cfg(test)]
mod tests;
mod transport;

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use oauth2::basic::BasicErrorResponse;
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse, RequestTokenError};
use url::{Url, form_urlencoded};

use crate::clock::Clock;
use crate::model::connection::Connection;
use crate::model::token::{RefreshToken, TokenSet};
use crate::telemetry::traces::{Span, Tracer};

use client_auth::Proof;
use failure::Posted;
use grant::Fields;

pub use failure::{Failure, Outcome, Reason, Refusal};
pub use transport::{ClientError, HttpClients};

/// The contract's word for a connection that waits for a person.
pub const CONSENT_REQUIRED: &str = "consent_required";

/// Form fields, those of the client's own proof apart, that no message may repeat.
const SECRET_FIELDS: [&str; 2] = ["password", "refresh_token"];

const USER_AGENT: &str = concat!("keybearer/", env!("CARGO_PKG_VERSION"));

/// What oauth2 gets to read once `response::read` has taken the real answer: a token that nobody uses.
const PLACEHOLDER: &str = r#"{"access_token":"-","token_type":"bearer"}"#;

/// The token endpoint of one connection.
pub struct TokenEndpoint {
    connection: Arc<Connection>,
    url: Url,
    http: reqwest::Client,
    oauth: grant::Client,
    tracer: Tracer,
    /// Which of the client secrets worked last.
    preferred: AtomicUsize,
}

impl TokenEndpoint {
    pub fn new(connection: Arc<Connection>, clients: &HttpClients) -> Result<TokenEndpoint, ClientError> {
        let http = clients.get(connection.authorization_server.trust.as_ref())?;
        let url = transport::without_userinfo(&connection.token_url);
        let oauth = grant::client(&connection.client_id, &url);
        let tracer = clients.tracer.clone();
        Ok(TokenEndpoint { connection, url, http, oauth, tracer, preferred: AtomicUsize::new(0) })
    }

    /// One token request by the connection's own grant; a grant that needs a person is refused without asking. Of several
    /// client secrets the next one is tried only when the server refuses the client itself, all within one
    /// `authorization_server.timeout`.
    pub async fn first_grant(&self) -> Result<TokenSet, Failure> {
        let courier = Courier { endpoint: self, delivered: OnceLock::new() };
        match grant::first(&self.oauth, &self.connection, &courier).await {
            Some(outcome) => courier.delivered(outcome),
            None => Err(Failure::Permanent(Refusal::of_code(CONSENT_REQUIRED))),
        }
    }

    /// One token request with a refresh token, in the same way.
    pub async fn refresh(&self, token: &RefreshToken) -> Result<TokenSet, Failure> {
        let courier = Courier { endpoint: self, delivered: OnceLock::new() };
        let outcome = grant::refresh(&self.oauth, &self.connection, token, &courier).await;
        courier.delivered(outcome)
    }

    async fn prove_and_send(&self, fields: &Fields) -> Result<TokenSet, Failure> {
        let client_id = self.connection.client_id.as_str();
        let proofs = client_auth::proofs(&self.connection.client_auth);
        let posted_secrets = fields.iter().filter(|(name, _)| SECRET_FIELDS.contains(&name.as_str()));
        let posted_secrets = posted_secrets.flat_map(|(_, value)| client_auth::forms(value));
        let secrets = proofs.iter().flat_map(|proof| proof.forms(client_id)).chain(posted_secrets).collect();
        let posted = Posted::new(client_id, fields, secrets);
        let start = self.preferred.load(Ordering::Relaxed);
        let mut refused = None;
        for index in (0..proofs.len()).map(|offset| (start + offset) % proofs.len()) {
            match self.send(&proofs[index], fields.clone(), &posted).await {
                Err(Failure::Permanent(refusal)) if refusal.is_of_the_client() => refused = Some(refusal),
                Err(failure) => return Err(failure),
                Ok(token) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(token);
                }
            }
        }
        Err(Failure::Permanent(refused.unwrap_or_else(|| Refusal::of_code("invalid_client"))))
    }

    async fn send(&self, proof: &Proof<'_>, mut fields: Fields, posted: &Posted) -> Result<TokenSet, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        proof.apply(&self.connection.client_id, &mut fields, &mut headers);

        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&fields).finish();
        let mut request = reqwest::Request::new(http::Method::POST, self.url.clone());
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body.into());

        let span = self.tracer.root(&http::Method::POST, || Clock::system().now().wall);
        let answer = transport::send(&self.http, request).await;
        let _in_span = tracing::warn_span!("token_answer", connection = %self.connection.name).entered();
        let status = answer.as_ref().ok().map(|answer| answer.status);
        let token = match answer {
            Ok(answer) => response::read(&answer, posted),
            Err(fault) => {
                let detail = Some(fault.detail).filter(|detail| !detail.is_empty());
                Err(Failure::Retryable { reason: fault.reason, retry_after: None, detail })
            }
        };
        if let Some(span) = span {
            self.end(span, status, token.as_ref().err());
        }
        token
    }

    fn end(&self, mut span: Span, status: Option<StatusCode>, failure: Option<&Failure>) {
        span.set("url.scheme", self.url.scheme().to_owned());
        span.set("url.path", self.url.path().to_owned());
        span.set("server.address", self.url.host_str().unwrap_or_default().to_owned());
        span.set("server.port", i64::from(self.url.port_or_known_default().unwrap_or(0)));
        span.set("keybearer.connection", self.connection.name.to_string());
        span.set("keybearer.profile", "default");
        if let Some(status) = status {
            span.set("http.response.status_code", i64::from(status.as_u16()));
        }
        if let Some(failure) = failure {
            span.fail(failure.outcome().as_str());
        }
        span.end();
    }
}

fn retryable(reason: Reason) -> Failure {
    Failure::Retryable { reason, retry_after: None, detail: None }
}

/// The HTTP client that oauth2 sees: carries the form our way and keeps the token it brought back.
struct Courier<'a> {
    endpoint: &'a TokenEndpoint,
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
        self.delivered.into_inner().ok_or(Failure::Permanent(Refusal::of_code("invalid_token_url")))
    }

    async fn carry(&self, request: HttpRequest) -> Result<HttpResponse, Failure> {
        let fields = grant::fields(request.body());
        let timeout = self.endpoint.connection.authorization_server.timeout;
        let token = tokio::time::timeout(timeout, self.endpoint.prove_and_send(&fields)).await;
        let token = token.unwrap_or_else(|_| Err(retryable(Reason::Timeout)))?;
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
