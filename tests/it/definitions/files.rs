//! Files and stored definitions: files win, are read-only over the API, and are never blocked.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{JSON, Stage, code, definition, if_match};
use crate::rig::manager::{MANAGER, call_as};
use crate::rig::raw;

#[tokio::test]
async fn what_a_file_defines_is_read_only() {
    let stage = Stage::start().await;
    for (method, body) in [("PUT", definition("file", "api.test")), ("PATCH", json!({})), ("DELETE", Value::Null)] {
        let response = stage.call(method, "/connections/file", "If-Match: *\r\n", &body).await;
        assert_eq!((response.status, code(&response).as_str()), (409, "read_only"), "{method}");
        let path = response.json()["path"].as_str().expect("a path").to_owned();
        assert!(path.ends_with(".yaml"), "{path}");
    }
    let apply = json!({ "connections": [definition("own", "api.test"), definition("file", "two.test")] });
    assert_eq!(code(&stage.call("POST", "/connections:apply", "", &apply).await), "read_only");
    assert_eq!(stage.get("/connections/own").await.status, 404);
}

#[tokio::test]
async fn without_editing_or_a_durable_store_nothing_is_kept() {
    const READ_ONLY: &str = "admin: {USERS, editing: false}\n";
    for (top, expected) in [(READ_ONLY, "read_only"), ("admin: {USERS}\nstore: {memory: {}}\n", "definitions_not_kept")]
    {
        let stage = Stage::with(top).await;
        for path in ["/connections/own", "/connections/own?dry_run=true"] {
            let response = stage.call("PUT", path, "", &definition("own", "api.test")).await;
            assert_eq!((response.status, code(&response).as_str()), (409, expected), "{}", response.text());
            assert!(!response.text().contains("is defined in admin.editing"), "{}", response.text());
        }
    }
}

#[tokio::test]
async fn a_definition_that_a_file_collides_with_is_set_aside_and_comes_back() {
    let stage = Stage::start().await;
    let (own, two) = (definition("own", "api.test"), definition("two", "two.test"));
    for made in [&own, &two] {
        assert_eq!(stage.put(made).await.status, 201);
    }
    let path = stage.sidecar.dir.path().join("keybearer.yaml");
    let before = fs::read_to_string(&path).expect("the configuration");
    let colliding = format!(
        "{before}- {{name: own, client_id: a, client_secret: b, token_url: \"http://as.test/t\", allow_cleartext: true}}\n\
         - {{name: taker, client_id: a, client_secret: b, token_url: \"http://as.test/t\", allow_cleartext: true, \
         routes: [{{host: two.test, upstream_tls: false}}]}}\n"
    );
    fs::write(&path, colliding).expect("the configuration");
    stage.sidecar.wait_for_log("definition in the store set aside").await;
    stage
        .sidecar
        .wait_for_metric("keybearer_tokens{connection=\"two\",profile=\"default\",state=\"misconfigured\"}", |value| {
            value == 1.0
        })
        .await;
    // The route is the file's; the connection of the same name is shown with what it hides.
    let listed = stage.get("/connections?state=misconfigured").await.json();
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1), "{listed}");
    let aside = stage.get("/connections/two").await;
    assert_eq!(
        (&aside.json()["state"], &aside.json()["client_secret"]),
        (&json!("misconfigured"), &json!({"set": true}))
    );
    let problem = aside.json()["problems"][0].clone();
    assert_eq!(problem["path"], json!("routes[0]"), "{problem}");
    let shadowed = stage.get("/connections/own").await;
    assert_eq!(shadowed.header("etag"), None);
    let etag = shadowed.json()["set_aside"]["etag"].as_str().expect("the ETag of what is hidden").to_owned();
    // A restart starts all the same.
    let Stage { sidecar, server, upstream } = stage;
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = crate::rig::sidecar::Sidecar::start_over(dir, addresses, &[]).await;
    let stage = Stage { sidecar, server, upstream };
    assert_eq!(stage.get("/connections/two").await.json()["state"], json!("misconfigured"));
    assert_eq!(stage.fetch("http://file.test/").await.status, 200);
    // The hidden definition can be removed, and the other comes back with the file's change.
    let removed = stage.call("DELETE", "/connections/own", &format!("If-Match: {etag}\r\n"), &Value::Null).await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    fs::write(stage.sidecar.dir.path().join("keybearer.yaml"), before).expect("the configuration");
    let end = Instant::now() + Duration::from_secs(10);
    while stage.get("/connections/two").await.json()["state"] != json!("fresh") {
        assert!(Instant::now() < end, "{}", stage.sidecar.log());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(stage.get("/connections/own").await.status, 404);
    assert_eq!(stage.fetch("http://two.test/").await.status, 200);
}

#[tokio::test]
async fn invalid_files_on_disk_refuse_changes_and_keep_what_is_in_force() {
    let stage = Stage::start().await;
    assert_eq!(stage.put(&definition("own", "api.test")).await.status, 201);
    let path = stage.sidecar.dir.path().join("keybearer.yaml");
    fs::write(&path, "connections: {").expect("the configuration");
    let response = stage.put(&definition("new", "two.test")).await;
    assert_eq!((response.status, code(&response).as_str()), (409, "configuration_refused"), "{}", response.text());
    assert_eq!(stage.fetch("http://api.test/").await.status, 200);
}

#[tokio::test]
async fn a_connection_that_another_injects_is_not_removed() {
    let stage = Stage::start().await;
    assert_eq!(stage.put(&definition("own", "api.test")).await.status, 201);
    let mut user = definition("user", "two.test");
    user["routes"][0]["inject"] = json!([{"header": "Authorization"}, {"header": "X-Own", "connection": "own"}]);
    let made = stage.put(&user).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let own = stage.get("/connections/own").await;
    let removed = stage.call("DELETE", "/connections/own", &if_match(&own), &Value::Null).await;
    assert_eq!((removed.status, code(&removed).as_str()), (409, "in_use"), "{}", removed.text());
    assert_eq!(removed.json()["problems"][0]["connection"], json!("user"));
    let yaml = call_as(MANAGER, stage.sidecar.admin(), ("GET", "/connections?format=yaml"), JSON, "").await;
    assert!(yaml.text().starts_with("connections:\n- name: own\n"), "{}", yaml.text());
}

#[tokio::test]
async fn requests_to_the_hosts_of_a_definition_that_is_set_aside_are_refused() {
    const PUBLISHED: &str = "secrets: {pub: {env: PATH, hosts: [as.test]}}\n";
    let stage = Stage::with(&format!("admin: {{USERS}}\n{PUBLISHED}")).await;
    let own = json!({
        "name": "own", "client_id": "id", "client_secret": {"use": "pub"}, "token_url": "https://as.test/token",
        "routes": [{"host": "api.test"}],
    });
    let made = stage.put(&own).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let path = stage.sidecar.dir.path().join("keybearer.yaml");
    let without = fs::read_to_string(&path).expect("the configuration").replace(PUBLISHED, "");
    fs::write(&path, without).expect("the configuration");
    stage.sidecar.wait_for_log("definition in the store set aside").await;
    let end = Instant::now() + Duration::from_secs(10);
    while stage.get("/connections/own").await.json()["state"] != json!("misconfigured") {
        assert!(Instant::now() < end, "{}", stage.sidecar.log());
        sleep(Duration::from_millis(20)).await;
    }
    let before = stage.upstream.count();
    let response = stage.fetch("http://api.test/x").await;
    assert_eq!((response.status, response.code()), (403, "no_route"), "{}", response.text());
    let connect = b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n";
    let response = raw::send(stage.sidecar.proxy(), connect).await;
    assert_eq!((response.status, response.code()), (403, "no_route"), "{}", response.text());
    assert_eq!(stage.upstream.count(), before);
    // Other hosts are as before.
    assert_eq!(stage.fetch("http://two.test/x").await.status, 200);
}
