//! Route matching: `find(origin, path, method, caller, named)`.
//!
//! Independent of tokens: `T` is the value bound to a route. If a request names a connection, only routes with that
//! label match. Precedence is the contract's: exact host, longer wildcard, stated port, longer path, stated methods.
//! Invariants: matching uses the one parsed origin; where a path prefix decides, a path is refused unless every reading
//! of it (`path`) matches the same route.

mod path;

use std::collections::HashMap;
use std::ops::Range;

use http::Method;

use crate::model::Name;
use crate::model::connection::{HostPattern, PathPrefix, PortRule, Route, RouteMatch};
use crate::model::origin::{Host, Origin, Scheme};
use crate::model::token::default_profile;
use path::Readings;
pub use path::stays_below;

/// Index of a caller in the configuration's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerId(pub u32);

/// Who may use a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Callers {
    /// Every caller, identified or not.
    All,
    /// These identified callers; empty: none.
    Only(Vec<CallerId>),
}

impl Callers {
    /// The intersection.
    pub fn both(self, other: Callers) -> Callers {
        match (self, other) {
            (Callers::All, rest) | (rest, Callers::All) => rest,
            (Callers::Only(one), Callers::Only(other)) => {
                Callers::Only(one.into_iter().filter(|caller| other.contains(caller)).collect())
            }
        }
    }

    fn permit(&self, caller: Option<CallerId>) -> bool {
        match self {
            Callers::All => true,
            Callers::Only(list) => caller.is_some_and(|caller| list.contains(&caller)),
        }
    }
}

/// The names that a request may use to select a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Selects the route together with `profile`, or alone if `bare` is set.
    pub connection: Name,
    /// `default` for the connection itself.
    pub profile: Name,
    /// True if the connection's name alone selects the route, without a profile.
    pub bare: bool,
}

/// The connection that a request names, optionally with a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'n> {
    pub connection: &'n str,
    pub profile: Option<&'n str>,
}

/// Result of matching a request against the routes.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a, T> {
    Route(&'a T),
    /// A route matches, but not for this caller.
    NotAllowed(&'a T),
    /// A route matches the origin or mount, but none matches this path and method.
    NoRoute,
    /// The path has a reading that matches another route, or none.
    AmbiguousPath,
    /// No route matches the origin or mount.
    Unmatched,
}

#[derive(Debug)]
struct Entry<T> {
    /// Prefix of a mount; the root for a host route.
    mount: PathPrefix,
    port: PortRule,
    upgrade: bool,
    path: PathPrefix,
    methods: Option<Vec<Method>>,
    callers: Callers,
    label: Label,
    only_when_named: bool,
    bound: T,
}

/// Entries of one host pattern or mount, in order of precedence.
#[derive(Debug)]
struct Group<T> {
    entries: Vec<Entry<T>>,
    by_path: bool,
}

/// Matches requests to routes; `T` is what the caller of the router attaches to each route.
#[derive(Debug)]
pub struct Router<T> {
    exact: HashMap<Host, Group<T>>,
    /// Wildcards, by the suffix after `*.`.
    below: HashMap<Host, Group<T>>,
    /// Longest prefix first.
    mounts: Vec<(PathPrefix, Group<T>)>,
}

impl<T> Router<T> {
    /// Accepts the routes in any order. Routes of equal precedence keep the given order; the validator rejects them.
    pub fn new(routes: impl IntoIterator<Item = (Route, Label, Callers, T)>) -> Router<T> {
        let mut router = Router { exact: HashMap::new(), below: HashMap::new(), mounts: Vec::new() };
        let mut mounts: HashMap<PathPrefix, Group<T>> = HashMap::new();
        for (route, label, callers, bound) in routes {
            let (group, port, mount) = match route.matches {
                RouteMatch::Host { pattern: HostPattern::Exact(host), port } => {
                    (router.exact.entry(host).or_default(), port, PathPrefix::root())
                }
                RouteMatch::Host { pattern: HostPattern::Subdomains(host), port } => {
                    (router.below.entry(host).or_default(), port, PathPrefix::root())
                }
                RouteMatch::Mount { prefix, .. } => (mounts.entry(prefix.clone()).or_default(), PortRule::Any, prefix),
            };
            group.entries.push(Entry {
                mount,
                port,
                upgrade: route.tls.upgrade,
                path: route.path,
                methods: route.methods,
                callers,
                label,
                only_when_named: route.only_when_named,
                bound,
            });
        }
        router.mounts = mounts.into_iter().collect();
        router.mounts.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.as_str().len()));
        let groups = router.exact.values_mut().chain(router.below.values_mut());
        groups.chain(router.mounts.iter_mut().map(|(_, group)| group)).for_each(Group::sort);
        router
    }

    /// Finds the route of a request to `origin`; `path` excludes the query.
    pub fn find(
        &self,
        origin: &Origin,
        path: &str,
        method: &Method,
        caller: Option<CallerId>,
        named: Option<Named<'_>>,
    ) -> Found<'_, T> {
        let exact = self.exact.get(&origin.host);
        let mut best = Found::Unmatched;
        for group in exact.into_iter().chain(self.wildcards(&origin.host)) {
            let find = |path: &[u8]| group.find(|entry| entry.matches_port(origin), path, method, (caller, named));
            let found = if group.by_path { unambiguous(path, find) } else { find(path.as_bytes()) };
            match found {
                route @ (Found::Route(_) | Found::AmbiguousPath) => return route.bound(),
                Found::Unmatched => {}
                refused => best = stronger_refusal(best, refused),
            }
        }
        best.bound()
    }

    /// The best route for `origin` that the caller may use, regardless of path; if it may use none, the best of all.
    pub fn best_route(&self, origin: &Origin, caller: Option<CallerId>) -> Option<&T> {
        let routes = || self.routes_for(origin, caller);
        let best = routes().find(|(_, permitted)| *permitted).or_else(|| routes().next());
        best.map(|(bound, _)| bound)
    }

    /// The routes for `origin` in order of precedence, regardless of path, each with whether the caller may use it.
    pub fn routes_for<'a>(&'a self, origin: &Origin, caller: Option<CallerId>) -> impl Iterator<Item = (&'a T, bool)> {
        let groups = self.exact.get(&origin.host).into_iter().chain(self.wildcards(&origin.host));
        let entries = groups.flat_map(|group| &group.entries).filter(|entry| entry.matches_port(origin));
        entries.map(move |entry| (&entry.bound, entry.callers.permit(caller)))
    }

    /// Finds the route of an origin-form request; returns it with the rest of `path` after the mount, as written.
    pub fn find_mount<'a>(
        &self,
        path: &'a str,
        method: &Method,
        caller: Option<CallerId>,
        named: Option<Named<'_>>,
    ) -> (Found<'_, T>, &'a str) {
        let found = unambiguous(path, |path| {
            let mut best = Found::Unmatched;
            for (_, group) in self.mounts.iter().filter(|(prefix, _)| prefix.matches(path)) {
                match group.find(|_| true, path, method, (caller, named)) {
                    route @ Found::Route(_) => return route,
                    refused => best = stronger_refusal(best, refused),
                }
            }
            best
        });
        let rest = match &found {
            Found::Route(entry) => path::rest(&entry.mount, path),
            _ => None,
        };
        (found.bound(), rest.unwrap_or(path))
    }

    /// The wildcard groups that match `host`, longest suffix first.
    fn wildcards<'a>(&'a self, host: &Host) -> impl Iterator<Item = &'a Group<T>> {
        let name = match host {
            Host::Name(name) if !self.below.is_empty() => name.clone(),
            _ => "".into(),
        };
        let dots: Vec<Range<usize>> = name.match_indices('.').map(|(at, _)| at + 1..name.len()).collect();
        dots.into_iter().filter_map(move |suffix| self.below.get(&Host::Name(name[suffix].into())))
    }
}

/// The result of `find` if it is the same for all readings of `path`, else [`Found::AmbiguousPath`].
fn unambiguous<'a, T>(path: &str, find: impl Fn(&[u8]) -> Found<'a, Entry<T>>) -> Found<'a, Entry<T>> {
    let readings = match path::readings(path) {
        Readings::One => return find(path.as_bytes()),
        Readings::Several(readings) => readings,
        Readings::TooMany => return Found::AmbiguousPath,
    };
    let mut found = readings.iter().map(|reading| find(reading));
    match found.next() {
        Some(first) if found.all(|other| first.is_same(&other)) => first,
        _ => Found::AmbiguousPath,
    }
}

impl<'a, T> Found<'a, Entry<T>> {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Found::Route(a), Found::Route(b)) | (Found::NotAllowed(a), Found::NotAllowed(b)) => std::ptr::eq(*a, *b),
            (Found::NoRoute, Found::NoRoute) | (Found::Unmatched, Found::Unmatched) => true,
            _ => false,
        }
    }

    fn bound(self) -> Found<'a, T> {
        match self {
            Found::Route(entry) => Found::Route(&entry.bound),
            Found::NotAllowed(entry) => Found::NotAllowed(&entry.bound),
            Found::NoRoute => Found::NoRoute,
            Found::AmbiguousPath => Found::AmbiguousPath,
            Found::Unmatched => Found::Unmatched,
        }
    }
}

fn stronger_refusal<'a, T>(a: Found<'a, T>, b: Found<'a, T>) -> Found<'a, T> {
    match (&a, &b) {
        (Found::NotAllowed(_), _) | (Found::NoRoute, Found::Unmatched) => a,
        _ => b,
    }
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Group { entries: Vec::new(), by_path: false }
    }
}

impl<T> Group<T> {
    fn sort(&mut self) {
        self.by_path = self.entries.iter().any(|entry| !entry.path.is_root());
        let default = default_profile();
        self.entries.sort_by_key(|entry| {
            let port = match entry.port {
                PortRule::Stated(_) => 0,
                PortRule::Default => 1,
                PortRule::Any => 2,
            };
            // Among equals, the connection itself precedes its profiles, and `only_when_named` precedes other routes.
            let unstated = (entry.label.profile != default, !entry.only_when_named);
            (port, std::cmp::Reverse(entry.path.as_str().len()), entry.methods.is_none(), unstated)
        });
    }

    fn find(
        &self,
        matches_port: impl Fn(&Entry<T>) -> bool,
        path: &[u8],
        method: &Method,
        (caller, named): (Option<CallerId>, Option<Named<'_>>),
    ) -> Found<'_, Entry<T>> {
        let mut here = self.entries.iter().filter(|entry| matches_port(entry)).peekable();
        if here.peek().is_none() {
            return Found::Unmatched;
        }
        let mut refused = Found::NoRoute;
        for entry in here.filter(|entry| entry.matches(path, method) && entry.is_selected_by(named)) {
            if entry.callers.permit(caller) {
                return Found::Route(entry);
            }
            refused = stronger_refusal(refused, Found::NotAllowed(entry));
        }
        refused
    }
}

impl<T> Entry<T> {
    /// `host: a.com` matches port 443, and http requests for port 80, which are sent to 443; without upstream TLS, port
    /// 80.
    fn matches_port(&self, origin: &Origin) -> bool {
        let http_on_80 = origin.scheme == Scheme::Http && origin.port == 80;
        match (self.port, self.upgrade) {
            (PortRule::Any, _) => true,
            (PortRule::Stated(port), _) => origin.port == port,
            (PortRule::Default, true) => origin.port == 443 || http_on_80,
            (PortRule::Default, false) => http_on_80,
        }
    }

    /// True if a request with this name, or with none, selects this entry.
    fn is_selected_by(&self, named: Option<Named<'_>>) -> bool {
        let Some(Named { connection, profile }) = named else { return !self.only_when_named };
        let label = &self.label;
        label.connection.as_str() == connection
            && profile.map_or(label.bare, |profile| label.profile.as_str() == profile)
    }

    fn matches(&self, path: &[u8], method: &Method) -> bool {
        self.path.matches(path) && self.methods.as_ref().is_none_or(|methods| methods.contains(method))
    }
}

#[cfg(test)]
mod tests;
