//! Revocation of a token granted under a superseded definition: sent to the server that issued it, and nowhere else.
//!
//! Not here: what connections and profiles share (`profiles`), replicas (`fleet`).

use std::fs;

use serde_json::{Value, json};

use crate::rig::crm::get;
use crate::rig::manager::{MANAGER, call, import_refresh_token};
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

/// An authorization server that issues `a-N` and `r-N`, and confirms every revocation.
async fn server() -> Scripted {
    Scripted::start(|request, before| match request.request_line().contains("/revoke") {
        true => Reply::json(200, &json!({})),
        false => Reply::json(
            200,
            &json!({ "access_token": format!("a-{before}"), "token_type": "Bearer", "expires_in": 600,
                "refresh_token": format!("r-{before}") }),
        ),
    })
    .await
}

fn definition(server: &Scripted, keys: &str) -> String {
    format!(
        "- {{name: crm, token_url: \"http://{0}/token\", revocation_url: \"http://{0}/revoke\", grant: authorization_code, \
         {keys}, routes: [{{host: api.test, upstream_tls: false}}]}}\n",
        server.address
    )
}

fn config(upstream: &Scripted, definitions: &str) -> String {
    format!(
        "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}}\n\
         admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\n\
         hosts: {{api.test: \"{}\"}}\nconnections:\n{definitions}",
        upstream.address
    )
}

/// The bodies of the revocation requests that a server received.
fn revocations(server: &Scripted) -> Vec<String> {
    let is_one = |request: &Received| request.request_line().contains("/revoke");
    let received = server.received().into_iter().filter(is_one);
    received.map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect()
}

async fn reload(sidecar: &Sidecar, text: &str) {
    fs::write(sidecar.dir.path().join("keybearer.yaml"), text).expect("a configuration");
    let response = call(sidecar.admin(), "POST", "/reload", &json!({})).await;
    assert_eq!(response.status, 200, "{}", response.text());
}

async fn restart(sidecar: Sidecar, text: &str) -> Sidecar {
    let (dir, addresses, _) = sidecar.crash().await;
    fs::write(dir.path().join("keybearer.yaml"), text).expect("a configuration");
    Sidecar::start_over(dir, addresses, &[]).await
}

/// A sidecar whose connection has the definition `first` and an imported token.
async fn connected(upstream: &Scripted, first: &str) -> Sidecar {
    let sidecar = Sidecar::start(&config(upstream, first)).await;
    assert_eq!(import_refresh_token(&sidecar, "given", None).await.status, 200, "{}", sidecar.log());
    assert_eq!(get(&sidecar, "").await.status, 200);
    sidecar
}

async fn revoke(sidecar: &Sidecar) -> Value {
    let response = call(sidecar.admin(), "POST", "/connections/crm/revoke", &json!({})).await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

const OLD: &str = "client_id: old, client_secret: old-secret";
const NEW: &str = "client_id: new, client_secret: new-secret";

#[tokio::test]
async fn a_token_of_another_server_is_revoked_there_while_its_definition_is_known() {
    let (one, two, upstream) = (server().await, server().await, Scripted::upstream().await);
    let sidecar = connected(&upstream, &definition(&one, OLD)).await;
    reload(&sidecar, &config(&upstream, &definition(&two, NEW))).await;
    assert_eq!(get(&sidecar, "").await.code(), "consent_required");
    let path = "/connections/crm/tokens";
    let outcome = call(sidecar.admin(), "DELETE", path, &json!({})).await.json();
    for token in ["refresh_token", "access_token"] {
        assert_eq!(outcome[token]["outcome"], "revoked", "{outcome}");
    }
    let forms = revocations(&one);
    assert_eq!(forms.len(), 2, "{forms:?}");
    for (form, token) in forms.iter().zip(["token=r-0", "token=a-0"]) {
        assert!(form.contains(token) && form.contains("client_id=old") && form.contains("old-secret"), "{form}");
    }
    assert_eq!(two.count(), 0, "an old token is never sent to another server");
    let again = revoke(&sidecar).await;
    assert_eq!(again["refresh_token"]["outcome"], "none", "it was forgotten: {again}");
}

#[tokio::test]
async fn a_token_of_an_unknown_definition_is_not_sent_and_the_outcome_reports_it() {
    let (one, two, upstream) = (server().await, server().await, Scripted::upstream().await);
    let sidecar = connected(&upstream, &definition(&one, OLD)).await;
    let sidecar = restart(sidecar, &config(&upstream, &definition(&two, OLD))).await;
    let outcome = revoke(&sidecar).await;
    for token in ["refresh_token", "access_token"] {
        assert_eq!(outcome[token]["outcome"], "failed", "{outcome}");
        let reason = outcome[token]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("earlier definition") && reason.contains("revoke it at that server"), "{outcome}");
    }
    assert_eq!((revocations(&one).len(), two.count()), (0, 0));
    assert_eq!(revoke(&sidecar).await["refresh_token"]["outcome"], "none", "it is forgotten regardless");
}

#[tokio::test]
async fn a_token_of_the_same_server_and_client_is_revoked_after_a_restart() {
    let (server, upstream) = (server().await, Scripted::upstream().await);
    let sidecar = connected(&upstream, &definition(&server, OLD)).await;
    // Only the scopes and the secret change.
    let other = "client_id: old, client_secret: rotated-secret, scopes: [more]";
    let sidecar = restart(sidecar, &config(&upstream, &definition(&server, other))).await;
    assert_eq!(get(&sidecar, "").await.code(), "consent_required");
    let outcome = revoke(&sidecar).await;
    assert_eq!(outcome["refresh_token"]["outcome"], "revoked", "{outcome}");
    let forms = revocations(&server);
    assert!(forms.len() == 2 && forms.iter().all(|form| form.contains("rotated-secret")), "{forms:?}");
}

#[tokio::test]
async fn a_grant_shared_with_another_connection_is_not_revoked() {
    let (one, two, upstream) = (server().await, server().await, Scripted::upstream().await);
    let person = "username: ann, password: ann-password";
    let crm =
        |server: &Scripted| definition(server, &format!("{OLD}, {person}")).replace("authorization_code", "password");
    let other = definition(&one, &format!("{OLD}, {person}, scopes: [more]"));
    let other = other
        .replace("authorization_code", "password")
        .replace("name: crm", "name: erp")
        .replace("host: api.test", "host: erp.test");
    let sidecar = Sidecar::start(&config(&upstream, &(crm(&one) + &other))).await;
    // The new server closes every connection, so the old record stays.
    let silent = Scripted::start(|_, _| Reply::Close).await;
    reload(&sidecar, &config(&upstream, &(crm(&silent) + &other))).await;
    let outcome = revoke(&sidecar).await;
    assert_eq!(outcome["refresh_token"]["outcome"], "not_revoked", "{outcome}");
    assert!(outcome["refresh_token"]["reason"].as_str().is_some_and(|why| why.contains("erp")), "{outcome}");
    assert_eq!((revocations(&one).len(), two.count()), (0, 0));
}
