//! `store.redis`: valid and invalid values. Problems never quote a password.

use super::*;
use crate::model::{RedisAt, RedisKind, RedisSettings, StoreKind};

const KEY: &str = "seal_key: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

fn redis(keys: &str) -> RedisSettings {
    match accept(&format!("store: {{redis: {{{keys}}}, {KEY}}}\n")).model.store.kind {
        StoreKind::Redis(settings) => *settings,
        other => panic!("{other:?}"),
    }
}

#[test]
fn urls_name_a_server_a_socket_sentinels_or_cluster_nodes() {
    let at = |host: &str, port| RedisAt::Tcp { host: host.to_owned(), port };
    let plain = redis("url: redis://r.test");
    assert_eq!((plain.servers, plain.tls, plain.database), (vec![at("r.test", 6379)], false, 0));
    assert_eq!((plain.key_prefix.as_str(), plain.username, plain.password), ("keybearer:", None, None));
    let tls = redis("url: \"rediss://[::1]:6380/3\", username: kb, password: s3cr3t, key_prefix: \"a/b:\"");
    assert_eq!((tls.servers, tls.tls, tls.database), (vec![at("::1", 6380)], true, 3));
    assert_eq!((tls.key_prefix.as_str(), tls.username.as_deref()), ("a/b:", Some("kb")));
    assert!(!format!("{:?}", tls.password).contains("s3cr3t"));
    assert_eq!(redis("url: \"unix:///run/redis.sock\"").servers, [RedisAt::Unix("/run/redis.sock".into())]);
    let sentinels = redis("url: [\"redis://a:26379/1\", \"redis://b:26379/1\"], sentinel_primary: main");
    assert_eq!(sentinels.servers, [at("a", 26379), at("b", 26379)]);
    assert_eq!((sentinels.kind, sentinels.database), (RedisKind::Sentinels { primary: "main".to_owned() }, 1));
    let cluster = redis("url: [\"redis://a\", \"redis://b\"], cluster: true");
    assert_eq!((cluster.kind, cluster.servers), (RedisKind::Cluster, vec![at("a", 6379), at("b", 6379)]));
    assert_eq!(redis("url: redis://a, cluster: false").kind, RedisKind::Server);
}

#[test]
fn each_mistake_in_a_redis_store_is_reported() {
    let at = |keys: &str| format!("store: {{redis: {{{keys}}}, {KEY}}}\n");
    check(
        &at("url: \"redis://kb:s3cr3t@r.test\""),
        &["1:22: store.redis.url: the URL contains credentials; write them as `username`"],
    );
    check(
        &at("url: http://r.test"),
        &["1:22: store.redis.url: the URL is not a Redis URL; write rediss://HOST:PORT/DATABASE"],
    );
    check(&at("url: redis://r.test/x"), &["1:22: store.redis.url: the URL has a path that is not a database number"]);
    check(&at("url: \"redis://r.test?a=b\""), &["1:22: store.redis.url: the URL has a query or a fragment"]);
    check(
        &at("url: [redis://a, redis://b]"),
        &["1:22: store.redis.url: lists 2 servers; write one URL; a list needs `sentinel_primary"],
    );
    let mixed = "url: [redis://a, rediss://b], sentinel_primary: main";
    check(&at(mixed), &["1:22: store.redis.url: the URLs differ in scheme or database"]);
    check(
        &at("url: redis://a, cluster: true, sentinel_primary: main"),
        &["1:42: store.redis.cluster: `cluster` and `sentinel_primary` are mutually exclusive; keep one of"],
    );
    check(
        &at("url: redis://a/1, cluster: true"),
        &["1:22: store.redis.url: is not the URL of a cluster node; write rediss://"],
    );
    check(&at("username: kb"), &["1:16: store.redis.url: `url` is missing; write rediss://HOST:PORT/DATABASE"]);
    check(
        &at("url: redis://a, key_prefix: \"{a}\""),
        &["1:45: store.redis.key_prefix: `{a}` is not a valid key prefix"],
    );
    let unsealed = "store: {redis: {url: redis://a}}\n";
    check(
        unsealed,
        &["1:16: store.redis: `seal_key` is missing, and the replicas that share this store need one; write"],
    );
    let both = format!("store: {{redis: {{url: redis://a}}, embedded: {{}}, {KEY}}}\n");
    check(&both, &["1:8: store: more than one store is configured; keep one of `embedded`, `redis` and `memory`"]);
}
