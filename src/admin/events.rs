//! `GET events`: what happens, as it happens, in server-sent events.
//!
//! Holds: who reads slowly is told that it missed some, and holds nobody up; there is a bound on listeners.

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

/// Far fewer than the listener's connections, so that health still gets through.
pub const LISTENERS_MAX: usize = 32;
const HEARTBEAT: Duration = Duration::from_secs(15);

struct Listening {
    receiver: Receiver<(WallTime, Event)>,
    heartbeat: Interval,
    _place: OwnedSemaphorePermit,
}

pub async fn events(State(admin): State<Admin>) -> Result<Response, Problem> {
    let place = Arc::clone(&admin.listeners).try_acquire_owned().map_err(|_| {
        let detail = format!("{LISTENERS_MAX} listen already; close one, or ask later");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(HEARTBEAT)
    })?;
    let listening = Listening { receiver: admin.events.subscribe(), heartbeat: interval(HEARTBEAT), _place: place };
    let stream = stream::unfold(listening, |mut listening| async move {
        let text = listening.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), listening))
    });
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response())
}

impl Listening {
    /// The next event or heartbeat, the first of which comes at once.
    async fn next(&mut self) -> Option<String> {
        tokio::select! {
            _ = self.heartbeat.tick() => Some(": heartbeat\n\n".to_owned()),
            event = self.receiver.recv() => match event {
                Ok((at, event)) => Some(written(at, &event)),
                Err(RecvError::Lagged(missed)) => Some(framed("lagged", &json!({ "missed": missed }))),
                Err(RecvError::Closed) => None,
            },
        }
    }
}

fn written(at: WallTime, event: &Event) -> String {
    let at = rfc3339(at);
    let token = |key: &TokenKey| (key.connection.as_str().to_owned(), key.profile.as_str().to_owned());
    match event {
        Event::TokenObtained { key, expires } => {
            let (connection, profile) = token(key);
            let data =
                json!({ "at": at, "connection": connection, "profile": profile, "expires_at": rfc3339(*expires) });
            framed("token_obtained", &data)
        }
        Event::TokenFailed { key, outcome, error, retry } => {
            let (connection, profile) = token(key);
            let next = retry.map(rfc3339);
            let data = json!({ "at": at, "connection": connection, "profile": profile, "outcome": outcome,
                "error": error, "next_at": next });
            framed("token_failed", &data)
        }
        Event::ConfigurationReloaded { restart_required } => {
            framed("configuration_reloaded", &json!({ "at": at, "restart_required": restart_required }))
        }
        Event::ConfigurationRefused { problems } => {
            framed("configuration_refused", &json!({ "at": at, "problems": problems }))
        }
    }
}

/// JSON text has no line break, so it is one `data` line.
fn framed(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
