//! The connection to Redis: one for all requests, made when it is needed and made anew when it breaks.
//!
//! Not here: how it is reached (`way`).
//! Holds: connecting and answering have deadlines; while Redis is out of reach nobody waits for it, and it is tried again
//! after a moment.

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

use super::mark::Mark;
use super::way::{ANSWER_WAIT, CONNECT_WAIT, Carrier, Connection, Way};
use crate::model::RedisSettings;
use crate::store::{News, StoreError};
use crate::sync::lock;
use crate::tasks::Tasks;

/// After a failure Redis is left alone for so long.
const AGAIN: Duration = Duration::from_millis(500);

pub struct Link {
    way: ArcSwap<Way>,
    /// Looked at on each connection.
    pub mark: Mark,
    tasks: Tasks,
    /// Where connections are driven.
    runtime: Handle,
    state: Mutex<State>,
    /// A key that nobody uses.
    probe: String,
    news: broadcast::Sender<News>,
    /// When it was last found again.
    shaken: std::sync::Mutex<Option<Instant>>,
}

enum State {
    Never,
    Open { connection: Connection, number: u64 },
    Out { again: Instant, why: StoreError },
}

impl Link {
    /// Connections are driven on the current runtime.
    pub fn new(
        settings: RedisSettings,
        tasks: Tasks,
        (probe, mark): (String, Mark),
        news: broadcast::Sender<News>,
    ) -> Link {
        let way = ArcSwap::from_pointee(Way::new(settings));
        let (state, shaken) = (Mutex::new(State::Never), std::sync::Mutex::default());
        Link { way, mark, tasks, runtime: Handle::current(), state, probe, news, shaken }
    }

    /// From the next connection on.
    pub fn renew(&self, settings: RedisSettings) {
        self.way.store(Arc::new(Way::new(settings)));
    }

    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(&self.runtime, name, future);
    }

    /// A stream to Redis that nobody else uses, and what is said on it first.
    pub async fn dial(&self) -> Result<(RedisConnectionInfo, Box<dyn Carrier>), StoreError> {
        let way = self.way.load_full();
        let late = || StoreError::Unavailable("Redis does not let us connect in time".to_owned());
        let stream = timeout(CONNECT_WAIT, way.dial()).await.map_err(|_| late())??;
        Ok((way.info(), stream))
    }

    pub async fn run<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        let (mut connection, number) = self.connection().await?;
        let answer = call.invoke_async(&mut connection).await;
        self.answered(number, answer).await
    }

    pub async fn query<T: FromRedisValue>(&self, call: &Cmd) -> Result<T, StoreError> {
        let (mut connection, number) = self.connection().await?;
        let answer = call.query_async(&mut connection).await;
        self.answered(number, answer).await
    }

    async fn answered<T>(&self, number: u64, answer: Result<T, RedisError>) -> Result<T, StoreError> {
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let why = self.unavailable(&error);
        if breaks(&error) {
            let mut state = self.state.lock().await;
            if matches!(&*state, State::Open { number: open, .. } if *open == number) {
                self.lost(&mut state, &why);
            }
        }
        Err(why)
    }

    async fn connection(&self) -> Result<(Connection, u64), StoreError> {
        let mut state = self.state.lock().await;
        let last = match &*state {
            State::Open { connection, number } => return Ok((connection.clone(), *number)),
            State::Out { again, why } if Instant::now() < *again => return Err(why.clone()),
            State::Out { .. } => true,
            State::Never => false,
        };
        match self.connect().await {
            Ok(connection) => {
                if last {
                    tracing::info!("the store is in reach again");
                    *lock(&self.shaken) = Some(Instant::now());
                    // Nobody may be listening.
                    let _ = self.news.send(News::Missed);
                }
                let number = fastrand::u64(..);
                *state = State::Open { connection: connection.clone(), number };
                Ok((connection, number))
            }
            Err(why) => {
                self.lost(&mut state, &why);
                Err(why)
            }
        }
    }

    /// Is there a connection, or can one be made?
    pub async fn reach(&self) -> Result<(), StoreError> {
        self.connection().await.map(drop)
    }

    pub fn shaken(&self) -> Option<Instant> {
        *lock(&self.shaken)
    }

    /// Looks whether Redis is in reach again, if it was out of reach.
    pub async fn mend(&self) {
        if matches!(&*self.state.lock().await, State::Out { .. }) {
            // Whoever is waiting for it is told.
            let _ = self.connection().await;
        }
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        let connecting = async {
            let connection = self.open().await?;
            let mut asked = connection.clone();
            // Connecting succeeds without a password where one is needed, and to a replica: the smallest write does not.
            let answer = redis::cmd("DEL").arg(&self.probe).query_async::<()>(&mut asked).await;
            answer.map_err(|error| self.unavailable(&error))?;
            let found = self.mark.put(false)?.invoke_async(&mut asked).await;
            self.mark.verify(found.map_err(|error| self.unavailable(&error))?)?;
            Ok(connection)
        };
        let late = || StoreError::Unavailable("Redis does not let us connect in time".to_owned());
        timeout(CONNECT_WAIT, connecting).await.map_err(|_| late())?
    }

    async fn open(&self) -> Result<Connection, StoreError> {
        if let Some(client) = self.way.load().cluster()? {
            let (tell, told) = oneshot::channel();
            // Driven where it is made.
            self.spawn("redis", async move {
                // Nobody waits any more when it has taken too long.
                let _ = tell.send(client.get_async_connection().await);
            });
            let gone = |_| StoreError::Unavailable("the program ends".to_owned());
            return told.await.map_err(gone)?.map(Connection::Cluster).map_err(|error| self.unavailable(&error));
        }
        let (info, stream) = self.dial().await?;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_WAIT));
        let opened = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (connection, driver) = opened.map_err(|error| self.unavailable(&error))?;
        self.spawn("redis", driver);
        Ok(Connection::Server(connection))
    }

    fn lost(&self, state: &mut MutexGuard<'_, State>, why: &StoreError) {
        let known = matches!(&**state, State::Out { why: known, .. } if known == why);
        if !known {
            tracing::error!(error = %why, "the store is out of reach; usable tokens are served, and it is tried again");
        }
        **state = State::Out { again: Instant::now() + AGAIN, why: why.clone() };
    }

    /// What went wrong, and the way out.
    pub fn unavailable(&self, error: &RedisError) -> StoreError {
        StoreError::Unavailable(format!("Redis: {}", self.way.load().told(error)))
    }
}

/// Is another connection needed? A refused command alone is no reason.
fn breaks(error: &RedisError) -> bool {
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
