//! `kill -9` under rotation: what the store had acknowledged is there afterwards, and what could not be is explained.
//!
//! Holds, after every kill: the store opens; if the program had logged every rotation of the server, requests are served
//! at once; if the server had rotated and the answer was lost, the old refresh token is sent once and then a person is
//! asked for.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::rig::crm::{get, person};
use crate::rig::manager::import_refresh_token;
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::sidecar::{Sidecar, scale};

const PATIENCE: Duration = Duration::from_secs(10);

/// Rounds in CI; at length fifteen times as many.
fn rounds() -> u32 {
    if scale() > 1 { 300 } else { 20 }
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
    for round in 0..rounds() {
        let planned = round % 3 == 2;
        // Between two rotations of this length every phase of one is met.
        sleep(Duration::from_millis(fastrand::u64(0..900))).await;
        if planned {
            // The server rotates, and its answer lacks the last byte.
            let held = count(&server, "held").await;
            server.control(json!({ "hold": true })).await;
            until("an answer that is held back", async || count(&server, "held").await > held).await;
        }
        let (dir, addresses, log) = sidecar.crash().await;
        server.control(json!({ "hold": false })).await;
        let (rotated, asked) = (count(&server, "rotations").await, server.token_requests("person").await);
        let acknowledged = log.lines().filter(|line| line.contains("\"token obtained\"")).count() as u64;
        sidecar = Sidecar::start_over(dir, addresses, &[]).await;
        match settled(&sidecar).await {
            200 => {
                assert!(!planned, "round {round}: the answer was never complete, and yet its token is there");
                kept += 1;
                rotated_before = rotated;
                continue;
            }
            424 if planned => {
                lost_as_planned += 1;
                assert_eq!(server.token_requests("person").await, asked + 1, "the old token is sent once");
            }
            424 => {
                lost += 1;
                let rotated = count(&server, "rotations").await - rotated_before;
                assert!(rotated > acknowledged, "round {round}: all {rotated} rotations were acknowledged\n{log}");
            }
            other => panic!("round {round}: {other}\n{}", sidecar.log()),
        }
        let asked = server.token_requests("person").await;
        let (dir, addresses, _) = sidecar.crash().await;
        sidecar = Sidecar::start_over(dir, addresses, &[]).await;
        assert_eq!(settled(&sidecar).await, 424);
        assert_eq!(server.token_requests("person").await, asked, "another start does not send it again");
        rotated_before = count(&server, "rotations").await;
        connect(&sidecar, &server).await;
    }
    println!("{} kills: {kept} lost nothing, {lost_as_planned} of the held answers were lost, {lost} others", rounds());
    assert!(kept > 0 && lost_as_planned == rounds() / 3);
    assert!(
        lost * 10 <= rounds(),
        "{lost} of {} random kills fell between the server's rotation and our write",
        rounds()
    );
}

/// Hands in a new refresh token, as a person would.
async fn connect(sidecar: &Sidecar, server: &AuthorizationServer) {
    let answer = import_refresh_token(sidecar, &server.refresh_token("ann").await, None).await;
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), sidecar.log());
}

async fn count(server: &AuthorizationServer, name: &str) -> u64 {
    server.stats().await[name].as_u64().unwrap_or_default()
}

/// 200 once the server has given another token, 424 once a person is asked for; else what the last request was told.
async fn settled(sidecar: &Sidecar) -> u16 {
    let begun = Instant::now();
    loop {
        let answer = get(sidecar, "").await;
        // What was stored may be usable for a moment yet, and decides nothing.
        let renewed = sidecar.log().contains("\"token obtained\"");
        if answer.status == 424 || (answer.status == 200 && renewed) || begun.elapsed() > PATIENCE {
            return answer.status;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "it never came about: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
