//! Replicas share a verdict, and a token that the upstream rejects, over Redis.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{PASSWORD, PATIENCE, Response, asked, bare, crm, get, is_refresh, refresh, refusal, served, tokens};
use crate::rig::fleet;
use crate::rig::redis::Redis;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::until;

#[tokio::test]
async fn a_verdict_that_one_replica_has_holds_up_no_person_at_another_and_outlasts_no_token() {
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
        served(replica, "api.test").await;
    }
    // At the refresh one replica gets the error for both; at the token's end the server is asked again.
    *response.lock().unwrap() = Some(|| refusal(400, "invalid_scope"));
    for replica in both {
        replica.logged("\"error\":\"invalid_scope\"").await;
    }
    *response.lock().unwrap() = None;
    let before = server.count();
    until("it is asked again at the token's end", || server.count() > before).await;
    for replica in both {
        served(replica, "api.test").await;
    }
    // Without a token, a verdict that lasts and a long pause.
    const BUSY: Response = || Reply::Bytes(b"HTTP/1.1 503 X\r\nRetry-After: 300\r\nContent-Length: 0\r\n\r\n".to_vec());
    for (failure, status) in [((|| refusal(401, "invalid_client")) as Response, 424), (BUSY, 503)] {
        *response.lock().unwrap() = Some(failure);
        for replica in both {
            let over = async { while get(replica, "api.test").await.status != status {} };
            timeout(PATIENCE, over).await.unwrap_or_else(|_| panic!("{status}: {}", replica.log()));
        }
        for replica in both {
            let before = server.count();
            assert_eq!(refresh(replica, "crm").await.status, status);
            assert_eq!(server.count(), before + 1, "{}", replica.log());
        }
        let before = server.count();
        other.signal("HUP");
        until("a reload asks", || server.count() == before + 1).await;
        *response.lock().unwrap() = None;
        assert_eq!(refresh(&other, "crm").await.status, 200, "{}", other.log());
        for replica in both {
            served(replica, "api.test").await;
        }
    }
}

#[tokio::test]
async fn replicas_whose_upstream_rejects_every_token_force_one_refresh_in_ten_seconds_together() {
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
    // What is due and what a person asks for go on.
    assert_eq!(refresh(&replicas[1], "crm").await.status, 200);
    assert_eq!(server.count(), 3);
}

#[tokio::test]
async fn a_refused_refresh_token_is_followed_by_the_own_grant_while_redis_is_down() {
    let refuses = Arc::new(AtomicBool::new(false));
    let now = refuses.clone();
    let server = Scripted::start(move |request, before| match is_refresh(request) && now.load(Ordering::SeqCst) {
        true => bare(400),
        false => tokens(&format!("t{before}"), "stays-the-same", 3),
    })
    .await;
    let (upstream, mut redis) = (Scripted::upstream().await, Redis::start().await);
    let sidecar = Sidecar::start(&crm(&server, &upstream, &fleet::store(redis.port), PASSWORD)).await;
    // Only a refresh token that has proven not to rotate is used without Redis.
    until("it was refreshed twice", || server.count() >= 3).await;
    redis.stop().await;
    refuses.store(true, Ordering::SeqCst);
    let passwords = || asked(&server, "crm").iter().filter(|asked| *asked == "password").count();
    until("its own grant follows", || passwords() == 2).await;
    served(&sidecar, "api.test").await;
    sidecar.logged("authorization server refused the refresh token").await;
}
