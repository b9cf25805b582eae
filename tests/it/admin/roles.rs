//! Every operation of the OpenAPI document against every kind of credential: 401 without a valid one, 403 below the role.
//!
//! Not here: the exact response to a permitted request (`access`).

use serde_json::json;

use super::{MANAGER, OPERATOR, VIEWER, send, wait_until};
use crate::rig::raw::Conn;
use crate::rig::sidecar::Sidecar;
use crate::rig::wall_clock::WallClock;

const CALLER: &str = "the-secret-of-a-caller-0123456789";
const JSON: &str = "Content-Type: application/json\r\n";

struct Credential {
    name: &'static str,
    lines: String,
    /// `None`: it is not valid.
    role: Option<usize>,
}

/// The rank of a role in the document.
fn rank(role: &str) -> usize {
    ["viewer", "operator", "manager"].iter().position(|known| *known == role).expect("a known role")
}

async fn status(sidecar: &Sidecar, method: &str, path: &str, lines: &str) -> u16 {
    let admin = sidecar.admin();
    let lines = format!("Host: {admin}\r\n{lines}");
    if !path.ends_with("/events") {
        return send(admin, method, path, &format!("{lines}{JSON}"), b"{}").await.status;
    }
    // The response of `events` never ends.
    let mut conn = Conn::open(admin).await;
    conn.write(format!("GET {path} HTTP/1.1\r\n{lines}\r\n").as_bytes()).await;
    let line = wait_until(&mut conn, "\r\n").await;
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Signs in with a token; returns the header lines of the session.
async fn session(sidecar: &Sidecar, token: &str) -> String {
    let admin = sidecar.admin();
    let body = json!({ "token": token }).to_string();
    let signed = send(admin, "POST", "/api/v1/session", &format!("Host: {admin}\r\n{JSON}"), body.as_bytes()).await;
    let cookie = signed.header("set-cookie").expect("a cookie").split(';').next().unwrap_or_default().to_owned();
    format!("Cookie: {cookie}\r\nX-CSRF-Token: {}\r\n", signed.json()["csrf_token"].as_str().expect("a token"))
}

#[tokio::test]
async fn every_operation_refuses_every_credential_that_may_not_use_it() {
    let clock = WallClock::start();
    let users = [("v", "viewer", VIEWER), ("o", "operator", OPERATOR), ("m", "manager", MANAGER)];
    let users = users.map(|(name, role, token)| format!("{{name: {name}, role: {role}, token: {token}}}"));
    let config = format!(
        "callers: [{{name: billing, secret: {CALLER}}}]\nadmin: {{users: [{}]}}\nconnections: []\n",
        users.join(", ")
    );
    let sidecar = Sidecar::start_in(&config, &clock.environment()).await;
    clock.set("-2d");
    let expired = session(&sidecar, MANAGER).await;
    clock.set("+0");
    let current = session(&sidecar, OPERATOR).await;
    let without_csrf = current.split("\r\n").next().unwrap_or_default().to_owned() + "\r\n";
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let credential = |name, lines, role| Credential { name, lines, role };
    let credentials = [
        credential("no credential", String::new(), None),
        credential("a caller's secret", bearer(CALLER), None),
        credential("a caller's credential", "Proxy-Authorization: Basic YmlsbGluZzp4\r\n".to_owned(), None),
        credential("a caller's credential on a mount", format!("Keybearer-Authorization: Bearer {CALLER}\r\n"), None),
        credential("an expired session", expired, None),
        credential("a viewer", bearer(VIEWER), Some(0)),
        credential("an operator", bearer(OPERATOR), Some(1)),
        credential("an operator's session", current, Some(1)),
        credential("a manager", bearer(MANAGER), Some(2)),
    ];
    let admin = sidecar.admin();
    let lines = format!("Host: {admin}\r\n{}", bearer(VIEWER));
    let document = send(admin, "GET", "/api/v1/openapi.json", &lines, b"").await.json();
    let mut walked = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let needed = rank(operation["x-role"].as_str().expect("a role"));
            let real = path.replace("{name}", "absent").replace("{secret}", "absent").replace("{id}", "absent");
            // Signing in is the one operation for which a credential is in the body.
            let signs_in = (method.as_str(), path.as_str()) == ("post", "/api/v1/session");
            for Credential { name, lines, role } in credentials.iter().filter(|_| !signs_in) {
                let got = status(&sidecar, method, &real, lines).await;
                match role {
                    None => assert_eq!(got, 401, "{method} {path}: {name}"),
                    Some(role) if *role < needed => assert_eq!(got, 403, "{method} {path}: {name}"),
                    Some(_) => assert!(got != 401 && got != 403 && got < 500, "{method} {path}: {name}: {got}"),
                }
                walked += 1;
            }
            let unsafe_method = method != "get";
            let got = status(&sidecar, method, &real, &without_csrf).await;
            assert_eq!(
                got == 401,
                unsafe_method || signs_in,
                "{method} {path} by session, without a CSRF token: {got}"
            );
        }
    }
    assert!(walked > 150, "{walked}");
}
