//! The keys that an administrator's form has beyond the grant, from the API to their effect.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Fields, base};
use crate::rig::raw;
use crate::rig::sidecar::Sidecar;

/// Sends a request to `api.test` as a caller with this secret; as the caller `local` without.
async fn fetch(sidecar: &Sidecar, caller: &str) -> raw::RawResponse {
    raw::get_through(sidecar.proxy(), "http://api.test/", caller).await
}

/// Basic `named:abc`, a caller of no application.
const NAMED: &str = "Proxy-Authorization: Basic bmFtZWQ6YWJj\r\n";

#[tokio::test]
async fn a_connection_of_an_application_serves_its_callers_alone() {
    let stage = Fields::start("", &[]).await;
    let mut definition = base();
    definition["comments"] = "Billing's own\norg".into();
    (definition["application"], definition["accessible_from"]) = ("billing".into(), "application".into());
    let made = stage.create(&definition).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let shown = stage.get().await;
    assert_eq!((&shown["comments"], &shown["application"]), (&json!("Billing's own\norg"), &json!("billing")));
    assert_eq!(
        (&shown["accessible_from"], &shown["effective"]["accessible_from"]),
        (&json!("application"), &json!(["local"]))
    );
    for query in ["application=billing", "q=own"] {
        let listed = stage.call("GET", &format!("/connections?{query}"), &Value::Null).await.json();
        assert_eq!(listed["items"][0]["name"], "own", "{query}: {listed}");
    }
    assert_eq!(fetch(&stage.sidecar, "").await.status, 200);
    assert_eq!(fetch(&stage.sidecar, NAMED).await.code(), "caller_not_allowed");

    // Another application: the same caller is refused.
    let patched = stage.call("PATCH", "/connections/own", &json!({ "application": "shipping" })).await;
    assert_eq!((patched.status, &patched.json()["effective"]["accessible_from"]), (200, &json!([])));
    assert_eq!(fetch(&stage.sidecar, "").await.code(), "caller_not_allowed");
    let patched = stage.call("PATCH", "/connections/own", &json!({ "application": null })).await;
    assert_eq!(patched.status, 422, "{}", patched.text());
    assert_eq!(patched.json()["problems"][0]["path"], "accessible_from");
    let all = stage.call("PATCH", "/connections/own", &json!({ "application": null, "accessible_from": null })).await;
    assert_eq!(all.status, 200, "{}", all.text());
    for caller in ["", NAMED] {
        assert_eq!(fetch(&stage.sidecar, caller).await.status, 200);
    }
}

#[tokio::test]
async fn an_inactive_connection_acquires_no_token_and_refuses_requests() {
    let stage = Fields::start("", &[]).await;
    let mut definition = base();
    definition["active"] = false.into();
    let made = stage.create(&definition).await;
    assert_eq!((made.status, &made.json()["state"]), (201, &json!("inactive")), "{}", made.text());
    assert_eq!(fetch(&stage.sidecar, "").await.code(), "connection_inactive");
    let before = stage.server.count();
    let refreshed = stage.call("POST", "/connections/own/refresh", &json!({})).await;
    assert_ne!(refreshed.status, 200, "{}", refreshed.text());
    assert_eq!(stage.server.count(), before);
    let on = stage.call("PATCH", "/connections/own", &json!({ "active": null })).await;
    assert_eq!(on.status, 200, "{}", on.text());
    assert_eq!(fetch(&stage.sidecar, "").await.status, 200);
}

#[tokio::test]
async fn forecasts_of_expiry_are_shown_and_measured() {
    let stage = Fields::start("", &[]).await;
    let mut definition = base();
    definition["client_secret_expires_at"] = "2046-05-01T00:00:00Z".into();
    definition["refresh_token_lifespan"] = "100d".into();
    definition["grant"] = "password".into();
    (definition["username"], definition["password"]) = ("ann".into(), "a-password".into());
    let made = stage.create(&definition).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let end = Instant::now() + Duration::from_secs(10);
    while stage.get().await["state"] != "fresh" {
        assert!(Instant::now() < end, "{}", stage.get().await);
        sleep(Duration::from_millis(20)).await;
    }
    let shown = stage.get().await;
    assert_eq!(shown["client_secret_expires_at"], "2046-05-01T00:00:00Z");
    assert_eq!(shown["refresh_token_lifespan"], "100d");
    let ends = shown["shared_tokens"][0]["refresh_token_expires_at"].as_str().unwrap_or_default().to_owned();
    assert!(!ends.is_empty(), "{shown}");
    let series = "keybearer_refresh_token_expiry_timestamp_seconds{connection=\"own\",profile=\"default\"}";
    let measured = stage.sidecar.metric(series).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs_f64();
    let days = (measured - now) / 86_400.0;
    assert!((99.0..=100.1).contains(&days), "{days}");
    // A forecast without its secret has no meaning, and is refused; so is a time that is none.
    for patch in
        [json!({ "client_secret": null, "password": "entered again" }), json!({ "client_secret_expires_at": "soon" })]
    {
        let refused = stage.call("PATCH", "/connections/own", &patch).await;
        assert_eq!(refused.status, 422, "{}", refused.text());
        assert_eq!(refused.json()["problems"][0]["path"], "client_secret_expires_at");
    }
    let removed = stage.call("PATCH", "/connections/own", &json!({ "refresh_token_lifespan": null })).await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    assert_eq!(stage.get().await["refresh_token_lifespan"], Value::Null);
}
