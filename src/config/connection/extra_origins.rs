//! A route may inject tokens of other connections. Each of these tokens may then also be sent to the route's origin.

use super::draft::Draft;
use crate::config::reading::Sink;

/// Adds to each connection the origins of other connections' routes that inject its token.
pub fn collect_extra_origins(drafts: &mut [Draft<'_>], sink: &mut Sink) {
    let mut extra_origins = Vec::new();
    for draft in drafts.iter() {
        let own = draft.name.as_ref().map(|(name, _)| name);
        for (node, route) in &draft.routes {
            for other in &route.others {
                let name = &other.connection;
                let known = |draft: &Draft<'_>| draft.name.as_ref().is_some_and(|(known, _)| known == name);
                if own == Some(name) {
                    let hint = "remove `connection`: the connection's own token is the default";
                    node.problem(sink, format!("`inject` names its own connection `{name}`"), hint);
                } else if !drafts.iter().any(known) {
                    let hint = "use the name of a configured connection";
                    node.problem(sink, format!("`inject` names the connection `{name}`, which does not exist"), hint);
                }
                extra_origins.push((name.clone(), route.origin()));
            }
        }
    }
    for (name, origin) in extra_origins {
        let named = drafts.iter_mut().filter_map(|draft| draft.connection.as_mut()).find(|own| own.name == name);
        if let Some(connection) = named
            && !connection.extra_origins.contains(&origin)
        {
            connection.extra_origins.push(origin);
        }
    }
}
