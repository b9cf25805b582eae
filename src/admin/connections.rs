//! `GET connections`: a page of short items, with search and filters; `GET connections/{name}`: one connection as a whole.
//!
//! Invariants: items are ordered by name, and a cursor names the last item of its page, so that a connection that appears
//! or disappears between two pages neither repeats nor skips another; no item holds a secret.
//! Not here: the JSON of a whole connection and of a token (`view`).

use std::collections::HashSet;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::definitions::etag;
use super::problem::{Problem, bad_request, bound};
use super::{Admin, view};
use crate::clock::Now;
use crate::config::SetAside;
use crate::model::Name;
use crate::model::connection::{Connection, Route, RouteMatch, WrittenDefinition};
use crate::snapshot::{BoundConnection, BoundDefinition, Snapshot};

/// Default number of items on a page.
const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 200;
const QUERY_CHARS_MAX: usize = 200;
/// Routes that an item lists; `route_count` is the total.
const ROUTES_MAX: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionsQuery {
    q: Option<String>,
    state: Option<String>,
    application: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
    format: Option<Format>,
}

/// The checked query.
struct Filter {
    /// In lower case; empty: all.
    text: String,
    state: Option<String>,
    application: Option<String>,
    limit: usize,
    after: Option<Name>,
}

impl Filter {
    fn parse(query: Result<Query<ConnectionsQuery>, QueryRejection>) -> Result<Filter, Problem> {
        let Query(query) = query.map_err(|error| bad_request(error.body_text()))?;
        let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(bad_request(format!("`limit` must be between 1 and {LIMIT_MAX}")));
        }
        let text = query.q.unwrap_or_default();
        if text.chars().count() > QUERY_CHARS_MAX {
            return Err(bad_request(format!("`q` must have at most {QUERY_CHARS_MAX} characters")));
        }
        if query.state.as_deref().is_some_and(|state| !view::CONNECTION_STATES.contains(&state)) {
            return Err(bad_request(format!("`state` must be one of {}", view::CONNECTION_STATES.join(", "))));
        }
        let after = |text: &str| {
            let name = BASE64_URL_SAFE_NO_PAD.decode(text).ok().and_then(|name| String::from_utf8(name).ok());
            let name = name.and_then(|name| Name::parse(&name));
            name.ok_or_else(|| bad_request("`cursor` is not one of this list".to_owned()))
        };
        let after = query.cursor.as_deref().map(after).transpose()?;
        Ok(Filter { text: text.to_lowercase(), state: query.state, application: query.application, limit, after })
    }

    fn matches(&self, listed: Listed<'_>, now: Now) -> bool {
        let holds = |text: &str| text.to_lowercase().contains(&self.text);
        let (state, application, found) = match listed {
            Listed::InForce(bound) => {
                let Connection { name, comments, application, client_id, routes, .. } = &*bound.connection;
                let found = self.text.is_empty()
                    || holds(name.as_str())
                    || holds(client_id)
                    || comments.as_deref().is_some_and(holds)
                    || routes.iter().any(|route| hosts(route).any(|host| holds(&host)));
                (view::connection_state(bound, now).0, application.as_deref(), found)
            }
            Listed::SetAside(aside) => ("misconfigured", None, holds(aside.name.as_str())),
        };
        self.after.as_ref().is_none_or(|after| listed.name() > after)
            && found
            && self.application.as_deref().is_none_or(|wanted| application == Some(wanted))
            && self.state.as_deref().is_none_or(|wanted| state == wanted)
    }
}

/// A connection in the list.
#[derive(Clone, Copy)]
enum Listed<'a> {
    InForce(&'a BoundConnection),
    /// Its name is not that of a connection in force.
    SetAside(&'a SetAside),
}

impl<'a> Listed<'a> {
    fn name(self) -> &'a Name {
        match self {
            Listed::InForce(bound) => &bound.connection.name,
            Listed::SetAside(aside) => &aside.name,
        }
    }

    /// Every connection; what a file has shadowed is not listed by itself.
    fn all(snapshot: &'a Snapshot) -> impl Iterator<Item = Listed<'a>> {
        let names: HashSet<&Name> = match snapshot.set_aside.as_slice() {
            [] => HashSet::new(),
            _ => snapshot.connections.iter().map(|bound| &bound.connection.name).collect(),
        };
        let aside = snapshot.set_aside.iter().filter(move |aside| !names.contains(&aside.name));
        snapshot.connections.iter().map(Listed::InForce).chain(aside.map(Listed::SetAside))
    }
}

/// The host or the mount that a route matches, and the upstream of a mount.
fn hosts(route: &Route) -> impl Iterator<Item = String> {
    let upstream = match &route.matches {
        RouteMatch::Host { .. } => None,
        RouteMatch::Mount { upstream, .. } => Some(upstream.to_string()),
    };
    std::iter::once(view::route_match(route)).chain(upstream)
}

/// Finds a page in one pass over all connections.
pub async fn list(
    State(admin): State<Admin>,
    query: Result<Query<ConnectionsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let (snapshot, now) = (admin.snapshot.load_full(), admin.clock.now());
    if let Ok(Query(ConnectionsQuery { format: Some(Format::Yaml), .. })) = &query {
        return Ok(export(&snapshot));
    }
    let filter = Filter::parse(query)?;
    let mut found: Vec<_> = Listed::all(&snapshot).filter(|listed| filter.matches(*listed, now)).collect();
    found.sort_unstable_by_key(|listed| listed.name());
    let page = &found[..found.len().min(filter.limit)];
    let last = page.last().filter(|_| found.len() > page.len());
    let cursor = last.map(|last| BASE64_URL_SAFE_NO_PAD.encode(last.name().as_str()));
    let items: Vec<_> = page.iter().map(|listed| item(*listed, now)).collect();
    Ok(Json(json!({ "items": items, "cursor": cursor })).into_response())
}

/// Every definition in the store, as a file that can be applied.
fn export(snapshot: &Snapshot) -> Response {
    let in_force = snapshot.connections.iter().map(|bound| &*bound.connection.written);
    let made_here = in_force.filter(|written| written.revision().is_some());
    let aside = snapshot.set_aside.iter().filter_map(|aside| aside.written.as_ref());
    let connections: Vec<_> = made_here.chain(aside).filter_map(view::yaml).collect();
    yaml(&serde_yaml::Mapping::from_iter([("connections".into(), connections.into())]))
}

fn yaml(value: &impl Serialize) -> Response {
    // Maps, lists and scalars: this cannot fail.
    let text = serde_yaml::to_string(value).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/yaml")], text).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionQuery {
    #[serde(default)]
    resolved: bool,
    format: Option<Format>,
}

/// The representation of a definition; absent: JSON with the state of the connection.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Json,
    Yaml,
}

pub async fn get(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    query: Result<Query<ConnectionQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|error| bad_request(error.body_text()))?;
    let (snapshot, now) = (admin.snapshot.load_full(), admin.clock.now());
    let aside = snapshot.set_aside.iter().find(|aside| aside.name.as_str() == name);
    let (written, shown) = match (bound(&snapshot, &name), aside) {
        (Ok(bound), shadowed) => {
            let mut shown = if query.resolved { view::resolved(bound, now) } else { view::connection(bound, now) };
            if let Some(shadowed) = shadowed {
                shown["set_aside"] = view::shadowed(shadowed);
            }
            (Some(&*bound.connection.written), shown)
        }
        (Err(_), Some(aside)) => (aside.written.as_ref(), view::set_aside(aside)),
        (Err(unknown), None) => return Err(unknown),
    };
    let mut response = match query.format {
        Some(Format::Yaml) => yaml(&written.and_then(view::yaml)),
        Some(Format::Json) | None => Json(shown).into_response(),
    };
    let revision = written.map_or_else(|| aside.map(|aside| aside.revision), WrittenDefinition::revision);
    if let Some(revision) = revision {
        response.headers_mut().insert(header::ETAG, etag(revision));
    }
    Ok(response)
}

fn item(listed: Listed<'_>, now: Now) -> Value {
    match listed {
        Listed::InForce(bound) => item_in_force(bound, now),
        Listed::SetAside(aside) => json!({
            "name": aside.name.as_str(),
            "active": true,
            "state": "misconfigured",
            "grant": null,
            "client_id": null,
            "application": null,
            "comments": null,
            "expires_at": null,
            "last_attempt": null,
            "profiles": [],
            "routes": [],
            "route_count": 0,
        }),
    }
}

fn item_in_force(bound: &BoundConnection, now: Now) -> Value {
    let connection = &bound.connection;
    let (state, slot_state) = view::connection_state(bound, now);
    let current = slot_state.as_ref().and_then(|state| state.token.as_ref());
    let routes: Vec<_> = connection.routes.iter().take(ROUTES_MAX).map(view::route_match).collect();
    // The item itself shows the state of a single token.
    let profiles: Vec<_> = match bound.definitions.as_slice() {
        [_] => Vec::new(),
        several => several.iter().filter_map(|own| profile(own, now)).collect(),
    };
    json!({
        "name": connection.name.as_str(),
        "active": connection.active,
        "state": state,
        "grant": connection.grant.as_str(),
        "client_id": connection.client_id,
        "application": connection.application,
        "comments": connection.comments,
        "expires_at": current.map(|token| view::expiry(token)),
        "last_attempt": slot_state.as_ref().map(|state| view::last_attempt(state)),
        "profiles": profiles,
        "routes": routes,
        "route_count": connection.routes.len(),
    })
}

/// The shared token of one of several profiles.
fn profile(own: &BoundDefinition, now: Now) -> Option<Value> {
    let state = own.slots.as_ref()?.shared()?.state();
    Some(json!({
        "profile": own.connection.profile.as_str(),
        "grant": own.connection.grant.as_str(),
        "state": state.name(now),
        "expires_at": state.token.as_ref().map(|token| view::expiry(token)),
        "last_attempt": view::last_attempt(&state),
    }))
}
