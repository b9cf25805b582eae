//! An authorization server that is away, hangs, or was not needed while the program slept.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use super::{
    Crm, URL, at_once, check_unavailable, crm, expiry, get, local, seen, steadily_served, token_requests, token_url,
    until, wall_s,
};
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::raw::Conn;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    /// The port refuses connections.
    Closed,
    /// Connections open and get no response.
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
async fn a_hung_token_endpoint_delays_no_request_before_expiry_and_then_for_token_wait_alone() {
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
    assert_eq!(waiting.read_response().await.status, 200, "{}", sidecar.log());
    let records = upstream.records().await;
    let verdicts: Vec<_> = records.iter().map(|record| &record["verdict"]).collect();
    assert_eq!(verdicts, ["active", "active"]);
}
