//! Debian's Redis, without a disk: what is stopped comes back empty.
//!
//! The unit tests of the store use it too.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(10);

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

    /// With further arguments of redis-server.
    pub async fn start_with(more: &[&str]) -> Redis {
        let more: Vec<String> = more.iter().map(|&text| text.to_owned()).collect();
        // Redis takes no port of the system's choice, and another program may be quicker.
        for _ in 0..5 {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let port = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address").port();
            let mut redis = Redis { child: launch(port, dir.path(), &more), port, dir, more: more.clone() };
            if redis.answers().await {
                return redis;
            }
        }
        panic!("redis-server does not start");
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("a running child")
    }

    /// What `redis-cli` prints.
    pub async fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.expect("redis-cli runs: tests/peers/install.sh installs it");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Ends it as a crash would.
    pub async fn stop(&mut self) {
        self.child.kill().await.expect("it is killed");
    }

    /// On the same port, empty.
    pub async fn start_again(&mut self) {
        self.child = launch(self.port, self.dir.path(), &self.more);
        assert!(self.answers().await, "redis-server does not start again");
    }

    async fn answers(&mut self) -> bool {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // A password may be asked for: that is an answer.
            let said = self.cli(&["PING"]).await;
            if said == "PONG" || said.contains("NOAUTH") {
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
        .expect("redis-server runs: tests/peers/install.sh installs it")
}
