//! Replicas share failures and rejected tokens through Redis.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{
    PASSWORD, Response, TIMEOUT, crm, empty_response, get, is_refresh, refresh, refusal, sent_grants, tokens,
    wait_until_served,
};
use crate::rig::fleet;
use crate::rig::redis::Redis;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::wait_until;

#[tokio::test]
async fn a_shared_failure_delays_no_person_and_lasts_no_longer_than_the_token() {
    let response = Arc::new(Mutex::new(None::<Response>));
    let now = response.clone();
    let server = Scripted::start(move |_, before| match &*now.lock().unwrap() {
        Some(response) => response(),
        None => Reply::token(&format!("t{before}"), 5),
    })
    .await;
    let (upstream, redis) = (Scripted::upstream().await, Redis::start().await);
    let config = crm(&server, &upstream, &fleet::store(redis.port), "comments: none");
    let (one, other) = (Sidecar::start(&config).await, Sidecar::start(&config).await);
    let both = [&one, &other];
    for replica in both {
        wait_until_served(replica, "api.test").await;
    }
    // One replica's refresh fails for both; when the token expires, a replica retries.
    *response.lock().unwrap() = Some(|| refusal(400, "invalid_scope"));
    for replica in both {
        replica.wait_for_log("\"error\":\"invalid_scope\"").await;
    }
    *response.lock().unwrap() = None;
    let before = server.count();
    wait_until("a replica retries when the token expires", || server.count() > before).await;
    for replica in both {
        wait_until_served(replica, "api.test").await;
    }
    // Without a token: a permanent failure, and a long backoff.
    const BUSY: Response = || Reply::Bytes(b"HTTP/1.1 503 X\r\nRetry-After: 300\r\nContent-Length: 0\r\n\r\n".to_vec());
    for (failure, status) in [((|| refusal(401, "invalid_client")) as Response, 424), (BUSY, 503)] {
        *response.lock().unwrap() = Some(failure);
        for replica in both {
            let failed = async { while get(replica, "api.test").await.status != status {} };
            timeout(TIMEOUT, failed).await.unwrap_or_else(|_| panic!("{status}: {}", replica.log()));
        }
        for replica in both {
            let before = server.count();
            assert_eq!(refresh(replica, "crm").await.status, status);
            assert_eq!(server.count(), before + 1, "{}", replica.log());
        }
        let before = server.count();
        other.signal("HUP");
        wait_until("the reload sends a token request", || server.count() == before + 1).await;
        *response.lock().unwrap() = None;
        assert_eq!(refresh(&other, "crm").await.status, 200, "{}", other.log());
        for replica in both {
            wait_until_served(replica, "api.test").await;
        }
    }
}

#[tokio::test]
async fn replicas_together_force_one_refresh_in_ten_seconds_while_the_upstream_rejects_every_token() {
    let server = Scripted::tokens(3600).await;
    let upstream = Scripted::start(|_, _| Reply::text(401, "text/plain", "go away")).await;
    let redis = Redis::start().await;
    let config = crm(&server, &upstream, &fleet::store(redis.port), "comments: none");
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Sidecar::start(&config).await);
    }
    assert_eq!(server.count(), 1);
    assert_eq!(get(&replicas[0], "api.test").await.status, 401);
    assert_eq!(server.count(), 2);
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        for replica in &replicas {
            assert_eq!(get(replica, "api.test").await.status, 401);
        }
    }
    assert_eq!(server.count(), 2, "{}", replicas[1].log());
    // A person's refresh ignores the rejection backoff.
    assert_eq!(refresh(&replicas[1], "crm").await.status, 200);
    assert_eq!(server.count(), 3);
}

#[tokio::test]
async fn a_refused_refresh_token_falls_back_to_the_own_grant_while_redis_is_down() {
    let refuses = Arc::new(AtomicBool::new(false));
    let now = refuses.clone();
    let server = Scripted::start(move |request, before| match is_refresh(request) && now.load(Ordering::SeqCst) {
        true => empty_response(400),
        false => tokens(&format!("t{before}"), "stays-the-same", 3),
    })
    .await;
    let (upstream, mut redis) = (Scripted::upstream().await, Redis::start().await);
    let sidecar = Sidecar::start(&crm(&server, &upstream, &fleet::store(redis.port), PASSWORD)).await;
    // Without Redis, only a refresh token known not to rotate is used.
    wait_until("the token was refreshed twice", || server.count() >= 3).await;
    redis.stop().await;
    refuses.store(true, Ordering::SeqCst);
    let passwords = || sent_grants(&server, "crm").iter().filter(|grant| *grant == "password").count();
    wait_until("it falls back to its own grant", || passwords() == 2).await;
    wait_until_served(&sidecar, "api.test").await;
    sidecar.wait_for_log("authorization server refused the refresh token").await;
}
