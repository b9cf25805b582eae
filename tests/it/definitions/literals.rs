//! What a definition over the API must not hold, and where its secrets and tokens must not travel.

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

#[tokio::test]
async fn a_changed_revocation_url_gets_no_token_that_was_stored_before() {
    let stage = Stage::start().await;
    let mut own = definition("own", "api.test");
    own["grant"] = json!("authorization_code");
    own["authorization_url"] = json!("https://as.test/authorize");
    own["redirect_url"] = json!("https://keybearer.test/oauth/callback");
    assert_eq!(stage.put(&own).await.status, 201);
    let given = json!({ "refresh_token": "given" });
    let imported = stage.call("PUT", "/connections/own/tokens", "", &given).await;
    assert_eq!(imported.status, 200, "{}", imported.text());
    let made = stage.get("/connections/own").await;
    let change = json!({ "revocation_url": "http://other.test/revoke", "client_secret": "bogus" });
    let changed = stage.call("PATCH", "/connections/own", &if_match(&made), &change).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    let revoked = stage.call("POST", "/connections/own/revoke", "", &json!({})).await;
    assert_eq!(revoked.json()["refresh_token"]["outcome"], "revoked", "{}", revoked.text());
    let received = stage.server.received();
    let hosts: Vec<_> = received.iter().flat_map(|request| request.values("host")).collect();
    assert!(hosts.iter().all(|host| *host == "as.test"), "{hosts:?}");
    assert!(received.iter().any(|request| String::from_utf8_lossy(&request.body).contains("token=given")));
}

#[tokio::test]
async fn a_failed_token_request_is_logged_without_the_query_of_its_url() {
    let stage = Stage::start().await;
    let mut own = definition("own", "api.test");
    own["token_url"] = json!("http://as.test/token?key=a-k3y-in-the-query");
    own["token_response"] = json!({ "access_token": "/missing" });
    assert_eq!(stage.put(&own).await.status, 201);
    assert_ne!(stage.fetch("http://api.test/").await.status, 200);
    let logged = stage.sidecar.wait_for_log("token acquisition failed").await;
    assert!(logged.contains("http://as.test/token"), "{logged}");
    assert!(!stage.sidecar.log().contains("a-k3y-in-the-query"), "{}", stage.sidecar.log());
}
