//! `/oauth/callback`: the browser returns from the authorization server, and sees the outcome.
//!
//! Invariants: state and cookie are checked first, and the issuer where the server names it. Only the callback that claims
//! the flow sends the code to the token endpoint, and it finishes even if the browser leaves. The address with the code does
//! not stay in the browser's history.

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
use super::finish::{Unclaimed, claim, connected, end, hand_in, settle, status_code};
use super::flow::{self, Attempt, Flow, FlowId, Kind, Status};
use super::pages::{Page, called};
use super::refusal::{changed, no_store, not_allowed, not_asked, over};
use super::visit::Visit;
use crate::admin::problem::bound;
use crate::admin::{Admin, record};
use crate::model::Name;
use crate::model::secret::Secret;
use crate::model::token::{Subject, TokenKey};
use crate::oauth::{ConsentGrant, sanitize_error};
use crate::telemetry::audit::Person;
use crate::token::slot::Credential;

/// Longest code that is taken.
const CODE_BYTES_MAX: usize = 8 * 1024;
/// The browser waits this long for the end of the exchange; then a page waits for it.
const BROWSER_WAIT: Duration = Duration::from_secs(20);

pub async fn callback(State(admin): State<Admin>, request: Request) -> Response {
    let visit = Visit::of(&request);
    match visit.method {
        Method::GET => returned(&admin, &visit).await.unwrap_or_else(Page::into_response),
        _ => not_allowed("GET"),
    }
}

/// Where the browser began, once it is known to be the one that comes back.
struct Known {
    id: FlowId,
    flow: Flow,
    attempt: Attempt,
    key: TokenKey,
    definition: Definition,
}

async fn returned(admin: &Admin, visit: &Visit) -> Result<Response, Page> {
    let (code, error) = (visit.query("code")?, visit.query("error")?);
    let (state, issuer) = (visit.query("state")?, visit.query("iss")?);
    let known = known(admin, visit, state.as_deref()).await?;
    match known.definition.endpoint.is_from_issuer(issuer.as_deref()).await {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!(connection = %known.key.connection, from = %visit.from, "a callback names another issuer");
            return Err(Page::refused("This answer comes from elsewhere")
                .says("It does not name the authorization server that was asked, so it is not used.")
                .notes("Begin again with a new link. If it happens again, an administrator has to look at it."));
        }
        Err(failure) => return Err(not_asked(&failure)),
    }
    match (code, error) {
        (Some(code), None) if (1..=CODE_BYTES_MAX).contains(&code.len()) => {
            exchange(admin, visit, known, Secret::new(code)).await
        }
        (None, Some(error)) => refused(admin, visit, known, &error).await,
        _ => Err(Page::refused("This answer is not readable")
            .says("It holds neither a code nor an error, or both.")
            .notes("Nothing was connected. Begin again with a new link.")),
    }
}

/// The flow that `state` names, begun by this very browser and not over.
async fn known(admin: &Admin, visit: &Visit, state: Option<&str>) -> Result<Known, Page> {
    let unknown = || {
        Page::refused("This answer is not known here")
            .says("Its state is missing, changed, or too old, so it is not used.")
            .notes("Nothing was connected. Begin again with a new link.")
    };
    let (id, secret) = state.and_then(|state| state.split_once('.')).ok_or_else(unknown)?;
    let id = FlowId::parse(id).ok_or_else(unknown)?;
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let Some(flow) = flow::load(store, &id).await.map_err(|error| no_store(&error))? else {
        let outcome = flow::outcome(store, &id, None, wall).await.map_err(|error| no_store(&error))?;
        return Err(outcome.and_then(|outcome| over(&outcome.status)).unwrap_or_else(unknown));
    };
    let attempt = flow.attempt(&flow::digest(secret)).ok_or_else(unknown)?.clone();
    // Said first, since a browser that comes back late has no cookie any more.
    if let Some(page) = over(&flow.status_at(wall)) {
        return Err(page);
    }
    if !flow.is_bound_to(Browser::digest_of(admin, visit).as_deref()) {
        tracing::warn!(from = %visit.from, "a callback comes from another browser than the one that began");
        return Err(Page::refused("Another browser has begun this")
            .says("The account can be connected only in the browser that confirmed the link, with its cookies.")
            .notes("Open the link again in the browser in which you log in."));
    }
    let key = flow.key().ok_or_else(unknown)?;
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, key.connection.as_str()).map_err(|_| changed())?;
    let definition = Definition::of(bound, &key).ok_or_else(changed)?;
    if !flow.is_of(&definition.connection) {
        return Err(changed());
    }
    Ok(Known { id, flow, attempt, key, definition })
}

async fn exchange(admin: &Admin, visit: &Visit, known: Known, code: Secret) -> Result<Response, Page> {
    // Relative to /oauth/callback, wherever a proxy in front has put it.
    let place = format!("../connect/{}/result?of={}", known.key.connection, known.id.as_str());
    let place = HeaderValue::try_from(place).map_err(|_| changed())?;
    let (tell, told) = oneshot::channel();
    let (own, from) = (admin.clone(), visit.from);
    // A task for each callback that was checked, of a pending flow.
    admin.tasks.spawn("consent", async move {
        // The browser may have left.
        let _ = tell.send(exchanged(&own, from, known, code).await);
    });
    // When the wait is over, or the program ends, the page at that address tells the rest.
    if let Ok(Ok(outcome)) = timeout(BROWSER_WAIT, told).await {
        outcome?;
    }
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response())
}

/// Obtains the token for the code; `Err`: another callback does, or the flow has ended.
async fn exchanged(admin: &Admin, from: SocketAddr, known: Known, code: Secret) -> Result<(), Page> {
    let Known { id, flow, attempt, key, definition } = known;
    claim(admin, &id, &definition.connection).await.map_err(unclaimed)?;
    let user = flow.user();
    let by = Person { user: user.clone(), from: Some(from) };
    let credential = || {
        let Attempt { verifier, redirect_uri, .. } = attempt.clone();
        Credential::Consented(ConsentGrant::Code { code: code.clone(), verifier, redirect_uri })
    };
    let status = hand_in(&definition, &key, credential, &by).await;
    settle(admin, &id, &key, &status).await;
    recorded(admin, (user.as_ref(), from), &key, &status);
    Ok(())
}

fn unclaimed(why: Unclaimed) -> Page {
    match why {
        Unclaimed::Over(status) => over(&status).unwrap_or_else(changed),
        Unclaimed::Store(error) => no_store(&error),
    }
}

fn recorded(admin: &Admin, (user, from): (Option<&Name>, SocketAddr), key: &TokenKey, status: &Status) {
    let code = (*status != Status::Connected).then(|| status_code(status));
    let answer = if code.is_none() { StatusCode::SEE_OTHER } else { StatusCode::BAD_REQUEST };
    record::change(admin, (user, from), (&Method::GET, "/oauth/callback"), key, (answer, code.as_deref()));
}

async fn refused(admin: &Admin, visit: &Visit, known: Known, error: &str) -> Result<Response, Page> {
    let Known { id, flow, key, .. } = known;
    let (error, description) = sanitize_error(error, visit.query("error_description")?.as_deref());
    let denied = error == "access_denied";
    let status =
        if denied { Status::Denied } else { Status::Failed { error: error.clone(), description: description.clone() } };
    end(admin, &id, &status).await.map_err(unclaimed)?;
    recorded(admin, (flow.user().as_ref(), visit.from), &key, &status);
    tracing::warn!(connection = %key.connection, profile = %key.profile, error, description,
        subject = key.subject.as_ref().map(Subject::as_str), "the authorization server sent the browser back with an error");
    let page = if denied {
        Page::refused("Access was declined").says(&format!("{} was not connected, as you wished.", called(&key)))
    } else {
        Page::refused("Connecting has failed").says(&format!("The authorization server says: {error}"))
    };
    let page = description.iter().fold(page, |page, text| page.says(text));
    Err(page.notes("If you want to try again, begin with a new link."))
}

/// The outcome, at an address that holds no code.
pub async fn result(State(admin): State<Admin>, Path(name): Path<String>, request: Request) -> Response {
    let visit = Visit::of(&request);
    if visit.method != Method::GET && visit.method != Method::HEAD {
        return not_allowed("GET, HEAD");
    }
    told(&admin, &name, &visit).await.unwrap_or_else(|page| page).into_response()
}

async fn told(admin: &Admin, name: &str, visit: &Visit) -> Result<Page, Page> {
    let unknown =
        || Page::new(StatusCode::NOT_FOUND, "Nothing to tell").says("This address names nothing that is known.");
    let id = visit.query("of")?.and_then(|of| FlowId::parse(&of)).ok_or_else(unknown)?;
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let outcome = flow::outcome(store, &id, None, wall).await.map_err(|error| no_store(&error))?;
    let outcome = outcome.filter(|outcome| outcome.key.connection.as_str() == name).ok_or_else(unknown)?;
    let key = outcome.key;
    Ok(match outcome.status {
        Status::Connected => connected(&key),
        Status::Pending => {
            let flow = flow::load(store, &id).await.map_err(|error| no_store(&error))?;
            let flow = flow.filter(|flow| flow.is_bound_to(Browser::digest_of(admin, visit).as_deref()));
            match flow.ok_or_else(unknown)?.kind {
                Kind::Device(device) => device::code_page(&key, &device),
                Kind::Code(_) => return Err(unknown()),
            }
        }
        Status::Exchanging { .. } => {
            Page::new(StatusCode::OK, "One moment").says("The account is being connected.").goes_on(1, "")
        }
        Status::Failed { error, description } => {
            let page = Page::refused("Connecting has failed")
                .says(&format!("{} was not connected. The reason: {error}", called(&key)));
            let page = description.iter().fold(page, |page, text| page.says(text));
            page.notes("Begin again with a new link. If it stays so, an administrator has to look at the connection.")
        }
        status => over(&status).unwrap_or_else(unknown),
    })
}
