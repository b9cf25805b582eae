//! Tokens that routes of other connections inject: their upstreams are noted at the connection that owns the token.

use super::draft::Draft;
use crate::config::reading::Sink;

/// Notes at each connection the origins to which routes of others inject its token.
pub fn lend(drafts: &mut [Draft<'_>], sink: &mut Sink) {
    let mut lent = Vec::new();
    for draft in drafts.iter() {
        let own = draft.name.as_ref().map(|(name, _)| name);
        for (spot, route) in &draft.routes {
            for other in &route.others {
                let name = &other.connection;
                let known = |draft: &Draft<'_>| draft.name.as_ref().is_some_and(|(known, _)| known == name);
                if own == Some(name) {
                    let hint = "leave `connection` out: the token is its own";
                    spot.problem(sink, format!("`inject` names its own connection `{name}`"), hint);
                } else if !drafts.iter().any(known) {
                    let hint = "name one that is configured";
                    spot.problem(sink, format!("`inject` names the connection `{name}`, which is not there"), hint);
                }
                lent.push((name.clone(), route.origin()));
            }
        }
    }
    for (name, origin) in lent {
        let named = drafts.iter_mut().filter_map(|draft| draft.connection.as_mut()).find(|own| own.name == name);
        if let Some(connection) = named
            && !connection.lent.contains(&origin)
        {
            connection.lent.push(origin);
        }
    }
}
