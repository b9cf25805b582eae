//! Composition root: turns a validated configuration into listeners, slots, workers and the admin API.
//!
//! `App::build` binds every listener, so that actual addresses are known before anything runs; `App::serve` runs until
//! shutdown is requested, then drains.

use std::collections::BTreeSet;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::admin::{self, Access, Admin, DeviceNotifier, Logos, TlsInForce};
use crate::clock::Clock;
use crate::config::{self, Loaded};
use crate::model::{ListenAt, Listener, Name};
use crate::proxy::worker::ProxyState;
use crate::proxy::{self, BoundListener, Descriptors, Via};
use crate::reload::{self, Parts, Reloader, Wiring, WiringError};
use crate::snapshot::Snapshot;
use crate::store::{self, Definitions, OpenError, Store, StoreError, StoreOpener};
use crate::tasks::{Phase, Tasks};
use crate::telemetry::Logging;
use crate::telemetry::audit::Audit;
use crate::telemetry::events::Events;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::system;
use crate::token::TokenCache;
use crate::token::slot::TokenSlot;

/// Why Keybearer could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("listener {name} cannot bind {address}: {source}; free the port, or set another address under listeners")]
    Bind { name: String, address: String, source: io::Error },
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Wiring(#[from] WiringError),
    #[error("setting up metrics failed: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("creating a thread or socket failed: {0}")]
    System(#[from] io::Error),
}

/// Minimum grace period of token requests at shutdown: the response may carry a refresh token that is stored nowhere
/// else.
const TOKEN_REQUEST_GRACE_PERIOD: Duration = Duration::from_secs(2);
/// Maximum number of queued reload requests.
const RELOADS_WAITING_MAX: usize = 8;
/// Retry interval while the store is unreachable at startup.
const STORE_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Timeout for flushing traces at shutdown.
const TRACES_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout for the workers to drop the remaining requests at shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout for flushing the audit at shutdown.
const AUDIT_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The configuration file to reload, and the logging that a reload changes.
pub struct Source {
    pub path: PathBuf,
    pub logging: Logging,
}

/// All listeners are bound, nothing runs yet.
pub struct App {
    loaded: Loaded,
    opener: Arc<StoreOpener>,
    source: Option<Source>,
    tasks: Tasks,
    proxy: Vec<BoundListener>,
    admin: ControlSocket,
    telemetry: Option<ControlSocket>,
    public: Option<ControlSocket>,
    /// Name and actual address of each TCP listener.
    pub listeners: Vec<Listener>,
    /// Name and address of every listener, as logged.
    opened: Vec<(Name, String)>,
}

/// The socket of a listener of the control plane.
struct ControlSocket {
    name: Name,
    secure: bool,
    socket: TcpListener,
}

impl ControlSocket {
    fn bound(self, snapshot: &Arc<ArcSwap<Snapshot>>) -> admin::BoundListener {
        let tls = self.secure.then(|| TlsInForce { listener: self.name, snapshot: snapshot.clone() });
        admin::BoundListener { socket: self.socket, tls }
    }
}

impl App {
    /// `source` is the file that `loaded` was read from; `None` disables reloads.
    pub fn build(
        loaded: Loaded,
        opener: Arc<StoreOpener>,
        source: Option<Source>,
        tasks: Tasks,
    ) -> Result<App, AppError> {
        let model = &loaded.model;
        let (mut listeners, mut opened, mut proxy) = (Vec::new(), Vec::new(), Vec::new());
        for listener in &model.listeners.proxy {
            let failed =
                |source| AppError::Bind { name: listener.name.to_string(), address: listener.at.to_string(), source };
            let socket = BoundListener::bind(listener).map_err(failed)?;
            let at = socket.local_address()?;
            if let ListenAt::Address(address) = at {
                let (name, secure) = (listener.name.clone(), listener.secure);
                listeners.push(Listener { name, address, secure });
            }
            opened.push((listener.name.clone(), at.to_string()));
            proxy.push(socket);
        }
        let mut bind = |listener: &Listener| {
            let failed = |source| AppError::Bind {
                name: listener.name.to_string(),
                address: listener.address.to_string(),
                source,
            };
            let socket = TcpListener::bind(listener.address).map_err(failed)?;
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            opened.push((listener.name.clone(), address.to_string()));
            listeners.push(Listener { address, ..listener.clone() });
            Ok::<_, AppError>(ControlSocket { name: listener.name.clone(), secure: listener.secure, socket })
        };
        let admin = bind(&model.listeners.admin)?;
        let telemetry = model.listeners.telemetry.as_ref().map(&mut bind).transpose()?;
        let public = model.listeners.public.as_ref().map(&mut bind).transpose()?;
        Ok(App { loaded, opener, source, tasks, proxy, admin, telemetry, public, listeners, opened })
    }

    /// Runs on the current (control) runtime until `shutdown` completes, then drains and stops.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), AppError> {
        let started = self.start().await?;
        shutdown.await;
        started.drain().await;
        Ok(())
    }

    async fn start(self) -> Result<Running, AppError> {
        let (mut loaded, tasks) = (self.loaded, self.tasks);
        system::disable_core_files();
        let files = system::raise_open_file_limit(loaded.model.limits.downstream_connections);
        let (clock, metrics, health) = (Clock::system(), Metrics::new()?, Arc::new(Health::default()));
        if let Some(source) = &self.source {
            metrics.watch_log(source.logging.dropped_lines())?;
        }
        let (events, audit) = (Events::default(), Audit::default());
        let store = store::open(&loaded.model, &self.opener, &metrics)?;
        let seal = Arc::new(store::sealer(&loaded.model)?);
        let mut definitions = Definitions::default();
        if let Some(source) = &self.source {
            match read_definitions(&mut definitions, &*store, source, &self.opener, &tasks).await {
                Ok(with_definitions) => {
                    loaded = with_definitions.unwrap_or(loaded);
                    health.set_definitions_read();
                }
                // The reloader reads them as soon as the store is reachable.
                Err(error) => tracing::warn!(%error, "definitions in the store not read; not ready until they are"),
            }
        } else {
            health.set_definitions_read();
        }
        // Logged after the store has opened: without it, no request is served.
        for (name, at) in &self.opened {
            tracing::info!(listener = %name, address = %at, "listening");
        }
        let (own_clock, own_tasks, own_metrics) = (clock.clone(), tasks.clone(), metrics.clone());
        let cache = TokenCache::new(store, own_clock, own_tasks, own_metrics, events.clone(), audit.clone());
        let (cache, access) = (Arc::new(cache), Arc::new(Access::new(&loaded.model)));
        let logos = Arc::<Logos>::default();
        let parts = Parts {
            clock: clock.clone(),
            tasks: tasks.clone(),
            metrics: metrics.clone(),
            health: health.clone(),
            cache: cache.clone(),
            access: access.clone(),
            logos: logos.clone(),
            events: events.clone(),
            audit: audit.clone(),
            seal: seal.clone(),
            listeners: self.listeners,
        };
        let (wiring, slots) = Wiring::start(parts, &loaded)?;
        wiring.in_force(&loaded.fingerprint, false);
        let (reload, reloads) = mpsc::channel(RELOADS_WAITING_MAX);
        let admin = Admin {
            health: health.clone(),
            metrics: metrics.clone(),
            cache: cache.clone(),
            clock: clock.clone(),
            snapshot: wiring.snapshot.clone(),
            access,
            events,
            audit: audit.clone(),
            activity: Arc::default(),
            sign_in_limiter: Arc::default(),
            logos,
            event_streams: Arc::new(Semaphore::new(admin::EVENT_STREAMS_MAX)),
            preflights: Arc::new(Semaphore::new(admin::PREFLIGHTS_MAX)),
            seal,
            tasks: tasks.clone(),
            device_notifier: DeviceNotifier::default(),
            reload: self.source.is_some().then_some(reload),
        };
        let api = admin.clone().api();
        tasks.spawn("store notifications", cache.clone().follow_store_changes());
        tasks.spawn("activity", admin.clone().count_activity());
        tasks.spawn("devices", admin.clone().poll_devices());
        let mut inside = api;
        let connections_max =
            files.admin_max(1 + usize::from(self.telemetry.is_some()) + usize::from(self.public.is_some()));
        match self.telemetry {
            Some(telemetry) => {
                admin::serve(&tasks, telemetry.bound(&wiring.snapshot), admin.clone().telemetry(), connections_max)?
            }
            None => inside = inside.merge(admin.clone().telemetry()),
        }
        match self.public {
            Some(public) => admin::serve(&tasks, public.bound(&wiring.snapshot), admin.public(), connections_max)?,
            None => inside = inside.merge(admin.public()),
        }
        admin::serve(&tasks, self.admin.bound(&wiring.snapshot), inside, connections_max)?;
        let name = format!("keybearer-{:08x}", fastrand::u32(..));
        let shared = Arc::new(ProxyState {
            snapshot: wiring.snapshot.clone(),
            clock,
            tasks: tasks.clone(),
            metrics,
            audit,
            via: Via::new(&name).map_err(|_| io::Error::other("no name for Via"))?,
            gates: Arc::default(),
            descriptors: Arc::new(Descriptors::new(files, loaded.model.workers)),
            connection_limiter: Arc::default(),
            tunnels: Arc::default(),
            head_budget: Arc::default(),
        });
        let threads = proxy::start(shared.clone(), loaded.model.workers, self.proxy)?;
        // Before readiness is reported, so that an early SIGHUP is handled.
        if let Some(Source { path, logging }) = self.source {
            tasks.spawn(
                "reload",
                Reloader::new((path, self.opener), (&loaded, definitions), wiring, logging, reloads)?.run(),
            );
        }
        tasks.spawn("readiness", settle(slots, loaded.model.readiness_wait, cache.clone(), health.clone()));
        Ok(Running { tasks, health, cache, threads, shared })
    }
}

/// Reads the definitions in the store, and loads the configuration again if there are any.
async fn read_definitions(
    definitions: &mut Definitions,
    store: &dyn Store,
    source: &Source,
    opener: &Arc<StoreOpener>,
    tasks: &Tasks,
) -> Result<Option<Loaded>, StoreError> {
    definitions.update(store).await?;
    if definitions.catalog.entries.is_empty() {
        return Ok(None);
    }
    let stored = reload::stored_definitions(definitions, &BTreeSet::new());
    let (path, vault) = (source.path.clone(), opener.clone());
    let loaded = tasks.blocking(move || config::load(&path, vault, &stored)).await;
    // If the files have changed and are no longer valid, the reloader reports it.
    Ok(loaded.and_then(Result::ok))
}

/// Reports readiness once the slots have made their first attempt, or `wait` is over, and the store is reachable.
async fn settle(slots: Vec<Arc<TokenSlot>>, wait: Duration, cache: Arc<TokenCache>, health: Arc<Health>) {
    let all = async {
        for slot in &slots {
            slot.wait_for_attempts(1).await;
        }
    };
    let _ = tokio::time::timeout(wait, all).await;
    health.set_tokens_settled();
    if let Some(shared) = cache.store().shared() {
        while let Err(error) = shared.check_reachable().await {
            tracing::warn!(%error, "not ready: store unreachable");
            tokio::time::sleep(STORE_RETRY_INTERVAL).await;
        }
    }
    health.set_store_reached();
    let without_token = slots.iter().filter(|slot| slot.state().token.is_none()).count();
    tracing::info!(connections = slots.len(), without_token, "ready");
    system::ready();
}

async fn all_finished(threads: &[JoinHandle<()>]) {
    while threads.iter().any(|thread| !thread.is_finished()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Running {
    tasks: Tasks,
    health: Arc<Health>,
    cache: Arc<TokenCache>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<ProxyState>,
}

impl Running {
    /// Graceful shutdown: accepts nothing new; requests in flight may finish within `timeouts.drain`.
    async fn drain(self) {
        tracing::info!("draining");
        system::stopping();
        self.health.set_draining();
        self.tasks.enter(Phase::Drain);
        let deadline = Instant::now() + self.shared.snapshot.load().timeouts.drain;
        if tokio::time::timeout_at(deadline, all_finished(&self.threads)).await.is_err() {
            tracing::warn!("drain timeout; dropping requests in flight");
        }
        self.cache.drain(deadline.saturating_duration_since(Instant::now()).max(TOKEN_REQUEST_GRACE_PERIOD)).await;
        let tracer = self.shared.snapshot.load().tracer.clone();
        tracer.flush(TRACES_FLUSH_TIMEOUT).await;
        self.tasks.enter(Phase::Stop);
        // Dropped requests still write their audit records.
        let _ = tokio::time::timeout(STOP_TIMEOUT, all_finished(&self.threads)).await;
        let writers = self.shared.audit.close();
        if tokio::time::timeout(AUDIT_FLUSH_TIMEOUT, all_finished(&writers)).await.is_err() {
            tracing::error!("audit flush timed out; records may be lost");
        }
        tracing::info!("stopped");
    }
}
