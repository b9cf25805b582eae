//! The control plane's listeners: health, metrics and the API.
//!
//! Not here: anything of the data plane; what a reload does (`reload`, which is asked through a channel).
//! Holds: these listeners answer while the proxy drains, so that `/readyz` can say so; a connection has a deadline for
//! its head, and there is a bound on connections; the API shows nothing without a token of a user.
//! Metrics: `keybearer_tokens`, as seen at the moment of the scrape.

mod actions;
mod api;
mod auth;
mod body;
mod consent;
mod cookie;
mod events;
mod host;
mod openapi;
mod problem;
mod record;
mod revoke;
mod secrets;
mod session;
mod token_file;
mod tokens;
mod trial;
mod users;
mod view;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::clock::Clock;
use crate::config::Problem;
use crate::snapshot::Snapshot;
use crate::store::Keyring;
use crate::tasks::Tasks;
use crate::telemetry::audit::{Audit, Person};
use crate::telemetry::events::Events;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use crate::token::TokenCache;

pub use consent::device::Bell as DeviceBell;
pub use events::LISTENERS_MAX;
pub use users::Access;

const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What came of a reload that was asked for.
#[derive(Debug)]
pub enum Reloaded {
    /// In force; the keys named need a restart.
    Applied {
        restart_required: Vec<&'static str>,
    },
    /// The files hold what is in force already.
    Unchanged,
    Refused(Vec<Problem>),
    Failed(String),
}

/// A reload that a person asks for, and where the answer goes.
#[derive(Debug)]
pub struct ReloadRequest {
    pub by: Person,
    pub answer: oneshot::Sender<Reloaded>,
}

/// What these listeners tell about.
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
    /// Seals what browsers keep for us.
    pub seal: Arc<Keyring>,
    pub tasks: Tasks,
    /// Wakes whoever asks about devices.
    pub device_bell: DeviceBell,
    /// Places for those that listen to events.
    pub listeners: Arc<Semaphore>,
    /// `None`: there is no file to reload.
    pub reload: Option<mpsc::Sender<ReloadRequest>>,
}

/// Both ends of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    at: SocketAddr,
    from: SocketAddr,
}

impl Arrived {
    /// The connection that brought `request`.
    fn of(request: &axum::extract::Request) -> Arrived {
        let nowhere = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
        request.extensions().get().copied().unwrap_or(Arrived { at: nowhere, from: nowhere })
    }
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

    /// Has the configuration read again, if there is a file; nobody waits for the outcome, which is in the log.
    fn read_again(&self, asker: &users::Asker) {
        if let Some(reload) = &self.reload {
            let (answer, _) = oneshot::channel();
            // A full queue means that it is about to be read anyway.
            let _ = reload.try_send(ReloadRequest { by: asker.person(), answer });
        }
    }

    /// `/connect` and `/oauth/callback`.
    pub fn public(self) -> Router {
        consent::router(self)
    }

    /// Asks authorization servers about devices, until the program ends.
    pub async fn ask_about_devices(self) {
        consent::device::ask_servers(self).await;
    }

    /// Everything below `/api/v1`.
    pub fn api(self) -> Router {
        Router::new().nest(openapi::BASE, api::router(self))
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
    match admin.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Serves `router` on `listener` until everything stops, over so many connections at once.
pub fn serve(tasks: &Tasks, listener: TcpListener, router: Router, connections_max: usize) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(connections_max));
    let service = TowerToHyperService::new(router);
    let own = tasks.clone();
    tasks.spawn("admin", async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = listener
                .accept()
                .await
                .and_then(|(stream, from)| Ok((Arrived { at: stream.local_addr()?, from }, stream)));
            let Ok((arrived, stream)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let service = service.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(arrived);
                service.call(request)
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            own.spawn("admin connection", async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "admin connection ended");
                }
                drop(place);
            });
        }
    });
    Ok(())
}
