//! A connection as read so far.

use crate::config::reading::Spot;
use crate::model::Name;
use crate::model::connection::{Connection, Route};
use crate::model::origin::Authority;

/// A connection with what the checks across connections need, even where `connection` itself failed.
pub struct Draft<'a> {
    pub name: Option<(Name, Spot<'a>)>,
    /// Endpoints whose authority is known.
    pub endpoints: Vec<(Authority, Spot<'a>)>,
    /// `None`: all callers.
    pub callers: Option<Vec<Name>>,
    pub routes: Vec<(Spot<'a>, Route)>,
    pub connection: Option<Connection>,
    pub spot: Spot<'a>,
}
