//! Files win: finds the routes of a definition made over the API that would get requests of a file's route.
//!
//! The rule: such a route collides if some request matches both and the router prefers it. A wildcard over a file's
//! exact host, a shorter path or a shorter mount does not: for every common request, the file's route has precedence.
//! Also finds the routes that would decide on interception in place of a file's route.
//! Not here: routes of equal precedence (`conflict`), `intercept` of the same host and port (`tunnel`).

use std::cmp::Reverse;
use std::collections::HashMap;

use super::draft::Draft;
use super::tunnel::HTTPS_PORT;
use crate::config::reading::{NodeRef, Sink};
use crate::model::connection::{HostPattern, PortRule, Route, RouteMatch};
use crate::model::origin::Host;

const HTTP_PORT: u16 = 80;

/// A route with its connection and its node.
type Rival<'d> = (&'d Draft<'d>, &'d NodeRef<'d>, &'d Route);

/// The routes of all files.
#[derive(Default)]
pub struct FileRoutes<'d> {
    by_host: HashMap<&'d HostPattern, Vec<Rival<'d>>>,
    /// By the prefix.
    by_mount: HashMap<&'d str, Vec<Rival<'d>>>,
}

impl<'d> FileRoutes<'d> {
    pub fn new(drafts: &'d [Draft<'d>]) -> FileRoutes<'d> {
        let mut routes = FileRoutes::default();
        for draft in drafts {
            for (node, route) in &draft.routes {
                let rivals = match &route.matches {
                    RouteMatch::Host { pattern, .. } => routes.by_host.entry(pattern).or_default(),
                    RouteMatch::Mount { prefix, .. } => routes.by_mount.entry(prefix.as_str()).or_default(),
                };
                rivals.push((draft, node, route));
            }
        }
        routes
    }

    /// Reports the routes of `draft`, which no file defines, that would get requests of a file's route.
    pub fn check(&self, draft: &Draft<'_>, sink: &mut Sink) {
        for (node, route) in &draft.routes {
            let rivals = || {
                let sharing = |(other, ..): &&Rival<'_>| draft.shares_callers_with(other);
                self.covering(route).into_iter().flatten().filter(sharing)
            };
            if let Some((_, file, _)) = rivals().find(|(.., rival)| takes_requests(route, rival)) {
                let message = format!("would get requests of {} ({})", file.path, file.location());
                let hint = "files win: use other hosts, ports, paths, methods or callers (`accessible_from`) here";
                node.problem(sink, message, hint);
            } else if let Some((_, file, _)) = rivals().find(|(.., rival)| decides_interception(route, rival)) {
                let message = format!("`intercept` differs from {} ({})", file.path, file.location());
                let hint = "files win: use the same value here, or other hosts, ports or callers (`accessible_from`)";
                node.problem(sink, message, hint);
            }
        }
    }

    /// The files' routes with the same host or mount, or with one that contains it.
    fn covering(&self, route: &Route) -> Vec<&[Rival<'d>]> {
        match &route.matches {
            RouteMatch::Host { pattern, .. } => {
                let (HostPattern::Exact(host) | HostPattern::Subdomains(host)) = pattern;
                let name = match host {
                    Host::Name(name) => &**name,
                    Host::Ip(_) => "",
                };
                let suffixes = name.match_indices('.').map(|(at, _)| Host::Name(name[at + 1..].into()));
                let wildcards = suffixes.filter_map(|suffix| self.by_host.get(&HostPattern::Subdomains(suffix)));
                self.by_host.get(pattern).into_iter().chain(wildcards).map(Vec::as_slice).collect()
            }
            RouteMatch::Mount { prefix, .. } => {
                let prefix = prefix.as_str();
                let above = prefix.match_indices('/').map(|(at, _)| &prefix[..at]);
                above.chain([prefix]).filter_map(|mount| self.by_mount.get(mount)).map(Vec::as_slice).collect()
            }
        }
    }
}

/// True if some request matches both routes, and the router prefers `route`. The host or mount of `rival` is equal or
/// contains that of `route`.
fn takes_requests(route: &Route, rival: &Route) -> bool {
    // A request that names a connection matches no route of another one.
    let unnamed = !route.only_when_named && !rival.only_when_named;
    let paths_overlap =
        route.path.matches(rival.path.as_str().as_bytes()) || rival.path.matches(route.path.as_str().as_bytes());
    let methods_overlap = match (&route.methods, &rival.methods) {
        (Some(one), Some(other)) => one.iter().any(|method| other.contains(method)),
        _ => true,
    };
    unnamed && paths_overlap && methods_overlap && ports_overlap(route, rival) && {
        let order = |route: &Route| (port_order(route), Reverse(route.path.as_str().len()), route.methods.is_none());
        is_narrower(route, rival) || order(route) < order(rival)
    }
}

/// True if tunnels to some host and port are intercepted as `route` wants, but `rival` wants the opposite. The path of
/// no request is known then.
fn decides_interception(route: &Route, rival: &Route) -> bool {
    let is_host = matches!(route.matches, RouteMatch::Host { .. });
    is_host
        && route.intercept != rival.intercept
        && ports_overlap(route, rival)
        && (is_narrower(route, rival) || port_order(route) < port_order(rival))
}

/// True if the hosts or mounts differ, given that those of `rival` contain those of `route`.
fn is_narrower(route: &Route, rival: &Route) -> bool {
    match (&route.matches, &rival.matches) {
        (RouteMatch::Host { pattern: one, .. }, RouteMatch::Host { pattern: other, .. }) => one != other,
        (RouteMatch::Mount { prefix: one, .. }, RouteMatch::Mount { prefix: other, .. }) => one != other,
        _ => false,
    }
}

/// The router tries lower ones first.
fn port_order(route: &Route) -> u8 {
    match route.matches {
        RouteMatch::Host { port: PortRule::Stated(_), .. } => 0,
        RouteMatch::Host { port: PortRule::Default, .. } => 1,
        RouteMatch::Host { port: PortRule::Any, .. } | RouteMatch::Mount { .. } => 2,
    }
}

fn ports_overlap(one: &Route, other: &Route) -> bool {
    match (ports(one), ports(other)) {
        (Some(one), Some(other)) => one.iter().any(|port| other.contains(port)),
        _ => true,
    }
}

/// The ports of requests that the route matches; `None`: all.
fn ports(route: &Route) -> Option<Vec<u16>> {
    match route.matches {
        RouteMatch::Host { port: PortRule::Stated(port), .. } => Some(vec![port]),
        RouteMatch::Host { port: PortRule::Default, .. } if route.tls.upgrade => Some(vec![HTTPS_PORT, HTTP_PORT]),
        RouteMatch::Host { port: PortRule::Default, .. } => Some(vec![HTTP_PORT]),
        RouteMatch::Host { port: PortRule::Any, .. } | RouteMatch::Mount { .. } => None,
    }
}
