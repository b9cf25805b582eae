//! Several replicas that share one Redis, and traffic through them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::config::{Config, Connection, local};
use super::crm::get;
use super::manager::import_refresh_token;
use super::peers::{AuthorizationServer, Peers, Upstream};
use super::raw;
use super::redis::Redis;
pub use super::redis::free_port;
use super::sidecar::Sidecar;
use super::wire::Wire;

pub const SEAL_KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// The `store:` key for a Redis on this port.
pub fn store(port: u16) -> String {
    format!("store: {{redis: {{url: \"redis://127.0.0.1:{port}/0\"}}, seal_key: {SEAL_KEY}}}\n")
}

/// The connections `crm`, of the client `person` with rotating refresh tokens, and `machine`.
pub fn config(server: &AuthorizationServer, upstream: &Upstream, store: &str) -> String {
    let connection = |name: &str, client: &str| {
        let keys = "authorization_server: {timeout: 2s}, scopes: [api.read]";
        Connection::new(name, server.token_url()).client(client).keys(keys)
    };
    let person = "client_id: person, client_secret: person-secret, grant: authorization_code";
    let config = Config::new().top(store).manager().trust_peers();
    let config = config.hosts(["api.test", "m.test"], local(upstream.http_port()));
    let config = config.connection(connection("crm", person).plain("api.test"));
    let machine = connection("machine", "client_id: machine, client_secret: machine-secret");
    config.connection(machine.plain("m.test")).to_string()
}

/// Continuous requests, and their outcomes.
pub struct Traffic {
    end: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    task: JoinHandle<Vec<String>>,
}

impl Traffic {
    pub fn through(sidecar: &Sidecar, url: &'static str) -> Traffic {
        let (end, good) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (over, count, proxy) = (end.clone(), good.clone(), sidecar.proxy());
        let task = tokio::spawn(async move {
            let mut bad = Vec::new();
            while !over.load(Ordering::SeqCst) {
                let response = raw::get_through(proxy, url, "").await;
                match response.status {
                    200 => drop(count.fetch_add(1, Ordering::SeqCst)),
                    status => bad.push(format!("{status} {}", response.text())),
                }
                sleep(Duration::from_millis(20)).await;
            }
            bad
        });
        Traffic { end, good, task }
    }

    /// Stops the traffic, checks that no request failed, and returns their number.
    pub async fn end(self, sidecar: &Sidecar) -> usize {
        self.end.store(true, Ordering::SeqCst);
        let bad = self.task.await.expect("requests");
        assert!(bad.is_empty(), "{} failed, first {:?}\n{}", bad.len(), bad.first(), sidecar.log());
        self.good.load(Ordering::SeqCst)
    }
}

pub struct Fleet {
    pub server: AuthorizationServer,
    pub upstream: Upstream,
    pub redis: Redis,
    pub wires: Vec<Wire>,
    pub replicas: Vec<Sidecar>,
}

impl Fleet {
    /// Starts `count` replicas, each with its own wire to Redis; tokens have this `lifetime` in seconds.
    pub async fn start(count: usize, lifetime: u64) -> Fleet {
        Fleet::start_with(count, lifetime, "").await
    }

    /// Like `start`, with further `keys` of both connections.
    pub async fn start_with(count: usize, lifetime: u64, keys: &str) -> Fleet {
        let server = AuthorizationServer::op(json!({ "lifetime": lifetime })).await;
        let upstream = Upstream::start(&server).await;
        let redis = Redis::start().await;
        let (mut wires, mut replicas) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let wire = Wire::to(redis.port).await;
            let text = config(&server, &upstream, &store(wire.port));
            let text = text.replace("scopes: [api.read]", &format!("{keys}scopes: [api.read]"));
            replicas.push(Sidecar::start(&text).await);
            wires.push(wire);
        }
        Fleet { server, upstream, redis, wires, replicas }
    }

    /// Imports a refresh token at one replica and waits until all replicas have a token.
    pub async fn connect(&self) {
        let token = self.server.refresh_token("ann").await;
        assert_eq!(
            import_refresh_token(&self.replicas[0], &token, None).await.status,
            200,
            "{}",
            self.replicas[0].log()
        );
        for replica in &self.replicas {
            wait_until_served(replica, Duration::from_secs(1)).await;
        }
    }

    pub async fn count(&self, name: &str) -> u64 {
        self.server.stats().await[name].as_u64().unwrap_or(0)
    }

    /// Waits until `client` has sent more token requests than `before`.
    pub async fn wait_for_token_requests(&self, client: &str, before: u64) {
        let end = Instant::now() + Duration::from_secs(15);
        while self.server.token_requests(client).await <= before {
            assert!(Instant::now() < end, "no token request of {client}\n{}", self.replicas[0].log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Checks that no refresh token was spent twice and that every refresh rotated.
    pub async fn assert_no_token_spent_twice(&self) {
        let stats = self.server.stats().await;
        let logs = || self.replicas.iter().map(Sidecar::log).collect::<Vec<_>>().join("\n----\n");
        assert_eq!((&stats["refused"], &stats["grants_revoked"]), (&json!(0), &json!(0)), "{stats}\n{}", logs());
        assert_eq!(stats["rotations"], stats["token_requests"]["person"], "{stats}\n{}", logs());
    }

    /// Returns just after a rotation was saved, when the next one is not yet due.
    pub async fn wait_for_rotation(&self) {
        // A record begins with a random nonce, so its first bytes identify it.
        const RECORD: [&str; 5] = ["--no-raw", "GETRANGE", "keybearer:{crm}:token:default", "0", "99"];
        let (before, record) = (self.count("rotations").await, self.redis.cli(&RECORD).await);
        let end = Instant::now() + Duration::from_secs(10);
        while self.count("rotations").await == before || self.redis.cli(&RECORD).await == record {
            assert!(Instant::now() < end, "no replica refreshes\n{}", self.replicas[0].log());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Every key with its value as text.
pub async fn dump(redis: &Redis) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for key in redis.cli(&["--scan"]).await.lines() {
        let text = match redis.cli(&["TYPE", key]).await.as_str() {
            "string" => redis.cli(&["--no-raw", "GET", key]).await,
            "set" => redis.cli(&["--no-raw", "SMEMBERS", key]).await,
            "hash" => redis.cli(&["--no-raw", "HGETALL", key]).await,
            _ => redis.cli(&["--no-raw", "ZRANGE", key, "0", "-1", "WITHSCORES"]).await,
        };
        all.push((key.to_owned(), text));
    }
    all
}

/// Waits until requests are served.
pub async fn wait_until_served(replica: &Sidecar, within: Duration) {
    let started = Instant::now();
    loop {
        let response = get(replica, "").await;
        if response.status == 200 {
            return;
        }
        assert!(started.elapsed() < within, "{}\n{}", response.text(), replica.log());
        sleep(Duration::from_millis(20)).await;
    }
}

/// Arguments of redis-server for TLS with this certificate.
pub fn tls_of(leaf: &str) -> Vec<String> {
    let (certificate, key) = Peers::certs().leaf(leaf);
    let [certificate, key, ca] = [&certificate, &key, &Peers::certs().ca].map(|path| path.display().to_string());
    let words = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    words.into_iter().chain(["--tls-auth-clients", "no"]).map(str::to_owned).collect()
}
