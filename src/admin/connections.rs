//! `GET connections`: a page of short items, with search and filters; `GET connections/{name}`: one connection as a whole.
//!
//! Invariants: items are ordered by name, and a cursor names the last item of its page, so that a connection that appears
//! or disappears between two pages neither repeats nor skips another; no item holds a secret.
//! Not here: the JSON of a whole connection and of a token (`view`).

use std::collections::HashSet;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Admin;
use super::body::YAML;
use super::definitions::etag;
use super::extract::{Path, Query};
use super::openapi;
use super::problem::{Problem, bad_request, bound};
use super::view::{self, LastAttempt, Time};
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

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionsQuery {
    /// Text in the name, the comments, a host or the client ID; case does not matter.
    #[schemars(length(max = QUERY_CHARS_MAX))]
    q: Option<String>,
    /// The state of the connections.
    #[schemars(extend("enum" = view::CONNECTION_STATES))]
    state: Option<String>,
    /// The application of the connections.
    application: Option<String>,
    /// Items on the page; absent: 50.
    #[schemars(range(min = 1, max = LIMIT_MAX))]
    limit: Option<usize>,
    /// The cursor of the previous page.
    #[schemars(regex(pattern = Name::PATTERN))]
    cursor: Option<String>,
    /// `yaml`: all definitions that were made over the API, instead of a page.
    format: Option<Format>,
}

/// A page of a list.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{T}Page")]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Null on the last page.
    pub cursor: Option<String>,
}

/// A connection in a list.
#[derive(Serialize, JsonSchema)]
pub struct ConnectionItem {
    name: String,
    active: bool,
    /// `inactive`, or the worst state of its shared tokens; `idle` without any.
    #[schemars(extend("enum" = view::CONNECTION_STATES))]
    state: &'static str,
    /// Null: its definition is set aside, because it has problems.
    #[schemars(extend("enum" = view::grants_or_null()))]
    grant: Option<&'static str>,
    /// Null: as `grant`.
    client_id: Option<String>,
    application: Option<String>,
    comments: Option<String>,
    /// When the token with that state expires.
    expires_at: Option<Time>,
    /// The last attempt to get that token.
    last_attempt: Option<LastAttempt>,
    /// The shared tokens, if there are several profiles.
    profiles: Vec<ProfileItem>,
    /// The hosts or mounts and the paths of its first routes.
    #[schemars(length(max = ROUTES_MAX))]
    routes: Vec<String>,
    /// The number of all routes.
    route_count: usize,
}

/// The shared token of one of several profiles.
#[derive(Serialize, JsonSchema)]
struct ProfileItem {
    profile: String,
    #[schemars(extend("enum" = view::grants()))]
    grant: &'static str,
    #[schemars(extend("enum" = view::TOKEN_STATES))]
    state: &'static str,
    expires_at: Option<Time>,
    last_attempt: Option<LastAttempt>,
}

/// Definitions, as a configuration file has them.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Definitions")]
pub struct Export {
    #[schemars(schema_with = "openapi::exported_definitions")]
    connections: Vec<serde_yaml::Value>,
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
    fn parse(query: ConnectionsQuery) -> Result<Filter, Problem> {
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
        let after = |text: &str| Name::parse(text).ok_or_else(|| bad_request("`cursor` is not one of this list"));
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
pub async fn list(State(admin): State<Admin>, Query(query): Query<ConnectionsQuery>) -> Result<Response, Problem> {
    let format = query.format;
    let filter = Filter::parse(query)?;
    let (snapshot, now) = (admin.snapshot.load_full(), admin.clock.now());
    if matches!(format, Some(Format::Yaml)) {
        return Ok(export(&snapshot));
    }
    let mut found: Vec<_> = Listed::all(&snapshot).filter(|listed| filter.matches(*listed, now)).collect();
    found.sort_unstable_by_key(|listed| listed.name());
    let page = &found[..found.len().min(filter.limit)];
    let last = page.last().filter(|_| found.len() > page.len());
    let cursor = last.map(|last| last.name().to_string());
    let items = page.iter().map(|listed| item(*listed, now)).collect();
    Ok(Json(Page { items, cursor }).into_response())
}

/// Every definition in the store, as a file that can be applied.
fn export(snapshot: &Snapshot) -> Response {
    let in_force = snapshot.connections.iter().map(|bound| &*bound.connection.written);
    let made_here = in_force.filter(|written| written.revision().is_some());
    let aside = snapshot.set_aside.iter().filter_map(|aside| aside.written.as_ref());
    let connections = made_here.chain(aside).filter_map(view::yaml).collect();
    yaml(&Export { connections })
}

fn yaml(value: &impl Serialize) -> Response {
    // Maps, lists and scalars: this cannot fail.
    let text = serde_yaml::to_string(value).unwrap_or_default();
    ([(header::CONTENT_TYPE, YAML[0])], text).into_response()
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionQuery {
    /// Shows each key as value and source, with the defaults of absent keys.
    #[serde(default)]
    resolved: bool,
    /// `yaml`: the definition as written, without the state of the connection.
    format: Option<Format>,
}

/// The representation of definitions; absent: JSON with the states of the connections.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[schemars(inline)]
#[serde(rename_all = "lowercase")]
enum Format {
    Json,
    Yaml,
}

pub async fn get(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(query): Query<ConnectionQuery>,
) -> Result<Response, Problem> {
    let (snapshot, now) = (admin.snapshot.load_full(), admin.clock.now());
    let aside = snapshot.set_aside.iter().find(|aside| aside.name.as_str() == name);
    let (written, shown) = match (bound(&snapshot, &name), aside) {
        (Ok(bound), shadowed) => {
            let shown = if query.resolved { view::resolved(bound, now) } else { view::connection(bound, now) };
            (Some(&*bound.connection.written), shown.shadowing(shadowed))
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

fn item(listed: Listed<'_>, now: Now) -> ConnectionItem {
    match listed {
        Listed::InForce(bound) => item_in_force(bound, now),
        Listed::SetAside(aside) => ConnectionItem {
            name: aside.name.to_string(),
            active: true,
            state: "misconfigured",
            grant: None,
            client_id: None,
            application: None,
            comments: None,
            expires_at: None,
            last_attempt: None,
            profiles: Vec::new(),
            routes: Vec::new(),
            route_count: 0,
        },
    }
}

fn item_in_force(bound: &BoundConnection, now: Now) -> ConnectionItem {
    let connection = &bound.connection;
    let (state, slot_state) = view::connection_state(bound, now);
    let current = slot_state.as_ref().and_then(|state| state.token.as_ref());
    // The item itself shows the state of a single token.
    let profiles = match bound.definitions.as_slice() {
        [_] => Vec::new(),
        several => several.iter().filter_map(|own| profile(own, now)).collect(),
    };
    ConnectionItem {
        name: connection.name.to_string(),
        active: connection.active,
        state,
        grant: Some(connection.grant.as_str()),
        client_id: Some(connection.client_id.clone()),
        application: connection.application.clone(),
        comments: connection.comments.clone(),
        expires_at: current.map(|token| view::expiry(token)),
        last_attempt: slot_state.as_ref().and_then(|state| view::last_attempt(state)),
        profiles,
        routes: connection.routes.iter().take(ROUTES_MAX).map(view::route_match).collect(),
        route_count: connection.routes.len(),
    }
}

fn profile(own: &BoundDefinition, now: Now) -> Option<ProfileItem> {
    let state = own.slots.as_ref()?.shared()?.state();
    Some(ProfileItem {
        profile: own.connection.profile.to_string(),
        grant: own.connection.grant.as_str(),
        state: state.name(now),
        expires_at: state.token.as_ref().map(|token| view::expiry(token)),
        last_attempt: view::last_attempt(&state),
    })
}
