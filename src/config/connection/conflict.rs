//! Conflicts between connections: equal names, routes that match the same requests, ports that contradict `hosts`. Also
//! reports a missing `public_url`, which depends on the listeners.

use std::collections::HashMap;

use super::draft::Draft;
use crate::config::reading::{NodeRef, Sink};
use crate::model::connection::{ConsentFlow, Grant, HostPattern, PathPrefix, PortRule, Route, RouteMatch};
use crate::model::{HostOverride, Listeners, Name};

pub fn check(drafts: &[Draft<'_>], hosts: &[HostOverride], sink: &mut Sink) {
    names(drafts, sink);
    routes(drafts, sink);
    ports(drafts, hosts, sink);
}

/// Reports connections without a redirect URL: its default comes from `public_url`, whose default exists only on
/// loopback.
pub fn redirects(drafts: &[Draft<'_>], listeners: &Listeners, sink: &mut Sink) {
    let address = listeners.public.as_ref().unwrap_or(&listeners.admin).address;
    if address.ip().to_canonical().is_loopback() {
        return;
    }
    let needs_public_url = |draft: &&Draft<'_>| {
        let connection = draft.connection.as_ref();
        connection.is_some_and(|own| {
            let by_browser = |grant: &Grant| grant.consent_flow() == Some(ConsentFlow::AuthorizationCode);
            own.grants().any(by_browser) && own.authorization.redirect_url.is_none()
        })
    };
    for draft in drafts.iter().filter(needs_public_url) {
        let hint = "set `public_url` to the https URL where browsers reach the listener, or set `redirect_url` here";
        draft.node.problem(sink, "the redirect URL needs `public_url`, which is missing", hint);
    }
}

fn names(drafts: &[Draft<'_>], sink: &mut Sink) {
    let mut first: HashMap<&Name, &NodeRef<'_>> = HashMap::new();
    for (name, node) in drafts.iter().filter_map(|draft| draft.name.as_ref()) {
        match first.get(name) {
            Some(other) => {
                let message = format!("another connection is named `{name}` ({})", other.location());
                node.problem(sink, message, "give each connection its own name");
            }
            None => drop(first.insert(name, node)),
        }
    }
}

/// Routes with an equal rank compete for the same requests.
#[derive(PartialEq, Eq, Hash)]
enum Rank<'m> {
    Host(&'m HostPattern, PortRule, &'m PathPrefix),
    Mount(&'m PathPrefix),
}

fn routes(drafts: &[Draft<'_>], sink: &mut Sink) {
    let mut ranked: HashMap<Rank<'_>, Vec<(&Draft<'_>, &NodeRef<'_>, &Route)>> = HashMap::new();
    for draft in drafts {
        for (node, route) in &draft.routes {
            let rank = match &route.matches {
                RouteMatch::Host { pattern, port } => Rank::Host(pattern, *port, &route.path),
                RouteMatch::Mount { prefix, .. } => Rank::Mount(prefix),
            };
            let rivals = ranked.entry(rank).or_default();
            let rival = rivals.iter().find(|(other, _, rival)| {
                callers_overlap(draft.callers.as_deref(), other.callers.as_deref())
                    && methods_overlap(route, rival)
                    && naming_overlaps(std::ptr::eq(draft, *other), route, rival)
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

pub fn callers_overlap(one: Option<&[Name]>, other: Option<&[Name]>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(list), None) | (None, Some(list)) => !list.is_empty(),
        (Some(one), Some(other)) => one.iter().any(|name| other.contains(name)),
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
fn ports(drafts: &[Draft<'_>], hosts: &[HostOverride], sink: &mut Sink) {
    for (authority, node) in drafts.iter().flat_map(|draft| &draft.endpoints) {
        let entry = hosts.iter().find(|entry| entry.host == authority.host);
        if let (Some(port), Some(other)) = (authority.port, entry.and_then(|entry| entry.port))
            && port != other
        {
            let message = format!("has port {port}, but `hosts` maps {} to port {other}", authority.host);
            node.problem(sink, message, "write the port in only one of the two");
        }
    }
}
