//! The pages that end a visit early: what went wrong, and what the person can do.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::flow::Status;
use super::pages::Page;
use crate::oauth::Failure;
use crate::store::StoreError;

pub fn not_allowed(methods: &'static str) -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, methods)]).into_response()
}

/// The store failed.
pub fn no_store(error: &StoreError) -> Page {
    tracing::error!(%error, "an authorization cannot be kept or found");
    Page::new(StatusCode::SERVICE_UNAVAILABLE, "Not now")
        .says("Keybearer cannot reach its store, so nothing can be connected at the moment.")
        .notes("Try again in a minute; an administrator finds the reason in the log.")
}

/// The page of a flow that has ended; `None`: it is still open.
pub fn over(status: &Status) -> Option<Page> {
    let again =
        "If you need to connect again, begin with a new link: repeat the request that named it, or ask its sender.";
    let page = match status {
        Status::Pending => return None,
        Status::Exchanging { .. } | Status::Connected => Page::refused("This link was already used")
            .says("The account has been connected with it, or is just being."),
        Status::Denied => Page::refused("Access was declined").says("Access was declined with this link."),
        Status::Expired => Page::refused("This link has expired").says("A link is good for ten minutes."),
        Status::Replaced => Page::refused("A newer link has replaced this one")
            .says("The same connection was begun once more after this, and only the last one counts."),
        Status::Failed { error, .. } => {
            Page::refused("Connecting has failed").says(&format!("It failed with this link before: {error}"))
        }
    };
    Some(page.notes(again))
}

/// The authorization server refused to start the flow.
pub fn not_asked(failure: &Failure) -> Page {
    Page::new(StatusCode::BAD_GATEWAY, "The authorization server cannot be asked")
        .says(&why(failure))
        .notes("Nothing was connected. Try again; if it stays so, an administrator has to look at the connection.")
}

fn why(failure: &Failure) -> String {
    match failure {
        Failure::Permanent(refusal) => format!("It refused: {refusal}"),
        Failure::Retryable { reason, .. } => format!("It did not answer as it should: {reason}"),
        Failure::Script { message, .. } => format!("The connection's script failed: {message}"),
    }
}

/// The definition changed since the flow began.
pub fn changed() -> Page {
    Page::refused("The connection has changed")
        .says("Its configuration is another one now, so what was begun cannot be finished.")
        .notes("Begin again with a new link.")
}

pub fn no_random() -> Page {
    Page::new(StatusCode::INTERNAL_SERVER_ERROR, "Not now").says("Something went wrong here. Try again.")
}

/// Another flow of the same token is exchanging its code.
pub fn busy() -> Page {
    Page::new(StatusCode::CONFLICT, "An account is being connected")
        .says("Someone has just logged in for this connection, and the token is being obtained.")
        .notes("Reload this page in a minute.")
}

/// Another browser confirmed the one-time link.
pub fn taken() -> Page {
    Page::refused("This link was already used")
        .says("It has been confirmed in another browser, and is good for that one alone.")
        .notes("If that was not you, tell the sender of the link. For a new link, repeat the request that gave you this one.")
}
