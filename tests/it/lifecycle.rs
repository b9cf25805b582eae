//! The life of a token under faults: cold, due, expired, revoked, refused, and what callers and servers see of it.
//!
//! Not here: client libraries (`clients`). Real servers where they can be made to show it, `Scripted` ones otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use url::form_urlencoded;

use crate::rig::peers::{AuthorizationServer, BASIC_CLIENT_SECRET, CLIENT_SECRET, Peers, Upstream};
use crate::rig::raw::{self, Answer, Conn};
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

/// How long a state may take to come about.
const PATIENCE: Duration = Duration::from_secs(20);
const URL: &str = "http://api.test/x";
/// No token is waited for: requests find the slot cold.
const COLD: &str = "readiness: {wait_for_tokens: 0s}\n";

// --- configuration and requests --------------------------------------------------------------------------------------

/// A configuration with one connection, `crm`, and one route, `api.test`.
struct Crm<'a> {
    token_url: String,
    upstream: SocketAddr,
    /// Whole lines beside `connections`.
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

/// Connections `c0`, `c1`, … with the hosts `c0.test`, … and the token URLs `/c0`, … of one server; each its own keys.
fn numbered(server: &Scripted, upstream: &Scripted, keys: &[&str]) -> String {
    let hosts: Vec<_> = (0..keys.len()).map(|n| format!("c{n}.test: \"{}\"", upstream.address)).collect();
    let connections = keys.iter().enumerate().map(|(n, keys)| {
        let url = format!("http://{}/c{n}", server.address);
        format!("- {{name: c{n}, token_url: \"{url}\", {keys}, routes: [{{host: c{n}.test, upstream_tls: false}}]}}\n")
    });
    format!("hosts: {{{}}}\nconnections:\n{}", hosts.join(", "), connections.collect::<String>())
}

/// The number of the connection that asks, by its token URL's path.
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

async fn get(sidecar: &Sidecar) -> Answer {
    raw::get_through(sidecar.proxy(), URL, "").await
}

async fn get_numbered(sidecar: &Sidecar, number: usize) -> Answer {
    raw::get_through(sidecar.proxy(), &format!("http://c{number}.test/"), "").await
}

async fn at_once(sidecar: &Sidecar, count: usize) -> Vec<Answer> {
    join_all((0..count).map(|_| get(sidecar))).await
}

async fn post(sidecar: &Sidecar, body: &[u8]) -> Answer {
    let length = body.len();
    let head =
        format!("POST {URL} HTTP/1.1\r\nHost: api.test\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    raw::send(sidecar.proxy(), &[head.as_bytes(), body].concat()).await
}

async fn token_requests(sidecar: &Sidecar, connection: &str, outcome: &str) -> f64 {
    let labels = format!("connection=\"{connection}\",profile=\"default\",grant=\"client_credentials\"");
    sidecar.metric(&format!("keybearer_token_requests_total{{{labels},outcome=\"{outcome}\"}}")).await
}

async fn replays(sidecar: &Sidecar, outcome: &str) -> f64 {
    sidecar.metric(&format!("keybearer_replays_total{{connection=\"crm\",outcome=\"{outcome}\"}}")).await
}

async fn expiry(sidecar: &Sidecar, connection: &str) -> f64 {
    let labels = format!("connection=\"{connection}\",profile=\"default\"");
    sidecar.metric(&format!("keybearer_token_expiry_timestamp_seconds{{{labels}}}")).await
}

fn wall_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// Polls until the condition holds.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let held = async {
        while !condition().await {
            sleep(Duration::from_millis(30)).await;
        }
    };
    timeout(PATIENCE, held).await.unwrap_or_else(|_| panic!("it never came about: {what}"));
}

/// One request after another for so long; none may fail or take longer than `slowest`.
async fn steadily_served(sidecar: &Sidecar, span: Duration, slowest: Duration) -> usize {
    let end = Instant::now() + span;
    let mut count = 0;
    while Instant::now() < end {
        let began = Instant::now();
        let answer = get(sidecar).await;
        let took = began.elapsed();
        assert_eq!(answer.status, 200, "request {count}: {}\n{}", answer.text(), sidecar.log());
        assert!(took < slowest, "request {count} took {took:?}\n{}", sidecar.log());
        count += 1;
        sleep(Duration::from_millis(20)).await;
    }
    count
}

/// The `Authorization` values that arrived, without repetition.
fn seen(received: &[Received]) -> BTreeSet<String> {
    received.iter().flat_map(|request| request.values("authorization")).map(str::to_owned).collect()
}

fn form(request: &Received) -> Vec<(String, String)> {
    let mut fields: Vec<_> = form_urlencoded::parse(&request.body).into_owned().collect();
    fields.sort();
    fields
}

/// The proxy's own answer, in all the places that tell.
#[track_caller]
fn check_own(answer: &Answer, status: u16, code: &str, action: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{}", answer.text());
    let problem = answer.json();
    assert_eq!((&problem["code"], &problem["action"]), (&json!(code), &json!(action)));
    assert_eq!(problem["type"], format!("urn:keybearer:error:{code}"));
    assert!(answer.header("proxy-status").is_some_and(|value| value.starts_with("keybearer; error=")));
    let retry_after = answer.header("retry-after").map(|value| value.parse::<u64>().expect("seconds"));
    match status {
        503 => assert!(retry_after.is_some_and(|seconds| (1..=300).contains(&seconds)), "{retry_after:?}"),
        _ => assert_eq!(retry_after, None, "a client would come again for nothing"),
    }
}

#[track_caller]
fn check_unavailable(answer: &Answer) {
    check_own(answer, 503, "token_unavailable", "retry_later");
}

// --- one request for all ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn five_hundred_callers_of_a_cold_token_cause_one_token_request() {
    let (server, upstream) = (AuthorizationServer::op(json!({"lifetime": 60})).await, Scripted::upstream().await);
    // Long enough that most of them arrive before the answer, also on a busy machine.
    server.control(json!({"delay_ms": 1500})).await;
    let top = format!("{COLD}workers: 2\n");
    let sidecar = Sidecar::spawn(&Crm { top: &top, ..crm(server.token_url(), upstream.address) }.text(), &[]).await;
    let answers = at_once(&sidecar, 500).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{:?}", answers.iter().find(|a| a.status != 200));
    let stats = server.stats().await;
    assert_eq!(stats["token_requests"], json!({"machine": 1}));
    assert_eq!(upstream.count(), 500);
    assert_eq!(seen(&upstream.received()).len(), 1);
    let waited = sidecar.metric("keybearer_token_wait_seconds_count").await;
    assert!(waited >= 100.0, "only {waited} requests met a cold token: the test shows nothing");
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_no_acquisition() {
    let (server, upstream) = (AuthorizationServer::op(json!({"lifetime": 60})).await, Scripted::upstream().await);
    server.control(json!({"delay_ms": 2000})).await;
    let config = Crm { top: COLD, ..crm(server.token_url(), upstream.address) }.text();
    let sidecar = Sidecar::spawn(&config, &[]).await;
    let mut first = Conn::open(sidecar.proxy()).await;
    first.write(format!("GET {URL} HTTP/1.1\r\nHost: api.test\r\n\r\n").as_bytes()).await;
    sidecar.until_metric("keybearer_requests_in_flight", |count| count == 1.0).await;
    until("the token request arrives", async || server.token_requests("machine").await == 1).await;
    let others = async {
        sidecar.until_metric("keybearer_requests_in_flight", |count| count >= 2.0).await;
        drop(first);
    };
    let (answers, ()) = tokio::join!(at_once(&sidecar, 10), others);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(get(&sidecar).await.status, 200);
    assert_eq!(server.token_requests("machine").await, 1);
}

// --- outages ---------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    /// The port refuses connections.
    Closed,
    /// Connections open and nobody answers.
    Stopped,
}

impl Outage {
    async fn begin(self, server: &mut AuthorizationServer) {
        match self {
            Outage::Closed => server.stop().await,
            Outage::Stopped => server.pause(),
        }
    }

    async fn end(self, server: &mut AuthorizationServer) {
        match self {
            Outage::Closed => server.start_again_on_same_port().await,
            Outage::Stopped => server.resume(),
        }
    }
}

#[tokio::test]
async fn an_outage_of_twenty_seconds_fails_no_request_while_the_token_is_usable() {
    tokio::join!(outage_within_life(Outage::Closed), outage_within_life(Outage::Stopped));
}

async fn outage_within_life(outage: Outage) {
    let mut server = AuthorizationServer::op(json!({"lifetime": 26})).await;
    let upstream = Scripted::upstream().await;
    let keys = ["usable_margin: 100ms", "authorization_server: {timeout: 2s}"];
    let sidecar = Sidecar::start(&Crm { keys: &keys, ..crm(server.token_url(), upstream.address) }.text()).await;
    outage.begin(&mut server).await;
    let count = steadily_served(&sidecar, Duration::from_secs(20), Duration::from_secs(1)).await;
    assert!(count > 100, "{count} requests show nothing");
    assert_eq!(seen(&upstream.received()).len(), 1);
    assert!(
        token_requests(&sidecar, "crm", "unavailable").await >= 1.0,
        "no refresh met the outage\n{}",
        sidecar.log()
    );
}

#[tokio::test]
async fn an_expired_token_goes_nowhere_and_service_resumes_after_an_outage() {
    tokio::join!(outage_past_expiry(Outage::Closed), outage_past_expiry(Outage::Stopped));
}

async fn outage_past_expiry(outage: Outage) {
    let mut server = AuthorizationServer::op(json!({"lifetime": 4})).await;
    let options = json!({"unreachable": "accept", "introspect_timeout_ms": 300});
    let upstream = Upstream::start_with(&server, options).await;
    // The refresh is wanted as late as it can be, so that the second try (two seconds later) already finds the server.
    let keys = ["refresh_ahead: 100ms", "usable_margin: 100ms", "authorization_server: {timeout: 1s}"];
    let config = Crm { keys: &keys, ..crm(server.token_url(), local(upstream.http_port())) }.text();
    let sidecar = Sidecar::start(&config).await;
    assert_eq!(get(&sidecar).await.status, 200);
    let expires = expiry(&sidecar, "crm").await;
    outage.begin(&mut server).await;

    until("the token is over", async || {
        let answer = get(&sidecar).await;
        if answer.status != 200 {
            check_unavailable(&answer);
        }
        answer.status != 200
    })
    .await;
    assert!(wall_s() >= expires - 0.5, "a usable token was given up");
    let passed = upstream.summary().await["total"].clone();
    for answer in at_once(&sidecar, 20).await {
        check_unavailable(&answer);
    }
    assert_eq!(upstream.summary().await["total"], passed, "{outage:?}: a request went on without a token");

    outage.end(&mut server).await;
    until("service resumes", async || get(&sidecar).await.status == 200).await;
    let records = upstream.records().await;
    for record in &records {
        let at = record["at_ms"].as_f64().expect("a time") / 1000.0;
        let old = record["headers"] == records[0]["headers"];
        assert!(at < expires || !old, "{outage:?}: {:.3} s past its end a token arrived", at - expires);
        assert!(matches!(record["verdict"].as_str(), Some("active" | "unreachable")), "{outage:?}: {record}");
        assert_eq!(record["authorization_count"], 1);
    }
    let last = records.last().expect("records");
    assert_eq!((&last["verdict"], last["headers"] == records[0]["headers"]), (&json!("active"), false));
}

#[tokio::test]
async fn a_hung_token_endpoint_delays_nobody_before_expiry_and_then_for_token_wait_alone() {
    let server = Scripted::start(|_, before| if before == 0 { Reply::token("first", 4) } else { Reply::Silence }).await;
    let upstream = Scripted::upstream().await;
    let config = Crm {
        top: "timeouts: {token_wait: 1s}\n",
        keys: &["usable_margin: 100ms"],
        ..crm(token_url(&server), upstream.address)
    };
    let sidecar = Sidecar::start(&config.text()).await;
    until("the refresh hangs", async || {
        steadily_served(&sidecar, Duration::ZERO, Duration::from_millis(500)).await;
        server.count() == 2
    })
    .await;
    steadily_served(&sidecar, Duration::from_secs(1), Duration::from_millis(500)).await;

    let expired = expiry(&sidecar, "crm").await - wall_s();
    sleep(Duration::from_secs_f64(expired.max(0.0))).await;
    let (passed, began) = (upstream.count(), Instant::now());
    for answer in at_once(&sidecar, 20).await {
        check_unavailable(&answer);
    }
    let took = began.elapsed();
    assert!((Duration::from_millis(990)..Duration::from_secs(3)).contains(&took), "{took:?}");
    assert_eq!((upstream.count(), server.count()), (passed, 2));
}

#[tokio::test]
async fn a_sidecar_that_slept_past_expiry_sends_a_fresh_token_first() {
    let server = AuthorizationServer::op(json!({"lifetime": 3})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&crm(server.token_url(), local(upstream.http_port())).text()).await;
    assert_eq!(get(&sidecar).await.status, 200);
    let mut waiting = Conn::open(sidecar.proxy()).await;
    sidecar.signal("STOP");
    sleep(Duration::from_secs(4)).await;
    // In the socket before the sidecar wakes up: no refresh can have come first.
    waiting.write(format!("GET {URL} HTTP/1.1\r\nHost: api.test\r\n\r\n").as_bytes()).await;
    sidecar.signal("CONT");
    assert_eq!(waiting.answer().await.status, 200, "{}", sidecar.log());
    let records = upstream.records().await;
    let verdicts: Vec<_> = records.iter().map(|record| &record["verdict"]).collect();
    assert_eq!(verdicts, ["active", "active"]);
}

// --- answers of a token endpoint -------------------------------------------------------------------------------------

#[tokio::test]
async fn a_failed_refresh_keeps_the_token_until_it_expires_whatever_the_failure() {
    /// How it is counted, and what the server does.
    type Fault = (&'static str, fn() -> Reply);
    const FAULTS: [Fault; 14] = [
        ("unavailable", || Reply::json(500, &json!({"error": "server_error"}))),
        ("unavailable", || Reply::text(502, "text/html", "<html>Bad Gateway</html>")),
        ("unavailable", || Reply::text(503, "text/plain", "")),
        ("unavailable", || Reply::Close),
        ("unavailable", || Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{\"access".into())),
        ("invalid_answer", || Reply::text(200, "application/json", "")),
        ("invalid_answer", || Reply::text(200, "application/json", "[]")),
        ("invalid_answer", || Reply::text(200, "application/json", "null")),
        ("invalid_answer", || Reply::text(200, "text/html", "<html>Sign in</html>")),
        ("invalid_answer", || Reply::text(200, "application/json", &"[".repeat(100_000))),
        ("invalid_answer", || Reply::json(200, &json!({"token_type": "Bearer", "expires_in": 60}))),
        ("invalid_answer", || Reply::json(200, &json!({"access_token": "a\r\nb: c", "expires_in": 60}))),
        ("invalid_answer", || Reply::json(200, &json!({"access_token": "a", "token_type": "mac"}))),
        ("invalid_answer", || Reply::text(200, "application/json", &" ".repeat(2 * 1024 * 1024))),
    ];
    let asked = Arc::new(Mutex::new([0; FAULTS.len()]));
    let counts = asked.clone();
    let server = Scripted::start(move |request, _| {
        let number = number(request);
        let count = &mut counts.lock().unwrap()[number];
        *count += 1;
        if *count == 1 { Reply::token(&format!("good-{number}"), 9) } else { FAULTS[number].1() }
    })
    .await;
    let upstream = Scripted::upstream().await;
    let keys = ["client_id: a, client_secret: b, usable_margin: 100ms"; FAULTS.len()];
    let sidecar = Sidecar::start(&numbered(&server, &upstream, &keys)).await;
    let began = Instant::now();
    for (number, (outcome, _)) in FAULTS.iter().enumerate() {
        let what = format!("fault {number} is counted as {outcome}");
        until(&what, async || token_requests(&sidecar, &format!("c{number}"), outcome).await >= 1.0).await;
        assert_eq!(get_numbered(&sidecar, number).await.status, 200, "fault {number}");
    }
    assert!(began.elapsed() < Duration::from_secs(8), "too slow to have met usable tokens: {:?}", began.elapsed());
    sleep(Duration::from_secs(9).saturating_sub(began.elapsed())).await;
    let passed = upstream.count();
    for number in 0..FAULTS.len() {
        check_unavailable(&get_numbered(&sidecar, number).await);
    }
    assert_eq!(upstream.count(), passed);
    // One good answer, and three tries since: when it was due, two seconds later, and at the token's end.
    assert!(asked.lock().unwrap().iter().all(|count| *count <= 4), "{asked:?}");
}

#[tokio::test]
async fn a_lifetime_is_read_as_decided() {
    const DEFAULT_S: f64 = 1200.0;
    const TEN_YEARS_S: f64 = 315_360_000.0;
    let table = [
        (json!(600), 600.0),
        (json!("600"), 600.0),
        (json!(null), DEFAULT_S),
        (json!(0), DEFAULT_S),
        (json!(-1), DEFAULT_S),
        (json!("3600abc"), DEFAULT_S),
        (json!(1e12), TEN_YEARS_S),
    ];
    let answers = table.clone();
    let server = Scripted::start(move |request, _| {
        let mut answer = json!({"access_token": "t", "token_type": "Bearer", "expires_in": answers[number(request)].0});
        if answer["expires_in"].is_null() {
            answer.as_object_mut().expect("an object").remove("expires_in");
        }
        Reply::json(200, &answer)
    })
    .await;
    let upstream = Scripted::upstream().await;
    let keys = ["client_id: a, client_secret: b, default_token_lifetime: 20m"; 7];
    let sidecar = Sidecar::start(&numbered(&server, &upstream, &keys)).await;
    for (number, (written, lifetime_s)) in table.iter().enumerate() {
        assert_eq!(get_numbered(&sidecar, number).await.status, 200, "{written}");
        let left = expiry(&sidecar, &format!("c{number}")).await - wall_s();
        assert!((lifetime_s - 15.0..=*lifetime_s).contains(&left), "{written}: {left} s");
    }
    assert_eq!(server.count(), table.len());
}

#[tokio::test]
async fn a_token_without_expires_in_is_renewed_by_the_default_lifetime() {
    let server = AuthorizationServer::al(json!({"lifetime": 60})).await;
    server.control(json!({"announce_lifetime": false})).await;
    let upstream = Upstream::start(&server).await;
    let keys = ["default_token_lifetime: 2s"];
    let config = Crm { keys: &keys, ..crm(server.token_url(), local(upstream.http_port())) }.text();
    let sidecar = Sidecar::start(&config).await;
    steadily_served(&sidecar, Duration::from_secs(4), Duration::from_secs(2)).await;
    let asked = server.token_requests("machine").await;
    assert!((3..=5).contains(&asked), "{asked} token requests in four seconds");
    assert_eq!(upstream.summary().await["inactive"], 0);
}

#[tokio::test]
async fn the_same_token_again_on_an_early_refresh_causes_no_tight_loop() {
    let began = Instant::now();
    // Like a server that hands out one token until it ends: after four seconds, the next one.
    let server = Scripted::start(move |_, _| {
        let left = 4u64.saturating_sub(began.elapsed().as_secs());
        if left > 0 { Reply::token("same", left) } else { Reply::token("next", 60) }
    })
    .await;
    let upstream = Scripted::upstream().await;
    let sidecar = Sidecar::start(&crm(token_url(&server), upstream.address).text()).await;
    steadily_served(&sidecar, Duration::from_secs(6), Duration::from_secs(1)).await;
    assert_eq!(seen(&upstream.received()), ["Bearer next", "Bearer same"].map(str::to_owned).into());
    assert!((3..=6).contains(&server.count()), "{} token requests", server.count());
}

#[tokio::test]
async fn a_lifetime_of_next_to_nothing_causes_no_tight_loop() {
    let server = Scripted::start(|_, before| {
        Reply::json(200, &json!({"access_token": format!("t{before}"), "expires_in": 0.01}))
    })
    .await;
    let upstream = Scripted::upstream().await;
    let config = Crm { top: COLD, ..crm(token_url(&server), upstream.address) }.text();
    let sidecar = Sidecar::start(&config).await;
    sleep(Duration::from_secs(3)).await;
    assert!(server.count() <= 10, "{} token requests in three seconds", server.count());
    assert_ne!(get(&sidecar).await.status, 0);
}

#[tokio::test]
async fn an_error_in_a_success_answer_is_a_failure_with_the_servers_code() {
    let codes = ["invalid_client", "temporarily_unavailable"];
    let server = Scripted::start(move |request, _| Reply::json(200, &json!({"error": codes[number(request)]}))).await;
    let upstream = Scripted::upstream().await;
    let keys = ["client_id: a, client_secret: b"; 2];
    let sidecar = Sidecar::start(&numbered(&server, &upstream, &keys)).await;
    let refused = get_numbered(&sidecar, 0).await;
    check_own(&refused, 424, "token_refused", "fix_configuration");
    assert!(refused.text().contains("invalid_client"), "{}", refused.text());
    let unavailable = get_numbered(&sidecar, 1).await;
    check_unavailable(&unavailable);
    assert!(unavailable.text().contains("temporarily_unavailable"), "{}", unavailable.text());
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn an_empty_answer_is_asked_for_again_without_a_restart() {
    let server = Scripted::start(|_, before| match before {
        0 => Reply::text(200, "application/json", ""),
        _ => Reply::token("good", 60),
    })
    .await;
    let upstream = Scripted::upstream().await;
    let sidecar = Sidecar::start(&crm(token_url(&server), upstream.address).text()).await;
    check_unavailable(&get(&sidecar).await);
    until("the next answer is used", async || get(&sidecar).await.status == 200).await;
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn a_server_that_fails_once_is_asked_again_and_the_token_injected() {
    let server = AuthorizationServer::op(json!({"lifetime": 60})).await;
    server.control(json!({"status": 503, "times": 1})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&crm(server.token_url(), local(upstream.http_port())).text()).await;
    check_unavailable(&get(&sidecar).await);
    until("the second answer is used", async || get(&sidecar).await.status == 200).await;
    assert_eq!(server.token_requests("machine").await, 2);
    let counted = (token_requests(&sidecar, "crm", "unavailable").await, token_requests(&sidecar, "crm", "ok").await);
    assert_eq!(counted, (1.0, 1.0));
}

#[tokio::test]
async fn a_server_that_asks_for_a_pause_gets_it_and_other_connections_go_on() {
    const PAUSE_S: u64 = 4;
    let times = Arc::<Mutex<Vec<Instant>>>::default();
    let asked = times.clone();
    let server = Scripted::start(move |request, _| {
        if number(request) == 1 {
            return Reply::token("other", 3);
        }
        let mut asked = asked.lock().unwrap();
        asked.push(Instant::now());
        match asked.len() {
            1 => Reply::Bytes(
                format!("HTTP/1.1 429 X\r\nRetry-After: {PAUSE_S}\r\nContent-Length: 0\r\n\r\n").into_bytes(),
            ),
            _ => Reply::token("late", 60),
        }
    })
    .await;
    let upstream = Scripted::upstream().await;
    let sidecar = Sidecar::start(&numbered(&server, &upstream, &["client_id: a, client_secret: b"; 2])).await;
    for answer in join_all((0..20).map(|_| get_numbered(&sidecar, 0))).await {
        check_unavailable(&answer);
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((2..=PAUSE_S + 1).contains(&seconds), "{seconds}");
    }
    until("the pause is over", async || {
        assert_eq!(get_numbered(&sidecar, 1).await.status, 200, "the other connection suffers");
        get_numbered(&sidecar, 0).await.status == 200
    })
    .await;
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 2);
    let pause = times[1] - times[0];
    assert!((PAUSE_S as f64..PAUSE_S as f64 * 1.2 + 1.0).contains(&pause.as_secs_f64()), "{pause:?}");
    assert!(server.count() >= 2 + 2, "the other connection was not refreshed meanwhile");
}

#[tokio::test]
async fn a_refused_client_is_told_and_the_server_left_alone() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Scripted::upstream().await;
    let client = ["client_id: machine", "client_secret: not-the-secret"];
    let config = Crm { client: &client, ..crm(server.token_url(), upstream.address) }.text();
    let sidecar = Sidecar::start(&config).await;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for answer in at_once(&sidecar, 5).await {
            check_own(&answer, 424, "token_refused", "fix_configuration");
            assert!(answer.text().contains("invalid_client"), "{}", answer.text());
            assert_eq!(answer.json()["connection"], "crm");
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.token_requests("machine").await, 1);
    assert_eq!(token_requests(&sidecar, "crm", "refused").await, 1.0);
    assert_eq!(upstream.count(), 0);
}

// --- tokens that the upstream rejects --------------------------------------------------------------------------------

#[tokio::test]
async fn a_revoked_token_is_replaced_within_the_request_that_meets_it() {
    let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&crm(server.token_url(), local(upstream.http_port())).text()).await;
    assert_eq!(get(&sidecar).await.status, 200);
    server.control(json!({"revoke_all": true})).await;
    let answer = get(&sidecar).await;
    assert_eq!((answer.status, answer.json()["active"].as_bool()), (200, Some(true)));
    let verdicts: Vec<_> = upstream.records().await.iter().map(|record| record["verdict"].clone()).collect();
    assert_eq!(verdicts, ["active", "inactive", "active"]);
    assert_eq!(server.token_requests("machine").await, 2);
    assert_eq!(replays(&sidecar, "accepted").await, 1.0);
}

#[tokio::test]
async fn fifty_requests_that_meet_a_revoked_token_share_one_refresh() {
    let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&crm(server.token_url(), local(upstream.http_port())).text()).await;
    // The refresh takes longer than the fifty need to be rejected.
    server.control(json!({"revoke_all": true, "delay_ms": 1000})).await;
    let answers = at_once(&sidecar, 50).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{:?}", answers.iter().find(|a| a.status != 200));
    assert_eq!(server.token_requests("machine").await, 2);
    let summary = upstream.summary().await;
    assert!(summary["inactive"].as_u64() > Some(20), "too few met the old token: {summary}");
    assert_eq!(summary["active"], 50);
}

#[tokio::test]
async fn a_persistent_401_reaches_the_caller_after_one_refresh_and_one_replay() {
    let server = Scripted::tokens(3600).await;
    let upstream = Scripted::start(|_, _| Reply::text(401, "text/plain", "go away")).await;
    let sidecar = Sidecar::start(&crm(token_url(&server), upstream.address).text()).await;
    let check = |answer: &Answer| assert_eq!((answer.status, answer.code(), &*answer.text()), (401, "", "go away"));
    let began = Instant::now();
    check(&get(&sidecar).await);
    assert_eq!((server.count(), upstream.count()), (2, 2));
    assert_eq!(seen(&upstream.received()), ["Bearer token-1", "Bearer token-2"].map(str::to_owned).into());
    assert_eq!(replays(&sidecar, "rejected").await, 1.0);
    for _ in 0..40 {
        at_once(&sidecar, 25).await.iter().for_each(check);
    }
    // At most one forced refresh in ten seconds, each with the replays of those who asked for it.
    let refreshes = 1 + began.elapsed().as_secs() as usize / 10;
    assert!((2..=1 + refreshes).contains(&server.count()), "{} in {:?}", server.count(), began.elapsed());
    if refreshes == 1 {
        assert_eq!(upstream.count(), 1002);
    }
}

#[tokio::test]
async fn a_body_is_replayed_whole_up_to_replay_body_and_not_beyond() {
    let upstream = Scripted::start(|request, _| match request.values("authorization")[..] {
        ["Bearer token-1"] => Reply::text(401, "text/plain", "expired"),
        _ => Reply::ok(),
    })
    .await;
    for (bytes, status, arrivals) in [(1, 200, 2), (2048, 200, 2), (2049, 401, 1), (1 << 20, 401, 1)] {
        // A sidecar and a server for each, so that `token-1` comes first.
        let arrived = upstream.count();
        let server = Scripted::tokens(3600).await;
        let config = Crm { top: "limits: {replay_body: 2KiB}\n", ..crm(token_url(&server), upstream.address) };
        let sidecar = Sidecar::start(&config.text()).await;
        let body: Vec<u8> = (0..bytes).map(|n| b"0123456789abcdefghijklmnopqrstuvwxyz!"[n % 37]).collect();
        let answer = post(&sidecar, &body).await;
        assert_eq!(answer.status, status, "{bytes} bytes: {}", answer.text());
        let received = upstream.received().split_off(arrived);
        assert_eq!(received.len(), arrivals, "{bytes} bytes");
        assert!(received.iter().all(|request| request.body == body), "{bytes} bytes arrived changed");
        assert!(received.iter().all(|request| request.values("content-length") == [bytes.to_string()]));
        // The refresh helps those who come later, even where this request could not be replayed.
        assert_eq!(server.count(), 2, "{bytes} bytes");
        assert_eq!(post(&sidecar, &body).await.status, 200);
    }
}

#[tokio::test]
async fn a_body_that_is_still_arriving_is_never_replayed_in_part() {
    // Rejects the first token as soon as the head is there, and lists what each connection brought.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let bodies = Arc::<Mutex<Vec<String>>>::default();
    let log = bodies.clone();
    let upstream = tokio::spawn(async move {
        let mut conns = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = log.clone();
            conns.spawn(async move {
                let (mut text, mut buffer, mut answered) = (String::new(), [0; 4096], false);
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    text.push_str(&String::from_utf8_lossy(&buffer[..count]));
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let (early, whole) = (head.contains("Bearer token-1"), body.ends_with("0\r\n\r\n"));
                    let status = if early { 401 } else { 200 };
                    if (early || whole) && !answered {
                        answered = true;
                        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                        let _ = stream.write_all(answer.as_bytes()).await;
                    }
                }
                log.lock().unwrap().push(text);
            });
        }
    });
    let server = Scripted::tokens(3600).await;
    let config = Crm { top: "limits: {replay_body: 1KiB}\n", ..crm(token_url(&server), address) };
    let sidecar = Sidecar::start(&config.text()).await;
    let mut conn = Conn::open(sidecar.proxy()).await;
    let chunk = |letter: &str, size: usize| format!("{size:x}\r\n{}\r\n", letter.repeat(size));
    let head = format!("POST {URL} HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    conn.write((head + &chunk("a", 500)).as_bytes()).await;
    until("the rejection has its refresh", async || server.count() == 2).await;
    for letter in ["b", "c", "d", "e"] {
        conn.write(chunk(letter, 500).as_bytes()).await;
        sleep(Duration::from_millis(50)).await;
    }
    conn.write(b"0\r\n\r\n").await;
    let answer = conn.answer().await;
    drop((conn, sidecar));
    until("the upstream has seen every end", async || {
        let bodies = bodies.lock().unwrap();
        bodies.len() >= if answer.status == 200 { 2 } else { 1 }
    })
    .await;
    upstream.abort();
    let letters = |text: &str| text.chars().filter(|c| "abcde".contains(*c)).count();
    for text in bodies.lock().unwrap().iter() {
        let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
        let whole = ["a", "b", "c", "d", "e"].iter().all(|letter| body.matches(letter).count() >= 500);
        assert!(whole || !body.ends_with("0\r\n\r\n"), "cut to {} bytes and shown as whole: {head}", letters(body));
    }
    assert!(matches!(answer.status, 200 | 401), "{}", answer.text());
}

#[tokio::test]
async fn other_statuses_never_refresh_and_pass_as_they_came() {
    let server = Scripted::tokens(3600).await;
    let upstream = Scripted::start(|request, _| {
        let path = request.request_line().split(' ').nth(1).unwrap_or_default();
        let status = path.trim_start_matches('/');
        let head = format!("HTTP/1.1 {status} X\r\nRetry-After: 77\r\nContent-Length: 4\r\n\r\nbody");
        Reply::Bytes(head.into_bytes())
    })
    .await;
    let sidecar = Sidecar::start(&crm(token_url(&server), upstream.address).text()).await;
    let statuses = [400, 403, 404, 407, 429, 500, 502, 503, 504];
    for status in statuses {
        let answer = raw::get_through(sidecar.proxy(), &format!("http://api.test/{status}"), "").await;
        let told = (answer.status, answer.header("retry-after"), answer.text(), answer.code().to_owned());
        assert_eq!(told, (status, Some("77"), "body".to_owned(), String::new()));
    }
    // A refresh would be under way at once.
    sleep(Duration::from_millis(500)).await;
    assert_eq!((server.count(), upstream.count()), (1, statuses.len()));
}

#[tokio::test]
async fn a_401_to_a_request_without_our_token_never_refreshes() {
    let server = Scripted::tokens(3600).await;
    let upstream = Scripted::start(|_, _| Reply::text(401, "text/plain", "who?")).await;
    for (route, lines, arrived) in [
        (", inject: none", "", vec![]),
        (", inject: none", "Authorization: Bearer mine\r\n", vec!["Bearer mine"]),
        (", existing: keep", "Authorization: Bearer mine\r\n", vec!["Bearer mine"]),
    ] {
        let (asked, before) = (server.count(), upstream.count());
        let sidecar = Sidecar::start(&Crm { route, ..crm(token_url(&server), upstream.address) }.text()).await;
        let first = server.count() - asked;
        for _ in 0..3 {
            let answer = raw::get_through(sidecar.proxy(), URL, lines).await;
            assert_eq!((answer.status, answer.text().as_str()), (401, "who?"));
        }
        sleep(Duration::from_millis(300)).await;
        assert_eq!(server.count() - asked, first, "{route}");
        assert_eq!(upstream.count() - before, 3, "{route}");
        assert!(upstream.received()[before..].iter().all(|request| request.values("authorization") == arrived));
    }
}

// --- what the caller sent, and what goes on without a token ----------------------------------------------------------

#[tokio::test]
async fn what_the_caller_sent_is_overwritten_kept_or_refused_as_the_route_says() {
    let (server, upstream) = (Scripted::tokens(60).await, Scripted::upstream().await);
    let at = upstream.address;
    let route = |name: &str| format!("{{host: {name}.test, upstream_tls: false, existing: {name}}}");
    let sidecar = Sidecar::start(&format!(
        "hosts: {{overwrite.test: \"{at}\", keep.test: \"{at}\", refuse.test: \"{at}\"}}\nconnections:\n- {{name: crm, \
         client_id: a, client_secret: b, token_url: \"{}\", routes: [{}, {}, {}]}}\n",
        token_url(&server),
        route("overwrite"),
        route("keep"),
        route("refuse")
    ))
    .await;
    let (none, one) = ("", "authorization: Bearer mine\r\n");
    let two = "Authorization: Bearer mine\r\nauthorization: Basic eDp5\r\n";
    for (host, lines, arrived) in [
        ("overwrite", none, Some("Bearer token-1")),
        ("overwrite", one, Some("Bearer token-1")),
        ("overwrite", two, Some("Bearer token-1")),
        ("keep", none, Some("Bearer token-1")),
        ("keep", one, Some("Bearer mine")),
        ("keep", two, None),
        ("refuse", none, Some("Bearer token-1")),
        ("refuse", one, None),
        ("refuse", two, None),
    ] {
        let before = upstream.count();
        let answer = raw::get_through(sidecar.proxy(), &format!("http://{host}.test/"), lines).await;
        let received = upstream.received();
        let values: Vec<_> = received[before..].iter().map(|request| request.values("authorization")).collect();
        match arrived {
            Some(value) => assert_eq!((answer.status, values), (200, vec![vec![value]]), "{host} {lines}"),
            None => {
                check_own(&answer, 400, "bad_request_target", "fix_request");
                assert!(values.is_empty(), "{host} {lines}");
            }
        }
    }
    for (outcome, count) in [("injected", 5.0), ("kept", 1.0), ("refused", 3.0)] {
        let series =
            format!("keybearer_injections_total{{connection=\"crm\",profile=\"default\",outcome=\"{outcome}\"}}");
        assert_eq!(sidecar.metric(&series).await, count, "{outcome}");
    }
}

#[tokio::test]
async fn a_request_without_a_token_fails_or_goes_on_bare_as_the_route_says() {
    let upstream = Scripted::upstream().await;
    for (reply, status, code, action) in [
        (
            (|_, _| Reply::json(400, &json!({"error": "invalid_client"}))) as fn(&Received, usize) -> Reply,
            424,
            "token_refused",
            "fix_configuration",
        ),
        (|_, _| Reply::text(503, "text/plain", ""), 503, "token_unavailable", "retry_later"),
    ] {
        let server = Scripted::start(reply).await;
        let config = crm(token_url(&server), upstream.address).text();
        let config =
            config.replace("routes: [", "routes: [{host: bare.test, upstream_tls: false, without_token: forward}, ");
        let config = config.replace("hosts: {", &format!("hosts: {{bare.test: \"{}\", ", upstream.address));
        let sidecar = Sidecar::start(&config).await;
        let before = upstream.count();
        for lines in ["", "Authorization: Bearer mine\r\n"] {
            check_own(&raw::get_through(sidecar.proxy(), URL, lines).await, status, code, action);
            assert_eq!(upstream.count(), before);
        }
        for lines in ["", "Authorization: Bearer mine\r\n"] {
            let answer = raw::get_through(sidecar.proxy(), "http://bare.test/", lines).await;
            assert_eq!((answer.status, answer.code()), (200, ""));
        }
        let received = upstream.received();
        assert_eq!(received.len() - before, 2);
        assert!(received[before..].iter().all(|request| request.values("authorization").is_empty()), "{received:?}");
    }
}

// --- what the token endpoint sees ------------------------------------------------------------------------------------

#[tokio::test]
async fn the_server_sees_the_client_authenticate_as_configured_and_every_parameter_each_time() {
    const SECRET: &str = "a+b/c:d%e$f g";
    let plain = |text: &str| Some(format!("Basic {}", BASE64_STANDARD.encode(text)));
    let coded = "a%2Bb%2Fc%3Ad%25e%24f%20g";
    let table = [
        ("client_secret: \"a+b/c:d%e$$f g\"", None, vec![("client_id", "i:d"), ("client_secret", SECRET)]),
        (
            "client_secret: \"a+b/c:d%e$$f g\", send_credentials: body",
            None,
            vec![("client_id", "i:d"), ("client_secret", SECRET)],
        ),
        ("client_secret: \"a+b/c:d%e$$f g\", send_credentials: basic", plain(&format!("i%3Ad:{coded}")), vec![]),
        (
            "client_secret: \"a+b/c:d%e$$f g\", send_credentials: basic, basic_encoding: raw",
            plain(&format!("i:d:{SECRET}")),
            vec![],
        ),
        ("send_credentials: none", None, vec![("client_id", "i:d")]),
        ("comments: no secret", None, vec![("client_id", "i:d")]),
        ("scopes: \"a,b  c\"", None, vec![("client_id", "i:d"), ("scope", "a b c")]),
        ("scopes: [a, \"b:c/d\"]", None, vec![("client_id", "i:d"), ("scope", "a b:c/d")]),
        (
            "audience: \"https://api.test/?x=1&y\", resource: \"urn:r\", token_params: {tenant: \"t 1\", z: \"\"}",
            None,
            vec![
                ("audience", "https://api.test/?x=1&y"),
                ("client_id", "i:d"),
                ("resource", "urn:r"),
                ("tenant", "t 1"),
                ("z", ""),
            ],
        ),
    ];
    let (server, upstream) = (Scripted::tokens(2).await, Scripted::upstream().await);
    let keys: Vec<_> =
        table.iter().map(|(keys, ..)| format!("client_id: \"i:d\", {}", keys.replace("$$", "$"))).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let _sidecar = Sidecar::start(&numbered(&server, &upstream, &keys)).await;
    // The first grant, and a refresh of each.
    let of = |n: usize| server.received().into_iter().filter(|request| number(request) == n).collect::<Vec<_>>();
    until("each has refreshed", async || (0..table.len()).all(|n| of(n).len() >= 2)).await;
    for (n, (keys, header, fields)) in table.iter().enumerate() {
        let mut expected: Vec<_> = fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        expected.push(("grant_type".into(), "client_credentials".into()));
        expected.sort();
        for request in of(n) {
            assert_eq!(form(&request), expected, "{keys}");
            assert_eq!(request.values("authorization").first().map(|value| value.to_string()), *header, "{keys}");
            assert_eq!(request.values("content-type"), ["application/x-www-form-urlencoded"]);
            assert_eq!(request.values("accept"), ["application/json"]);
            assert!(request.request_line().starts_with("POST /c"));
        }
    }
}

#[tokio::test]
async fn a_basic_secret_full_of_special_characters_is_understood_by_real_servers() {
    let (op, al) = tokio::join!(AuthorizationServer::op(json!({})), AuthorizationServer::al(json!({})));
    // Authlib leaves a `%` alone that begins no code, so that it takes this secret raw as well.
    for (server, raw_status) in [(&op, 424), (&al, 200)] {
        let upstream = Upstream::start(server).await;
        let client = ["client_id: machine-basic", "client_secret: {file: secret}", "send_credentials: basic"];
        let form = Crm { client: &client, ..crm(server.token_url(), local(upstream.http_port())) };
        let files = [("secret", BASIC_CLIENT_SECRET)];
        let sidecar = Sidecar::start_with(&form.text(), &files).await;
        let answer = get(&sidecar).await;
        assert_eq!((answer.status, &answer.json()["client_id"]), (200, &json!("machine-basic")), "{}", sidecar.log());
        let raw = Crm { keys: &["basic_encoding: raw"], ..form };
        let sidecar = Sidecar::start_with(&raw.text(), &files).await;
        assert_eq!(get(&sidecar).await.status, raw_status, "{}", sidecar.log());
    }
}

// --- secrets ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn no_secret_is_told_anywhere_at_trace_level() {
    const ADMIN: &str = "admin-token-9c3e-0123456789";
    const CALLER: &str = "caller-secret-0d1f";
    const REFUSED: &str = "refused-secret-77aa";
    const QUERY: &str = "query-secret-5b5b";
    const OWN: &str = "own-bearer-41c2";
    const CANARY: &str = "canary-in-a-path";
    let real = AuthorizationServer::op(json!({"lifetime": 2})).await;
    let upstream = Upstream::start(&real).await;
    // Refuses, and repeats in its answer whatever it was sent.
    let echo = Scripted::start(|request, _| {
        let sent = format!("{} {}", request.head, String::from_utf8_lossy(&request.body));
        Reply::json(400, &json!({"error": "invalid_client", "error_description": sent}))
    })
    .await;
    let at = format!("127.0.0.1:{}", upstream.http_port());
    let ca = Peers::certs().ca.display().to_string();
    let config = format!(
        "log: {{level: trace, requests: all}}
audit: {{to: {{file: audit.jsonl}}}}
admin: {{users: [{{name: ops, role: manager, token: {ADMIN}}}]}}
trust: [\"{ca}\"]
hosts: {{api.test: \"{at}\", body.test: \"{at}\", basic.test: \"{at}\"}}
callers: [{{name: billing, secret: {CALLER}}}]
connections:
- {{name: crm, client_id: machine, client_secret: machine-secret, token_url: \"{}\",
   routes: [{{host: api.test, upstream_tls: false}}]}}
- {{name: refused-body, client_id: canary-client, client_secret: {REFUSED}, token_url: \"http://{echo}/a\",
   routes: [{{host: body.test, upstream_tls: false}}]}}
- {{name: refused-basic, client_id: canary-client, client_secret: {REFUSED}, token_url: \"http://{echo}/b\",
   send_credentials: basic, routes: [{{host: basic.test, upstream_tls: false}}]}}
",
        real.token_url(),
        echo = echo.address,
    );
    let mut sidecar = Sidecar::start(&config).await;
    let credential = |secret: &str| BASE64_STANDARD.encode(format!("billing:{secret}"));
    let good = format!("Proxy-Authorization: Basic {}\r\nAuthorization: Bearer {OWN}\r\n", credential(CALLER));
    let wrong = format!("Proxy-Authorization: Basic {}\r\n", credential("caller-secret-0d1f-x"));
    let mut told: BTreeMap<&str, String> = BTreeMap::new();
    let mut tell = |place: &'static str, text: &str| told.entry(place).or_default().push_str(text);
    let admin = sidecar.admin();
    let as_admin = async |path: &str, token: &str| {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        raw::send(admin, head.as_bytes()).await
    };
    let mut events = Conn::open(admin).await;
    let head = format!("GET /api/v1/events HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {ADMIN}\r\n\r\n");
    events.write(head.as_bytes()).await;
    for (path, lines, status) in [
        (format!("api.test/{CANARY}?access_token={QUERY}"), &good, 200),
        (format!("api.test/status/401?access_token={QUERY}"), &good, 401),
        (format!("api.test/drop?access_token={QUERY}"), &good, 502),
        (format!("api.test/x?access_token={QUERY}"), &wrong, 407),
        (format!("body.test/x?access_token={QUERY}"), &good, 424),
        (format!("basic.test/x?access_token={QUERY}"), &good, 424),
    ] {
        let answer = raw::get_through(sidecar.proxy(), &format!("http://{path}"), lines).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        if !answer.code().is_empty() {
            tell("answers", &format!("{}{:?}", answer.text(), answer.headers));
        }
    }
    // An outage, so that the failing refresh speaks as well.
    real.control(json!({"status": 503})).await;
    until("a refresh fails", async || token_requests(&sidecar, "crm", "unavailable").await >= 1.0).await;
    tell("metrics", &raw::get(admin, "/metrics").await.text());
    for path in ["/readyz?verbose", "/", "/livez"] {
        tell("admin", &raw::get(admin, path).await.text());
    }
    let document = as_admin("/api/v1/openapi.json", ADMIN).await.json();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        if methods["get"].is_null() || path.ends_with("/events") {
            continue;
        }
        for name in ["crm", "refused-body", "refused-basic"] {
            let answer = as_admin(&path.replace("{name}", name), ADMIN).await;
            // Nobody has begun an authorization here.
            assert_eq!(answer.status, if path.contains("{id}") { 404 } else { 200 }, "{path}");
            tell("API", &answer.text());
        }
        tell("API", &as_admin(&path.replace("{name}", "crm"), &format!("{ADMIN}-x")).await.text());
    }
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("token_failed") {
        let mut bytes = [0; 4096];
        let count = events.stream.read(&mut bytes).await.expect("events");
        assert!(count > 0, "the events ended");
        read.extend_from_slice(&bytes[..count]);
    }
    tell("events", &String::from_utf8_lossy(&read));
    sidecar.logged("no new token").await;
    sidecar.signal("TERM");
    sidecar.exit().await;
    tell("stderr", &sidecar.log());
    tell("stdout", &sidecar.stdout());
    tell("audit", &std::fs::read_to_string(sidecar.dir.path().join("audit.jsonl")).expect("the audit"));

    let records = upstream.records().await;
    let headers = records.iter().flat_map(|record| record["headers"].as_array().into_iter().flatten());
    let tokens = headers.filter_map(Value::as_str).filter_map(|value| value.strip_prefix("Bearer "));
    let tokens: BTreeSet<_> = tokens.map(str::to_owned).collect();
    assert!(!tokens.is_empty());
    let basic = BASE64_STANDARD.encode(format!("canary-client:{REFUSED}"));
    let secrets = [CLIENT_SECRET, CALLER, REFUSED, QUERY, OWN, ADMIN, &basic, &credential(CALLER)].map(str::to_owned);
    let places = |secret: &str| {
        told.iter().filter(|(_, text)| text.contains(secret)).map(|(place, _)| *place).collect::<Vec<_>>()
    };
    for secret in tokens.iter().chain(&secrets) {
        assert_eq!(places(secret), [""; 0], "{secret} is in:\n{told:?}");
    }
    // The same search finds what may be told, in every place that tells anything.
    assert_eq!(places(CANARY), ["audit", "stderr"]);
    assert_eq!(places("canary-client"), ["API"]);
    assert_eq!(places("refused-body"), ["API", "answers", "audit", "metrics", "stderr"]);
    assert_eq!(places("[+]"), ["admin"]);
    assert_eq!(told["stdout"], "", "`run` says nothing there");
}
