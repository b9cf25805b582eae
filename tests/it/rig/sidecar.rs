//! The built program as a child process, with its actual addresses, its log and its metrics.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::peers::Peers;
use super::raw;

/// Timeout for a start, and for a state to be reached.
const TIMEOUT: Duration = Duration::from_secs(15);

pub struct Sidecar {
    child: Child,
    pub dir: tempfile::TempDir,
    lines: watch::Receiver<Vec<String>>,
    reads_log: watch::Sender<bool>,
    addresses: Arc<Mutex<HashMap<String, SocketAddr>>>,
}

impl Sidecar {
    /// Runs `config` and waits until the sidecar is ready. Without `listeners`, proxy and admin get free ports.
    pub async fn start(config: impl Display) -> Sidecar {
        Self::start_with(config, &[]).await
    }

    /// Like `start`, with further files in the configuration's directory, by relative path.
    pub async fn start_with(config: impl Display, files: &[(&str, &str)]) -> Sidecar {
        let sidecar = Self::spawn(config, files).await;
        sidecar.wait_until_ready().await;
        sidecar
    }

    /// Like `start`, with further environment variables.
    pub async fn start_in(config: impl Display, environment: &[(&str, String)]) -> Sidecar {
        let sidecar = Self::spawn_in(config, &[], environment).await;
        sidecar.wait_until_ready().await;
        sidecar
    }

    /// Like `start_with`, but waits only until the sidecar listens.
    pub async fn spawn(config: impl Display, files: &[(&str, &str)]) -> Sidecar {
        Self::spawn_in(config, files, &[]).await
    }

    /// Like `start`, with a limit of open files.
    pub async fn start_with_open_files(config: impl Display, limit: usize) -> Sidecar {
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_keybearer")]);
        let (dir, expected) = Self::prepare(config, &[]);
        let sidecar = Self::launch(isolated(limited), dir, expected, &[]).await;
        sidecar.wait_until_ready().await;
        sidecar
    }

    async fn spawn_in(config: impl Display, files: &[(&str, &str)], environment: &[(&str, String)]) -> Sidecar {
        let (dir, expected) = Self::prepare(config, files);
        Self::launch(program(), dir, expected, environment).await
    }

    /// Creates a directory with `config` and `files`; returns it and the number of addresses that the program will
    /// listen on.
    fn prepare(config: impl Display, files: &[(&str, &str)]) -> (tempfile::TempDir, usize) {
        let config = config.to_string();
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            std::fs::write(path, text).expect("a file");
        }
        let listeners = match config.contains("listeners:") {
            true => "",
            false => "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n",
        };
        let path = dir.path().join("keybearer.yaml");
        std::fs::write(&path, format!("{listeners}{config}")).expect("a configuration file");
        let expected = 2 + ["telemetry:", "public:"].iter().filter(|name| config.contains(*name)).count();
        (dir, expected)
    }

    /// Runs the program in `dir` and waits until it listens on `expected` addresses.
    async fn launch(
        command: Command,
        dir: tempfile::TempDir,
        expected: usize,
        environment: &[(&str, String)],
    ) -> Sidecar {
        let mut sidecar = Self::run(command, dir, environment);
        if !sidecar.wait_until_listening(expected).await {
            panic!("the sidecar does not listen:\n{}", sidecar.log());
        }
        sidecar
    }

    /// Starts the program in `dir` without waiting for anything.
    pub fn spawn_in_dir(dir: tempfile::TempDir, environment: &[(&str, String)]) -> Sidecar {
        Self::run(program(), dir, environment)
    }

    fn run(mut command: Command, dir: tempfile::TempDir, environment: &[(&str, String)]) -> Sidecar {
        let mut child = command
            .args(["run", "--config"])
            .arg(dir.path().join("keybearer.yaml"))
            .env("STATE_DIRECTORY", dir.path().join("state"))
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(dir.path().join("stdout")).expect("a file"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = child.stderr.take().expect("a pipe");
        let (sender, lines) = watch::channel(Vec::new());
        let addresses = Arc::<Mutex<HashMap<String, SocketAddr>>>::default();
        let found = addresses.clone();
        let (reads_log, mut reads) = watch::channel(true);
        tokio::spawn(async move {
            let (mut reader, mut bytes) = (BufReader::new(stderr), Vec::new());
            while reads.wait_for(|reads| *reads).await.is_ok()
                && reader.read_until(b'\n', &mut bytes).await.is_ok_and(|count| count > 0)
            {
                let line = String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes)).into_owned();
                bytes.clear();
                let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if event["message"] == "listening" {
                    let name = event["listener"].as_str().unwrap_or_default().to_owned();
                    let address = event["address"].as_str().and_then(|text| text.parse().ok());
                    found.lock().unwrap().extend(address.map(|address| (name, address)));
                }
                sender.send_modify(|lines| lines.push(line));
            }
        });
        Sidecar { child, dir, lines, reads_log, addresses }
    }

    /// Waits until it listens on at least `expected` addresses, including the admin's; false if it exits before.
    pub async fn wait_until_listening(&mut self, expected: usize) -> bool {
        let (lines, addresses) = (&mut self.lines, &self.addresses);
        let listen = || {
            let found = addresses.lock().unwrap();
            found.len() >= expected && found.contains_key("admin")
        };
        let listening = async { while !listen() && lines.changed().await.is_ok() {} };
        timeout(TIMEOUT, listening).await.is_ok() && listen()
    }

    /// Kills it (SIGKILL); returns its directory, its number of addresses, and its complete log.
    pub async fn crash(mut self) -> (tempfile::TempDir, usize, String) {
        self.child.kill().await.expect("kill succeeds");
        // Read the log to its end.
        while self.lines.changed().await.is_ok() {}
        let (addresses, log) = (self.addresses.lock().unwrap().len(), self.log());
        (self.dir, addresses, log)
    }

    /// Restarts the program in the directory of an earlier one and waits until it is ready.
    pub async fn start_over(dir: tempfile::TempDir, addresses: usize, environment: &[(&str, String)]) -> Sidecar {
        let sidecar = Self::launch(program(), dir, addresses, environment).await;
        sidecar.wait_until_ready().await;
        sidecar
    }

    pub async fn wait_until_ready(&self) {
        let ready = async {
            while raw::get(self.admin(), "/readyz").await.status != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(TIMEOUT, ready).await.unwrap_or_else(|_| panic!("the sidecar is not ready:\n{}", self.log()));
    }

    pub fn address(&self, listener: &str) -> SocketAddr {
        self.addresses.lock().unwrap()[listener]
    }

    pub fn proxy(&self) -> SocketAddr {
        self.address("proxy")
    }

    pub fn admin(&self) -> SocketAddr {
        self.address("admin")
    }

    pub fn proxy_url(&self) -> String {
        format!("http://{}", self.proxy())
    }

    /// Pauses or resumes reading stderr; an unread pipe fills up.
    pub fn read_log(&self, reads: bool) {
        self.reads_log.send_replace(reads);
    }

    /// Everything on stderr so far.
    pub fn log(&self) -> String {
        self.lines.borrow().join("\n")
    }

    /// Everything on stdout so far.
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stdout")).expect("a file")
    }

    /// Waits for a log line that contains `text` and returns it.
    pub async fn wait_for_log(&self, text: &str) -> String {
        let mut lines = self.lines.clone();
        let found = async {
            loop {
                if let Some(line) = lines.borrow_and_update().iter().find(|line| line.contains(text)) {
                    return line.clone();
                }
                if lines.changed().await.is_err() {
                    panic!("{text:?} was never logged:\n{}", self.log());
                }
            }
        };
        timeout(TIMEOUT, found).await.unwrap_or_else(|_| panic!("{text:?} was not logged in time:\n{}", self.log()))
    }

    /// The value of a series in `/metrics`, for instance `keybearer_errors_total{connection="",code="no_route"}`, with
    /// its labels in any order; 0 if there is no such series.
    pub async fn metric(&self, series: &str) -> f64 {
        let wanted = parse_series(series);
        let text = raw::get(self.admin(), "/metrics").await.text();
        let value = text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            (parse_series(series) == wanted).then(|| value.parse().expect("a number"))
        });
        value.unwrap_or(0.0)
    }

    /// Waits until the value of a series satisfies `is`.
    pub async fn wait_for_metric(&self, series: &str, is: impl Fn(f64) -> bool) {
        let reached = async {
            while !is(self.metric(series).await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(TIMEOUT, reached).await.unwrap_or_else(|_| panic!("timed out waiting for {series}:\n{}", self.log()));
    }

    /// Resident memory of the process.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Number of open file descriptors of the process.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a running process").count()
    }

    /// CPU time that the process has used so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("a running process");
        // The name in parentheses may contain spaces; user and system time are fields 14 and 15 (proc_pid_stat(5)).
        let fields = stat.rsplit_once(')').expect("a name").1.split_ascii_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        // USER_HZ is 100 on all Linux architectures.
        Duration::from_millis(ticks * 10)
    }

    /// Waits until the process uses no more CPU time, so that it has processed all input.
    pub async fn wait_until_idle(&self) {
        let mut used = Duration::MAX;
        while self.cpu() != used {
            used = self.cpu();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("a running child")
    }

    /// Sends a signal by name, for instance `TERM`.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits for the exit. Afterwards the log is complete, unless reading is paused.
    pub async fn exit(&mut self) -> ExitStatus {
        let status = timeout(Duration::from_secs(40), self.child.wait()).await.expect("exits before the timeout");
        if *self.reads_log.borrow() {
            let end = async { while self.lines.changed().await.is_ok() {} };
            timeout(TIMEOUT, end).await.unwrap_or_else(|_| panic!("the log does not end:\n{}", self.log()));
        }
        status.expect("a status")
    }
}

/// Sends a signal by name to a process that the test started.
pub fn signal(pid: u32, name: &str) {
    let done = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(done.expect("kill is installed").success());
}

/// A command for the built program, killed when its handle is dropped, with its own state directory that does not exist
/// yet.
pub fn program() -> Command {
    isolated(Command::new(env!("CARGO_BIN_EXE_keybearer")))
}

fn isolated(mut command: Command) -> Command {
    command.kill_on_drop(true);
    for name in ["KEYBEARER_CONFIG", "KEYBEARER_ADMIN_URL", "KEYBEARER_ADMIN_TOKEN"] {
        command.env_remove(name);
    }
    command.env("STATE_DIRECTORY", unused_state());
    command
}

/// A state directory that no other program of any test uses.
pub fn unused_state() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Peers::certs().dir.join(format!("state-{number}"))
}

/// Duration factor of load tests; `.ci/long` sets KEYBEARER_LONG.
pub fn duration_factor() -> u32 {
    if std::env::var_os("KEYBEARER_LONG").is_some() { 12 } else { 1 }
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn parse_series(series: &str) -> (String, Vec<String>) {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let mut labels: Vec<_> =
        labels.trim_end_matches('}').split("\",").map(|l| l.trim_end_matches('"').to_owned()).collect();
    labels.sort();
    (name.to_owned(), labels)
}
