//! `store.redis`: what it takes, and what it refuses without showing a password.

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
fn urls_name_a_server_a_socket_the_sentinels_or_nodes_of_a_cluster() {
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
fn what_is_no_store_in_redis_is_refused_with_its_place() {
    let at = |keys: &str| format!("store: {{redis: {{{keys}}}, {KEY}}}\n");
    check(
        &at("url: \"redis://kb:s3cr3t@r.test\""),
        &["1:22: store.redis.url: the URL holds credentials; write them as `username`"],
    );
    check(
        &at("url: http://r.test"),
        &["1:22: store.redis.url: the URL is none of Redis; write rediss://HOST:PORT/DATABASE"],
    );
    check(&at("url: redis://r.test/x"), &["1:22: store.redis.url: the URL names no database by its number"]);
    check(&at("url: \"redis://r.test?a=b\""), &["1:22: store.redis.url: the URL holds more than a place"]);
    check(
        &at("url: [redis://a, redis://b]"),
        &["1:22: store.redis.url: names 2 servers; write one URL; with `sentinel_primary"],
    );
    let mixed = "url: [redis://a, rediss://b], sentinel_primary: main";
    check(&at(mixed), &["1:22: store.redis.url: names servers in different ways"]);
    check(
        &at("url: redis://a, cluster: true, sentinel_primary: main"),
        &["1:42: store.redis.cluster: a cluster has no sentinels; keep one of"],
    );
    check(
        &at("url: redis://a/1, cluster: true"),
        &["1:22: store.redis.url: names no node of a cluster; write rediss://"],
    );
    check(&at("username: kb"), &["1:16: store.redis.url: `url` is missing; write rediss://HOST:PORT/DATABASE"]);
    check(&at("url: redis://a, key_prefix: \"{a}\""), &["1:45: store.redis.key_prefix: `{a}` is no prefix of keys"]);
    let unsealed = "store: {redis: {url: redis://a}}\n";
    check(
        unsealed,
        &["1:16: store.redis: replicas share this store, and `seal_key` is missing; write `seal_key: {file: PATH}`"],
    );
    let both = format!("store: {{redis: {{url: redis://a}}, embedded: {{}}, {KEY}}}\n");
    check(&both, &["1:8: store: names several stores; keep one of `embedded`, `redis` and `memory`"]);
}
