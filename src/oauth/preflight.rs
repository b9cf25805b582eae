//! Preflight: ordered checks of a connection against its authorization server, before anything depends on it.
//!
//! Invariants: requests go through the same HTTP client, dialer and address policy as token requests, and the token
//! request through the same script and `token_request`; one deadline covers everything; no refresh token, authorization
//! code or password of a person is ever sent; no line repeats a secret.
//! Not here: which connections are checked and how the lines are shown (`cli`, `admin`).

mod announced;
mod client;
mod server;

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::TokenEndpoint;
use super::discovery::{self, Metadata};
use super::failure::Failure;

/// Deadline of a whole preflight.
pub const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(15);

/// One line of a preflight: what was tried, the result, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Check {
    pub name: &'static str,
    pub outcome: CheckOutcome,
    pub detail: String,
    pub remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckOutcome {
    Ok,
    /// Token requests may fail.
    Warning,
    Failed,
    /// Not applicable, or something before it failed.
    Skipped,
}

impl CheckOutcome {
    pub fn as_str(self) -> &'static str {
        match self {
            CheckOutcome::Ok => "ok",
            CheckOutcome::Warning => "warning",
            CheckOutcome::Failed => "failed",
            CheckOutcome::Skipped => "skipped",
        }
    }
}

impl Check {
    pub fn skipped(name: &'static str, detail: impl Into<String>) -> Check {
        Check { name, outcome: CheckOutcome::Skipped, detail: detail.into(), remedy: None }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Check {
        Check { name, outcome: CheckOutcome::Ok, detail: detail.into(), remedy: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { name, outcome: CheckOutcome::Warning, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn failed(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { name, outcome: CheckOutcome::Failed, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn timed_out(name: &'static str, what: &str) -> Check {
        let within = PREFLIGHT_TIMEOUT.as_secs();
        Check::failed(
            name,
            format!("{what} did not finish within the {within} s of a preflight"),
            "check whether the server responds in time to this machine",
        )
    }
}

/// One preflight in progress.
struct Preflight<'a> {
    endpoint: &'a TokenEndpoint,
    deadline: Instant,
    checks: Vec<Check>,
    /// Origins already checked.
    seen: HashSet<String>,
    /// Every server so far was reached.
    reachable: bool,
}

impl TokenEndpoint {
    /// Checks the connection against its authorization server. `callback` is the default redirect URL.
    pub async fn preflight(&self, callback: Option<&str>) -> Vec<Check> {
        let mut run = Preflight {
            endpoint: self,
            deadline: Instant::now() + PREFLIGHT_TIMEOUT,
            checks: Vec::new(),
            seen: HashSet::new(),
            reachable: true,
        };
        let endpoints = &self.connection.endpoints;
        let issuer = endpoints.issuer.as_ref().and_then(|issuer| Url::parse(issuer).ok());
        let configured = [&issuer, &endpoints.token, &endpoints.revocation, &endpoints.device_authorization];
        run.reach(configured.into_iter().flatten().cloned().collect()).await;
        run.metadata().await;
        run.client(callback).await;
        run.checks
    }
}

impl Preflight<'_> {
    /// Checks the servers of these URLs that were not checked before, each once.
    async fn reach(&mut self, mut urls: Vec<Url>) {
        urls.retain(|url| self.seen.insert(url.origin().ascii_serialization()));
        let (endpoint, deadline) = (self.endpoint, self.deadline);
        let reached = join_all(urls.iter().map(async |url| {
            let timed_out = || vec![Check::timed_out("connect", &format!("reaching {}", server::authority(url)))];
            timeout_at(deadline, server::checks(endpoint, url)).await.unwrap_or_else(|_| timed_out())
        }));
        for checks in reached.await {
            let failed = |check: &Check| check.name != server::CLOCK && check.outcome == CheckOutcome::Failed;
            self.reachable &= !checks.iter().any(failed);
            self.checks.extend(checks);
        }
    }

    /// Compares the issuer's metadata, requested anew, with the connection; then checks the servers that it names.
    async fn metadata(&mut self) {
        const NAME: &str = "metadata";
        let Some(discovery) = &self.endpoint.discovery else {
            return self.checks.push(Check::skipped(NAME, "the connection names no issuer"));
        };
        if !self.reachable {
            return self.checks.push(Check::skipped(NAME, "the server was not reached"));
        }
        let metadata: Metadata = match timeout_at(self.deadline, discovery.fetch()).await {
            Err(_) => return self.checks.push(Check::timed_out(NAME, "reading the issuer's metadata")),
            Ok(Err(failure)) => {
                let remedy = "correct `issuer`, or set the endpoints themselves, such as `token_url`";
                return self.checks.push(Check::failed(NAME, described(&failure), remedy));
            }
            Ok(Ok(metadata)) => metadata,
        };
        self.checks.push(announced::endpoints(&self.endpoint.connection, &metadata));
        self.checks.extend(announced::checks(&self.endpoint.connection, &metadata.announced));
        let named = [discovery::TOKEN, discovery::REVOCATION, discovery::DEVICE_AUTHORIZATION];
        self.reach(named.iter().filter_map(|name| metadata.endpoint(name).ok().flatten()).collect()).await;
    }

    async fn client(&mut self, callback: Option<&str>) {
        if !self.reachable {
            return self.checks.push(Check::skipped(client::NAME, "a server was not reached"));
        }
        let check = timeout_at(self.deadline, client::check(self.endpoint, callback)).await;
        self.checks.push(check.unwrap_or_else(|_| Check::timed_out(client::NAME, "the token request")));
    }
}

/// A failure with its detail, which is redacted.
fn described(failure: &Failure) -> String {
    match failure {
        Failure::Retryable { reason, detail: Some(detail), .. } => format!("{reason}: {detail}"),
        Failure::Retryable { reason, .. } => reason.to_string(),
        Failure::Permanent(refusal) => refusal.to_string(),
        Failure::Script { message, .. } => format!("the script failed: {message}"),
    }
}
