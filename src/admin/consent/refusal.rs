//! Error pages: what went wrong, and what the person can do.

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
pub fn store_failed(error: &StoreError) -> Page {
    tracing::error!(%error, "authorization could not be read or saved");
    Page::new(StatusCode::SERVICE_UNAVAILABLE, "Temporarily unavailable")
        .text("Keybearer cannot reach its store, so no account can be connected at the moment.")
        .note("Try again in a minute. The log has the reason.")
}

/// The page of a flow that has ended or is being exchanged; `None`: it is still pending.
pub fn ended(status: &Status) -> Option<Page> {
    let hint = "If you need to connect again, start with a new link: repeat the request whose error had it, or ask the sender.";
    let page = match status {
        Status::Pending => return None,
        Status::Exchanging { .. } | Status::Connected => {
            Page::refused("This link was already used").text("It has connected the account, or is doing so right now.")
        }
        Status::Denied => Page::refused("Access was declined").text("The person who opened this link declined access."),
        Status::Expired => Page::refused("This link has expired").text("A link is valid for ten minutes."),
        Status::Replaced => Page::refused("A newer link has replaced this one")
            .text("A newer authorization of the same connection was started, and only the latest one is valid."),
        Status::Failed { error, .. } => {
            Page::refused("Connecting failed").text(&format!("An attempt with this link has failed: {error}"))
        }
    };
    Some(page.note(hint))
}

/// The authorization server did not start the flow.
pub fn server_failed(failure: &Failure) -> Page {
    Page::new(StatusCode::BAD_GATEWAY, "The authorization server failed")
        .text(&reason(failure))
        .note("Nothing was connected. Try again; if it keeps failing, ask an administrator to check the connection.")
}

fn reason(failure: &Failure) -> String {
    match failure {
        Failure::Permanent(refusal) => format!("It refused: {refusal}"),
        Failure::Retryable { reason, .. } => format!("It sent no usable response: {reason}"),
        Failure::Script { message, .. } => format!("The connection's script failed: {message}"),
    }
}

/// The definition has changed since the flow began.
pub fn changed() -> Page {
    Page::refused("The connection has changed")
        .text("Its configuration was changed after this authorization started, so it cannot be completed.")
        .note("Start again with a new link.")
}

/// The system returned no random bytes, or a cookie could not be built.
pub fn internal_error() -> Page {
    Page::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal error").text("Something went wrong. Try again.")
}

/// Another flow of the same token is exchanging its code.
pub fn busy() -> Page {
    Page::new(StatusCode::CONFLICT, "An account is being connected")
        .text("A person has just logged in for this connection, and the token is being requested.")
        .note("Reload this page in a minute.")
}

/// Another browser confirmed the one-time link.
pub fn confirmed_elsewhere() -> Page {
    Page::refused("This link was already used")
        .text("It was confirmed in another browser, and is valid only there.")
        .note("If that was not you, inform the sender. For a new link, repeat the request whose error had this one.")
}
