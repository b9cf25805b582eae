//! One request to an authorization server, from its fields to what its answer means.
//!
//! Holds: one client authentication method for one request; the next secret is tried only when the server refuses the
//! client itself; the script sees what is sent, and cannot change where it goes.

use std::sync::atomic::Ordering;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use url::{Url, form_urlencoded};

use super::client_auth::{self, Proof};
use super::failure::Failure;
use super::form::Fields;
use super::posted::Posted;
use super::transport::{self, Timely, TokenResponse};
use super::verdict::Sent;
use super::{TokenEndpoint, Whose, query, refused, response, seen};
use crate::clock::Clock;
use crate::model::connection::{RequestEncoding, TokenResponseFormat};
use crate::model::token::TokenSet;
use crate::script::{self, Context, Script};
use crate::telemetry::traces::Span;

/// Form fields that no message may repeat.
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
/// Headers whose values are no secrets, whoever set them.
const PLAIN_HEADERS: [HeaderName; 4] =
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
        whose: Whose<'a>,
        sent: Sent,
    },
    Revocation,
    /// RFC 9126, RFC 8628 §3.1: nothing is granted yet.
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
    pub async fn prove_and_send<T>(
        &self,
        fields: &Fields,
        read: impl Fn(&TokenResponse, &Posted) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let TokenEndpoint { proofs, preferred, .. } = self.endpoint;
        let start = preferred.load(Ordering::Relaxed);
        let mut last = None;
        for index in (0..proofs.len()).map(|offset| (start + offset) % proofs.len()) {
            match self.send(&proofs[index], fields.clone(), &read).await {
                Err(failure) if failure.may_be_of_the_client() => {
                    // A gateway's response to one secret says nothing about it, whatever the others got.
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
        proof: &Proof,
        fields: Fields,
        read: impl Fn(&TokenResponse, &Posted) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut outgoing = self.outgoing(proof, fields).await?;
        if let (Some(script), Kind::Token { .. }) = (&self.endpoint.script, self.kind) {
            outgoing = self.shaped(script, outgoing)?;
        }
        let posted = self.posted(&outgoing);
        let request = self.request(outgoing);
        let span = self.endpoint.tracer.root(&Method::POST, || Clock::system().now().wall);
        let answer = transport::send(&self.endpoint.http, request).await;
        let connection = &self.endpoint.connection;
        let span_of_log =
            tracing::warn_span!("token_answer", connection = %connection.name, profile = %connection.profile);
        let _in_span = span_of_log.entered();
        let status = answer.as_ref().ok().map(|answer| answer.status);
        let value = match answer {
            Ok(answer) => read(&answer, &posted),
            Err(fault) => {
                let detail = Some(fault.detail).filter(|detail| !detail.is_empty());
                Err(Failure::Retryable { reason: fault.reason, retry_after: None, detail })
            }
        };
        if let Some(span) = span {
            self.end(span, status, value.as_ref().err());
        }
        value
    }

    async fn outgoing(&self, proof: &Proof, mut fields: Fields) -> Result<Outgoing, Failure> {
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
        proof.apply(&connection.client_id, &self.endpoint.moment(&token_url), &mut fields, &mut headers)?;
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

    /// As the script wants it.
    fn shaped(&self, script: &Script, outgoing: Outgoing) -> Result<Outgoing, Failure> {
        if !script.has_token_request() {
            return Ok(outgoing);
        }
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let given = self.posted(&outgoing);
        let headers = outgoing.headers.iter().map(text).collect();
        let request = script::Request { url: self.url.to_string(), headers, form: outgoing.fields };
        let shaped = script.token_request(request, &self.context());
        let shaped = shaped.map_err(|failure| self.script_failed(failure, &given))?;
        let mut headers = HeaderMap::new();
        for (name, value) in shaped.headers {
            // The script's own checks let nothing else pass.
            if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                value.set_sensitive(true);
                headers.append(name, value);
            }
        }
        Ok(Outgoing { headers, fields: shaped.form })
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
            // hyper leaves it out, and some servers (IIS, Azure) answer 411 without it.
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        }
        let mut request = reqwest::Request::new(Method::POST, url);
        *request.headers_mut() = headers;
        let sent_before = match self.kind {
            Kind::Token { whose, .. } => whose.sent_before,
            Kind::Revocation | Kind::Preparation => None,
        };
        *request.body_mut() = Some(match sent_before {
            Some(before) => reqwest::Body::wrap(Timely::new(body, before)),
            None => body.into(),
        });
        request
    }

    /// What the answer means, once the script has seen it.
    pub fn token_set(&self, answer: &TokenResponse, posted: &Posted) -> Result<TokenSet, Failure> {
        let (shape, sent) = (&self.endpoint.connection.token_response, self.kind.sent());
        let Some(script) = self.endpoint.script.as_ref().filter(|script| script.has_token_response()) else {
            return response::read(answer, shape, sent, posted);
        };
        match response::scripted(script, answer, &self.context()) {
            Ok((answer, true)) => response::read(&answer, &TokenResponseFormat::default(), sent, posted),
            Ok((answer, false)) => response::read(&answer, shape, sent, posted),
            // What says "not now" by itself is no fault of the script.
            Err(failure) => match response::read(answer, shape, sent, posted) {
                Err(retryable @ Failure::Retryable { .. }) if !answer.status.is_success() => Err(retryable),
                _ => {
                    let given = posted.and(seen::in_response(answer, shape));
                    Err(self.script_failed(failure, &given).after_the_answer())
                }
            },
        }
    }

    /// `given`: what the script was given beside its variables.
    pub fn script_failed(&self, failure: script::Failure, given: &Posted) -> Failure {
        let variables = self.endpoint.connection.variables.iter().map(|(_, value)| value.expose().to_owned());
        Failure::of_script(failure, &given.and(Posted::of(Vec::new(), variables.collect())))
    }

    pub fn context(&self) -> Context {
        let connection = &self.endpoint.connection;
        let (grant, subject) = match self.kind {
            Kind::Token { grant, whose, .. } => (grant, whose.subject.map(|subject| subject.as_str().to_owned())),
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

    fn posted(&self, outgoing: &Outgoing) -> Posted {
        let headers = outgoing.headers.iter().filter(|(name, _)| !PLAIN_HEADERS.contains(name));
        let headers = headers.filter_map(|(_, value)| value.to_str().ok());
        let secrets = headers.flat_map(client_auth::forms).chain(self.secrets(&outgoing.fields)).collect();
        Posted::new(&self.endpoint.connection.client_id, &outgoing.fields, secrets)
    }

    pub fn posted_fields(&self, fields: &Fields) -> Posted {
        Posted::new(&self.endpoint.connection.client_id, fields, self.secrets(fields).collect())
    }

    fn secrets<'f>(&'f self, fields: &'f Fields) -> impl Iterator<Item = crate::model::secret::Secret> + 'f {
        let client_id = self.endpoint.connection.client_id.as_str();
        let posted = fields.iter().filter(|(name, _)| SECRET_FIELDS.contains(&name.as_str()));
        let posted = posted.flat_map(|(_, value)| client_auth::forms(value));
        self.endpoint.proofs.iter().flat_map(move |proof| proof.forms(client_id)).chain(posted)
    }

    fn end(&self, mut span: Span, status: Option<StatusCode>, failure: Option<&Failure>) {
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
