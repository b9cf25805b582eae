//! `POST connections:apply`: many definitions, all or nothing, as one change.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Stage, definition};
use crate::rig::sidecar::duration_factor;

const APPLY: &str = "/connections:apply";

#[tokio::test]
async fn definitions_are_applied_all_or_nothing() {
    let stage = Stage::start().await;
    let (own, mut two) = (definition("own", "api.test"), definition("two", "two.test"));
    // A grant of a client of its own, which nothing else uses.
    two["client_id"] = json!("second");
    let dry = stage.call("POST", &format!("{APPLY}?dry_run=true"), "", &json!({ "connections": [own, two] })).await;
    assert_eq!((dry.status, &dry.json()["created"]), (200, &json!(["own", "two"])), "{}", dry.text());
    assert_eq!(stage.get("/connections/own").await.status, 404);
    let applied = stage.call("POST", APPLY, "", &json!({ "connections": [own, two] })).await;
    assert_eq!((applied.status, &applied.json()["created"]), (200, &json!(["own", "two"])), "{}", applied.text());
    assert_eq!(stage.fetch("http://two.test/").await.status, 200);

    let mut invalid = definition("third", "third.test");
    invalid["token_url"] = json!("nonsense");
    let mut changed = own.clone();
    changed["comments"] = json!("changed");
    let refused = stage.call("POST", APPLY, "", &json!({ "connections": [changed, invalid] })).await;
    assert_eq!(refused.status, 422);
    let problem = refused.json()["problems"][0].clone();
    assert_eq!((&problem["connection"], &problem["path"]), (&json!("third"), &json!("token_url")));
    assert_eq!(stage.get("/connections/own").await.json()["comments"], Value::Null);

    // The secrets stay, and what is not named goes with `prune` alone.
    changed["client_secret"] = json!({ "set": true });
    let body = json!({ "connections": [changed] });
    let kept = stage.call("POST", APPLY, "", &body).await;
    assert_eq!((&kept.json()["changed"], &kept.json()["removed"]), (&json!(["own"]), &json!([])), "{}", kept.text());
    assert_eq!(stage.get("/connections/two").await.status, 200);
    let before = stage.server.count();
    let pruned = stage.call("POST", &format!("{APPLY}?prune=true"), "", &body).await;
    let revoked =
        stage.server.received()[before..].iter().filter(|seen| seen.request_line().contains("/revoke")).count();
    assert!(revoked > 0 && pruned.json()["tokens"]["failed"] == json!(0), "{revoked} {}", pruned.text());
    let summary = pruned.json();
    assert_eq!((&summary["unchanged"], &summary["removed"]), (&json!(["own"]), &json!(["two"])), "{}", pruned.text());
    assert_eq!(stage.get("/connections/two").await.status, 404);
    assert_eq!(stage.get("/connections/file").await.status, 200, "a file's connection is not pruned");

    for (body, place) in [
        (json!({ "connections": [{"client_id": "a"}] }), "connections[0]"),
        (json!({ "connections": [own, own] }), "two definitions are named `own`"),
        (json!({ "connections": {} }), "line 1"),
    ] {
        let refused = stage.call("POST", APPLY, "", &body).await;
        assert!(refused.status == 400 && refused.text().contains(place), "{}", refused.text());
    }
}

#[tokio::test]
async fn ten_thousand_definitions_are_in_force_within_ten_seconds_as_one_change() {
    let stage = Stage::start().await;
    let connections: Vec<_> = (0..10_000)
        .map(|number| {
            let mut definition = definition(&format!("c{number}"), &format!("c{number}.test"));
            definition["active"] = json!(number % 1000 == 0);
            definition
        })
        .collect();
    let body = json!({ "connections": connections });
    let begin = Instant::now();
    let applied = stage.call("POST", APPLY, "", &body).await;
    let took = begin.elapsed();
    assert_eq!(applied.status, 200, "{}", applied.text());
    assert_eq!(applied.json()["created"].as_array().map(Vec::len), Some(10_000));
    assert!(took < Duration::from_secs(10) * duration_factor(), "{took:?}");
    assert_eq!(stage.sidecar.metric("keybearer_config_reloads_total{outcome=\"applied\"}").await, 1.0);
    let begin = Instant::now();
    let page = stage.get("/connections?q=c9999&limit=50").await;
    assert_eq!(page.json()["items"][0]["name"], json!("c9999"), "{:?}", begin.elapsed());
}
