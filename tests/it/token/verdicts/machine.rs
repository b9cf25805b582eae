//! Grants that need no person: fall back at once when a refresh token is refused, and retry before the token expires.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::{
    PASSWORD, Response, TIMEOUT, connections, crm, empty_response, get, html, is_refresh, last_attempt, number,
    numbered, refresh, refusal, seconds_between, sent_grants, tokens, wait_until_served,
};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::wait_until;

#[tokio::test]
async fn a_grant_that_needs_no_person_falls_back_to_its_own_grant_in_the_same_attempt() {
    const REFUSALS: [Response; 8] = [
        || empty_response(400),
        || empty_response(401),
        || refusal(400, "unsupported_grant_type"),
        || Reply::json(401, &json!({"error": "server_error", "error_description": "access_denied"})),
        || refusal(400, "invalid_grant"),
        || refusal(403, "unauthorized_client"),
        || refusal(400, "interaction_required"),
        || Reply::json(200, &json!({"error": "token_revoked_by_admin"})),
    ];
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|request, before| match is_refresh(request) {
        true => REFUSALS[number(request)](),
        false => tokens(&format!("t{before}"), "dead", 3600),
    })
    .await;
    let of = numbered(REFUSALS.len(), PASSWORD);
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    for (name, _) in &of {
        wait_until_served(&sidecar, &format!("{name}.test")).await;
        let response = refresh(&sidecar, name).await;
        assert_eq!(response.status, 200, "{name}: {}\n{}", response.text(), sidecar.log());
        assert_eq!(sent_grants(&server, name), ["password", "dead", "password"], "{name}");
    }
    assert!(!sidecar.log().contains("s3cret-of-the-client"));
}

#[tokio::test]
async fn a_refresh_token_survives_a_refused_client_and_a_failing_server() {
    const FAILURES: [Response; 7] = [
        || refusal(401, "invalid_client"),
        || empty_response(429),
        || refusal(429, "invalid_grant"),
        || refusal(500, "invalid_grant"),
        || empty_response(503),
        || html(403),
        || html(404),
    ];
    let upstream = Scripted::upstream().await;
    let failed = Mutex::new([false; FAILURES.len()]);
    let server = Scripted::start(move |request, before| {
        let number = number(request);
        let first = is_refresh(request) && !std::mem::replace(&mut failed.lock().unwrap()[number], true);
        if first { FAILURES[number]() } else { tokens(&format!("t{before}"), "alive", 4) }
    })
    .await;
    // `failed` is set by the first refresh, not by the first grant.
    let of = numbered(FAILURES.len(), &format!("{PASSWORD}, usable_margin: 100ms"));
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    // In each case the next attempt sends the same refresh token before the access token expires.
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        for (name, _) in &of {
            let response = get(&sidecar, &format!("{name}.test")).await;
            assert_eq!(response.status, 200, "{name}: {}\n{}", response.text(), sidecar.log());
        }
        sleep(Duration::from_millis(50)).await;
    }
    for (name, _) in &of {
        let sent = sent_grants(&server, name);
        assert!(sent.len() >= 3, "{name}: {sent:?}");
        assert_eq!(sent[0], "password", "{name}");
        assert!(sent[1..].iter().all(|token| token == "alive"), "{name}: {sent:?}");
    }
}

#[tokio::test]
async fn a_restart_after_a_refused_refresh_token_falls_back_to_the_own_grant() {
    let upstream = Scripted::upstream().await;
    let down = Arc::new(AtomicBool::new(false));
    let is_down = down.clone();
    let server = Scripted::start(move |request, before| match (is_refresh(request), is_down.load(Ordering::SeqCst)) {
        (true, _) => empty_response(400),
        (false, true) => empty_response(503),
        (false, false) => tokens(&format!("t{before}"), "dead", 1),
    })
    .await;
    let sidecar = Sidecar::start(&crm(&server, &upstream, "", PASSWORD)).await;
    wait_until_served(&sidecar, "api.test").await;
    // From here on both grants fail, until the program restarts.
    down.store(true, Ordering::SeqCst);
    wait_until("the refresh token is refused", || sent_grants(&server, "crm").iter().any(|token| token == "dead"))
        .await;
    let (dir, addresses, _) = sidecar.crash().await;
    // Let the stored token expire, so that the restart cannot serve it.
    sleep(Duration::from_secs(1)).await;
    down.store(false, Ordering::SeqCst);
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    let own_grant = || sent_grants(&server, "crm").last().is_some_and(|last| last == "password");
    wait_until("it falls back to its own grant", own_grant).await;
    wait_until_served(&sidecar, "api.test").await;
}

#[tokio::test]
async fn an_unexpected_first_response_is_retried_within_seconds() {
    const UNEXPECTED: [Response; 8] = [
        || html(404),
        || html(403),
        || html(400),
        || empty_response(400),
        || empty_response(401),
        || html(405),
        || Reply::Bytes(b"HTTP/1.1 302 X\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n".to_vec()),
        || Reply::json(403, &json!({"status": 403, "error": "Forbidden", "path": "/oauth/token"})),
    ];
    let upstream = Scripted::upstream().await;
    let responded = Mutex::new([false; UNEXPECTED.len()]);
    let server = Scripted::start(move |request, _| {
        let number = number(request);
        match std::mem::replace(&mut responded.lock().unwrap()[number], true) {
            false => UNEXPECTED[number](),
            true => Reply::token("t", 3600),
        }
    })
    .await;
    let of = numbered(UNEXPECTED.len(), "comments: none");
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    let started = Instant::now();
    let hosts: Vec<_> = of.iter().map(|(name, _)| format!("{name}.test")).collect();
    for response in join_all(hosts.iter().map(|host| get(&sidecar, host))).await {
        // Some connections may have retried already.
        if response.status == 200 {
            continue;
        }
        assert_eq!((response.status, response.code()), (503, "token_unavailable"), "{}", response.text());
        assert_eq!(response.json()["action"], "retry_later");
        let seconds: u64 = response.header("retry-after").expect("Retry-After").parse().expect("seconds");
        assert!((1..=3).contains(&seconds), "{seconds}");
    }
    for host in &hosts {
        wait_until_served(&sidecar, host).await;
    }
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_permanent_failure_is_retried_when_the_current_token_expires() {
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|_, before| match before {
        1 => refusal(400, "invalid_scope"),
        _ => Reply::token(&format!("t{before}"), 4),
    })
    .await;
    let sidecar = Sidecar::start(&crm(&server, &upstream, "", "comments: none")).await;
    wait_until("the refresh is refused", || server.count() >= 2).await;
    let attempt = async {
        loop {
            let attempt = last_attempt(&sidecar, "crm").await;
            if attempt["error"] == "invalid_scope" {
                return attempt;
            }
        }
    };
    let attempt = timeout(TIMEOUT, attempt).await.expect("the API shows the failure");
    assert!(seconds_between(&attempt["at"], &attempt["next_at"]) <= 3, "{attempt}");
    wait_until("it retries", || server.count() >= 3).await;
    wait_until_served(&sidecar, "api.test").await;
}

#[tokio::test]
async fn the_rejection_backoff_grows_until_the_upstream_accepts_a_token() {
    let accepts = Arc::new(AtomicBool::new(false));
    let now = accepts.clone();
    let upstream = Scripted::start(move |request, _| {
        let accepted = request.values("host")[0].starts_with("c0") && now.load(Ordering::SeqCst);
        if accepted { Reply::ok() } else { Reply::text(401, "text/plain", "go away") }
    })
    .await;
    let server = Scripted::tokens(3600).await;
    let of = numbered(2, "comments: none");
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    let forced = |name: &str| sent_grants(&server, name).len() - 1;
    let reject = async || {
        for host in ["c0.test", "c1.test"] {
            assert_eq!(get(&sidecar, host).await.status, 401);
        }
    };
    reject().await;
    assert_eq!([forced("c0"), forced("c1")], [1, 1]);
    let second = Instant::now() + Duration::from_secs(15);
    while [forced("c0"), forced("c1")] != [2, 2] {
        assert!(Instant::now() < second, "{}", sidecar.log());
        reject().await;
        sleep(Duration::from_millis(100)).await;
    }
    let forced_at = Instant::now();
    // The upstream accepts the current token of one connection, once.
    accepts.store(true, Ordering::SeqCst);
    assert_eq!(get(&sidecar, "c0.test").await.status, 200);
    accepts.store(false, Ordering::SeqCst);
    while forced("c0") == 2 {
        assert!(forced_at.elapsed() < Duration::from_secs(15), "{}", sidecar.log());
        reject().await;
        sleep(Duration::from_millis(100)).await;
    }
    assert!(forced_at.elapsed() > Duration::from_secs(9), "{:?}", forced_at.elapsed());
    assert_eq!(forced("c1"), 2, "the backoff of the other connection is twenty seconds");
}
