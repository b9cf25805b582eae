//! Address, TLS and credentials of Redis: one server, a primary behind sentinels, or a cluster.
//!
//! Not here: the connection in use, and when to reconnect (`link`).
//! Invariants: an error names the remedy and no secret. Each new connection queries the sentinels for the primary. A
//! cluster call is never retried on another node, which would hide a failover: it fails, and the next call reconnects.

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

/// Timeout of connecting, including TLS and authentication.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of one reply.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// TCP, a Unix socket, or TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub struct Endpoint {
    settings: RedisSettings,
    /// `None`: without TLS.
    tls: Option<Arc<ClientConfig>>,
}

impl Endpoint {
    pub fn new(settings: RedisSettings) -> Endpoint {
        let tls = settings.tls.then(|| {
            let mut config = (*Trust::new(&Roots::from([])).client_config(settings.trust.as_ref(), None)).clone();
            config.alpn_protocols.clear();
            Arc::new(config)
        });
        Endpoint { settings, tls }
    }

    /// Database and credentials, which are sent first on a new connection.
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

    /// Addresses to try, in order.
    async fn addresses(&self) -> Result<Vec<RedisAt>, StoreError> {
        let RedisKind::Sentinels { primary } = &self.settings.kind else {
            // Any node of a cluster will do.
            let mut addresses = self.settings.servers.clone();
            fastrand::shuffle(&mut addresses);
            return Ok(addresses);
        };
        let mut why = String::new();
        for sentinel in &self.settings.servers {
            match timeout(REPLY_TIMEOUT, self.query_sentinel(sentinel, primary)).await {
                Ok(Ok(address)) => return Ok(vec![address]),
                Ok(Err(error)) => why = format!("{sentinel}: {error}"),
                Err(_) => why = format!("{sentinel}: the reply timed out"),
            }
        }
        Err(StoreError::Unavailable(format!(
            "no sentinel knows the primary `{primary}`; check `url` and `sentinel_primary` in store.redis (last error: {why})"
        )))
    }

    /// Credentials are sent only on request: a sentinel without a password refuses them.
    async fn query_sentinel(&self, sentinel: &RedisAt, primary: &str) -> Result<RedisAt, String> {
        let stream = self.connect(sentinel).await.map_err(|error| error.to_string())?;
        let anonymous = RedisConnectionInfo::default();
        let opened = MultiplexedConnection::new(&anonymous, stream).await;
        let (mut connection, driver) = opened.map_err(|error| self.describe(&error))?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(primary);
        let query = async {
            let password = self.settings.password.as_ref().map(Secret::expose);
            match (command.query_async::<Option<(String, u16)>>(&mut connection).await, password) {
                (Err(error), Some(password)) if error.code() == Some("NOAUTH") => {
                    let username = self.settings.username.as_deref();
                    redis::cmd("AUTH").arg(username).arg(password).query_async::<()>(&mut connection).await?;
                    command.query_async(&mut connection).await
                }
                (reply, _) => reply,
            }
        };
        let reply = tokio::select! {
            reply = query => reply.map_err(|error| self.describe(&error))?,
            () = driver => return Err("it closed the connection".to_owned()),
        };
        reply.map(|(host, port)| RedisAt::Tcp { host, port }).ok_or_else(|| "it knows no such primary".to_owned())
    }

    /// A stream to the server, or to any node of a cluster.
    pub async fn dial(&self) -> Result<Box<dyn Stream>, StoreError> {
        let mut why = StoreError::Unavailable("no server is configured".to_owned());
        for address in self.addresses().await? {
            match self.connect(&address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    why = StoreError::Unavailable(format!("Redis at {address} is unreachable: {error}"));
                }
            }
        }
        Err(why)
    }

    /// A client of all nodes; `None`: this is no cluster.
    pub fn cluster(&self) -> Result<Option<ClusterClient>, StoreError> {
        if self.settings.kind != RedisKind::Cluster {
            return Ok(None);
        }
        let scheme = if self.settings.tls { "rediss" } else { "redis" };
        let nodes = self.settings.servers.iter().map(|address| format!("{scheme}://{address}"));
        let mut builder = ClusterClient::builder(nodes).retries(0);
        builder = builder.connection_timeout(CONNECT_TIMEOUT).response_timeout(REPLY_TIMEOUT);
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

    /// Connects to a server or a sentinel, with TLS if configured.
    async fn connect(&self, address: &RedisAt) -> io::Result<Box<dyn Stream>> {
        let (host, port) = match address {
            RedisAt::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            RedisAt::Tcp { host, port } => (host.as_str(), *port),
        };
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(TlsConnector::from(tls.clone()).connect(name, stream).await?))
    }

    /// The text of an error, with its remedy.
    pub fn describe(&self, error: &RedisError) -> String {
        let prefix = &self.settings.key_prefix;
        let text = if error.is_timeout() { "the reply timed out".to_owned() } else { error.to_string() };
        let credentials = || "; check `username` and `password` in store.redis".to_owned();
        let hint = match error.kind() {
            ErrorKind::AuthenticationFailed => credentials(),
            ErrorKind::Server(ServerErrorKind::NoPerm) => {
                format!("; grant the user `~{prefix}* &{prefix}* +@all -@dangerous`")
            }
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                "; this is a replica: configure the primary's address, or the sentinels".to_owned()
            }
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::ClusterDown | ServerErrorKind::CrossSlot) => {
                "; set `cluster: true` in store.redis, and check that every slot is served".to_owned()
            }
            _ if matches!(error.code(), Some("NOAUTH" | "WRONGPASS")) => credentials(),
            // The cluster client reports the cause of a failed connect in the text only.
            _ if text.contains("AuthenticationFailed") || text.contains("NOAUTH") => credentials(),
            _ => String::new(),
        };
        format!("{text}{hint}")
    }
}

/// A connection to one server, or to all nodes of a cluster.
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
