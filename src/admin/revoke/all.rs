//! Revokes and forgets every token of a connection, before its definition is removed.
//!
//! Invariants: the whole takes at most [`TOTAL_WAIT`]; a token whose revocation fails or times out is still
//! forgotten, and reported; one that cannot be forgotten makes the outcome incomplete. A grant that another connection
//! also uses is not revoked; one that only profiles of this connection share is.
//! Not here: removing the definition. While it is in force, a request may acquire a new token.

mod issuers;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, sleep, timeout_at};

use super::sharers;
use crate::admin::Admin;
use crate::admin::problem::{Problem, store_unavailable};
use crate::admin::users::AuthenticatedUser;
use crate::admin::view::{RevokedTokenOfKey, RevokedTokens};
use crate::model::Name;
use crate::model::token::TokenKey;
use crate::snapshot::BoundConnection;
use crate::store::{Page, StoreError, StoredToken};
use crate::token::slot::{AtServer, NoToken, NotRevoked, RevocationOutcome, Revoked, Sharers, TokenSlot};
use issuers::Issuers;

/// Time for the requests to the server.
const SERVER_WAIT: Duration = Duration::from_secs(30);
/// Time until the last token is forgotten; the response must be sent within 45 seconds.
const TOTAL_WAIT: Duration = Duration::from_secs(42);
/// Tokens in progress at once. The permits for requests to the server are far fewer.
const CONCURRENT_TOKENS_MAX: usize = 32;
/// Records that are read from the store at once.
const RECORDS_PER_PAGE: usize = 256;
/// Rounds over all tokens; a later one finds those that a request or another replica has stored in the meantime.
const ROUNDS_MAX: usize = 3;
/// Gives up once this many tokens could not be forgotten.
const FAILURES_MAX: usize = 1000;
/// Tokens that a report names.
const LISTED_MAX: usize = 100;
/// Retry interval while another command for the same token is pending.
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(100);
const NOT_REACHED: &str = "it was not reached in time, and is not forgotten";

/// The outcome for all tokens of a connection.
#[derive(Debug, Default)]
pub struct RevokedAll {
    revoked: Group,
    /// Forgotten only: the server has no revocation endpoint, the grant is shared, or revocation was not requested.
    not_revoked: Group,
    failed: Group,
    /// True if the store has no record of the connection left.
    pub is_complete: bool,
}

/// Tokens with the same outcome.
#[derive(Debug, Default)]
struct Group {
    count: usize,
    /// At most [`LISTED_MAX`].
    listed: Vec<Listed>,
}

#[derive(Debug)]
struct Listed {
    key: TokenKey,
    is_forgotten: bool,
    revoked: Revoked,
}

/// Revokes every token of `bound` at its server, then forgets it: shared tokens, those of subjects, and records of
/// profiles that the connection no longer has. An inactive connection gets a token endpoint for this.
///
/// # Errors
/// The store is unavailable; nothing was revoked.
pub async fn revoke_all(
    admin: &Admin,
    bound: &BoundConnection,
    user: &AuthenticatedUser,
) -> Result<RevokedAll, Problem> {
    let issuers = Issuers::new(admin.snapshot.load_full(), bound);
    Run::new(admin, &bound.connection.name, Some(issuers)).finish(user).await
}

/// Forgets every token of the connection `name` without a request to its server; the connection need not be in force.
/// Not for a definition that is set aside because a file defines the same name: the tokens are the file's.
///
/// # Errors
/// The store is unavailable; nothing was forgotten.
pub async fn forget_all(admin: &Admin, name: &Name, user: &AuthenticatedUser) -> Result<RevokedAll, Problem> {
    Run::new(admin, name, None).finish(user).await
}

impl RevokedAll {
    /// There was no token.
    pub fn nothing() -> RevokedAll {
        RevokedAll { is_complete: true, ..RevokedAll::default() }
    }

    /// Both outcomes together.
    pub fn and(mut self, other: RevokedAll) -> RevokedAll {
        let groups = [&mut self.revoked, &mut self.not_revoked, &mut self.failed];
        for (group, more) in groups.into_iter().zip([other.revoked, other.not_revoked, other.failed]) {
            group.count += more.count;
            group.listed.extend(more.listed);
            group.listed.truncate(LISTED_MAX);
        }
        RevokedAll { is_complete: self.is_complete && other.is_complete, ..self }
    }

    fn add(&mut self, key: TokenKey, is_forgotten: bool, revoked: Revoked) {
        let outcomes = [&revoked.refresh_token, &revoked.access_token];
        let group = if outcomes.iter().any(|outcome| matches!(outcome, RevocationOutcome::Failed(_))) {
            &mut self.failed
        } else if outcomes.iter().all(|outcome| matches!(outcome, RevocationOutcome::Revoked | RevocationOutcome::None))
        {
            &mut self.revoked
        } else {
            &mut self.not_revoked
        };
        group.count += 1;
        if group.listed.len() < LISTED_MAX {
            group.listed.push(Listed { key, is_forgotten, revoked });
        }
    }

    /// Number of tokens, forgotten or not.
    fn count(&self) -> usize {
        self.revoked.count + self.not_revoked.count + self.failed.count
    }

    /// For a response, with the failed tokens first.
    pub fn report(&self) -> RevokedTokens {
        let listed = [&self.failed, &self.not_revoked, &self.revoked].into_iter().flat_map(|group| &group.listed);
        let token = |listed: &Listed| RevokedTokenOfKey::new(&listed.key, listed.is_forgotten, &listed.revoked);
        RevokedTokens {
            revoked: self.revoked.count,
            not_revoked: self.not_revoked.count,
            failed: self.failed.count,
            tokens: listed.take(LISTED_MAX).map(token).collect(),
            complete: self.is_complete,
        }
    }
}

/// One revocation of all tokens.
struct Run<'a> {
    admin: &'a Admin,
    name: &'a Name,
    /// `None`: the tokens are only forgotten.
    issuers: Option<Issuers>,
    /// End of the requests to the server.
    until: Instant,
    deadline: Instant,
    report: RevokedAll,
    /// Tokens that could not be forgotten, with the reason.
    failures: HashMap<TokenKey, String>,
}

/// The outcome for one key; `None`: there was no token. Fails if it was not forgotten.
type Outcome = Result<Option<Revoked>, String>;

impl<'a> Run<'a> {
    fn new(admin: &'a Admin, name: &'a Name, issuers: Option<Issuers>) -> Run<'a> {
        let (now, report, failures) = (Instant::now(), RevokedAll::default(), HashMap::new());
        Run { admin, name, issuers, until: now + SERVER_WAIT, deadline: now + TOTAL_WAIT, report, failures }
    }

    async fn finish(mut self, user: &AuthenticatedUser) -> Result<RevokedAll, Problem> {
        // Fails before anything is revoked if the store is unavailable.
        self.page(None, 1).await.map_err(|error| store_unavailable(&error))?;
        let mut is_complete = false;
        for round in 0..ROUNDS_MAX {
            let before = self.report.count();
            self.revoke_in_memory(round == 0).await;
            is_complete = self.revoke_stored().await;
            if self.report.count() == before || !is_complete {
                break;
            }
        }
        self.report.is_complete = is_complete && self.failures.is_empty();
        for (key, why) in self.failures.drain() {
            let failed = RevocationOutcome::Failed(why);
            self.report.add(key, false, Revoked { refresh_token: failed.clone(), access_token: failed });
        }
        let RevokedAll { revoked, not_revoked, failed, is_complete } = &self.report;
        tracing::info!(user = %user.name, connection = %self.name, revoked = revoked.count,
            not_revoked = not_revoked.count, failed = failed.count, is_complete, "tokens of the connection revoked");
        Ok(self.report)
    }

    /// Revokes the tokens that have a slot. `all`: also those of slots without a token, which may be acquiring one.
    async fn revoke_in_memory(&mut self, all: bool) {
        let is_wanted =
            |slot: &Arc<TokenSlot>| slot.key.connection == *self.name && (all || slot.state().token.is_some());
        let slots: Vec<_> = self.admin.cache.list().into_iter().filter(is_wanted).collect();
        self.prepare(slots.iter().map(|slot| &slot.key));
        let run = &*self;
        let outcomes = stream::iter(slots).map(|slot| async move { (slot.key.clone(), run.revoke_slot(&slot).await) });
        let outcomes: Vec<_> = outcomes.buffer_unordered(CONCURRENT_TOKENS_MAX).collect().await;
        self.record(outcomes);
    }

    /// Revokes every token that is in the store; false if it did not reach the last one.
    async fn revoke_stored(&mut self) -> bool {
        let mut after = None;
        loop {
            if Instant::now() >= self.deadline || self.failures.len() >= FAILURES_MAX {
                return false;
            }
            let Ok(page) = self.page(after.as_ref(), RECORDS_PER_PAGE).await else { return false };
            let Some((last, _)) = page.last() else { return true };
            after = Some(last.clone());
            self.prepare(page.iter().map(|(key, _)| key));
            let run = &*self;
            let outcomes = stream::iter(page).map(|(key, record)| async move {
                let outcome = run.revoke_record(&key, record).await;
                (key, outcome)
            });
            let outcomes: Vec<_> = outcomes.buffer_unordered(CONCURRENT_TOKENS_MAX).collect().await;
            self.record(outcomes);
        }
    }

    fn prepare<'k>(&mut self, keys: impl Iterator<Item = &'k TokenKey>) {
        if let Some(issuers) = &mut self.issuers {
            keys.for_each(|key| issuers.prepare(self.admin, key));
        }
    }

    async fn page(&self, after: Option<&TokenKey>, limit: usize) -> Result<Page, StoreError> {
        let page = timeout_at(self.deadline, self.admin.cache.store().list(self.name, after, limit)).await;
        page.unwrap_or_else(|_| Err(StoreError::Unavailable("no response in time".to_owned())))
    }

    fn record(&mut self, outcomes: Vec<(TokenKey, Outcome)>) {
        for (key, outcome) in outcomes {
            match outcome {
                Ok(revoked) => {
                    self.failures.remove(&key);
                    if let Some(revoked) = revoked.filter(|revoked| *revoked != Revoked::default()) {
                        self.report.add(key, true, revoked);
                    }
                }
                Err(why) => drop(self.failures.insert(key, why)),
            }
        }
    }

    async fn revoke_slot(&self, slot: &TokenSlot) -> Outcome {
        loop {
            let at_server = self.at_server(&slot.key).await;
            match slot.revoke(at_server, self.deadline).await {
                Ok(revoked) => return Ok(Some(revoked)),
                Err(NotRevoked::Busy) if Instant::now() < self.deadline => sleep(BUSY_RETRY_INTERVAL).await,
                // The slot was closed; its record, if any, is found in the store.
                Err(NotRevoked::NoToken(NoToken::Forgotten)) => return Ok(None),
                Err(NotRevoked::Store(error)) => return Err(error),
                Err(NotRevoked::Busy | NotRevoked::NoToken(_)) => return Err(NOT_REACHED.to_owned()),
            }
        }
    }

    async fn revoke_record(&self, key: &TokenKey, record: Result<StoredToken, StoreError>) -> Outcome {
        let cache = &self.admin.cache;
        if let Some(slot) = cache.get(key) {
            return self.revoke_slot(&slot).await;
        }
        let revoked = match (record, self.issuers.as_ref().map(|issuers| issuers.of(key))) {
            (Ok(_), Some(Ok((connection, endpoint)))) => {
                let at_server = self.at_server(key).await;
                let revoked = cache.revoke_stored(key, (connection, Box::new(endpoint.clone())), &at_server);
                let revoked = timeout_at(self.deadline, revoked).await.map_err(|_| NOT_REACHED.to_owned())?;
                return revoked.map(Some).map_err(|error| error.to_string());
            }
            (Ok(record), Some(Err(why))) => Revoked::all(&record, &RevocationOutcome::Failed(why)),
            (Ok(record), None) => Revoked::all(&record, &RevocationOutcome::NotRequested),
            (Err(error), _) => {
                Revoked { access_token: RevocationOutcome::Failed(error.to_string()), ..Revoked::default() }
            }
        };
        match timeout_at(self.deadline, cache.forget_stored(key)).await {
            Ok(forgotten) => forgotten.map(|()| Some(revoked)).map_err(|error| error.to_string()),
            Err(_) => Err(NOT_REACHED.to_owned()),
        }
    }

    /// What to do at the server. After `until`, no request is sent, so sharers do not matter.
    async fn at_server(&self, key: &TokenKey) -> AtServer {
        let Some(issuers) = &self.issuers else { return AtServer::Nothing };
        let sharers = timeout_at(self.until, sharers(self.admin, issuers.granting(key), key)).await;
        AtServer::Revoke { sharers: sharers.unwrap_or_else(|_| Sharers::new()), until: self.until }
    }
}
