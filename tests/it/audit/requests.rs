//! The log line of a request, and the ids that identify it.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;

/// Message, `audit` and code of the log lines with a request id.
fn lines(log: &str) -> Vec<(String, Option<String>, Option<String>)> {
    let events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
    let text = |event: &Value, name: &str| event[name].as_str().map(str::to_owned);
    let of_requests = events.filter(|event| event["request_id"].is_string());
    of_requests
        .map(|event| (text(&event, "message").unwrap_or_default(), text(&event, "audit"), text(&event, "code")))
        .collect()
}

#[tokio::test]
async fn a_request_has_at_most_one_line_and_a_denial_always_has_one() {
    let used = |audit: bool| ("request", audit.then_some("use"), None);
    let failed = |audit: bool| ("request refused", audit.then_some("use"), Some("upstream_unreachable"));
    let denied = |audit: bool| ("request refused", audit.then_some("denial"), Some("no_route"));
    for (log, audit, expected) in [
        ("requests: off", "log", vec![denied(true)]),
        ("requests: off, level: error", "log", vec![denied(true)]),
        ("requests: errors", "log", vec![failed(true), denied(true)]),
        ("requests: all", "log", vec![used(true), failed(true), denied(true)]),
        ("requests: off", "off", vec![]),
        ("requests: errors", "off", vec![failed(false), denied(false)]),
        ("requests: all", "off", vec![used(false), failed(false), denied(false)]),
        ("requests: errors", "{file: audit.jsonl}", vec![failed(false), denied(false)]),
    ] {
        // A sidecar logs its addresses at the level info, so the settings under test are applied by a reload.
        let scene = Scene::start("log: {format: json}\n").await;
        scene.write(&format!("log: {{format: json, {log}}}\naudit: {{to: {audit}}}\n"), "");
        scene.reload().await;
        assert_eq!(scene.get("http://api.test/", "").await.status, 200);
        assert_eq!(scene.get("http://down.test/", "").await.status, 502);
        assert_eq!(scene.get("http://scoped.test/", "").await.status, 403);
        let mut sidecar = scene.sidecar;
        sidecar.signal("TERM");
        sidecar.exit().await;
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(message, audit, code)| (message.to_owned(), audit.map(str::to_owned), code.map(str::to_owned)))
            .collect();
        assert_eq!(lines(&sidecar.log()), expected, "log: {log}, audit: {audit}");
    }
}

#[tokio::test]
async fn a_request_is_identified_by_our_id_and_the_callers() {
    let scene = Scene::start(TO_FILE).await;
    let long = "x".repeat(129);
    let fits = "x".repeat(128);
    let two = "one\r\nX-Request-Id: two";
    for (number, (sent, recorded)) in [
        ("7f9c-order.12:3/a+b=@~_,", Some("7f9c-order.12:3/a+b=@~_,")),
        (&fits, Some(fits.as_str())),
        (&long, None),
        ("with blank", None),
        ("{\"quoted\"}", None),
        ("", None),
        (two, None),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/{number}");
        assert_eq!(
            scene.get(&format!("http://api.test{path}"), &format!("X-Request-Id: {sent}\r\n")).await.status,
            200
        );
        let received = scene.api.received();
        let received = received.last().expect("a request");
        let expected: Vec<_> = sent.split("\r\nX-Request-Id: ").collect();
        assert_eq!(received.values("x-request-id"), expected, "it is passed on unchanged");
        let names: BTreeSet<_> = received
            .head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name.to_lowercase())
            .collect();
        assert_eq!(
            names,
            ["authorization", "host", "via", "x-request-id"].map(str::to_owned).into(),
            "{}",
            received.head
        );
        let is = |record: &Value| record["path"] == path;
        let records = scene.wait_until("the record", |records| records.iter().any(is)).await;
        assert_eq!(records.iter().find(|record| is(record)).expect("it")["client_request_id"].as_str(), recorded);
    }
    let response = scene.get("http://scoped.test/x", "X-Request-Id: 0123456789abcdef\r\n").await.json();
    let id = response["request_id"].as_str().expect("an id").to_owned();
    assert_ne!(id, "0123456789abcdef");
    scene.sidecar.wait_for_log(&format!("\"request_id\":\"{id}\"")).await;
    wait_until("our id is in the audit", || scene.lines_of_file().is_some_and(|text| text.contains(&id))).await;
}

#[tokio::test]
async fn trace_context_is_passed_on_unchanged() {
    let scene = Scene::start("").await;
    let state = format!("vendor={}", "v".repeat(20_000));
    for (parent, states) in [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", vec!["congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"]),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", vec!["a=1", "b=2", ""]),
        ("ff-00000000000000000000000000000000-0000000000000000-00-more", vec![state.as_str()]),
        ("not a traceparent \u{e9}\u{2028}\"\\", vec!["=,=;;\u{202e}"]),
        ("", vec![]),
    ] {
        let lines: String = states.iter().map(|state| format!("tracestate: {state}\r\n")).collect();
        let response = scene.get("http://api.test/", &format!("traceparent: {parent}\r\n{lines}")).await;
        assert_eq!(response.status, 200, "{parent}: {}", response.text());
        let received = scene.api.received();
        let received = received.last().expect("a request");
        assert_eq!(received.values("traceparent"), [parent]);
        assert_eq!(received.values("tracestate"), states);
    }
}

#[tokio::test]
async fn each_failure_has_its_own_response_metric_and_log_line() {
    // No TLS: plain bytes in response to the ClientHello.
    let tls = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let tls_address = tls.local_addr().expect("a bound listener");
    let no_tls = tokio::spawn(async move {
        while let Ok((mut stream, _)) = tls.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let (up, refuse) = (
        Scripted::upstream().await,
        Scripted::start(|_, _| Reply::json(400, &json!({"error": "invalid_scope"}))).await,
    );
    let tokens = Scripted::tokens(3600).await;
    let connection = |name: &str, server: &str, more: &str| {
        format!(
            "- {{name: {name}, client_id: a, token_url: \"http://{server}/\", routes: [{{host: {name}.test{more}}}]}}\n"
        )
    };
    let (good, plain) = (tokens.address.to_string(), ", upstream_tls: false");
    let config = format!(
        "log: {{format: json}}\nhosts: {{dead.test: \"{up}\", refused.test: \"{up}\", tls.test: \"{}\", down.test: \"127.0.0.1:1\"}}\nconnections:\n{}{}{}{}",
        tls_address,
        connection("dead", "127.0.0.1:1", plain),
        connection("refused", &refuse.address.to_string(), plain),
        connection("tls", &good, ""),
        connection("down", &good, plain),
        up = up.address,
    );
    let mut sidecar = Sidecar::start(&config).await;
    let mut ids = Vec::new();
    for (url, connection, code, proxy_status) in [
        ("http://dead.test/", "dead", "token_unavailable", "proxy_internal_error"),
        ("http://refused.test/", "refused", "token_refused", "proxy_configuration_error"),
        ("http://tls.test/", "tls", "upstream_tls", "tls_protocol_error"),
        ("http://down.test/", "down", "upstream_unreachable", "connection_refused"),
        ("http://10.0.0.1/", "", "egress_denied", "destination_ip_prohibited"),
        ("ftp://down.test/", "", "bad_request_target", "http_request_error"),
    ] {
        let response = raw::get_through(sidecar.proxy(), url, "").await;
        assert_eq!(response.code(), code, "{url}: {}", response.text());
        assert_eq!(response.header("proxy-status"), Some(format!("keybearer; error={proxy_status}").as_str()));
        let series = format!("keybearer_errors_total{{connection=\"{connection}\",code=\"{code}\"}}");
        assert_eq!(sidecar.metric(&series).await, 1.0, "{series}");
        let shown = format!("{:?}{}", response.headers, response.text());
        for inside in
            ["127.0.0.1", "10.0.0.1", "/src/", ".rs", "Error {", "os error", sidecar.dir.path().to_str().expect("text")]
        {
            assert!(!shown.contains(inside), "{inside} is in {shown}");
        }
        ids.push((response.json()["request_id"].as_str().expect("an id").to_owned(), connection, code));
    }
    no_tls.abort();
    sidecar.signal("TERM");
    sidecar.exit().await;
    for (id, connection, code) in ids {
        let log = sidecar.log();
        let about: Vec<_> = log.lines().filter(|line| line.contains(&id)).collect();
        assert_eq!(about.len(), 1, "{code}: {about:?}");
        let event: Value = serde_json::from_str(about[0]).expect("JSON");
        assert_eq!(
            (event["code"].as_str(), event["connection"].as_str().unwrap_or_default()),
            (Some(code), connection)
        );
    }
}

#[tokio::test]
async fn an_incomplete_head_that_is_refused_has_a_log_line() {
    let scene = Scene::start("limits: {head: 8KiB}\n").await;
    let head = format!("GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\nX: {}\r\n", "x".repeat(40_000));
    let response = raw::send(scene.sidecar.proxy(), head.as_bytes()).await;
    assert_eq!(response.status, 431, "{}", response.text());
    let id = response.json()["request_id"].as_str().expect("an id").to_owned();
    let line = scene.sidecar.wait_for_log(&id).await;
    assert!(line.contains("head_too_large") && line.contains("\"from\":\"127.0.0.1:"), "{line}");
}
