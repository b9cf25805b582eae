//! Debian's Redis without persistence, alone or as a cluster: it is empty after a restart.
//!
//! Also used by the store's unit tests.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

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

    /// Starts nodes and joins them into a cluster with redis-cli, with the given authentication and TLS arguments.
    pub async fn cluster(
        count: usize,
        more: &[&str],
        (auth, tls): (&[&str], &[&str]),
        tls_ports: &[String],
    ) -> Vec<Redis> {
        let (mut nodes, mut addresses) = (Vec::new(), Vec::new());
        for number in 0..count {
            let bus = free_port().to_string();
            let own = tls_ports.get(number).map(|port| ["--tls-port", port]);
            // The default bus port is 10000 higher, which may be out of range.
            let all = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", &bus];
            let all = [&all[..], &["--repl-diskless-sync-delay", "0"]].concat();
            let node = Redis::start_with(&[&all[..], more, own.as_ref().map_or(&[], |own| own)].concat()).await;
            let port = tls_ports.get(number).cloned().unwrap_or_else(|| node.port.to_string());
            addresses.push(format!("127.0.0.1:{port}@{bus}"));
            nodes.push(node);
        }
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let replicas = if count < 6 { "0" } else { "1" };
        let end = ["--cluster-replicas", replicas, "--cluster-yes"];
        let all = [auth, tls, &["--cluster", "create"], &addresses, &end].concat();
        let output = timeout(Duration::from_secs(20), nodes[0].cli(&all)).await.expect("the nodes join");
        assert!(output.contains("All 16384 slots covered"), "{output}");
        let end = Instant::now() + Duration::from_secs(15);
        for node in &nodes {
            let query = async |command: &[&str]| node.cli(&[auth, command].concat()).await;
            while !query(&["CLUSTER", "INFO"]).await.contains("cluster_state:ok")
                || query(&["INFO", "replication"]).await.contains("master_link_status:down")
            {
                assert!(Instant::now() < end, "the cluster does not become stable");
                sleep(Duration::from_millis(50)).await;
            }
        }
        nodes
    }

    /// The primary of the shard that has the slot of `key`; `None`: the slot has no keys.
    pub async fn primary(nodes: &[Redis], key: &str) -> Option<usize> {
        let slot = nodes[0].cli(&["CLUSTER", "KEYSLOT", key]).await;
        for (number, node) in nodes.iter().enumerate() {
            let keys = node.cli(&["CLUSTER", "COUNTKEYSINSLOT", &slot]).await;
            if keys.parse::<u32>().is_ok_and(|keys| keys > 0) && node.cli(&["ROLE"]).await.starts_with("master") {
                return Some(number);
            }
        }
        None
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

pub fn free_port() -> u16 {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    probe.local_addr().expect("an address").port()
}
