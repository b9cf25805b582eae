//! One token request serves all callers of a cold token, and outlives the caller that caused it.

use serde_json::json;

use super::{COLD, Crm, URL, at_once, crm, get, seen, until};
use crate::rig::peers::AuthorizationServer;
use crate::rig::raw::Conn;
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;

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
