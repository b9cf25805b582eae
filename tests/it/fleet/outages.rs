//! A failing Redis: stopped, emptied, slow, refusing, full, or with values of other programs. Usable tokens are served, tokens
//! that need no rotating refresh token are refreshed, and everything recovers without intervention.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::rig::fleet::{Fleet, SEAL_KEY, Traffic, config, dump, free_port, store, tls_of, wait_until_served};
use crate::rig::manager::{call, import_refresh_token};
use crate::rig::peers::{AuthorizationServer, Peers, Upstream};
use crate::rig::raw;
use crate::rig::redis::Redis;
use crate::rig::sidecar::{Sidecar, signal};
use crate::rig::wire::Wire;

const API: &str = "http://api.test/x";
const MACHINE: &str = "http://m.test/x";
const CRM: &str = "keybearer:{crm}:token:default";
const FAILED: &str = "keybearer_store_operations_total{operation=\"load\",outcome=\"failed\"}";

/// Waits until Redis has a record under `key`.
async fn wait_until_stored(redis: &Redis, key: &str) {
    let end = Instant::now() + Duration::from_secs(15);
    while redis.cli(&["TYPE", key]).await != "string" || redis.cli(&["STRLEN", key]).await.len() > 5 {
        assert!(Instant::now() < end, "{key} is never stored: {:?}", redis.cli(&["--scan"]).await);
        sleep(Duration::from_millis(50)).await;
    }
}

async fn refresh(replica: &Sidecar) -> u16 {
    call(replica.admin(), "POST", "/connections/crm/refresh", &json!({})).await.status
}

/// Gives machine tokens a lifetime of 3 s.
async fn shorten_machine_tokens(fleet: &Fleet) {
    fleet.server.control(json!({ "lifetime": 3 })).await;
    for replica in &fleet.replicas {
        assert_eq!(call(replica.admin(), "POST", "/connections/machine/refresh", &json!({})).await.status / 100, 2);
    }
}

#[tokio::test]
async fn requests_survive_a_redis_that_restarts_empty() {
    let mut fleet = Fleet::start(2, 60).await;
    fleet.connect().await;
    shorten_machine_tokens(&fleet).await;
    let traffic: Vec<_> =
        fleet.replicas.iter().flat_map(|replica| [API, MACHINE].map(|url| Traffic::through(replica, url))).collect();
    let before = fleet.server.token_requests("machine").await;
    fleet.redis.stop().await;
    // Machine tokens are refreshed without the store, each more than once.
    fleet.wait_for_token_requests("machine", before + 4).await;
    let one = &fleet.replicas[0];
    one.wait_for_metric(FAILED, |count| count > 0.0).await;
    one.wait_for_log("store unreachable; serving tokens from memory").await;
    assert_eq!(refresh(one).await, 503, "a rotating refresh token is not spent");
    let shown = call(one.admin(), "GET", "/connections/crm/tokens", &json!({})).await.json();
    let last = &shown["items"][0]["last_attempt"];
    assert_eq!((&last["outcome"], &last["error"]), (&json!("unavailable"), &json!("store_unavailable")), "{shown}");
    assert_eq!(fleet.count("rotations").await, 1);

    fleet.redis.start_again().await;
    wait_until_stored(&fleet.redis, CRM).await;
    one.wait_for_log("store reachable again").await;
    for (at, traffic) in traffic.into_iter().enumerate() {
        assert!(traffic.end(&fleet.replicas[at / 2]).await > 100);
    }
    // The record written back is valid: a third replica uses it and rotates it.
    fleet.server.control(json!({ "lifetime": 60 })).await;
    let third = Sidecar::start(&config(&fleet.server, &fleet.upstream, &store(fleet.redis.port))).await;
    wait_until_served(&third, Duration::from_secs(2)).await;
    let end = Instant::now() + Duration::from_secs(15);
    while refresh(&third).await != 200 {
        assert!(Instant::now() < end, "{}", third.log());
        sleep(Duration::from_millis(200)).await;
    }
    fleet.assert_no_token_spent_twice().await;
    assert_eq!(fleet.count("rotations").await, 2);
}

/// Asserts that during `outage` no request fails and no refresh token is spent, that both tokens are refreshed again
/// after `remedy`, and that the log contains `logged`.
async fn check_recovery(row: &str, outage: impl AsyncFn(&Fleet), remedy: impl AsyncFn(&Fleet), logged: &str) {
    // Both tokens are due after 8 s and usable for 15 s.
    let fleet = Fleet::start_with(1, 16, "usable_margin: 1s, ").await;
    let one = &fleet.replicas[0];
    fleet.connect().await;
    let traffic = [API, MACHINE].map(|url| Traffic::through(one, url));
    outage(&fleet).await;
    let rotations = fleet.count("rotations").await;
    let machine = fleet.server.token_requests("machine").await;
    fleet.wait_for_token_requests("machine", machine).await;
    one.wait_for_log("store_unavailable").await;
    one.wait_for_log(logged).await;
    assert_eq!(fleet.count("rotations").await, rotations, "{row}: a refresh token was spent without a lease");
    remedy(&fleet).await;
    fleet.wait_for_rotation().await;
    for traffic in traffic {
        assert!(traffic.end(one).await > 100, "{row}");
    }
    fleet.assert_no_token_spent_twice().await;
    wait_until_stored(&fleet.redis, CRM).await;
    wait_until_stored(&fleet.redis, "keybearer:{machine}:token:default").await;
}

async fn redis(fleet: &Fleet, line: &str) {
    fleet.redis.cli(&line.split(' ').map(|word| word.trim_matches('_')).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn requests_survive_a_redis_that_is_five_seconds_slow() {
    let slow = async |fleet: &Fleet| fleet.wires[0].slow(Duration::from_secs(5));
    let normal = async |fleet: &Fleet| fleet.wires[0].slow(Duration::ZERO);
    check_recovery("slow", slow, normal, "timed out").await;
}

#[tokio::test]
async fn requests_survive_a_redis_that_does_not_reply() {
    let stopped = async |fleet: &Fleet| signal(fleet.redis.pid(), "STOP");
    let continued = async |fleet: &Fleet| signal(fleet.redis.pid(), "CONT");
    check_recovery("stopped", stopped, continued, "the reply timed out").await;
}

#[tokio::test]
async fn requests_survive_a_redis_that_starts_to_require_a_password() {
    let required = async |fleet: &Fleet| {
        redis(fleet, "CONFIG SET requirepass x").await;
        redis(fleet, "-a x CLIENT KILL TYPE normal").await;
    };
    let removed = async |fleet: &Fleet| redis(fleet, "-a x --no-auth-warning CONFIG SET requirepass __").await;
    check_recovery("NOAUTH", required, removed, "NOAUTH").await;
}

#[tokio::test]
async fn requests_survive_a_redis_that_becomes_a_replica() {
    let replica = async |fleet: &Fleet| redis(fleet, "REPLICAOF 127.0.0.1 1").await;
    let primary = async |fleet: &Fleet| redis(fleet, "REPLICAOF NO ONE").await;
    check_recovery("READONLY", replica, primary, "configure the primary's address").await;
}

/// TL-14: Redis becomes unreachable while the server rotates; the new token is used, and saved once Redis is back.
#[tokio::test]
async fn a_rotation_during_an_outage_of_redis_is_not_lost() {
    // Due after at most 8 s and usable for 12 s.
    let fleet = Fleet::start(2, 16).await;
    fleet.connect().await;
    let traffic: Vec<_> = fleet.replicas.iter().map(|replica| Traffic::through(replica, API)).collect();
    // Longer than it takes to detect that the request is in flight.
    fleet.server.control(json!({ "delay_ms": 1000 })).await;
    fleet.wait_for_token_requests("person", fleet.server.token_requests("person").await).await;
    let end = Instant::now() + Duration::from_secs(15);
    let rotations = fleet.count("rotations").await;
    fleet.wires.iter().for_each(Wire::cut);
    let unsaved = async |replica: &Sidecar| replica.log().contains("token could not be saved");
    while !unsaved(&fleet.replicas[0]).await && !unsaved(&fleet.replicas[1]).await {
        assert!(Instant::now() < end, "{}", fleet.replicas[0].log());
        sleep(Duration::from_millis(20)).await;
    }
    fleet.server.control(json!({ "delay_ms": 0 })).await;
    fleet.wires.iter().for_each(Wire::restore);
    while fleet.count("rotations").await < rotations + 2 {
        assert!(Instant::now() < end + Duration::from_secs(15), "{}", fleet.replicas[0].log());
        sleep(Duration::from_millis(50)).await;
    }
    for (traffic, replica) in traffic.into_iter().zip(&fleet.replicas) {
        assert!(traffic.end(replica).await > 100);
    }
    fleet.assert_no_token_spent_twice().await;
}

/// A new grant replaces the older one, whenever it can be saved.
#[tokio::test]
async fn a_new_grant_during_an_outage_of_redis_replaces_the_old_one() {
    let fleet = Fleet::start(2, 60).await;
    fleet.connect().await;
    let [one, other] = &fleet.replicas[..] else { panic!("two") };
    for revoked in [false, true] {
        if revoked {
            let revoked = call(one.admin(), "POST", "/connections/crm/revoke", &json!({})).await;
            assert_eq!(revoked.status, 200, "{}", revoked.text());
        }
        let token = fleet.server.refresh_token("ann").await;
        fleet.server.control(json!({ "delay_ms": 1000 })).await;
        let before = fleet.server.token_requests("person").await;
        let (imported, ()) = tokio::join!(import_refresh_token(one, &token, None), async {
            fleet.wait_for_token_requests("person", before).await;
            fleet.wires[0].cut();
        });
        assert_eq!(imported.status, 200, "{}\n{}", imported.text(), one.log());
        fleet.server.control(json!({ "delay_ms": 0 })).await;
        let sent = async |replica: &Sidecar| {
            assert_eq!(raw::get_through(replica.proxy(), API, "").await.status, 200, "{}", replica.log());
            fleet.upstream.records().await.pop().expect("a request")["headers"].clone()
        };
        let new = sent(one).await;
        fleet.wires[0].restore();
        let end = Instant::now() + Duration::from_secs(20);
        while raw::get_through(other.proxy(), API, "").await.status != 200
            || authorization(&sent(other).await) != authorization(&new)
        {
            assert!(Instant::now() < end, "revoked {revoked}: {}\n----\n{}", one.log(), other.log());
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(authorization(&sent(one).await), authorization(&new));
    }
}

fn authorization(headers: &Value) -> Option<&str> {
    let mut fields = headers.as_array().expect("fields").iter().filter_map(Value::as_str);
    fields.find(|value| value.starts_with("Bearer "))
}

/// A write replaces an existing value, which needs no further memory.
#[tokio::test]
async fn a_full_redis_still_stores_rotations() {
    let fleet = Fleet::start(1, 3).await;
    fleet.connect().await;
    let traffic = Traffic::through(&fleet.replicas[0], API);
    fleet.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert!(fleet.redis.cli(&["SET", "a", "b"]).await.contains("OOM"));
    fleet.wait_for_rotation().await;
    fleet.wait_for_rotation().await;
    assert!(traffic.end(&fleet.replicas[0]).await > 50);
    assert!(!fleet.replicas[0].log().contains("could not be saved"), "{}", fleet.replicas[0].log());
    fleet.assert_no_token_spent_twice().await;
}

/// ST-10.
#[tokio::test]
async fn values_of_other_programs_are_neither_read_nor_kept() {
    let fleet = Fleet::start(1, 4).await;
    fleet.connect().await;
    let (one, redis) = (&fleet.replicas[0], &fleet.redis);
    let traffic = Traffic::through(one, API);
    let lease = "keybearer:{crm}:lease:default";
    let rows = [
        ("a list", vec![vec!["DEL", CRM], vec!["RPUSH", CRM, "x"]]),
        ("a large value", vec![vec!["SETRANGE", CRM, "104857600", "x"]]),
        ("an unsealed value", vec![vec!["SET", CRM, "not a sealed record, and long enough to contain a header"]]),
        ("no keys", vec![vec!["FLUSHALL"]]),
        (
            "other types",
            vec![
                vec!["RPUSH", lease, "x"],
                vec!["DEL", "keybearer:{crm}:tokens"],
                vec!["SET", "keybearer:{crm}:tokens", "x"],
                vec!["HSET", "keybearer:{crm}:spending:default", "a", "b"],
            ],
        ),
    ];
    for (row, commands) in rows {
        for command in &commands {
            redis.cli(command).await;
        }
        let memory = one.resident_kib();
        fleet.wait_for_rotation().await;
        wait_until_stored(redis, CRM).await;
        assert!(one.resident_kib() < memory + 32 * 1024, "{row}");
    }
    assert!(traffic.end(one).await > 100);
    fleet.assert_no_token_spent_twice().await;
    assert_eq!(redis.cli(&["ZCARD", "keybearer:{crm}:tokens"]).await, "1");
    assert!(one.log().contains("is larger than any Keybearer record"), "{}", one.log());
}

#[tokio::test]
async fn wrong_credentials_and_names_are_reported_and_fixed_by_a_reload() {
    let server = AuthorizationServer::op(json!({ "lifetime": 60 })).await;
    let upstream = Upstream::start(&server).await;
    let (ca, tls_port) = (Peers::certs().ca.display().to_string(), free_port());
    let (tls, own) = (tls_of("server"), tls_port.to_string());
    let more: Vec<&str> = tls.iter().map(String::as_str).chain(["--tls-port", &own]).collect();
    let user = ["--user", "kb", "on", ">right", "~keybearer:*", "&keybearer:*", "+@all", "-@dangerous"];
    let redis = Redis::start_with(&[&more[..], &user].concat()).await;
    let of = |key_prefix: &str| {
        format!(
            "store: {{redis: {{url: \"rediss://localhost:{tls_port}/0\", username: kb, password: {{file: password}}, trust: [\"{ca}\"], \
             key_prefix: \"{key_prefix}\"}}, seal_key: {SEAL_KEY}}}\n"
        )
    };
    let files = [("password", "wrong\n")];
    let sidecar = Sidecar::spawn(&config(&server, &upstream, &of("keybearer:")), &files).await;
    sidecar.wait_for_log("Password authentication failed").await;
    assert_eq!(raw::get_through(sidecar.proxy(), MACHINE, "").await.status, 200, "{}", sidecar.log());
    sidecar.wait_for_log("not ready: store unreachable").await;
    let ready = async || raw::get(sidecar.admin(), "/readyz?verbose").await;
    let before = ready().await;
    assert!(before.status == 503 && before.text().contains("store"), "{}", before.text());
    assert!(!sidecar.log().contains("wrong\""));
    std::fs::write(sidecar.dir.path().join("password"), "right\n").expect("a file");
    sidecar.wait_for_log("store reachable again").await;
    sidecar.wait_until_ready().await;
    assert!(!sidecar.log().contains("what needs a restart"), "{}", sidecar.log());
    wait_until_stored(&redis, "keybearer:{machine}:token:default").await;

    let sidecar = Sidecar::spawn(&config(&server, &upstream, &of("other:")), &[("password", "right\n")]).await;
    sidecar.wait_for_log("grant the user `~other:* &other:*").await;
    let (certificate, key) = Peers::certs().leaf("wrong");
    let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
    redis.cli(&["CONFIG", "SET", "tls-cert-file", &certificate, "tls-key-file", &key]).await;
    let sidecar = Sidecar::spawn(&config(&server, &upstream, &of("keybearer:")), &[("password", "right\n")]).await;
    sidecar.wait_for_log("certificate not valid for name").await;
    assert_eq!(raw::get_through(sidecar.proxy(), MACHINE, "").await.status, 200, "{}", sidecar.log());
    let cluster = Redis::start_with(&["--cluster-enabled", "yes"]).await;
    let sidecar = Sidecar::spawn(&config(&server, &upstream, &store(cluster.port)), &[]).await;
    sidecar.wait_for_log("set `cluster: true` in store.redis").await;
}

/// With a seal key that the other replicas lack, a replica reads and writes nothing.
#[tokio::test]
async fn a_seal_key_that_other_replicas_lack_is_reported_and_overwrites_nothing() {
    let fleet = Fleet::start(1, 60).await;
    fleet.connect().await;
    let before = dump(&fleet.redis).await;
    let odd = store(fleet.redis.port).replace(SEAL_KEY, "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=");
    let sidecar = Sidecar::spawn(&config(&fleet.server, &fleet.upstream, &odd), &[]).await;
    sidecar.wait_for_log("add that key after the first").await;
    assert_eq!(raw::get_through(sidecar.proxy(), MACHINE, "").await.status, 200, "{}", sidecar.log());
    assert_eq!(raw::get_through(sidecar.proxy(), API, "").await.status, 503, "{}", sidecar.log());
    sidecar.wait_for_log("not ready: store unreachable").await;
    assert_eq!(import_refresh_token(&fleet.replicas[0], "none", None).await.status, 422);
    for (key, text) in &before {
        let now = dump(&fleet.redis).await.into_iter().find(|(name, _)| name == key);
        assert_eq!(now.map(|(_, text)| text).as_ref(), Some(text), "{key}");
    }
}

#[tokio::test]
async fn clock_skew_is_logged() {
    let server = AuthorizationServer::op(json!({ "lifetime": 60 })).await;
    let upstream = Upstream::start(&server).await;
    let redis = Redis::start().await;
    let environment = [
        ("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1".to_owned()),
        ("FAKETIME", "+40s".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let sidecar = Sidecar::start_in(&config(&server, &upstream, &store(redis.port)), &environment).await;
    sidecar.wait_for_log("clock skew between this machine and Redis").await;
}

struct Sentinel {
    _child: tokio::process::Child,
    _dir: tempfile::TempDir,
}

impl Sentinel {
    fn start(settings: &str) -> Sentinel {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("sentinel.conf");
        let own = format!("bind 127.0.0.1\ndir {}\n", dir.path().display());
        let text = format!("{own}{settings}sentinel down-after-milliseconds main 1000\n");
        std::fs::write(&file, text).expect("a file");
        let mut sentinel = tokio::process::Command::new("redis-server");
        sentinel.arg(&file).arg("--sentinel").stdout(std::process::Stdio::null()).kill_on_drop(true);
        Sentinel { _child: sentinel.spawn().expect("the sentinel starts"), _dir: dir }
    }
}

/// A server and its sentinel, both with TLS and a password; the sentinel's password may differ.
#[tokio::test]
async fn sentinels_are_queried_over_tls_and_with_a_password_if_required() {
    let server = AuthorizationServer::op(json!({ "lifetime": 60 })).await;
    let upstream = Upstream::start(&server).await;
    let (tls_port, sentinel_port) = (free_port(), free_port());
    let tls = tls_of("server");
    let own = tls_port.to_string();
    let more: Vec<&str> =
        tls.iter().map(String::as_str).chain(["--tls-port", &own, "--requirepass", "sesame-7"]).collect();
    let redis = Redis::start_with(&more).await;
    for (auth, logged) in
        [("", None), ("requirepass sesame-7\n", None), ("requirepass other\n", Some("check `username` and"))]
    {
        let pairs = tls.chunks(2).map(|pair| format!("{} {}\n", pair[0].trim_start_matches('-'), pair[1]));
        let settings = format!(
            "{}port 0\ntls-port {sentinel_port}\ntls-replication yes\n{auth}sentinel resolve-hostnames yes\n\
             sentinel announce-hostnames yes\nsentinel monitor main localhost {tls_port} 1\nsentinel auth-pass main sesame-7\n",
            pairs.collect::<String>()
        );
        let _sentinel = Sentinel::start(&settings);
        let store = format!(
            "store: {{redis: {{url: [\"rediss://localhost:{sentinel_port}\"], sentinel_primary: main, \
             password: {{file: password}}, trust: [\"{}\"]}}, seal_key: {SEAL_KEY}}}\n",
            Peers::certs().ca.display()
        );
        let files = [("password", "sesame-7\n")];
        let sidecar = Sidecar::spawn(&config(&server, &upstream, &store), &files).await;
        match logged {
            None => {
                sidecar.wait_until_ready().await;
                let arguments = ["-a", "sesame-7", "--no-auth-warning"];
                assert_eq!(redis.cli(&[&arguments[..], &["DEL", "keybearer:mark"]].concat()).await, "1", "{auth}");
            }
            Some(text) => drop(sidecar.wait_for_log(text).await),
        }
        assert!(!sidecar.log().contains("sesame-7"), "{}", sidecar.log());
    }
}

#[tokio::test]
async fn sentinels_report_the_primary() {
    let server = AuthorizationServer::op(json!({ "lifetime": 4 })).await;
    let upstream = Upstream::start(&server).await;
    let primary = Redis::start().await;
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &primary.port.to_string()]).await;
    let port = free_port();
    let _sentinel = Sentinel::start(&format!("port {port}\nsentinel monitor main 127.0.0.1 {} 1\n", primary.port));
    let query = async |command: &[&str]| {
        let mut cli = tokio::process::Command::new("redis-cli");
        let output = cli.args(["-p", &port.to_string()]).args(command).output().await.expect("redis-cli is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let end = Instant::now() + Duration::from_secs(15);
    while !query(&["SENTINEL", "REPLICAS", "main"]).await.contains(&replica.port.to_string()) {
        assert!(Instant::now() < end, "the sentinel never finds the replica");
        sleep(Duration::from_millis(100)).await;
    }
    let urls = format!("[\"redis://127.0.0.1:1\", \"redis://127.0.0.1:{port}\"], sentinel_primary: main");
    let store = format!("store: {{redis: {{url: {urls}}}, seal_key: {SEAL_KEY}}}\n");
    let sidecar = Sidecar::start(&config(&server, &upstream, &store)).await;
    let token = server.refresh_token("ann").await;
    assert_eq!(import_refresh_token(&sidecar, &token, None).await.status, 200, "{}", sidecar.log());
    wait_until_stored(&primary, CRM).await;
    let traffic = Traffic::through(&sidecar, API);
    assert_eq!(query(&["SENTINEL", "FAILOVER", "main"]).await.trim(), "OK");
    let end = Instant::now() + Duration::from_secs(15);
    while !replica.cli(&["ROLE"]).await.starts_with("master") {
        assert!(Instant::now() < end, "no node takes over");
        sleep(Duration::from_millis(100)).await;
    }
    let rotations = server.stats().await["rotations"].as_u64();
    while server.stats().await["rotations"].as_u64() < rotations.map(|count| count + 2) {
        assert!(Instant::now() < end, "{}", sidecar.log());
        sleep(Duration::from_millis(100)).await;
    }
    assert!(traffic.end(&sidecar).await > 50);
    wait_until_stored(&replica, CRM).await;
    let stats = server.stats().await;
    assert_eq!((&stats["refused"], &stats["rotations"]), (&json!(0), &stats["token_requests"]["person"]), "{stats}");
}
