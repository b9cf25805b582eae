//! Outages of the authorization server: unreachable, hanging, or past while the program was suspended.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use super::{
    Crm, URL, authorization_values, check_unavailable, crm, expiry, get, get_concurrently, local, steadily_served,
    token_requests, token_url, wait_until, wall_s,
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
    tokio::join!(outage_within_lifetime(Outage::Closed), outage_within_lifetime(Outage::Stopped));
}

async fn outage_within_lifetime(outage: Outage) {
    let mut server = AuthorizationServer::op(json!({"lifetime": 26})).await;
    let upstream = Scripted::upstream().await;
    let keys = ["usable_margin: 100ms", "authorization_server: {timeout: 2s}"];
    let sidecar = Sidecar::start(&Crm { keys: &keys, ..crm(server.token_url(), upstream.address) }.text()).await;
    outage.begin(&mut server).await;
    let count = steadily_served(&sidecar, Duration::from_secs(20), Duration::from_secs(1)).await;
    assert!(count > 100, "{count} requests are too few to prove anything");
    assert_eq!(authorization_values(&upstream.received()).len(), 1);
    assert!(
        token_requests(&sidecar, "crm", "unavailable").await >= 1.0,
        "no refresh failed during the outage\n{}",
        sidecar.log()
    );
}

#[tokio::test]
async fn an_expired_token_is_not_sent_and_service_resumes_after_an_outage() {
    tokio::join!(outage_past_expiry(Outage::Closed), outage_past_expiry(Outage::Stopped));
}

async fn outage_past_expiry(outage: Outage) {
    let mut server = AuthorizationServer::op(json!({"lifetime": 4})).await;
    let options = json!({"unreachable": "accept", "introspect_timeout_ms": 300});
    let upstream = Upstream::start_with(&server, options).await;
    // The refresh is due as late as possible, so that the second attempt (two seconds later) reaches the server.
    let keys = ["refresh_ahead: 100ms", "usable_margin: 100ms", "authorization_server: {timeout: 1s}"];
    let config = Crm { keys: &keys, ..crm(server.token_url(), local(upstream.http_port())) }.text();
    let sidecar = Sidecar::start(&config).await;
    assert_eq!(get(&sidecar).await.status, 200);
    let expires = expiry(&sidecar, "crm").await;
    outage.begin(&mut server).await;

    wait_until("the token has expired", async || {
        let response = get(&sidecar).await;
        if response.status != 200 {
            check_unavailable(&response);
        }
        response.status != 200
    })
    .await;
    assert!(wall_s() >= expires - 0.5, "a usable token was not served");
    let passed = upstream.summary().await["total"].clone();
    for response in get_concurrently(&sidecar, 20).await {
        check_unavailable(&response);
    }
    assert_eq!(upstream.summary().await["total"], passed, "{outage:?}: a request was forwarded without a token");

    outage.end(&mut server).await;
    wait_until("service resumes", async || get(&sidecar).await.status == 200).await;
    let records = upstream.records().await;
    for record in &records {
        let at = record["at_ms"].as_f64().expect("a time") / 1000.0;
        let old = record["headers"] == records[0]["headers"];
        assert!(at < expires || !old, "{outage:?}: a token arrived {:.3} s after its expiry", at - expires);
        assert!(matches!(record["verdict"].as_str(), Some("active" | "unreachable")), "{outage:?}: {record}");
        assert_eq!(record["authorization_count"], 1);
    }
    let last = records.last().expect("records");
    assert_eq!((&last["verdict"], last["headers"] == records[0]["headers"]), (&json!("active"), false));
}

#[tokio::test]
async fn a_hung_token_endpoint_delays_requests_only_after_expiry_and_for_token_wait() {
    let server = Scripted::start(|_, before| if before == 0 { Reply::token("first", 4) } else { Reply::Silence }).await;
    let upstream = Scripted::upstream().await;
    let config = Crm {
        top: "timeouts: {token_wait: 1s}\n",
        keys: &["usable_margin: 100ms"],
        ..crm(token_url(&server), upstream.address)
    };
    let sidecar = Sidecar::start(&config.text()).await;
    wait_until("the refresh hangs", async || {
        steadily_served(&sidecar, Duration::ZERO, Duration::from_millis(500)).await;
        server.count() == 2
    })
    .await;
    steadily_served(&sidecar, Duration::from_secs(1), Duration::from_millis(500)).await;

    let expired = expiry(&sidecar, "crm").await - wall_s();
    sleep(Duration::from_secs_f64(expired.max(0.0))).await;
    let (passed, began) = (upstream.count(), Instant::now());
    for response in get_concurrently(&sidecar, 20).await {
        check_unavailable(&response);
    }
    let took = began.elapsed();
    assert!((Duration::from_millis(990)..Duration::from_secs(3)).contains(&took), "{took:?}");
    assert_eq!((upstream.count(), server.count()), (passed, 2));
}

#[tokio::test]
async fn a_sidecar_suspended_past_expiry_never_sends_the_expired_token() {
    let server = AuthorizationServer::op(json!({"lifetime": 3})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&crm(server.token_url(), local(upstream.http_port())).text()).await;
    assert_eq!(get(&sidecar).await.status, 200);
    let mut waiting = Conn::open(sidecar.proxy()).await;
    sidecar.signal("STOP");
    sleep(Duration::from_secs(4)).await;
    // The request is in the socket before the sidecar resumes, so no refresh can have happened first.
    waiting.write(format!("GET {URL} HTTP/1.1\r\nHost: api.test\r\n\r\n").as_bytes()).await;
    sidecar.signal("CONT");
    assert_eq!(waiting.read_response().await.status, 200, "{}", sidecar.log());
    let records = upstream.records().await;
    let verdicts: Vec<_> = records.iter().map(|record| &record["verdict"]).collect();
    assert_eq!(verdicts, ["active", "active"]);
}
