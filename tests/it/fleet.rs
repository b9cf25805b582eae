//! Replicas that share a Redis: one token for all, no refresh token spent twice, none lost.
//!
//! Not here: the simulation of larger fleets (`src/token/tests/fleet`), a failing Redis (`fleet::outages`).

mod cluster;
mod outages;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::rig::config::{Config, Connection};
use crate::rig::crm::{connection, get};
use crate::rig::fleet::{Fleet, Traffic, dump, store, wait_until_served};
use crate::rig::manager::{call, import_refresh_token};
use crate::rig::peers::{AuthorizationServer, Upstream, python, run_script};
use crate::rig::raw;
use crate::rig::redis::Redis;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, duration_factor};
use crate::rig::stage::wait_until;
use crate::rig::wire::Wire;

/// TL-15.
#[tokio::test]
async fn three_replicas_request_each_token_once() {
    let fleet = Fleet::start(3, 3).await;
    fleet.connect().await;
    let machine = fleet.server.token_requests("machine").await;
    assert_eq!(machine, 1, "one request for the fleet");
    let traffic: Vec<_> = fleet.replicas.iter().map(|replica| Traffic::through(replica, "http://api.test/x")).collect();
    sleep(Duration::from_secs(12) * duration_factor()).await;
    for (traffic, replica) in traffic.into_iter().zip(&fleet.replicas) {
        assert!(traffic.end(replica).await > 300);
    }
    fleet.assert_no_token_spent_twice().await;
    let rotations = fleet.count("rotations").await;
    assert!((6 * u64::from(duration_factor())..=9 * u64::from(duration_factor())).contains(&rotations), "{rotations}");
    let machine = fleet.server.token_requests("machine").await;
    assert!(machine <= 9 * u64::from(duration_factor()), "{machine}");
}

/// The same while replicas are killed, stopped past the term of a lease, and partitioned from Redis.
#[tokio::test]
async fn no_request_fails_while_replicas_come_and_go() {
    const API: &str = "http://api.test/x";
    let mut fleet = Fleet::start(3, 3).await;
    fleet.connect().await;
    for _ in 0..duration_factor() {
        // A different replica in each round.
        fleet.replicas.rotate_left(1);
        fleet.wires.rotate_left(1);
        let [zero, one, two] = &fleet.replicas[..] else { panic!("three") };
        let traffic = [zero, one, two].map(|replica| Traffic::through(replica, API));
        // A partition shorter than the token's lifetime.
        fleet.wait_for_rotation().await;
        fleet.wires[0].cut();
        sleep(Duration::from_secs(1)).await;
        fleet.wires[0].restore();
        fleet.wait_for_rotation().await;
        let [zero_traffic, one_traffic, two_traffic] = traffic;
        zero_traffic.end(zero).await;
        two_traffic.end(two).await;

        // Two seconds for the token request, five more for the lease.
        two.signal("STOP");
        let killed = fleet.replicas.remove(0);
        let (dir, addresses, _) = killed.crash().await;
        sleep(Duration::from_secs(8)).await;
        one_traffic.end(&fleet.replicas[0]).await;
        fleet.replicas[1].signal("CONT");
        fleet.replicas.insert(0, Sidecar::start_over(dir, addresses, &[]).await);
        let traffic: Vec<_> = fleet.replicas.iter().map(|replica| Traffic::through(replica, API)).collect();
        fleet.wait_for_rotation().await;
        for (traffic, replica) in traffic.into_iter().zip(&fleet.replicas) {
            assert!(traffic.end(replica).await > 10);
        }
    }
    fleet.assert_no_token_spent_twice().await;
}

/// ST-12: a replica is stopped past its lease while another replica rotates the refresh token.
#[tokio::test]
async fn a_replica_that_lost_its_lease_writes_nothing() {
    let server = Scripted::start(|_, before| {
        let token = json!({ "access_token": format!("t-{before}"), "token_type": "Bearer", "expires_in": 6,
            "refresh_token": format!("r-{before}") });
        let reply = Reply::json(200, &token);
        if before == 1 { reply.delayed(Duration::from_millis(500)) } else { reply }
    })
    .await;
    let upstream = Scripted::upstream().await;
    let redis = Redis::start().await;
    let keys = "grant: authorization_code, authorization_server: {timeout: 2s}";
    let config = machine(&server, &upstream, &redis, keys);
    let spent = || -> Vec<String> {
        let bodies = server.received().into_iter().map(|request| String::from_utf8_lossy(&request.body).into_owned());
        bodies.filter_map(|body| Some(body.split("refresh_token=").nth(1)?.split('&').next()?.to_owned())).collect()
    };
    let sent = || upstream.received().last().map(|request| request.values("authorization").concat());
    let paused = Sidecar::start(&config).await;
    assert_eq!(import_refresh_token(&paused, "r-given", None).await.status, 200, "{}", paused.log());
    wait_until("the replica refreshes", || server.count() == 2).await;
    let left: i64 = redis.cli(&["PTTL", "keybearer:{crm}:lease:default"]).await.parse().expect("a number");
    assert!((2_000..=7_000).contains(&left), "a lease outlasts the token request: {left} ms are left");
    paused.signal("STOP");
    let other = Sidecar::start(&config).await;
    assert_eq!((get(&other, "").await.status, sent().as_deref()), (200, Some("Bearer t-0")));
    // It waits for the lease to expire, even though its token expires earlier.
    wait_until("the other refreshes", || server.count() == 3).await;
    wait_until_served(&other, Duration::from_secs(5)).await;
    assert_eq!(sent().as_deref(), Some("Bearer t-2"));
    paused.signal("CONT");
    // It reads the response, and its write is rejected.
    paused.wait_for_log("the lease of crm/default was lost").await;
    wait_until_served(&paused, Duration::from_secs(2)).await;
    wait_until("a replica refreshes", || server.count() >= 4).await;
    assert_eq!(spent()[..4], ["r-given", "r-0", "r-0", "r-2"], "{}", paused.log());
    for replica in [&paused, &other] {
        wait_until_served(replica, Duration::from_secs(2)).await;
        assert_ne!(sent().as_deref(), Some("Bearer t-1"), "an unsaved token is discarded");
    }
    for (key, text) in dump(&redis).await {
        for secret in spent().iter().map(String::as_str).chain(["t-0", "t-2", "t-3", "r-3"]) {
            assert!(!text.contains(secret), "{key}: {text}");
        }
    }
}

/// A connection `crm` of a machine at a scripted token endpoint.
fn machine(server: &Scripted, upstream: &Scripted, redis: &Redis, keys: &str) -> String {
    let crm = Connection::at("crm", server).keys(keys).plain("api.test");
    let config = Config::new().top(store(redis.port)).manager().host("api.test", upstream.address);
    config.connection(crm).to_string()
}

/// TL-05 and TL-07: the other replicas learn a failure from the store, not from the server.
#[tokio::test]
async fn one_replica_retries_a_failing_server_for_all() {
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let arrivals = times.clone();
    let server = Scripted::start(move |_, before| {
        arrivals.lock().unwrap().push(Instant::now());
        match before {
            0 => Reply::token("t-0", 4),
            1 => Reply::Bytes(b"HTTP/1.1 429 X\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n".to_vec()),
            2 => Reply::token("t-1", 4),
            _ => Reply::json(401, &json!({ "error": "invalid_client" })),
        }
    })
    .await;
    let (upstream, redis) = (Scripted::upstream().await, Redis::start().await);
    let config = machine(&server, &upstream, &redis, "");
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Sidecar::start(&config).await);
    }
    wait_until("the pause is over", || server.count() == 3).await;
    let times = times.lock().unwrap().clone();
    assert!(times[2] - times[1] >= Duration::from_secs(3), "{times:?}");
    for replica in &replicas {
        wait_until_served(replica, Duration::from_secs(2)).await;
    }
    // A permanent failure: every replica reports it, and one received it from the server.
    for replica in &replicas {
        replica.wait_for_log("\"error\":\"invalid_client\"").await;
    }
    assert_eq!(server.count(), 4, "{}", replicas[0].log());
    let informed = replicas.iter().filter(|replica| replica.log().contains("another replica got this response"));
    assert!(informed.count() >= 2);
    // A replica that starts may have another secret, so it sends one request.
    let _late = Sidecar::start(&config).await;
    wait_until("it sends one request", || server.count() == 5).await;
}

/// A revocation request that outlasts the lease still removes the token.
#[tokio::test]
async fn a_revocation_that_outlasts_its_lease_still_forgets_the_token() {
    let server = Scripted::start(|request, before| match request.request_line().contains("/revoke") {
        true => Reply::Silence,
        false => Reply::json(
            200,
            &json!({ "access_token": format!("t-{before}"), "token_type": "Bearer",
            "expires_in": 600, "refresh_token": format!("r-{before}") }),
        ),
    })
    .await;
    let (upstream, redis) = (Scripted::upstream().await, Redis::start().await);
    let keys = format!(
        "grant: authorization_code, authorization_server: {{timeout: 6s}}, revocation_url: \"http://{}/revoke\"",
        server.address
    );
    let config = machine(&server, &upstream, &redis, &keys);
    let (one, other) = (Sidecar::start(&config).await, Sidecar::start(&config).await);
    assert_eq!(import_refresh_token(&one, "r-given", None).await.status, 200, "{}", one.log());
    wait_until_served(&other, Duration::from_secs(1)).await;
    // Two calls of 6 s each, and a lease of 11 s.
    let revoked = call(one.admin(), "POST", "/connections/crm/revoke", &json!({})).await;
    assert_eq!(revoked.status, 200, "{}\n{}", revoked.text(), one.log());
    for replica in [&one, &other] {
        let forgotten = async { while get(replica, "").await.code() != "consent_required" {} };
        tokio::time::timeout(Duration::from_secs(2), forgotten).await.unwrap_or_else(|_| panic!("{}", replica.log()));
    }
}

/// A refresh token that does not rotate needs no lease.
#[tokio::test]
async fn a_refresh_token_that_does_not_rotate_is_used_without_redis() {
    let server = Scripted::start(|_, before| {
        Reply::json(
            200,
            &json!({ "access_token": format!("t-{before}"), "token_type": "Bearer", "expires_in": 3,
            "refresh_token": "r-same" }),
        )
    })
    .await;
    let (upstream, mut redis) = (Scripted::upstream().await, Redis::start().await);
    let sidecar = Sidecar::start(&machine(&server, &upstream, &redis, "grant: authorization_code")).await;
    assert_eq!(import_refresh_token(&sidecar, "r-same", None).await.status, 200, "{}", sidecar.log());
    let traffic = Traffic::through(&sidecar, "http://api.test/x");
    wait_until("it was refreshed once", || server.count() >= 3).await;
    redis.stop().await;
    let before = server.count();
    wait_until("it is refreshed without the store", || server.count() >= before + 3).await;
    assert!(traffic.end(&sidecar).await > 50);
}

#[tokio::test]
async fn an_authorization_started_at_one_replica_ends_at_another() {
    let server = AuthorizationServer::op(json!({ "lifetime": 60 })).await;
    let upstream = Upstream::start(&server).await;
    let (redis, balancer) = (Redis::start().await, Wire::to(0).await);
    let top = format!("{}public_url: \"http://localhost:{}\"\n", store(redis.port), balancer.port);
    let secret = "p-web-secret-0123456789abcdef0123456789abcdef";
    let keys = format!(
        "authorization_url: \"{}?prompt=consent\", client_id: p-web, client_secret: {secret}, grant: authorization_code",
        server.authorization_url()
    );
    let config = connection(&server, &upstream, &top, &keys).replace("scopes: [", "scopes: [openid, offline_access, ");
    let (one, other) = (Sidecar::start(&config).await, Sidecar::start(&config).await);
    balancer.redirect_to(one.admin().port());
    let flow = call(one.admin(), "POST", "/connections/crm/authorize", &json!({})).await.json();
    let link = flow["authorization_url"].as_str().unwrap_or_else(|| panic!("{flow}")).to_owned();
    let walked = run_script(python(), "person.py", &[&link, "ann", "--stop-before-callback"], &[]).await;
    let callback = walked["callback"].as_str().unwrap_or_else(|| panic!("{walked}")).to_owned();
    let cookies = walked["cookies"].as_str().expect("cookies");
    balancer.redirect_to(other.admin().port());
    let path = callback.split_once("/oauth/").map(|(_, path)| format!("/oauth/{path}")).expect("a path");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{}\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n",
        balancer.port
    );
    let page =
        raw::send(format!("127.0.0.1:{}", balancer.port).parse().expect("a socket address"), request.as_bytes()).await;
    assert_eq!(page.status, 303, "{}\n{}", page.text(), other.log());
    wait_until_served(&other, Duration::from_secs(2)).await;
    wait_until_served(&one, Duration::from_secs(2)).await;
    let id = flow["id"].as_str().expect("an id");
    let outcome = call(one.admin(), "GET", &format!("/authorizations/{id}"), &json!({})).await.json();
    assert_eq!(outcome["status"], "connected", "{outcome}");
}

/// ST-11.
#[tokio::test]
async fn redis_keys_are_readable_and_values_are_sealed_and_expire() {
    let fleet = Fleet::start(1, 60).await;
    fleet.connect().await;
    let mut all = dump(&fleet.redis).await;
    all.sort_unstable();
    assert_eq!(
        all.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
        [
            "keybearer:connections",
            "keybearer:mark",
            "keybearer:{crm}:token:default",
            "keybearer:{crm}:tokens",
            "keybearer:{machine}:token:default",
            "keybearer:{machine}:tokens"
        ]
    );
    let record = fleet.upstream.records().await.pop().expect("a request");
    let token = record["headers"].as_array().expect("fields").iter().filter_map(Value::as_str);
    let token = token.filter_map(|value| value.strip_prefix("Bearer ")).next().expect("a token").to_owned();
    // Other kinds of keys.
    let (one, admin) = (&fleet.replicas[0], fleet.replicas[0].admin());
    fleet.server.control(json!({ "status": 503, "times": 1 })).await;
    call(admin, "POST", "/connections/crm/refresh", &json!({})).await;
    call(admin, "POST", "/connections/machine/revoke", &json!({})).await;
    let set = call(admin, "PUT", "/secrets/shared", &json!({ "value": "s3cr3t-of-the-store" })).await;
    assert_eq!(set.status / 100, 2, "{}\n{}", set.text(), one.log());
    let all = dump(&fleet.redis).await;
    for part in ["put-off", "removed", "secrets", "token", "mark"] {
        assert!(all.iter().any(|(key, _)| key.contains(part)), "{part}: {all:?}");
    }
    for (key, text) in all {
        for secret in [token.as_str(), "s3cr3t-of-the-store", "person-secret", "machine-secret", "api.read"] {
            assert!(!text.contains(secret), "{key}: {text}");
        }
        let left: i64 = fleet.redis.cli(&["PTTL", &key]).await.parse().expect("a number");
        let max = if key.contains("machine}:token:") { 700_000 } else { 401 * 24 * 3_600_000 };
        // Stored secrets have no TTL; leases may expire at any moment.
        let ends_soon = key.contains("put-off") || key.contains("spending");
        let fleeting = key.contains("lease") || key.contains("secrets") || (ends_soon && left == -2);
        assert!(fleeting || (1000..=max).contains(&left), "{key}: {left}");
    }
}

/// The stated lifetime of a refresh token is a forecast: only the server's refusal ends the record.
#[tokio::test]
async fn a_stated_refresh_token_expiry_removes_no_record() {
    let server = Scripted::start(|_, before| {
        let response = json!({ "access_token": format!("t-{before}"), "token_type": "Bearer", "expires_in": 2,
            "refresh_token": "the-same", "refresh_token_expires_in": 1 });
        Reply::json(200, &response)
    })
    .await;
    let (upstream, redis) = (Scripted::upstream().await, Redis::start().await);
    let config = machine(&server, &upstream, &redis, "grant: authorization_code");
    let sidecar = Sidecar::start(&config).await;
    assert_eq!(import_refresh_token(&sidecar, "given", None).await.status, 200, "{}", sidecar.log());
    let day: i64 = 24 * 3_600_000;
    let left = async |key: &str| redis.cli(&["PTTL", key]).await.parse::<i64>().expect("a number");
    // It is refreshed even after its stated expiry.
    wait_until("it is refreshed", || server.count() >= 3).await;
    for key in ["keybearer:{crm}:token:default", "keybearer:{crm}:tokens", "keybearer:connections"] {
        assert!(left(key).await > 399 * day, "{key}: {}", left(key).await);
    }
    assert_eq!(get(&sidecar, "").await.status, 200, "{}", sidecar.log());
}

#[tokio::test]
async fn revocation_rejection_and_consent_apply_to_all_replicas() {
    let fleet = Fleet::start(2, 60).await;
    let [one, other] = &fleet.replicas[..] else { panic!("two") };
    assert_eq!(get(other, "").await.code(), "consent_required");
    fleet.connect().await;
    fleet.assert_no_token_spent_twice().await;

    // The token of both replicas is no longer accepted.
    let before = fleet.count("rotations").await;
    fleet.server.control(json!({ "revoke_all": true })).await;
    wait_until_served(one, Duration::from_secs(5)).await;
    wait_until_served(other, Duration::from_secs(5)).await;
    assert_eq!(fleet.count("rotations").await, before + 1, "one refresh fixes both");

    let revoked = call(one.admin(), "POST", "/connections/crm/revoke", &json!({})).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text());
    let started = Instant::now();
    while get(other, "").await.status == 200 {
        assert!(started.elapsed() < Duration::from_secs(1), "{}", other.log());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(get(other, "").await.code(), "consent_required");
    fleet.connect().await;
}
