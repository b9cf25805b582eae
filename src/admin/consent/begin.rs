//! Starts a confirmed authorization code flow: stores it, bound to its browser, and sends the browser to log in.
//!
//! Not here: the confirmation (`confirm`), device codes (`device`).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::browser::Browser;
use super::flow::{self, Attempt, FLOW_LIFETIME, Flow, FlowId, Kind, Status};
use super::link::{Link, OpenedLink};
use super::pages::Page;
use super::refusal::{busy, changed, confirmed_elsewhere, ended, internal_error, server_failed, store_failed};
use super::visit::Visit;
use crate::admin::Admin;
use crate::model::secret::Secret;
use crate::model::token::Subject;

/// Sends the browser to the authorization server with a new `state`.
pub async fn redirect_to_server(
    admin: &Admin,
    opened: OpenedLink,
    browser: &Browser,
    visit: &Visit,
) -> Result<Response, Page> {
    let connection = &opened.definition.connection;
    let redirect_uri = connection.authorization.redirect_url.clone();
    let redirect_uri = redirect_uri.or_else(|| admin.snapshot.load().links.callback()).ok_or_else(no_public_url)?;
    let id = match &opened.link {
        Link::OneTime(id, _) => id.clone(),
        Link::Operator | Link::Sealed(_) => FlowId::random(&opened.flow_key).ok_or_else(internal_error)?,
    };
    let secret = flow::random::<32>().ok_or_else(internal_error)?;
    let state = Secret::new(format!("{}.{}", id.as_str(), secret.expose()));
    let authorization = opened.definition.endpoint.start_browser_authorization(&state, &redirect_uri).await;
    let authorization = authorization.map_err(|failure| server_failed(&failure))?;
    let attempt = Attempt { state: flow::digest(secret.expose()), verifier: authorization.verifier, redirect_uri };
    store_attempt(admin, &opened, id, browser, attempt).await?;
    tracing::info!(connection = %opened.key.connection, profile = %opened.key.profile, from = %visit.from(),
        subject = opened.key.subject.as_ref().map(Subject::as_str), "browser redirected to the authorization server");
    let host = authorization.url.host_str().unwrap_or_default();
    // Not an HTTP redirect: the policy `form-action` of the page with the form would block one to another site.
    let page = Page::new(StatusCode::OK, "One moment")
        .text(&format!("You are being sent to {host} to log in."))
        .refresh(0, authorization.url.as_str())
        .link(authorization.url.as_str(), "Continue");
    let cookie = browser.cookie(admin, visit).ok_or_else(internal_error)?;
    Ok(([(header::SET_COOKIE, cookie)], page).into_response())
}

/// Stores the attempt in the flow of its one-time link, else in a new flow.
async fn store_attempt(
    admin: &Admin,
    opened: &OpenedLink,
    id: FlowId,
    browser: &Browser,
    attempt: Attempt,
) -> Result<(), Page> {
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let connection = &opened.definition.connection;
    if let Link::OneTime(..) = &opened.link {
        let bound = flow::change(store, &id, |flow| match flow.status_at(wall) {
            Status::Pending if flow.is_bound_elsewhere(Some(&browser.digest())) => Err(confirmed_elsewhere()),
            Status::Pending if flow.is_for(connection) => {
                flow.bind(browser.digest());
                flow.kind = Kind::Code(Some(attempt.clone()));
                Ok(())
            }
            other => Err(ended(&other).unwrap_or_else(changed)),
        });
        let bound = bound.await.map_err(|error| store_failed(&error))?;
        return bound.unwrap_or_else(|| Err(ended(&Status::Replaced).unwrap_or_else(changed)));
    }
    let flow = Flow::new(id, &opened.key, connection, wall + FLOW_LIFETIME, Kind::Code(Some(attempt)));
    let mut flow = flow.begun_by(opened.by.as_ref()).opened_by(opened.link.digest());
    flow.bind(browser.digest());
    match flow::begin(store, &flow, wall).await.map_err(|error| store_failed(&error))? {
        true => Ok(()),
        false => Err(busy()),
    }
}

fn no_public_url() -> Page {
    Page::new(StatusCode::CONFLICT, "No public address")
        .text("Keybearer does not know the address at which browsers reach it, so the browser could not return.")
        .note("An administrator has to set `public_url`, or the connection's `redirect_url`.")
}
