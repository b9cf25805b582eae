//! Definitions made over the API: from the request that makes them to the one that removes them.
//!
//! Not here: what a definition may hold (`literals`), several replicas (`fleet`), many definitions (`apply`).

mod apply;
mod fields;
mod fleet;
mod files;
mod literals;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::rig::config::Config;
use crate::rig::manager::{MANAGER, call_as};
use crate::rig::raw::{self, RawResponse};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const VIEWER: &str = "a-viewer-of-these-tests-0123456789";
const OPERATOR: &str = "an-operator-of-these-tests-0123456789";
const JSON: &str = "Content-Type: application/json\r\n";
const SECRET: &str = "the-secret-of-a-stored-definition";

/// An instance with the connection `file`, whose upstream and authorization server are scripted.
struct Stage {
    sidecar: Sidecar,
    server: Scripted,
    upstream: Scripted,
}

/// `as.test` is the authorization server; `api.test`, `two.test` and `file.test` are the upstream.
fn config(server: &Scripted, upstream: &Scripted, top: &str) -> String {
    let users = [("v", "viewer", VIEWER), ("o", "operator", OPERATOR), ("m", "manager", MANAGER)];
    let users = users.map(|(name, role, token)| format!("{{name: {name}, role: {role}, token: {token}}}"));
    let top = top.replace("USERS", &format!("users: [{}]", users.join(", ")));
    let config = Config::new().top(top).host("as.test", server.address).host("other.test", server.address);
    let config = config.hosts(["api.test", "two.test", "file.test"], upstream.address);
    let file = "- {name: file, client_id: a, client_secret: b, token_url: \"http://as.test/token\", allow_cleartext: true, \
                routes: [{host: file.test, upstream_tls: false}]}\n";
    format!("{config}{file}")
}

impl Stage {
    async fn start() -> Stage {
        Stage::with("admin: {USERS}\n").await
    }

    /// `top`: the top-level keys; `USERS` is replaced by the users.
    async fn with(top: &str) -> Stage {
        let server = Scripted::start(|request, before| match request.request_line() {
            line if line.contains("/revoke") => Reply::text(200, "text/plain", ""),
            _ => Reply::token(&format!("token-{before}"), 3600),
        });
        let (server, upstream) = (server.await, Scripted::upstream().await);
        let sidecar = Sidecar::start(config(&server, &upstream, top)).await;
        Stage { sidecar, server, upstream }
    }

    async fn call(&self, method: &str, path: &str, lines: &str, body: &Value) -> RawResponse {
        call_as(MANAGER, self.sidecar.admin(), (method, path), &format!("{JSON}{lines}"), &body.to_string()).await
    }

    async fn get(&self, path: &str) -> RawResponse {
        call_as(VIEWER, self.sidecar.admin(), ("GET", path), "", "").await
    }

    /// Makes a connection or replaces it.
    async fn put(&self, definition: &Value) -> RawResponse {
        let path = format!("/connections/{}", definition["name"].as_str().expect("a name"));
        let etag = self.get(&path).await.header("etag").map(|etag| format!("If-Match: {etag}\r\n"));
        self.call("PUT", &path, &etag.unwrap_or_default(), definition).await
    }

    async fn fetch(&self, url: &str) -> RawResponse {
        raw::get_through(self.sidecar.proxy(), url, "").await
    }

    /// Names of the files that the upstream has received a token for.
    fn tokens(&self) -> Vec<String> {
        let received = self.upstream.received();
        received.iter().flat_map(|request| request.values("authorization")).map(str::to_owned).collect()
    }
}

fn definition(name: &str, host: &str) -> Value {
    json!({
        "name": name, "client_id": "id", "client_secret": SECRET, "token_url": "http://as.test/token",
        "revocation_url": "http://as.test/revoke", "allow_cleartext": true,
        "routes": [{"host": host, "upstream_tls": false}],
    })
}

/// The code of a problem.
fn code(response: &RawResponse) -> String {
    response.json()["code"].as_str().unwrap_or_default().to_owned()
}

fn if_match(response: &RawResponse) -> String {
    format!("If-Match: {}\r\n", response.header("etag").expect("an ETag"))
}

#[tokio::test]
async fn a_definition_is_made_used_changed_and_removed() {
    let stage = Stage::start().await;
    let definition = definition("own", "api.test");
    let made = stage.call("PUT", "/connections/own", "", &definition).await;
    assert_eq!((made.status, made.header("location")), (201, Some("/api/v1/connections/own")), "{}", made.text());
    assert!(!made.text().contains(SECRET));
    let response = stage.fetch("http://api.test/x").await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(stage.tokens().iter().any(|token| token.starts_with("Bearer token-")), "{:?}", stage.tokens());

    let got = stage.get("/connections/own").await;
    assert_eq!((got.header("etag"), &got.json()["client_secret"]), (made.header("etag"), &json!({"set": true})));
    assert_eq!((&got.json()["source"], &got.json()["state"]), (&json!("api"), &json!("fresh")));
    // GET followed by PUT of the same body changes nothing.
    let same = stage.call("PUT", "/connections/own", &if_match(&got), &got.json()).await;
    assert_eq!((same.status, same.header("etag")), (200, made.header("etag")), "{}", same.text());

    for (lines, status) in [("", 428), ("If-Match: \"0\"\r\n", 412), ("If-None-Match: *\r\n", 412)] {
        let response = stage.call("PUT", "/connections/own", lines, &definition).await;
        assert_eq!(response.status, status, "{lines}{}", response.text());
    }
    let absent = stage.call("PUT", "/connections/new", "If-Match: *\r\n", &definition).await;
    assert_eq!(absent.status, 412);

    let patch = json!({ "comments": "changed", "refresh_ahead": "1m" });
    let patched = stage.call("PATCH", "/connections/own", &if_match(&got), &patch).await;
    assert_eq!((patched.status, &patched.json()["comments"]), (200, &json!("changed")), "{}", patched.text());
    assert_ne!(patched.header("etag"), got.header("etag"));
    let stale = stage.call("PATCH", "/connections/own", &if_match(&got), &patch).await;
    assert_eq!((stale.status, code(&stale).as_str()), (412, "precondition_failed"));
    stage.sidecar.wait_for_log("\"fields\":\"comments refresh_ahead\"").await;

    let requests = stage.server.count();
    let removed = stage.call("DELETE", "/connections/own", &if_match(&patched), &Value::Null).await;
    assert_eq!((removed.status, &removed.json()["tokens"]["failed"]), (200, &json!(0)), "{}", removed.text());
    assert!(stage.server.received()[requests..].iter().any(|request| request.request_line().contains("/revoke")));
    assert_eq!(stage.get("/connections/own").await.status, 404);
    let tokens = stage.tokens().len();
    stage.fetch("http://api.test/x").await;
    assert_eq!(stage.tokens().len(), tokens, "no request gets a token any more");
    assert!(!stage.sidecar.log().contains(SECRET));
}

#[tokio::test]
async fn a_definition_survives_a_restart_and_needs_no_new_token() {
    let stage = Stage::start().await;
    assert_eq!(stage.put(&definition("own", "api.test")).await.status, 201);
    assert_eq!(stage.fetch("http://api.test/x").await.status, 200);
    let (requests, etag) =
        (stage.server.count(), stage.get("/connections/own").await.header("etag").map(str::to_owned));
    let Stage { sidecar, server, upstream } = stage;
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    let stage = Stage { sidecar, server, upstream };
    assert_eq!(stage.fetch("http://api.test/x").await.status, 200);
    assert_eq!(stage.get("/connections/own").await.header("etag"), etag.as_deref());
    assert_eq!(stage.server.count(), requests, "the stored tokens are used");
}

#[tokio::test]
async fn an_operator_switches_active_and_nothing_else() {
    let stage = Stage::start().await;
    let made = stage.put(&definition("own", "api.test")).await;
    let patch = async |token: &str, patch: Value, etag: &str| {
        let lines = format!("Content-Type: application/merge-patch+json\r\nIf-Match: {etag}\r\n");
        let admin = stage.sidecar.admin();
        call_as(token, admin, ("PATCH", "/connections/own"), &lines, &patch.to_string()).await
    };
    let etag = made.header("etag").expect("an ETag");
    for refused in [json!({"comments": "x"}), json!({"active": true, "comments": "x"}), json!({"active": null})] {
        assert_eq!(patch(OPERATOR, refused.clone(), etag).await.status, 403, "{refused}");
    }
    assert_eq!(patch(VIEWER, json!({"active": false}), etag).await.status, 403);
    let off = patch(OPERATOR, json!({"active": false}), etag).await;
    assert_eq!((off.status, &off.json()["state"]), (200, &json!("inactive")), "{}", off.text());
    assert_eq!(stage.fetch("http://api.test/x").await.code(), "connection_inactive");
    let on = patch(OPERATOR, json!({"active": true}), off.header("etag").expect("an ETag")).await;
    assert_eq!(on.status, 200);
    assert_eq!(stage.fetch("http://api.test/x").await.status, 200);
    for (method, path) in [("PUT", "/connections/two"), ("DELETE", "/connections/own"), ("POST", "/connections:apply")]
    {
        let response = call_as(OPERATOR, stage.sidecar.admin(), (method, path), JSON, "{}").await;
        assert_eq!(response.status, 403, "{method}");
    }
}

/// Waits until a request through the proxy has this status.
async fn wait_until_status(sidecar: &Sidecar, url: &str, status: u16, limit: Duration) {
    let end = Instant::now() + limit;
    loop {
        let response = raw::get_through(sidecar.proxy(), url, "").await;
        if response.status == status {
            return;
        }
        assert!(Instant::now() < end, "{} {}\n{}", response.status, response.text(), sidecar.log());
        sleep(Duration::from_millis(20)).await;
    }
}
