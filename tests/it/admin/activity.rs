//! `GET activity`: recent records and one-minute counts, whatever the audit's target is.

use serde_json::{Value, json};

use super::{MANAGER, OPERATOR, Stage, VIEWER};
use crate::rig::raw;
use crate::rig::scripted::Reply;

/// The values of one member of all items.
fn each(response: &Value, member: &str) -> Vec<String> {
    let items = response["items"].as_array().unwrap_or_else(|| panic!("{response}"));
    items.iter().map(|item| item[member].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn recent_records_and_counts_are_shown_although_the_audit_is_off() {
    let stage = Stage::with("audit: {to: off}\n", |_, _| Reply::token("t", 3600)).await;
    let activity = async |query: &str| {
        let response = stage.call("get", &format!("/api/v1/activity{query}"), VIEWER, None).await;
        assert_eq!(response.status, 200, "{query}: {}", response.text());
        response.json()
    };
    for _ in 0..3 {
        let response = raw::get_through(stage.sidecar.proxy(), "http://api.test/v1/x?key=very-secret-query", "").await;
        assert_eq!(response.status, 200);
    }
    assert_eq!(raw::get_through(stage.sidecar.proxy(), "http://api.test/other", "").await.status, 403);
    stage.call("post", "/api/v1/connections/crm/test", OPERATOR, Some(&json!({}))).await;
    stage.call("post", "/api/v1/reload", MANAGER, None).await;
    assert_eq!(stage.call("post", "/api/v1/reload", VIEWER, None).await.status, 403);

    let all = activity("").await;
    let mut events = each(&all, "event");
    // An unchanged configuration is no change.
    assert_eq!(events.first().map(String::as_str), Some("denial"), "{all}");
    events.sort_unstable();
    assert_eq!(events.join(" "), "denial denial refresh use use use use", "{all}");
    assert!(!all.to_string().contains("very-secret-query"), "{all}");
    assert_eq!(all["cursor"], Value::Null);
    let uses = activity("?event=use").await;
    assert_eq!((each(&uses, "user")[0].as_str(), each(&uses, "path")[1].as_str()), ("o", "/v1/x"), "{uses}");
    let own = activity("?connection=crm").await;
    assert_eq!(own["items"].as_array().map(Vec::len), Some(5), "{own}");
    assert_eq!(activity("?connection=off").await["items"], json!([]));
    assert_eq!(activity("?since=2999-01-01T00:00:00Z").await["items"], json!([]));
    let since = all["items"][6]["time"].as_str().expect("a time").to_owned();
    assert_eq!(each(&activity(&format!("?since={since}")).await, "event").len(), 7);

    // The test by the operator does not pass the proxy.
    let minutes = &own["minutes"];
    let sum = |member: &str| -> u64 {
        let counts = minutes["connections"][0][member].as_array().unwrap_or_else(|| panic!("{minutes}"));
        assert_eq!(counts.len(), 60);
        counts.iter().map(|count| count.as_u64().expect("a count")).sum()
    };
    assert_eq!((sum("requests"), sum("errors"), sum("refused")), (3, 0, 0), "{minutes}");
    assert_eq!((&minutes["connection_count"], &minutes["connections"][0]["connection"]), (&json!(1), &json!("crm")));
    assert!(minutes["from"].as_str().is_some_and(|from| from.ends_with(":00Z")), "{minutes}");

    for query in ["?event=other", "?since=yesterday", "?cursor=x", "?connection=A", "?limit=5"] {
        let response = stage.call("get", &format!("/api/v1/activity{query}"), VIEWER, None).await;
        assert_eq!((response.status, response.json()["code"].as_str()), (400, Some("bad_request")), "{query}");
    }
}

#[tokio::test]
async fn records_are_read_page_by_page() {
    let stage = Stage::start().await;
    for _ in 0..130 {
        assert_eq!(stage.call("post", "/api/v1/reload", VIEWER, None).await.status, 403);
    }
    let activity =
        async |query: &str| stage.call("get", &format!("/api/v1/activity{query}"), VIEWER, None).await.json();
    let first = activity("?event=denial").await;
    let cursor = first["cursor"].as_str().expect("a cursor").to_owned();
    // A record that is added between two pages does not move the next one.
    assert_eq!(stage.call("post", "/api/v1/reload", VIEWER, None).await.status, 403);
    let second = activity(&format!("?event=denial&cursor={cursor}")).await;
    let lengths = [&first, &second].map(|page| page["items"].as_array().map(Vec::len));
    assert_eq!((lengths, &second["cursor"]), ([Some(100), Some(30)], &Value::Null));
}
