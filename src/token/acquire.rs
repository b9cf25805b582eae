//! One way to the next token: stored? leased? then ask the server, save, and hand it over.
//!
//! Holds: the store is read again after the lease is taken, because another holder may have won; what the server gave is
//! saved before anybody uses it.
//! Metrics: `keybearer_token_requests_total`, `keybearer_token_request_duration_seconds`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::model::connection::Connection;
use crate::model::token::{AccessToken, TokenKey, TokenSet};
use crate::oauth::{Failure, TokenEndpoint};
use crate::store::{Store, StoreError, StoredToken};
use crate::telemetry::audit::{Audit, Cause, Refresh};
use crate::telemetry::metrics::Metrics;

/// What a lease is waited for beyond the longest call that its holder may make.
const LEASE_SLACK: Duration = Duration::from_secs(5);

/// Whoever answers token requests: a token endpoint, or a test.
pub trait TokenSource: Send + Sync {
    fn first_grant(&self) -> Pin<Box<dyn Future<Output = Result<TokenSet, Failure>> + Send + '_>>;
}

impl TokenSource for TokenEndpoint {
    fn first_grant(&self) -> Pin<Box<dyn Future<Output = Result<TokenSet, Failure>> + Send + '_>> {
        Box::pin(self.first_grant())
    }
}

pub(super) struct Acquirer {
    pub key: TokenKey,
    /// As of the last reload.
    pub definition: Arc<ArcSwap<Definition>>,
    pub store: Arc<dyn Store>,
    /// Requests under way to this authorization server.
    pub gate: Arc<Semaphore>,
    pub clock: Clock,
    pub metrics: Metrics,
    pub audit: Audit,
}

/// How the token of one slot is obtained.
pub(super) struct Definition {
    pub connection: Arc<Connection>,
    pub source: Box<dyn TokenSource>,
}

/// Why there is no next token.
#[derive(Debug)]
pub(super) enum AcquireError {
    Server(Failure),
    Store(StoreError),
}

impl Acquirer {
    /// The next token, asked for because of `cause`. `current` is the one in use: finding only that in the store is no news.
    pub async fn acquire(
        &self,
        definition: &Definition,
        current: Option<&AccessToken>,
        cause: &Cause,
    ) -> Result<StoredToken, AcquireError> {
        let connection = &definition.connection;
        if let Some(stored) = self.stored(connection, current).await? {
            return Ok(stored);
        }
        let _place = self.gate.acquire().await;
        let patience = connection.authorization_server.timeout + LEASE_SLACK;
        let lease = self.store.lease(&self.key, patience).await.map_err(AcquireError::Store)?;
        if let Some(stored) = self.stored(connection, current).await? {
            return Ok(stored);
        }
        let token = self.ask(definition, cause).await.map_err(AcquireError::Server)?;
        if let Err(error) = self.store.save(&self.key, token.clone(), &*lease).await {
            tracing::error!(connection = %self.key.connection, profile = %self.key.profile, %error,
                "the token could not be saved; it is used all the same");
        }
        Ok(token)
    }

    /// A usable token in the store, other than `current`.
    async fn stored(
        &self,
        connection: &Connection,
        current: Option<&AccessToken>,
    ) -> Result<Option<StoredToken>, AcquireError> {
        let (now, identity, origins) = (self.clock.now(), connection.identity(), connection.origins());
        let fresh = |stored: &StoredToken| {
            let margin = connection.lifetimes.usable_margin.min(stored.lifetime / 4);
            let ours = stored.identity == identity && stored.origins.covers(&origins);
            let news = Some(&stored.access_token) != current;
            ours && news && !now.reached(stored.obtained.plus(stored.lifetime - margin))
        };
        let stored = self.store.load(&self.key).await.map_err(AcquireError::Store)?;
        Ok(stored.filter(fresh))
    }

    async fn ask(&self, definition: &Definition, cause: &Cause) -> Result<StoredToken, Failure> {
        let own = &definition.connection;
        // Lifetimes count from when the request leaves: the answer may have been long on its way.
        let obtained = self.clock.now();
        let answer = definition.source.first_grant().await;
        let (connection, profile) = (self.key.connection.as_str(), self.key.profile.as_str());
        let outcome = answer.as_ref().map_or_else(|failure| failure.outcome().as_str(), |_| "ok");
        let took = self.clock.now().boot.saturating_sub(obtained.boot);
        let grant = own.grant.as_str();
        self.metrics.token_requests.with_label_values(&[connection, profile, grant, outcome]).inc();
        self.metrics.token_request_duration.with_label_values(&[connection]).observe(took.as_secs_f64());
        self.record(grant, outcome, answer.as_ref().err(), cause);
        let answer = answer?;
        let lifetime = answer.expires_in.unwrap_or(own.lifetimes.default_token_lifetime);
        let (access_token, scopes) = (answer.access_token, answer.scopes);
        let (identity, origins) = (own.identity(), Arc::new(own.origins()));
        Ok(StoredToken { identity, origins, access_token, obtained, lifetime, scopes })
    }

    fn record(&self, grant: &str, outcome: &str, failure: Option<&Failure>, cause: &Cause) {
        let error = failure.map(|failure| match failure {
            Failure::Retryable { reason, .. } => reason.to_string(),
            Failure::Permanent(refusal) => refusal.error.clone(),
        });
        let (user, from) = cause.person().map(|person| (person.user.as_str(), person.from)).unzip();
        let record = Refresh {
            connection: self.key.connection.as_str(),
            profile: self.key.profile.as_str(),
            grant,
            outcome,
            error: error.as_deref(),
            cause: cause.as_str(),
            user,
            from,
        };
        self.audit.now().refresh(self.clock.now().wall, &record);
    }
}
