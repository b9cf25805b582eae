//! The connection to Redis: one for all requests, made when it is needed and made anew when it breaks.
//!
//! Holds: connecting and answering have deadlines; while Redis is out of reach nobody waits for it, and it is tried again
//! after a moment; errors say what to do, and no secret. Sentinels are asked for the primary at each connection.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, RedisConnectionInfo, RedisError, ScriptInvocation,
    ServerErrorKind,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, MutexGuard, broadcast};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::mark::Mark;
use crate::model::secret::Secret;
use crate::model::{RedisAt, RedisSettings, Roots};
use crate::store::{News, StoreError};
use crate::tasks::Tasks;
use crate::tls::Trust;

/// For a connection, with TLS and authentication.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// For one answer.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// After a failure Redis is left alone for so long.
const AGAIN: Duration = Duration::from_millis(500);

/// Whatever carries it.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

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

/// How Redis is reached.
struct Way {
    settings: RedisSettings,
    /// `None`: without TLS.
    tls: Option<Arc<ClientConfig>>,
}

enum State {
    Never,
    Open { connection: MultiplexedConnection, number: u64 },
    Out { again: Instant, why: StoreError },
}

impl Way {
    fn new(settings: RedisSettings) -> Way {
        let tls = settings.tls.then(|| {
            let mut config = (*Trust::new(&Roots::from([])).client_config(settings.trust.as_ref(), None)).clone();
            config.alpn_protocols.clear();
            Arc::new(config)
        });
        Way { settings, tls }
    }

    fn info(&self) -> RedisConnectionInfo {
        let info = RedisConnectionInfo::default().set_db(self.settings.database);
        let info = match &self.settings.username {
            Some(name) => info.set_username(name),
            None => info,
        };
        match self.settings.password.as_ref().map(Secret::expose) {
            Some(password) => info.set_password(password),
            None => info,
        }
    }

    /// Where Redis is now.
    async fn place(&self) -> Result<RedisAt, StoreError> {
        let Some(primary) = &self.settings.sentinel_primary else {
            let first = self.settings.servers.first().cloned();
            return first.ok_or_else(|| StoreError::Unavailable("no server is configured".to_owned()));
        };
        let mut why = String::new();
        for sentinel in &self.settings.servers {
            match timeout(ANSWER_WAIT, self.ask_sentinel(sentinel, primary)).await {
                Ok(Ok(place)) => return Ok(place),
                Ok(Err(error)) => why = format!("{sentinel}: {error}"),
                Err(_) => why = format!("{sentinel}: no answer in time"),
            }
        }
        Err(StoreError::Unavailable(format!("no sentinel knows where `{primary}` is; the last said: {why}")))
    }

    /// Some sentinels want no credentials, and refuse those that are sent all the same.
    async fn ask_sentinel(&self, sentinel: &RedisAt, primary: &str) -> Result<RedisAt, String> {
        let stream = self.reach(sentinel).await.map_err(|error| error.to_string())?;
        let nobody = RedisConnectionInfo::default();
        let opened = MultiplexedConnection::new(&nobody, stream).await;
        let (mut connection, driver) = opened.map_err(|error| self.told(&error))?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(primary);
        let asking = async {
            let password = self.settings.password.as_ref().map(Secret::expose);
            match (question.query_async::<Option<(String, u16)>>(&mut connection).await, password) {
                (Err(error), Some(password)) if error.code() == Some("NOAUTH") => {
                    let name = self.settings.username.as_deref();
                    redis::cmd("AUTH").arg(name).arg(password).query_async::<()>(&mut connection).await?;
                    question.query_async(&mut connection).await
                }
                (answer, _) => answer,
            }
        };
        let answer = tokio::select! {
            answer = asking => answer.map_err(|error| self.told(&error))?,
            () = driver => return Err("closed the connection".to_owned()),
        };
        answer.map(|(host, port)| RedisAt::Tcp { host, port }).ok_or_else(|| "it knows no such primary".to_owned())
    }

    async fn dial(&self) -> Result<Box<dyn Carrier>, StoreError> {
        let place = self.place().await?;
        let failed = |error: io::Error| StoreError::Unavailable(format!("Redis at {place} cannot be reached: {error}"));
        self.reach(&place).await.map_err(failed)
    }

    /// A server or a sentinel, by TLS where that is configured.
    async fn reach(&self, place: &RedisAt) -> io::Result<Box<dyn Carrier>> {
        let host = match place {
            RedisAt::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            RedisAt::Tcp { host, port } => (host.as_str(), *port),
        };
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(host.0.to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(TlsConnector::from(tls.clone()).connect(name, stream).await?))
    }

    /// What was said, and the way out.
    fn told(&self, error: &RedisError) -> String {
        let prefix = &self.settings.key_prefix;
        let hint = match error.kind() {
            ErrorKind::AuthenticationFailed => "; see `username` and `password` in store.redis".to_owned(),
            ErrorKind::Server(ServerErrorKind::NoPerm) => {
                format!("; let the user have `~{prefix}* &{prefix}* +@all -@dangerous`")
            }
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                "; it is a replica: give the address of the primary, or those of the sentinels".to_owned()
            }
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::ClusterDown | ServerErrorKind::CrossSlot) => {
                "; it is a node of a cluster, which store.redis does not take".to_owned()
            }
            _ if error.is_timeout() => "; it does not answer in time".to_owned(),
            _ => match error.code() {
                Some("NOAUTH" | "WRONGPASS") => "; see `username` and `password` in store.redis".to_owned(),
                _ => String::new(),
            },
        };
        format!("{error}{hint}")
    }
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

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), StoreError> {
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
                    *self.shaken.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
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
        *self.shaken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether Redis is in reach again, if it was out of reach.
    pub async fn mend(&self) {
        if matches!(&*self.state.lock().await, State::Out { .. }) {
            // Whoever is waiting for it is told.
            let _ = self.connection().await;
        }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, StoreError> {
        let connecting = async {
            let (info, stream) = self.dial().await?;
            let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_WAIT));
            let opened = MultiplexedConnection::new_with_config(&info, stream, config).await;
            let (connection, driver) = opened.map_err(|error| self.unavailable(&error))?;
            self.spawn("redis", driver);
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
