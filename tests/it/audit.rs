//! The audit and the request log: each event is exactly one record with its fields, whatever callers send.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::rig::raw::{self, Conn, RawResponse};
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};
use crate::rig::stage::wait_until;

mod injection;
mod requests;

const OPS: &str = "token-of-ops-0123456789";
const EYE: &str = "token-of-eye-0123456789";
const TO_FILE: &str = "audit: {to: {file: audit.jsonl}}\n";

/// A proxy with an authorization server and an API, a caller `billing`, and the admin users `ops` and `eye`.
pub struct Scene {
    pub sidecar: Sidecar,
    pub server: Scripted,
    pub api: Scripted,
    top: String,
}

impl Scene {
    /// `top`: further lines of configuration.
    pub async fn start(top: &str) -> Scene {
        let tokens = |_: &Received, before: usize| Reply::token(&format!("token-{before}"), 3600);
        Self::with(top, tokens, |_, _| Reply::ok()).await
    }

    pub async fn with<S, A>(top: &str, server: S, api: A) -> Scene
    where
        S: Fn(&Received, usize) -> Reply + Send + Sync + 'static,
        A: Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    {
        let (server, api) = (Scripted::start(server).await, Scripted::start(api).await);
        let sidecar = Sidecar::start(&config(&server, &api, top, "")).await;
        Scene { sidecar, server, api, top: top.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.sidecar.dir.path().join("audit.jsonl")
    }

    /// Replaces the configuration, with other top-level lines and further connections.
    fn write(&self, top: &str, more: &str) {
        let path = self.sidecar.dir.path().join("keybearer.yaml");
        std::fs::write(path.with_extension("next"), config(&self.server, &self.api, top, more)).expect("a file");
        std::fs::rename(path.with_extension("next"), path).expect("write succeeds");
    }

    /// Reloads the configuration. When this returns, the audit target is in force, and a reload started by the file
    /// watch has ended too.
    async fn reload(&self) {
        let response = self.admin("POST", "/api/v1/reload", &format!("Authorization: Bearer {OPS}\r\n")).await;
        assert_eq!(response.status, 200, "{}\n{}", response.text(), self.sidecar.log());
    }

    pub async fn get(&self, url: &str, lines: &str) -> RawResponse {
        raw::get_through(self.sidecar.proxy(), url, &format!("{}{lines}", billing())).await
    }

    async fn admin(&self, method: &str, path: &str, lines: &str) -> RawResponse {
        let admin = self.sidecar.admin();
        let host = if lines.contains("Host:") { String::new() } else { format!("Host: {admin}\r\n") };
        let head = format!("{method} {path} HTTP/1.1\r\n{host}{lines}Connection: close\r\n\r\n");
        raw::send(admin, head.as_bytes()).await
    }

    /// The complete lines of the file; the last one may be partly written.
    fn lines_of_file(&self) -> Option<String> {
        let mut bytes = std::fs::read(self.path()).ok()?;
        bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
        Some(String::from_utf8(bytes).expect("UTF-8"))
    }

    /// The records in the file, or else in the log, without times, addresses and ids, which are checked here.
    pub fn records(&self) -> Vec<Value> {
        let text = self.lines_of_file();
        let in_file = text.is_some();
        let whole = text.unwrap_or_else(|| self.sidecar.log());
        let parsed = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
        let mut records: Vec<_> = parsed.filter(|line| in_file || line["audit"].is_string()).collect();
        for record in &mut records {
            let fields = record.as_object_mut().expect("a JSON object");
            if let Some(event) = fields.remove("audit") {
                let time = fields.remove("timestamp").expect("a time");
                fields.extend([("event".to_owned(), event), ("time".to_owned(), time)]);
                ["level", "message", "duration_s"].into_iter().for_each(|name| drop(fields.remove(name)));
                if fields["event"] == "use" || fields["event"] == "denial" {
                    fields.remove("cause");
                }
                for names in ["added", "changed", "removed", "restart_required"] {
                    if let Some(text) = fields.get(names).and_then(Value::as_str) {
                        let list: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
                        fields.insert(names.to_owned(), json!(list));
                    }
                }
                fields.retain(|name, value| name != "restart_required" || *value != json!([]));
            }
            let time = fields.remove("time").expect("a time");
            let time = time.as_str().expect("text");
            assert!(time.starts_with("20") && time.ends_with('Z') && time.contains('.'), "{time}");
            if let Some(from) = fields.remove("from") {
                assert!(from.as_str().is_some_and(|from| from.starts_with("127.0.0.1:")), "{from}");
            }
            if let Some(id) = fields.remove("request_id") {
                assert!(id.as_str().is_some_and(|id| id.len() == 16), "{id}");
            }
        }
        records
    }

    fn of(&self, event: &str) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["event"] == event).collect()
    }

    async fn wait_until(&self, what: &str, is: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        wait_until(what, || is(&self.records())).await;
        self.records()
    }
}

pub fn billing() -> String {
    format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode("billing:s3cret"))
}

fn config(server: &Scripted, api: &Scripted, top: &str, more: &str) -> String {
    let hosts = ["api", "off", "scoped", "shut", "down"].map(|name| match name {
        "down" => "down.test: \"127.0.0.1:1\"".to_owned(),
        name => format!("{name}.test: \"{}\"", api.address),
    });
    let connection = |name: &str, keys: &str, route: &str| {
        format!(
            "- {{name: {name}, client_id: {name}, client_secret: s, token_url: \"http://{}/{name}\"{keys}, \
             routes: [{{host: {name}.test, upstream_tls: false{route}}}]}}\n",
            server.address
        )
    };
    let listeners = match top.contains("listeners:") {
        true => "",
        false => "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n",
    };
    [
        listeners,
        &format!("hosts: {{{}}}\n", hosts.join(", ")),
        top,
        &format!("admin: {{users: [{{name: ops, role: manager, token: {OPS}}}, {{name: eye, role: viewer, token: {EYE}}}]}}\n"),
        "egress: {unmatched: deny}\ncallers: [{name: billing, secret: s3cret}]\nconnections:\n",
        &connection("api", "", ""),
        &connection("off", ", active: false", ""),
        &connection("scoped", "", ", path: /v1"),
        &connection("shut", ", accessible_from: []", ""),
        &connection("down", "", ""),
        more,
    ]
    .concat()
}

/// The expected record of a request that a route or a rule decided.
fn request(event: &str, host: &str, path: &str, status: u16, more: Value) -> Value {
    let mut record =
        json!({"event": event, "caller": "billing", "method": "GET", "host": host, "path": path, "status": status});
    record.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    record.as_object_mut().expect("a map").retain(|_, value| !value.is_null());
    record
}

async fn every_event(audit: &str) {
    let scene = Scene::start(&format!("log: {{requests: all, format: json}}\n{audit}")).await;
    let own =
        |connection: &str| json!({"connection": connection, "profile": "default", "injected": true, "complete": true});
    let denied = |code: &str, connection: Option<&str>| json!({"code": code, "connection": connection, "profile": connection.map(|_| "default")});
    let mut expected = Vec::new();

    assert_eq!(scene.get("http://api.test/v1/x?key=hidden", "X-Request-Id: order-7\r\n").await.status, 200);
    let mut used = request("use", "api.test", "/v1/x", 200, own("api"));
    used["client_request_id"] = "order-7".into();
    expected.push(used);
    assert_eq!(scene.get("http://down.test/", "").await.code(), "upstream_unreachable");
    let mut used = request("use", "down.test", "/", 502, own("down"));
    used["code"] = "upstream_unreachable".into();
    expected.push(used);

    let via = scene.api.received()[0].values("via")[0].to_owned();
    for (url, lines, status, code, connection) in [
        ("http://off.test/a", "", 403, "connection_inactive", Some("off")),
        ("http://shut.test/a", "", 403, "caller_not_allowed", Some("shut")),
        ("http://scoped.test/v2", "", 403, "no_route", None),
        ("http://elsewhere.test/a", "", 403, "egress_denied", None),
        ("http://api.test/a", &format!("Via: {via}\r\n"), 508, "loop_detected", None),
    ] {
        assert_eq!(scene.get(url, lines).await.code(), code);
        let (host, path) = url[7..].split_once('/').expect("a path");
        expected.push(request("denial", host, &format!("/{path}"), status, denied(code, connection)));
    }
    let response = raw::get_through(scene.sidecar.proxy(), "http://user:hidden@api.test/a?key=hidden", "").await;
    assert_eq!(response.code(), "bad_request_target", "{}", response.text());
    let response = raw::get_through(scene.sidecar.proxy(), "http://api.test/a?key=hidden", "").await;
    assert_eq!(response.code(), "caller_unknown");
    let mut record = request("denial", "api.test", "/a", 407, denied("caller_unknown", None));
    record.as_object_mut().expect("a map").remove("caller");
    expected.push(record);
    let trace = format!("TRACE http://api.test/a HTTP/1.1\r\nHost: api.test\r\n{}Connection: close\r\n\r\n", billing());
    assert_eq!(raw::send(scene.sidecar.proxy(), trace.as_bytes()).await.code(), "method_refused");
    let mut record = request("denial", "api.test", "/a", 405, denied("method_refused", None));
    record["method"] = "TRACE".into();
    expected.push(record);
    let mut tunnel = Conn::open(scene.sidecar.proxy()).await;
    tunnel.write(format!("CONNECT api.test:80 HTTP/1.1\r\nHost: api.test:80\r\n{}\r\n", billing()).as_bytes()).await;
    let mut head = [0; 1024];
    tokio::io::AsyncReadExt::read(&mut tunnel.stream, &mut head).await.expect("a response");
    tunnel.write(b"GET http://off.test/in HTTP/1.1\r\nHost: off.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(tunnel.read_response().await.code(), "authority_mismatch");
    expected.push(request("denial", "off.test", "/in", 421, denied("authority_mismatch", None)));

    let by = |user: Option<&str>, method: &str, path: &str, status: u16, code: &str| {
        let mut record =
            request("denial", "", path, status, json!({"listener": "admin", "caller": null, "host": null}));
        record["method"] = method.into();
        record["code"] = code.into();
        user.into_iter().for_each(|user| record["user"] = user.into());
        record
    };
    let path = "/api/v1/connections";
    assert_eq!(scene.admin("GET", path, "").await.status, 401);
    expected.push(by(None, "GET", path, 401, "user_unknown"));
    assert_eq!(scene.admin("GET", path, "Host: evil.test\r\n").await.status, 421);
    expected.push(by(None, "GET", path, 421, "host_unknown"));
    let eye = format!("Authorization: Bearer {EYE}\r\n");
    assert_eq!(scene.admin("POST", "/api/v1/reload", &eye).await.status, 403);
    expected.push(by(Some("eye"), "POST", "/api/v1/reload", 403, "role_too_low"));
    let ops = format!("Authorization: Bearer {OPS}\r\n");
    assert_eq!(scene.admin("POST", "/api/v1/connections/api/test", &ops).await.status, 200);
    let mut tested = request("use", "api.test", "/", 200, json!({"caller": null, "user": "ops", "listener": "admin"}));
    tested
        .as_object_mut()
        .expect("a map")
        .extend([("connection", "api"), ("profile", "default")].map(|(k, v)| (k.to_owned(), v.into())));
    tested["injected"] = true.into();
    expected.push(tested);

    let more = "- {name: added, client_id: a, token_url: \"http://127.0.0.1:1/\"}\n";
    scene.write(&scene.top.replace("requests: all", "requests: all, level: warn"), more);
    scene.sidecar.signal("HUP");
    expected.push(json!({"event": "change", "outcome": "applied", "added": ["added"], "changed": [], "removed": []}));
    let changes =
        |count: usize| move |records: &[Value]| records.iter().filter(|r| r["event"] == "change").count() == count;
    scene.wait_until("the change is recorded", changes(1)).await;
    let path = scene.sidecar.dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&path).expect("a file");
    std::fs::write(&path, text.replace(", path: /v1", "").replace(more, "")).expect("a file");
    assert_eq!(scene.admin("POST", "/api/v1/reload", &ops).await.status, 200);
    expected.push(
        json!({"event": "change", "outcome": "applied", "added": [], "changed": ["scoped"], "removed": ["added"]}),
    );
    scene.wait_until("the change is recorded", changes(2)).await;
    std::fs::write(&path, "connectoins: []\nlgo: {}\n").expect("a file");
    scene.wait_until("the refusal is recorded", changes(3)).await;
    expected.push(
        json!({"event": "change", "outcome": "refused", "problems": 2, "added": [], "changed": [], "removed": []}),
    );

    // The cause is the first to notice the change: the signal, the API call, or the file watch.
    let mut got = scene.wait_until("every event is recorded", |records| records.len() >= expected.len()).await;
    let causes: Vec<_> = got.iter().filter(|record| record["event"] == "change").map(|r| r["cause"].clone()).collect();
    assert!(causes[0] == "signal" || causes[0] == "file", "{causes:?}");
    assert!((causes[1] == "api" || causes[1] == "file") && causes[2] == "file", "{causes:?}");
    for record in got.iter_mut().filter(|record| record["event"] == "change") {
        let fields = record.as_object_mut().expect("a map");
        assert_eq!(fields.remove("cause") == Some("api".into()), fields.remove("user") == Some("ops".into()));
    }
    let refreshes: Vec<_> = got.extract_if(.., |record| record["event"] == "refresh").collect();
    for name in ["api", "scoped", "shut", "down"] {
        let refresh = json!({"event": "refresh", "connection": name, "profile": "default", "grant": "client_credentials", "outcome": "ok", "cause": "start"});
        assert_eq!(refreshes.iter().filter(|record| **record == refresh).count(), 1, "{name}: {refreshes:?}");
    }
    assert_eq!(got, expected, "{}", scene.sidecar.log());
    let everything = format!("{}{}", scene.sidecar.log(), std::fs::read_to_string(scene.path()).unwrap_or_default());
    assert!(!everything.contains("hidden") && !everything.contains("token-0"), "{everything}");
}

#[tokio::test]
async fn every_event_is_one_log_line() {
    every_event("").await;
}

#[tokio::test]
async fn every_event_is_one_line_in_the_file() {
    every_event(TO_FILE).await;
}

#[tokio::test]
async fn a_refresh_records_its_cause() {
    // The first token lives a second; later ones are rejected once.
    let tokens = |_: &Received, before: usize| match before {
        0..5 => Reply::token("short", 3600),
        5 => Reply::json(400, &json!({"error": "invalid_scope", "error_description": "no\r\nsuch"})),
        _ => Reply::token("next", 3600),
    };
    let rejected = |request: &Received, _: usize| match request.request_line().contains("/401") {
        true => Reply::text(401, "text/plain", "no"),
        false => Reply::ok(),
    };
    let scene = Scene::with(TO_FILE, tokens, rejected).await;
    let of = |name: &'static str, count: usize| {
        move |records: &[Value]| {
            records.iter().filter(|r| r["event"] == "refresh" && r["connection"] == name).count() == count
        }
    };
    scene.wait_until("the first token", of("api", 1)).await;
    assert_eq!(scene.get("http://api.test/401", "").await.status, 401);
    scene.wait_until("the rejected token", of("api", 2)).await;
    let ops = format!("Authorization: Bearer {OPS}\r\n");
    assert_eq!(scene.admin("POST", "/api/v1/connections/down/refresh", &ops).await.status, 424);
    scene.wait_until("the refresh by a person", of("down", 2)).await;
    let brief = |name: &str| -> Vec<_> {
        let of = scene.of("refresh").into_iter().filter(|record| record["connection"] == name);
        of.map(|record| [&record["cause"], &record["user"], &record["outcome"], &record["error"]].map(Value::clone))
            .collect()
    };
    let row = |cause: &str, user: Option<&str>, outcome: &str, error: Option<&str>| {
        [cause.into(), json!(user), outcome.into(), json!(error)]
    };
    assert_eq!(brief("api"), [row("start", None, "ok", None), row("rejected", None, "ok", None)]);
    let person = row("person", Some("ops"), "refused", Some("invalid_scope"));
    assert_eq!(brief("down"), [row("start", None, "ok", None), person]);
}

#[tokio::test]
async fn a_scheduled_refresh_has_the_cause_due() {
    let scene = Scene::with(TO_FILE, |_, _| Reply::token("short", 1), |_, _| Reply::ok()).await;
    let due = |record: &Value| record["connection"] == "api" && record["cause"] == "due";
    scene.wait_until("a refresh that is due", |records| records.iter().any(due)).await;
}

#[tokio::test]
async fn the_file_may_be_rotated_with_and_without_a_signal() {
    let scene = Scene::start(TO_FILE).await;
    let mut paths = Vec::new();
    for round in 0..3 {
        assert_eq!(scene.get(&format!("http://api.test/{round}"), "").await.status, 200);
        let path = format!("\"/{round}\"");
        wait_until("the record is written", || scene.lines_of_file().is_some_and(|text| text.contains(&path))).await;
        let old = scene.path().with_extension(round.to_string());
        std::fs::rename(scene.path(), &old).expect("rename succeeds");
        paths.push(old);
        if round == 1 {
            scene.sidecar.signal("HUP");
            wait_until("the file is created again", || scene.path().exists()).await;
        }
    }
    for (round, path) in paths.iter().enumerate() {
        let text = std::fs::read_to_string(path).expect("a file");
        let used: Vec<_> = text.lines().filter(|line| line.contains("\"event\":\"use\"")).collect();
        assert!(used.len() == 1 && used[0].contains(&format!("\"path\":\"/{round}\"")), "{round}: {text}");
    }
}

#[tokio::test]
async fn a_graceful_shutdown_writes_every_record() {
    let mut scene = Scene::start(TO_FILE).await;
    let mut callers = JoinSet::new();
    for caller in 0..8 {
        let address = scene.sidecar.proxy();
        callers.spawn(async move {
            let mut conn = Conn::open(address).await;
            for number in 0..125 {
                let head =
                    format!("GET http://api.test/{caller}-{number} HTTP/1.1\r\nHost: api.test\r\n{}\r\n", billing());
                conn.write(head.as_bytes()).await;
                assert_eq!(conn.read_response().await.status, 200);
            }
        });
    }
    callers.join_all().await;
    scene.sidecar.signal("TERM");
    assert_eq!(scene.sidecar.exit().await.code(), Some(0));
    let paths: Vec<_> = scene.of("use").into_iter().map(|record| record["path"].to_string()).collect();
    assert_eq!(paths.len(), 1000);
    assert_eq!(paths.iter().collect::<BTreeSet<_>>().len(), 1000);
}

#[tokio::test]
async fn a_full_disk_stops_no_request_and_is_logged_once() {
    let mut scene = Scene::start("audit: {to: {file: /dev/full}}\n").await;
    scene.sidecar.wait_for_log("audit file not writable; retrying").await;
    for _ in 0..20 {
        assert_eq!(scene.get("http://api.test/", "").await.status, 200);
    }
    let started = Instant::now();
    scene.sidecar.signal("TERM");
    assert_eq!(scene.sidecar.exit().await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    scene.sidecar.wait_for_log("audit file not writable; the last records are lost").await;
    assert_eq!(scene.sidecar.log().matches("audit file not writable; retrying").count(), 1);
}

#[tokio::test]
async fn records_are_kept_while_the_file_is_not_writable() {
    let scene = Scene::start(TO_FILE).await;
    assert_eq!(scene.get("http://api.test/before", "").await.status, 200);
    scene.wait_until("the first record", |records| records.iter().any(|record| record["path"] == "/before")).await;
    let old = scene.path().with_extension("old");
    std::fs::rename(scene.path(), &old).expect("rename succeeds");
    std::fs::create_dir(scene.path()).expect("a directory replaces it");
    assert_eq!(scene.get("http://api.test/meanwhile", "").await.status, 200);
    scene.sidecar.wait_for_log("audit file not writable; retrying").await;
    std::fs::remove_dir(scene.path()).expect("removal succeeds");
    wait_until("the file is back", || scene.lines_of_file().is_some_and(|text| text.contains("\"/meanwhile\""))).await;
    scene.sidecar.wait_for_log("audit file writable again").await;
}

#[tokio::test]
async fn an_unusable_file_is_a_problem_at_start_and_at_reload() {
    let scene = Scene::start("").await;
    let dir = scene.sidecar.dir.path();
    std::os::unix::fs::symlink(dir.join("elsewhere"), dir.join("link.jsonl")).expect("a link");
    for (file, why) in [("link.jsonl", "a symbolic link"), (".", "directory"), ("none/audit.jsonl", "No such file")] {
        let path = dir.join("broken.yaml");
        let text = format!("audit: {{to: {{file: {file}}}}}\nconnections: []\n");
        std::fs::write(&path, &text).expect("a file");
        for command in ["check", "run"] {
            let output = program().args([command, "--config"]).arg(&path).output().await.expect("the command starts");
            let shown = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command} {file}: {shown}");
            assert!(
                shown.contains(":1:20: audit.to.file: ") && shown.to_lowercase().contains(&why.to_lowercase()),
                "{shown}"
            );
        }
        scene.write(&format!("audit: {{to: {{file: {file}}}}}\n"), "");
        scene.sidecar.wait_for_metric("keybearer_config_last_reload_successful", |value| value == 0.0).await;
        scene.write("", "");
        scene.sidecar.wait_for_metric("keybearer_config_last_reload_successful", |value| value == 1.0).await;
    }
    assert!(!dir.join("elsewhere").exists(), "a link was followed");
}

#[tokio::test]
async fn a_reload_moves_the_audit_and_records_that_it_is_switched_off() {
    let scene = Scene::start("").await;
    scene.write(TO_FILE, "");
    scene.reload().await;
    scene.sidecar.wait_for_log("\"audit\":\"change\"").await;
    assert_eq!(scene.get("http://api.test/in-the-file", "").await.status, 200);
    scene.wait_until("use and change are in the file", |records| records.len() == 2).await;
    assert_eq!((scene.of("change").len(), scene.of("use").len()), (1, 1));
    scene.write("audit: {to: off}\n", "");
    scene.reload().await;
    scene.wait_until("the last change is in the file", |records| records.len() == 3).await;
    assert_eq!(raw::get_through(scene.sidecar.proxy(), "http://api.test/", "").await.code(), "caller_unknown");
    scene.sidecar.wait_for_log("caller_unknown").await;
    assert_eq!(scene.records().len(), 3, "{:?}", scene.records());
    assert_eq!(scene.sidecar.log().matches("\"audit\":").count(), 4 + 1, "the first refreshes and one change");
}
