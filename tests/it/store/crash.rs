//! `kill -9` under rotation: every acknowledged write survives, and every loss is explained.
//!
//! Invariants, after every kill: the store opens; if the program had logged every rotation of the server, requests are
//! served at once; if the server had rotated and the response was lost, the old refresh token is sent once, and then
//! consent is required.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::rig::crm::{get, person};
use crate::rig::manager::import_refresh_token;
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::sidecar::{Sidecar, duration_factor};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Number of kills; more in a long run.
fn kill_count() -> u32 {
    if duration_factor() > 1 { 300 } else { 20 }
}

#[tokio::test]
async fn no_acknowledged_refresh_token_is_lost_by_kill_9_under_rotation() {
    let server = AuthorizationServer::op(json!({ "lifetime": 1 })).await;
    let upstream = Upstream::start(&server).await;
    let keys = ", grant: authorization_code, default_token_lifetime: 1s";
    let mut sidecar = Sidecar::start(&person(&server, &upstream, "readiness: {wait_for_tokens: 0s}\n", keys)).await;
    let (mut lost_as_planned, mut lost, mut kept) = (0, 0, 0);
    let mut rotated_before = count(&server, "rotations").await;
    connect(&sidecar, &server).await;
    for round in 0..kill_count() {
        let planned = round % 3 == 2;
        // A random delay hits every phase of a rotation.
        sleep(Duration::from_millis(fastrand::u64(0..900))).await;
        if planned {
            // The server rotates and holds back the last byte of its response.
            let held = count(&server, "held").await;
            server.control(json!({ "hold": true })).await;
            wait_until("a response is held back", async || count(&server, "held").await > held).await;
        }
        let (dir, addresses, log) = sidecar.crash().await;
        server.control(json!({ "hold": false })).await;
        let (rotated, requests) = (count(&server, "rotations").await, server.token_requests("person").await);
        let acknowledged = log.lines().filter(|line| line.contains("\"token acquired\"")).count() as u64;
        sidecar = Sidecar::start_over(dir, addresses, &[]).await;
        match wait_for_outcome(&sidecar).await {
            200 => {
                assert!(!planned, "round {round}: a token exists although its response was never complete");
                kept += 1;
                rotated_before = rotated;
                continue;
            }
            424 if planned => {
                lost_as_planned += 1;
                assert_eq!(server.token_requests("person").await, requests + 1, "the old token is sent once");
            }
            424 => {
                lost += 1;
                let rotated = count(&server, "rotations").await - rotated_before;
                assert!(rotated > acknowledged, "round {round}: all {rotated} rotations were acknowledged\n{log}");
            }
            other => panic!("round {round}: {other}\n{}", sidecar.log()),
        }
        let requests = server.token_requests("person").await;
        let (dir, addresses, _) = sidecar.crash().await;
        sidecar = Sidecar::start_over(dir, addresses, &[]).await;
        assert_eq!(wait_for_outcome(&sidecar).await, 424);
        assert_eq!(server.token_requests("person").await, requests, "another start does not resend it");
        rotated_before = count(&server, "rotations").await;
        connect(&sidecar, &server).await;
    }
    println!(
        "{} kills: {kept} lost nothing, {lost_as_planned} lost a held response, {lost} lost another",
        kill_count()
    );
    assert!(kept > 0 && lost_as_planned == kill_count() / 3);
    assert!(
        lost * 10 <= kill_count(),
        "{lost} of {} random kills fell between the server's rotation and our write",
        kill_count()
    );
}

/// Imports a new refresh token, as a person would.
async fn connect(sidecar: &Sidecar, server: &AuthorizationServer) {
    let response = import_refresh_token(sidecar, &server.refresh_token("ann").await, None).await;
    assert_eq!(response.status, 200, "{}\n{}", response.text(), sidecar.log());
}

async fn count(server: &AuthorizationServer, name: &str) -> u64 {
    server.stats().await[name].as_u64().unwrap_or_default()
}

/// Waits for the outcome: 200 once the server has issued another token, 424 once consent is required. After the
/// timeout: the status of the last request.
async fn wait_for_outcome(sidecar: &Sidecar) -> u16 {
    let started = Instant::now();
    loop {
        let response = get(sidecar, "").await;
        // The stored token may still be usable for a moment, which proves nothing.
        let refreshed = sidecar.log().contains("\"token acquired\"");
        if response.status == 424 || (response.status == 200 && refreshed) || started.elapsed() > TIMEOUT {
            return response.status;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < TIMEOUT, "timed out: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
