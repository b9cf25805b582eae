//! How flows end: once, whether or not the browser stays, and independent of other flows of the token and the connection.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{param, text};
use crate::rig::manager::{MANAGER, call};
use crate::rig::pages::{self, redirect_target};
use crate::rig::raw::{self, Conn, RawResponse};
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const TIMEOUT: Duration = Duration::from_secs(20);
/// Delay of token responses, long enough for a test to act before they arrive.
const SLOW: Duration = Duration::from_secs(2);

/// A sidecar with the connection `crm` of http://api.test, whose authorization server responds to token requests with `reply`.
struct Stage {
    server: Scripted,
    upstream: Scripted,
    sidecar: Sidecar,
}

fn granted(token: &str, lifetime_s: u64) -> Reply {
    let body = json!({"access_token": token, "token_type": "Bearer", "expires_in": lifetime_s, "refresh_token": "r"});
    Reply::json(200, &body)
}

impl Stage {
    async fn start(keys: &str, reply: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static) -> Stage {
        let server = Scripted::start(reply).await;
        let (upstream, keys) = (Scripted::upstream().await, keys.replace("SERVER", &server.address.to_string()));
        let sidecar = Sidecar::start(&format!(
            "admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\n\
             hosts: {{api.test: \"127.0.0.1:{}\"}}\nconnections:\n- {{name: crm, token_url: \"http://{1}/token\", \
             client_id: id, client_secret: secret, {keys}, routes: [{{host: api.test, upstream_tls: false}}]}}\n",
            upstream.address.port(),
            server.address,
        ))
        .await;
        Stage { server, upstream, sidecar }
    }

    async fn with_code(reply: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static) -> Stage {
        Stage::start("authorization_url: \"http://127.0.0.1:9/authorize\"", reply).await
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> RawResponse {
        call(self.sidecar.admin(), method, path, &body).await
    }

    async fn begin(&self) -> Value {
        let response = self.call("POST", "/connections/crm/authorize", json!({})).await;
        assert_eq!(response.status, 201, "{}", response.text());
        response.json()
    }

    /// Confirms the link of the flow; returns the callback URL without its code, and the browser's cookies.
    async fn confirmed(&self, flow: &Value) -> (String, String) {
        let link = text(&flow["authorization_url"]);
        let (sent, cookies) = pages::confirm(self.sidecar.admin(), link, "").await;
        let base = link.split("/connect/").next().expect("a base");
        (format!("{base}/oauth/callback?state={}", param(&redirect_target(&sent), "state")), cookies)
    }

    async fn visit(&self, url: &str, cookies: &str) -> RawResponse {
        pages::visit(self.sidecar.admin(), "GET", url, cookies, "").await
    }

    async fn status(&self, flow: &Value) -> (String, String) {
        let authorization = self.call("GET", &format!("/authorizations/{}", text(&flow["id"])), json!({})).await.json();
        (text(&authorization["status"]).to_owned(), text(&authorization["error"]).to_owned())
    }

    async fn wait_for_end(&self, flow: &Value) -> String {
        let end = Instant::now() + TIMEOUT;
        loop {
            let (status, error) = self.status(flow).await;
            if status != "pending" {
                return if error.is_empty() { status } else { error };
            }
            assert!(Instant::now() < end, "still pending\n{}", self.sidecar.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn token_requests(&self, count: usize) {
        let end = Instant::now() + TIMEOUT;
        while self.server.count() < count {
            assert!(Instant::now() < end, "{} token requests", self.server.count());
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn served(&self) -> u16 {
        raw::get_through(self.sidecar.proxy(), "http://api.test/x", "").await.status
    }
}

#[tokio::test]
async fn an_exchange_completes_after_the_browser_disconnects() {
    let stage = Stage::with_code(|_, _| granted("token", 600).delayed(SLOW)).await;
    let flow = stage.begin().await;
    let (callback, cookies) = stage.confirmed(&flow).await;
    let (_, path) = callback.split_once("/oauth/").expect("a path");
    let host = callback.split('/').nth(2).expect("a host");
    let mut browser = Conn::open(stage.sidecar.admin()).await;
    browser.write(format!("GET /oauth/{path}&code=x HTTP/1.1\r\nHost: {host}\r\n{cookies}\r\n").as_bytes()).await;
    stage.token_requests(1).await;
    drop(browser);
    assert_eq!(stage.wait_for_end(&flow).await, "connected");
    assert_eq!((stage.served().await, stage.server.count()), (200, 1));
    let again = stage.visit(&format!("{callback}&code=y"), &cookies).await;
    assert_eq!((again.status, again.text().contains("already used")), (400, true), "{}", again.text());
    assert_eq!((stage.wait_for_end(&flow).await.as_str(), stage.server.count()), ("connected", 1));
}

#[tokio::test]
async fn an_ended_flow_keeps_its_status() {
    let stage = Stage::with_code(|_, _| Reply::json(400, &json!({"error": "invalid_grant"}))).await;
    for (query, status, requests) in [("error=access_denied", "access_denied", 0), ("code=x", "invalid_grant", 1)] {
        let flow = stage.begin().await;
        let (callback, cookies) = stage.confirmed(&flow).await;
        stage.visit(&format!("{callback}&{query}"), &cookies).await;
        assert_eq!(stage.wait_for_end(&flow).await, status);
        for later in ["code=y", "error=server_error", "error=access_denied"] {
            let response = stage.visit(&format!("{callback}&{later}"), &cookies).await;
            assert_eq!(response.status, 400, "{}", response.text());
            assert_eq!((stage.wait_for_end(&flow).await.as_str(), stage.server.count()), (status, requests), "{later}");
        }
        let next = stage.begin().await;
        assert_eq!(stage.wait_for_end(&flow).await, status, "a newer flow has begun");
        assert_eq!(stage.status(&next).await.0, "pending");
    }
}

/// The audit records a declined consent with user and connection, as it records a connected account.
#[tokio::test]
async fn a_declined_consent_is_one_audit_record() {
    let stage = Stage::with_code(|_, _| granted("token", 600)).await;
    for (query, code) in [
        ("error=access_denied&error_description=not+today", "access_denied"),
        ("error=temporarily_unavailable", "temporarily_unavailable"),
    ] {
        let flow = stage.begin().await;
        let (callback, cookies) = stage.confirmed(&flow).await;
        assert_eq!(stage.visit(&format!("{callback}&{query}"), &cookies).await.status, 400);
        assert_eq!(stage.wait_for_end(&flow).await, code);
        // The second callback finds the flow ended and changes nothing.
        assert_eq!(stage.visit(&format!("{callback}&{query}"), &cookies).await.status, 400);
        let word = format!("\"code\":\"{code}\"");
        let record: Value = serde_json::from_str(&stage.sidecar.wait_for_log(&word).await).expect("JSON");
        let fields = ["audit", "user", "connection", "profile", "method", "path"].map(|name| text(&record[name]));
        assert_eq!(fields, ["change", "ops", "crm", "default", "GET", "/oauth/callback"], "{record}");
        assert_eq!(record["status"], 400, "{record}");
        assert!(text(&record["from"]).starts_with("127.0.0.1:"), "{record}");
        let log = stage.sidecar.log();
        let records = log.lines().filter(|line| line.contains("\"audit\":\"change\"") && line.contains(&word));
        assert_eq!(records.count(), 1, "{log}");
    }
    assert_eq!(stage.server.count(), 0);
}

#[tokio::test]
async fn a_new_flow_replaces_the_pending_one_of_its_token_unless_that_is_being_exchanged() {
    let stage = Stage::with_code(|_, _| granted("token", 600).delayed(SLOW)).await;
    let first = stage.begin().await;
    let (old, old_cookies) = stage.confirmed(&first).await;
    let second = stage.begin().await;
    assert_eq!(stage.wait_for_end(&first).await, "replaced");
    let response = stage.visit(&format!("{old}&code=x"), &old_cookies).await;
    assert_eq!((response.status, response.text().contains("newer link")), (400, true), "{}", response.text());
    assert_eq!(stage.server.count(), 0);
    let response = stage.visit(text(&first["authorization_url"]), "").await;
    assert_eq!((response.status, response.text().contains("newer link")), (400, true), "{}", response.text());

    let (callback, cookies) = stage.confirmed(&second).await;
    let exchange = async { stage.visit(&format!("{callback}&code=x"), &cookies).await };
    let during_exchange = async {
        stage.token_requests(1).await;
        let late = stage.call("POST", "/connections/crm/authorize", json!({})).await;
        assert_eq!((late.status, text(&late.json()["code"])), (409, "authorization_under_way"), "{}", late.text());
        let link = text(&second["authorization_url"]);
        let body = format!("token={MANAGER}");
        let link = link.split('?').next().expect("a link");
        let session = pages::visit(stage.sidecar.admin(), "POST", link, &pages::origin(link), &body).await;
        let page = stage.visit(link, &pages::cookie(&session)).await;
        assert_eq!((page.status, page.text().contains("being connected")), (409, true), "{}", page.text());
    };
    let (response, ()) = tokio::join!(exchange, during_exchange);
    assert_eq!(response.status, 303, "{}", response.text());
    assert_eq!(stage.wait_for_end(&second).await, "connected");
    assert_eq!((stage.wait_for_end(&first).await.as_str(), stage.served().await), ("replaced", 200));
    assert_eq!(stage.status(&stage.begin().await).await.0, "pending", "a new flow can begin now");
}

const DEVICE: &str = "grant: device_code, device_authorization_url: \"http://SERVER/device\"";

/// Device codes numbered by the requests before, and delayed tokens with the same numbers.
fn slow_device(request: &Received, before: usize, expires_in: u64) -> Reply {
    let body = String::from_utf8_lossy(&request.body);
    let code = body.split("device_code=code-").nth(1).and_then(|rest| rest.split('&').next());
    match code {
        Some(code) => granted(&format!("token-{code}"), 600).delayed(SLOW * 2),
        None => Reply::json(
            200,
            &json!({"device_code": format!("code-{before}"), "user_code": "AB-12", "interval": 1, "expires_in": expires_in,
                "verification_uri": "https://as.test/go"}),
        ),
    }
}

const TOO_LATE: &str = "device token arrived after its authorization had ended";

#[tokio::test]
async fn the_token_of_a_device_flow_replaced_during_its_poll_is_dropped() {
    let stage = Stage::start(DEVICE, |request, before| slow_device(request, before, 600)).await;
    let first = stage.begin().await;
    stage.token_requests(2).await;
    let second = stage.begin().await;
    assert_eq!(stage.wait_for_end(&first).await, "replaced");
    stage.sidecar.wait_for_log(TOO_LATE).await;
    assert_eq!(stage.wait_for_end(&second).await, "connected");
    assert_eq!((stage.wait_for_end(&first).await.as_str(), stage.served().await), ("replaced", 200));
    let received = stage.upstream.received();
    assert_eq!(received[0].values("authorization"), ["Bearer token-2"]);
}

#[tokio::test]
async fn a_device_flow_that_expires_during_its_poll_stays_expired() {
    let stage = Stage::start(DEVICE, |request, before| slow_device(request, before, 3)).await;
    let flow = stage.begin().await;
    assert_eq!(stage.wait_for_end(&flow).await, "expired");
    assert!(stage.server.count() >= 2, "the server was polled");
    stage.sidecar.wait_for_log(TOO_LATE).await;
    assert_eq!((stage.wait_for_end(&flow).await.as_str(), stage.served().await), ("expired", 424));
}

#[tokio::test]
async fn a_new_device_flow_is_polled_after_an_earlier_one_has_ended() {
    let stage = Stage::start(DEVICE, |request, before| match before {
        1 => Reply::json(400, &json!({"error": "access_denied"})),
        _ => slow_device(request, before, 600),
    })
    .await;
    let denied = stage.begin().await;
    assert_eq!(stage.wait_for_end(&denied).await, "access_denied");
    let again = stage.begin().await;
    assert_eq!(stage.wait_for_end(&again).await, "connected");
    assert_eq!((stage.wait_for_end(&denied).await.as_str(), stage.served().await), ("access_denied", 200));
}

/// More pending flows than a connection may have.
const STARTS: usize = 1050;

#[tokio::test]
async fn a_connection_with_too_many_flows_evicts_only_its_own_oldest_ones() {
    for store in ["store: {memory: {}}\n", ""] {
        let endpoints = "authorization_url: \"https://as.test/a\", token_url: \"https://as.test/t\"";
        let sidecar = Sidecar::start(&format!(
            "{store}admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nconnections:\n\
             - {{name: crm, {endpoints}, client_id: id, client_secret: s}}\n\
             - {{name: many, tokens: per_subject, {endpoints}, client_id: id, client_secret: s}}\n"
        ))
        .await;
        let admin = sidecar.admin();
        let before = call(admin, "POST", "/connections/crm/authorize", &json!({})).await.json();
        let some = async |from: usize| {
            let (mut conn, mut ids) = (Conn::open(admin).await, Vec::new());
            for at in (from..STARTS).step_by(8) {
                let body = json!({ "subject": format!("s{at}") }).to_string();
                let head = format!(
                    "POST /api/v1/connections/many/authorize HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer \
                     {MANAGER}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                conn.write(head.as_bytes()).await;
                let response = conn.read_response().await;
                assert_eq!(response.status, 201, "{at}: {}", response.text());
                ids.push(text(&response.json()["id"]).to_owned());
            }
            ids
        };
        let ids = futures_util::future::join_all((0..8).map(some)).await.concat();
        let status = async |id: &str| call(admin, "GET", &format!("/authorizations/{id}"), &json!({})).await;
        let mut kept = 0;
        for id in &ids {
            kept += usize::from(status(id).await.status == 200);
        }
        assert_eq!((ids.len(), kept), (STARTS, 1000), "{store}");
        assert_eq!(status(text(&before["id"])).await.json()["status"], "pending", "{store}");
        let shown = pages::visit(admin, "GET", text(&before["authorization_url"]), "", "").await;
        assert_eq!(shown.status, 200, "{}", shown.text());
        let flow = call(admin, "POST", "/connections/crm/authorize", &json!({})).await;
        assert_eq!(flow.status, 201, "{}", flow.text());
    }
}
