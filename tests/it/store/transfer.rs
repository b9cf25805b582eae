//! Exports: from one store to another, between file and Redis, and under another key.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use super::{NEW_KEY, OLD_KEY, StoreFixture};
use crate::rig::command::{output_text, run};
use crate::rig::crm::get;
use crate::rig::redis::Redis;
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn an_export_is_imported_by_another_store() {
    let fixture = StoreFixture::start().await;
    let key = format!("store: {{embedded: {{}}, seal_key: \"{OLD_KEY}\"}}\n");
    let sidecar = Sidecar::start(&fixture.config(&key)).await;
    let (dir, addresses, _) = sidecar.crash().await;
    let file = dir.path().join("export.jsonl");
    let export = run(dir.path(), &["store", "export", file.to_str().unwrap()], "").await;
    assert_eq!(export.status.code(), Some(0), "{}", output_text(&export));
    assert_eq!(fs::metadata(&file).expect("an export").mode() & 0o777, 0o600);
    fs::remove_dir_all(dir.path().join("state")).expect("removal succeeds");
    let import = run(dir.path(), &["store", "import", file.to_str().unwrap()], "").await;
    assert_eq!(import.status.code(), Some(0), "{}", output_text(&import));
    assert!(output_text(&import).contains("2 records imported"), "{}", output_text(&import));
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!((get(&sidecar, "").await.status, fixture.token_requests()), (200, 2), "{}", sidecar.log());
}

#[tokio::test]
async fn tokens_and_secrets_move_between_file_and_redis_and_to_another_key() {
    let (fixture, redis) = (StoreFixture::start().await, Redis::start().await);
    let config = |store: &str, keys: &str| {
        let text = fixture.config(&format!("store: {{{store}, seal_key: {keys}}}\n"));
        format!(
            "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}}\n{}",
            text.replace("canary-client-secret", "{store: the-secret}")
        )
    };
    let (file, shared) = ("embedded: {}".to_owned(), format!("redis: {{url: \"redis://127.0.0.1:{}\"}}", redis.port));
    let (old, both, new) =
        (format!("\"{OLD_KEY}\""), format!("[\"{NEW_KEY}\", \"{OLD_KEY}\"]"), format!("\"{NEW_KEY}\""));
    let dir = tempfile::tempdir().expect("a directory");
    let write = |text: &str| fs::write(dir.path().join("keybearer.yaml"), text).expect("a file");
    let export = dir.path().join("export.jsonl").display().to_string();
    let ran = async |arguments: &[&str], input: &str| {
        let output = run(dir.path(), arguments, input).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", output_text(&output));
        output_text(&output)
    };
    let served = async |requests: usize| {
        let copy = tempfile::tempdir().expect("a directory");
        for name in ["keybearer.yaml", "state/tokens.redb"] {
            let (from, to) = (dir.path().join(name), copy.path().join(name));
            fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            if from.exists() {
                fs::copy(from, to).expect("a copy");
            }
        }
        let sidecar = Sidecar::start_over(copy, 2, &[]).await;
        assert_eq!((get(&sidecar, "").await.status, fixture.token_requests()), (200, requests), "{}", sidecar.log());
        let (copy, _, _) = sidecar.crash().await;
        copy
    };
    write(&config(&file, &old));
    ran(&["secret", "set", "the-secret"], "canary-client-secret").await;
    let first = served(2).await;
    fs::copy(first.path().join("state/tokens.redb"), dir.path().join("state/tokens.redb")).expect("a copy");
    assert!(ran(&["store", "export", &export], "").await.contains("3 records"));

    // To Redis, secrets included, and without a token request.
    write(&config(&shared, &old));
    assert!(ran(&["store", "import", &export], "").await.contains("3 records imported"));
    assert!(ran(&["store", "import", &export], "").await.contains("0 records imported, 3 unchanged"));
    assert!(ran(&["store", "import", "--overwrite", &export], "").await.contains("3 records imported"));
    assert_eq!(ran(&["secret", "list"], "").await.trim(), "the-secret");
    served(2).await;
    let last = fixture.server.received().pop().expect("a request");
    assert!(
        String::from_utf8_lossy(&last.body).contains("canary-client-secret") || last.head.contains("Basic"),
        "{}",
        last.head
    );

    // To another key, while no instance uses the store.
    write(&config(&shared, &both));
    assert!(ran(&["store", "reseal"], "").await.contains("3 records resealed with the first key"));
    write(&config(&shared, &new));
    served(2).await;

    // Back to a file.
    ran(&["store", "export", &export], "").await;
    fs::remove_dir_all(dir.path().join("state")).expect("removal succeeds");
    write(&config(&file, &new));
    assert!(ran(&["store", "import", &export], "").await.contains("3 records imported"));
    served(2).await;
    let text = fs::read_to_string(&export).expect("an export");
    assert!(!text.contains("canary"), "{text}");
}

/// A backup of a running fleet.
#[tokio::test]
async fn an_export_from_redis_is_complete_while_replicas_write() {
    let (fixture, redis) = (StoreFixture::start().await, Redis::start().await);
    let store = format!("store: {{redis: {{url: \"redis://127.0.0.1:{}\"}}, seal_key: \"{OLD_KEY}\"}}\n", redis.port);
    let sidecar = Sidecar::start(&fixture.config(&store)).await;
    let dir = tempfile::tempdir().expect("a directory");
    let text = fs::read_to_string(sidecar.dir.path().join("keybearer.yaml")).expect("a configuration");
    fs::write(dir.path().join("keybearer.yaml"), text).expect("a file");
    let export = dir.path().join("export.jsonl").display().to_string();
    let admin = sidecar.admin();
    let busy = tokio::spawn(async move {
        for number in 0.. {
            let secret = json!({ "value": "s3cr3t" });
            crate::rig::manager::call(admin, "PUT", &format!("/secrets/number-{number}"), &secret).await;
        }
    });
    for _ in 0..5 {
        let output = run(dir.path(), &["store", "export", &export], "").await;
        assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
        let lines = fs::read_to_string(&export).expect("an export");
        let count = lines.lines().count() - 1;
        assert!(lines.starts_with("{\"keybearer_store\"") && lines.contains(&format!("\"count\":{count}")), "{count}");
    }
    busy.abort();
    assert_eq!(
        fs::read_dir(dir.path())
            .expect("a directory")
            .filter(|entry| {
                entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("export.jsonl."))
            })
            .count(),
        0,
        "no temporary file is left"
    );
}
