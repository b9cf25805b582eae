//! Token responses: lifetimes as servers state them, failures of every kind, and the time of the next attempt.
//!
//! Not here: which failures are permanent (`token::verdicts`).

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::sleep;

use super::{
    COLD, Crm, authorization_values, check_own, check_unavailable, crm, expiry, get, get_concurrently, local, number,
    numbered, steadily_served, token_requests, token_url, wait_until, wall_s,
};
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::raw::{self, RawResponse};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

async fn get_numbered(sidecar: &Sidecar, number: usize) -> RawResponse {
    raw::get_through(sidecar.proxy(), &format!("http://c{number}.test/"), "").await
}

#[tokio::test]
async fn a_failed_refresh_keeps_the_token_until_it_expires() {
    /// The outcome label, and the server's reply.
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
    let counts = Arc::new(Mutex::new([0; FAULTS.len()]));
    let server_counts = counts.clone();
    let server = Scripted::start(move |request, _| {
        let number = number(request);
        let count = &mut server_counts.lock().unwrap()[number];
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
        wait_until(&what, async || token_requests(&sidecar, &format!("c{number}"), outcome).await >= 1.0).await;
        assert_eq!(get_numbered(&sidecar, number).await.status, 200, "fault {number}");
    }
    assert!(began.elapsed() < Duration::from_secs(8), "too slow: the tokens may have expired: {:?}", began.elapsed());
    sleep(Duration::from_secs(9).saturating_sub(began.elapsed())).await;
    let passed = upstream.count();
    for number in 0..FAULTS.len() {
        check_unavailable(&get_numbered(&sidecar, number).await);
    }
    assert_eq!(upstream.count(), passed);
    // One success, then three attempts: when the token was due, two seconds later, and at its expiry.
    assert!(counts.lock().unwrap().iter().all(|count| *count <= 4), "{counts:?}");
}

#[tokio::test]
async fn expires_in_is_parsed_leniently() {
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
    let responses = table.clone();
    let server = Scripted::start(move |request, _| {
        let mut response =
            json!({"access_token": "t", "token_type": "Bearer", "expires_in": responses[number(request)].0});
        if response["expires_in"].is_null() {
            response.as_object_mut().expect("a JSON object").remove("expires_in");
        }
        Reply::json(200, &response)
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
async fn a_token_without_expires_in_gets_the_default_lifetime() {
    let server = AuthorizationServer::al(json!({"lifetime": 60})).await;
    server.control(json!({"announce_lifetime": false})).await;
    let upstream = Upstream::start(&server).await;
    let keys = ["default_token_lifetime: 2s"];
    let config = Crm { keys: &keys, ..crm(server.token_url(), local(upstream.http_port())) }.text();
    let sidecar = Sidecar::start(&config).await;
    steadily_served(&sidecar, Duration::from_secs(4), Duration::from_secs(2)).await;
    let sent = server.token_requests("machine").await;
    assert!((3..=5).contains(&sent), "{sent} token requests in four seconds");
    assert_eq!(upstream.summary().await["inactive"], 0);
}

#[tokio::test]
async fn a_repeated_token_causes_no_tight_loop() {
    let began = Instant::now();
    // Returns the same token until it expires after four seconds, then the next one.
    let server = Scripted::start(move |_, _| {
        let left = 4u64.saturating_sub(began.elapsed().as_secs());
        if left > 0 { Reply::token("same", left) } else { Reply::token("next", 60) }
    })
    .await;
    let upstream = Scripted::upstream().await;
    let sidecar = Sidecar::start(&crm(token_url(&server), upstream.address).text()).await;
    steadily_served(&sidecar, Duration::from_secs(6), Duration::from_secs(1)).await;
    assert_eq!(authorization_values(&upstream.received()), ["Bearer next", "Bearer same"].map(str::to_owned).into());
    assert!((3..=6).contains(&server.count()), "{} token requests", server.count());
}

#[tokio::test]
async fn a_tiny_lifetime_causes_no_tight_loop() {
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
async fn an_error_in_a_200_response_is_a_failure_with_the_servers_code() {
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
async fn an_empty_response_is_retried() {
    let server = Scripted::start(|_, before| match before {
        0 => Reply::text(200, "application/json", ""),
        _ => Reply::token("good", 60),
    })
    .await;
    let upstream = Scripted::upstream().await;
    let sidecar = Sidecar::start(&crm(token_url(&server), upstream.address).text()).await;
    check_unavailable(&get(&sidecar).await);
    wait_until("the next response is used", async || get(&sidecar).await.status == 200).await;
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn a_request_that_fails_once_is_retried() {
    let server = AuthorizationServer::op(json!({"lifetime": 60})).await;
    server.control(json!({"status": 503, "times": 1})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&crm(server.token_url(), local(upstream.http_port())).text()).await;
    check_unavailable(&get(&sidecar).await);
    wait_until("the second response is used", async || get(&sidecar).await.status == 200).await;
    assert_eq!(server.token_requests("machine").await, 2);
    let counted = (token_requests(&sidecar, "crm", "unavailable").await, token_requests(&sidecar, "crm", "ok").await);
    assert_eq!(counted, (1.0, 1.0));
}

#[tokio::test]
async fn retry_after_delays_only_its_own_connection() {
    const RETRY_AFTER_S: u64 = 4;
    let times = Arc::<Mutex<Vec<Instant>>>::default();
    let arrivals = times.clone();
    let server = Scripted::start(move |request, _| {
        if number(request) == 1 {
            return Reply::token("other", 3);
        }
        let mut arrivals = arrivals.lock().unwrap();
        arrivals.push(Instant::now());
        match arrivals.len() {
            1 => Reply::Bytes(
                format!("HTTP/1.1 429 X\r\nRetry-After: {RETRY_AFTER_S}\r\nContent-Length: 0\r\n\r\n").into_bytes(),
            ),
            _ => Reply::token("late", 60),
        }
    })
    .await;
    let upstream = Scripted::upstream().await;
    let sidecar = Sidecar::start(&numbered(&server, &upstream, &["client_id: a, client_secret: b"; 2])).await;
    for response in join_all((0..20).map(|_| get_numbered(&sidecar, 0))).await {
        check_unavailable(&response);
        let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
        assert!((2..=RETRY_AFTER_S + 1).contains(&seconds), "{seconds}");
    }
    wait_until("the backoff is over", async || {
        assert_eq!(get_numbered(&sidecar, 1).await.status, 200, "the other connection is affected");
        get_numbered(&sidecar, 0).await.status == 200
    })
    .await;
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 2);
    let backoff = times[1] - times[0];
    assert!((RETRY_AFTER_S as f64..RETRY_AFTER_S as f64 * 1.2 + 1.0).contains(&backoff.as_secs_f64()), "{backoff:?}");
    assert!(server.count() >= 2 + 2, "the other connection was not refreshed");
}

#[tokio::test]
async fn a_refused_client_fails_requests_without_further_token_requests() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Scripted::upstream().await;
    let client = ["client_id: machine", "client_secret: not-the-secret"];
    let config = Crm { client: &client, ..crm(server.token_url(), upstream.address) }.text();
    let sidecar = Sidecar::start(&config).await;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for response in get_concurrently(&sidecar, 5).await {
            check_own(&response, 424, "token_refused", "fix_configuration");
            assert!(response.text().contains("invalid_client"), "{}", response.text());
            assert_eq!(response.json()["connection"], "crm");
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.token_requests("machine").await, 1);
    assert_eq!(token_requests(&sidecar, "crm", "refused").await, 1.0);
    assert_eq!(upstream.count(), 0);
}
