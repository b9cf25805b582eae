//! The end of a flow: the grant goes to the refresher of its slot, and the outcome to the store.
//!
//! Invariants: only one request obtains the token of a flow; a flow that has ended keeps its status.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::{Instant, sleep};

use super::definition::Definition;
use super::flow::{self, FlowId, Status};
use super::pages::{Page, called};
use crate::admin::Admin;
use crate::model::connection::Connection;
use crate::model::token::{Subject, TokenKey};
use crate::store::StoreError;
use crate::telemetry::audit::Person;
use crate::token::slot::{Credential, NoToken, NotImported};

/// What an exchange may take beyond its token request and the lease for that: other requests to the same server, the store.
const EXCHANGE_SLACK: Duration = Duration::from_secs(30);
/// Another errand of the same token has this long to end.
const BUSY_WAIT: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// A subject's slot that no caller uses leaves memory, even in this moment; then another one is made.
const SLOTS_MAX: usize = 5;
/// How long the store is asked to keep an outcome.
const SETTLE_WAIT: Duration = Duration::from_secs(15);
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// Why a flow is not ours to end.
pub enum Unclaimed {
    Over(Status),
    Store(StoreError),
}

/// How long obtaining a token of `connection` may take.
fn exchange_wait(connection: &Connection) -> Duration {
    connection.authorization_server.timeout * 2 + EXCHANGE_SLACK
}

/// Takes the flow for the exchange of what it has brought, for this request alone.
pub async fn claim(admin: &Admin, id: &FlowId, connection: &Connection) -> Result<(), Unclaimed> {
    let until = admin.clock.now().wall + exchange_wait(connection) + SETTLE_WAIT;
    end(admin, id, &Status::Exchanging { until: until.as_secs() }).await
}

/// Takes the flow to `status`, if it has not ended.
pub async fn end(admin: &Admin, id: &FlowId, status: &Status) -> Result<(), Unclaimed> {
    let wall = admin.clock.now().wall;
    let changed = flow::change(&**admin.cache.store(), id, |flow| flow.advance(status.clone(), wall));
    match changed.await {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(now))) => Err(Unclaimed::Over(now)),
        Ok(None) => Err(Unclaimed::Over(Status::Replaced)),
        Err(error) => Err(Unclaimed::Store(error)),
    }
}

/// Hands something to the refresher of the token's slot, once nothing else is on its desk; the outcome as a status.
pub async fn hand_in(
    definition: &Definition,
    key: &TokenKey,
    credential: impl Fn() -> Credential,
    by: &Person,
) -> Status {
    let (deadline, patience) = (Instant::now() + exchange_wait(&definition.connection), Instant::now() + BUSY_WAIT);
    let mut slots = 0;
    loop {
        let Some(slot) = definition.slot(key) else { return failed(NoToken::Forgotten) };
        match slot.import(credential(), by.clone(), deadline).await {
            Ok(()) => return Status::Connected,
            Err(NotImported::NotProven(NoToken::Forgotten)) if slots < SLOTS_MAX => slots += 1,
            Err(NotImported::NotProven(why)) => return failed(why),
            Err(NotImported::Busy) if Instant::now() > patience => return failed(NoToken::WaitTimeout),
            Err(NotImported::Busy) => sleep(BUSY_PAUSE).await,
        }
    }
}

fn failed(why: NoToken) -> Status {
    let (error, description) = match why {
        NoToken::Refused { error, description } => (error, description),
        NoToken::Script { message } => ("script_failed".to_owned(), Some(message)),
        NoToken::Unavailable { error, .. } | NoToken::Person { error, .. } => (error, None),
        NoToken::WaitTimeout => ("timeout".to_owned(), None),
        NoToken::Forgotten => ("configuration_changed".to_owned(), None),
    };
    Status::Failed { error, description }
}

/// Keeps the outcome. If the store fails now, the token is there all the same.
pub async fn settle(admin: &Admin, id: &FlowId, key: &TokenKey, status: &Status) {
    let subject = key.subject.as_ref().map(Subject::as_str);
    match status {
        Status::Connected => {
            tracing::info!(connection = %key.connection, profile = %key.profile, subject, "a person has connected");
        }
        _ => {
            let error = status_code(status);
            tracing::warn!(connection = %key.connection, profile = %key.profile, subject, error, "connecting has failed");
        }
    }
    let deadline = Instant::now() + SETTLE_WAIT;
    loop {
        match end(admin, id, status).await {
            Ok(()) => return,
            Err(Unclaimed::Over(now)) => {
                let now = status_code(&now);
                tracing::warn!(connection = %key.connection, profile = %key.profile, subject, status = now,
                    "the authorization had ended before");
                return;
            }
            Err(Unclaimed::Store(error)) if Instant::now() > deadline => {
                tracing::error!(%error, "the outcome of an authorization cannot be kept");
                return;
            }
            Err(Unclaimed::Store(_)) => sleep(SETTLE_PAUSE).await,
        }
    }
}

/// One word for it, in the log and in the audit.
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
        .says(&format!("{} is connected. Requests that waited for it go through now.", called(key)))
        .notes("You can close this window.")
}
