//! Connecting with a code that a person types elsewhere (RFC 8628), and asking the server until that has happened.
//!
//! Holds: what is asked with lies in the store, so that a restart or another replica goes on asking; each asks only after
//! it has put the next time into the store, so that two never ask at once; `slow_down` is obeyed for good.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::finish::{connected, failed, hand_in, settle};
use super::flow::{self, Device, Flow, FlowId, Kind, Status};
use super::pages::{Page, called};
use super::{Definition, changed, no_store, not_asked, over};
use crate::admin::Admin;
use crate::admin::auth::Asker;
use crate::admin::problem::{Problem, bound, no_token, store_unavailable};
use crate::model::Name;
use crate::model::time::rfc3339;
use crate::model::token::TokenKey;
use crate::oauth::{Consented, DeviceAsked, Failure, Reason, Whose};
use crate::tasks::Phase;
use crate::telemetry::audit::Person;
use crate::token::slot::{Handed, NoToken};

/// RFC 8628 §3.5
const SLOWER_BY: Duration = Duration::from_secs(5);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Other replicas and the time before a restart have left what is to be asked for.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Whatever is due, the store is not asked more often.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// A page shows what came of it so often.
const PAGE_EVERY_S: u32 = 5;

/// Wakes whoever asks the servers.
pub type Bell = Arc<Notify>;

/// The page with the code; the same code for as long as it is good.
pub(super) async fn show(
    admin: &Admin,
    definition: &Definition,
    (key, id, by): (TokenKey, FlowId, Option<Name>),
    once: bool,
) -> Result<Response, Page> {
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let id = if id.is_device() { id } else { FlowId::of('d', id.as_str()) };
    let found = flow::load(store, &id).await.map_err(|error| no_store(&error))?;
    let flow = match found {
        Some((flow, _)) if flow.status_at(wall) == Status::Pending && flow.is_of(&definition.connection) => flow,
        // The page that was waiting for it.
        Some((flow, _)) if flow.status == Status::Connected && wall < Duration::from_secs(flow.ends) => {
            return Ok(connected(&key).into_response());
        }
        Some((flow, _)) if once => return Err(over(&flow.status_at(wall)).unwrap_or_else(changed)),
        other => {
            let asked = definition.endpoint.ask_device().await.map_err(|failure| not_asked(&failure))?;
            let mut flow = asked_flow(admin, definition, &key, asked);
            flow.by = by.as_ref().map(Name::to_string);
            let version = other.map(|(_, version)| version);
            flow::put(store, &id, &flow, version).await.map_err(|error| no_store(&error))?;
            admin.device_bell.notify_one();
            // Somebody else may have been quicker, with another code.
            let kept = flow::load(store, &id).await.map_err(|error| no_store(&error))?;
            kept.ok_or_else(changed)?.0
        }
    };
    let Kind::Device(device) = &flow.kind else { return Err(changed()) };
    let page = Page::new(StatusCode::OK, &format!("Connect {}", called(&key)))
        .says("Open this page, and give it the code below:");
    let link = device.verification_uri_complete.as_ref().unwrap_or(&device.verification_uri);
    let page = page.link(link, &device.verification_uri).code(&device.user_code);
    let page = page.notes("This page shows when it has happened. Grant access only if the code there is this one.");
    Ok(page.goes_on(PAGE_EVERY_S, "").into_response())
}

/// For the API: another one each time.
pub(super) async fn begun(
    admin: &Admin,
    definition: &Definition,
    key: &TokenKey,
    asker: &Asker,
) -> Result<Value, Problem> {
    let id = FlowId::random('d')
        .ok_or_else(|| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "not_begun", "no random bytes"))?;
    let asked = definition.endpoint.ask_device().await.map_err(refusal)?;
    let mut flow = asked_flow(admin, definition, key, asked);
    flow.by = Some(asker.name.to_string());
    flow::put(&**admin.cache.store(), &id, &flow, None).await.map_err(|error| store_unavailable(&error))?;
    admin.device_bell.notify_one();
    let Kind::Device(device) = &flow.kind else { return Ok(Value::Null) };
    Ok(json!({
        "id": id.as_str(),
        "expires_at": rfc3339(Duration::from_secs(flow.ends)),
        "user_code": device.user_code,
        "verification_uri": device.verification_uri,
        "verification_uri_complete": device.verification_uri_complete,
        "interval": device.interval_ms / 1000,
    }))
}

fn refusal(failure: Failure) -> Problem {
    no_token(match failure {
        Failure::Permanent(refusal) => NoToken::Refused { error: refusal.error, description: refusal.description },
        Failure::Script { message, .. } => NoToken::Script { message },
        Failure::Retryable { reason, retry_after, detail } => NoToken::Unavailable {
            error: reason.to_string(),
            description: detail,
            retry_after: retry_after.unwrap_or(SLOWER_BY),
        },
    })
}

fn asked_flow(admin: &Admin, definition: &Definition, key: &TokenKey, asked: DeviceAsked) -> Flow {
    let wall = admin.clock.now().wall;
    let kind = Kind::Device(Device {
        device_code: Some(asked.device_code),
        user_code: asked.user_code,
        verification_uri: asked.verification_uri.into(),
        verification_uri_complete: asked.verification_uri_complete.map(String::from),
        interval_ms: ms(asked.interval),
        next_poll_ms: ms(wall + asked.interval),
    });
    Flow::new(key, &definition.connection, wall, asked.expires_in, kind)
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Asks for everybody who is on the way, until the program ends.
pub async fn ask_servers(admin: Admin) {
    let mut end = admin.tasks.watch();
    let mut due: HashMap<FlowId, u64> = HashMap::new();
    let mut look_at = Instant::now();
    loop {
        if Instant::now() >= look_at {
            look_at = Instant::now() + LOOK_EVERY;
            match flow::devices(&**admin.cache.store()).await {
                Ok(kept) => {
                    due.retain(|id, _| kept.contains(id));
                    for id in kept {
                        due.entry(id).or_insert(0);
                    }
                }
                Err(error) => tracing::warn!(%error, "it is not known which devices are to be asked about"),
            }
        }
        let now = ms(admin.clock.now().wall);
        let ready: Vec<FlowId> = due.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in ready {
            let next = match claimed(&admin, &id).await {
                Claim::Ask(flow, next) => {
                    admin.tasks.spawn("device", ask(admin.clone(), id.clone(), *flow));
                    next
                }
                Claim::Later(next) => next,
                Claim::Over => u64::MAX,
            };
            due.insert(id, next);
        }
        let next = due
            .values()
            .min()
            .map_or(LOOK_EVERY, |next| Duration::from_millis(next.saturating_sub(ms(admin.clock.now().wall))));
        tokio::select! {
            () = admin.device_bell.notified() => look_at = Instant::now(),
            () = tokio::time::sleep(next.max(PAUSE_MIN)) => {}
            () = tokio::time::sleep_until(look_at) => {}
            () = end.reached(Phase::Drain) => return,
        }
    }
}

enum Claim {
    Ask(Box<Flow>, u64),
    /// Somebody else asks, or the store does not answer.
    Later(u64),
    Over,
}

/// Puts the next time off, and with that has the right to ask now.
async fn claimed(admin: &Admin, id: &FlowId) -> Claim {
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let retry = Claim::Later(ms(wall + SLOWER_BY));
    let Ok(found) = flow::load(store, id).await else { return retry };
    let Some((mut flow, version)) = found else { return Claim::Over };
    if flow.status_at(wall) != Status::Pending {
        return Claim::Over;
    }
    let Kind::Device(device) = &mut flow.kind else { return Claim::Over };
    if device.next_poll_ms > ms(wall) {
        return Claim::Later(device.next_poll_ms);
    }
    device.next_poll_ms = ms(wall) + device.interval_ms;
    let next = device.next_poll_ms;
    match flow::put(store, id, &flow, Some(version)).await {
        Ok(true) => Claim::Ask(Box::new(flow), next),
        Ok(false) | Err(_) => retry,
    }
}

/// Asks once, and keeps what came of it.
async fn ask(admin: Admin, id: FlowId, flow: Flow) {
    let (Some(key), Kind::Device(device)) = (flow.key(), &flow.kind) else { return };
    let Some(device_code) = device.device_code.clone() else { return };
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, key.connection.as_str()).ok();
    let definition = bound.and_then(|bound| Definition::of(bound, &key)).filter(|own| flow.is_of(&own.connection));
    let slot = definition.as_ref().and_then(|definition| definition.slot(&key));
    let (Some(definition), Some(slot)) = (definition, slot) else {
        let error = "configuration_changed".to_owned();
        return settle(&admin, &id, &key, &Status::Failed { error, description: None }).await;
    };
    let asked = admin.clock.now();
    let consented = Consented::Device { device_code };
    let whose = Whose { subject: key.subject.as_ref(), consented: Some(&consented), ..Whose::default() };
    match definition.endpoint.first_grant(whose).await {
        Ok(set) => {
            let by = Person { user: flow.by.as_deref().and_then(Name::parse), from: None };
            let handed = hand_in(&slot, || Handed::Tokens(set.clone(), asked), &by).await;
            settle(&admin, &id, &key, &handed.map_or_else(failed, |()| Status::Connected)).await;
        }
        Err(Failure::Permanent(refusal)) => match refusal.error.as_str() {
            "authorization_pending" => {}
            "access_denied" | "authorization_declined" => settle(&admin, &id, &key, &Status::Denied).await,
            "expired_token" => settle(&admin, &id, &key, &Status::Expired).await,
            _ => {
                let (error, description) = (refusal.error, refusal.description);
                settle(&admin, &id, &key, &Status::Failed { error, description }).await;
            }
        },
        Err(Failure::Script { message, .. }) => {
            let (error, description) = ("script_failed".to_owned(), Some(message));
            settle(&admin, &id, &key, &Status::Failed { error, description }).await;
        }
        Err(Failure::Retryable { reason, .. }) => slow_down(&admin, &id, reason).await,
    }
}

/// The server asks for longer pauses, or cannot answer now (RFC 8628 §3.5).
async fn slow_down(admin: &Admin, id: &FlowId, reason: Reason) {
    let wall = admin.clock.now().wall;
    let slowed = flow::change(&**admin.cache.store(), id, |flow| match &mut flow.kind {
        Kind::Device(device) => {
            let interval = Duration::from_millis(device.interval_ms);
            let longer = if reason == Reason::SlowDown { interval + SLOWER_BY } else { interval * 2 };
            device.interval_ms = ms(longer.min(INTERVAL_MAX.max(interval)));
            device.next_poll_ms = ms(wall) + device.interval_ms;
            Ok(())
        }
        Kind::Code { .. } => Err(()),
    });
    if let Err(error) = slowed.await {
        tracing::warn!(%error, "a longer pause cannot be kept");
    }
}
