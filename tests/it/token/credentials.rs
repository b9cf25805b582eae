//! One credential per request: `existing` and `strip` govern credentials that the caller sends in addition to the
//! token.
//!
//! Not here: the token's own injection point (`egress::destination`, `injection_points`).

use http::Version;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::rig::config::{Config, Connection};
use crate::rig::interception::interception;
use crate::rig::manager::call;
use crate::rig::peers::{Http2Server, Peers, node, run_script};
use crate::rig::raw;
use crate::rig::scripted::{Received, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::tunnel_client::TunnelClient;

const INJECTED: &str = "token-1";

/// One host per route, all of one connection with the token [`INJECTED`].
struct Stage {
    sidecar: Sidecar,
    upstream: Scripted,
    _tokens: Scripted,
}

impl Stage {
    async fn start(routes: &[(&str, &str)]) -> Stage {
        let (tokens, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
        let mut config = Config::new().manager();
        let mut crm = Connection::at("crm", &tokens);
        for (name, keys) in routes {
            config = config.host(&format!("{name}.test"), upstream.address);
            crm = crm.route(format_args!("host: {name}.test, upstream_tls: false, {keys}"));
        }
        let config = config.connection(crm);
        Stage { sidecar: Sidecar::start(&config).await, upstream, _tokens: tokens }
    }

    /// Returns status and code of the response, and the request that the upstream received, if any.
    async fn send(&self, url: &str, lines: &str) -> (u16, String, Option<Received>) {
        let before = self.upstream.count();
        let response = raw::get_through(self.sidecar.proxy(), &format!("http://{url}"), lines).await;
        (response.status, response.code().to_owned(), self.upstream.received().into_iter().nth(before))
    }

    /// Returns the target and the values of `Authorization` that the upstream received.
    async fn arrives(&self, row: &str, url: &str, lines: &str) -> (String, Vec<String>) {
        let (status, _, arrived) = self.send(url, lines).await;
        assert_eq!(status, 200, "{row}");
        let arrived = arrived.expect("a request");
        let target = arrived.request_line().split(' ').nth(1).expect("a target").to_owned();
        (target, arrived.values("authorization").into_iter().map(str::to_owned).collect())
    }
}

#[tokio::test]
async fn a_request_carries_one_bearer_token_by_one_method() {
    let stage = Stage::start(&[
        ("over", "existing: overwrite"),
        ("keep", "existing: keep"),
        ("refuse", "existing: refuse"),
        ("parameter", "inject: {query: access_token}"),
        ("parameter-keep", "inject: {query: access_token}, existing: keep"),
        ("parameter-refuse", "inject: {query: access_token}, existing: refuse"),
        ("key", "inject: {header: X-Key, scheme: \"\"}"),
        ("none", "inject: none"),
    ])
    .await;
    let ours = format!("Bearer {INJECTED}");
    let injected = format!("access_token={INJECTED}");
    const MINE: &str = "Authorization: Bearer mine\r\n";
    const BASIC: &str = "Authorization: Basic bWluZTo=\r\n";
    for (url, lines, target, authorization) in [
        ("over.test/x?access_token=mine", "", "/x", vec![ours.as_str()]),
        ("over.test/x?access_token=mine", MINE, "/x", vec![&ours]),
        ("over.test/x?a=%7e&acc%65ss_token=mine&b=+&access_token&c", "", "/x?a=%7e&b=+&c", vec![&ours]),
        ("over.test/x?Access_Token=other&", "", "/x?Access_Token=other&", vec![&ours]),
        ("keep.test/x?access_token=mine", "", "/x?access_token=mine", vec![]),
        ("keep.test/x", MINE, "/x", vec!["Bearer mine"]),
        ("keep.test/x", "", "/x", vec![&ours]),
        ("refuse.test/x", "", "/x", vec![&ours]),
        ("parameter.test/x", MINE, &format!("/x?{injected}"), vec![]),
        ("parameter.test/x?access_token=mine", BASIC, &format!("/x?{injected}"), vec!["Basic bWluZTo="]),
        ("parameter-keep.test/x", MINE, "/x", vec!["Bearer mine"]),
        ("parameter-keep.test/x", BASIC, &format!("/x?{injected}"), vec!["Basic bWluZTo="]),
        ("parameter-refuse.test/x", BASIC, &format!("/x?{injected}"), vec!["Basic bWluZTo="]),
        ("key.test/x?access_token=mine", MINE, "/x", vec!["Bearer mine"]),
        ("none.test/x?access_token=mine", MINE, "/x?access_token=mine", vec!["Bearer mine"]),
    ] {
        let row = format!("{url} {lines}");
        let arrived = stage.arrives(&row, url, lines).await;
        assert_eq!(
            (arrived.0.as_str(), arrived.1),
            (target, authorization.iter().map(|s| s.to_string()).collect()),
            "{row}"
        );
    }
    for (url, lines) in [
        ("refuse.test/x?access_token=mine", ""),
        ("refuse.test/x?acc%65ss_token=mine", ""),
        ("refuse.test/x", MINE),
        ("refuse.test/x", "Authorization_: Bearer mine\r\n"),
        ("keep.test/x?access_token=mine", MINE),
        ("keep.test/x?access_token=a&access_token=b", ""),
        ("parameter-refuse.test/x", MINE),
        ("parameter-refuse.test/x?access_token=mine", ""),
    ] {
        let (status, code, arrived) = stage.send(url, lines).await;
        assert_eq!((status, code.as_str(), arrived.is_none()), (400, "bad_request_target", true), "{url} {lines}");
    }
    // Bodies are not searched for credentials.
    let body = "access_token=mine";
    let head =
        "POST http://over.test/x HTTP/1.1\r\nHost: over.test\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let request = format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    assert_eq!(raw::send(stage.sidecar.proxy(), request.as_bytes()).await.status, 200);
    assert_eq!(stage.upstream.received().pop().expect("a request").body, body.as_bytes());
}

#[tokio::test]
async fn credentials_are_stripped_only_where_the_route_configures_it() {
    let stage = Stage::start(&[
        ("known", "strip: known"),
        ("named", "strip: [X-Own, \"?sig\", known]"),
        ("only", "strip: [\"?sig=\", cookie]"),
        ("elsewhere", "inject: {header: X-Api-Key, scheme: \"\"}, strip: known"),
        ("parameter", "inject: {query: api_key}, strip: known, set_headers: {X-Auth-Token: ours}"),
        ("absent", "inject: {header: X-Token, scheme: \"\"}"),
    ])
    .await;
    const LINES: &str = "X-Api-Key: mine\r\nx_goog_api_key: mine\r\nAPI-KEY: mine\r\nX-Auth-Token: mine\r\nX-Auth-Token: mine\r\n\
                         Ocp-Apim-Subscription-Key: mine\r\nCookie: mine=1\r\nAuthorization: Basic mine\r\nX-Own: mine\r\nX-Other: stays\r\n";
    const QUERY: &str = "?a=%20b&api_key=mine&c=%7e'&api%5Fkey=mine&sig=mine&&d=+";
    let arrives = async |host: &str| {
        let (status, _, arrived) = stage.send(&format!("{host}.test/x{QUERY}"), LINES).await;
        assert_eq!(status, 200, "{host}");
        let arrived = arrived.expect("a request");
        assert_eq!(arrived.values("x-other"), ["stays"], "{host}");
        let target = arrived.request_line().split(' ').nth(1).expect("a target").to_owned();
        let names = ["authorization", "cookie", "x-api-key", "x_goog_api_key", "api-key", "x-auth-token", "x-own"];
        let left = names.into_iter().filter(|name| !arrived.values(name).is_empty()).collect::<Vec<_>>().join(" ");
        (target, left, arrived)
    };
    let (target, left, arrived) = arrives("known").await;
    assert_eq!((target.as_str(), left.as_str()), ("/x?a=%20b&c=%7e'&sig=mine&&d=+", "authorization x-own"));
    assert_eq!(arrived.values("authorization"), [format!("Bearer {INJECTED}")]);
    let (target, left, _) = arrives("named").await;
    assert_eq!((target.as_str(), left.as_str()), ("/x?a=%20b&c=%7e'&&d=+", "authorization"));
    let (target, left, _) = arrives("only").await;
    assert_eq!(target, "/x?a=%20b&api_key=mine&c=%7e'&api%5Fkey=mine&&d=+");
    assert_eq!(left, "authorization x-api-key x_goog_api_key api-key x-auth-token x-own");
    let (target, left, arrived) = arrives("elsewhere").await;
    assert_eq!((target.as_str(), left.as_str()), ("/x?a=%20b&c=%7e'&sig=mine&&d=+", "x-api-key x-own"));
    assert_eq!(arrived.values("x-api-key"), [INJECTED]);
    let (target, left, arrived) = arrives("parameter").await;
    assert_eq!(target, format!("/x?a=%20b&c=%7e'&sig=mine&&d=+&api_key={INJECTED}"));
    assert_eq!((left.as_str(), arrived.values("x-auth-token")), ("x-auth-token x-own", vec!["ours"]));
    let (target, left, _) = arrives("absent").await;
    assert_eq!(target, format!("/x{QUERY}"));
    assert_eq!(left, "authorization cookie x-api-key x_goog_api_key api-key x-auth-token x-own");
    // known: 7 fields and 2 parameters; named: 2 more; only: 2; elsewhere: Authorization instead of X-Api-Key, which
    // holds the token; parameter: 8 fields.
    stage.sidecar.wait_for_metric("keybearer_stripped_total{connection=\"crm\"}", |count| count == 39.0).await;
    let shown = call(stage.sidecar.admin(), "GET", "/connections/crm", &json!({})).await.json();
    let strip: Vec<&Value> = shown["routes"].as_array().expect("routes").iter().map(|route| &route["strip"]).collect();
    let known = json!("known");
    assert_eq!(strip[..3], [&known, &json!(["X-Own", "?sig", "known"]), &json!(["?sig=", "cookie"])]);
    assert_eq!(strip[5], &Value::Null);
    // A request without credentials passes unchanged.
    let (_, _, arrived) = stage.send("known.test/x?a", "").await;
    assert_eq!(arrived.expect("a request").request_line(), "GET /x?a HTTP/1.1");
}

#[tokio::test]
async fn trailers_do_not_restore_stripped_fields() {
    let (tokens, listener) = (Scripted::tokens(3600).await, TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    let config = format!(
        "hosts: {{api.test: \"{}\"}}\nconnections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \"http://{}/token\", routes: \
         [{{host: api.test, upstream_tls: false, strip: [X-Own]}}]}}\n",
        listener.local_addr().expect("a bound listener"),
        tokens.address
    );
    let sidecar = Sidecar::start(&config).await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).split_once("\r\n0\r\n").is_some_and(|(_, end)| end.ends_with("\r\n\r\n")) {
            assert!(stream.read_buf(&mut all).await.expect("bytes") > 0, "{}", String::from_utf8_lossy(&all));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write succeeds");
        String::from_utf8_lossy(&all).to_ascii_lowercase()
    };
    let bytes = "POST http://api.test/ HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Own, X_Own, X-Sum\r\n\
                 Connection: close\r\n\r\n3\r\nabc\r\n0\r\nX-Own: mine\r\nX_Own: mine\r\nX-Sum: 1\r\n\r\n";
    let (arrived, response) = tokio::join!(upstream, raw::send(sidecar.proxy(), bytes.as_bytes()));
    assert_eq!(response.status, 200);
    assert!(arrived.contains("x-sum: 1") && !arrived.contains("mine"), "{arrived}");
}

#[tokio::test]
async fn credentials_are_stripped_on_every_request_path() {
    let tokens = Scripted::tokens(3600).await;
    let server = Http2Server::start(json!({})).await;
    let config = format!(
        "hosts: {{api.test: \"127.0.0.1:{}\"}}\ntrust: [{}]\n{}connections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \
         \"http://{}/token\", routes: [{{host: api.test, strip: known}}, {{mount: /crm, upstream: \"https://api.test\", strip: known}}]}}\n",
        server.port(),
        Peers::certs().ca.display(),
        interception(),
        tokens.address
    );
    let sidecar = Sidecar::start(&config).await;
    const TARGET: &str = "/x?api_key=mine&a=%20b&access_token=mine";
    const FIELDS: [(&str, &str); 4] =
        [("X-Api-Key", "mine"), ("Cookie", "mine=1"), ("Authorization", "Bearer mine"), ("X-Other", "stays")];
    let lines: String = FIELDS.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut records = Vec::new();
    records.push((
        "absolute form",
        raw::get_through(sidecar.proxy(), &format!("http://api.test{TARGET}"), &lines).await.json(),
    ));
    let mounted = format!("GET /crm{TARGET} HTTP/1.1\r\nHost: kb\r\n{lines}Connection: close\r\n\r\n");
    records.push(("a mount", raw::send(sidecar.proxy(), mounted.as_bytes()).await.json()));
    for (row, secure, version) in [
        ("plain inside a tunnel", false, Version::HTTP_11),
        ("HTTP/2 inside a tunnel", false, Version::HTTP_2),
        ("an intercepted tunnel", true, Version::HTTP_11),
        ("HTTP/2 in an intercepted tunnel", true, Version::HTTP_2),
    ] {
        let mut tunnel = TunnelClient::open(sidecar.proxy(), "", secure, version).await;
        let body =
            tunnel.get_with(secure, TARGET, &FIELDS).await.into_body().collect().await.expect("a body").to_bytes();
        records.push((row, serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{row}: {body:?}"))));
    }
    let headers: serde_json::Map<String, Value> =
        FIELDS.iter().map(|(name, value)| (name.to_ascii_lowercase(), json!(value))).collect();
    let request = json!({ "path": format!("/crm{TARGET}"), "headers": headers });
    let options = json!({ "origin": sidecar.proxy_url(), "connect": null, "requests": [request] });
    let responses = run_script(node(), "clients/h2.mjs", &[&options.to_string()], &[]).await;
    let body = responses[0]["body"].as_str().expect("a body");
    records.push(("HTTP/2 at a mount", serde_json::from_str(body).unwrap_or_else(|_| panic!("{responses}"))));
    for (row, record) in &records {
        let headers = &record["headers"];
        assert_eq!(headers[":path"], "/x?a=%20b", "{row}");
        assert_eq!(headers["authorization"], format!("Bearer {INJECTED}"), "{row}");
        assert_eq!((&headers["x-api-key"], &headers["cookie"]), (&Value::Null, &Value::Null), "{row}: {record}");
        assert_eq!(headers["x-other"], "stays", "{row}");
    }
    let expected = (3 * records.len()) as f64;
    sidecar.wait_for_metric("keybearer_stripped_total{connection=\"crm\"}", |count| count == expected).await;
}
