//! gRPC: every type of call, with trailers, and errors that gRPC clients understand.

use serde_json::json;

use crate::rig::config::{Config, Connection, local};
use crate::rig::interception::{interception, interception_ca};
use crate::rig::peers::{GrpcServer, python, run_script};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

/// The service `kb.Echo` at a mount and as `echo.test:50051`; `off.test:50051` belongs to an inactive connection.
async fn start(server: &GrpcServer, top: &str) -> (Sidecar, Scripted) {
    let tokens = Scripted::start(|_, before| Reply::token(&format!("t-{before}"), 3600)).await;
    let address = local(server.port());
    let echo = Connection::at("echo", &tokens)
        .route(format_args!("mount: /kb.Echo, upstream: \"http://{address}/kb.Echo\""))
        .plain("\"echo.test:50051\"");
    let off = Connection::at("off", &tokens).keys("active: false").plain("\"off.test:50051\"");
    let config = Config::new().hosts(["echo.test", "off.test"], address).top(top).connection(echo).connection(off);
    (Sidecar::start(config).await, tokens)
}

#[tokio::test]
async fn all_call_types_work_through_a_mount_and_through_a_tunnel() {
    let server = GrpcServer::start(json!({ "token": "t-0" })).await;
    let (sidecar, _tokens) = start(&server, "").await;
    let mount = sidecar.proxy().to_string();
    let proxy = sidecar.proxy_url();
    for (row, target, environment) in [
        ("at a mount", mount.as_str(), vec![]),
        ("through http_proxy", "echo.test:50051", vec![("http_proxy", proxy.as_str())]),
    ] {
        let calls = run_script(python(), "clients/grpc_all.py", &[target], &environment).await;
        assert_eq!(calls["unary"], 3_000_000, "{row}: {calls}\n{}", sidecar.log());
        let ms: Vec<u64> = serde_json::from_value(calls["down"].clone()).unwrap_or_else(|_| panic!("{row}: {calls}"));
        assert!(ms.len() == 4 && ms[3] - ms[0] >= 250, "{row}: the messages arrived together: {ms:?}");
        assert_eq!(calls["both"], json!(["one", "two", "three"]), "{row}");
        assert_eq!(calls["fail"][0], "RESOURCE_EXHAUSTED", "{row}");
        assert_eq!(
            (&calls["fail"][1], &calls["fail"][2]["x-left"]),
            (&json!("the café is full"), &json!("7")),
            "{row}"
        );
    }
}

/// CI-17: HTTP/2 by ALPN on both legs.
#[tokio::test]
async fn all_call_types_work_with_intercepted_tls() {
    let server = GrpcServer::secure(json!({ "token": "token-1" })).await;
    let tokens = Scripted::tokens(3600).await;
    let crm = Connection::at("echo", &tokens).route("host: api.test");
    let config = Config::new().trust_peers().top(interception()).host("api.test", local(server.port())).connection(crm);
    let sidecar = Sidecar::start(config).await;
    let (proxy, ca) = (sidecar.proxy_url(), interception_ca().0.display().to_string());
    let environment = [("https_proxy", proxy.as_str()), ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", ca.as_str())];
    let calls = run_script(python(), "clients/grpc_all.py", &["api.test:443", "tls"], &environment).await;
    assert_eq!(calls["unary"], 3_000_000, "{calls}\n{}", sidecar.log());
    assert_eq!(calls["both"], json!(["one", "two", "three"]), "{calls}");
    assert_eq!(calls["down"].as_array().map(Vec::len), Some(4), "{calls}");
    assert_eq!(calls["fail"][0], "RESOURCE_EXHAUSTED", "{calls}");
}

#[tokio::test]
async fn the_proxys_own_errors_are_grpc_statuses() {
    let server = GrpcServer::start(json!({ "token": "another" })).await;
    let (sidecar, _tokens) = start(&server, "").await;
    let proxy = sidecar.proxy_url();
    let calls = run_script(python(), "clients/grpc_all.py", &["off.test:50051"], &[("http_proxy", &proxy)]).await;
    for name in ["unary", "down", "both", "fail"] {
        assert_eq!(calls[name][0], "FAILED_PRECONDITION", "{name}: {calls}");
        assert_eq!(calls[name][1], "the connection is inactive; remove its `active: false`", "{name}");
        assert_eq!(calls[name][2]["keybearer-error"], "connection_inactive", "{name}");
    }
    drop(server);
    let mount = sidecar.proxy().to_string();
    let calls = run_script(python(), "clients/grpc_all.py", &[&mount], &[]).await;
    assert_eq!(calls["unary"][0], "UNAVAILABLE", "{calls}");
    assert_eq!(calls["unary"][2]["keybearer-error"], "upstream_unreachable", "{calls}");
}
