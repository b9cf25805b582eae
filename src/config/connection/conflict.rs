//! Conflicts between connections: equal names, routes that match the same requests, ports that contradict `hosts`. Also
//! reports a missing `public_url`, which depends on the listeners.
//!
//! Not here: tunnels (`tunnel`), tokens of other connections (`extra_origins`).

use std::collections::HashMap;
use std::ptr;

use super::draft::Draft;
use super::tunnel::Tunnels;
use crate::config::reading::{NodeRef, Sink};
use crate::model::connection::{ConsentFlow, Grant, HostPattern, PathPrefix, PortRule, Route, RouteMatch};
use crate::model::{HostOverride, Name};

/// Top-level settings that connections are compared with.
#[derive(Debug)]
pub struct Surroundings<'s> {
    pub hosts: &'s [HostOverride],
    pub has_interception: bool,
    /// False if redirect URLs have a default: `public_url`, or a listener on loopback.
    pub needs_redirect_url: bool,
}

/// The connections that have been compared with each other.
pub struct Registry<'d> {
    surroundings: &'d Surroundings<'d>,
    names: HashMap<&'d Name, &'d NodeRef<'d>>,
    ranked: HashMap<Rank<'d>, Vec<(&'d Draft<'d>, &'d NodeRef<'d>, &'d Route)>>,
    tunnels: Tunnels<'d>,
}

/// Routes with an equal rank compete for the same requests.
#[derive(PartialEq, Eq, Hash)]
enum Rank<'m> {
    Host(&'m HostPattern, PortRule, &'m PathPrefix),
    Mount(&'m PathPrefix),
}

impl<'d> Registry<'d> {
    pub fn new(surroundings: &'d Surroundings<'d>) -> Registry<'d> {
        Registry { surroundings, names: HashMap::new(), ranked: HashMap::new(), tunnels: Tunnels::default() }
    }

    /// Reports the conflicts of a connection with those that were added before, and adds it.
    pub fn add(&mut self, draft: &'d Draft<'d>, sink: &mut Sink) {
        self.add_name(draft, sink);
        self.add_routes(draft, sink);
        self.tunnels.add(draft, self.surroundings.has_interception, sink);
        check_ports(draft, self.surroundings.hosts, sink);
        if self.surroundings.needs_redirect_url {
            check_redirect_url(draft, sink);
        }
    }

    /// Removes a connection that was added.
    pub fn remove(&mut self, draft: &'d Draft<'d>) {
        if let Some((name, node)) = &draft.name
            && self.names.get(name).is_some_and(|other| ptr::eq(*other, node))
        {
            self.names.remove(name);
        }
        for (_, route) in &draft.routes {
            let rivals = self.ranked.entry(rank(route)).or_default();
            rivals.retain(|(other, ..)| !ptr::eq(*other, draft));
        }
        self.tunnels.remove(draft);
    }

    fn add_name(&mut self, draft: &'d Draft<'d>, sink: &mut Sink) {
        let Some((name, node)) = &draft.name else { return };
        match self.names.get(name) {
            Some(other) => {
                let message = format!("another connection is named `{name}` ({})", other.location());
                node.problem(sink, message, "give each connection its own name");
            }
            None => drop(self.names.insert(name, node)),
        }
    }

    fn add_routes(&mut self, draft: &'d Draft<'d>, sink: &mut Sink) {
        for (node, route) in &draft.routes {
            let rivals = self.ranked.entry(rank(route)).or_default();
            let rival = rivals.iter().find(|(other, _, rival)| {
                draft.shares_callers_with(other)
                    && methods_overlap(route, rival)
                    && naming_overlaps(ptr::eq(draft, *other), route, rival)
            });
            if let Some((_, other, _)) = rival {
                let message = format!("matches the same requests as {} ({})", other.path, other.location());
                let hint = "give them different hosts, paths, methods or callers (`accessible_from`)";
                node.problem(sink, message, hint);
            }
            rivals.push((draft, node, route));
        }
    }
}

fn rank(route: &Route) -> Rank<'_> {
    match &route.matches {
        RouteMatch::Host { pattern, port } => Rank::Host(pattern, *port, &route.path),
        RouteMatch::Mount { prefix, .. } => Rank::Mount(prefix),
    }
}

/// Reports a connection without a redirect URL: its default comes from `public_url`, whose default exists only on
/// loopback.
fn check_redirect_url(draft: &Draft<'_>, sink: &mut Sink) {
    let needs_public_url = draft.connection.as_ref().is_some_and(|connection| {
        let by_browser = |grant: &Grant| grant.consent_flow() == Some(ConsentFlow::AuthorizationCode);
        connection.grants().any(by_browser) && connection.authorization.redirect_url.is_none()
    });
    if needs_public_url {
        let hint = "set `public_url` to the https URL where browsers reach the listener, or set `redirect_url` here";
        draft.node.problem(sink, "the redirect URL needs `public_url`, which is missing", hint);
    }
}

/// A route with methods takes precedence over one without, so only two of a kind can overlap.
fn methods_overlap(one: &Route, other: &Route) -> bool {
    match (&one.methods, &other.methods) {
        (None, None) => true,
        (Some(one), Some(other)) => one.iter().any(|method| other.contains(method)),
        _ => false,
    }
}

/// A request names at most one connection. Two `only_when_named` routes of one connection may have different profiles.
fn naming_overlaps(same_connection: bool, one: &Route, other: &Route) -> bool {
    match (one.only_when_named, other.only_when_named) {
        (false, false) => true,
        (true, true) => {
            let profiles = one.profile.as_ref().zip(other.profile.as_ref());
            same_connection && profiles.is_none_or(|(one, other)| one == other)
        }
        _ => false,
    }
}

/// Reports an endpoint whose URL and `hosts` entry have different ports.
fn check_ports(draft: &Draft<'_>, hosts: &[HostOverride], sink: &mut Sink) {
    for (authority, node) in &draft.endpoints {
        let entry = hosts.iter().find(|entry| entry.host == authority.host);
        if let (Some(port), Some(other)) = (authority.port, entry.and_then(|entry| entry.port))
            && port != other
        {
            let message = format!("has port {port}, but `hosts` maps {} to port {other}", authority.host);
            node.problem(sink, message, "write the port in only one of the two");
        }
    }
}
