//! Scripts change token requests and token responses, and leak no secrets.

use std::sync::Arc;

use serde_json::json;

use super::{config, field, get, injected};
use crate::rig::manager::call;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const SCRIPT: &str = r#"
fn token_request(request, ctx) {
    request.headers["x-signature"] = hex(hmac_sha256(ctx.variables.key, request.form.client_id));
    request.form.tenant = ctx.connection + "/" + ctx.grant;
    request
}
fn token_response(response, ctx) {
    if response.status == 202 { throw #{retry_after: 2}; }
    if response.status == 203 { throw "no account for this client"; }
    if response.text.starts_with("token:") {
        let parts = response.text.split(":");
        return #{access_token: parts[1], expires_in: parse_int(parts[2])};
    }
    response
}
"#;

#[tokio::test]
async fn a_script_changes_the_request_and_reads_the_response() {
    let (upstream, token_response) =
        (Scripted::upstream().await, Arc::new(std::sync::Mutex::new((200, "token:abc:3600".to_owned()))));
    let now = token_response.clone();
    let server = Scripted::start(move |_, _| {
        let (status, text) = now.lock().unwrap().clone();
        Reply::text(status, "text/plain", &text)
    })
    .await;
    let keys = "script: {file: token.rhai}, variables: {key: k}";
    let text = config(&server, &upstream, keys);
    let sidecar = Sidecar::start_with(&text, &[("token.rhai", SCRIPT)]).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer abc");
    let request = server.received().remove(0);
    assert_eq!(field(&request, "tenant"), "crm/client_credentials");
    // HMAC-SHA-256 of `id` under `k`, as openssl computes it.
    let openssl = std::process::Command::new("sh")
        .args(["-c", "printf id | openssl dgst -sha256 -hmac k -r | cut -d' ' -f1"])
        .output()
        .unwrap();
    assert_eq!(request.values("x-signature"), [String::from_utf8(openssl.stdout).unwrap().trim()]);

    *token_response.lock().unwrap() = (202, String::new());
    let sidecar = Sidecar::start_with(&text, &[("token.rhai", SCRIPT)]).await;
    let later = get(&sidecar, "").await;
    assert_eq!((later.status, later.code()), (503, "token_unavailable"), "{}", later.text());
    *token_response.lock().unwrap() = (203, "secret-token_response".to_owned());
    let sidecar = Sidecar::start_with(&text, &[("token.rhai", SCRIPT)]).await;
    let failed = get(&sidecar, "").await;
    assert_eq!((failed.status, failed.code()), (424, "script_failed"));
    assert!(failed.text().contains("no account for this client"), "{}", failed.text());
    let outcome = "keybearer_token_requests_total{connection=\"crm\",grant=\"client_credentials\",outcome=\"script\",profile=\"default\"}";
    assert!(sidecar.metric(outcome).await >= 1.0);
    assert!(!sidecar.log().contains("secret-token_response"));
    assert!(server.count() <= 6, "a failed script is not retried at once");
}

/// Responses, the log and the API show what a script throws, but mask the secrets passed to it.
#[tokio::test]
async fn secrets_in_a_scripts_error_are_masked() {
    let upstream = Scripted::upstream().await;
    let token_response = json!({"access_token": "acc3ss-T0ken", "refresh_token": "refr3sh", "id_token": "eyJ0.eyJz.c2ln",
        "data": {"session": "s3ssion", "note": "a1b2c3d4e5f6g7h8i9"}, "error_description": "no account 17"});
    let server = Scripted::start(move |_, _| Reply::json(200, &token_response)).await;
    let response = |body: &str| format!("fn token_response(response, ctx) {{ {body} }}");
    let request = |body: &str| format!("fn token_request(request, ctx) {{ {body} }}");
    for (source, shown) in [
        (response("throw \"got \" + response.json.access_token"), false),
        (response("throw response.json.refresh_token"), false),
        (response("throw response.json.id_token.sub_string(0, 10)"), false),
        (response("throw response.json.data.session"), false),
        (response("throw response.json.data.note"), false),
        (response("throw response.text"), false),
        (response("throw #{message: response.json.access_token}"), false),
        (response("response[response.json.access_token] = 1; response"), false),
        (response("throw ctx.variables.key"), false),
        (request("throw request.headers[\"x-key\"]"), false),
        (request("throw request.form.client_secret + ctx.variables.key"), false),
        (response("throw \"it says: \" + response.json.error_description"), true),
    ] {
        let keys = "script: {file: s.rhai}, client_secret: {file: s}, variables: {key: var1able}, token_request: {headers: {X-Key: {file: h}}}";
        let files = [("s.rhai", &*source), ("s", "cl1ent-secret"), ("h", "h3ader-secret")];
        let sidecar = Sidecar::start_with(&config(&server, &upstream, keys), &files).await;
        let refused = get(&sidecar, "").await;
        assert_eq!((refused.status, refused.code()), (424, "script_failed"), "{source}: {}", refused.text());
        let tokens = call(sidecar.admin(), "GET", "/connections/crm/tokens", &json!({})).await;
        let all =
            refused.text() + &sidecar.wait_for_log("token acquisition failed").await + &sidecar.log() + &tokens.text();
        for secret in ["acc3ss", "refr3sh", "eyJ0", "s3ssion", "a1b2c3d4", "var1able", "cl1ent", "h3ader"] {
            assert!(!all.contains(secret), "{source}: {secret} in {all}");
        }
        assert_eq!(all.contains("it says: no account 17"), shown, "{source}: {all}");
    }
}
