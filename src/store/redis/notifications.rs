//! Change notifications between replicas (pub/sub), and reconnecting after an outage.
//!
//! Invariants: a notification names only the record, or the definitions, and the replica that changed it; after each
//! interruption anything may have changed ([`Notification::Missed`]).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSub;
use tokio::time::timeout;

use super::backend::Backend;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::store::{Notification, StoreError};

/// Notifications queued for a slow receiver.
pub const QUEUE_MAX: usize = 4096;
/// Interval between attempts to reconnect or resubscribe.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Keep-alive: ping after this much silence; resubscribe if no reply arrives within [`REPLY_TIMEOUT`].
const PING_INTERVAL: Duration = Duration::from_secs(10);
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// Notification of changed definitions, in place of a token's key; no key parses from it.
const DEFINITIONS: &str = "*definitions";
/// Less than the default `usable_margin`.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(3);

impl Backend {
    /// Warns of clock skew: the expiry of a stored token depends on the clock of the replica that acquired it.
    async fn compare_clocks(&self) {
        let Ok((seconds, micros)) = self.link.query::<(u64, u64)>(&redis::cmd("TIME")).await else { return };
        let (its, ours) = (WallTime::from_secs(seconds) + Duration::from_micros(micros), self.codec.wall());
        let apart = its.since(ours).max(ours.since(its));
        if apart > CLOCK_SKEW_MAX {
            tracing::warn!(
                apart_s = apart.as_secs(),
                "clock skew between this machine and Redis; tokens of other replicas expire too late or too early: synchronize both clocks (NTP)"
            );
        }
    }

    /// What another replica has changed; `None`: our own notification, or a malformed one.
    fn parse_notification(&self, message: &[u8]) -> Option<Notification> {
        let (instance, changed) = std::str::from_utf8(message).ok()?.split_once(' ')?;
        let notification = match changed {
            DEFINITIONS => Some(Notification::Definitions),
            key => TokenKey::parse(key).map(Notification::Changed),
        };
        notification.filter(|_| instance != self.instance)
    }

    /// The notification of changed definitions sent to other replicas.
    pub fn definitions_notification(&self) -> String {
        format!("{} {DEFINITIONS}", self.instance)
    }
}

/// Reconnects after outages, even if no call needs the connection.
pub async fn reconnect(backend: Arc<Backend>) {
    loop {
        tokio::time::sleep(RETRY_INTERVAL).await;
        backend.link.reconnect().await;
    }
}

/// Forwards notifications to [`crate::store::SharedStore::subscribe`].
pub async fn follow(backend: Arc<Backend>) {
    loop {
        if let Err(error) = listen(&backend).await {
            tracing::debug!(%error, "no change notifications from the store; polling it instead");
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

async fn listen(backend: &Backend) -> Result<(), StoreError> {
    let failed = |error| backend.link.unavailable(&error);
    let late = || StoreError::Unavailable("Redis: the reply timed out".to_owned());
    let send = |notification| {
        // There may be no receiver.
        let _ = backend.notifications.send(notification);
    };
    let (info, stream) = backend.link.dial().await?;
    let mut pubsub = timeout(REPLY_TIMEOUT, PubSub::new(&info, stream)).await.map_err(|_| late())?.map_err(failed)?;
    timeout(REPLY_TIMEOUT, pubsub.subscribe(backend.names.notifications()))
        .await
        .map_err(|_| late())?
        .map_err(failed)?;
    let (mut sink, mut messages) = pubsub.split();
    backend.compare_clocks().await;
    backend.restore_secrets().await?;
    backend.restore_definitions().await?;
    send(Notification::Missed);
    loop {
        match timeout(PING_INTERVAL, messages.next()).await {
            Ok(Some(message)) => {
                if let Some(notification) = backend.parse_notification(message.get_payload_bytes()) {
                    send(notification);
                }
            }
            Ok(None) => return Ok(()),
            Err(_) => {
                let pong = timeout(REPLY_TIMEOUT, sink.ping::<redis::Value>()).await;
                pong.map_err(|_| late())?.map_err(failed)?;
            }
        }
    }
}
