//! `GET events`: tokens and reloads as server-sent events.
//!
//! Invariants: a slow reader delays no other reader, and gets a `lagged` event for the events that it missed; the
//! number of streams is bounded.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Interval, interval};

use super::Admin;
use super::problem::Problem;
use crate::model::time::{WallTime, rfc3339};
use crate::model::token::TokenKey;
use crate::telemetry::events::Event;

/// Far fewer than the listener's connections, so that health checks still get one.
pub const EVENT_STREAMS_MAX: usize = 32;
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

struct EventStream {
    receiver: Receiver<(WallTime, Event)>,
    heartbeat: Interval,
    _permit: OwnedSemaphorePermit,
}

pub async fn events(State(admin): State<Admin>) -> Result<Response, Problem> {
    let permit = Arc::clone(&admin.event_streams).try_acquire_owned().map_err(|_| {
        let detail = format!("{EVENT_STREAMS_MAX} event streams are open; close one, or retry later");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(HEARTBEAT_INTERVAL)
    })?;
    let heartbeat = interval(HEARTBEAT_INTERVAL);
    let events = EventStream { receiver: admin.events.subscribe(), heartbeat, _permit: permit };
    let stream = stream::unfold(events, |mut events| async move {
        let text = events.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), events))
    });
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response())
}

impl EventStream {
    /// The next event or heartbeat; the first heartbeat comes at once.
    async fn next(&mut self) -> Option<String> {
        tokio::select! {
            _ = self.heartbeat.tick() => Some(": heartbeat\n\n".to_owned()),
            event = self.receiver.recv() => match event {
                Ok((at, event)) => Some(encode(at, &event)),
                Err(RecvError::Lagged(missed)) => Some(frame("lagged", &json!({ "missed": missed }))),
                Err(RecvError::Closed) => None,
            },
        }
    }
}

fn encode(at: WallTime, event: &Event) -> String {
    let at = rfc3339(at);
    let token = |key: &TokenKey| (key.connection.as_str().to_owned(), key.profile.as_str().to_owned());
    match event {
        Event::TokenObtained { key, expires } => {
            let (connection, profile) = token(key);
            let data =
                json!({ "at": at, "connection": connection, "profile": profile, "expires_at": rfc3339(*expires) });
            frame("token_obtained", &data)
        }
        Event::TokenFailed { key, outcome, error, retry } => {
            let (connection, profile) = token(key);
            let next = retry.map(rfc3339);
            let data = json!({ "at": at, "connection": connection, "profile": profile, "outcome": outcome,
                "error": error, "next_at": next });
            frame("token_failed", &data)
        }
        Event::ConfigurationReloaded { restart_required } => {
            frame("configuration_reloaded", &json!({ "at": at, "restart_required": restart_required }))
        }
        Event::ConfigurationRefused { problems } => {
            frame("configuration_refused", &json!({ "at": at, "problems": problems }))
        }
    }
}

/// JSON text has no line break, so one `data` line is enough.
fn frame(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
