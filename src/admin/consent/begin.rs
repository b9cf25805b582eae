//! How connecting begins: by a link from an error, by an operator, or by an authorization that the API has made.
//!
//! Holds: a link for a subject is sealed to it, and one of the API has a secret of its own; whoever has neither signs in.

use axum::Extension;
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use super::device;
use super::flow::{self, Attempt, Flow, FlowId, Kind, LIFE, Status};
use super::pages::Page;
use super::{Definition, Visit, changed, no_store, not_asked, over, signed_in};
use crate::admin::actions::Which;
use crate::admin::auth::{Asker, record_change};
use crate::admin::body::body;
use crate::admin::problem::{Problem, bound, store_unavailable};
use crate::admin::{Admin, cookie};
use crate::model::Name;
use crate::model::connection::Grant;
use crate::model::secret::Secret;
use crate::model::time::rfc3339;
use crate::model::token::{Subject, TokenKey, default_profile};
use crate::snapshot::Snapshot;

/// What somebody opens a link for.
struct Opened {
    key: TokenKey,
    id: FlowId,
    by: Option<Name>,
    /// It is the flow of this link alone, which is made once.
    once: bool,
}

pub async fn open(admin: &Admin, name: &str, visit: &Visit) -> Result<Response, Page> {
    let snapshot = admin.snapshot.load_full();
    let Ok(bound) = bound(&snapshot, name) else {
        return Err(Page::new(StatusCode::NOT_FOUND, "No such connection")
            .says("No connection has the name in this address.")
            .notes("It may have been renamed or removed; an administrator knows."));
    };
    let own = bound.connection.name.clone();
    let opened = match (visit.query("flow")?, visit.query("for")?) {
        (Some(secret), _) => by_secret(admin, &own, &secret).await?,
        (None, Some(sealed)) => by_seal(admin, &snapshot, &own, &sealed)?,
        (None, None) => by_operator(admin, &own, visit)?,
    };
    let definition = Definition::of(bound, &opened.key).ok_or_else(unconnectable)?;
    if definition.slot(&opened.key).is_none() {
        return Err(whose_account());
    }
    match definition.connection.grant {
        Grant::AuthorizationCode => send_away(admin, &snapshot, &definition, opened, visit).await,
        Grant::DeviceCode => device::show(admin, &definition, (opened.key, opened.id, opened.by), opened.once).await,
        _ => Err(Page::new(StatusCode::CONFLICT, "Nobody is needed here")
            .says("This connection obtains its tokens by itself; nothing has to be connected.")),
    }
}

fn unconnectable() -> Page {
    Page::new(StatusCode::CONFLICT, "Not in use")
        .says("The connection is switched off, or has no such profile.")
        .notes("An administrator can switch it on, or give the right link.")
}

fn whose_account() -> Page {
    Page::refused("Whose account?")
        .says(
            "This connection has an account for each person, or one for everybody, and the address does not fit that.",
        )
        .notes("Use the link of the error that named it, or add ?subject=NAME for a person's account.")
}

async fn by_secret(admin: &Admin, own: &Name, text: &str) -> Result<Opened, Page> {
    let unknown = || {
        Page::refused("This link is not known")
            .says("It is not complete, or too old.")
            .notes("Ask whoever sent it for a new one.")
    };
    let (id, _) = text.split_once('.').ok_or_else(unknown)?;
    let id = FlowId::parse(id).ok_or_else(unknown)?;
    let found = flow::load(&**admin.cache.store(), &id).await.map_err(|error| no_store(&error))?;
    let (flow, _) = found.ok_or_else(unknown)?;
    let fits = flow.link.as_ref().is_some_and(|link| link.as_bytes().ct_eq(flow::digest(text).as_bytes()).into());
    let key = flow.key().filter(|key| fits && key.connection == *own).ok_or_else(unknown)?;
    let by = flow.by.as_deref().and_then(Name::parse);
    Ok(Opened { key, id, by, once: true })
}

fn by_seal(admin: &Admin, snapshot: &Snapshot, own: &Name, sealed: &str) -> Result<Opened, Page> {
    let key = snapshot.links.open(sealed, admin.clock.now().wall).filter(|key| key.connection == *own);
    let key = key.ok_or_else(|| {
        Page::refused("This link has expired")
            .says("A link is good for ten minutes, and only as it was given.")
            .notes("Repeat the request that named it: its error has a new one.")
    })?;
    Ok(Opened { id: FlowId::of('c', sealed), key, by: None, once: true })
}

fn by_operator(admin: &Admin, own: &Name, visit: &Visit) -> Result<Opened, Page> {
    let asker = signed_in(admin, visit)?;
    let profile = visit.query("profile")?.map(|text| Name::parse(&text).ok_or_else(unconnectable)).transpose()?;
    let subject = visit.query("subject")?.map(|text| Subject::parse(&text).ok_or_else(whose_account)).transpose()?;
    let key = TokenKey { connection: own.clone(), profile: profile.unwrap_or_else(default_profile), subject };
    Ok(Opened { id: FlowId::of('c', &format!("operator {key}")), key, by: Some(asker.name), once: false })
}

/// To the authorization server, with a state and a cookie that nobody else has.
async fn send_away(
    admin: &Admin,
    snapshot: &Snapshot,
    definition: &Definition,
    opened: Opened,
    visit: &Visit,
) -> Result<Response, Page> {
    let (store, wall) = (&**admin.cache.store(), admin.clock.now().wall);
    let Opened { key, id, by, once } = opened;
    let redirect_uri = definition.connection.authorization.redirect_url.clone().or_else(|| snapshot.links.callback());
    let redirect_uri = redirect_uri.ok_or_else(no_public_url)?;
    let found = flow::load(store, &id).await.map_err(|error| no_store(&error))?;
    match found {
        Some((flow, _)) if flow.status_at(wall) == Status::Pending && flow.is_of(&definition.connection) => {}
        Some((flow, _)) if once => return Err(over(&flow.status_at(wall)).unwrap_or_else(changed)),
        other => {
            let flow = Flow::new(&key, &definition.connection, wall, LIFE, Kind::Code { attempts: Vec::new() });
            // Somebody else may have made it at this very moment: then it is joined.
            let version = other.map(|(_, version)| version);
            flow::put(store, &id, &flow, version).await.map_err(|error| no_store(&error))?;
        }
    }
    let (Some(secret), Some(cookie)) = (flow::random::<32>(), flow::random::<32>()) else { return Err(no_random()) };
    let state = Secret::new(format!("{}.{}", id.as_str(), secret.expose()));
    let asked = definition.endpoint.ask_person(&state, &redirect_uri).await.map_err(|failure| not_asked(&failure))?;
    let attempt = Attempt {
        state: flow::digest(secret.expose()),
        cookie: flow::digest(cookie.expose()),
        verifier: asked.verifier,
        redirect_uri,
        by: by.as_ref().map(Name::to_string),
    };
    let name = attempt.cookie_name();
    let added = flow::change(store, &id, |flow| match flow.status_at(wall) {
        Status::Pending => {
            flow.add(attempt.clone());
            if !once {
                // Each of an operator's own visits has its ten minutes; a link has them once.
                flow.ends = (wall + LIFE).as_secs();
            }
            Ok(())
        }
        other => Err(other),
    });
    match added.await.map_err(|error| no_store(&error))? {
        Some(Ok(())) => {}
        Some(Err(status)) => return Err(over(&status).unwrap_or_else(changed)),
        None => return Err(changed()),
    }
    tracing::info!(connection = %key.connection, profile = %key.profile, from = %visit.from,
        subject = key.subject.as_ref().map(Subject::as_str), "a person is sent to the authorization server");
    let secure = cookie::is_secure(admin, &visit.headers);
    let cookie = cookie::set(&name, cookie.expose(), LIFE, secure).ok_or_else(no_random)?;
    let mut place = HeaderValue::try_from(asked.url.as_str()).map_err(|_| no_random())?;
    place.set_sensitive(true);
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, place), (header::SET_COOKIE, cookie)]).into_response())
}

fn no_public_url() -> Page {
    Page::new(StatusCode::CONFLICT, "Where shall the browser come back?")
        .says("Keybearer does not know under which address browsers reach it.")
        .notes("An administrator sets `public_url`, or the connection's `redirect_url`.")
}

fn no_random() -> Page {
    Page::new(StatusCode::INTERNAL_SERVER_ERROR, "Not now").says("Something went wrong here. Try again.")
}

/// `POST connections/{name}/authorize`
pub async fn authorize(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(asker): Extension<Asker>,
    request: Request,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let path = format!("/api/v1/connections/{name}/authorize");
    let which: Which = body(request).await?;
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, &name)?;
    let key = which.slot(bound)?.key.clone();
    let conflict = |code, detail: &str| Problem::new(StatusCode::CONFLICT, code, detail);
    let definition = Definition::of(bound, &key)
        .ok_or_else(|| conflict("connection_inactive", "the connection has `active: false`"))?;
    let made = match definition.connection.grant {
        Grant::AuthorizationCode => begun(&admin, &snapshot, &definition, &key, &asker).await?,
        Grant::DeviceCode => device::begun(&admin, &definition, &key, &asker).await?,
        _ => return Err(conflict("nobody_needed", "the connection's grant needs no person")),
    };
    record_change(&admin, (Some(&asker.name), asker.from), (&Method::POST, &path), &key, (StatusCode::CREATED, None));
    tracing::info!(user = %asker.name, connection = %key.connection, profile = %key.profile,
        subject = key.subject.as_ref().map(Subject::as_str), "an authorization is begun");
    Ok((StatusCode::CREATED, Json(made)))
}

async fn begun(
    admin: &Admin,
    snapshot: &Snapshot,
    definition: &Definition,
    key: &TokenKey,
    asker: &Asker,
) -> Result<Value, Problem> {
    let failed = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "not_begun", "no link can be made");
    let (id, secret) = FlowId::random('c').zip(flow::random::<32>()).ok_or_else(failed)?;
    let secret = Secret::new(format!("{}.{}", id.as_str(), secret.expose()));
    let link = snapshot.links.of_authorization(key, secret.expose()).ok_or_else(|| {
        let detail = "nobody has said where browsers reach this instance; set `public_url`";
        Problem::new(StatusCode::CONFLICT, "public_url_missing", detail)
    })?;
    let wall = admin.clock.now().wall;
    let mut flow = Flow::new(key, &definition.connection, wall, LIFE, Kind::Code { attempts: Vec::new() });
    flow.by = Some(asker.name.to_string());
    flow.link = Some(flow::digest(secret.expose()));
    let put = flow::put(&**admin.cache.store(), &id, &flow, None).await.map_err(|error| store_unavailable(&error))?;
    if !put {
        return Err(failed());
    }
    let ends = std::time::Duration::from_secs(flow.ends);
    Ok(json!({ "id": id.as_str(), "expires_at": rfc3339(ends), "authorization_url": link }))
}

/// `GET authorizations/{id}`
pub async fn authorization(State(admin): State<Admin>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "authorization_unknown", "no authorization has this id");
    let known = FlowId::parse(&id).ok_or_else(unknown)?;
    let found = flow::load(&**admin.cache.store(), &known).await.map_err(|error| store_unavailable(&error))?;
    let (flow, _) = found.ok_or_else(unknown)?;
    let key = flow.key().ok_or_else(unknown)?;
    let (status, error, description) = match flow.status_at(admin.clock.now().wall) {
        Status::Pending | Status::Exchanging => ("pending", None, None),
        Status::Connected => ("connected", None, None),
        Status::Denied => ("denied", Some("access_denied".to_owned()), None),
        Status::Expired => ("expired", None, None),
        Status::Failed { error, description } => ("failed", Some(error), description),
    };
    Ok(Json(json!({
        "id": id,
        "connection": key.connection.as_str(),
        "profile": key.profile.as_str(),
        "subject": key.subject.as_ref().map(Subject::as_str),
        "status": status,
        "error": error,
        "description": description,
        "expires_at": rfc3339(std::time::Duration::from_secs(flow.ends)),
    })))
}
