//! Token requests share a slow authorization server: abandoned ones delay no other connection, and `keep_warm`
//! refreshes many subjects without starving requests.
//!
//! Not here: the order of permits (`src/token/request_limiter`), when a subject is due (`src/token/keep_warm`).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::rig::manager::{MANAGER, call};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn top(upstream: &Scripted) -> String {
    let address = upstream.address;
    format!(
        "admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\n\
         hosts: {{api.test: \"{address}\", other.test: \"{address}\"}}\nconnections:\n"
    )
}

/// The sum of all series of a metric of one connection.
async fn sum(sidecar: &Sidecar, metric: &str, connection: &str) -> f64 {
    let text = raw::get(sidecar.admin(), "/metrics").await.text();
    let of_connection = format!("connection=\"{connection}\"");
    let lines = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(&of_connection));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// Tokens of a connection in memory, attempts in progress included.
async fn in_memory(sidecar: &Sidecar, connection: &str) -> f64 {
    sum(sidecar, "keybearer_tokens", connection).await
}

async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < Duration::from_secs(30), "timed out waiting: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn abandoned_exchanges_delay_no_other_connection() {
    let server = Scripted::start(|request, before| {
        let token = Reply::token(&format!("token-{before}"), 600);
        if request.request_line().contains("/slow") { token.delayed(Duration::from_secs(1)) } else { token }
    })
    .await;
    let (upstream, address) = (Scripted::upstream().await, server.address);
    let keys = "client_id: a, client_secret: b, grant: token_exchange, subject_token: {from: caller}";
    let config = format!(
        "{}- {{name: slow, token_url: \"http://{address}/slow\", {keys}, routes: [{{host: api.test, upstream_tls: false}}]}}\n\
         - {{name: other, token_url: \"http://{address}/other\", {keys}, routes: [{{host: other.test, upstream_tls: false}}]}}\n",
        top(&upstream)
    );
    let sidecar = Sidecar::start(&config).await;
    const ABANDONED: usize = 3000;
    for number in 0..ABANDONED {
        let mut conn = Conn::open(sidecar.proxy()).await;
        let head = format!(
            "GET http://api.test/x HTTP/1.1\r\nHost: api.test\r\nAuthorization: Bearer caller-{number}\r\nConnection: close\r\n\r\n"
        );
        // The sidecar reads the request although its caller has left.
        conn.write(head.as_bytes()).await;
    }
    let first_token = async |caller: &str| {
        let (started, line) = (Instant::now(), format!("Authorization: Bearer {caller}\r\n"));
        let response = raw::get_through(sidecar.proxy(), "http://other.test/x", &line).await;
        assert_eq!(response.status, 200, "{}: {}", response.code(), response.text());
        assert!(started.elapsed() < Duration::from_secs(3), "{caller} waited {:?}", started.elapsed());
    };
    first_token("while-the-others-wait").await;
    let ended = async || sum(&sidecar, "keybearer_requests_total", "slow").await as usize == ABANDONED;
    wait_until("each request has ended", ended).await;
    first_token("after-the-others-have-left").await;
    let slow_requests = || server.received().iter().filter(|request| request.request_line().contains("/slow")).count();
    // Granted tokens stay in memory for a while; every other attempt is abandoned.
    wait_until("no attempt is left", async || in_memory(&sidecar, "slow").await <= slow_requests() as f64).await;
    assert!(slow_requests() < ABANDONED / 4, "{} token requests that no caller waits for", slow_requests());
}

#[tokio::test]
async fn keep_warm_refreshes_a_million_subjects_a_day_and_starves_no_caller() {
    const SUBJECTS: usize = 240;
    let refreshed = Arc::new(Mutex::new(Vec::new()));
    let times = refreshed.clone();
    let server = Scripted::start(move |request: &Received, before| {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let response = json!({ "access_token": format!("t-{before}"), "token_type": "Bearer", "expires_in": 1,
            "refresh_token": format!("r-{before}") });
        let reply = Reply::json(200, &response);
        // Responses to the imports come without delay.
        if form.contains("given-") {
            return reply;
        }
        times.lock().unwrap().push(Instant::now());
        reply.delayed(Duration::from_millis(200))
    })
    .await;
    let (upstream, address) = (Scripted::upstream().await, server.address);
    let config = format!(
        "{}- {{name: crm, token_url: \"http://{address}/token\", client_id: a, client_secret: b, grant: authorization_code, \
         tokens: per_subject, routes: [{{host: api.test, upstream_tls: false}}]}}\n",
        top(&upstream)
    );
    let sidecar = Sidecar::start(&config).await;
    for number in 0..SUBJECTS {
        let body = json!({ "subject": format!("s-{number:04}"), "refresh_token": format!("given-{number}") });
        let response = call(sidecar.admin(), "PUT", "/connections/crm/tokens", &body).await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let (dir, addresses, _) = sidecar.crash().await;
    let file = dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&file).expect("a readable file");
    std::fs::write(&file, text.replace("tokens: per_subject,", "tokens: per_subject, keep_warm: 4s,")).expect("a file");
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;

    let count = || refreshed.lock().unwrap().len();
    wait_until("the keep_warm walk has started", async || count() > 20).await;
    let memory = sidecar.resident_kib();
    // A subject that the walk reaches last, with an expired access token.
    let lines = format!("Keybearer-Subject: s-{:04}\r\n", SUBJECTS - 1);
    let started = Instant::now();
    let response = raw::get_through(sidecar.proxy(), "http://api.test/x", &lines).await;
    assert_eq!(response.status, 200, "{}\n{}", response.text(), sidecar.log());
    assert!(started.elapsed() < Duration::from_secs(3), "a caller waited {:?} for its token", started.elapsed());
    wait_until("each subject was refreshed", async || count() >= SUBJECTS).await;

    let times = refreshed.lock().unwrap().clone();
    let rate = (SUBJECTS - 1) as f64 / (times[SUBJECTS - 1] - times[0]).as_secs_f64();
    let needed = 1e6 / DAY.as_secs_f64();
    assert!(rate > needed, "{rate:.1} subjects a second; a million a day needs {needed:.1}");
    let cached = in_memory(&sidecar, "crm").await;
    assert!(cached < 60.0, "{cached} subjects are in memory although no caller uses them");
    let grown = sidecar.resident_kib().saturating_sub(memory);
    assert!(grown < 16 * 1024, "memory has grown by {grown} KiB");
}
