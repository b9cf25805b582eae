//! The definition that a token is acquired under: its connection, and the source that issues the tokens.

use std::sync::Arc;

use tokio::time::Instant;

use super::source::TokenSource;
use crate::model::connection::Connection;

/// How to acquire the token of one slot.
pub(super) struct Definition {
    pub connection: Arc<Connection>,
    pub source: Box<dyn TokenSource>,
    /// When this replica started to use it.
    pub since: Instant,
}
