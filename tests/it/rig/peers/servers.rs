//! Real upstreams: a resource server that introspects tokens; WebSocket, git, HTTP/2 and gRPC servers; a trace
//! collector.

use serde_json::{Value, json};

use super::{AuthorizationServer, Peer, with_tls};

/// The resource server, which introspects every token it receives.
pub struct Upstream {
    peer: Peer,
}

impl Upstream {
    pub async fn start(server: &AuthorizationServer) -> Self {
        Self::start_with(server, json!({})).await
    }

    /// Options, all optional: `leaf`, `unreachable` ("refuse" or "accept"), `introspect_timeout_ms` (2000).
    pub async fn start_with(server: &AuthorizationServer, mut options: Value) -> Self {
        options["introspect"] = json!(server.introspection_url());
        Self { peer: Peer::start("upstream.mjs", &with_tls(options)).await }
    }

    pub fn http_port(&self) -> u16 {
        self.peer.port("http")
    }

    pub fn https_port(&self) -> u16 {
        self.peer.port("https")
    }

    /// The requests since the last call, in the order of their verdicts; `tests/peers/upstream.mjs` documents the
    /// fields.
    pub async fn records(&self) -> Vec<Value> {
        let Value::Array(records) = self.peer.get("/__records").await else { panic!("records are not an array") };
        records
    }

    /// Counts since the start: `total`, `active`, `missing_token`, `inactive`, `unreachable`, `double`, `aborted`.
    pub async fn summary(&self) -> Value {
        self.peer.get("/__summary").await
    }

    /// `unreachable`: what to do while introspection is unavailable; `reset`: clears records and counters.
    pub async fn control(&self, change: Value) -> Value {
        self.peer.post("/__control", change).await
    }
}

/// A WebSocket upstream.
pub struct WebSocketServer {
    peer: Peer,
}

impl WebSocketServer {
    /// `token`: the bearer token that it accepts.
    pub async fn start(options: Value) -> Self {
        Self { peer: Peer::start("ws.py", &options).await }
    }

    /// Like `start`, over TLS as `api.test`.
    pub async fn secure(options: Value) -> Self {
        Self::start(with_tls(options)).await
    }

    pub fn port(&self) -> u16 {
        self.peer.port("ws")
    }
}

/// A git repository over HTTPS, at /r.git, as `api.test`.
pub struct GitServer {
    peer: Peer,
}

impl GitServer {
    /// `token`: the bearer token that it accepts.
    pub async fn start(options: Value) -> Self {
        Self { peer: Peer::start("git_upstream.py", &with_tls(options)).await }
    }

    pub fn port(&self) -> u16 {
        self.peer.port("https")
    }
}

/// An upstream that speaks only HTTP/2; `tests/peers/h2_upstream.mjs` documents its paths.
pub struct Http2Server {
    peer: Peer,
}

impl Http2Server {
    /// Over TLS, as `api.test`.
    pub async fn start(options: Value) -> Self {
        Self { peer: Peer::start("h2_upstream.mjs", &with_tls(options)).await }
    }

    pub fn port(&self) -> u16 {
        self.peer.port("h2")
    }

    /// The number of sessions, and of requests per path.
    pub async fn stats(&self) -> Value {
        self.peer.get("/__stats").await
    }
}

/// A gRPC server; `tests/peers/grpc_peer.py` documents its methods.
pub struct GrpcServer {
    peer: Peer,
}

impl GrpcServer {
    /// `token`: the bearer token that it accepts.
    pub async fn start(options: Value) -> Self {
        Self { peer: Peer::start("grpc_peer.py", &options).await }
    }

    /// Like `start`, over TLS as `api.test`.
    pub async fn secure(options: Value) -> Self {
        Self::start(with_tls(options)).await
    }

    pub fn port(&self) -> u16 {
        self.peer.port("grpc")
    }
}

/// A trace collector.
pub struct Collector {
    peer: Peer,
}

impl Collector {
    pub async fn start() -> Self {
        Self { peer: Peer::start("collector.py", &json!({})).await }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer.port("port"))
    }

    /// Every span so far; `tests/peers/collector.py` documents the fields.
    pub async fn spans(&self) -> Vec<Value> {
        let Value::Array(spans) = self.peer.get("/__spans").await else { panic!("spans are not an array") };
        spans
    }

    /// All received bodies, and all heads as parsed.
    pub async fn raw(&self) -> (Vec<u8>, Value) {
        let raw = self.peer.get("/__raw").await;
        let hex = raw["bytes"].as_str().expect("hexadecimal");
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("a byte"));
        (bytes.collect(), raw["heads"].clone())
    }

    /// Sets the status of all further responses.
    pub async fn respond_with(&self, status: u16) {
        self.peer.post("/__control", json!({ "status": status })).await;
    }

    /// Suspends the process: connections open but get no response.
    pub fn pause(&self) {
        self.peer.pause();
    }

    pub fn resume(&self) {
        self.peer.resume();
    }
}
