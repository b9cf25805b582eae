//! Tokens that the upstream rejects: one refresh for all requests, one replay per request.
//!
//! Not here: rejections recognized by the body (`token::endpoint`, `token::content_codings`).

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::{Crm, URL, authorization_values, crm, get, get_concurrently, local, token_url, wait_until};
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::raw::{self, Conn, RawResponse};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

async fn post(sidecar: &Sidecar, body: &[u8]) -> RawResponse {
    let length = body.len();
    let head =
        format!("POST {URL} HTTP/1.1\r\nHost: api.test\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    raw::send(sidecar.proxy(), &[head.as_bytes(), body].concat()).await
}

async fn replays(sidecar: &Sidecar, outcome: &str) -> f64 {
    sidecar.metric(&format!("keybearer_replays_total{{connection=\"crm\",outcome=\"{outcome}\"}}")).await
}

#[tokio::test]
async fn a_request_with_a_revoked_token_is_replayed_with_a_new_one() {
    let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&crm(server.token_url(), local(upstream.http_port())).text()).await;
    assert_eq!(get(&sidecar).await.status, 200);
    server.control(json!({"revoke_all": true})).await;
    let response = get(&sidecar).await;
    assert_eq!((response.status, response.json()["active"].as_bool()), (200, Some(true)));
    let verdicts: Vec<_> = upstream.records().await.iter().map(|record| record["verdict"].clone()).collect();
    assert_eq!(verdicts, ["active", "inactive", "active"]);
    assert_eq!(server.token_requests("machine").await, 2);
    assert_eq!(replays(&sidecar, "accepted").await, 1.0);
}

#[tokio::test]
async fn fifty_requests_with_a_revoked_token_share_one_refresh() {
    let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&crm(server.token_url(), local(upstream.http_port())).text()).await;
    // The refresh takes longer than all fifty rejections.
    server.control(json!({"revoke_all": true, "delay_ms": 1000})).await;
    let responses = get_concurrently(&sidecar, 50).await;
    assert!(
        responses.iter().all(|response| response.status == 200),
        "{:?}",
        responses.iter().find(|a| a.status != 200)
    );
    assert_eq!(server.token_requests("machine").await, 2);
    let summary = upstream.summary().await;
    assert!(summary["inactive"].as_u64() > Some(20), "too few requests carried the old token: {summary}");
    assert_eq!(summary["active"], 50);
}

#[tokio::test]
async fn a_persistent_401_reaches_the_caller_after_one_refresh_and_one_replay() {
    let server = Scripted::tokens(3600).await;
    let upstream = Scripted::start(|_, _| Reply::text(401, "text/plain", "go away")).await;
    let sidecar = Sidecar::start(&crm(token_url(&server), upstream.address).text()).await;
    let check = |response: &RawResponse| {
        assert_eq!((response.status, response.code(), &*response.text()), (401, "", "go away"))
    };
    let began = Instant::now();
    check(&get(&sidecar).await);
    assert_eq!((server.count(), upstream.count()), (2, 2));
    assert_eq!(
        authorization_values(&upstream.received()),
        ["Bearer token-1", "Bearer token-2"].map(str::to_owned).into()
    );
    assert_eq!(replays(&sidecar, "rejected").await, 1.0);
    for _ in 0..40 {
        get_concurrently(&sidecar, 25).await.iter().for_each(check);
    }
    // At most one forced refresh in ten seconds; each serves the requests that wait for it.
    let refreshes = 1 + began.elapsed().as_secs() as usize / 10;
    assert!((2..=1 + refreshes).contains(&server.count()), "{} in {:?}", server.count(), began.elapsed());
    if refreshes == 1 {
        assert_eq!(upstream.count(), 1002);
    }
}

#[tokio::test]
async fn a_body_up_to_replay_body_is_replayed_in_full() {
    let upstream = Scripted::start(|request, _| match request.values("authorization")[..] {
        ["Bearer token-1"] => Reply::text(401, "text/plain", "expired"),
        _ => Reply::ok(),
    })
    .await;
    for (bytes, status, arrivals) in [(1, 200, 2), (2048, 200, 2), (2049, 401, 1), (1 << 20, 401, 1)] {
        // A new sidecar and server per row, so that each starts with `token-1`.
        let arrived = upstream.count();
        let server = Scripted::tokens(3600).await;
        let config = Crm { top: "limits: {replay_body: 2KiB}\n", ..crm(token_url(&server), upstream.address) };
        let sidecar = Sidecar::start(&config.text()).await;
        let body: Vec<u8> = (0..bytes).map(|n| b"0123456789abcdefghijklmnopqrstuvwxyz!"[n % 37]).collect();
        let response = post(&sidecar, &body).await;
        assert_eq!(response.status, status, "{bytes} bytes: {}", response.text());
        let received = upstream.received().split_off(arrived);
        assert_eq!(received.len(), arrivals, "{bytes} bytes");
        assert!(received.iter().all(|request| request.body == body), "{bytes} bytes arrived changed");
        assert!(received.iter().all(|request| request.values("content-length") == [bytes.to_string()]));
        // Later requests benefit from the refresh even if this one could not be replayed.
        assert_eq!(server.count(), 2, "{bytes} bytes");
        assert_eq!(post(&sidecar, &body).await.status, 200);
    }
}

#[tokio::test]
async fn a_partially_received_body_is_never_replayed() {
    // Rejects the first token as soon as the head has arrived; records what each connection received.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("a bound listener");
    let bodies = Arc::<Mutex<Vec<String>>>::default();
    let log = bodies.clone();
    let upstream = tokio::spawn(async move {
        let mut conns = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = log.clone();
            conns.spawn(async move {
                let (mut text, mut buffer, mut responded) = (String::new(), [0; 4096], false);
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    text.push_str(&String::from_utf8_lossy(&buffer[..count]));
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let (early, whole) = (head.contains("Bearer token-1"), body.ends_with("0\r\n\r\n"));
                    let status = if early { 401 } else { 200 };
                    if (early || whole) && !responded {
                        responded = true;
                        let response = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                        let _ = stream.write_all(response.as_bytes()).await;
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
    wait_until("the rejection has forced a refresh", async || server.count() == 2).await;
    for letter in ["b", "c", "d", "e"] {
        conn.write(chunk(letter, 500).as_bytes()).await;
        sleep(Duration::from_millis(50)).await;
    }
    conn.write(b"0\r\n\r\n").await;
    let response = conn.read_response().await;
    drop((conn, sidecar));
    wait_until("each upstream connection has ended", async || {
        let bodies = bodies.lock().unwrap();
        bodies.len() >= if response.status == 200 { 2 } else { 1 }
    })
    .await;
    upstream.abort();
    let letters = |text: &str| text.chars().filter(|c| "abcde".contains(*c)).count();
    for text in bodies.lock().unwrap().iter() {
        let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
        let whole = ["a", "b", "c", "d", "e"].iter().all(|letter| body.matches(letter).count() >= 500);
        assert!(whole || !body.ends_with("0\r\n\r\n"), "truncated to {} bytes but terminated: {head}", letters(body));
    }
    assert!(matches!(response.status, 200 | 401), "{}", response.text());
}

#[tokio::test]
async fn other_statuses_cause_no_refresh_and_pass_unchanged() {
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
        let response = raw::get_through(sidecar.proxy(), &format!("http://api.test/{status}"), "").await;
        let got = (response.status, response.header("retry-after"), response.text(), response.code().to_owned());
        assert_eq!(got, (status, Some("77"), "body".to_owned(), String::new()));
    }
    // A refresh would start at once.
    sleep(Duration::from_millis(500)).await;
    assert_eq!((server.count(), upstream.count()), (1, statuses.len()));
}

#[tokio::test]
async fn a_401_to_a_request_without_our_token_causes_no_refresh() {
    let server = Scripted::tokens(3600).await;
    let upstream = Scripted::start(|_, _| Reply::text(401, "text/plain", "who?")).await;
    for (route, lines, arrived) in [
        (", inject: none", "", vec![]),
        (", inject: none", "Authorization: Bearer mine\r\n", vec!["Bearer mine"]),
        (", existing: keep", "Authorization: Bearer mine\r\n", vec!["Bearer mine"]),
    ] {
        let (token_requests, before) = (server.count(), upstream.count());
        let sidecar = Sidecar::start(&Crm { route, ..crm(token_url(&server), upstream.address) }.text()).await;
        let first = server.count() - token_requests;
        for _ in 0..3 {
            let response = raw::get_through(sidecar.proxy(), URL, lines).await;
            assert_eq!((response.status, response.text().as_str()), (401, "who?"));
        }
        sleep(Duration::from_millis(300)).await;
        assert_eq!(server.count() - token_requests, first, "{route}");
        assert_eq!(upstream.count() - before, 3, "{route}");
        assert!(upstream.received()[before..].iter().all(|request| request.values("authorization") == arrived));
    }
}
