//! The connection to Redis: one for all calls, opened on first use and reopened after a failure.
//!
//! Not here: addresses, TLS and credentials (`endpoint`).
//! Invariants: connecting and each reply have a timeout; while Redis is unreachable calls fail at once, except for one
//! call per `RETRY_INTERVAL`, which tries to connect.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, RedisConnectionInfo, RedisError, ScriptInvocation,
    ServerErrorKind,
};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, MutexGuard, broadcast, oneshot};
use tokio::time::{Instant, timeout};

use super::check_record::{CheckRecord, IfExists};
use super::endpoint::{CONNECT_TIMEOUT, Connection, Endpoint, REPLY_TIMEOUT, Stream};
use crate::model::RedisSettings;
use crate::store::{Notification, StoreError};
use crate::sync::lock;
use crate::tasks::Tasks;

/// Retry interval while Redis is unreachable.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

pub struct Link {
    endpoint: ArcSwap<Endpoint>,
    /// Verified on each new connection.
    pub check_record: CheckRecord,
    tasks: Tasks,
    /// The runtime that drives the connections.
    runtime: Handle,
    state: Mutex<State>,
    /// A key that is never set: deleting it is a write that changes nothing.
    probe: String,
    notifications: broadcast::Sender<Notification>,
    reconnected_at: std::sync::Mutex<Option<Instant>>,
}

enum State {
    NeverConnected,
    Open { connection: Connection, id: u64 },
    Unreachable { retry_at: Instant, why: StoreError },
}

impl Link {
    /// Connections are driven on the current runtime.
    pub fn new(
        settings: RedisSettings,
        tasks: Tasks,
        probe: String,
        check_record: CheckRecord,
        notifications: broadcast::Sender<Notification>,
    ) -> Link {
        let endpoint = ArcSwap::from_pointee(Endpoint::new(settings));
        let (state, reconnected_at) = (Mutex::new(State::NeverConnected), std::sync::Mutex::default());
        Link { endpoint, check_record, tasks, runtime: Handle::current(), state, probe, notifications, reconnected_at }
    }

    /// Applies from the next connection on.
    pub fn reconfigure(&self, settings: RedisSettings) {
        self.endpoint.store(Arc::new(Endpoint::new(settings)));
    }

    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(&self.runtime, name, future);
    }

    /// Opens a separate stream to Redis. Returns it with the settings to send first.
    pub async fn dial(&self) -> Result<(RedisConnectionInfo, Box<dyn Stream>), StoreError> {
        let endpoint = self.endpoint.load_full();
        let late = || StoreError::Unavailable("Redis: connecting timed out".to_owned());
        let stream = timeout(CONNECT_TIMEOUT, endpoint.dial()).await.map_err(|_| late())??;
        Ok((endpoint.info(), stream))
    }

    pub async fn run<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        let (mut connection, id) = self.connection().await?;
        let reply = call.invoke_async(&mut connection).await;
        self.check_reply(id, reply).await
    }

    pub async fn query<T: FromRedisValue>(&self, call: &Cmd) -> Result<T, StoreError> {
        let (mut connection, id) = self.connection().await?;
        let reply = call.query_async(&mut connection).await;
        self.check_reply(id, reply).await
    }

    /// Drops the connection `id` if the reply shows that it is broken.
    async fn check_reply<T>(&self, id: u64, reply: Result<T, RedisError>) -> Result<T, StoreError> {
        let error = match reply {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let why = self.unavailable(&error);
        if needs_reconnect(&error) {
            let mut state = self.state.lock().await;
            if matches!(&*state, State::Open { id: open, .. } if *open == id) {
                self.mark_unreachable(&mut state, &why);
            }
        }
        Err(why)
    }

    async fn connection(&self) -> Result<(Connection, u64), StoreError> {
        let mut state = self.state.lock().await;
        let had_outage = match &*state {
            State::Open { connection, id } => return Ok((connection.clone(), *id)),
            State::Unreachable { retry_at, why } if Instant::now() < *retry_at => return Err(why.clone()),
            State::Unreachable { .. } => true,
            State::NeverConnected => false,
        };
        match self.connect().await {
            Ok(connection) => {
                if had_outage {
                    tracing::info!("store reachable again");
                    *lock(&self.reconnected_at) = Some(Instant::now());
                    // There may be no receiver.
                    let _ = self.notifications.send(Notification::Missed);
                }
                let id = fastrand::u64(..);
                *state = State::Open { connection: connection.clone(), id };
                Ok((connection, id))
            }
            Err(why) => {
                self.mark_unreachable(&mut state, &why);
                Err(why)
            }
        }
    }

    /// Connects unless there is a connection.
    pub async fn check_reachable(&self) -> Result<(), StoreError> {
        self.connection().await.map(drop)
    }

    /// End of the last outage.
    pub fn reconnected_at(&self) -> Option<Instant> {
        *lock(&self.reconnected_at)
    }

    /// Tries to reconnect during an outage.
    pub async fn reconnect(&self) {
        if matches!(&*self.state.lock().await, State::Unreachable { .. }) {
            // The outcome is kept in the state.
            let _ = self.connection().await;
        }
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        let connecting = async {
            let connection = self.open().await?;
            let mut probed = connection.clone();
            // Connecting succeeds even without a required password, and to a read-only replica; a write does not.
            let reply = redis::cmd("DEL").arg(&self.probe).query_async::<()>(&mut probed).await;
            reply.map_err(|error| self.unavailable(&error))?;
            let found = self.check_record.put(IfExists::Keep)?.invoke_async(&mut probed).await;
            self.check_record.verify(found.map_err(|error| self.unavailable(&error))?)?;
            Ok(connection)
        };
        let late = || StoreError::Unavailable("Redis: connecting timed out".to_owned());
        timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| late())?
    }

    async fn open(&self) -> Result<Connection, StoreError> {
        if let Some(client) = self.endpoint.load().cluster()? {
            let (sender, opened) = oneshot::channel();
            // The runtime that opens a connection also drives it.
            self.spawn("redis", async move {
                // The receiver is gone once connecting has timed out.
                let _ = sender.send(client.get_async_connection().await);
            });
            let gone = |_| StoreError::Unavailable("the program is shutting down".to_owned());
            return opened.await.map_err(gone)?.map(Connection::Cluster).map_err(|error| self.unavailable(&error));
        }
        let (info, stream) = self.dial().await?;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(REPLY_TIMEOUT));
        let opened = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (connection, driver) = opened.map_err(|error| self.unavailable(&error))?;
        self.spawn("redis", driver);
        Ok(Connection::Server(connection))
    }

    fn mark_unreachable(&self, state: &mut MutexGuard<'_, State>, why: &StoreError) {
        let known = matches!(&**state, State::Unreachable { why: known, .. } if known == why);
        if !known {
            tracing::error!(error = %why, "store unreachable; serving tokens from memory and retrying");
        }
        **state = State::Unreachable { retry_at: Instant::now() + RETRY_INTERVAL, why: why.clone() };
    }

    /// The error, with its remedy.
    pub fn unavailable(&self, error: &RedisError) -> StoreError {
        StoreError::Unavailable(format!("Redis: {}", self.endpoint.load().describe(error)))
    }
}

/// A command that Redis refuses leaves the connection usable.
fn needs_reconnect(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::Moved
                | ServerErrorKind::ClusterDown
        ),
        ErrorKind::UnexpectedReturnType | ErrorKind::Client => false,
        _ => !matches!(error.code(), Some("WRONGTYPE" | "OOM" | "BUSY")),
    }
}
