//! What connections must not have in common: names, and routes that would take the same request; what they lack together
//! with the listeners: an address to which browsers come back.

use std::collections::HashMap;

use super::draft::Draft;
use crate::config::reading::{Sink, Spot};
use crate::model::connection::{ConsentFlow, Grant, HostPattern, PathPrefix, PortRule, Route, RouteMatch};
use crate::model::{HostOverride, Listeners, Name};

pub fn check(drafts: &[Draft<'_>], hosts: &[HostOverride], sink: &mut Sink) {
    names(drafts, sink);
    routes(drafts, sink);
    ports(drafts, hosts, sink);
}

/// A blank redirect URL comes from `public_url`, which has a default on loopback alone.
pub fn redirects(drafts: &[Draft<'_>], listeners: &Listeners, sink: &mut Sink) {
    let address = listeners.public.as_ref().unwrap_or(&listeners.admin).address;
    if address.ip().to_canonical().is_loopback() {
        return;
    }
    let blank = |draft: &&Draft<'_>| {
        let connection = draft.connection.as_ref();
        connection.is_some_and(|own| {
            let by_browser = |grant: &Grant| grant.consent_flow() == Some(ConsentFlow::AuthorizationCode);
            own.grants().any(by_browser) && own.authorization.redirect_url.is_none()
        })
    };
    for draft in drafts.iter().filter(blank) {
        let hint =
            "write `public_url: https://…`, where browsers reach the listener, or the connection's `redirect_url`";
        draft.spot.problem(sink, "its redirect URL comes from `public_url`, which is missing", hint);
    }
}

fn names(drafts: &[Draft<'_>], sink: &mut Sink) {
    let mut first: HashMap<&Name, &Spot<'_>> = HashMap::new();
    for (name, spot) in drafts.iter().filter_map(|draft| draft.name.as_ref()) {
        match first.get(name) {
            Some(other) => {
                let message = format!("another connection is named `{name}` ({})", other.place());
                spot.problem(sink, message, "give each its own name");
            }
            None => drop(first.insert(name, spot)),
        }
    }
}

/// What two routes must share to be equals in the order of routes.
#[derive(PartialEq, Eq, Hash)]
enum Rank<'m> {
    Host(&'m HostPattern, PortRule, &'m PathPrefix),
    Mount(&'m PathPrefix),
}

fn routes(drafts: &[Draft<'_>], sink: &mut Sink) {
    let mut equals: HashMap<Rank<'_>, Vec<(&Draft<'_>, &Spot<'_>, &Route)>> = HashMap::new();
    for draft in drafts {
        for (spot, route) in &draft.routes {
            let rank = match &route.matches {
                RouteMatch::Host { pattern, port } => Rank::Host(pattern, *port, &route.path),
                RouteMatch::Mount { prefix, .. } => Rank::Mount(prefix),
            };
            let rivals = equals.entry(rank).or_default();
            let rival = rivals.iter().find(|(other, _, rival)| {
                callers_meet(draft.callers.as_deref(), other.callers.as_deref())
                    && methods_meet(route, rival)
                    && names_meet(std::ptr::eq(draft, *other), route, rival)
            });
            if let Some((_, other, _)) = rival {
                let message = format!("takes the same requests as {} ({})", other.path, other.place());
                let hint = "give them different hosts, paths, methods or callers (`accessible_from`)";
                spot.problem(sink, message, hint);
            }
            rivals.push((draft, spot, route));
        }
    }
}

pub fn callers_meet(one: Option<&[Name]>, other: Option<&[Name]>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(list), None) | (None, Some(list)) => !list.is_empty(),
        (Some(one), Some(other)) => one.iter().any(|name| other.contains(name)),
    }
}

/// A route with methods goes before one without, so only two of a kind can meet.
fn methods_meet(one: &Route, other: &Route) -> bool {
    match (&one.methods, &other.methods) {
        (None, None) => true,
        (Some(one), Some(other)) => one.iter().any(|method| other.contains(method)),
        _ => false,
    }
}

/// A request names one connection at most. Two that wait for the name of the same one may state two profiles of it.
fn names_meet(same_connection: bool, one: &Route, other: &Route) -> bool {
    match (one.only_when_named, other.only_when_named) {
        (false, false) => true,
        (true, true) => {
            let profiles = one.profile.as_ref().zip(other.profile.as_ref());
            same_connection && profiles.is_none_or(|(one, other)| one == other)
        }
        _ => false,
    }
}

/// An endpoint's URL and `hosts` that both state a port must not state two.
fn ports(drafts: &[Draft<'_>], hosts: &[HostOverride], sink: &mut Sink) {
    for (authority, spot) in drafts.iter().flat_map(|draft| &draft.endpoints) {
        let entry = hosts.iter().find(|entry| entry.host == authority.host);
        if let (Some(port), Some(other)) = (authority.port, entry.and_then(|entry| entry.port))
            && port != other
        {
            let message = format!("states port {port}, but `hosts` sends {} to port {other}", authority.host);
            spot.problem(sink, message, "write the port in one place");
        }
    }
}
