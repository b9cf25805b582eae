//! The public keys of an OpenID provider (RFC 7517), cached.
//!
//! Invariants: a token with an unknown key causes at most one new request a minute; keys are requested again after an
//! hour, so that a withdrawn key does not stay trusted; encryption keys and keys that cannot be read are ignored.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Method, header};
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use tokio::sync::OnceCell;
use url::Url;

use crate::model::time::BootTime;
use crate::oauth::failure::{Failure, Reason};
use crate::oauth::{retryable, transport};

const KEYS_TTL: Duration = Duration::from_secs(3600);
/// Minimum interval between requests that unknown keys cause.
const REFETCH_INTERVAL: Duration = Duration::from_secs(60);
/// Further keys of a set are ignored.
const KEYS_MAX: usize = 100;

pub type Keys = Arc<Vec<Jwk>>;

#[derive(Default)]
pub struct ProviderKeys {
    cache: ArcSwap<OnceCell<(Keys, BootTime)>>,
}

impl ProviderKeys {
    /// Concurrent calls share one request.
    pub async fn current(&self, http: &reqwest::Client, url: &Url, now: BootTime) -> Result<Keys, Failure> {
        self.no_older_than(KEYS_TTL, http, url, now).await
    }

    /// The keys after a rotation: requested again, unless they are less than a minute old.
    pub async fn after_unknown_key(&self, http: &reqwest::Client, url: &Url, now: BootTime) -> Result<Keys, Failure> {
        self.no_older_than(REFETCH_INTERVAL, http, url, now).await
    }

    async fn no_older_than(
        &self,
        age: Duration,
        http: &reqwest::Client,
        url: &Url,
        now: BootTime,
    ) -> Result<Keys, Failure> {
        let mut cached = self.cache.load_full();
        if cached.get().is_some_and(|(_, at)| now.since(*at) >= age) {
            let empty = Arc::<OnceCell<_>>::default();
            // A concurrent call may have replaced it first.
            self.cache.compare_and_swap(&cached, empty);
            cached = self.cache.load_full();
        }
        let (keys, _) = cached.get_or_try_init(async || Ok::<_, Failure>((fetch(http, url).await?, now))).await?;
        Ok(keys.clone())
    }
}

async fn fetch(http: &reqwest::Client, url: &Url) -> Result<Keys, Failure> {
    let mut request = reqwest::Request::new(Method::GET, url.clone());
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    let response = transport::send(http, request).await.map_err(|error| retryable(error.reason))?;
    if response.status != http::StatusCode::OK {
        return Err(retryable(Reason::HttpStatus(response.status.as_u16())));
    }
    read(&response.body).map(Arc::new).ok_or_else(|| retryable(Reason::NotJson))
}

fn read(body: &[u8]) -> Option<Vec<Jwk>> {
    let set: serde_json::Value = serde_json::from_slice(body).ok()?;
    let keys = set.get("keys")?.as_array()?.iter().take(KEYS_MAX);
    let keys = keys.filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
    Some(keys.filter(|key| key.common.public_key_use != Some(PublicKeyUse::Encryption)).collect())
}
