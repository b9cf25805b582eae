//! The lifecycle of a token under faults: cold, due, expired, revoked, refused, as callers and servers see it.
//!
//! Uses real servers where they can produce the case, else `Scripted` ones. Not here: client libraries (`clients`).

mod cold;
mod outages;
mod rejection;
mod requests;
mod responses;
mod secrets;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::rig::config::{Config, Connection};
use crate::rig::peers::Peers;
use crate::rig::raw::{self, RawResponse};
use crate::rig::scripted::{Received, Scripted};
use crate::rig::sidecar::Sidecar;

/// Timeout for a state to be reached.
const TIMEOUT: Duration = Duration::from_secs(20);
const URL: &str = "http://api.test/x";
/// Ready without waiting for tokens, so that requests find the slot cold.
const COLD: &str = "readiness: {wait_for_tokens: 0s}\n";

/// A configuration with one connection, `crm`, and one route, `api.test`.
struct Crm<'a> {
    token_url: String,
    upstream: SocketAddr,
    /// Further top-level keys, as whole lines.
    top: &'a str,
    client: &'a [&'a str],
    keys: &'a [&'a str],
    route: &'a str,
}

fn crm<'a>(token_url: impl Into<String>, upstream: SocketAddr) -> Crm<'a> {
    let client = &["client_id: machine", "client_secret: machine-secret"];
    Crm { token_url: token_url.into(), upstream, top: "", client, keys: &[], route: "" }
}

impl Crm<'_> {
    fn text(&self) -> String {
        let Crm { token_url, upstream, top, client, keys, route } = self;
        let trust = match token_url.starts_with("https") {
            true => format!("trust: [\"{}\"]\n", Peers::certs().ca.display()),
            false => String::new(),
        };
        let keys: String = client.iter().chain(*keys).map(|key| format!("  {key}\n")).collect();
        format!(
            "{top}{trust}hosts: {{api.test: \"{upstream}\"}}\nconnections:\n- name: crm\n  \
             token_url: {token_url}\n{keys}  \
             routes: [{{host: api.test, upstream_tls: false{route}}}]\n"
        )
    }
}

/// Connections `c0`, `c1`, … with the hosts `c0.test`, … and the token URLs `/c0`, … of one server, one per item of
/// `keys`.
fn numbered(server: &Scripted, upstream: &Scripted, keys: &[&str]) -> String {
    let with = |config: Config, (n, keys): (usize, &&str)| {
        let (name, host) = (format!("c{n}"), format!("c{n}.test"));
        let connection = Connection::new(&name, format_args!("http://{}/{name}", server.address)).client(keys);
        config.host(&host, upstream.address).connection(connection.plain(&host))
    };
    keys.iter().enumerate().fold(Config::new(), with).to_string()
}

/// The number of the connection that sent the request, by its token URL's path.
fn number(request: &Received) -> usize {
    let path = request.request_line().split(' ').nth(1).unwrap_or_default();
    path.trim_start_matches("/c").parse().expect("a path of `numbered`")
}

fn token_url(server: &Scripted) -> String {
    format!("http://{}/token", server.address)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn get(sidecar: &Sidecar) -> RawResponse {
    raw::get_through(sidecar.proxy(), URL, "").await
}

async fn get_concurrently(sidecar: &Sidecar, count: usize) -> Vec<RawResponse> {
    join_all((0..count).map(|_| get(sidecar))).await
}

async fn token_requests(sidecar: &Sidecar, connection: &str, outcome: &str) -> f64 {
    let labels = format!("connection=\"{connection}\",profile=\"default\",grant=\"client_credentials\"");
    sidecar.metric(&format!("keybearer_token_requests_total{{{labels},outcome=\"{outcome}\"}}")).await
}

async fn expiry(sidecar: &Sidecar, connection: &str) -> f64 {
    let labels = format!("connection=\"{connection}\",profile=\"default\"");
    sidecar.metric(&format!("keybearer_token_expiry_timestamp_seconds{{{labels}}}")).await
}

fn wall_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// Polls until the condition holds.
async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let held = async {
        while !condition().await {
            sleep(Duration::from_millis(30)).await;
        }
    };
    timeout(TIMEOUT, held).await.unwrap_or_else(|_| panic!("timed out waiting: {what}"));
}

/// Sends sequential requests for this duration; none may fail or take longer than `slowest`. Returns their number.
async fn steadily_served(sidecar: &Sidecar, span: Duration, slowest: Duration) -> usize {
    let end = Instant::now() + span;
    let mut count = 0;
    while Instant::now() < end {
        let began = Instant::now();
        let response = get(sidecar).await;
        let took = began.elapsed();
        assert_eq!(response.status, 200, "request {count}: {}\n{}", response.text(), sidecar.log());
        assert!(took < slowest, "request {count} took {took:?}\n{}", sidecar.log());
        count += 1;
        sleep(Duration::from_millis(20)).await;
    }
    count
}

/// The distinct `Authorization` values that arrived.
fn authorization_values(received: &[Received]) -> BTreeSet<String> {
    received.iter().flat_map(|request| request.values("authorization")).map(str::to_owned).collect()
}

/// Checks every part of a response that the proxy itself generated.
#[track_caller]
fn check_own(response: &RawResponse, status: u16, code: &str, action: &str) {
    assert_eq!((response.status, response.code()), (status, code), "{}", response.text());
    let problem = response.json();
    assert_eq!((&problem["code"], &problem["action"]), (&json!(code), &json!(action)));
    assert_eq!(problem["type"], format!("urn:keybearer:error:{code}"));
    assert!(response.header("proxy-status").is_some_and(|value| value.starts_with("keybearer; error=")));
    let retry_after = response.header("retry-after").map(|value| value.parse::<u64>().expect("seconds"));
    match status {
        503 => assert!(retry_after.is_some_and(|seconds| (1..=300).contains(&seconds)), "{retry_after:?}"),
        _ => assert_eq!(retry_after, None, "a retry would be useless"),
    }
}

#[track_caller]
fn check_unavailable(response: &RawResponse) {
    check_own(response, 503, "token_unavailable", "retry_later");
}
