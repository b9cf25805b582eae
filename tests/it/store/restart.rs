//! Restarts: tokens that survive, expired tokens, and exclusive access to the file.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::{StoreFixture, state};
use crate::rig::command::{output_text, run};
use crate::rig::crm::{get, person};
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn tokens_survive_a_restart_without_a_token_request() {
    let fixture = StoreFixture::start().await;
    let sidecar = Sidecar::start(&fixture.config("")).await;
    assert_eq!((get(&sidecar, "").await.status, fixture.token_requests()), (200, 2));
    for name in ["tokens.redb", "seal-key"] {
        assert_eq!(fs::metadata(state(&sidecar).join(name)).expect(name).mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(state(&sidecar)).expect("the directory").mode() & 0o777, 0o700);
    assert!(sidecar.log().contains("seal-key"), "it warns of the created key: {}", sidecar.log());
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!(get(&sidecar, "").await.status, 200);
    assert_eq!(fixture.token_requests(), 2, "{}", sidecar.log());
    let sent = fixture.upstream.received();
    let values: Vec<_> = sent.iter().flat_map(|request| request.values("authorization")).collect();
    assert_eq!(values.first(), values.last());
}

#[tokio::test]
async fn a_token_of_a_changed_definition_is_never_sent() {
    let fixture = StoreFixture::start().await;
    let sidecar = Sidecar::start(&fixture.config("")).await;
    let (dir, addresses, _) = sidecar.crash().await;
    let config = dir.path().join("keybearer.yaml");
    let text = fs::read_to_string(&config).expect("a readable file");
    fs::write(&config, text.replace("username: ann", "username: bob, scopes: [more]")).expect("another one");
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!(get(&sidecar, "").await.status, 200);
    assert_eq!(fixture.token_requests(), 4);
    assert!(fixture.server.received()[2..].iter().all(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        body.contains("grant_type=password") && body.contains("username=bob")
    }));
}

/// The message of an export, with the number of records in the file.
async fn exported(dir: &Path) -> String {
    let output = run(dir, &["store", "export", dir.join("state/export.jsonl").to_str().expect("text")], "").await;
    output_text(&output)
}

#[tokio::test]
async fn expired_access_tokens_are_removed_from_the_file() {
    let server = Scripted::start(|request, number| {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let mut response = json!({ "access_token": format!("a-{number}"), "token_type": "Bearer", "expires_in": 1 });
        if form.contains("audience=kept") {
            response["refresh_token"] = format!("r-{number}").into();
        }
        Reply::json(200, &response)
    })
    .await;
    let (server, upstream) = (server.address, Scripted::upstream().await);
    let script = "fn token_request(request, ctx) { request.form.audience = ctx.subject; request }";
    let config = format!(
        "hosts: {{api.test: \"{}\"}}\nconnections:\n- {{name: crm, token_url: \"http://{server}/token\", client_id: a, \
         client_secret: b, tokens: per_subject, script: {{file: s.rhai}}, routes: [{{host: api.test, upstream_tls: false}}]}}\n",
        upstream.address
    );
    let sidecar = Sidecar::start_with(&config, &[("s.rhai", script)]).await;
    for subject in ["a", "b", "c", "d", "kept"] {
        assert_eq!(get(&sidecar, &format!("Keybearer-Subject: {subject}\r\n")).await.status, 200);
    }
    let (dir, addresses, _) = sidecar.crash().await;
    assert!(exported(dir.path()).await.contains("5 records"));
    let started = Instant::now();
    let mut left = (dir, addresses, String::new());
    // The first sweep runs right after a start.
    while !left.2.contains("1 records") {
        assert!(started.elapsed() < TIMEOUT, "{}", left.2);
        let sidecar = Sidecar::start_over(left.0, left.1, &[]).await;
        let (dir, addresses, _) = sidecar.crash().await;
        let message = exported(dir.path()).await;
        left = (dir, addresses, message);
    }
}

#[tokio::test]
async fn a_second_process_reports_that_the_store_is_in_use() {
    let fixture = StoreFixture::start().await;
    let sidecar = Sidecar::start(&fixture.config("")).await;
    let second = run(sidecar.dir.path(), &["run"], "").await;
    let text = output_text(&second);
    assert_eq!(second.status.code(), Some(1), "{text}");
    assert!(text.contains("tokens.redb") && text.contains("in use"), "{text}");
    let export = run(sidecar.dir.path(), &["store", "export", "/dev/null"], "").await;
    assert_eq!(export.status.code(), Some(1));
    assert!(output_text(&export).contains("stop the instance first"), "{}", output_text(&export));
    assert_eq!(get(&sidecar, "").await.status, 200);
}

#[tokio::test]
async fn with_an_unwritable_store_tokens_are_in_memory_unless_a_person_is_needed() {
    let fixture = StoreFixture::start().await;
    let top = "state_dir: /dev/null/nowhere\n";
    let sidecar = Sidecar::start(&fixture.config(top)).await;
    assert_eq!(get(&sidecar, "").await.status, 200);
    assert!(sidecar.log().contains("in memory"), "{}", sidecar.log());
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let dir = tempfile::tempdir().expect("a directory");
    let text = person(&server, &upstream, top, ", grant: authorization_code");
    fs::write(dir.path().join("keybearer.yaml"), text).expect("a configuration");
    for command in ["check", "run"] {
        let output = run(dir.path(), &[command], "").await;
        assert_eq!(output.status.code(), Some(2), "{}", output_text(&output));
        assert!(
            output_text(&output).contains("is not writable, but a connection needs a person's consent to be stored"),
            "{}",
            output_text(&output)
        );
    }
}
