//! Definitions in a store that replicas share, through outages of the store and kills of a replica.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::{JSON, SECRET, code, config, definition, if_match, wait_until_status};
use crate::rig::fleet::{SEAL_KEY, store};
use crate::rig::manager::{MANAGER, call_as};
use crate::rig::raw::RawResponse;
use crate::rig::redis::Redis;
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::{Sidecar, duration_factor};

/// What a change takes to be in force on all replicas.
const ANNOUNCED: Duration = Duration::from_secs(1);

struct Replicas {
    replicas: Vec<Sidecar>,
    server: Scripted,
    upstream: Scripted,
}

impl Replicas {
    /// Two replicas with this `store:`.
    async fn start(store: &str) -> Replicas {
        let (server, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
        let text = config(&server, &upstream, &format!("admin: {{USERS}}\n{store}"));
        let replicas = vec![Sidecar::start(&text).await, Sidecar::start(&text).await];
        Replicas { replicas, server, upstream }
    }

    async fn call(&self, replica: usize, method: &str, path: &str, lines: &str, body: &Value) -> RawResponse {
        let admin = self.replicas[replica].admin();
        call_as(MANAGER, admin, (method, path), &format!("{JSON}{lines}"), &body.to_string()).await
    }

    async fn get(&self, replica: usize, name: &str) -> RawResponse {
        self.call(replica, "GET", &format!("/connections/{name}"), "", &Value::Null).await
    }
}

async fn made_here_used_and_edited_there(replicas: &Replicas) {
    let made = replicas.call(0, "PUT", "/connections/own", "", &definition("own", "api.test")).await;
    assert_eq!(made.status, 201, "{}", made.text());
    wait_until_status(&replicas.replicas[1], "http://api.test/", 200, ANNOUNCED).await;
    let patch = json!({ "comments": "by the other replica" });
    let edited = replicas.call(1, "PATCH", "/connections/own", &if_match(&made), &patch).await;
    assert_eq!(edited.status, 200, "{}", edited.text());
    let end = Instant::now() + ANNOUNCED;
    loop {
        let seen = replicas.get(0, "own").await;
        if seen.header("etag") == edited.header("etag") {
            break;
        }
        assert!(Instant::now() < end, "the change is not announced: {}", seen.text());
        sleep(Duration::from_millis(20)).await;
    }
    // A writer that has not read the change is refused, whichever replica it asks.
    for replica in [0, 1] {
        assert_eq!(replicas.call(replica, "PATCH", "/connections/own", &if_match(&made), &patch).await.status, 412);
    }
    assert_eq!(replicas.server.count(), 2, "one token request for each connection of the fleet");
    assert!(replicas.upstream.count() >= 1);
}

#[tokio::test]
async fn two_replicas_share_definitions_and_an_outage_of_redis_changes_nothing() {
    let mut redis = Redis::start().await;
    let replicas = Replicas::start(&store(redis.port)).await;
    made_here_used_and_edited_there(&replicas).await;
    redis.stop().await;
    let refused = replicas.call(0, "PUT", "/connections/two", "", &definition("two", "two.test")).await;
    assert_eq!((refused.status, code(&refused).as_str()), (503, "store_unavailable"), "{}", refused.text());
    // A reload of the files keeps the definitions.
    let path = replicas.replicas[1].dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&path).expect("the configuration") + "# changed\n";
    std::fs::write(&path, text).expect("the configuration");
    replicas.replicas[1].wait_for_log("configuration reloaded").await;
    for replica in &replicas.replicas {
        wait_until_status(replica, "http://api.test/", 200, ANNOUNCED).await;
    }
    redis.start_again().await;
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        let made = replicas.call(0, "PUT", "/connections/two", "", &definition("two", "two.test")).await;
        if made.status == 201 {
            break;
        }
        assert!(made.status == 503 && Instant::now() < end, "{} {}", made.status, made.text());
        sleep(Duration::from_millis(100)).await;
    }
    wait_until_status(&replicas.replicas[1], "http://two.test/", 200, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_replica_that_missed_a_change_and_its_reversal_has_the_new_etag() {
    let redis = Redis::start().await;
    let replicas = Replicas::start(&store(redis.port)).await;
    let made = replicas.call(0, "PUT", "/connections/own", "", &definition("own", "api.test")).await;
    wait_until_status(&replicas.replicas[1], "http://api.test/", 200, ANNOUNCED).await;
    replicas.replicas[1].signal("STOP");
    let mut last = made;
    for comments in [json!("one"), Value::Null] {
        let patch = json!({ "comments": comments });
        last = replicas.call(0, "PATCH", "/connections/own", &if_match(&last), &patch).await;
        assert_eq!(last.status, 200, "{}", last.text());
    }
    replicas.replicas[1].signal("CONT");
    let end = Instant::now() + Duration::from_secs(15);
    while replicas.get(1, "own").await.header("etag") != last.header("etag") {
        assert!(Instant::now() < end, "the ETag is stale\n{}", replicas.replicas[1].log());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn two_replicas_share_definitions_in_a_cluster() {
    let nodes = Redis::cluster(3, &[], (&[], &[]), &[]).await;
    let url = format!("redis://127.0.0.1:{}", nodes[0].port);
    let store = format!("store: {{redis: {{url: \"{url}\", cluster: true}}, seal_key: {SEAL_KEY}}}\n");
    let replicas = Replicas::start(&store).await;
    made_here_used_and_edited_there(&replicas).await;
}

#[tokio::test]
async fn a_replica_that_starts_without_the_store_becomes_ready_with_its_definitions() {
    let mut redis = Redis::start().await;
    let replicas = Replicas::start(&store(redis.port)).await;
    let made = replicas.call(0, "PUT", "/connections/own", "", &definition("own", "api.test")).await;
    assert_eq!(made.status, 201);
    let Replicas { mut replicas, server: _server, upstream: _upstream } = replicas;
    let (dir, addresses, _) = replicas.remove(1).crash().await;
    redis.stop().await;
    let mut late = Sidecar::spawn_in_dir(dir, &[]);
    assert!(late.wait_until_listening(addresses).await, "{}", late.log());
    late.wait_for_log("not ready").await;
    redis.start_again().await;
    late.wait_until_ready().await;
    wait_until_status(&late, "http://api.test/", 200, Duration::from_secs(5)).await;
}

/// A definition whose parts tell the round that made it.
fn of_round(round: usize) -> Value {
    let mut own = definition("own", "api.test");
    own["client_secret"] = json!(format!("{SECRET}-{round}"));
    own["send_credentials"] = json!("body");
    own["comments"] = json!(round.to_string());
    own["token_url"] = json!(format!("http://as.test/token/{round}"));
    own
}

/// Kills a process at random moments of a save. The definition in force is the old or the new one as a whole.
async fn killed_while_saving(store: &str, kills: u32) {
    let (server, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let text = config(&server, &upstream, &format!("admin: {{USERS}}\n{store}"));
    let mut sidecar = Sidecar::start(&text).await;
    let lines = format!("{JSON}If-None-Match: *\r\n");
    let body = of_round(0).to_string();
    let begin = Instant::now();
    let made = call_as(MANAGER, sidecar.admin(), ("PUT", "/connections/own"), &lines, &body).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let (a_save, mut last) = (begin.elapsed(), 0);
    for round in 1..=(kills * duration_factor()) as usize {
        let saving = tokio::spawn(save(sidecar.admin(), round));
        sleep(a_save.mul_f64(1.5 * fastrand::f64())).await;
        let (dir, addresses, _) = sidecar.crash().await;
        let is_confirmed = saving.await.expect("the request");
        sidecar = Sidecar::start_over(dir, addresses, &[]).await;
        let response = call_as(MANAGER, sidecar.admin(), ("GET", "/connections/own"), "", "").await;
        assert_eq!(response.status, 200, "round {round}: {}\n{}", response.text(), sidecar.log());
        let shown = response.json();
        let found: usize = shown["comments"].as_str().and_then(|text| text.parse().ok()).expect("a round");
        assert!(found == round || (found == last && !is_confirmed), "round {round}: {found}, confirmed {is_confirmed}");
        assert_eq!(shown["token_url"], json!(format!("http://as.test/token/{found}")));
        last = found;
    }
    // Each token request had the secret of the definition that names its URL.
    let received = server.received();
    let requests = received.iter().filter(|request| request.request_line().contains("/token/"));
    let mut rounds = 0;
    for request in requests {
        let (line, body) = (request.request_line(), String::from_utf8_lossy(&request.body));
        let round = line.split(['/', ' ']).find_map(|part| part.parse::<usize>().ok()).expect("a round");
        let secret = format!("client_secret={SECRET}-{round}");
        assert!(body.split('&').any(|parameter| parameter == secret), "{line}: {body}");
        rounds += 1;
    }
    assert!(rounds > 1, "{rounds}");
}

/// Saves the definition of a round; true if the process confirmed it before it was killed.
async fn save(admin: std::net::SocketAddr, round: usize) -> bool {
    let body = of_round(round).to_string();
    let head = format!(
        "PUT /api/v1/connections/own HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {MANAGER}\r\n{JSON}\
         If-Match: *\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut response = Vec::new();
    let Ok(mut stream) = TcpStream::connect(admin).await else { return false };
    if stream.write_all(head.as_bytes()).await.is_ok() {
        // The process is killed meanwhile.
        let _ = stream.read_to_end(&mut response).await;
    }
    response.starts_with(b"HTTP/1.1 200")
}

#[tokio::test]
async fn a_kill_while_saving_leaves_one_definition_with_its_own_secret_in_the_file() {
    killed_while_saving("", 25).await;
}

#[tokio::test]
async fn a_kill_while_saving_leaves_one_definition_with_its_own_secret_in_redis() {
    let redis = Redis::start().await;
    // A new process waits for the leases of the killed one.
    killed_while_saving(&store(redis.port), 12).await;
}
