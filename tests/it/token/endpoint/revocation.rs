//! Revocation (RFC 7009): tokens are forgotten regardless of the server's response; a shared grant is not revoked.
//!
//! Not here: tokens of a superseded definition (`token::superseded`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::{config, form, injected};
use crate::rig::manager::{MANAGER, call};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};

#[tokio::test]
async fn a_revoked_token_is_forgotten_even_if_the_server_fails() {
    let upstream = Scripted::upstream().await;
    let failing = Arc::new(AtomicBool::new(false));
    let fails = failing.clone();
    let server = Scripted::start(move |request, before| match request.request_line() {
        line if line.starts_with("POST /revoke ") && fails.load(Ordering::SeqCst) => {
            Reply::text(500, "text/plain", "no")
        }
        line if line.starts_with("POST /revoke ") => Reply::text(200, "text/html", ""),
        _ => Reply::json(
            200,
            &json!({"access_token": format!("a{before}"), "refresh_token": format!("r{before}"), "expires_in": 3600}),
        ),
    })
    .await;
    let url = format!("http://{}/revoke", server.address);
    let keys = format!(
        "grant: password, username: ann, password: {{file: p}}, client_secret: {{file: s}}, send_credentials: basic, revocation_url: \"{url}\""
    );
    let files = [("p", "pass"), ("s", "secret")];
    let sidecar = Sidecar::start_with(&config(&server, &upstream, &keys), &files).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer a0");
    let response = call(sidecar.admin(), "POST", "/connections/crm/revoke", &json!({})).await;
    let expected =
        json!({"forgotten": true, "refresh_token": {"outcome": "revoked"}, "access_token": {"outcome": "revoked"}});
    assert_eq!((response.status, response.json()), (200, expected));
    let sent: Vec<_> =
        server.received()[1..3].iter().map(|request| (form(request), request.values("authorization").len())).collect();
    let pairs = |token: &str, hint: &str| {
        vec![("token".to_owned(), token.to_owned()), ("token_type_hint".to_owned(), hint.to_owned())]
    };
    assert_eq!(sent, [(pairs("r0", "refresh_token"), 1), (pairs("a0", "access_token"), 1)]);
    // The next token comes from the connection's own grant, not from a refresh.
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer a3");
    failing.store(true, Ordering::SeqCst);
    let response = call(sidecar.admin(), "DELETE", "/connections/crm/tokens?profile=default", &json!({})).await.json();
    assert_eq!(
        (&response["forgotten"], &response["access_token"]["outcome"]),
        (&json!(true), &json!("failed")),
        "{response}"
    );
    assert!(response["access_token"]["reason"].as_str().unwrap().contains("http_500"), "{response}");
    assert_ne!(injected(&sidecar, &upstream).await, "Bearer a3");
    sidecar.wait_for_log("/api/v1/connections/crm/revoke").await;
    // The command also reports the failure and fails.
    let admin = format!("http://{}", sidecar.admin());
    let output = program()
        .args(["revoke", "crm", "--admin", &admin])
        .env("KEYBEARER_ADMIN_TOKEN", MANAGER)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("crm: forgotten here; at the server: refresh token failed"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn a_grant_that_another_connection_uses_is_not_revoked() {
    let (server, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let url = format!("http://{}", server.address);
    let text = config(&server, &upstream, &format!("revocation_url: \"{url}/revoke\""))
        + &format!(
            "- {{name: twin, client_id: id, scopes: [more], token_url: \"{url}/token\"}}\n- {{name: other, client_id: o, token_url: \"{url}/token\"}}\n"
        );
    let sidecar = Sidecar::start(&text).await;
    sidecar.wait_until_ready().await;
    let before = server.count();
    let response = call(sidecar.admin(), "POST", "/connections/crm/revoke", &json!({})).await.json();
    assert_eq!(response["access_token"]["outcome"], "not_revoked", "{response}");
    assert!(response["access_token"]["reason"].as_str().unwrap().contains("twin"), "{response}");
    let response = call(sidecar.admin(), "POST", "/connections/other/revoke", &json!({})).await.json();
    assert!(response["access_token"]["reason"].as_str().unwrap().contains("no revocation endpoint"), "{response}");
    assert!(server.received()[before..].iter().all(|request| !request.request_line().contains("/revoke")));
}
