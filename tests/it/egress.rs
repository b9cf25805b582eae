//! Egress policy: private addresses need a configured name or permission; special ones and our own listeners are
//! denied.

mod destination;
mod proxy;

use crate::rig::arrival::Arrival::*;
use crate::rig::arrival::{check, get};
use crate::rig::peers;
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::Stage;

#[tokio::test]
async fn private_and_special_addresses_are_denied_by_default() {
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
        "168.63.129.16",
        "192.0.0.192",
        "100.100.100.200",
        "[fd20:ce::254]",
        "[2002:7f00:1::1]",
        "[2001:0:c000:201:0:f227:80ff:fffe]",
        "[64:ff9b:1::c000:201]",
    ] {
        let row = format!("special {host}");
        check(&stage, &row, &get(&format!("http://{host}:{port}/"), host, ""), 403, "egress_denied", Nowhere).await;
    }
}

#[tokio::test]
async fn allow_private_permits_networks_but_never_our_own_listeners() {
    let (proxy, admin) = (free_port().await, free_port().await);
    let stage = Stage::start(&format!(
        "listeners: {{proxy: \"127.0.0.1:{proxy}\", admin: \"127.0.0.1:{admin}\"}}\n\
         egress: {{allow_private: true, connect_ports: [PORTS, {proxy}, {admin}]}}\n"
    ))
    .await;
    let port = stage.evil.address.port();
    for host in ["localhost", "127.0.0.1"] {
        check(&stage, host, &get(&format!("http://{host}:{port}/"), host, ""), 200, "", Evil).await;
    }
    let wrapped = ["[::ffff:127.0.0.1]", "[2002:7f00:1::1]", "[2001:0:7f00:1:0:f227:80ff:fffe]"];
    for metadata in
        ["169.254.169.254", "100.100.100.200", "[64:ff9b::6464:64c8]", "[2002:a83f:8110::1]", "[fd20:ce::254]"]
    {
        let transcript = stage.exchange(get(&format!("http://{metadata}/"), "x", "")).await;
        assert_eq!(
            (transcript.status(), transcript.code().as_str()),
            (403, "egress_denied"),
            "{metadata} stays denied"
        );
    }
    for (listener, own) in [("proxy", stage.sidecar.proxy()), ("admin", stage.sidecar.admin())] {
        for host in ["127.0.0.1", "localhost"].iter().chain(&wrapped) {
            let row = format!("AD-04 {listener} as {host}");
            let bytes = get(&format!("http://{host}:{}/livez", own.port()), host, "");
            check(&stage, &row, &bytes, 403, "egress_denied", Nowhere).await;
        }
    }
}

/// A currently free port.
async fn free_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn an_address_in_a_route_permits_only_its_own_port() {
    let (api, tokens, other) = (Scripted::upstream().await, Scripted::tokens(3600).await, Scripted::upstream().await);
    let (proxy, admin) = (free_port().await, free_port().await);
    let ports = format!("{}, {}, {proxy}, {admin}", other.address.port(), api.address.port());
    let sidecar = Sidecar::start(&format!(
        "listeners: {{proxy: \"127.0.0.1:{proxy}\", admin: \"127.0.0.1:{admin}\"}}\negress: {{connect_ports: [{ports}]}}\n\
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
    for authority in me.iter().chain([&other.address.to_string(), &format!("127.0.0.2:{}", api.address.port())]) {
        let response = raw::get_through(proxy, &format!("http://{authority}/livez"), "").await;
        assert_eq!((response.status, response.code()), (403, "egress_denied"), "{authority}: {}", response.text());
    }
    for authority in [&me[0], &me[1], &other.address.to_string()] {
        let mut conn = Conn::open(proxy).await;
        conn.write(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await;
        assert_eq!(conn.read_response().await.status, 403, "{authority} by CONNECT");
    }
    let response = raw::get(proxy, "/me/livez").await;
    assert_eq!(
        (response.status, response.code()),
        (403, "egress_denied"),
        "our own name at a mount: {}",
        response.text()
    );
    assert_eq!(other.count(), 0);
}

#[tokio::test]
async fn unmatched_deny_permits_only_routes() {
    let stage = Stage::start("egress: {unmatched: deny}\n").await;
    check(&stage, "matched", &get("http://good.test/", "x", ""), 200, "", Good).await;
    check(&stage, "unmatched", &get("http://evil.test/", "x", ""), 403, "egress_denied", Nowhere).await;
    check(&stage, "other port", &get("http://good.test:81/", "x", ""), 403, "egress_denied", Nowhere).await;
}

/// Uses the system's resolver in separate namespaces; see the script.
#[tokio::test]
async fn an_unresponsive_name_server_delays_no_other_name_and_occupies_few_threads() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut script = tokio::process::Command::new("unshare");
    script.args(["--map-root-user", "--mount", "--net"]).arg(peers::python()).arg(peers::peers_path("silent_dns.py"));
    script.arg(env!("CARGO_BIN_EXE_keybearer")).arg(dir.path()).kill_on_drop(true);
    let output =
        tokio::time::timeout(crate::rig::stage::s(40.0), script.output()).await.expect("exits before the timeout");
    let output = output.expect("unshare of util-linux is installed");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(report["status"], 204, "{report}");
    // Eight lookups of the unresponsive zone, and the threads of an idle sidecar.
    assert!(report["threads"].as_u64().expect("a number") < 40, "{report}");
}

#[tokio::test]
async fn connect_ports_default_to_those_of_http_and_https() {
    for (egress, open, closed) in [
        ("egress: {unmatched: forward}\n", [80, 443], [81, 8443]),
        ("egress: {connect_ports: [8443, 81]}\n", [81, 8443], [80, 443]),
    ] {
        let stage = Stage::start(egress).await;
        for (ports, status) in [(open, 200), (closed, 403)] {
            for port in ports {
                let authority = format!("evil.test:{port}");
                let mut conn = Conn::open(stage.sidecar.proxy()).await;
                conn.write(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await;
                let head = crate::rig::tunnel_client::read_connect_head(&mut conn).await;
                assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{egress} CONNECT {authority}: {head}");
                let (code, arrival) = if status == 200 { ("", Evil) } else { ("egress_denied", Nowhere) };
                let row = format!("{egress} GET {authority}");
                check(&stage, &row, &get(&format!("http://{authority}/"), &authority, ""), status, code, arrival).await;
            }
        }
    }
}

#[tokio::test]
async fn unmatched_hosts_are_reached_on_connect_ports_only_with_or_without_a_tunnel() {
    const APPLIED: &str = "keybearer_config_reloads_total{outcome=\"applied\"}";
    let stage = Stage::start("egress: {connect_ports: [81]}\n").await;
    for (row, url, status, code, arrival) in [
        ("a listed port", "http://evil.test:81/", 200, "", Evil),
        ("http's own port", "http://evil.test/", 403, "egress_denied", Nowhere),
        ("an explicit port", "http://evil.test:80/", 403, "egress_denied", Nowhere),
        ("https", "https://evil.test/", 403, "egress_denied", Nowhere),
        ("another port", "http://evil.test:82/", 403, "egress_denied", Nowhere),
        ("a host with routes at another port", "http://good.test:443/", 403, "egress_denied", Nowhere),
        ("the same at a listed port", "http://good.test:81/", 200, "", GoodWithoutToken),
        ("a route", "http://good.test/", 200, "", Good),
    ] {
        check(&stage, row, &get(url, "x", ""), status, code, arrival).await;
    }
    let transcript = stage.exchange(get("http://evil.test/", "x", "")).await;
    assert!(transcript.body().contains("egress.connect_ports"), "{}", transcript.text());
    // Requests inside an open tunnel obey the configuration in force when they are sent.
    let mut tunnel = stage.open_tunnel("evil.test:81", "").await;
    tunnel.write(b"GET /inside HTTP/1.1\r\nHost: evil.test:81\r\n\r\n").await;
    assert_eq!(tunnel.read_response().await.status, 200);
    let file = stage.sidecar.dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&file).expect("a file").replace("connect_ports: [81]", "connect_ports: [82]");
    std::fs::write(&file, text).expect("a file");
    stage.sidecar.signal("HUP");
    stage.sidecar.wait_for_metric(APPLIED, |applied| applied >= 1.0).await;
    tunnel.write(b"GET /inside HTTP/1.1\r\nHost: evil.test:81\r\n\r\n").await;
    let response = tunnel.read_response().await;
    assert_eq!((response.status, response.code()), (403, "egress_denied"), "{}", response.text());
    assert_eq!(stage.evil.received().iter().filter(|request| request.head.contains("/inside")).count(), 1);
}
