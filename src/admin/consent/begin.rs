//! Starts a confirmed authorization code flow: stores it, bound to its browser, and sends the browser to log in.
//!
//! Not here: what is confirmed and how (`confirm`), devices (`device`).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::browser::Browser;
use super::flow::{self, Attempt, Flow, FlowId, Kind, LIFE, Status};
use super::link::{Link, Opened};
use super::pages::Page;
use super::refusal::{busy, changed, no_random, no_store, not_asked, over, taken};
use super::visit::Visit;
use crate::admin::Admin;
use crate::model::secret::Secret;
use crate::model::token::Subject;

/// Sends the browser to the authorization server, with a state of its own.
pub async fn send_away(admin: &Admin, opened: Opened, browser: &Browser, visit: &Visit) -> Result<Response, Page> {
    let connection = &opened.definition.connection;
    let redirect_uri = connection.authorization.redirect_url.clone();
    let redirect_uri = redirect_uri.or_else(|| admin.snapshot.load().links.callback()).ok_or_else(no_public_url)?;
    let id = match &opened.link {
        Link::Begun(id, _) => id.clone(),
        Link::Operator | Link::Sealed(_) => FlowId::random(&opened.flow_key).ok_or_else(no_random)?,
    };
    let secret = flow::random::<32>().ok_or_else(no_random)?;
    let state = Secret::new(format!("{}.{}", id.as_str(), secret.expose()));
    let asked = opened.definition.endpoint.start_browser_authorization(&state, &redirect_uri).await;
    let asked = asked.map_err(|failure| not_asked(&failure))?;
    let attempt = Attempt { state: flow::digest(secret.expose()), verifier: asked.verifier, redirect_uri };
    keep(admin, &opened, id, browser, attempt).await?;
    tracing::info!(connection = %opened.key.connection, profile = %opened.key.profile, from = %visit.from,
        subject = opened.key.subject.as_ref().map(Subject::as_str), "a person is sent to the authorization server");
    let host = asked.url.host_str().unwrap_or_default();
    // A redirect would be part of the form's way, which the policy of its page confines to this site.
    let page = Page::new(StatusCode::OK, "One moment")
        .says(&format!("You are being sent to {host} to log in."))
        .goes_on(0, asked.url.as_str())
        .link(asked.url.as_str(), "Go on");
    let cookie = browser.cookie(admin, visit).ok_or_else(no_random)?;
    Ok(([(header::SET_COOKIE, cookie)], page).into_response())
}

/// Stores the attempt in the flow of its link, or in a new one.
async fn keep(admin: &Admin, opened: &Opened, id: FlowId, browser: &Browser, attempt: Attempt) -> Result<(), Page> {
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let connection = &opened.definition.connection;
    if let Link::Begun(..) = &opened.link {
        let bound = flow::change(store, &id, |flow| match flow.status_at(wall) {
            Status::Pending if flow.is_bound_elsewhere(Some(&browser.digest())) => Err(taken()),
            Status::Pending if flow.is_of(connection) => {
                flow.bind(browser.digest());
                flow.kind = Kind::Code(Some(attempt.clone()));
                Ok(())
            }
            other => Err(over(&other).unwrap_or_else(changed)),
        });
        let bound = bound.await.map_err(|error| no_store(&error))?;
        return bound.unwrap_or_else(|| Err(over(&Status::Replaced).unwrap_or_else(changed)));
    }
    let flow = Flow::new(id, &opened.key, connection, wall + LIFE, Kind::Code(Some(attempt)));
    let mut flow = flow.begun_by(opened.by.as_ref()).opened_by(opened.link.digest());
    flow.bind(browser.digest());
    match flow::begin(store, &flow, wall).await.map_err(|error| no_store(&error))? {
        true => Ok(()),
        false => Err(busy()),
    }
}

fn no_public_url() -> Page {
    Page::new(StatusCode::CONFLICT, "Where shall the browser come back?")
        .says("Keybearer does not know under which address browsers reach it.")
        .notes("An administrator sets `public_url`, or the connection's `redirect_url`.")
}
