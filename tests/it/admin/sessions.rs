//! Lifetime of a browser session.

use serde_json::json;

use crate::rig::manager::MANAGER;
use crate::rig::raw::{self, RawResponse};
use crate::rig::sidecar::Sidecar;
use crate::rig::wall_clock::WallClock;

async fn send(sidecar: &Sidecar, method: &str, path: &str, lines: &str, body: &str) -> RawResponse {
    let (admin, length) = (sidecar.admin(), body.len());
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {admin}\r\n{lines}Content-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    raw::send(admin, head.as_bytes()).await
}

#[tokio::test]
async fn a_session_ends_after_twelve_hours_whatever_the_browser_still_sends() {
    const CONNECTIONS: &str = "/api/v1/connections";
    const RELOAD: &str = "/api/v1/reload";
    let clock = WallClock::start();
    let config = format!("admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nconnections: []\n");
    let sidecar = Sidecar::start_in(&config, &clock.environment()).await;
    let signed = send(&sidecar, "POST", "/api/v1/session", "", &json!({ "token": MANAGER }).to_string()).await;
    assert_eq!(signed.status, 200, "{}", signed.text());
    let cookie = signed.header("set-cookie").expect("a cookie").to_owned();
    assert!(cookie.contains("; Max-Age=43200"), "{cookie}");
    let session = format!("Cookie: {}\r\n", cookie.split(';').next().expect("a pair"));
    let csrf = format!("X-CSRF-Token: {}\r\n", signed.json()["csrf_token"].as_str().expect("a token"));
    let statuses = async || {
        let read = send(&sidecar, "GET", CONNECTIONS, &session, "").await;
        let changed = send(&sidecar, "POST", RELOAD, &format!("{session}{csrf}"), "{}").await;
        (read.status, changed.status)
    };
    for (offset, expected) in [("+0", 200), ("+719m", 200), ("+721m", 401), ("+30d", 401), ("+719m", 200)] {
        clock.set(offset);
        assert_eq!(statuses().await, (expected, expected), "{offset}");
    }
}
