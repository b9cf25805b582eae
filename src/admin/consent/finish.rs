//! The end of an authorization: what was granted goes to the refresher of its slot, and what came of it is kept.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::{Instant, sleep};

use super::flow::{self, FlowId, Status};
use super::pages::{Page, called};
use crate::admin::Admin;
use crate::model::token::{Subject, TokenKey};
use crate::telemetry::audit::Person;
use crate::token::slot::{Handed, NoToken, NotImported, TokenSlot};

/// Longer than the one token request that is waited for.
const EXCHANGE_WAIT: Duration = Duration::from_secs(45);
/// Another errand of the same token has this long to end.
const BUSY_WAIT: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Hands something to the refresher of `slot`, once nothing else is on its desk.
pub async fn hand_in(slot: &TokenSlot, handed: impl Fn() -> Handed, by: &Person) -> Result<(), NoToken> {
    let (deadline, patience) = (Instant::now() + EXCHANGE_WAIT, Instant::now() + BUSY_WAIT);
    loop {
        match slot.import(handed(), by.clone(), deadline).await {
            Ok(()) => return Ok(()),
            Err(NotImported::NotProven(why)) => return Err(why),
            Err(NotImported::Busy) if Instant::now() > patience => return Err(NoToken::WaitTimeout),
            Err(NotImported::Busy) => sleep(BUSY_PAUSE).await,
        }
    }
}

pub fn failed(why: NoToken) -> Status {
    let (error, description) = match why {
        NoToken::Refused { error, description } => (error, description),
        NoToken::Script { message } => ("script_failed".to_owned(), Some(message)),
        NoToken::Unavailable { error, .. } | NoToken::Person { error, .. } => (error, None),
        NoToken::WaitTimeout => ("timeout".to_owned(), None),
        NoToken::Forgotten => ("configuration_changed".to_owned(), None),
    };
    Status::Failed { error, description }
}

/// Keeps what came of it. If the store fails now, the token is there all the same.
pub async fn settle(admin: &Admin, id: &FlowId, key: &TokenKey, status: &Status) {
    let kept = flow::change(&**admin.cache.store(), id, |flow| {
        flow.end(status.clone());
        Ok::<(), ()>(())
    });
    let kept = kept.await;
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
    if let Err(error) = kept {
        tracing::error!(%error, "what came of an authorization cannot be kept");
    }
}

/// One word for it, in the log and in the audit.
pub fn status_code(status: &Status) -> String {
    match status {
        Status::Pending | Status::Exchanging => "pending".to_owned(),
        Status::Connected => "connected".to_owned(),
        Status::Denied => "access_denied".to_owned(),
        Status::Expired => "expired_token".to_owned(),
        Status::Failed { error, .. } => error.clone(),
    }
}

pub fn connected(key: &TokenKey) -> Page {
    Page::new(StatusCode::OK, "Connected")
        .says(&format!("{} is connected. Requests that waited for it go through now.", called(key)))
        .notes("You can close this window.")
}
