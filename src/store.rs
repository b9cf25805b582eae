//! Where tokens are kept between requests, restarts and replicas.
//!
//! The order that every caller keeps: take the lease, read again, ask the server, save, publish.

mod memory;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Now;
use crate::model::connection::{Identity, OriginSet};
use crate::model::token::{AccessToken, TokenKey};
pub use memory::MemoryStore;

pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// What is kept of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// What it was granted for; under another identity it is nobody's.
    pub identity: Identity,
    /// Where it may go.
    pub origins: Arc<OriginSet>,
    pub access_token: AccessToken,
    /// When the request that obtained it left.
    pub obtained: Now,
    pub lifetime: Duration,
    pub scopes: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("another holder kept the lease of {key} for too long")]
    LeaseTimeout { key: TokenKey },
}

/// The right to ask the server for one token; it ends when dropped.
pub trait Lease: Send {}

pub trait Store: Send + Sync {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>>;

    /// Waits at most `patience` for the lease of `key`.
    fn lease<'a>(&'a self, key: &'a TokenKey, patience: Duration) -> StoreFuture<'a, Box<dyn Lease>>;

    /// Replaces what is kept under `key`. Only a holder of its lease may save.
    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, lease: &'a dyn Lease) -> StoreFuture<'a, ()>;
}
