//! `GET connections`: a page of short items, with search and filters; `GET connections/{name}`: one connection as a whole.
//!
//! Invariants: items are ordered by name, and a cursor names the last item of its page, so that a connection that appears
//! or disappears between two pages neither repeats nor skips another; no item holds a secret.
//! Not here: the JSON of a whole connection and of a token (`view`).

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Admin;
use super::extract::{Path, Query};
use super::problem::{Problem, bad_request, bound};
use super::view::{self, LastAttempt, ShownConnection, Time};
use crate::clock::Now;
use crate::model::Name;
use crate::model::connection::{Connection, Route, RouteMatch};
use crate::snapshot::{BoundConnection, BoundDefinition};

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
    #[schemars(extend("enum" = view::grants()))]
    grant: &'static str,
    client_id: String,
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

    fn matches(&self, bound: &BoundConnection, now: Now) -> bool {
        let Connection { name, comments, application, client_id, routes, .. } = &*bound.connection;
        let holds = |text: &str| text.to_lowercase().contains(&self.text);
        self.after.as_ref().is_none_or(|after| name > after)
            && (self.text.is_empty()
                || holds(name.as_str())
                || holds(client_id)
                || comments.as_deref().is_some_and(holds)
                || routes.iter().any(|route| hosts(route).any(|host| holds(&host))))
            && (self.application.is_none() || self.application == *application)
            && self.state.as_deref().is_none_or(|state| view::connection_state(bound, now).0 == state)
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
    Query(query): Query<ConnectionsQuery>,
) -> Result<Json<Page<ConnectionItem>>, Problem> {
    let filter = Filter::parse(query)?;
    let (snapshot, now) = (admin.snapshot.load_full(), admin.clock.now());
    let mut found: Vec<_> = snapshot.connections.iter().filter(|bound| filter.matches(bound, now)).collect();
    found.sort_unstable_by(|one, other| one.connection.name.cmp(&other.connection.name));
    let page = &found[..found.len().min(filter.limit)];
    let last = page.last().filter(|_| found.len() > page.len());
    let cursor = last.map(|last| last.connection.name.to_string());
    Ok(Json(Page { items: page.iter().map(|bound| item(bound, now)).collect(), cursor }))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionQuery {
    /// Shows each key as value and source, with the defaults of absent keys.
    #[serde(default)]
    resolved: bool,
}

pub async fn get(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(query): Query<ConnectionQuery>,
) -> Result<Json<ShownConnection>, Problem> {
    let (snapshot, now) = (admin.snapshot.load_full(), admin.clock.now());
    let bound = bound(&snapshot, &name)?;
    Ok(Json(if query.resolved { view::resolved(bound, now) } else { view::connection(bound, now) }))
}

fn item(bound: &BoundConnection, now: Now) -> ConnectionItem {
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
        grant: connection.grant.as_str(),
        client_id: connection.client_id.clone(),
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
