//! Metric values after known events.
//!
//! Not here: error counters by code (`errors`).

use super::{CALLER, now_s, peers, sidecar_after_all_outcomes};
use crate::rig::config::{Config, Connection};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn each_outcome_is_counted_as_in_the_contract() {
    let (server, upstream) = peers().await;
    let sidecar = sidecar_after_all_outcomes(&server, &upstream).await;
    let requests = |connection: &str, origin: &str, class: &str| {
        let profile = if connection.is_empty() { "" } else { "default" };
        let caller = if connection.is_empty() { "" } else { "billing" };
        format!(
            "keybearer_requests_total{{connection=\"{connection}\",profile=\"{profile}\",caller=\"{caller}\",origin=\"{origin}\",status_class=\"{class}\"}}"
        )
    };
    let injections = |connection: &str, outcome: &str| {
        format!("keybearer_injections_total{{connection=\"{connection}\",profile=\"default\",outcome=\"{outcome}\"}}")
    };
    let replays = |connection: &str, outcome: &str| {
        format!("keybearer_replays_total{{connection=\"{connection}\",outcome=\"{outcome}\"}}")
    };
    let token_requests = |connection: &str, outcome: &str| {
        format!(
            "keybearer_token_requests_total{{connection=\"{connection}\",profile=\"default\",grant=\"client_credentials\",outcome=\"{outcome}\"}}"
        )
    };
    let tokens = |connection: &str, state: &str| {
        format!("keybearer_tokens{{connection=\"{connection}\",profile=\"default\",state=\"{state}\"}}")
    };
    let table = [
        (requests("crm", "upstream", "2xx"), 2.0),
        (requests("crm", "upstream", "3xx"), 1.0),
        (requests("crm", "upstream", "4xx"), 3.0),
        (requests("crm", "upstream", "5xx"), 1.0),
        (requests("crm", "proxy", "4xx"), 0.0),
        (requests("replayed", "upstream", "2xx"), 1.0),
        (requests("broken", "proxy", "4xx"), 1.0),
        (requests("broken", "upstream", "2xx"), 1.0),
        (requests("", "proxy", "4xx"), 1.0),
        (injections("crm", "injected"), 6.0),
        (injections("crm", "kept"), 1.0),
        (injections("broken", "refused"), 1.0),
        (injections("broken", "forwarded"), 1.0),
        ("keybearer_errors_total{connection=\"broken\",code=\"token_refused\"}".to_owned(), 1.0),
        ("keybearer_errors_total{connection=\"\",code=\"caller_unknown\"}".to_owned(), 1.0),
        (replays("crm", "rejected"), 1.0),
        (replays("crm", "skipped"), 1.0),
        (replays("replayed", "accepted"), 1.0),
        (token_requests("crm", "ok"), 2.0),
        (token_requests("replayed", "ok"), 2.0),
        (token_requests("broken", "refused"), 1.0),
        ("keybearer_token_request_duration_seconds_count{connection=\"broken\"}".to_owned(), 1.0),
        ("keybearer_requests_in_flight".to_owned(), 0.0),
        ("keybearer_request_duration_seconds_count{connection=\"crm\"}".to_owned(), 7.0),
        ("keybearer_request_duration_seconds_count{connection=\"\"}".to_owned(), 1.0),
        ("keybearer_request_overhead_seconds_count".to_owned(), 9.0),
        (tokens("crm", "fresh"), 1.0),
        (tokens("broken", "misconfigured"), 1.0),
    ];
    for (series, value) in table {
        sidecar.wait_for_metric(&series, |found| found == value).await;
    }
    // These are retried after 2 s.
    for (connection, outcome) in [("away", "unavailable"), ("nonsense", "invalid_answer")] {
        sidecar.wait_for_metric(&token_requests(connection, outcome), |found| found >= 1.0).await;
    }
    let expiry = "keybearer_token_expiry_timestamp_seconds{connection=\"crm\",profile=\"default\"}";
    let left = sidecar.metric(expiry).await - now_s();
    assert!((500.0..=601.0).contains(&left), "{left} s left of 600");
    let expiry = "keybearer_refresh_token_expiry_timestamp_seconds{connection=\"lasting\",profile=\"default\"}";
    let left = sidecar.metric(expiry).await - now_s();
    assert!((863_800.0..=864_001.0).contains(&left), "{left} s left of ten days");
    let build = raw::get(sidecar.admin(), "/metrics").await.text();
    let build =
        build.lines().find(|line| line.starts_with("keybearer_build_info{")).expect("the build information").to_owned();
    let rustc = std::process::Command::new("rustc").arg("--version").output().expect("rustc is installed").stdout;
    let rustc = String::from_utf8_lossy(&rustc).split(' ').nth(1).unwrap_or_default().to_owned();
    for part in [format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), "revision=\"".to_owned(), rustc] {
        assert!(build.contains(&part) && build.ends_with("} 1"), "{part} is not in {build}");
    }
}

#[tokio::test]
async fn requests_in_flight_are_counted_until_they_end() {
    let (server, upstream) = peers().await;
    let sidecar = sidecar_after_all_outcomes(&server, &upstream).await;
    let (active, idle) =
        ("keybearer_upstream_connections{state=\"active\"}", "keybearer_upstream_connections{state=\"idle\"}");
    sidecar.wait_for_metric(active, |count| count == 0.0).await;
    assert!(sidecar.metric(idle).await >= 1.0, "no connection is kept");
    let mut conn = Conn::open(sidecar.proxy()).await;
    conn.write(format!("GET http://api.test/silence HTTP/1.1\r\nHost: api.test\r\n{CALLER}\r\n").as_bytes()).await;
    sidecar.wait_for_metric(active, |count| count == 1.0).await;
    assert_eq!(sidecar.metric("keybearer_requests_in_flight").await, 1.0);
    assert_eq!(conn.read_response().await.code(), "upstream_timeout");
    sidecar.wait_for_metric(active, |count| count == 0.0).await;
    sidecar.wait_for_metric("keybearer_requests_in_flight", |count| count == 0.0).await;
}

#[tokio::test]
async fn a_wait_for_a_token_is_measured() {
    let slow = Scripted::start(|_, before| match before {
        0 => Reply::text(503, "text/plain", "not yet"),
        _ => Reply::token("late", 600),
    });
    let (slow, upstream) = (slow.await, Scripted::upstream().await);
    let crm = Connection::at("crm", &slow).plain("api.test");
    let sidecar = Sidecar::start(Config::new().host("api.test", upstream.address).connection(crm)).await;
    let response = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
    let waited = sidecar.metric("keybearer_token_wait_seconds_count").await;
    assert_eq!(waited, 1.0, "{response:?}");
}
