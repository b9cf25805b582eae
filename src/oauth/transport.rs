//! How a token request travels: one HTTP client for each set of roots, one limit of size.
//!
//! Not here: deadlines (`oauth`), what the answer means (`response`), name resolution (a resolver is handed in).
//! Holds: no redirect is followed, no proxy of the environment used, nothing decompressed, no request sent twice.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use reqwest::dns::Resolve;
use url::Url;
use zeroize::Zeroizing;

use crate::model::Roots;
use crate::telemetry::traces::Tracer;
use crate::tls::Trust;

use super::failure::{Reason, printable};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Token requests are rare and servers close idle connections after 5 seconds or more: an older one is mostly dead.
const POOL_IDLE: Duration = Duration::from_secs(4);
const POOL_IDLE_CONNECTIONS_MAX: usize = 8;
const DETAIL_CHARS_MAX: usize = 300;

/// HTTP clients, one for each set of roots: made on first use (that costs 10 ms), then shared.
pub struct HttpClients {
    trust: Trust,
    resolver: Arc<dyn Resolve>,
    made: Mutex<Vec<(Option<Roots>, reqwest::Client)>>,
    /// What the users of these clients do is told to it.
    pub tracer: Tracer,
}

impl HttpClients {
    pub fn new(trust: Trust, resolver: Arc<dyn Resolve>) -> HttpClients {
        HttpClients { trust, resolver, made: Mutex::default(), tracer: Tracer::default() }
    }

    /// The client that trusts `roots`, or the shared roots. Equal certificates are the same set.
    pub fn get(&self, roots: Option<&Roots>) -> Result<reqwest::Client, ClientError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = made.iter().find(|(own, _)| own.as_ref() == roots) {
            return Ok(client.clone());
        }
        let client = self.make(roots)?;
        made.push((roots.cloned(), client.clone()));
        Ok(client)
    }

    #[cfg(test)]
    pub fn made(&self) -> usize {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn make(&self, roots: Option<&Roots>) -> Result<reqwest::Client, ClientError> {
        let tls = Arc::unwrap_or_clone(self.trust.client_config(roots));
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(self.resolver.clone())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_IDLE_CONNECTIONS_MAX);
        builder.build().map_err(ClientError)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("HTTP client cannot be made")]
pub struct ClientError(#[source] reqwest::Error);

/// A whole answer. No `Debug`: the body may hold tokens.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
    /// Wall time, for a `Retry-After` date in an answer without `Date`.
    pub received: SystemTime,
}

/// Why there is no whole answer.
pub struct Fault {
    pub reason: Reason,
    /// What the libraries say of it, cleaned for the log.
    pub detail: String,
}

impl From<Reason> for Fault {
    fn from(reason: Reason) -> Fault {
        Fault { reason, detail: String::new() }
    }
}

impl From<reqwest::Error> for Fault {
    fn from(error: reqwest::Error) -> Fault {
        // The URL's query may hold anything.
        let error = error.without_url();
        let reason = if causes(&error).any(is_tls) {
            Reason::Tls
        } else if error.is_connect() {
            Reason::Unreachable
        } else if causes(&error).filter_map(|cause| cause.downcast_ref()).any(hyper::Error::is_parse) {
            Reason::NotHttp
        } else {
            Reason::ConnectionLost
        };
        let detail = causes(&error).map(|cause| cause.to_string()).collect::<Vec<_>>().join(": ");
        Fault { reason, detail: detail.chars().map(printable).take(DETAIL_CHARS_MAX).collect() }
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |cause: &&'a (dyn Error + 'static)| (*cause).source())
}

/// An I/O error hides what it wraps from `source`: look inside.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>() || wrapped.is_some_and(|inner| is_tls(inner))
}

/// One request and its whole answer. The caller sets the deadline.
pub async fn send(client: &reqwest::Client, request: reqwest::Request) -> Result<Answer, Fault> {
    let mut response = client.execute(request).await?;
    let received = wall_time();
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(Reason::TooLarge.into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status: response.status(), headers: std::mem::take(response.headers_mut()), body, received })
}

#[expect(clippy::disallowed_methods, reason = "a Retry-After date is wall time on the wire (RFC 9110 §10.2.3)")]
fn wall_time() -> SystemTime {
    SystemTime::now()
}

/// A user name in a URL would become a second client authentication method.
pub fn without_userinfo(url: &Url) -> Url {
    let mut url = url.clone();
    // Both fail only where a URL cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    url
}
