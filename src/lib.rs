//! Keybearer: a proxy that injects fresh OAuth tokens, so that services hold no secret.
//!
//! `ARCHITECTURE.md` describes layout and rules; the modules below are in reading order, foundations last.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
// No input may cause a panic; tests may unwrap.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod cli;
mod demo;
mod app;
mod reload;
mod proxy;
mod admin;
mod snapshot;
mod token;
mod oauth;
mod config;
mod dial;
mod store;
mod router;
mod tls;
mod script;
mod jwt;
mod private_file;
mod gate;
mod clock;
mod tasks;
mod telemetry;
mod model;
mod sync;

/// What `benches/` measures; not an interface.
#[doc(hidden)]
pub mod bench {
    pub use crate::clock::Clock;
    pub use crate::config::load_text;
    pub use crate::model::connection::{Connection, Identity, OriginSet};
    pub use crate::model::origin::{Authority, Origin, Scheme};
    pub use crate::model::secret::SealKey;
    pub use crate::model::token::{AccessToken, RefreshToken, Subject, TokenKey, TokenSet};
    pub use crate::model::{Name, RedisAt, RedisKind, RedisSettings};
    pub use crate::oauth::TokenRequestContext;
    pub use crate::proxy::inject::inject;
    pub use crate::router::{Callers, Label, Router};
    pub use crate::store::{
        EmbeddedStore, Keyring, MemoryStore, RedisStore, Refresh, SecretsInUse, StoreError, StoredToken, TokenStore,
    };
    pub use crate::tasks::Tasks;
    pub use crate::telemetry::audit::Audit;
    pub use crate::telemetry::events::Events;
    pub use crate::telemetry::metrics::Metrics;
    pub use crate::token::{Revocation, RevocationFuture, TokenCache, TokenFuture, TokenSource};
}
