//! `POST test`: sends one request with the connection's token and reports the status.
//!
//! Invariants: the URL matches a route of the connection and is dialled as the proxy would dial it; the token is sent
//! only to an origin that it was granted for; no redirect is followed, no body is sent or shown.
//! Not here: the data plane (`proxy`); the request bypasses it.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use url::Url;

use super::problem::{Problem, no_token};
use super::view::TOKEN_STATES;
use crate::clock::Clock;
use crate::gate::Turn;
use crate::model::Name;
use crate::model::connection::{
    ACCESS_TOKEN, Connection, HostPattern, Inject, OtherBearer, PathPrefix, PortRule, Route, RouteMatch, Stripped,
};
use crate::model::origin::{Authority, Host, Origin, Scheme};
use crate::model::query;
use crate::model::token::Subject;
use crate::router::{Callers, Found, Label, Named, Router};
use crate::snapshot::{BoundConnection, Snapshot, TlsProfile};
use crate::token::Slots;
use crate::token::slot::{InjectedToken, TokenSlot};

/// Timeout of the whole test, including the wait for a token.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("keybearer/", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrialRequest {
    /// Absent: the default profile.
    #[schemars(regex(pattern = Name::PATTERN))]
    pub profile: Option<String>,
    /// Required if the connection has a token for each subject.
    #[schemars(regex(pattern = Subject::PATTERN))]
    pub subject: Option<String>,
    /// Absent: the URL of the first route that names one host.
    url: Option<String>,
    /// Absent: GET.
    #[schemars(extend("enum" = ["GET", "HEAD", null]))]
    method: Option<String>,
}

/// The outcome of a test.
#[derive(Serialize, JsonSchema)]
pub struct TrialResult {
    profile: String,
    /// The state of the token.
    #[schemars(extend("enum" = TOKEN_STATES))]
    token: &'static str,
    /// Without its query.
    url: String,
    method: String,
    /// The status of the response.
    status: u16,
    duration_ms: u64,
}

/// A checked request.
pub struct Trial<'a> {
    url: Url,
    method: Method,
    /// The origin that is dialled.
    origin: Origin,
    connection: &'a Connection,
    route: &'a Route,
    tls: &'a TlsProfile,
}

fn url_refused(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "url_refused", detail)
}

impl<'a> Trial<'a> {
    /// Checks the request against the routes that inject the token of this `definition`.
    pub fn new(
        bound: &'a BoundConnection,
        definition: &Connection,
        requested: TrialRequest,
    ) -> Result<Trial<'a>, Problem> {
        let method = match requested.method.as_deref() {
            None | Some("GET") => Method::GET,
            Some("HEAD") => Method::HEAD,
            Some(_) => return Err(url_refused("the method must be GET or HEAD")),
        };
        let routes = &bound.connection.routes;
        let url = match requested.url {
            Some(url) => url,
            None => {
                let mut carrying = routes.iter().filter(|route| route.carries(&definition.profile));
                carrying
                    .find_map(default_url)
                    .ok_or_else(|| url_refused("no route names exactly one host; set `url`"))?
            }
        };
        let url = Url::parse(&url).map_err(|_| url_refused("the URL is invalid"))?;
        let requested = origin(&url)?;
        let Connection { name, profile, .. } = definition;
        let label = || Label { connection: name.clone(), profile: profile.clone(), bare: true };
        let carrying = (0..).zip(routes).filter(|(_, route)| route.carries(profile));
        let routes_by_host =
            carrying.filter_map(|(at, route)| Some((as_host_route(route)?, label(), Callers::All, at)));
        let router: Router<usize> = Router::new(routes_by_host);
        let named = Named { connection: name.as_str(), profile: None };
        let no_route = || {
            url_refused(format!("no route of this connection with the profile `{profile}` matches this URL and method"))
        };
        let Found::Route(at) = router.find(&requested, url.path(), &method, None, Some(named)) else {
            return Err(no_route());
        };
        let (Some(route), Some(tls)) = (routes.get(*at), bound.tls.get(*at)) else { return Err(no_route()) };
        let origin = match &route.matches {
            RouteMatch::Host { port, .. } => route.tls.upstream_origin(*port, &requested),
            RouteMatch::Mount { upstream, .. } => upstream.clone(),
        };
        Ok(Trial { url, method, origin, connection: &bound.connection, route, tls })
    }

    pub fn host(&self) -> String {
        self.origin.authority()
    }

    pub fn path(&self) -> &str {
        self.url.path()
    }

    pub fn method(&self) -> &str {
        self.method.as_str()
    }

    pub fn injects(&self) -> bool {
        self.route.inject != Inject::Nothing
    }

    /// Sends the request. Returns the response's status and the result.
    pub async fn run(
        self,
        snapshot: &Snapshot,
        slot: &TokenSlot,
        clock: &Clock,
    ) -> Result<(StatusCode, TrialResult), Problem> {
        let deadline = Instant::now() + TEST_TIMEOUT;
        let (mut target, mut headers) = (self.target()?, HeaderMap::new());
        headers.extend(self.route.set_headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        if self.injects() {
            let wait = deadline.min(Instant::now() + snapshot.timeouts.token_wait);
            let token = slot.token(clock, wait).await.map_err(no_token)?;
            self.inject(&self.route.inject, &mut target, &mut headers, &token)?;
        }
        for other in &self.route.others {
            let name = &other.connection;
            let bound = snapshot.connections.iter().find(|bound| bound.connection.name == *name);
            let slots = bound.and_then(|bound| bound.definitions.first()?.slots.as_ref());
            let not_shared = || {
                url_refused(format!(
                    "the route also injects a token of {name}, which has no token shared by all callers"
                ))
            };
            let slot = slots.and_then(Slots::shared).ok_or_else(not_shared)?;
            let wait = deadline.min(Instant::now() + snapshot.timeouts.token_wait);
            let token = slot.token(clock, wait).await.map_err(no_token)?;
            self.inject(&other.inject, &mut target, &mut headers, &token)?;
        }
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(target)
            .header(header::HOST, self.origin.authority())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, HeaderValue::from_static("*/*"));
        if let Some(request_headers) = request.headers_mut() {
            request_headers.extend(headers);
        }
        let request = request.body(Empty::new());
        let request = request.map_err(|_| url_refused("the URL cannot be sent"))?;
        let started = Instant::now();
        let status = match tokio::time::timeout_at(deadline, self.send(snapshot, request)).await {
            Ok(status) => status?,
            Err(_) => {
                let detail = "the upstream did not respond within ten seconds";
                return Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", detail));
            }
        };
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut shown = self.url.clone();
        // The query may hold a key.
        shown.set_query(None);
        shown.set_fragment(None);
        let result = TrialResult {
            profile: slot.key.profile.to_string(),
            token: slot.state().name(clock.now()),
            url: shown.into(),
            method: self.method.to_string(),
            status: status.as_u16(),
            duration_ms,
        };
        Ok((status, result))
    }

    /// The request target, without the credentials in the query that the proxy would remove.
    fn target(&self) -> Result<PathAndQuery, Problem> {
        let text = &self.url[url::Position::BeforePath..url::Position::AfterQuery];
        let mut target = PathAndQuery::try_from(text).map_err(|_| url_refused("the URL cannot be sent"))?;
        if let Some(stripped) = Stripped::of(self.route) {
            query::remove(&mut target, |name| stripped.has_parameter(name));
        }
        if self.route.other_bearer() == Some(OtherBearer::Parameter) {
            query::remove(&mut target, |name| name == ACCESS_TOKEN);
        }
        Ok(target)
    }

    /// Injects the token, if it was granted for this origin.
    fn inject(
        &self,
        inject: &Inject,
        target: &mut PathAndQuery,
        headers: &mut HeaderMap,
        token: &InjectedToken,
    ) -> Result<(), Problem> {
        let denied = || url_refused("the token was not granted for the origin of this URL");
        match inject {
            Inject::Header { header, scheme } => {
                headers.insert(header, token.header_for(&self.origin, scheme).ok_or_else(denied)?);
            }
            Inject::Query { name } => {
                let text = token.text_for(&self.origin).ok_or_else(denied)?;
                query::remove(target, |existing| existing == name);
                *target = query::append(target, name, text)
                    .ok_or_else(|| url_refused("the URL is too long with the token"))?;
            }
            Inject::Nothing => {}
        }
        Ok(())
    }

    async fn send(&self, snapshot: &Snapshot, request: Request<Empty<Bytes>>) -> Result<StatusCode, Problem> {
        let failed = |code, what: String| Problem::new(StatusCode::BAD_GATEWAY, code, what);
        let dialer = snapshot.clients.dialer_for(&self.connection.written);
        let stream = dialer.connect(&self.origin, &Turn::Own).await;
        let stream = stream.map_err(|error| failed("upstream_unreachable", error.to_string()))?;
        if self.origin.scheme == Scheme::Http {
            return exchange(stream, request).await;
        }
        let name = self.route.tls.server_name.as_ref().unwrap_or(&self.origin.host);
        let name = match name {
            Host::Ip(address) => ServerName::from(*address),
            Host::Name(name) => ServerName::try_from(name.to_string())
                .map_err(|_| url_refused("the host is not a valid TLS server name"))?,
        };
        let stream = TlsConnector::from(self.tls.http1.clone()).connect(name, stream).await;
        exchange(
            stream
                .map_err(|error| failed("upstream_tls", format!("TLS handshake with the upstream failed: {error}")))?,
            request,
        )
        .await
    }
}

/// Sends the request and reads the response head; the connection is then closed.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<StatusCode, Problem>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |_: hyper::Error| {
        let detail = "the upstream's response is not valid HTTP/1.1";
        Problem::new(StatusCode::BAD_GATEWAY, "upstream_protocol", detail)
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let response = sender.send_request(request);
    tokio::pin!(response, connection);
    tokio::select! {
        biased;
        response = &mut response => response.map(|response| response.status()).map_err(failed),
        // One poll may both read the response head and end the connection.
        _ = &mut connection => response.await.map(|response| response.status()).map_err(failed),
    }
}

fn origin(url: &Url) -> Result<Origin, Problem> {
    let scheme = match url.scheme() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err(url_refused("the URL must be http or https")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(url_refused("the URL has a user name or a password; remove it"));
    }
    let host = url
        .host_str()
        .and_then(|host| Host::parse(host).ok())
        .ok_or_else(|| url_refused("the URL's host is invalid"))?;
    Ok(Origin::new(scheme, Authority { host, port: url.port() }))
}

/// Converts the route to a host route: a mount becomes a route for the host of its upstream.
fn as_host_route(route: &Route) -> Option<Route> {
    let RouteMatch::Mount { upstream, base, .. } = &route.matches else { return Some(route.clone()) };
    let mut host_route = route.clone();
    let pattern = HostPattern::Exact(upstream.host.clone());
    host_route.tls.upgrade = upstream.scheme == Scheme::Https;
    host_route.matches = RouteMatch::Host { pattern, port: PortRule::Stated(upstream.port) };
    let path = format!("{}{}", base.as_str(), route.path.as_str());
    host_route.path = if path.is_empty() { PathPrefix::root() } else { PathPrefix::parse(&path)? };
    Some(host_route)
}

/// A URL that the route matches, if it names exactly one host.
fn default_url(route: &Route) -> Option<String> {
    let route = as_host_route(route)?;
    let RouteMatch::Host { pattern: HostPattern::Exact(host), port } = &route.matches else { return None };
    let scheme = if route.tls.upgrade { "https" } else { "http" };
    let port = match port {
        PortRule::Stated(port) => format!(":{port}"),
        PortRule::Default | PortRule::Any => String::new(),
    };
    let path = if route.path.is_root() { "/" } else { route.path.as_str() };
    Some(format!("{scheme}://{host}{port}{path}"))
}
