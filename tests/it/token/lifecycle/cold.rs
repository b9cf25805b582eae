//! Cold tokens: one token request serves all callers, and outlives the caller that triggered it.

use serde_json::json;

use super::{COLD, Crm, URL, authorization_values, crm, get, get_concurrently, wait_until};
use crate::rig::peers::AuthorizationServer;
use crate::rig::raw::Conn;
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn five_hundred_callers_of_a_cold_token_cause_one_token_request() {
    let (server, upstream) = (AuthorizationServer::op(json!({"lifetime": 60})).await, Scripted::upstream().await);
    // Long enough for most requests to arrive before the token response, even on a busy machine.
    server.control(json!({"delay_ms": 1500})).await;
    let top = format!("{COLD}workers: 2\n");
    let sidecar = Sidecar::spawn(&Crm { top: &top, ..crm(server.token_url(), upstream.address) }.text(), &[]).await;
    let responses = get_concurrently(&sidecar, 500).await;
    assert!(
        responses.iter().all(|response| response.status == 200),
        "{:?}",
        responses.iter().find(|a| a.status != 200)
    );
    let stats = server.stats().await;
    assert_eq!(stats["token_requests"], json!({"machine": 1}));
    assert_eq!(upstream.count(), 500);
    assert_eq!(authorization_values(&upstream.received()).len(), 1);
    let waited = sidecar.metric("keybearer_token_wait_seconds_count").await;
    assert!(waited >= 100.0, "only {waited} requests waited for the token; the test proves nothing");
}

#[tokio::test]
async fn a_caller_that_disconnects_does_not_cancel_the_token_request() {
    let (server, upstream) = (AuthorizationServer::op(json!({"lifetime": 60})).await, Scripted::upstream().await);
    server.control(json!({"delay_ms": 2000})).await;
    let config = Crm { top: COLD, ..crm(server.token_url(), upstream.address) }.text();
    let sidecar = Sidecar::spawn(&config, &[]).await;
    let mut first = Conn::open(sidecar.proxy()).await;
    first.write(format!("GET {URL} HTTP/1.1\r\nHost: api.test\r\n\r\n").as_bytes()).await;
    sidecar.wait_for_metric("keybearer_requests_in_flight", |count| count == 1.0).await;
    wait_until("the token request arrives", async || server.token_requests("machine").await == 1).await;
    let others = async {
        sidecar.wait_for_metric("keybearer_requests_in_flight", |count| count >= 2.0).await;
        drop(first);
    };
    let (responses, ()) = tokio::join!(get_concurrently(&sidecar, 10), others);
    assert!(responses.iter().all(|response| response.status == 200), "{responses:?}");
    assert_eq!(get(&sidecar).await.status, 200);
    assert_eq!(server.token_requests("machine").await, 1);
}
