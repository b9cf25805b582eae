//! `GET activity`: this replica's recent audit records, and one-minute counts of the last hour for each active connection.
//!
//! Invariants: records are shown as they are in an audit file; a page and the list of counts are bounded.
//! Not here: what is recorded (`telemetry::audit`) and counted (`telemetry::activity`).

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Admin;
use super::extract::Query;
use super::problem::{Problem, bad_request};
use super::view::Time;
use crate::model::Name;
use crate::model::time::parse_rfc3339_saturating;
use crate::telemetry::activity::{Counts, MINUTE};
use crate::telemetry::audit::{self, Entry, Kind};

/// Records on a page.
const RECORDS_PER_PAGE: usize = 100;
/// Connections whose counts are shown, the busiest first.
const CONNECTIONS_MAX: usize = 200;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActivityQuery {
    /// The name of a connection.
    #[schemars(regex(pattern = Name::PATTERN))]
    connection: Option<String>,
    /// The kind of the records.
    #[schemars(extend("enum" = Kind::ALL.map(Kind::as_str)))]
    event: Option<String>,
    /// No earlier record is shown.
    #[schemars(extend("format" = "date-time"))]
    since: Option<String>,
    /// The cursor of the previous page.
    #[schemars(regex(pattern = "^[0-9]{1,19}$"))]
    cursor: Option<String>,
}

/// A page of audit records, the latest first, and counts of the last hour.
#[derive(Serialize, JsonSchema)]
pub struct ActivityPage {
    #[schemars(schema_with = "records")]
    items: Vec<Value>,
    /// Null on the last page.
    cursor: Option<String>,
    minutes: Minutes,
}

/// One-minute counts of the last hour, for the connections with the most requests.
#[derive(Serialize, JsonSchema)]
struct Minutes {
    /// The first minute.
    from: Time,
    connections: Vec<MinuteCounts>,
    /// The number of all active connections.
    connection_count: usize,
}

/// Counts for each minute, the oldest first.
#[derive(Serialize, JsonSchema)]
struct MinuteCounts {
    connection: String,
    requests: Vec<u64>,
    errors: Vec<u64>,
    refused: Vec<u64>,
}

fn records(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": audit::record_schema(generator) })
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
    Query(query): Query<ActivityQuery>,
) -> Result<Json<ActivityPage>, Problem> {
    let connection = query.connection.as_deref();
    if connection.is_some_and(|name| !Name::is_name(name)) {
        return Err(bad_request("`connection` is not a name of a connection"));
    }
    let kind = |text: &str| {
        let found = Kind::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| bad_request("`event` must be one of use, denial, refresh, change"))
    };
    let kind = query.event.as_deref().map(kind).transpose()?;
    let time = |text: &str| {
        parse_rfc3339_saturating(text).ok_or_else(|| bad_request("`since` is not a time such as 2026-11-30T12:00:00Z"))
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
    let items = found.iter().map(|entry| serde_json::from_str(&entry.json).unwrap_or_default()).collect();
    Ok(Json(ActivityPage { items, cursor, minutes: minutes(&admin, connection) }))
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

fn minutes(admin: &Admin, connection: Option<&str>) -> Minutes {
    let hour = admin.activity.hour(&admin.metrics, admin.clock.now().wall);
    let mut connections = hour.connections;
    connections.retain(|(name, _)| connection.is_none_or(|wanted| name == wanted));
    let connection_count = connections.len();
    connections.sort_by_cached_key(|(name, counts)| {
        let requests: u64 = counts.iter().map(|counts| counts.requests).sum();
        (std::cmp::Reverse(requests), name.clone())
    });
    connections.truncate(CONNECTIONS_MAX);
    let shown = connections.into_iter().map(|(connection, counts)| {
        let of = |count: fn(&Counts) -> u64| counts.iter().map(count).collect();
        MinuteCounts {
            connection,
            requests: of(|counts| counts.requests),
            errors: of(|counts| counts.errors),
            refused: of(|counts| counts.refused),
        }
    });
    Minutes { from: Time(hour.from), connections: shown.collect(), connection_count }
}
