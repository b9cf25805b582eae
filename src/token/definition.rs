//! The definition of a token in force: its connection, and the source that issues tokens under it.

use std::sync::Arc;

use tokio::time::Instant;

use super::source::TokenSource;
use crate::model::connection::Connection;

/// How the token of one slot is acquired.
pub(super) struct Definition {
    pub connection: Arc<Connection>,
    pub source: Box<dyn TokenSource>,
    /// When it came into force at this replica.
    pub since: Instant,
}
