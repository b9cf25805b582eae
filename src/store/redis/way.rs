//! How Redis is reached: one server, a primary that sentinels know, or a cluster; with TLS and credentials.
//!
//! Holds: errors say what to do, and no secret. Sentinels are asked for the primary at each connection. Of a cluster every
//! call that does not reach its node at once fails, so that a failover is never missed; then the connection is made anew.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{
    Cmd, ErrorKind, Pipeline, RedisConnectionInfo, RedisError, RedisFuture, ServerErrorKind, TlsCertificates, Value,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::model::secret::Secret;
use crate::model::{RedisAt, RedisKind, RedisSettings, Roots};
use crate::store::StoreError;
use crate::tls::{Trust, to_pem};

/// For a connection, with TLS and authentication.
pub const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// For one answer.
pub const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Whatever carries it.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

/// How Redis is reached.
pub struct Way {
    settings: RedisSettings,
    /// `None`: without TLS.
    tls: Option<Arc<ClientConfig>>,
}

impl Way {
    pub fn new(settings: RedisSettings) -> Way {
        let tls = settings.tls.then(|| {
            let mut config = (*Trust::new(&Roots::from([])).client_config(settings.trust.as_ref(), None)).clone();
            config.alpn_protocols.clear();
            Arc::new(config)
        });
        Way { settings, tls }
    }

    pub fn info(&self) -> RedisConnectionInfo {
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

    /// Where Redis may be now.
    async fn places(&self) -> Result<Vec<RedisAt>, StoreError> {
        let RedisKind::Sentinels { primary } = &self.settings.kind else {
            // Of the nodes of a cluster one after the other, should the first not answer.
            let mut places = self.settings.servers.clone();
            fastrand::shuffle(&mut places);
            return Ok(places);
        };
        let mut why = String::new();
        for sentinel in &self.settings.servers {
            match timeout(ANSWER_WAIT, self.ask_sentinel(sentinel, primary)).await {
                Ok(Ok(place)) => return Ok(vec![place]),
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

    /// A stream to the server; of a cluster, to any node.
    pub async fn dial(&self) -> Result<Box<dyn Carrier>, StoreError> {
        let mut why = StoreError::Unavailable("no server is configured".to_owned());
        for place in self.places().await? {
            match self.reach(&place).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    why = StoreError::Unavailable(format!("Redis at {place} cannot be reached: {error}"));
                }
            }
        }
        Err(why)
    }

    /// What connects to all nodes, if it is a cluster.
    pub fn cluster(&self) -> Result<Option<ClusterClient>, StoreError> {
        if self.settings.kind != RedisKind::Cluster {
            return Ok(None);
        }
        let scheme = if self.settings.tls { "rediss" } else { "redis" };
        let nodes = self.settings.servers.iter().map(|place| format!("{scheme}://{place}"));
        let mut builder = ClusterClient::builder(nodes).retries(0);
        builder = builder.connection_timeout(CONNECT_WAIT).response_timeout(ANSWER_WAIT);
        if let Some(name) = &self.settings.username {
            builder = builder.username(name);
        }
        if let Some(password) = self.settings.password.as_ref().map(Secret::expose) {
            builder = builder.password(password);
        }
        if let Some(roots) = self.settings.trust.as_ref().filter(|_| self.settings.tls) {
            builder =
                builder.certs(TlsCertificates { client_tls: None, root_cert: Some(to_pem(roots.iter()).into_bytes()) });
        }
        builder.build().map(Some).map_err(|error| StoreError::Unavailable(format!("Redis: {error}")))
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
    pub fn told(&self, error: &RedisError) -> String {
        let (prefix, text) = (&self.settings.key_prefix, error.to_string());
        let credentials = || "; see `username` and `password` in store.redis".to_owned();
        let hint = match error.kind() {
            ErrorKind::AuthenticationFailed => credentials(),
            ErrorKind::Server(ServerErrorKind::NoPerm) => {
                format!("; let the user have `~{prefix}* &{prefix}* +@all -@dangerous`")
            }
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                "; it is a replica: give the address of the primary, or those of the sentinels".to_owned()
            }
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::ClusterDown | ServerErrorKind::CrossSlot) => {
                "; a cluster needs `cluster: true` in store.redis, and all its slots served".to_owned()
            }
            _ if error.is_timeout() => "; it does not answer in time".to_owned(),
            _ if matches!(error.code(), Some("NOAUTH" | "WRONGPASS")) => credentials(),
            // Why a cluster could not be reached stands in the text alone.
            _ if text.contains("AuthenticationFailed") || text.contains("NOAUTH") => credentials(),
            _ => String::new(),
        };
        format!("{text}{hint}")
    }
}

/// To one server, or to all nodes of a cluster.
#[derive(Clone)]
pub enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Connection::Server(server) => server.req_packed_command(command),
            Connection::Cluster(cluster) => cluster.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Connection::Server(server) => server.req_packed_commands(pipeline, offset, count),
            Connection::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Connection::Server(server) => server.get_db(),
            Connection::Cluster(cluster) => cluster.get_db(),
        }
    }
}
