//! Traces as received by a collector: sampling, span contents, propagation to the upstream; an unavailable collector
//! delays no request.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rig::config::{Config, Connection};
use crate::rig::peers::Collector;
use crate::rig::raw;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const TOKEN: &str = "kb-secret-token-of-crm";
const LOST: &str = "spans lost";
const TIMEOUT: Duration = Duration::from_secs(15);

struct Stage {
    sidecar: Sidecar,
    upstream: Scripted,
    tokens: Scripted,
}

/// A proxy with the connection `crm`; `top` has further lines of configuration.
async fn stage(top: &str) -> Stage {
    let upstream = Scripted::start(|request, before| match request.request_line() {
        line if line.contains("/silence") => Reply::Silence,
        line if line.contains("/once") && before == 0 => Reply::text(401, "text/plain", "no"),
        line if line.contains("/500") => Reply::text(500, "text/plain", "no"),
        _ => Reply::ok(),
    })
    .await;
    let tokens = Scripted::start(|_, before| Reply::token(&format!("{TOKEN}-{before}"), 3600)).await;
    let sidecar = Sidecar::start(&config(&upstream, &tokens, top)).await;
    Stage { sidecar, upstream, tokens }
}

fn config(upstream: &Scripted, tokens: &Scripted, top: &str) -> String {
    let crm = Connection::new("crm", format_args!("http://{}/token?tenant=q1", tokens.address))
        .client("client_id: a, client_secret: client-s3cret")
        .plain("api.test");
    let config = Config::new().hosts(["api.test", "other.test"], upstream.address);
    config.top("callers: [{name: billing, secret: s3cret}]\n").top(top).connection(crm).to_string()
}

impl Stage {
    /// Sends a request with further header lines, each ending in CRLF.
    async fn get(&self, url: &str, lines: &str) -> raw::RawResponse {
        let lines = format!("Proxy-Authorization: Bearer s3cret\r\nCookie: c00kie\r\n{lines}");
        raw::get_through(self.sidecar.proxy(), url, &lines).await
    }

    /// Values of a header in the last request to the upstream.
    fn upstream_values(&self, name: &str) -> Vec<String> {
        let received = self.upstream.received();
        received.last().expect("a request").values(name).iter().map(|value| (*value).to_owned()).collect()
    }
}

fn traceparent(flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-{flags}\r\n")
}

/// Waits for `count` spans that match `is`.
async fn spans(collector: &Collector, count: usize, is: impl Fn(&Value) -> bool) -> Vec<Value> {
    let enough = async {
        loop {
            let found: Vec<_> = collector.spans().await.into_iter().filter(|span| is(span)).collect();
            if found.len() >= count {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = tokio::time::timeout(TIMEOUT, enough).await;
    let Ok(found) = found else { panic!("fewer than {count} matching spans among {:#?}", collector.spans().await) };
    assert_eq!(found.len(), count, "{found:#?}");
    found
}

fn of_requests(span: &Value) -> bool {
    span["attributes"]["url.path"] != "/token"
}

fn kind(spans: &[Value], kind: &str) -> Value {
    spans.iter().find(|span| span["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {spans:#?}")).clone()
}

#[tokio::test]
async fn a_sampled_request_has_its_spans_and_no_secret_in_them() {
    let collector = Collector::start().await;
    let stage = stage(&format!("tracing: {{otlp: \"{}/\", sample: 0}}\n", collector.url())).await;
    let lines = traceparent("01") + "tracestate: a=st4te\r\nX-Custom: cust0m\r\n";
    assert_eq!(stage.get("http://api.test/v1/x?query=qu3ry", &lines).await.status, 200);
    let found = spans(&collector, 2, |_| true).await;
    let (server, client) = (kind(&found, "SERVER"), kind(&found, "CLIENT"));
    let port = 80;
    let common = json!({
        "http.request.method": "GET", "url.path": "/v1/x", "url.scheme": "http", "server.address": "api.test",
        "server.port": port, "http.response.status_code": 200,
        "keybearer.connection": "crm", "keybearer.profile": "default",
    });
    assert_eq!(client["attributes"], common);
    let mut with_caller = common;
    with_caller["keybearer.caller"] = "billing".into();
    assert_eq!(server["attributes"], with_caller);
    for span in &found {
        assert_eq!((&span["name"], &span["trace"], &span["error"]), (&json!("GET"), &json!(TRACE), &json!(false)));
        assert_eq!(span["flags"].as_u64().unwrap() & 1, 1, "{span}");
        assert!(span["start"].as_u64() <= span["end"].as_u64(), "{span}");
        let resource = json!({"service.name": "keybearer", "service.version": env!("CARGO_PKG_VERSION")});
        assert_eq!((&span["resource"], &span["scope"]), (&resource, &json!("keybearer")));
    }
    assert_eq!((&server["parent"], &client["parent"]), (&json!(PARENT), &server["id"]));
    let expected = format!("00-{TRACE}-{}-01", client["id"].as_str().unwrap());
    assert_eq!(
        (stage.upstream_values("traceparent"), stage.upstream_values("tracestate")),
        (vec![expected], vec!["a=st4te".to_owned()])
    );
    let (bytes, heads) = collector.raw().await;
    let everything = String::from_utf8_lossy(&bytes).into_owned() + &heads.to_string();
    for secret in [TOKEN, "s3cret", "qu3ry", "q1", "c00kie", "cust0m", "st4te"] {
        assert!(!everything.contains(secret), "{secret} is in a span");
    }
    assert_eq!(heads[0]["line"], "POST /v1/traces HTTP/1.1");
}

#[tokio::test]
async fn the_callers_decision_takes_precedence_over_the_ratio() {
    let collector = Collector::start().await;
    let stage = stage(&format!("tracing: {{otlp: \"{}\", sample: 0}}\n", collector.url())).await;
    let sent = |stage: &Stage| stage.upstream_values("traceparent").concat();
    // The caller's trace is unsampled: it is passed on unchanged.
    stage.get("http://api.test/unsampled", &(traceparent("00") + "tracestate: a=b\r\n")).await;
    assert_eq!(sent(&stage), format!("00-{TRACE}-{PARENT}-00"));
    assert_eq!(stage.upstream_values("tracestate"), ["a=b"]);
    // No valid context: a new trace, which the ratio does not sample; the upstream receives that decision.
    let long = format!("traceparent: 00-{TRACE}-{PARENT}-01-{}\r\n", "x".repeat(2000));
    for lines in ["".to_owned(), traceparent("xy"), traceparent("01") + &traceparent("01"), long] {
        stage.get("http://api.test/new", &(lines.clone() + "tracestate: a=b\r\n")).await;
        let sent = stage.upstream_values("traceparent");
        assert!(sent.len() == 1 && sent[0].ends_with("-00") && !sent[0].contains(TRACE), "{lines}: {sent:?}");
        assert_eq!(stage.upstream_values("tracestate"), [""; 0], "the state belongs to no trace");
    }
    stage.get("http://api.test/last", &traceparent("01")).await;
    let found = spans(&collector, 2, |_| true).await;
    assert!(found.iter().all(|span| span["attributes"]["url.path"] == "/last"), "{found:#?}");
}

#[tokio::test]
async fn every_request_is_sampled_by_default() {
    let collector = Collector::start().await;
    let stage = stage(&format!("tracing: {{otlp: \"{}\"}}\n", collector.url())).await;
    // The token request has its own trace.
    let [token] = spans(&collector, 1, |_| true).await.try_into().unwrap();
    let port = stage.tokens.address.port();
    assert_eq!(
        token["attributes"],
        json!({
            "http.request.method": "POST", "url.path": "/token", "url.scheme": "http", "server.address": "127.0.0.1",
            "server.port": port, "http.response.status_code": 200,
            "keybearer.connection": "crm", "keybearer.profile": "default",
        })
    );
    assert_eq!((&token["name"], &token["kind"], &token["parent"]), (&json!("POST"), &json!("CLIENT"), &json!("")));
    stage.get("http://api.test/a", &traceparent("zz")).await;
    let found = spans(&collector, 2, of_requests).await;
    let (server, client) = (kind(&found, "SERVER"), kind(&found, "CLIENT"));
    assert_eq!((&server["parent"], &client["parent"]), (&json!(""), &server["id"]));
    assert!(server["trace"] == client["trace"] && server["trace"] != TRACE && server["trace"] != token["trace"]);
    let expected = format!("00-{}-{}-01", server["trace"].as_str().unwrap(), client["id"].as_str().unwrap());
    assert_eq!(stage.upstream_values("traceparent"), [expected]);
}

#[tokio::test]
async fn failures_and_replays_are_traced() {
    let collector = Collector::start().await;
    let stage = stage(&format!("timeouts: {{response_head: 1s}}\ntracing: {{otlp: \"{}\"}}\n", collector.url())).await;
    // The upstream rejects only its first request, which is replayed with another token.
    assert_eq!(stage.get("http://api.test/once", "").await.status, 200);
    let sent = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let with_secret = |text: String| text.replace("Connection", "Proxy-Authorization: Bearer s3cret\r\nConnection");
    for (request, status) in [
        (with_secret(sent("BREW", "http://api.test/brew")), 200),
        (with_secret(sent("GET", "http://api.test/500")), 500),
        (with_secret(sent("GET", "http://api.test/silence")), 504),
        (sent("GET", "http://api.test/anonymous"), 407),
    ] {
        assert_eq!(raw::send(stage.sidecar.proxy(), request.as_bytes()).await.status, status, "{request}");
    }
    let found = spans(&collector, 10, of_requests).await;
    let of = |path: &str, kind: &str| {
        let is = |span: &&Value| span["attributes"]["url.path"] == path && span["kind"] == kind;
        found.iter().find(is).unwrap_or_else(|| panic!("no {kind} of {path} in {found:#?}")).clone()
    };
    for (path, kind, name, error, failed, status) in [
        ("/once", "CLIENT", "GET", json!("401"), true, json!(401)),
        ("/once", "SERVER", "GET", json!(null), false, json!(200)),
        ("/brew", "SERVER", "HTTP", json!(null), false, json!(200)),
        ("/500", "CLIENT", "GET", json!("500"), true, json!(500)),
        ("/500", "SERVER", "GET", json!("500"), true, json!(500)),
        ("/silence", "CLIENT", "GET", json!("upstream_timeout"), true, json!(null)),
        ("/silence", "SERVER", "GET", json!("upstream_timeout"), true, json!(504)),
        ("/anonymous", "SERVER", "GET", json!("caller_unknown"), false, json!(407)),
    ] {
        let span = of(path, kind);
        let attributes = &span["attributes"];
        assert_eq!(
            (&span["name"], &attributes["error.type"], &span["error"], &attributes["http.response.status_code"]),
            (&json!(name), &error, &json!(failed), &status),
            "{span:#}"
        );
    }
    let again = found.iter().find(|span| span["attributes"]["http.request.resend_count"] == 1).expect("a replay");
    assert_eq!(
        (&again["attributes"]["http.response.status_code"], &again["parent"]),
        (&json!(200), &of("/once", "SERVER")["id"])
    );
    let expected = format!("00-{}-{}-01", again["trace"].as_str().unwrap(), again["id"].as_str().unwrap());
    assert_eq!(stage.upstream.received()[1].values("traceparent"), [expected]);
    assert_eq!(of("/brew", "SERVER")["attributes"]["http.request.method"], "_OTHER");
    let (bytes, _) = collector.raw().await;
    assert!(!String::from_utf8_lossy(&bytes).contains("BREW"), "an unknown method is not exported");
}

#[tokio::test]
async fn without_tracing_a_context_is_passed_on_unchanged() {
    let stage = stage("").await;
    let long = format!("00-{TRACE}-{PARENT}-01-{}", "x".repeat(2000));
    for values in [
        vec![format!("00-{TRACE}-{PARENT}-01")],
        vec!["no-context".to_owned()],
        vec![long],
        vec!["a".to_owned(), "b".to_owned()],
        vec![],
    ] {
        let lines: String = values.iter().map(|value| format!("traceparent: {value}\r\n")).collect();
        stage.get("http://api.test/", &(lines + "tracestate: a=b\r\ntracestate: c=d\r\n")).await;
        assert_eq!(stage.upstream_values("traceparent"), values);
        assert_eq!(stage.upstream_values("tracestate"), ["a=b", "c=d"]);
    }
}

/// Down, hanging, refusing, redirecting: no request is delayed, and the failure is logged once.
#[tokio::test]
async fn an_unavailable_collector_delays_no_request() {
    let (refusing, hanging) = (Collector::start().await, Collector::start().await);
    refusing.respond_with(503).await;
    hanging.pause();
    let redirecting = Collector::start().await;
    redirecting.respond_with(307).await;
    let down = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rows = [
        (format!("http://{down}"), "Connection refused"),
        (refusing.url(), "responded with 503"),
        (redirecting.url(), "responded with 307"),
    ];
    let mut stages = Vec::new();
    for (url, error) in &rows {
        let stage = stage(&format!("tracing: {{otlp: \"{url}\"}}\n")).await;
        assert!(stage.sidecar.wait_for_log(LOST).await.contains(error), "{}", stage.sidecar.log());
        stages.push(stage);
    }
    let mut hung = stage(&format!("tracing: {{otlp: \"{}\"}}\n", hanging.url())).await;
    // More spans than the queue can hold.
    for stage in stages.iter().chain([&hung]) {
        let started = Instant::now();
        let mut conn = raw::Conn::open(stage.sidecar.proxy()).await;
        for _ in 0..1500 {
            conn.write(b"GET http://api.test/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer s3cret\r\n\r\n").await;
            assert_eq!(conn.read_response().await.status, 200);
        }
        assert!(started.elapsed() < Duration::from_secs(8), "{:?} for 1500 requests", started.elapsed());
        let lines = stage.sidecar.log().matches(LOST).count();
        assert!(lines <= 1, "{lines} times within a minute");
    }
    // The collector hangs during the shutdown too; the program does not.
    let started = Instant::now();
    hung.sidecar.signal("TERM");
    assert!(hung.sidecar.exit().await.success());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let (_, heads) = redirecting.raw().await;
    assert!(heads.as_array().unwrap().iter().all(|head| head["line"] == "POST /v1/traces HTTP/1.1"), "{heads}");
}

#[tokio::test]
async fn queued_spans_are_exported_at_shutdown() {
    let collector = Collector::start().await;
    let mut stage = stage(&format!("tracing: {{otlp: \"{}\"}}\n", collector.url())).await;
    spans(&collector, 1, |_| true).await;
    for number in 0..5 {
        stage.get(&format!("http://api.test/{number}"), "").await;
    }
    stage.sidecar.signal("TERM");
    assert!(stage.sidecar.exit().await.success());
    assert_eq!(collector.spans().await.len(), 11);
}

#[tokio::test]
async fn a_reload_changes_the_collector() {
    let (first, second) = (Collector::start().await, Collector::start().await);
    let stage = stage(&format!("tracing: {{otlp: \"{}\", sample: 0}}\n", first.url())).await;
    stage.get("http://api.test/1", &traceparent("01")).await;
    let path = stage.sidecar.dir.path().join("keybearer.yaml");
    let reload = async |top: &str, applied: f64| {
        let listeners = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n";
        std::fs::write(&path, format!("{listeners}{}", config(&stage.upstream, &stage.tokens, top))).unwrap();
        stage.sidecar.signal("HUP");
        stage
            .sidecar
            .wait_for_metric("keybearer_config_reloads_total{outcome=\"applied\"}", |count| count == applied)
            .await;
    };
    reload(&format!("tracing: {{otlp: \"{}\", sample: 0}}\n", second.url()), 1.0).await;
    stage.get("http://api.test/2", &traceparent("01")).await;
    // Spans queued for the first collector still arrive there.
    for (collector, path) in [(&first, "/1"), (&second, "/2")] {
        assert!(spans(collector, 2, |_| true).await.iter().all(|span| span["attributes"]["url.path"] == path));
    }
    reload("", 2.0).await;
    stage.get("http://api.test/3", &traceparent("01")).await;
    assert_eq!(stage.upstream_values("traceparent"), [format!("00-{TRACE}-{PARENT}-01")]);
}

#[tokio::test]
async fn environment_variables_are_ignored() {
    // The exporter library reads these; the sidecar inherits them.
    let (collector, elsewhere) = (Collector::start().await, Collector::start().await);
    let upstream = Scripted::upstream().await;
    let tokens = Scripted::tokens(600).await;
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", elsewhere.url()),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", elsewhere.url()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-env=1".to_owned()),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "from.environment=1".to_owned()),
        ("HTTP_PROXY", elsewhere.url()),
        ("http_proxy", elsewhere.url()),
    ];
    let top = format!("tracing: {{otlp: \"{}\"}}\n", collector.url());
    let _sidecar = Sidecar::start_in(&config(&upstream, &tokens, &top), &environment).await;
    let [token] = spans(&collector, 1, |_| true).await.try_into().unwrap();
    assert_eq!(token["resource"], json!({"service.name": "keybearer", "service.version": env!("CARGO_PKG_VERSION")}));
    let (_, heads) = collector.raw().await;
    assert!(!heads.to_string().to_lowercase().contains("x-env"), "{heads}");
    assert_eq!(elsewhere.raw().await.1, json!([]));
}
