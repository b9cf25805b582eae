//! `GET activity`: this replica's recent audit records, and one-minute counts of the last hour for each active connection.
//!
//! Invariants: records are shown as they are in an audit file; a page and the list of counts are bounded.
//! Not here: what is recorded (`telemetry::audit`) and counted (`telemetry::activity`).

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Admin;
use super::problem::{Problem, bad_request};
use crate::model::Name;
use crate::model::time::{parse_rfc3339, rfc3339};
use crate::telemetry::activity::{Counts, MINUTE};
use crate::telemetry::audit::{Entry, Kind};

/// Records on a page.
const RECORDS_PER_PAGE: usize = 100;
/// Connections whose counts are shown, the busiest first.
const CONNECTIONS_MAX: usize = 200;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivityQuery {
    connection: Option<String>,
    event: Option<String>,
    since: Option<String>,
    cursor: Option<String>,
}

/// Reads the counters at the end of each minute, so that a minute shows only what happened in it.
pub async fn count(admin: Admin) {
    loop {
        let wall = admin.clock.now().wall;
        let in_minute = Duration::from_millis(wall.as_millis() % 60_000);
        tokio::time::sleep(MINUTE.saturating_sub(in_minute)).await;
        admin.activity.hour(&admin.metrics, admin.clock.now().wall);
    }
}

pub async fn list(
    State(admin): State<Admin>,
    query: Result<Query<ActivityQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(query) = query.map_err(|error| bad_request(error.body_text()))?;
    let connection = query.connection.as_deref();
    if connection.is_some_and(|name| !Name::is_name(name)) {
        return Err(bad_request("`connection` is not a name of a connection"));
    }
    let kind = |text: &str| {
        let kinds = [Kind::Use, Kind::Denial, Kind::Refresh, Kind::Change];
        let found = kinds.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| bad_request("`event` must be one of use, denial, refresh, change"))
    };
    let kind = query.event.as_deref().map(kind).transpose()?;
    let time = |text: &str| {
        parse_rfc3339(text).ok_or_else(|| bad_request("`since` is not a time such as 2026-11-30T12:00:00Z"))
    };
    let since = query.since.as_deref().map(time).transpose()?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| bad_request("`cursor` is not one of this list"));
    let before = query.cursor.as_deref().map(number).transpose()?;

    let wanted = |entry: &Entry| {
        kind.is_none_or(|kind| entry.kind == kind)
            && since.is_none_or(|since| entry.at >= since)
            && connection.is_none_or(|name| concerns(entry, name))
    };
    // One more than the page holds, to learn whether there is a next page.
    let mut found = admin.audit.recent().page(before.unwrap_or(u64::MAX), RECORDS_PER_PAGE + 1, wanted);
    let more = found.len() > RECORDS_PER_PAGE;
    found.truncate(RECORDS_PER_PAGE);
    let cursor = found.last().filter(|_| more).map(|last| last.number.to_string());
    let items: Vec<Value> = found.iter().map(|entry| serde_json::from_str(&entry.json).unwrap_or_default()).collect();
    Ok(Json(json!({ "items": items, "cursor": cursor, "minutes": minutes(&admin, connection) })))
}

/// True for a record of the connection, and for a reload that added, changed or removed it.
fn concerns(entry: &Entry, name: &str) -> bool {
    if entry.connection.is_some() || entry.kind != Kind::Change {
        return entry.connection.as_deref() == Some(name);
    }
    let record: Value = serde_json::from_str(&entry.json).unwrap_or_default();
    ["added", "changed", "removed"]
        .iter()
        .any(|list| record[list].as_array().is_some_and(|all| all.contains(&name.into())))
}

fn minutes(admin: &Admin, connection: Option<&str>) -> Value {
    let hour = admin.activity.hour(&admin.metrics, admin.clock.now().wall);
    let mut connections = hour.connections;
    connections.retain(|(name, _)| connection.is_none_or(|wanted| name == wanted));
    let total = connections.len();
    connections.sort_by_cached_key(|(name, counts)| {
        let requests: u64 = counts.iter().map(|counts| counts.requests).sum();
        (std::cmp::Reverse(requests), name.clone())
    });
    connections.truncate(CONNECTIONS_MAX);
    let shown = connections.iter().map(|(name, counts)| {
        let of = |count: fn(&Counts) -> u64| counts.iter().map(count).collect::<Vec<_>>();
        json!({
            "connection": name,
            "requests": of(|counts| counts.requests),
            "errors": of(|counts| counts.errors),
            "refused": of(|counts| counts.refused),
        })
    });
    json!({ "from": rfc3339(hour.from), "connections": shown.collect::<Vec<_>>(), "connection_count": total })
}
