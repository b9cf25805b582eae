//! One request to an authorization server, from its form fields to its outcome.
//!
//! Invariants: a request carries one client authentication method; the next client secret is tried only if the server
//! refuses the client itself; the script sees what is sent and cannot change its destination.

use std::sync::atomic::Ordering;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use url::{Url, form_urlencoded};

use super::client_auth::{self, ClientCredential};
use super::failure::Failure;
use super::form::Fields;
use super::redact::Redactor;
use super::transport::{self, Timely, TokenResponse};
use super::verdict::Sent;
use super::{TokenEndpoint, TokenRequestContext, discovery, query, refused, response, response_secrets};
use crate::clock::Clock;
use crate::model::connection::{DefinedIn, RequestEncoding, TokenResponseFormat};
use crate::model::secret::Secret;
use crate::model::token::TokenSet;
use crate::script::{self, Context, Script};
use crate::telemetry::traces::Span;

/// Form fields whose values no message may repeat.
const SECRET_FIELDS: [&str; 12] = [
    "password",
    "refresh_token",
    "client_secret",
    "client_assertion",
    "assertion",
    "subject_token",
    "actor_token",
    "token",
    "code",
    "code_verifier",
    "device_code",
    "state",
];
/// Headers whose values are not secret, even if the configuration or the script sets them.
const NON_SECRET_HEADERS: [HeaderName; 4] =
    [header::ACCEPT, header::CONTENT_TYPE, header::USER_AGENT, header::ACCEPT_LANGUAGE];
const USER_AGENT: &str = concat!("keybearer/", env!("CARGO_PKG_VERSION"));

pub struct Call<'a> {
    pub endpoint: &'a TokenEndpoint,
    pub url: Url,
    pub kind: Kind<'a>,
}

#[derive(Clone, Copy)]
pub enum Kind<'a> {
    Token {
        grant: &'a str,
        context: TokenRequestContext<'a>,
        sent: Sent,
    },
    Revocation,
    /// A pushed authorization request (RFC 9126) or a device authorization request (RFC 8628 §3.1): grants nothing yet.
    Preparation,
}

impl Kind<'_> {
    fn sent(self) -> Sent {
        match self {
            Kind::Token { sent, .. } => sent,
            Kind::Revocation | Kind::Preparation => Sent::Grant,
        }
    }
}

/// A request as it is about to leave.
struct Outgoing {
    headers: HeaderMap,
    fields: Fields,
}

impl Call<'_> {
    /// Sends the request with each client credential in order, starting with the one accepted last, until the server
    /// accepts the client.
    pub async fn authenticate_and_send<T>(
        &self,
        fields: &Fields,
        read: impl Fn(&TokenResponse, &Redactor) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let TokenEndpoint { credentials, preferred, connection, .. } = self.endpoint;
        if !connection.may_send_secrets_to(&self.url) {
            // Only metadata names such a host: those in the configuration were checked.
            let host = self.url.host_str().unwrap_or_default();
            return Err(discovery::incomplete(&format!(
                "names an endpoint at {host}, which is not among the `hosts` of the published secret"
            )));
        }
        self.endpoint.check_literals(&self.url)?;
        let start = preferred.load(Ordering::Relaxed);
        let mut last = None;
        for index in (0..credentials.len()).map(|offset| (start + offset) % credentials.len()) {
            match self.send(&credentials[index], fields.clone(), &read).await {
                Err(failure) if failure.may_be_client_refusal() => {
                    // A retryable failure may come from a gateway and proves nothing about the secret: it wins over the
                    // permanent refusals of the others.
                    last = last.filter(|last: &Failure| !last.is_permanent()).or(Some(failure));
                }
                Err(failure) => return Err(failure),
                Ok(value) => {
                    preferred.store(index, Ordering::Relaxed);
                    return Ok(value);
                }
            }
        }
        Err(last.unwrap_or_else(|| refused("invalid_client")))
    }

    async fn send<T>(
        &self,
        credential: &ClientCredential,
        fields: Fields,
        read: impl Fn(&TokenResponse, &Redactor) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut outgoing = self.outgoing(credential, fields).await?;
        if let (Some(script), Kind::Token { .. }) = (&self.endpoint.script, self.kind) {
            outgoing = self.scripted(script, outgoing)?;
        }
        let redactor = self.redactor(&outgoing);
        let request = self.request(outgoing);
        let span = self.endpoint.tracer.root(&Method::POST, || Clock::system().now().wall);
        let response = transport::send(self.endpoint.http.to(&self.url), request).await;
        let connection = &self.endpoint.connection;
        let log_span =
            tracing::warn_span!("token_response", connection = %connection.name, profile = %connection.profile);
        let _entered = log_span.entered();
        let status = response.as_ref().ok().map(|response| response.status);
        let value = match response {
            Ok(response) => read(&response, &redactor),
            Err(error) => {
                let detail = Some(error.detail).filter(|detail| !detail.is_empty());
                Err(Failure::Retryable { reason: error.reason, retry_after: None, detail })
            }
        };
        if let Some(span) = span {
            self.end_span(span, status, value.as_ref().err());
        }
        value
    }

    async fn outgoing(&self, credential: &ClientCredential, mut fields: Fields) -> Result<Outgoing, Failure> {
        let connection = &self.endpoint.connection;
        let token_url = match self.kind {
            Kind::Token { .. } => self.url.clone(),
            Kind::Revocation | Kind::Preparation => {
                self.endpoint.token_url().await.unwrap_or_else(|_| self.url.clone())
            }
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        credential.apply(
            &connection.client_id,
            &self.endpoint.assertion_context(&token_url),
            &mut fields,
            &mut headers,
        )?;
        if matches!(self.kind, Kind::Token { .. }) {
            for (name, value) in &connection.token_request.headers {
                if let Ok(mut value) = HeaderValue::try_from(value.expose()) {
                    value.set_sensitive(true);
                    headers.insert(name, value);
                }
            }
        }
        Ok(Outgoing { headers, fields })
    }

    /// Passes the request through the script's `token_request`.
    fn scripted(&self, script: &Script, outgoing: Outgoing) -> Result<Outgoing, Failure> {
        if !script.has_token_request() {
            return Ok(outgoing);
        }
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let given = self.redactor(&outgoing);
        let headers = outgoing.headers.iter().map(text).collect();
        let request = script::Request { url: self.url.to_string(), headers, form: outgoing.fields };
        let scripted = script.token_request(request, &self.script_context());
        let scripted = scripted.map_err(|failure| self.script_failed(failure, &given))?;
        let mut headers = HeaderMap::new();
        for (name, value) in scripted.headers {
            // The script module has checked names and values.
            if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                value.set_sensitive(true);
                headers.append(name, value);
            }
        }
        Ok(Outgoing { headers, fields: scripted.form })
    }

    fn request(&self, Outgoing { mut headers, fields }: Outgoing) -> reqwest::Request {
        let encoding = match self.kind {
            Kind::Token { .. } => self.endpoint.connection.token_request.encoding,
            Kind::Revocation | Kind::Preparation => RequestEncoding::Form,
        };
        let mut url = self.url.clone();
        let (content_type, body) = match encoding {
            RequestEncoding::Form => {
                let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&fields).finish();
                (Some("application/x-www-form-urlencoded"), body)
            }
            RequestEncoding::Json => {
                let members: serde_json::Map<_, _> =
                    fields.into_iter().map(|(name, value)| (name, value.into())).collect();
                (Some("application/json"), serde_json::Value::from(members).to_string())
            }
            RequestEncoding::Query => {
                url = query::token_request(&url, &fields);
                (None, String::new())
            }
        };
        if let Some(content_type) = content_type.filter(|_| !headers.contains_key(header::CONTENT_TYPE)) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if body.is_empty() {
            // hyper omits it for an empty body, and some servers (IIS, Azure) respond 411 without it.
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        }
        let mut request = reqwest::Request::new(Method::POST, url);
        *request.headers_mut() = headers;
        let send_deadline = match self.kind {
            Kind::Token { context, .. } => context.send_deadline,
            Kind::Revocation | Kind::Preparation => None,
        };
        *request.body_mut() = Some(match send_deadline {
            Some(before) => reqwest::Body::wrap(Timely::new(body, before)),
            None => body.into(),
        });
        request
    }

    /// The token set of a response, which the script sees first.
    pub fn token_set(&self, response: &TokenResponse, redactor: &Redactor) -> Result<TokenSet, Failure> {
        let (format, sent) = (&self.endpoint.connection.token_response, self.kind.sent());
        let Some(script) = self.endpoint.script.as_ref().filter(|script| script.has_token_response()) else {
            return response::read(response, format, sent, redactor);
        };
        match response::scripted(script, response, &self.script_context()) {
            Ok((response, true)) => response::read(&response, &TokenResponseFormat::default(), sent, redactor),
            Ok((response, false)) => response::read(&response, format, sent, redactor),
            // A response that is retryable without the script stays retryable, whatever the script does with it.
            Err(failure) => match response::read(response, format, sent, redactor) {
                Err(retryable @ Failure::Retryable { .. }) if !response.status.is_success() => Err(retryable),
                _ => {
                    let given = redactor.and(response_secrets::redactor(response, format));
                    Err(self.script_failed(failure, &given).after_response())
                }
            },
        }
    }

    /// `given`: what the script received in addition to its variables.
    pub fn script_failed(&self, failure: script::Failure, given: &Redactor) -> Failure {
        if self.hides_script_text() {
            return Failure::from_script(failure, None);
        }
        let variables = self.endpoint.connection.variables.iter().map(|(_, value)| value.expose().to_owned());
        Failure::from_script(failure, Some(&given.and(Redactor::from_parts(Vec::new(), variables.collect()))))
    }

    /// True if the script's author, a manager, must not see what the request carries: a code, or a token of a person or
    /// a caller. A script can spell it in a way that no redactor recognizes.
    fn hides_script_text(&self) -> bool {
        let connection = &self.endpoint.connection;
        let is_of_api = matches!(connection.written.defined_in, DefinedIn::Api(_));
        is_of_api
            && match self.kind {
                Kind::Token { sent: Sent::RefreshToken { .. }, .. } => true,
                Kind::Token { sent: Sent::Grant, .. } => connection.grant.sends_code_or_token(),
                Kind::Revocation | Kind::Preparation => false,
            }
    }

    pub fn script_context(&self) -> Context {
        let connection = &self.endpoint.connection;
        let (grant, subject) = match self.kind {
            Kind::Token { grant, context, .. } => (grant, context.subject.map(|subject| subject.as_str().to_owned())),
            Kind::Revocation | Kind::Preparation => (self.endpoint.connection.grant.as_str(), None),
        };
        Context {
            connection: connection.name.to_string(),
            profile: connection.profile.to_string(),
            subject,
            grant: grant.to_owned(),
            variables: connection.variables.clone(),
            now: Clock::system().now().wall,
        }
    }

    fn redactor(&self, outgoing: &Outgoing) -> Redactor {
        let headers = outgoing.headers.iter().filter(|(name, _)| !NON_SECRET_HEADERS.contains(name));
        let headers = headers.filter_map(|(_, value)| value.to_str().ok());
        let secrets = headers.flat_map(client_auth::encodings).chain(self.secrets(&outgoing.fields)).collect();
        Redactor::new(&self.endpoint.connection.client_id, &outgoing.fields, secrets)
    }

    pub fn redactor_for_fields(&self, fields: &Fields) -> Redactor {
        Redactor::new(&self.endpoint.connection.client_id, fields, self.secrets(fields).collect())
    }

    fn secrets<'f>(&'f self, fields: &'f Fields) -> impl Iterator<Item = Secret> + 'f {
        let client_id = self.endpoint.connection.client_id.as_str();
        let field_secrets = fields.iter().filter(|(name, _)| SECRET_FIELDS.contains(&name.as_str()));
        let field_secrets = field_secrets.flat_map(|(_, value)| client_auth::encodings(value));
        self.endpoint
            .credentials
            .iter()
            .flat_map(move |credential| credential.encodings(client_id))
            .chain(field_secrets)
    }

    fn end_span(&self, mut span: Span, status: Option<StatusCode>, failure: Option<&Failure>) {
        span.set("url.scheme", self.url.scheme().to_owned());
        span.set("url.path", self.url.path().to_owned());
        span.set("server.address", self.url.host_str().unwrap_or_default().to_owned());
        span.set("server.port", i64::from(self.url.port_or_known_default().unwrap_or(0)));
        span.set("keybearer.connection", self.endpoint.connection.name.to_string());
        span.set("keybearer.profile", self.endpoint.connection.profile.to_string());
        if let Some(status) = status {
            span.set("http.response.status_code", i64::from(status.as_u16()));
        }
        if let Some(failure) = failure {
            span.fail(failure.outcome().as_str());
        }
        span.end();
    }
}
