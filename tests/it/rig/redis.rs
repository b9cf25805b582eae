//! Debian's Redis without persistence: it is empty after a restart.
//!
//! Also used by the store's unit tests.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

const TIMEOUT: Duration = Duration::from_secs(10);

pub struct Redis {
    child: Child,
    pub port: u16,
    pub dir: tempfile::TempDir,
    more: Vec<String>,
}

impl Redis {
    pub async fn start() -> Redis {
        Redis::start_with(&[]).await
    }

    /// Like `start`, with further arguments of redis-server.
    pub async fn start_with(more: &[&str]) -> Redis {
        let more: Vec<String> = more.iter().map(|&text| text.to_owned()).collect();
        // Redis cannot bind port 0, and another program may take the free port first.
        for _ in 0..5 {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let port =
                TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("a bound listener").port();
            let mut redis = Redis { child: launch(port, dir.path(), &more), port, dir, more: more.clone() };
            if redis.responds().await {
                return redis;
            }
        }
        panic!("redis-server does not start");
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("a running child")
    }

    /// The output of `redis-cli`.
    pub async fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.expect("redis-cli is installed; run tests/peers/install.sh");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Kills it (SIGKILL).
    pub async fn stop(&mut self) {
        self.child.kill().await.expect("kill succeeds");
    }

    /// Restarts it on the same port, empty.
    pub async fn start_again(&mut self) {
        self.child = launch(self.port, self.dir.path(), &self.more);
        assert!(self.responds().await, "redis-server does not start again");
    }

    async fn responds(&mut self) -> bool {
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // NOAUTH: the server responds but needs a password.
            let reply = self.cli(&["PING"]).await;
            if reply == "PONG" || reply.contains("NOAUTH") {
                return true;
            }
            sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

fn launch(port: u16, dir: &Path, more: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--dir", &dir.display().to_string(), "--daemonize", "no", "--loglevel", "warning"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("redis-server is installed; run tests/peers/install.sh")
}
