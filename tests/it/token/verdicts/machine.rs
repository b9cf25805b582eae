//! Grants that need no person: they follow a refused refresh token at once, and the next attempt comes in time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::{
    PASSWORD, PATIENCE, Response, asked, bare, connections, crm, get, html, is_refresh, last_attempt, number, numbered,
    refresh, refusal, seconds_between, served, tokens,
};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::until;

#[tokio::test]
async fn a_grant_that_needs_no_person_follows_a_refused_refresh_token_in_the_same_attempt() {
    const REFUSALS: [Response; 8] = [
        || bare(400),
        || bare(401),
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
        served(&sidecar, &format!("{name}.test")).await;
        let answer = refresh(&sidecar, name).await;
        assert_eq!(answer.status, 200, "{name}: {}\n{}", answer.text(), sidecar.log());
        assert_eq!(asked(&server, name), ["password", "dead", "password"], "{name}");
    }
    assert!(!sidecar.log().contains("s3cret-of-the-client"));
}

#[tokio::test]
async fn a_refresh_token_outlives_a_refused_client_a_busy_server_and_a_broken_one() {
    const FAILURES: [Response; 7] = [
        || refusal(401, "invalid_client"),
        || bare(429),
        || refusal(429, "invalid_grant"),
        || refusal(500, "invalid_grant"),
        || bare(503),
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
    // `failed` is true after the first refresh alone: the first grant of each is no refresh.
    let of = numbered(FAILURES.len(), &format!("{PASSWORD}, usable_margin: 100ms"));
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    // Whatever the verdict, the next attempt comes before the token's end, with the same refresh token.
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        for (name, _) in &of {
            let answer = get(&sidecar, &format!("{name}.test")).await;
            assert_eq!(answer.status, 200, "{name}: {}\n{}", answer.text(), sidecar.log());
        }
        sleep(Duration::from_millis(50)).await;
    }
    for (name, _) in &of {
        let asked = asked(&server, name);
        assert!(asked.len() >= 3, "{name}: {asked:?}");
        assert_eq!(asked[0], "password", "{name}");
        assert!(asked[1..].iter().all(|token| token == "alive"), "{name}: {asked:?}");
    }
}

#[tokio::test]
async fn a_refused_refresh_token_strands_no_caller_across_a_restart() {
    let upstream = Scripted::upstream().await;
    let down = Arc::new(AtomicBool::new(false));
    let is_down = down.clone();
    let server = Scripted::start(move |request, before| match (is_refresh(request), is_down.load(Ordering::SeqCst)) {
        (true, _) => bare(400),
        (false, true) => bare(503),
        (false, false) => tokens(&format!("t{before}"), "dead", 1),
    })
    .await;
    let sidecar = Sidecar::start(&crm(&server, &upstream, "", PASSWORD)).await;
    served(&sidecar, "api.test").await;
    // From here on neither works, until another program starts over what this one has left.
    down.store(true, Ordering::SeqCst);
    until("the refresh token is refused", || asked(&server, "crm").iter().any(|token| token == "dead")).await;
    let (dir, addresses, _) = sidecar.crash().await;
    // Not from the store: the token is over.
    sleep(Duration::from_secs(1)).await;
    down.store(false, Ordering::SeqCst);
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    let own_grant = || asked(&server, "crm").last().is_some_and(|last| last == "password");
    until("its own grant follows", own_grant).await;
    served(&sidecar, "api.test").await;
}

#[tokio::test]
async fn a_stray_response_at_the_first_request_is_retried_within_seconds() {
    const STRAY: [Response; 8] = [
        || html(404),
        || html(403),
        || html(400),
        || bare(400),
        || bare(401),
        || html(405),
        || Reply::Bytes(b"HTTP/1.1 302 X\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n".to_vec()),
        || Reply::json(403, &json!({"status": 403, "error": "Forbidden", "path": "/oauth/token"})),
    ];
    let upstream = Scripted::upstream().await;
    let strayed = Mutex::new([false; STRAY.len()]);
    let server = Scripted::start(move |request, _| {
        let number = number(request);
        match std::mem::replace(&mut strayed.lock().unwrap()[number], true) {
            false => STRAY[number](),
            true => Reply::token("t", 3600),
        }
    })
    .await;
    let of = numbered(STRAY.len(), "comments: stray");
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    let begun = Instant::now();
    let hosts: Vec<_> = of.iter().map(|(name, _)| format!("{name}.test")).collect();
    for answer in join_all(hosts.iter().map(|host| get(&sidecar, host))).await {
        // Some may have been asked for again already.
        if answer.status == 200 {
            continue;
        }
        assert_eq!((answer.status, answer.code()), (503, "token_unavailable"), "{}", answer.text());
        assert_eq!(answer.json()["action"], "retry_later");
        let seconds: u64 = answer.header("retry-after").expect("Retry-After").parse().expect("seconds");
        assert!((1..=3).contains(&seconds), "{seconds}");
    }
    for host in &hosts {
        served(&sidecar, host).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_permanent_verdict_does_not_outlast_the_present_token() {
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|_, before| match before {
        1 => refusal(400, "invalid_scope"),
        _ => Reply::token(&format!("t{before}"), 4),
    })
    .await;
    let sidecar = Sidecar::start(&crm(&server, &upstream, "", "comments: none")).await;
    until("the refresh is refused", || server.count() >= 2).await;
    let attempt = async {
        loop {
            let attempt = last_attempt(&sidecar, "crm").await;
            if attempt["error"] == "invalid_scope" {
                return attempt;
            }
        }
    };
    let attempt = timeout(PATIENCE, attempt).await.expect("it is shown");
    assert!(seconds_between(&attempt["at"], &attempt["next_at"]) <= 3, "{attempt}");
    until("it is asked again", || server.count() >= 3).await;
    served(&sidecar, "api.test").await;
}

#[tokio::test]
async fn the_pause_between_forced_refreshes_grows_until_the_upstream_accepts_a_token() {
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
    let forced = |name: &str| asked(&server, name).len() - 1;
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
    // One request with the current token is accepted, at one of the two.
    accepts.store(true, Ordering::SeqCst);
    assert_eq!(get(&sidecar, "c0.test").await.status, 200);
    accepts.store(false, Ordering::SeqCst);
    while forced("c0") == 2 {
        assert!(forced_at.elapsed() < Duration::from_secs(15), "{}", sidecar.log());
        reject().await;
        sleep(Duration::from_millis(100)).await;
    }
    assert!(forced_at.elapsed() > Duration::from_secs(9), "{:?}", forced_at.elapsed());
    assert_eq!(forced("c1"), 2, "twenty seconds for the one whose tokens are all rejected");
}
