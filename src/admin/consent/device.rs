//! The device authorization flow (RFC 8628): a person types a code on another device, and we poll the token endpoint.
//!
//! Invariants: the device code is in the store, so that polling goes on after a restart or on another replica. A poll is
//! claimed there for as long as it may take, so that there is one at a time; the poll interval counts from its end, and
//! `slow_down` lengthens it for good.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

use super::browser::Browser;
use super::definition::Definition;
use super::finish::{Unclaimed, claim, hand_in, settle};
use super::flow::{self, Device, Flow, FlowId, FlowKey, Kind, Status};
use super::link::Opened;
use super::pages::{Page, called};
use super::refusal::{busy, no_random, no_store, not_asked};
use super::visit::Visit;
use crate::admin::Admin;
use crate::admin::problem::{Problem, bound, no_token};
use crate::model::token::{Subject, TokenKey};
use crate::oauth::{ConsentGrant, DeviceAuthorization, Failure, Reason, TokenRequestContext};
use crate::sync::lock;
use crate::tasks::Phase;
use crate::telemetry::audit::Person;
use crate::token::slot::{Credential, NoToken};

/// RFC 8628 §3.5
const SLOWER_BY: Duration = Duration::from_secs(5);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Poll interval of the store, for flows of other replicas and of before a restart.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Shortest pause between two rounds of polls.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Most polls at once, over all flows.
const POLLS_MAX: usize = 64;
/// Grace period of a poll beyond the timeout of its request.
const POLL_SLACK: Duration = Duration::from_secs(2);
/// A time that does not come.
const NEVER: u64 = u64::MAX;
/// Where nothing is pending, another replica may have begun something and gone away.
const OVER_PAUSE: Duration = Duration::from_secs(60);
/// A page shows what came of it so often.
const PAGE_EVERY_S: u32 = 5;

/// Wakes the polling task when a flow begins.
#[derive(Clone, Default)]
pub struct Bell(Arc<(Mutex<HashSet<FlowKey>>, Notify)>);

impl Bell {
    pub(super) fn ring(&self, key: FlowKey) {
        let (begun, rung) = &*self.0;
        lock(begun).insert(key);
        rung.notify_one();
    }

    async fn rung(&self) {
        self.0.1.notified().await;
    }

    fn take(&self) -> HashSet<FlowKey> {
        std::mem::take(&mut *lock(&self.0.0))
    }
}

/// Requests a device code, and leads to the page that shows it.
pub(super) async fn start(admin: &Admin, opened: Opened, browser: &Browser, visit: &Visit) -> Result<Response, Page> {
    let Opened { key, link, by, definition, consent_flow: _, flow_key } = opened;
    let id = FlowId::random(&flow_key).ok_or_else(no_random)?;
    let asked = definition.endpoint.start_device_authorization().await.map_err(|failure| not_asked(&failure))?;
    let flow = asked_flow(admin, &definition, (id, &key), asked);
    let mut flow = flow.begun_by(by.as_ref()).opened_by(link.digest());
    flow.bind(browser.digest());
    if !flow::begin(&**admin.cache.store(), &flow, admin.clock.now().wall).await.map_err(|error| no_store(&error))? {
        return Err(busy());
    }
    admin.device_bell.ring(flow.id.key());
    tracing::info!(connection = %key.connection, profile = %key.profile, from = %visit.from,
        subject = key.subject.as_ref().map(Subject::as_str), "a person is given a device code");
    let place = format!("./{}/result?of={}", key.connection, flow.id.as_str());
    let page = Page::new(StatusCode::OK, "One moment")
        .says("The code is about to be shown.")
        .goes_on(0, &place)
        .link(&place, "Go on");
    let cookie = browser.cookie(admin, visit).ok_or_else(no_random)?;
    Ok(([(header::SET_COOKIE, cookie)], page).into_response())
}

/// The page with the code, until that is entered.
pub(super) fn code_page(key: &TokenKey, device: &Device) -> Page {
    let link = device.verification_uri_complete.as_ref().unwrap_or(&device.verification_uri);
    Page::new(StatusCode::OK, &format!("Connect {}", called(key)))
        .says("Open this page, and give it the code below:")
        .link(link, &device.verification_uri)
        .code(&device.user_code)
        .notes("This page shows when it has happened. Grant access only if the code there is this one.")
        .goes_on(PAGE_EVERY_S, "")
}

/// Requests a device code for the API; a new one for each call.
pub(super) async fn asked(admin: &Admin, definition: &Definition, id: FlowId, key: &TokenKey) -> Result<Flow, Problem> {
    let asked = definition.endpoint.start_device_authorization().await.map_err(refusal)?;
    Ok(asked_flow(admin, definition, (id, key), asked))
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

fn asked_flow(
    admin: &Admin,
    definition: &Definition,
    (id, key): (FlowId, &TokenKey),
    asked: DeviceAuthorization,
) -> Flow {
    let wall = admin.clock.now().wall;
    let kind = Kind::Device(Device {
        device_code: Some(asked.device_code),
        user_code: asked.user_code,
        verification_uri: asked.verification_uri.into(),
        verification_uri_complete: asked.verification_uri_complete.map(String::from),
        interval_ms: ms(asked.interval),
        next_poll_ms: (wall + asked.interval).as_millis(),
    });
    Flow::new(id, key, &definition.connection, wall + asked.expires_in, kind)
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Polls for every pending device authorization, until the program ends.
pub async fn ask_servers(admin: Admin) {
    let mut end = admin.tasks.watch();
    let mut due: HashMap<FlowKey, u64> = HashMap::new();
    let mut look_at = Instant::now();
    let places = Arc::new(Semaphore::new(POLLS_MAX));
    let (done, mut finished) = mpsc::channel(POLLS_MAX);
    loop {
        if Instant::now() >= look_at {
            look_at = Instant::now() + LOOK_EVERY;
            match flow::devices(&**admin.cache.store()).await {
                Ok(kept) => {
                    due.retain(|key, _| kept.contains(key));
                    for key in kept {
                        due.entry(key).or_insert(0);
                    }
                }
                Err(error) => tracing::warn!(%error, "it is not known which devices are to be asked about"),
            }
        }
        // What was over may have begun anew.
        due.extend(admin.device_bell.take().into_iter().map(|key| (key, 0)));
        let now = admin.clock.now().wall.as_millis();
        let ready: Vec<FlowKey> = due.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in ready {
            let Ok(place) = places.clone().try_acquire_owned() else { break };
            let next = match claimed(&admin, &key).await {
                Claim::Ask(flow, until) => {
                    let (admin, key, done) = (admin.clone(), key.clone(), done.clone());
                    admin.tasks.clone().spawn("device", async move {
                        let next = poll(&admin, *flow).await;
                        // The receiver is gone when the program ends.
                        let _ = done.send((key, next)).await;
                        drop(place);
                    });
                    until
                }
                Claim::Later(next) => next,
                Claim::Over => (admin.clock.now().wall + OVER_PAUSE).as_millis(),
            };
            due.insert(key, next);
        }
        let next = due
            .values()
            .min()
            .map_or(LOOK_EVERY, |next| Duration::from_millis(next.saturating_sub(admin.clock.now().wall.as_millis())));
        tokio::select! {
            // Another authorization of the same token may be pending where this one has ended.
            Some((key, next)) = finished.recv() => drop(due.insert(key, if next == NEVER { 0 } else { next })),
            () = admin.device_bell.rung() => {}
            () = tokio::time::sleep(next.max(PAUSE_MIN)) => {}
            () = tokio::time::sleep_until(look_at) => {}
            () = end.reached(Phase::Drain) => return,
        }
    }
}

enum Claim {
    /// The right to poll, which ends at this time.
    Ask(Box<Flow>, u64),
    /// Another replica polls, or the store does not answer.
    Later(u64),
    Over,
}

/// Claims the next poll: no other is due before this one must have ended.
async fn claimed(admin: &Admin, key: &FlowKey) -> Claim {
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let retry = Claim::Later((wall + SLOWER_BY).as_millis());
    let Ok(found) = flow::latest(store, key).await else { return retry };
    let Some((mut flow, version)) = found else { return Claim::Over };
    if flow.status_at(wall) != Status::Pending {
        return Claim::Over;
    }
    let timeout = definition(admin, &flow).map(|own| own.connection.authorization_server.timeout);
    let Kind::Device(device) = &mut flow.kind else { return Claim::Over };
    if device.next_poll_ms > wall.as_millis() {
        return Claim::Later(device.next_poll_ms);
    }
    device.next_poll_ms = (wall + timeout.unwrap_or_default() + POLL_SLACK).as_millis() + device.interval_ms;
    let until = device.next_poll_ms;
    match flow::put(store, &flow, Some(version)).await {
        Ok(true) => Claim::Ask(Box::new(flow), until),
        Ok(false) | Err(_) => retry,
    }
}

/// The definition that the flow was begun for, unless it has changed.
fn definition(admin: &Admin, flow: &Flow) -> Option<Definition> {
    let (key, snapshot) = (flow.key()?, admin.snapshot.load_full());
    let bound = bound(&snapshot, key.connection.as_str()).ok()?;
    Definition::of(bound, &key).filter(|own| flow.is_of(&own.connection))
}

/// Polls once and keeps the outcome; the time of the next poll.
async fn poll(admin: &Admin, flow: Flow) -> u64 {
    let id = &flow.id;
    let (Some(key), Kind::Device(device)) = (flow.key(), &flow.kind) else { return NEVER };
    let Some(device_code) = device.device_code.clone() else { return NEVER };
    let Some(definition) = definition(admin, &flow) else {
        let error = "configuration_changed".to_owned();
        settle(admin, id, &key, &Status::Failed { error, description: None }).await;
        return NEVER;
    };
    let asked = admin.clock.now();
    let consent_grant = ConsentGrant::Device { device_code };
    let context = TokenRequestContext {
        subject: key.subject.as_ref(),
        consent_grant: Some(&consent_grant),
        ..TokenRequestContext::default()
    };
    let status = match definition.endpoint.first_grant(context).await {
        Ok(set) => {
            // Without the store the token is kept all the same; of a flow that has ended meanwhile it is not.
            if let Err(Unclaimed::Over(_)) = claim(admin, id, &definition.connection).await {
                tracing::warn!(connection = %key.connection, profile = %key.profile,
                    "a device's token came after its authorization had ended");
                return NEVER;
            }
            let by = Person { user: flow.user(), from: None };
            hand_in(&definition, &key, || Credential::Tokens { set: set.clone(), requested_at: asked }, &by).await
        }
        Err(Failure::Permanent(refusal)) => match refusal.error.as_str() {
            "authorization_pending" => return put_off(admin, id, |interval| *interval).await,
            "access_denied" | "authorization_declined" => Status::Denied,
            "expired_token" => Status::Expired,
            _ => Status::Failed { error: refusal.error, description: refusal.description },
        },
        Err(Failure::Script { message, .. }) => {
            Status::Failed { error: "script_failed".to_owned(), description: Some(message) }
        }
        Err(Failure::Retryable { reason, retry_after, .. }) => {
            return put_off(admin, id, |interval| slower(interval, reason).max(retry_after.unwrap_or_default())).await;
        }
    };
    settle(admin, id, &key, &status).await;
    NEVER
}

/// The server asks for longer pauses, or cannot answer now: the interval is longer from here on (RFC 8628 §3.5).
fn slower(interval: &mut Duration, reason: Reason) -> Duration {
    let longer = if reason == Reason::SlowDown { *interval + SLOWER_BY } else { *interval * 2 };
    *interval = longer.min(INTERVAL_MAX.max(*interval));
    *interval
}

/// Lets the next poll wait from now on, for what `pause` makes of the interval; when that is.
async fn put_off(admin: &Admin, id: &FlowId, pause: impl Fn(&mut Duration) -> Duration) -> u64 {
    let wall = admin.clock.now().wall;
    let changed = flow::change(&**admin.cache.store(), id, |flow| match &mut flow.kind {
        Kind::Device(device) => {
            let mut interval = Duration::from_millis(device.interval_ms);
            device.next_poll_ms = (wall + pause(&mut interval)).as_millis();
            device.interval_ms = ms(interval);
            Ok(device.next_poll_ms)
        }
        Kind::Code(_) => Err(()),
    });
    match changed.await {
        Ok(Some(Ok(next))) => next,
        Ok(_) => NEVER,
        Err(error) => {
            tracing::warn!(%error, "the time of the next poll cannot be kept");
            (wall + SLOWER_BY).as_millis()
        }
    }
}
