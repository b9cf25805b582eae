//! A route may inject tokens of other connections. Each of these tokens may then also be sent to the route's origin.

use std::collections::{HashMap, HashSet};

use super::draft::Draft;
use crate::config::reading::{Sink, SourceKind};
use crate::model::Name;
use crate::model::connection::RouteOrigin;

/// Adds to each connection the origins of other connections' routes that inject its token.
pub fn collect_extra_origins(drafts: &mut [Draft<'_>], sink: &mut Sink) {
    let names: HashSet<_> = drafts.iter().filter_map(|draft| Some(draft.name.as_ref()?.0.clone())).collect();
    let mut extra_origins: HashMap<Name, Vec<RouteOrigin>> = HashMap::new();
    for draft in drafts.iter() {
        check_injected(draft, |name| names.contains(name), sink);
        for (_, route) in &draft.routes {
            for other in &route.others {
                extra_origins.entry(other.connection.clone()).or_default().push(route.origin());
            }
        }
    }
    for connection in drafts.iter_mut().filter_map(|draft| draft.connection.as_mut()) {
        for origin in extra_origins.remove(&connection.name).unwrap_or_default() {
            if !connection.extra_origins.contains(&origin) {
                connection.extra_origins.push(origin);
            }
        }
    }
}

/// Reports routes that inject the token of a connection that is not `known`, or of their own.
pub fn check_injected(draft: &Draft<'_>, known: impl Fn(&Name) -> bool, sink: &mut Sink) {
    let own_name = draft.name.as_ref().map(|(name, _)| name);
    for (node, route) in &draft.routes {
        for name in route.others.iter().map(|other| &other.connection) {
            if own_name == Some(name) {
                let hint = "remove `connection`: the connection's own token is the default";
                node.problem(sink, format!("`inject` names its own connection `{name}`"), hint);
            } else if !known(name) {
                let hint = match node.source.kind {
                    SourceKind::File => "use the name of a configured connection",
                    SourceKind::Api(_) => "use the name of a connection that was made over the API and is in force",
                };
                node.problem(sink, format!("`inject` names the connection `{name}`, which does not exist"), hint);
            }
        }
    }
}
