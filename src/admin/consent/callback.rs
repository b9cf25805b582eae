//! The browser comes back from the authorization server, and sees what came of it.
//!
//! Holds: state and cookie are checked before anything else, and the issuer where it names itself; a code is sent to the
//! token endpoint by the one callback that claims the flow; the address with the code does not stay in the browser.

use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::finish::{connected, failed, hand_in, settle, status_code};
use super::flow::{self, Attempt, Flow, FlowId, Status};
use super::pages::{Page, called};
use super::{Definition, Visit, changed, idle, no_store, not_allowed, not_asked, over};
use crate::admin::problem::bound;
use crate::admin::{Admin, auth, cookie};
use crate::model::Name;
use crate::model::secret::Secret;
use crate::model::token::{Subject, TokenKey};
use crate::oauth::{Consented, clean_error};
use crate::telemetry::audit::Person;
use crate::token::slot::Handed;

/// Longest code that is taken.
const CODE_BYTES_MAX: usize = 8 * 1024;

pub async fn callback(State(admin): State<Admin>, request: Request) -> Response {
    let visit = Visit::of(&request);
    match visit.method {
        Method::GET if !visit.is_preview() => returned(&admin, &visit).await.unwrap_or_else(Page::into_response),
        Method::GET | Method::HEAD => idle(),
        _ => not_allowed("GET, HEAD"),
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
    let found = flow::load(&**admin.cache.store(), &id).await.map_err(|error| no_store(&error))?;
    let (flow, _) = found.ok_or_else(unknown)?;
    let attempt = flow.attempt(&flow::digest(secret)).ok_or_else(unknown)?.clone();
    let cookie = cookie::get(&visit.headers, &attempt.cookie_name(), cookie::is_secure(admin, &visit.headers));
    let status = flow.status_at(admin.clock.now().wall);
    let own = cookie.is_some_and(|cookie| flow::digest(&cookie).as_bytes().ct_eq(attempt.cookie.as_bytes()).into());
    // The browser's cookie goes with the first answer, so a second one has none.
    if let Some(page) = over(&status) {
        return Err(page);
    }
    if !own {
        tracing::warn!(from = %visit.from, "a callback comes from another browser than the one that began");
        return Err(Page::refused("Another browser has begun this")
            .says("The account can be connected only in the browser that opened the link, with its cookies.")
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

/// Takes the flow for this callback alone, or says who was quicker.
async fn claim(admin: &Admin, id: &FlowId, status: &Status) -> Result<(), Page> {
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let claimed = flow::change(store, id, |flow| match flow.status_at(wall) {
        Status::Pending => {
            flow.end(status.clone());
            Ok(())
        }
        other => Err(other),
    });
    match claimed.await.map_err(|error| no_store(&error))? {
        Some(Ok(())) => Ok(()),
        Some(Err(status)) => Err(over(&status).unwrap_or_else(changed)),
        None => Err(changed()),
    }
}

async fn exchange(admin: &Admin, visit: &Visit, known: Known, code: Secret) -> Result<Response, Page> {
    let Known { id, flow, attempt, key, definition } = known;
    claim(admin, &id, &Status::Exchanging).await?;
    let slot = definition.slot(&key).ok_or_else(changed)?;
    let Attempt { verifier, redirect_uri, .. } = attempt.clone();
    let user = began(&flow, &attempt);
    let by = Person { user: user.clone(), from: Some(visit.from) };
    let status = match hand_in(
        &slot,
        || {
            Handed::Consented(Consented::Code {
                code: code.clone(),
                verifier: verifier.clone(),
                redirect_uri: redirect_uri.clone(),
            })
        },
        &by,
    )
    .await
    {
        Ok(()) => Status::Connected,
        Err(why) => failed(why),
    };
    settle(admin, &id, &key, &status).await;
    recorded(admin, (user.as_ref(), visit), &key, &status);
    let secure = cookie::is_secure(admin, &visit.headers);
    let gone = cookie::gone(&attempt.cookie_name(), secure);
    // Relative to /oauth/callback, wherever a proxy in front has put it.
    let place = format!("../connect/{}/result?of={}.{}", key.connection, id.as_str(), attempt.state);
    let place = HeaderValue::try_from(place).map_err(|_| changed())?;
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, place), (header::SET_COOKIE, gone)]).into_response())
}

/// The user in whose name the browser was sent away.
fn began(flow: &Flow, attempt: &Attempt) -> Option<Name> {
    attempt.by.as_ref().or(flow.by.as_ref()).and_then(|name| Name::parse(name))
}

fn recorded(admin: &Admin, (user, visit): (Option<&Name>, &Visit), key: &TokenKey, status: &Status) {
    let code = (*status != Status::Connected).then(|| status_code(status));
    let answer = if code.is_none() { StatusCode::SEE_OTHER } else { StatusCode::BAD_REQUEST };
    auth::record_change(admin, (user, visit.from), (&Method::GET, "/oauth/callback"), key, (answer, code.as_deref()));
}

async fn refused(admin: &Admin, visit: &Visit, known: Known, error: &str) -> Result<Response, Page> {
    let Known { id, flow, attempt, key, .. } = known;
    let (error, description) = clean_error(error, visit.query("error_description")?.as_deref());
    let denied = error == "access_denied";
    let status =
        if denied { Status::Denied } else { Status::Failed { error: error.clone(), description: description.clone() } };
    claim(admin, &id, &status).await?;
    recorded(admin, (began(&flow, &attempt).as_ref(), visit), &key, &status);
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

/// What came of it, at an address that holds no code.
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
    let of = visit.query("of")?.ok_or_else(unknown)?;
    let (id, state) = of.split_once('.').ok_or_else(unknown)?;
    let id = FlowId::parse(id).ok_or_else(unknown)?;
    let found = flow::load(&**admin.cache.store(), &id).await.map_err(|error| no_store(&error))?;
    let flow = found.map(|(flow, _)| flow).filter(|flow| flow.attempt(state).is_some()).ok_or_else(unknown)?;
    let key = flow.key().filter(|key| key.connection.as_str() == name).ok_or_else(unknown)?;
    Ok(match flow.status_at(admin.clock.now().wall) {
        Status::Connected => connected(&key),
        Status::Exchanging => {
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
