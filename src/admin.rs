//! Listeners of the control plane: health, metrics, the API and the consent pages.
//!
//! Invariants: these listeners keep serving while the proxy drains, so that `/readyz` can report it; the API shows nothing
//! without a user's token.
//! Not here: the data plane; the connections (`listen`); the reload itself (`reload`, requested through a channel).
//! Metrics: `keybearer_tokens`, computed at each scrape.

mod actions;
mod activity;
mod api;
mod auth;
mod body;
mod change;
mod connections;
mod consent;
mod cookie;
mod definitions;
mod events;
mod extract;
mod host;
mod listen;
mod logo;
mod openapi;
mod preflight;
mod problem;
mod record;
mod revoke;
mod secrets;
mod session;
mod sign_in;
mod sign_in_limiter;
mod token_file;
mod tokens;
mod trial;
mod users;
mod view;

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::clock::Clock;
use crate::model::token::default_profile;
use crate::snapshot::Snapshot;
use crate::store::Keyring;
use crate::tasks::Tasks;
use crate::telemetry::activity::Activity;
use crate::telemetry::audit::Audit;
use crate::telemetry::events::Events;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use crate::token::TokenCache;

pub use change::{
    Change, ChangeRequest, Changed, ConfigurationRequest, NotChanged, Precondition, ReloadOutcome, ReloadRequest,
};
pub use consent::device::DeviceNotifier;
pub use events::EVENT_STREAMS_MAX;
pub use listen::{BoundListener, ConnAddrs, TlsInForce, serve};
pub use logo::Logos;
pub use preflight::PREFLIGHTS_MAX;
pub use sign_in_limiter::SignInLimiter;
pub use users::Access;

/// State that the handlers of these listeners share.
#[derive(Clone)]
pub struct Admin {
    pub health: Arc<Health>,
    pub metrics: Metrics,
    pub cache: Arc<TokenCache>,
    pub clock: Clock,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub access: Arc<Access>,
    pub events: Events,
    pub audit: Audit,
    pub activity: Arc<Activity>,
    pub sign_in_limiter: Arc<SignInLimiter>,
    pub logos: Arc<Logos>,
    /// Seals session cookies and confirmations.
    pub seal: Arc<Keyring>,
    pub tasks: Tasks,
    /// Wakes the task that polls for device authorizations.
    pub device_notifier: DeviceNotifier,
    /// Permits for `GET events`.
    pub event_streams: Arc<Semaphore>,
    /// Permits for `POST preflight`.
    pub preflights: Arc<Semaphore>,
    /// `None`: there is no file to reload.
    pub reload: Option<mpsc::Sender<ConfigurationRequest>>,
}

impl Admin {
    /// `/livez`, `/readyz` and `/metrics`.
    pub fn telemetry(self) -> Router {
        Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self)
    }

    /// Requests a reload, if there is a configuration file, without waiting for the outcome, which is logged.
    fn request_reload(&self, user: &users::AuthenticatedUser) {
        if let Some(reload) = &self.reload {
            let (reply, _) = oneshot::channel();
            // A full queue means that the configuration is about to be read anyway.
            let _ = reload.try_send(ConfigurationRequest::Reload(ReloadRequest { by: user.person(), reply }));
        }
    }

    /// `/connect` and `/oauth/callback`.
    pub fn public(self) -> Router {
        consent::router(self)
    }

    /// Polls token endpoints for pending device authorizations, until shutdown.
    pub async fn poll_devices(self) {
        consent::device::poll_all(self).await;
    }

    /// Counts the requests of each minute, until shutdown.
    pub async fn count_activity(self) {
        activity::count(self).await;
    }

    /// Everything below `/api/v1`, and the pages of sign-in.
    pub fn api(self) -> Router {
        sign_in::router(self.clone()).nest(openapi::BASE, api::router(self))
    }
}

async fn readyz(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let status = if admin.health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if status == StatusCode::OK { "ready\n" } else { "not ready\n" };
    let mut text = String::new();
    if query.as_deref() == Some("verbose") {
        for (name, passed) in admin.health.checks() {
            text.push_str(&format!("[{}] {name}\n", if passed { '+' } else { '-' }));
        }
        text.push_str(&format!("configuration {}\n", admin.health.configuration()));
    }
    (status, text + word).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let now = admin.clock.now();
    admin.metrics.tokens.reset();
    for slot in admin.cache.list() {
        let labels = [slot.key.connection.as_str(), slot.key.profile.as_str(), slot.state().name(now)];
        admin.metrics.tokens.with_label_values(&labels).inc();
    }
    for aside in &admin.snapshot.load().set_aside {
        admin
            .metrics
            .tokens
            .with_label_values(&[aside.name.as_str(), default_profile().as_str(), "misconfigured"])
            .inc();
    }
    match admin.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
