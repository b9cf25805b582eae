//! Ends a flow: passes the credential to the slot's refresher, and saves the outcome in the store.
//!
//! Invariants: only one request obtains the token of a flow; a flow that has ended keeps its status.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::{Instant, sleep};

use super::definition::Definition;
use super::flow::{self, FlowId, Status};
use super::pages::{Page, display_name};
use crate::admin::Admin;
use crate::model::connection::Connection;
use crate::model::token::{Subject, TokenKey};
use crate::store::StoreError;
use crate::telemetry::audit::Person;
use crate::token::slot::{Credential, NoToken, NotImported};

/// Grace period of an exchange beyond its token request and lease: other requests to the same server, the store.
const EXCHANGE_GRACE: Duration = Duration::from_secs(30);
/// Timeout for another command of the same token to end.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Attempts with a new slot: an unused subject's slot may be evicted at any time.
const SLOT_ATTEMPTS_MAX: usize = 5;
/// Deadline for saving the outcome, retries included.
const SAVE_TIMEOUT: Duration = Duration::from_secs(15);
const SAVE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the status of a flow was not changed.
pub enum ClaimError {
    /// Another request has ended or claimed it.
    Ended(Status),
    Store(StoreError),
}

/// Timeout of an exchange.
fn exchange_timeout(connection: &Connection) -> Duration {
    connection.authorization_server.timeout * 2 + EXCHANGE_GRACE
}

/// Claims the exchange exclusively for this request.
pub async fn claim(admin: &Admin, id: &FlowId, connection: &Connection) -> Result<(), ClaimError> {
    let until = admin.clock.now().wall + exchange_timeout(connection) + SAVE_TIMEOUT;
    advance(admin, id, &Status::Exchanging { until: until.as_secs() }).await
}

/// Advances the flow to `status`, unless it has ended.
pub async fn advance(admin: &Admin, id: &FlowId, status: &Status) -> Result<(), ClaimError> {
    let wall = admin.clock.now().wall;
    let changed = flow::change(&**admin.cache.store(), id, |flow| flow.advance(status.clone(), wall));
    match changed.await {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(current))) => Err(ClaimError::Ended(current)),
        Ok(None) => Err(ClaimError::Ended(Status::Replaced)),
        Err(error) => Err(ClaimError::Store(error)),
    }
}

/// Passes the credential to the slot's refresher once that has no other command, and waits for the outcome.
pub async fn import(
    definition: &Definition,
    key: &TokenKey,
    credential: impl Fn() -> Credential,
    by: &Person,
) -> Status {
    let deadline = Instant::now() + exchange_timeout(&definition.connection);
    let busy_deadline = Instant::now() + BUSY_TIMEOUT;
    let mut forgotten_slots = 0;
    loop {
        let Some(slot) = definition.slot(key) else { return failed(NoToken::Forgotten) };
        match slot.import(credential(), by.clone(), deadline).await {
            Ok(()) => return Status::Connected,
            Err(NotImported::NotProven(NoToken::Forgotten)) if forgotten_slots < SLOT_ATTEMPTS_MAX => {
                forgotten_slots += 1
            }
            Err(NotImported::NotProven(reason)) => return failed(reason),
            Err(NotImported::Busy) if Instant::now() > busy_deadline => return failed(NoToken::WaitTimeout),
            Err(NotImported::Busy) => sleep(BUSY_RETRY_INTERVAL).await,
        }
    }
}

fn failed(reason: NoToken) -> Status {
    let (error, description) = match reason {
        NoToken::Refused { error, description } => (error, description),
        NoToken::Script { message } => ("script_failed".to_owned(), Some(message)),
        NoToken::Unavailable { error, .. } | NoToken::Person { error, .. } => (error, None),
        NoToken::WaitTimeout => ("timeout".to_owned(), None),
        NoToken::Forgotten => ("configuration_changed".to_owned(), None),
    };
    Status::Failed { error, description }
}

/// Logs the outcome and saves it in the store. A failure of the store does not affect the token.
pub async fn save_outcome(admin: &Admin, id: &FlowId, key: &TokenKey, status: &Status) {
    let subject = key.subject.as_ref().map(Subject::as_str);
    match status {
        Status::Connected => {
            tracing::info!(connection = %key.connection, profile = %key.profile, subject, "account connected");
        }
        _ => {
            let error = status_code(status);
            tracing::warn!(connection = %key.connection, profile = %key.profile, subject, error, "authorization failed");
        }
    }
    let deadline = Instant::now() + SAVE_TIMEOUT;
    loop {
        match advance(admin, id, status).await {
            Ok(()) => return,
            Err(ClaimError::Ended(current)) => {
                let status = status_code(&current);
                tracing::warn!(connection = %key.connection, profile = %key.profile, subject, status,
                    "authorization had already ended");
                return;
            }
            Err(ClaimError::Store(error)) if Instant::now() > deadline => {
                tracing::error!(%error, "outcome of an authorization could not be saved");
                return;
            }
            Err(ClaimError::Store(_)) => sleep(SAVE_RETRY_INTERVAL).await,
        }
    }
}

/// The status as one word, for log and audit.
pub fn status_code(status: &Status) -> String {
    match status {
        Status::Pending | Status::Exchanging { .. } => "pending".to_owned(),
        Status::Connected => "connected".to_owned(),
        Status::Denied => "access_denied".to_owned(),
        Status::Expired => "expired_token".to_owned(),
        Status::Replaced => "replaced".to_owned(),
        Status::Failed { error, .. } => error.clone(),
    }
}

pub fn connected(key: &TokenKey) -> Page {
    Page::new(StatusCode::OK, "Connected")
        .text(&format!("{} is connected. Requests can use it now.", display_name(key)))
        .note("You can close this window.")
}
