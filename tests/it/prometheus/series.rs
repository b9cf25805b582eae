//! The set of series: those of the contract, whatever callers send, as promtool and Prometheus read them.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::{CALLER, peers, series_count, sidecar_after_all_outcomes};
use crate::rig::config::{Config, Connection};
use crate::rig::raw::{self, Conn};
use crate::rig::sidecar::{Sidecar, duration_factor, root};

/// Every metric of the contract that is implemented.
const BUILT: [&str; 23] = [
    "keybearer_build_info",
    "keybearer_certificate_expiry_timestamp_seconds",
    "keybearer_config_last_reload_success_timestamp_seconds",
    "keybearer_config_last_reload_successful",
    "keybearer_config_reloads_total",
    "keybearer_config_restart_required",
    "keybearer_errors_total",
    "keybearer_injections_total",
    "keybearer_log_lines_dropped_total",
    "keybearer_refresh_token_expiry_timestamp_seconds",
    "keybearer_replays_total",
    "keybearer_request_duration_seconds",
    "keybearer_request_overhead_seconds",
    "keybearer_requests_in_flight",
    "keybearer_requests_total",
    "keybearer_store_operations_total",
    "keybearer_stripped_total",
    "keybearer_token_expiry_timestamp_seconds",
    "keybearer_token_request_duration_seconds",
    "keybearer_token_requests_total",
    "keybearer_token_wait_seconds",
    "keybearer_tokens",
    "keybearer_upstream_connections",
];

const PROCESS: [&str; 7] = [
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
];

/// OB-05
#[tokio::test]
async fn callers_requests_add_no_series() {
    let (server, upstream) = peers().await;
    let config = Config::new().top("egress: {unmatched: deny}\ncallers: [{name: billing, secret: s3cret}]\n");
    let crm = Connection::at("crm", &server).plain("api.test");
    let sidecar = Sidecar::start(config.host("api.test", upstream.address).connection(crm)).await;
    let round = async |number: u32| {
        let status = 200 + number % 399;
        let mut conn = Conn::open(sidecar.proxy()).await;
        let requests = [
            format!(
                "M{number} http://api.test/p{number}/{status} HTTP/1.1\r\nHost: x\r\n{CALLER}X-H{number}: 1\r\n\r\n"
            ),
            format!("GET http://h{number}.test:{}/ HTTP/1.1\r\nHost: x\r\n{CALLER}\r\n", number + 1),
            format!(
                "GET /m{number}/x HTTP/1.1\r\nHost: h{number}.test\r\nKeybearer-Authorization: Bearer s3cret\r\n\r\n"
            ),
            format!("GET http://api.test/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic dTpw{number:04}\r\n\r\n"),
        ];
        for request in requests {
            conn.write(request.as_bytes()).await;
            assert_ne!(conn.read_response().await.status, 0, "{request}");
        }
    };
    // The first requests create the series of their outcomes, including a rejected token.
    for number in [0, 1, 201] {
        round(number).await;
    }
    let before = series_count(&sidecar).await;
    for number in 2..150 * duration_factor() {
        round(number).await;
    }
    let text = raw::get(sidecar.admin(), "/metrics").await.text();
    assert!(!text.contains("h77") && !text.contains("p77") && !text.contains("M77"), "a label came from a request");
    assert_eq!(series_count(&sidecar).await, before);
}

#[tokio::test]
async fn only_listed_names_are_exposed_and_promtool_accepts_them() {
    let (server, upstream) = peers().await;
    let sidecar = sidecar_after_all_outcomes(&server, &upstream).await;
    let text = raw::get(sidecar.admin(), "/metrics").await.text();
    let names: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), [&BUILT[..], &PROCESS[..]].concat());
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool; run tests/peers/install.sh");
    child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.trim().is_empty(), "{text}");
}

#[test]
fn the_docs_list_each_metric() {
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).expect("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `keybearer_")?.split_once('`'));
    let listed: BTreeSet<String> = rows.map(|(name, _)| format!("keybearer_{name}")).collect();
    assert_eq!(listed, BUILT.map(str::to_owned).into());
}

#[tokio::test]
async fn a_real_prometheus_scrapes_the_metrics() {
    let (server, upstream) = peers().await;
    let sidecar = sidecar_after_all_outcomes(&server, &upstream).await;
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
    let _prometheus = command.spawn().expect("prometheus; run tests/peers/install.sh");
    let query = "/api/v1/query?query=sum(keybearer_injections_total)";
    let scraped = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if tokio::net::TcpStream::connect(address).await.is_err() {
                continue;
            }
            let response = raw::get(address, query).await;
            if response.status == 200 && !response.json()["data"]["result"].as_array().unwrap().is_empty() {
                return response.json()["data"]["result"][0]["value"][1].clone();
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(30), scraped).await.expect("a scrape in time"), "10");
}
