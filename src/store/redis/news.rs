//! What other replicas change in the store, as Redis tells it (pub/sub).
//!
//! Holds: a message names what has changed and by whom, nothing else; after each break everything counts as changed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSub;
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::Shared;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::store::{News, StoreError};

/// News that may wait for whoever follows.
pub const QUEUE_MAX: usize = 4096;
/// After a break.
const AGAIN: Duration = Duration::from_secs(1);
/// A silent connection is asked whether it lives, and given so long to answer.
const SILENCE: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(2);
/// Less than the usual margin before a token's end.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(3);

impl Shared {
    /// What the others are told of a change.
    pub fn news_of(&self, key: &TokenKey) -> String {
        format!("{} {key}", self.instance)
    }

    /// Replicas tell each other when a token was asked for, each by its own clock.
    async fn compare_clocks(&self) {
        let Ok((seconds, micros)) = self.link.query::<(u64, u64)>(&redis::cmd("TIME")).await else { return };
        let (its, ours) = (WallTime::from_secs(seconds) + Duration::from_micros(micros), self.sealed.wall());
        let apart = its.since(ours).max(ours.since(its));
        if apart > CLOCKS_APART_MAX {
            tracing::warn!(
                apart_s = apart.as_secs(),
                "the clocks of this machine and of Redis differ: tokens of other replicas are used for too long, or not long enough; set both by NTP"
            );
        }
    }

    /// What another has told; `None`: it was this process itself, or nothing that can be read.
    fn read(&self, message: &[u8]) -> Option<TokenKey> {
        let (instance, key) = std::str::from_utf8(message).ok()?.split_once(' ')?;
        TokenKey::parse(key).filter(|_| instance != self.instance)
    }
}

/// Tries for as long as Redis is out of reach.
pub async fn mend(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(AGAIN).await;
        shared.link.mend().await;
    }
}

pub async fn follow(shared: Arc<Shared>, news: broadcast::Sender<News>) {
    loop {
        if let Err(error) = listen(&shared, &news).await {
            tracing::debug!(%error, "the store tells of no changes; they are looked for instead");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn listen(shared: &Shared, news: &broadcast::Sender<News>) -> Result<(), StoreError> {
    let of_redis = |error| shared.link.unavailable(&error);
    let late = || StoreError::Unavailable("it does not answer in time".to_owned());
    let (info, stream) = shared.link.dial().await?;
    let mut pubsub = timeout(ANSWER, PubSub::new(&info, stream)).await.map_err(|_| late())?.map_err(of_redis)?;
    timeout(ANSWER, pubsub.subscribe(shared.names.news())).await.map_err(|_| late())?.map_err(of_redis)?;
    let (mut sink, mut messages) = pubsub.split();
    shared.compare_clocks().await;
    shared.restore_secrets().await?;
    // Nobody may be listening yet, here and below.
    let _ = news.send(News::Missed);
    loop {
        match timeout(SILENCE, messages.next()).await {
            Ok(Some(message)) => {
                if let Some(key) = shared.read(message.get_payload_bytes()) {
                    let _ = news.send(News::Changed(key));
                }
            }
            Ok(None) => return Ok(()),
            Err(_) => {
                let answer: redis::Value = timeout(ANSWER, sink.ping()).await.map_err(|_| late())?.map_err(of_redis)?;
                drop(answer);
            }
        }
    }
}
