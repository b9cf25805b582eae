//! Stored secrets: set, listed, used, removed, and written back after Redis has lost them.

use std::fs;

use serde_json::json;

use super::{OLD_KEY, StoreFixture};
use crate::rig::command::{output_text, run};
use crate::rig::crm::get;
use crate::rig::manager::call;
use crate::rig::redis::Redis;
use crate::rig::sidecar::Sidecar;

/// A replica that uses the secret writes it back, and another one starts with it.
#[tokio::test]
async fn a_stored_secret_that_redis_has_lost_is_written_back() {
    let (fixture, mut redis) = (StoreFixture::start().await, Redis::start().await);
    let top = format!("store: {{redis: {{url: \"redis://127.0.0.1:{}\"}}, seal_key: \"{OLD_KEY}\"}}\n", redis.port);
    let config = fixture.config(&top).replace("canary-client-secret", "{store: the-secret}");
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("keybearer.yaml"), &config).expect("a file");
    let set = run(dir.path(), &["secret", "set", "the-secret"], "canary-client-secret").await;
    assert_eq!(set.status.code(), Some(0), "{}", output_text(&set));
    let sidecar = Sidecar::start(&config).await;
    assert_eq!(get(&sidecar, "").await.status, 200, "{}", sidecar.log());
    redis.stop().await;
    redis.start_again().await;
    sidecar.wait_for_log("secret in use missing from the store").await;
    let other = Sidecar::start(&config).await;
    assert_eq!(get(&other, "").await.status, 200, "{}", other.log());
    // A reload is not delayed by the connection of an earlier one.
    let file = sidecar.dir.path().join("keybearer.yaml");
    let text = fs::read_to_string(&file).expect("a configuration");
    fs::write(&file, text + "log: {requests: all}\n").expect("a file");
    sidecar.wait_for_log("configuration reloaded").await;
    assert!(!sidecar.log().contains("canary-client-secret"), "{}", sidecar.log());
}

#[tokio::test]
async fn secrets_are_set_listed_used_and_removed_with_and_without_an_instance() {
    let fixture = StoreFixture::start().await;
    let config =
        fixture.config("").replace("client_secret: canary-client-secret", "client_secret: {store: crm/secret}");
    let dir = tempfile::tempdir().expect("a directory");
    let listeners = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n";
    fs::write(dir.path().join("keybearer.yaml"), format!("{listeners}{config}")).expect("a configuration");
    let missing = run(dir.path(), &["check"], "").await;
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        output_text(&missing)
            .contains("the store has no secret `crm/secret`; add it with `keybearer secret set crm/secret`")
    );
    assert!(!dir.path().join("state/tokens.redb").exists(), "check creates nothing");

    for (name, value) in [("crm/secret", "first-value\n"), ("spare", "x")] {
        let set = run(dir.path(), &["secret", "set", name], value).await;
        assert_eq!(set.status.code(), Some(0), "{}", output_text(&set));
    }
    assert_eq!(output_text(&run(dir.path(), &["secret", "list"], "").await), "crm/secret\nspare\n");
    assert_eq!(run(dir.path(), &["secret", "remove", "spare"], "").await.status.code(), Some(0));
    assert_eq!(run(dir.path(), &["secret", "remove", "spare"], "").await.status.code(), Some(1));
    assert_eq!(run(dir.path(), &["secret", "set", "a b"], "x").await.status.code(), Some(1));
    assert_eq!(run(dir.path(), &["secret", "set", "empty"], "\n").await.status.code(), Some(1));

    let sidecar = Sidecar::start_over(dir, 2, &[]).await;
    assert_eq!(get(&sidecar, "").await.status, 200, "{}", sidecar.log());
    let body = |number: usize| String::from_utf8_lossy(&fixture.server.received()[number].body).into_owned();
    assert!(body(0).contains("client_secret=first-value"), "{}", body(0));

    let admin = format!("http://{}", sidecar.admin());
    let set = run(sidecar.dir.path(), &["secret", "set", "crm/secret", "--admin", &admin], "second-value").await;
    assert_eq!(set.status.code(), Some(0), "{}", output_text(&set));
    sidecar.wait_for_log("configuration reloaded").await;
    let before = fixture.token_requests();
    assert_eq!(call(sidecar.admin(), "POST", "/connections/erp/refresh", &json!({})).await.status, 200);
    assert!(body(before).contains("client_secret=second-value"), "{}", body(before));
    let listed = run(sidecar.dir.path(), &["secret", "list", "--admin", &admin], "").await;
    assert_eq!(output_text(&listed), "crm/secret\n");
    assert!(!sidecar.log().contains("second-value"));
}
