//! `intercept` across routes: a tunnel is opened or relayed before the path of any request is known.

use std::collections::HashMap;

use super::conflict::callers_meet;
use super::draft::Draft;
use crate::config::reading::{Sink, Spot};
use crate::model::connection::{HostPattern, PortRule, Route, RouteMatch};

const HTTPS_PORT: u16 = 443;

/// A route with its connection and its place.
type Rival<'d> = (&'d Draft<'d>, &'d Spot<'d>, &'d Route);

/// Routes of one host and port must agree; `given`: the configuration has `interception`.
pub fn check(drafts: &[Draft<'_>], given: bool, sink: &mut Sink) {
    let mut places: HashMap<(&HostPattern, Option<u16>), Vec<Rival<'_>>> = HashMap::new();
    for draft in drafts {
        let mut warned = false;
        for (spot, route) in &draft.routes {
            let RouteMatch::Host { pattern, port } = &route.matches else { continue };
            let at = spot.value_of("intercept");
            if let Some(at) = at.as_ref().filter(|_| route.intercept && !given) {
                let hint = "add `interception: {ca_certificate: PATH, ca_key: {file: PATH}}`, or remove this";
                at.problem(sink, "there is no `interception`, so no tunnel can be opened", hint);
            }
            if let Some(at) = at.as_ref().filter(|_| !route.intercept && !warned) {
                let hint = "callers that need it use http:// URLs or a mount; else remove the key";
                at.warning(sink, "HTTPS through CONNECT gets no token here: the tunnel is relayed as it is", hint);
                warned = true;
            }
            let port = match port {
                PortRule::Stated(port) => Some(*port),
                PortRule::Default => Some(HTTPS_PORT),
                PortRule::Any => None,
            };
            let others = places.entry((pattern, port)).or_default();
            let other = others.iter().find(|(other, _, theirs)| {
                theirs.intercept != route.intercept && callers_meet(draft.callers.as_deref(), other.callers.as_deref())
            });
            if let Some((_, other, _)) = other {
                let message = format!("`intercept` differs from {} ({})", other.path, other.place());
                let hint = "write the same at all routes of one host and port: a tunnel is opened or not before a path is known";
                spot.problem(sink, message, hint);
            }
            others.push((draft, spot, route));
        }
    }
}
