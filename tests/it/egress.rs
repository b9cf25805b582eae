//! What may be reached: private addresses only by name or leave, special ones and our own listeners never.

use crate::destination::Goes::*;
use crate::destination::{check, get};
use crate::rig::peers;
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;
use crate::stage::Stage;

#[tokio::test]
async fn private_addresses_are_closed_unless_they_are_named() {
    let stage = Stage::start("").await;
    let port = stage.evil.address.port();
    for host in [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "127.0.0.2",
        "10.0.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "[fd00::1]",
    ] {
        let row = format!("private {host}");
        check(&stage, &row, &get(&format!("http://{host}:{port}/"), host, ""), 403, "egress_denied", Nowhere).await;
    }
    for host in [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "0.0.0.0",
        "[::]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "224.0.0.1",
        "255.255.255.255",
        "[fe80::1]",
    ] {
        let row = format!("special {host}");
        check(&stage, &row, &get(&format!("http://{host}:{port}/"), host, ""), 403, "egress_denied", Nowhere).await;
    }
}

#[tokio::test]
async fn allow_private_opens_networks_but_never_our_own_listeners() {
    let stage = Stage::start("egress: {allow_private: true}\n").await;
    let port = stage.evil.address.port();
    for host in ["localhost", "127.0.0.1"] {
        check(&stage, host, &get(&format!("http://{host}:{port}/"), host, ""), 200, "", Evil).await;
    }
    let said = stage.say(get("http://169.254.169.254/", "x", "")).await;
    assert_eq!((said.status(), said.code().as_str()), (403, "egress_denied"), "metadata stays closed");
    for (listener, own) in [("proxy", stage.sidecar.proxy()), ("admin", stage.sidecar.admin())] {
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            let row = format!("AD-04 {listener} as {host}");
            let bytes = get(&format!("http://{host}:{}/livez", own.port()), host, "");
            check(&stage, &row, &bytes, 403, "egress_denied", Nowhere).await;
        }
    }
}

#[tokio::test]
async fn an_address_in_a_route_opens_its_own_port_alone() {
    let (api, tokens, other) = (Scripted::upstream().await, Scripted::tokens(3600).await, Scripted::upstream().await);
    let admin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let ports = format!("{}, {admin}", other.address.port());
    let sidecar = Sidecar::start(&format!(
        "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:{admin}\"}}\negress: {{connect_ports: [{ports}]}}\n\
         hosts: {{me.test: \"127.0.0.1\"}}\nconnections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \"http://{}/token\", \
         routes: [{{mount: /x, upstream: \"http://{}\"}}, {{mount: /me, upstream: \"http://me.test:{admin}\", upstream_tls: false}}]}}\n",
        tokens.address, api.address
    ))
    .await;
    let proxy = sidecar.proxy();
    let mounted = raw::get(proxy, "/x/1").await;
    assert_eq!((mounted.status, api.count()), (200, 1), "the token endpoint is reached too: {}", sidecar.log());
    assert_eq!(raw::get_through(proxy, &format!("http://{}/2", api.address), "").await.status, 200);
    let me = [format!("127.0.0.1:{admin}"), format!("me.test:{admin}"), proxy.to_string()];
    for place in me.iter().chain([&other.address.to_string(), &format!("127.0.0.2:{}", api.address.port())]) {
        let answer = raw::get_through(proxy, &format!("http://{place}/livez"), "").await;
        assert_eq!((answer.status, answer.code()), (403, "egress_denied"), "{place}: {}", answer.text());
    }
    for place in [&me[0], &me[1], &other.address.to_string()] {
        let mut conn = Conn::open(proxy).await;
        conn.write(format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n").as_bytes()).await;
        assert_eq!(conn.answer().await.status, 403, "{place} by CONNECT");
    }
    let answer = raw::get(proxy, "/me/livez").await;
    assert_eq!((answer.status, answer.code()), (403, "egress_denied"), "our own name at a mount: {}", answer.text());
    assert_eq!(other.count(), 0);
}

#[tokio::test]
async fn with_deny_only_routes_are_reached() {
    let stage = Stage::start("egress: {unmatched: deny}\n").await;
    check(&stage, "matched", &get("http://good.test/", "x", ""), 200, "", Good).await;
    check(&stage, "unmatched", &get("http://evil.test/", "x", ""), 403, "egress_denied", Nowhere).await;
    check(&stage, "other port", &get("http://good.test:81/", "x", ""), 403, "egress_denied", Nowhere).await;
}

/// Against the machine's own resolver, in namespaces of their own: see the script.
#[tokio::test]
async fn a_silent_name_server_delays_no_other_name_and_holds_few_threads() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut script = tokio::process::Command::new("unshare");
    script.args(["--map-root-user", "--mount", "--net"]).arg(peers::python()).arg(peers::rig("silent_dns.py"));
    script.arg(env!("CARGO_BIN_EXE_keybearer")).arg(dir.path()).kill_on_drop(true);
    let output = tokio::time::timeout(crate::stage::s(40.0), script.output()).await.expect("it ends in time");
    let output = output.expect("unshare of util-linux is installed");
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(seen["status"], 204, "{seen}");
    // Eight lookups of the silent zone, and what a program has without any.
    assert!(seen["threads"].as_u64().expect("a number") < 40, "{seen}");
}
