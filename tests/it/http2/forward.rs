//! HTTP/2 at a proxy listener: scheme and authority alone decide whether a request is for a host, a mount or neither.

use serde_json::{Value, json};

use crate::rig::config::{Config, Connection, local};
use crate::rig::peers::{Peers, WebSocketServer, node, python, run_script};
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::{Stage, TOKEN, Transcript};

/// A request with this scheme, authority, path and further fields.
fn request(scheme: &str, authority: &str, path: &str, more: &[(&str, &str)]) -> Value {
    let mut headers = json!({ ":scheme": scheme, ":authority": authority });
    for (name, value) in more {
        headers[*name] = json!(value);
    }
    json!({ "path": path, "headers": headers })
}

/// Sends all `requests` on one session with `origin`, over TLS if it is https.
async fn session(origin: &str, requests: Vec<Value>) -> Vec<Value> {
    let ca = origin.starts_with("https").then(|| Peers::certs().ca.clone());
    let options = json!({ "origin": origin, "ca": ca, "requests": requests });
    match run_script(node(), "clients/h2.mjs", &[&options.to_string()], &[]).await {
        Value::Array(responses) => responses,
        other => panic!("{other}"),
    }
}

/// Outcome of a request: the upstream that receives it, its request line, and whether with the token; or status and
/// code.
type Expected<'a> = Result<(&'a str, &'a str, bool), (u64, &'a str)>;

/// Sends all requests at once, and compares the outcome of each.
async fn check(stage: &Stage, origin: &str, rows: &[(&str, Value, Expected<'_>)]) {
    let mut requests = Vec::new();
    for (row, request, _) in rows {
        let mut request = request.clone();
        request["headers"]["x-row"] = json!(row);
        requests.push(request);
    }
    let responses = session(origin, requests).await;
    let (good, evil) = (stage.good.received(), stage.evil.received());
    let all: Vec<_> = good.iter().map(|request| ("good", request)).chain(evil.iter().map(|r| ("evil", r))).collect();
    for ((row, _, expected), response) in rows.iter().zip(&responses) {
        let of_row = all.iter().filter(|(_, request)| request.values("x-row") == [*row]);
        let arrived: Vec<_> = of_row
            .map(|(at, request)| {
                let with = request.values("authorization") == [format!("Bearer {TOKEN}")];
                (*at, request.request_line().to_owned(), with)
            })
            .collect();
        let shown = format!("{row}: {response} {arrived:?}\n{}", stage.sidecar.log());
        match *expected {
            Ok((at, line, with)) => {
                assert_eq!(response["status"], 200, "{shown}");
                assert_eq!(arrived, [(at, format!("{line} HTTP/1.1"), with)], "{shown}");
            }
            Err((status, code)) => {
                let observed = (&response["status"], &response["headers"]["keybearer-error"]);
                assert_eq!(observed, (&json!(status), &json!(code)), "{shown}");
                assert_eq!(arrived, [], "{shown}");
            }
        }
    }
}

/// Configuration lines that add a TLS listener `fleet` to the listener `proxy`.
fn fleet() -> String {
    let (certificate, key) = Peers::certs().leaf("server");
    let tls = format!("{{certificate: \"{}\", key: {{file: \"{}\"}}}}", certificate.display(), key.display());
    format!(
        "listeners:\n  proxy:\n  - {{name: fleet, address: \"127.0.0.1:0\", tls: {tls}}}\n  - {{name: proxy, address: \"127.0.0.1:0\"}}\n  \
         admin: 127.0.0.1:0\n"
    )
}

#[tokio::test]
async fn scheme_and_authority_decide_between_host_and_mount() {
    let stage = Stage::start("").await;
    let (origin, own) = (stage.sidecar.proxy_url(), stage.sidecar.proxy());
    let (here, port) = (own.to_string(), own.port());
    let get = |authority: &str, path: &str| request("http", authority, path, &[]);
    let service = format!("keybearer.prod.svc:{port}");
    let localhost = format!("localhost:{port}");
    let admin = stage.sidecar.admin().to_string();
    let here_by_hosts = format!("here.test:{port}");
    let admin_by_hosts = format!("here.test:{}", stage.sidecar.admin().port());
    let admin_by_name = format!("localhost:{}", stage.sidecar.admin().port());
    let any = |authority: &str| json!({ "path": "*", "method": "OPTIONS", "headers": { ":scheme": "http", ":authority": authority } });
    let rows = [
        ("a host route", get("good.test", "/x?q=1"), Ok(("good", "GET /x?q=1", true))),
        ("an explicit port", get("good.test:80", "/x"), Ok(("good", "GET /x", true))),
        ("another port", get("good.test:81", "/x"), Ok(("good", "GET /x", false))),
        ("a wildcard", get("a.wild.test", "/"), Ok(("good", "GET /", true))),
        ("a path rule", get("scoped.test", "/v1/a%2Fb"), Ok(("good", "GET /v1/a%2Fb", true))),
        ("outside a path rule", get("scoped.test", "/v2"), Err((403, "no_route"))),
        ("no route", get("evil.test", "/x"), Ok(("evil", "GET /x", false))),
        ("no route, a mount's path", get("evil.test", "/api/x"), Ok(("evil", "GET /api/x", false))),
        ("the listener, a mount", get(&here, "/api/x"), Ok(("good", "GET /base/x", true))),
        ("the listener, no mount", get(&here, "/x"), Err((404, "no_mount"))),
        ("localhost", get(&localhost, "/api/x"), Ok(("good", "GET /base/x", true))),
        ("a published port", get("localhost:9", "/api/x"), Ok(("good", "GET /base/x", true))),
        ("a name that resolves here", get(&service, "/api/x"), Ok(("good", "GET /base/x", true))),
        ("another of our listeners", get(&admin, "/livez"), Err((403, "egress_denied"))),
        ("another of our listeners, a mount's path", get(&admin, "/api/x"), Err((403, "egress_denied"))),
        ("the same by name", get(&admin_by_name, "/api/x"), Err((403, "egress_denied"))),
        ("the same by hosts", get(&admin_by_hosts, "/api/x"), Err((403, "egress_denied"))),
        ("the listener by hosts", get(&here_by_hosts, "/api/x"), Ok(("good", "GET /base/x", true))),
        (
            "another listener, with a mount's credential",
            request("http", &admin, "/api/x", &[("keybearer-authorization", "Bearer x")]),
            Err((403, "egress_denied")),
        ),
        ("a query and no path", get("good.test", "?x=1"), Ok(("good", "GET /?x=1", true))),
        ("TC-05", get("u@good.test", "/x"), Err((400, "bad_request_target"))),
        ("HP-15", request("http", "good.test", "/x", &[("host", "evil.test")]), Err((400, "bad_request_target"))),
        ("yet another scheme", request("ftp", "good.test", "/x", &[]), Err((400, "bad_request_target"))),
        ("TC-12", get("scoped.test", "/v1/../x"), Err((400, "bad_request_target"))),
        ("OPTIONS *", any("good.test"), Ok(("good", "OPTIONS *", true))),
        ("OPTIONS * for this listener", any(&here), Err((400, "bad_request_target"))),
        ("OPTIONS * for another listener", any(&admin), Err((403, "egress_denied"))),
        ("OPTIONS * without a route", any("evil.test"), Ok(("evil", "OPTIONS *", false))),
        ("GET *", get("good.test", "*"), Err((400, "bad_request_target"))),
    ];
    check(&stage, &origin, &rows).await;
    stage.assert_invariants("HTTP/2", &Transcript(Vec::new())).await;
    let via = stage.good.received()[0].values("via")[0].to_owned();
    assert!(via.starts_with("2.0 keybearer"), "{via}");
    let back = |authority| request("http", authority, "/api/x", &[("via", &via)]);
    let looped = Err((508, "loop_detected"));
    check(&stage, &origin, &[("a loop", back("good.test"), looped), ("a loop at a mount", back(&here), looped)]).await;
}

#[tokio::test]
async fn unmatched_requests_obey_the_egress_policy() {
    let stage = Stage::start("egress: {unmatched: deny}\n").await;
    let (origin, here) = (stage.sidecar.proxy_url(), stage.sidecar.proxy().to_string());
    let get = |authority: &str, path: &str| request("http", authority, path, &[]);
    let denied = Err((403, "egress_denied"));
    let rows = [
        ("no route", get("evil.test", "/x"), denied),
        ("no route, a mount's path", get("evil.test", "/api/x"), denied),
        ("a route", get("good.test", "/"), Ok(("good", "GET /", true))),
        ("a mount", get(&here, "/api/x"), Ok(("good", "GET /base/x", true))),
    ];
    check(&stage, &origin, &rows).await;
}

#[tokio::test]
async fn host_and_mount_requests_carry_the_callers_credential_in_different_fields() {
    let stage = Stage::start("callers: [{name: billing, secret: s3cret}]\n").await;
    let (origin, here) = (stage.sidecar.proxy_url(), stage.sidecar.proxy().to_string());
    let with = |authority: &str, path: &str, field: &str| request("http", authority, path, &[(field, "Bearer s3cret")]);
    let (forward, mount) = ("proxy-authorization", "keybearer-authorization");
    let rows = [
        ("a host", with("good.test", "/x", forward), Ok(("good", "GET /x", true))),
        ("a host, the other field", with("good.test", "/x", mount), Err((407, "caller_unknown"))),
        ("a mount", with(&here, "/api/x", mount), Ok(("good", "GET /base/x", true))),
        ("a mount, the other field", with(&here, "/api/x", forward), Err((401, "caller_unknown"))),
        // Behind a service's port, the name alone does not decide.
        ("a mount under any name", with("keybearer.prod.svc", "/api/x", mount), Ok(("good", "GET /base/x", true))),
        ("no route", with("evil.test", "/api/x", forward), Ok(("evil", "GET /api/x", false))),
    ];
    check(&stage, &origin, &rows).await;
}

#[tokio::test]
async fn a_tls_listener_recognizes_itself_by_sni() {
    let stage = Stage::start(&fleet()).await;
    let port = stage.sidecar.address("fleet").port();
    let origin = format!("https://localhost:{port}");
    let localhost = format!("localhost:{port}");
    let foreign = format!("evil.test:{port}");
    let rows = [
        ("http at a host route", request("http", "good.test", "/x", &[]), Ok(("good", "GET /x", true))),
        ("the listener", request("https", &localhost, "/api/x", &[]), Ok(("good", "GET /base/x", true))),
        ("behind another port", request("https", "localhost", "/api/x", &[]), Ok(("good", "GET /base/x", true))),
        ("the listener, no mount", request("https", "localhost", "/x", &[]), Err((404, "no_mount"))),
        ("another name", request("http", "evil.test", "/api/x", &[]), Ok(("evil", "GET /api/x", false))),
        ("another name with our port", request("http", &foreign, "/api/x", &[]), Err((403, "egress_denied"))),
    ];
    check(&stage, &origin, &rows).await;
}

/// Skipped if curl was built without `--proxy-http2`.
#[tokio::test]
async fn curl_forwards_over_http2_if_supported() {
    let help = std::process::Command::new("curl").args(["--help", "all"]).output().expect("curl is installed");
    if !String::from_utf8_lossy(&help.stdout).contains("--proxy-http2") {
        return;
    }
    let stage = Stage::start(&fleet()).await;
    let proxy = format!("https://localhost:{}", stage.sidecar.address("fleet").port());
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--proxy-http2", "--proxy-cacert"]).arg(&Peers::certs().ca);
    curl.args(["-x", &proxy, "-w", "%{http_code} %{http_version}", "http://good.test/x"]).env_clear();
    let output = curl.output().await.expect("curl is installed");
    let transcript = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        transcript == "ok200 2" || transcript == "ok200 1.1",
        "{transcript} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(stage.good.received()[0].values("authorization"), [format!("Bearer {TOKEN}")]);
}

/// Opens a WebSocket by extended CONNECT (RFC 8441); returns what `tests/peers/h2_probe.py` observed.
async fn websocket(sidecar: &Sidecar, authority: &str, path: &str) -> Value {
    let options = json!({ "port": sidecar.proxy().port(), "authority": authority, "path": path, "probe": "websocket" });
    run_script(python(), "h2_probe.py", &[&options.to_string()], &[]).await
}

#[tokio::test]
async fn websocket_over_http2_reaches_a_host() {
    let server = WebSocketServer::start(json!({ "token": "token-1" })).await;
    let tokens = Scripted::tokens(3600).await;
    let crm = Connection::at("crm", &tokens).plain("ws.test");
    let sidecar = Sidecar::start(Config::new().host("ws.test", local(server.port())).connection(crm)).await;
    let observed = websocket(&sidecar, "ws.test", "/echo").await;
    assert_eq!((&observed["status"], &observed["code"]), (&json!(200), &json!(4001)), "{observed}\n{}", sidecar.log());
}
