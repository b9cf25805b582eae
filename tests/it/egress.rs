//! What may be reached: private addresses only by name or leave, special ones and our own listeners never.

use crate::destination::Goes::*;
use crate::destination::{check, get};
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
async fn with_deny_only_routes_are_reached() {
    let stage = Stage::start("egress: {unmatched: deny}\n").await;
    check(&stage, "matched", &get("http://good.test/", "x", ""), 200, "", Good).await;
    check(&stage, "unmatched", &get("http://evil.test/", "x", ""), 403, "egress_denied", Nowhere).await;
    check(&stage, "other port", &get("http://good.test:81/", "x", ""), 403, "egress_denied", Nowhere).await;
}
