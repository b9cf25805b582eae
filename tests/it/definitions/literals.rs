//! What a definition over the API must not hold: references, and secrets that would travel elsewhere.

use serde_json::{Value, json};

use super::{Stage, code, definition, if_match};

#[tokio::test]
async fn references_are_refused_with_the_sentences_of_check() {
    let stage = Stage::start().await;
    for (key, value) in [
        ("client_secret", json!({ "env": "HOME" })),
        ("client_secret", json!({ "file": "/etc/hostname" })),
        ("client_secret", json!({ "store": "other" })),
        ("client_id", json!("${env:HOME}")),
        ("script", json!({ "file": "/etc/hostname" })),
    ] {
        let mut own = definition("own", "api.test");
        own[key] = value.clone();
        let response = stage.put(&own).await;
        assert_eq!(
            (response.status, code(&response).as_str()),
            (422, "reference_not_allowed"),
            "{value}: {}",
            response.text()
        );
        assert!(response.json()["problems"][0]["hint"].as_str().is_some_and(|hint| !hint.is_empty()));
    }
    assert_eq!(stage.get("/connections/own").await.status, 404);
}

#[tokio::test]
async fn a_kept_secret_goes_nowhere_else() {
    let stage = Stage::start().await;
    let made = stage.put(&definition("own", "api.test")).await;
    for (key, value) in [("token_url", "http://other.test/token"), ("revocation_url", "http://other.test/revoke")] {
        let mut moved = stage.get("/connections/own").await.json();
        moved[key] = json!(value);
        let response = stage.call("PUT", "/connections/own", &if_match(&made), &moved).await;
        assert_eq!((response.status, code(&response).as_str()), (422, "secret_needed"), "{}", response.text());
        let response = stage.call("PATCH", "/connections/own", &if_match(&made), &json!({ key: value })).await;
        assert_eq!((response.status, code(&response).as_str()), (422, "secret_needed"), "{}", response.text());
    }
    let absent = json!({ "name": "new", "client_id": "a", "client_secret": {"set": true}, "token_url": "http://as.test/token", "allow_cleartext": true });
    let response = stage.put(&absent).await;
    assert_eq!((response.status, code(&response).as_str()), (422, "secret_needed"), "{}", response.text());
    assert_eq!(stage.call("GET", "/connections/own", "", &Value::Null).await.header("etag"), made.header("etag"));
}

#[tokio::test]
async fn a_definition_reaches_no_private_address() {
    let stage = Stage::start().await;
    let mut own = definition("own", "api.test");
    own["token_url"] = json!(format!("http://{}/token", stage.server.address));
    let before = stage.server.count();
    let made = stage.put(&own).await;
    assert!([201, 422].contains(&made.status), "{}", made.text());
    if made.status == 201 {
        assert_ne!(stage.fetch("http://api.test/").await.status, 200);
    }
    assert_eq!(stage.server.count(), before);
}
