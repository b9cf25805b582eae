//! A real Redis Cluster: discovered through one node, shared by replicas, with a failover of one shard.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::rig::command::{output_text, run};
use crate::rig::fleet::{SEAL_KEY, Traffic, config, free_port, tls_of};
use crate::rig::manager::{call, import_refresh_token};
use crate::rig::peers::{AuthorizationServer, Peers, Upstream};
use crate::rig::raw;
use crate::rig::redis::Redis;
use crate::rig::sidecar::Sidecar;

const API: &str = "http://api.test/x";
const MACHINE: &str = "http://m.test/x";
/// A key of the shard with the records of `crm`.
const KEY: &str = "keybearer:{crm}:token:default";

#[tokio::test]
async fn a_failover_of_a_shard_loses_no_token_and_no_request() {
    let server = AuthorizationServer::op(json!({ "lifetime": 24 })).await;
    let upstream = Upstream::start(&server).await;
    let mut nodes = Redis::cluster(6, &[], (&[], &[]), &[]).await;
    let urls = format!("[\"redis://127.0.0.1:1\", \"redis://127.0.0.1:{}\"]", nodes[5].port);
    let store = format!("store: {{redis: {{url: {urls}, cluster: true}}, seal_key: {SEAL_KEY}}}\n");
    let text = config(&server, &upstream, &store);
    let replicas = [Sidecar::start(&text).await, Sidecar::start(&text).await];
    let token = server.refresh_token("ann").await;
    assert_eq!(import_refresh_token(&replicas[0], &token, None).await.status, 200, "{}", replicas[0].log());
    let end = Instant::now() + Duration::from_secs(5);
    while raw::get_through(replicas[1].proxy(), API, "").await.status != 200 {
        assert!(Instant::now() < end, "the other replica does not load the token: {}", replicas[1].log());
        sleep(Duration::from_millis(50)).await;
    }
    let traffic = replicas.each_ref().map(|replica| Traffic::through(replica, API));
    // Keys of other connections are in other shards.
    let tokens = call(replicas[1].admin(), "GET", "/connections/machine/tokens", &json!({})).await;
    assert_eq!(tokens.json()["items"].as_array().map(Vec::len), Some(1), "{}", tokens.text());
    let dir = replicas[0].dir.path();
    let file = dir.join("export.jsonl").display().to_string();
    for (arguments, input, expected) in [
        (&["secret", "set", "vault"][..], "s3cr3t", "vault stored"),
        (&["secret", "list"], "", "vault"),
        (&["store", "export", &file], "", "3 records"),
        (&["store", "import", "--overwrite", &file], "", "3 records imported"),
    ] {
        let output = run(dir, arguments, input).await;
        assert!(output_text(&output).contains(expected), "{arguments:?}: {}", output_text(&output));
    }

    let failed = Redis::primary(&nodes, KEY).await.expect("one of the nodes is the primary");
    nodes[failed].stop().await;
    let rotations = server.stats().await["rotations"].as_u64();
    let end = Instant::now() + Duration::from_secs(30);
    while server.stats().await["rotations"].as_u64() < rotations.map(|count| count + 1) {
        assert!(Instant::now() < end, "{}", replicas[0].log());
        sleep(Duration::from_millis(100)).await;
    }
    for (traffic, replica) in traffic.into_iter().zip(&replicas) {
        assert!(traffic.end(replica).await > 100);
        replica.wait_for_log("store reachable again").await;
    }
    let others: Vec<Redis> =
        nodes.into_iter().enumerate().filter(|(number, _)| *number != failed).map(|(_, node)| node).collect();
    assert!(Redis::primary(&others, KEY).await.is_some(), "its replica has taken over");
    let stats = server.stats().await;
    assert_eq!((&stats["refused"], &stats["rotations"]), (&json!(0), &stats["token_requests"]["person"]), "{stats}");
}

#[tokio::test]
async fn a_cluster_with_tls_and_a_password_is_shared_and_a_missing_cluster_key_is_reported() {
    let server = AuthorizationServer::op(json!({ "lifetime": 60 })).await;
    let upstream = Upstream::start(&server).await;
    let tls = tls_of("server");
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    let closed = ["--tls-cluster", "yes", "--tls-replication", "yes", "--requirepass", "sesame-7"];
    let ca = Peers::certs().ca.display().to_string();
    let (certificate, key) = Peers::certs().leaf("mtls-ca-issued");
    let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
    let to_each_other = ["--tls-client-cert-file", &certificate, "--tls-client-key-file", &key];
    let ports = [free_port(), free_port(), free_port()].map(|port| port.to_string());
    let (auth, tls_arguments) = (["-a", "sesame-7", "--no-auth-warning"], ["--tls", "--cacert", &ca]);
    let _nodes =
        Redis::cluster(3, &[&tls[..], &closed, &to_each_other].concat(), (&auth, &tls_arguments), &ports).await;
    let of = |more: &str| {
        let url =
            format!("url: \"rediss://localhost:{}\", password: {{file: password}}, trust: [\"{ca}\"]{more}", ports[0]);
        config(&server, &upstream, &format!("store: {{redis: {{{url}}}, seal_key: {SEAL_KEY}}}\n"))
    };
    let start = async |more: &str, password: &str| Sidecar::spawn(&of(more), &[("password", password)]).await;
    for number in 1..3 {
        let sidecar = start(", cluster: true", "sesame-7\n").await;
        sidecar.wait_until_ready().await;
        assert_eq!(raw::get_through(sidecar.proxy(), MACHINE, "").await.status, 200, "{number}: {}", sidecar.log());
        assert_eq!(server.token_requests("machine").await, 1, "{number}");
        assert!(!sidecar.log().contains("sesame-7"), "{}", sidecar.log());
    }
    start("", "sesame-7\n").await.wait_for_log("set `cluster: true` in store.redis").await;
    start(", cluster: true", "other\n").await.wait_for_log("check `username` and `password` in store.redis").await;
}
