//! The device authorization flow (RFC 8628): a person types a code on another device, and we poll the token endpoint.
//!
//! Invariants: the device code is in the store, so that polling continues after a restart or on another replica. A
//! replica claims each poll in the store until the poll must have ended, so there is one at a time; the poll interval
//! starts at the end of a poll, and `slow_down` lengthens it permanently.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

use super::browser::Browser;
use super::definition::Definition;
use super::finish::{ClaimError, claim, import, save_outcome};
use super::flow::{self, Device, Flow, FlowId, FlowKey, Kind, Status};
use super::link::OpenedLink;
use super::pages::{Page, display_name};
use super::refusal::{busy, internal_error, server_failed, store_failed};
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
const SLOW_DOWN_STEP: Duration = Duration::from_secs(5);
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Poll interval of the store, which finds the flows of other replicas and those from before a restart.
const STORE_POLL_INTERVAL: Duration = Duration::from_secs(15);
/// Minimum pause between two rounds of polls.
const ROUND_PAUSE_MIN: Duration = Duration::from_millis(50);
/// Maximum number of concurrent polls, all flows together.
const POLLS_MAX: usize = 64;
/// Grace period of a poll beyond the timeout of its request.
const POLL_GRACE: Duration = Duration::from_secs(2);
/// Time of the next poll when none is scheduled.
const NEVER: u64 = u64::MAX;
/// Recheck interval of an ended flow: another replica may have begun a new one and then stopped.
const ENDED_RECHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Refresh interval of the page with the code.
const PAGE_REFRESH_S: u32 = 5;

/// Wakes the polling task when a flow begins.
#[derive(Clone, Default)]
pub struct DeviceNotifier(Arc<(Mutex<HashSet<FlowKey>>, Notify)>);

impl DeviceNotifier {
    pub(super) fn notify(&self, key: FlowKey) {
        let (begun, wake) = &*self.0;
        lock(begun).insert(key);
        wake.notify_one();
    }

    async fn notified(&self) {
        self.0.1.notified().await;
    }

    fn take(&self) -> HashSet<FlowKey> {
        std::mem::take(&mut *lock(&self.0.0))
    }
}

/// Requests a device code and sends the browser to the page that shows the user code.
pub(super) async fn start(
    admin: &Admin,
    opened: OpenedLink,
    browser: &Browser,
    visit: &Visit,
) -> Result<Response, Page> {
    let OpenedLink { key, link, by, definition, consent_flow: _, flow_key } = opened;
    let id = FlowId::random(&flow_key).ok_or_else(internal_error)?;
    let authorization = definition.endpoint.start_device_authorization().await;
    let authorization = authorization.map_err(|failure| server_failed(&failure))?;
    let (flow, _) = new_flow(admin, &definition, (id, &key), authorization);
    let mut flow = flow.begun_by(by.as_ref()).opened_by(link.digest());
    flow.bind(browser.digest());
    if !flow::begin(&**admin.cache.store(), &flow, admin.clock.now().wall)
        .await
        .map_err(|error| store_failed(&error))?
    {
        return Err(busy());
    }
    admin.device_notifier.notify(flow.id.key());
    tracing::info!(connection = %key.connection, profile = %key.profile, from = %visit.from(),
        subject = key.subject.as_ref().map(Subject::as_str), "device code issued to person");
    let result = format!("./{}/result?of={}", key.connection, flow.id.as_str());
    let page = Page::new(StatusCode::OK, "One moment")
        .text("Your code is about to appear.")
        .refresh(0, &result)
        .link(&result, "Continue");
    let cookie = browser.cookie(admin, visit).ok_or_else(internal_error)?;
    Ok(([(header::SET_COOKIE, cookie)], page).into_response())
}

/// The page with the user code, shown until the person has entered it.
pub(super) fn code_page(key: &TokenKey, device: &Device) -> Page {
    let link = device.verification_uri_complete.as_ref().unwrap_or(&device.verification_uri);
    Page::new(StatusCode::OK, &format!("Connect {}", display_name(key)))
        .text("Open this page and enter the code below:")
        .link(link, &device.verification_uri)
        .code(&device.user_code)
        .note("This page shows when you are connected. Grant access only if the code there is the same as here.")
        .refresh(PAGE_REFRESH_S, "")
}

/// Requests a device code for the API.
pub(super) async fn begin(
    admin: &Admin,
    definition: &Definition,
    id: FlowId,
    key: &TokenKey,
) -> Result<(Flow, Device), Problem> {
    let authorization = definition.endpoint.start_device_authorization().await.map_err(problem)?;
    Ok(new_flow(admin, definition, (id, key), authorization))
}

fn problem(failure: Failure) -> Problem {
    no_token(match failure {
        Failure::Permanent(refusal) => NoToken::Refused { error: refusal.error, description: refusal.description },
        Failure::Script { message, .. } => NoToken::Script { message },
        Failure::Retryable { reason, retry_after, detail } => NoToken::Unavailable {
            error: reason.to_string(),
            description: detail,
            retry_after: retry_after.unwrap_or(SLOW_DOWN_STEP),
        },
    })
}

fn new_flow(
    admin: &Admin,
    definition: &Definition,
    (id, key): (FlowId, &TokenKey),
    authorization: DeviceAuthorization,
) -> (Flow, Device) {
    let wall = admin.clock.now().wall;
    let device = Device {
        device_code: Some(authorization.device_code),
        user_code: authorization.user_code,
        verification_uri: authorization.verification_uri.into(),
        verification_uri_complete: authorization.verification_uri_complete.map(String::from),
        interval_ms: as_ms(authorization.interval),
        next_poll_ms: (wall + authorization.interval).as_millis(),
    };
    let kind = Kind::Device(device.clone());
    (Flow::new(id, key, &definition.connection, wall + authorization.expires_in, kind), device)
}

fn as_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Polls for every pending device authorization, until shutdown.
pub async fn poll_all(admin: Admin) {
    let mut end = admin.tasks.watch();
    // Milliseconds since the Unix epoch.
    let mut next_polls: HashMap<FlowKey, u64> = HashMap::new();
    let mut store_poll_at = Instant::now();
    let permits = Arc::new(Semaphore::new(POLLS_MAX));
    let (done, mut finished) = mpsc::channel(POLLS_MAX);
    loop {
        if Instant::now() >= store_poll_at {
            store_poll_at = Instant::now() + STORE_POLL_INTERVAL;
            match flow::devices(&**admin.cache.store()).await {
                Ok(stored) => {
                    next_polls.retain(|key, _| stored.contains(key));
                    for key in stored {
                        next_polls.entry(key).or_insert(0);
                    }
                }
                Err(error) => tracing::warn!(%error, "pending device authorizations could not be listed"),
            }
        }
        // An ended flow may have been replaced by a new one.
        next_polls.extend(admin.device_notifier.take().into_iter().map(|key| (key, 0)));
        let now = admin.clock.now().wall.as_millis();
        let due: Vec<FlowKey> = next_polls.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            let Ok(permit) = permits.clone().try_acquire_owned() else { break };
            let next = match claim_poll(&admin, &key).await {
                Claim::Poll(flow, until) => {
                    let (admin, key, done) = (admin.clone(), key.clone(), done.clone());
                    admin.tasks.clone().spawn("device", async move {
                        let next = poll(&admin, *flow).await;
                        // At shutdown there is no receiver.
                        let _ = done.send((key, next)).await;
                        drop(permit);
                    });
                    until
                }
                Claim::Later(next) => next,
                Claim::Ended => (admin.clock.now().wall + ENDED_RECHECK_INTERVAL).as_millis(),
            };
            next_polls.insert(key, next);
        }
        let next = next_polls.values().min().map_or(STORE_POLL_INTERVAL, |next| {
            Duration::from_millis(next.saturating_sub(admin.clock.now().wall.as_millis()))
        });
        tokio::select! {
            // After the end of a flow, another one of the same token may be pending.
            Some((key, next)) = finished.recv() => drop(next_polls.insert(key, if next == NEVER { 0 } else { next })),
            () = admin.device_notifier.notified() => {}
            () = tokio::time::sleep(next.max(ROUND_PAUSE_MIN)) => {}
            () = tokio::time::sleep_until(store_poll_at) => {}
            () = end.reached(Phase::Drain) => return,
        }
    }
}

enum Claim {
    /// The right to poll, which ends at this time.
    Poll(Box<Flow>, u64),
    /// Try again at this time: another replica polls, or the store failed.
    Later(u64),
    Ended,
}

/// Claims the next poll: no other one is due before this one must have ended.
async fn claim_poll(admin: &Admin, key: &FlowKey) -> Claim {
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let retry = Claim::Later((wall + SLOW_DOWN_STEP).as_millis());
    let Ok(found) = flow::latest(store, key).await else { return retry };
    let Some((mut flow, version)) = found else { return Claim::Ended };
    if flow.status_at(wall) != Status::Pending {
        return Claim::Ended;
    }
    let timeout = definition(admin, &flow).map(|definition| definition.connection.authorization_server.timeout);
    let Kind::Device(device) = &mut flow.kind else { return Claim::Ended };
    if device.next_poll_ms > wall.as_millis() {
        return Claim::Later(device.next_poll_ms);
    }
    device.next_poll_ms = (wall + timeout.unwrap_or_default() + POLL_GRACE).as_millis() + device.interval_ms;
    let until = device.next_poll_ms;
    match flow::put(store, &flow, Some(version)).await {
        Ok(true) => Claim::Poll(Box::new(flow), until),
        Ok(false) | Err(_) => retry,
    }
}

/// The definition that the flow was begun for, unless it has changed.
fn definition(admin: &Admin, flow: &Flow) -> Option<Definition> {
    let (key, snapshot) = (flow.key()?, admin.snapshot.load_full());
    let bound = bound(&snapshot, key.connection.as_str()).ok()?;
    Definition::of(bound, &key).filter(|definition| flow.is_for(&definition.connection))
}

/// Polls once and saves the outcome. Returns the time of the next poll.
async fn poll(admin: &Admin, flow: Flow) -> u64 {
    let id = &flow.id;
    let (Some(key), Kind::Device(device)) = (flow.key(), &flow.kind) else { return NEVER };
    let Some(device_code) = device.device_code.clone() else { return NEVER };
    let Some(definition) = definition(admin, &flow) else {
        let error = "configuration_changed".to_owned();
        save_outcome(admin, id, &key, &Status::Failed { error, description: None }).await;
        return NEVER;
    };
    let sent_at = admin.clock.now();
    let consent_grant = ConsentGrant::Device { device_code };
    let context = TokenRequestContext {
        subject: key.subject.as_ref(),
        consent_grant: Some(&consent_grant),
        ..TokenRequestContext::default()
    };
    let status = match definition.endpoint.first_grant(context).await {
        Ok(set) => {
            // The token of a flow that has ended is dropped; a store failure does not drop it.
            if let Err(ClaimError::Ended(_)) = claim(admin, id, &definition.connection).await {
                tracing::warn!(connection = %key.connection, profile = %key.profile,
                    "device token arrived after its authorization had ended; dropped");
                return NEVER;
            }
            let by = Person { user: flow.user(), from: None };
            import(&definition, &key, || Credential::Tokens { set: set.clone(), requested_at: sent_at }, &by).await
        }
        Err(Failure::Permanent(refusal)) => match refusal.error.as_str() {
            "authorization_pending" => return postpone(admin, id, |interval| *interval).await,
            "access_denied" | "authorization_declined" => Status::Denied,
            "expired_token" => Status::Expired,
            _ => Status::Failed { error: refusal.error, description: refusal.description },
        },
        Err(Failure::Script { message, .. }) => {
            Status::Failed { error: "script_failed".to_owned(), description: Some(message) }
        }
        Err(Failure::Retryable { reason, retry_after, .. }) => {
            return postpone(admin, id, |interval| slow_down(interval, reason).max(retry_after.unwrap_or_default()))
                .await;
        }
    };
    save_outcome(admin, id, &key, &status).await;
    NEVER
}

/// Lengthens the poll interval permanently after `slow_down` or a retryable failure (RFC 8628 §3.5).
fn slow_down(interval: &mut Duration, reason: Reason) -> Duration {
    let longer = if reason == Reason::SlowDown { *interval + SLOW_DOWN_STEP } else { *interval * 2 };
    *interval = longer.min(POLL_INTERVAL_MAX.max(*interval));
    *interval
}

/// Postpones the next poll by `pause`, which may change the poll interval. Returns the time of that poll.
async fn postpone(admin: &Admin, id: &FlowId, pause: impl Fn(&mut Duration) -> Duration) -> u64 {
    let wall = admin.clock.now().wall;
    let changed = flow::change(&**admin.cache.store(), id, |flow| match &mut flow.kind {
        Kind::Device(device) => {
            let mut interval = Duration::from_millis(device.interval_ms);
            device.next_poll_ms = (wall + pause(&mut interval)).as_millis();
            device.interval_ms = as_ms(interval);
            Ok(device.next_poll_ms)
        }
        Kind::Code(_) => Err(()),
    });
    match changed.await {
        Ok(Some(Ok(next))) => next,
        Ok(_) => NEVER,
        Err(error) => {
            tracing::warn!(%error, "next poll time could not be saved");
            (wall + SLOW_DOWN_STEP).as_millis()
        }
    }
}
