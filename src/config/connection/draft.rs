//! A connection that has been read, but not yet compared with the others.

use crate::config::reading::NodeRef;
use crate::model::Name;
use crate::model::connection::{Connection, Route};
use crate::model::origin::Authority;

/// The input of the checks across connections; `connection` is `None` if it is invalid.
pub struct Draft<'a> {
    pub name: Option<(Name, NodeRef<'a>)>,
    /// The authority and the node of each valid endpoint.
    pub endpoints: Vec<(Authority, NodeRef<'a>)>,
    /// `None`: all callers.
    pub callers: Option<Vec<Name>>,
    pub routes: Vec<(NodeRef<'a>, Route)>,
    pub connection: Option<Connection>,
    pub node: NodeRef<'a>,
}

impl Draft<'_> {
    /// True if some caller may use both connections.
    pub fn shares_callers_with(&self, other: &Draft<'_>) -> bool {
        match (&self.callers, &other.callers) {
            (None, None) => true,
            (Some(list), None) | (None, Some(list)) => !list.is_empty(),
            (Some(one), Some(other)) => one.iter().any(|name| other.contains(name)),
        }
    }
}
