//! `intercept` across routes: a tunnel is intercepted or relayed before the path of any request is known.

use std::collections::HashMap;

use super::draft::Draft;
use crate::config::reading::{NodeRef, Sink};
use crate::model::connection::{HostPattern, PortRule, Route, RouteMatch};

pub const HTTPS_PORT: u16 = 443;

/// A route with its connection and its node.
type Rival<'d> = (&'d Draft<'d>, &'d NodeRef<'d>, &'d Route);

/// The routes by host and port, which must agree on `intercept`.
#[derive(Default)]
pub struct Tunnels<'d>(HashMap<Destination<'d>, Vec<Rival<'d>>>);

/// `None`: any port.
type Destination<'d> = (&'d HostPattern, Option<u16>);

impl<'d> Tunnels<'d> {
    /// Checks the routes of a connection and adds them. `has_interception`: a CA is configured.
    pub fn add(&mut self, draft: &'d Draft<'d>, has_interception: bool, sink: &mut Sink) {
        let mut warned = false;
        for (node, route) in &draft.routes {
            let Some(destination) = destination(route) else { continue };
            let at = node.value_of("intercept");
            if let Some(at) = at.as_ref().filter(|_| route.intercept && !has_interception) {
                let hint = "add `interception: {ca_certificate: PATH, ca_key: {file: PATH}}`, or remove `intercept`";
                at.problem(sink, "there is no `interception`, so tunnels cannot be intercepted", hint);
            }
            if let Some(at) = at.as_ref().filter(|_| !route.intercept && !warned) {
                let hint = "callers that need a token must use http:// URLs or a mount; or remove `intercept`";
                at.warning(sink, "HTTPS through CONNECT gets no token here: the tunnel is relayed unread", hint);
                warned = true;
            }
            let others = self.0.entry(destination).or_default();
            let other = others
                .iter()
                .find(|(other, _, theirs)| theirs.intercept != route.intercept && draft.shares_callers_with(other));
            if let Some((_, other, _)) = other {
                let message = format!("`intercept` differs from {} ({})", other.path, other.location());
                let hint = "use one value for all routes of a host and port: it is applied before a path is known";
                node.problem(sink, message, hint);
            }
            others.push((draft, node, route));
        }
    }

    pub fn remove(&mut self, draft: &'d Draft<'d>) {
        for destination in draft.routes.iter().filter_map(|(_, route)| destination(route)) {
            let rivals = self.0.entry(destination).or_default();
            rivals.retain(|(other, ..)| !std::ptr::eq(*other, draft));
        }
    }
}

fn destination(route: &Route) -> Option<Destination<'_>> {
    let RouteMatch::Host { pattern, port } = &route.matches else { return None };
    let port = match port {
        PortRule::Stated(port) => Some(*port),
        PortRule::Default => Some(HTTPS_PORT),
        PortRule::Any => None,
    };
    Some((pattern, port))
}
