//! The metrics as Prometheus itself reads them, and each value compared with what was made to happen.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::rig::raw;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

/// Every metric of the contract whose subject exists.
const BUILT: [&str; 18] = [
    "keybearer_build_info",
    "keybearer_config_last_reload_success_timestamp_seconds",
    "keybearer_config_last_reload_successful",
    "keybearer_config_reloads_total",
    "keybearer_config_restart_required",
    "keybearer_errors_total",
    "keybearer_injections_total",
    "keybearer_replays_total",
    "keybearer_request_duration_seconds",
    "keybearer_request_overhead_seconds",
    "keybearer_requests_in_flight",
    "keybearer_requests_total",
    "keybearer_token_expiry_timestamp_seconds",
    "keybearer_token_request_duration_seconds",
    "keybearer_token_requests_total",
    "keybearer_token_wait_seconds",
    "keybearer_tokens",
    "keybearer_upstream_connections",
];

/// A sidecar that has lived through every outcome of a request.
async fn lived(server: &Scripted, upstream: &Scripted) -> Sidecar {
    let refused = Scripted::start(|_, _| Reply::json(400, &serde_json::json!({"error": "invalid_scope"}))).await;
    let sidecar = Sidecar::start(&format!(
        "hosts: {{api.test: \"{up}\", kept.test: \"{up}\", refused.test: \"{up}\"}}
callers: [{{name: billing, secret: s3cret}}]
connections:
- name: crm
  client_id: a
  token_url: \"http://{server}/token\"
  routes: [{{host: api.test, upstream_tls: false}}, {{host: kept.test, upstream_tls: false, existing: keep}}]
- name: broken
  client_id: a
  token_url: \"http://{refused}/token\"
  routes: [{{host: refused.test, upstream_tls: false}}, {{host: refused.test, path: /open, upstream_tls: false, without_token: forward}}]
",
        up = upstream.address,
        server = server.address,
        refused = refused.address,
    ))
    .await;
    let caller = "Proxy-Authorization: Bearer s3cret\r\n";
    let statuses = [
        ("http://api.test/200", caller, 200),
        ("http://api.test/404", caller, 404),
        ("http://api.test/500", caller, 500),
        ("http://api.test/401", caller, 401),
        ("http://kept.test/200", "Proxy-Authorization: Bearer s3cret\r\nAuthorization: Bearer own\r\n", 200),
        ("http://refused.test/200", caller, 424),
        ("http://refused.test/open/200", caller, 200),
        ("http://api.test/200", "", 407),
    ];
    for (url, lines, status) in statuses {
        assert_eq!(raw::get_through(sidecar.proxy(), url, lines).await.status, status, "{url}");
    }
    sidecar
}

async fn peers() -> (Scripted, Scripted) {
    let upstream = Scripted::start(|request, _| {
        let path = request.request_line().split(' ').nth(1).unwrap_or_default().to_owned();
        let status = path.rsplit('/').next().and_then(|status| status.parse().ok()).unwrap_or(200);
        Reply::text(status, "text/plain", "x")
    });
    (Scripted::tokens(600).await, upstream.await)
}

#[tokio::test]
async fn each_outcome_is_counted_where_the_contract_says() {
    let (server, upstream) = peers().await;
    let sidecar = lived(&server, &upstream).await;
    let requests = |connection: &str, origin: &str, class: &str| {
        let profile = if connection.is_empty() { "" } else { "default" };
        let caller = if connection.is_empty() { "" } else { "billing" };
        format!(
            "keybearer_requests_total{{connection=\"{connection}\",profile=\"{profile}\",caller=\"{caller}\",origin=\"{origin}\",status_class=\"{class}\"}}"
        )
    };
    let injections = |connection: &str, outcome: &str| {
        format!("keybearer_injections_total{{connection=\"{connection}\",profile=\"default\",outcome=\"{outcome}\"}}")
    };
    let table = [
        (requests("crm", "upstream", "2xx"), 2.0),
        (requests("crm", "upstream", "4xx"), 2.0),
        (requests("crm", "upstream", "5xx"), 1.0),
        (requests("crm", "upstream", "3xx"), 0.0),
        (requests("broken", "proxy", "4xx"), 1.0),
        (requests("broken", "upstream", "2xx"), 1.0),
        (requests("", "proxy", "4xx"), 1.0),
        (injections("crm", "injected"), 4.0),
        (injections("crm", "kept"), 1.0),
        (injections("broken", "refused"), 1.0),
        (injections("broken", "forwarded"), 1.0),
        ("keybearer_errors_total{connection=\"broken\",code=\"token_refused\"}".to_owned(), 1.0),
        ("keybearer_errors_total{connection=\"\",code=\"caller_unknown\"}".to_owned(), 1.0),
        ("keybearer_replays_total{connection=\"crm\",outcome=\"rejected\"}".to_owned(), 1.0),
        ("keybearer_requests_in_flight".to_owned(), 0.0),
        ("keybearer_request_duration_seconds_count{connection=\"crm\"}".to_owned(), 5.0),
        ("keybearer_tokens{connection=\"crm\",profile=\"default\",state=\"fresh\"}".to_owned(), 1.0),
        ("keybearer_tokens{connection=\"broken\",profile=\"default\",state=\"misconfigured\"}".to_owned(), 1.0),
    ];
    for (series, value) in table {
        sidecar.until_metric(&series, |found| found == value).await;
    }
    for (connection, outcome, value) in [("crm", "ok", 2.0), ("broken", "refused", 1.0)] {
        let labels = format!(
            "connection=\"{connection}\",profile=\"default\",grant=\"client_credentials\",outcome=\"{outcome}\""
        );
        assert_eq!(sidecar.metric(&format!("keybearer_token_requests_total{{{labels}}}")).await, value);
    }
}

#[tokio::test]
async fn only_listed_names_are_exposed_and_promtool_is_content() {
    let (server, upstream) = peers().await;
    let sidecar = lived(&server, &upstream).await;
    for number in 0..50 {
        raw::get_through(
            sidecar.proxy(),
            &format!("http://h{number}.test/p{number}"),
            "Proxy-Authorization: Bearer s3cret\r\n",
        )
        .await;
    }
    let text = raw::get(sidecar.admin(), "/metrics").await.text();
    assert!(!text.contains("h7.test") && !text.contains("p7"), "labels never come from a request");
    let names: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let ours: Vec<_> = names.into_iter().filter(|name| !name.starts_with("process_")).collect();
    assert_eq!(ours, BUILT);
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool; run tests/rig/install.sh");
    child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[tokio::test]
async fn a_real_prometheus_scrapes_it() {
    let (server, upstream) = peers().await;
    let sidecar = lived(&server, &upstream).await;
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: keybearer, static_configs: [{{targets: [\"{}\"]}}]}}]\n",
        sidecar.admin()
    );
    std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()));
    command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
    command.arg(format!("--web.listen-address={address}")).kill_on_drop(true).stderr(Stdio::null());
    let _prometheus = command.spawn().expect("prometheus; run tests/rig/install.sh");
    let query = "/api/v1/query?query=sum(keybearer_injections_total)";
    let scraped = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if tokio::net::TcpStream::connect(address).await.is_err() {
                continue;
            }
            let answer = raw::get(address, query).await;
            if answer.status == 200 && !answer.json()["data"]["result"].as_array().unwrap().is_empty() {
                return answer.json()["data"]["result"][0]["value"][1].clone();
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(30), scraped).await.expect("a scrape in time"), "7");
}
