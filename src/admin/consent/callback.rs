//! `/oauth/callback`: the browser returns from the authorization server and sees the outcome.
//!
//! Invariants: state and cookie are checked first, then the issuer if the response names one. Only the callback that
//! claims the flow sends the code to the token endpoint, and it finishes even if the browser disconnects. The URL with
//! the code does not stay in the browser's history.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::browser::Browser;
use super::definition::Definition;
use super::device;
use super::finish::{ClaimError, advance, claim, connected, import, save_outcome, status_code};
use super::flow::{self, Attempt, Flow, FlowId, Kind, Status};
use super::pages::{Page, display_name};
use super::refusal::{changed, ended, not_allowed, server_failed, store_failed};
use super::visit::Visit;
use crate::admin::problem::bound;
use crate::admin::{Admin, record};
use crate::model::Name;
use crate::model::secret::Secret;
use crate::model::token::{Subject, TokenKey};
use crate::oauth::{ConsentGrant, sanitize_error};
use crate::telemetry::audit::Person;
use crate::token::slot::Credential;

/// A longer code is refused.
const CODE_BYTES_MAX: usize = 8 * 1024;
/// The callback waits this long for the exchange; after that, a page polls for the outcome.
const BROWSER_WAIT: Duration = Duration::from_secs(20);

pub async fn callback(State(admin): State<Admin>, request: Request) -> Response {
    let visit = Visit::of(&request);
    match visit.method {
        Method::GET => handle_return(&admin, &visit).await.unwrap_or_else(Page::into_response),
        _ => not_allowed("GET"),
    }
}

/// The pending flow of a callback, once the browser has been verified.
struct ReturnedFlow {
    id: FlowId,
    flow: Flow,
    attempt: Attempt,
    key: TokenKey,
    definition: Definition,
}

async fn handle_return(admin: &Admin, visit: &Visit) -> Result<Response, Page> {
    let (code, error) = (visit.query("code")?, visit.query("error")?);
    let (state, issuer) = (visit.query("state")?, visit.query("iss")?);
    let returned = returned_flow(admin, visit, state.as_deref()).await?;
    match returned.definition.endpoint.is_from_issuer(issuer.as_deref()).await {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!(connection = %returned.key.connection, from = %visit.from(), "callback names a different issuer");
            return Err(Page::refused("This response comes from another server")
                .text("It does not name the authorization server of this connection, so it was rejected.")
                .note("Start again with a new link. If it happens again, ask an administrator."));
        }
        Err(failure) => return Err(server_failed(&failure)),
    }
    match (code, error) {
        (Some(code), None) if (1..=CODE_BYTES_MAX).contains(&code.len()) => {
            exchange(admin, visit, returned, Secret::new(code)).await
        }
        (None, Some(error)) => refused(admin, visit, returned, &error).await,
        _ => Err(Page::refused("This response is invalid")
            .text("It has neither a code nor an error, or it has both.")
            .note("Nothing was connected. Start again with a new link.")),
    }
}

/// The flow that `state` names, if this browser confirmed it and it has not ended.
async fn returned_flow(admin: &Admin, visit: &Visit, state: Option<&str>) -> Result<ReturnedFlow, Page> {
    let unknown = || {
        Page::refused("This response is unknown")
            .text("Its state is missing, altered, or too old, so it was rejected.")
            .note("Nothing was connected. Start again with a new link.")
    };
    let (id, secret) = state.and_then(|state| state.split_once('.')).ok_or_else(unknown)?;
    let id = FlowId::parse(id).ok_or_else(unknown)?;
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let Some(flow) = flow::load(store, &id).await.map_err(|error| store_failed(&error))? else {
        let summary = flow::summary(store, &id, None, wall).await.map_err(|error| store_failed(&error))?;
        return Err(summary.and_then(|summary| ended(&summary.status)).unwrap_or_else(unknown));
    };
    let attempt = flow.attempt(&flow::digest(secret)).ok_or_else(unknown)?.clone();
    // Before the cookie check: the cookie of a browser that returns late has expired.
    if let Some(page) = ended(&flow.status_at(wall)) {
        return Err(page);
    }
    if !flow.is_bound_to(Browser::digest_of(admin, visit).as_deref()) {
        tracing::warn!(from = %visit.from(), "callback from a different browser than the one that confirmed");
        return Err(Page::refused("Another browser confirmed this link")
            .text("The account can be connected only in the browser that confirmed the link, with its cookies.")
            .note("Open the link again in the browser in which you log in."));
    }
    let key = flow.key().ok_or_else(unknown)?;
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, key.connection.as_str()).map_err(|_| changed())?;
    let definition = Definition::of(bound, &key).ok_or_else(changed)?;
    if !flow.is_for(&definition.connection) {
        return Err(changed());
    }
    Ok(ReturnedFlow { id, flow, attempt, key, definition })
}

async fn exchange(admin: &Admin, visit: &Visit, returned: ReturnedFlow, code: Secret) -> Result<Response, Page> {
    // Relative to /oauth/callback, which a reverse proxy may serve under another path.
    let location = format!("../connect/{}/result?of={}", returned.key.connection, returned.id.as_str());
    let location = HeaderValue::try_from(location).map_err(|_| changed())?;
    let (sender, receiver) = oneshot::channel();
    let (task_admin, from) = (admin.clone(), visit.from());
    // Bounded: one task for each verified callback of a pending flow.
    admin.tasks.spawn("consent", async move {
        // The browser may have disconnected.
        let _ = sender.send(exchange_code(&task_admin, from, returned, code).await);
    });
    // After a timeout or a shutdown, the page at `location` shows the outcome.
    if let Ok(Ok(outcome)) = timeout(BROWSER_WAIT, receiver).await {
        outcome?;
    }
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response())
}

/// Exchanges the code for a token; `Err`: another callback does so, or the flow has ended.
async fn exchange_code(admin: &Admin, from: SocketAddr, returned: ReturnedFlow, code: Secret) -> Result<(), Page> {
    let ReturnedFlow { id, flow, attempt, key, definition } = returned;
    claim(admin, &id, &definition.connection).await.map_err(claim_failed)?;
    let user = flow.user();
    let by = Person { user: user.clone(), from: Some(from) };
    let credential = || {
        let Attempt { verifier, redirect_uri, .. } = attempt.clone();
        Credential::Consented(ConsentGrant::Code { code: code.clone(), verifier, redirect_uri })
    };
    let status = import(&definition, &key, credential, &by).await;
    save_outcome(admin, &id, &key, &status).await;
    record_outcome(admin, (user.as_ref(), from), &key, &status);
    Ok(())
}

fn claim_failed(error: ClaimError) -> Page {
    match error {
        ClaimError::Ended(status) => ended(&status).unwrap_or_else(changed),
        ClaimError::Store(error) => store_failed(&error),
    }
}

fn record_outcome(admin: &Admin, (user, from): (Option<&Name>, SocketAddr), key: &TokenKey, status: &Status) {
    let code = (*status != Status::Connected).then(|| status_code(status));
    let response = if code.is_none() { StatusCode::SEE_OTHER } else { StatusCode::BAD_REQUEST };
    record::change(admin, (user, from), (&Method::GET, "/oauth/callback"), key, (response, code.as_deref()));
}

async fn refused(admin: &Admin, visit: &Visit, returned: ReturnedFlow, error: &str) -> Result<Response, Page> {
    let ReturnedFlow { id, flow, key, .. } = returned;
    let (error, description) = sanitize_error(error, visit.query("error_description")?.as_deref());
    let denied = error == "access_denied";
    let status =
        if denied { Status::Denied } else { Status::Failed { error: error.clone(), description: description.clone() } };
    advance(admin, &id, &status).await.map_err(claim_failed)?;
    record_outcome(admin, (flow.user().as_ref(), visit.from()), &key, &status);
    tracing::warn!(connection = %key.connection, profile = %key.profile, error, description,
        subject = key.subject.as_ref().map(Subject::as_str), "authorization server returned the browser with an error");
    let page = if denied {
        Page::refused("Access was declined").text(&format!("{} was not connected.", display_name(&key)))
    } else {
        Page::refused("Connecting failed").text(&format!("The authorization server reported: {error}"))
    };
    let page = description.iter().fold(page, |page, text| page.text(text));
    Err(page.note("To try again, start with a new link."))
}

/// The outcome, at a URL without a code.
pub async fn result(State(admin): State<Admin>, Path(name): Path<String>, request: Request) -> Response {
    let visit = Visit::of(&request);
    if visit.method != Method::GET && visit.method != Method::HEAD {
        return not_allowed("GET, HEAD");
    }
    result_page(&admin, &name, &visit).await.unwrap_or_else(|page| page).into_response()
}

async fn result_page(admin: &Admin, name: &str, visit: &Visit) -> Result<Page, Page> {
    let unknown =
        || Page::new(StatusCode::NOT_FOUND, "Not found").text("No authorization has this address, or it is too old.");
    let id = visit.query("of")?.and_then(|of| FlowId::parse(&of)).ok_or_else(unknown)?;
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let summary = flow::summary(store, &id, None, wall).await.map_err(|error| store_failed(&error))?;
    let summary = summary.filter(|summary| summary.key.connection.as_str() == name).ok_or_else(unknown)?;
    let key = summary.key;
    Ok(match summary.status {
        Status::Connected => connected(&key),
        Status::Pending => {
            let flow = flow::load(store, &id).await.map_err(|error| store_failed(&error))?;
            let flow = flow.filter(|flow| flow.is_bound_to(Browser::digest_of(admin, visit).as_deref()));
            match flow.ok_or_else(unknown)?.kind {
                Kind::Device(device) => device::code_page(&key, &device),
                Kind::Code(_) => return Err(unknown()),
            }
        }
        Status::Exchanging { .. } => {
            Page::new(StatusCode::OK, "One moment").text("The account is being connected.").refresh(1, "")
        }
        Status::Failed { error, description } => {
            let page = Page::refused("Connecting failed")
                .text(&format!("{} was not connected. Reason: {error}", display_name(&key)));
            let page = description.iter().fold(page, |page, text| page.text(text));
            page.note("Start again with a new link. If it keeps failing, ask an administrator to check the connection.")
        }
        status => ended(&status).unwrap_or_else(unknown),
    })
}
