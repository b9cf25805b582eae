//! `GET connections`: search, filters, pages, and its cost with 10,000 connections.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{TIMEOUT, call, text};
use crate::rig::manager::MANAGER;
use crate::rig::raw::RawResponse;
use crate::rig::sidecar::{Sidecar, program};

/// For one page, in a build without optimizations and on a busy machine.
const PAGE_TIME_MAX: Duration = Duration::from_millis(250);

fn config(connections: &str) -> String {
    format!("admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nconnections:\n{connections}")
}

async fn get(sidecar: &Sidecar, query: &str) -> RawResponse {
    call(sidecar.admin(), "get", &format!("/api/v1/connections{query}"), MANAGER, None).await
}

async fn names(sidecar: &Sidecar, query: &str) -> Vec<String> {
    let response = get(sidecar, query).await;
    assert_eq!(response.status, 200, "{query}: {}", response.text());
    let response = response.json();
    let items = response["items"].as_array().expect("items").iter();
    items.map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn connections_are_searched_filtered_and_refused_by_name() {
    let sidecar = Sidecar::start(config(
        "- {name: zeta, active: false, client_id: a, token_url: \"http://127.0.0.1:1/t\", comments: Billing's OWN org, application: billing}\n\
         - {name: crm, active: false, client_id: the-Client, token_url: \"http://127.0.0.1:1/t\", routes: [{host: \"*.sales.test\"}]}\n\
         - {name: desk, client_id: b, authorization_url: \"http://127.0.0.1:1/a\", token_url: \"http://127.0.0.1:1/t\", \
         routes: [{mount: /desk, upstream: \"https://up.test\"}]}\n",
    ))
    .await;
    for (query, expected) in [
        ("", vec!["crm", "desk", "zeta"]),
        ("?q=", vec!["crm", "desk", "zeta"]),
        ("?q=own%20ORG", vec!["zeta"]),
        ("?q=THE-client", vec!["crm"]),
        ("?q=sales.test", vec!["crm"]),
        ("?q=up.test", vec!["desk"]),
        ("?q=es", vec!["crm", "desk"]),
        ("?q=absent", vec![]),
        ("?state=inactive", vec!["crm", "zeta"]),
        ("?state=reauthorize", vec!["desk"]),
        ("?state=reauthorize&q=crm", vec![]),
        ("?state=idle&limit=200", vec![]),
        ("?application=billing", vec!["zeta"]),
        ("?application=billing&q=crm", vec![]),
        ("?application=bill", vec![]),
    ] {
        assert_eq!(names(&sidecar, query).await, expected, "{query}");
    }
    let item = get(&sidecar, "?q=desk").await.json()["items"][0].clone();
    let members: Vec<_> = item.as_object().expect("an object").keys().map(String::as_str).collect();
    let expected =
        "active application client_id comments expires_at grant last_attempt name profiles route_count routes state";
    assert_eq!(members.join(" "), expected);
    assert_eq!((&item["routes"], &item["route_count"]), (&json!(["/desk"]), &json!(1)));
    let long = format!("?q={}", "x".repeat(201));
    for query in [
        "?state=tired",
        "?limit=0",
        "?limit=201",
        "?limit=-1",
        "?limit=many",
        "?cursor=!",
        "?cursor=Li4",
        "?colour=red",
        "?q=a&q=b",
        &long,
    ] {
        let response = get(&sidecar, query).await;
        assert_eq!((response.status, response.json()["code"].as_str()), (400, Some("bad_request")), "{query}");
    }
}

#[tokio::test]
async fn a_page_of_ten_thousand_connections_is_fast_and_every_page_is_walked() {
    const COUNT: usize = 10_000;
    let mut connections = String::new();
    for number in 0..COUNT {
        writeln!(
            connections,
            "- {{name: c{number:05}, active: false, client_id: client-{number}, token_url: \"https://as.test/t\", \
             comments: number {number}, routes: [{{host: h{number}.test}}]}}"
        )
        .expect("text");
    }
    let sidecar = Sidecar::start(config(&connections)).await;
    // A search that matches the last connection alone reads all of them.
    for query in ["", "?state=inactive&q=test", "?q=client-9999&state=inactive"] {
        let (start, mut best) = (Instant::now(), Duration::MAX);
        for _ in 0..5 {
            let one = Instant::now();
            let page = get(&sidecar, query).await;
            best = best.min(one.elapsed());
            assert!(page.status == 200 && page.body.len() < 64 * 1024, "{query}: {} bytes", page.body.len());
        }
        println!("a page of {COUNT} connections ({query}): {best:?}, five in {:?}", start.elapsed());
        assert!(best < PAGE_TIME_MAX, "{query}: {best:?}");
    }

    let mut command = program();
    command.args(["connections", "--json"]).env("KEYBEARER_ADMIN_URL", format!("http://{}", sidecar.admin()));
    let output = command.env("KEYBEARER_ADMIN_TOKEN", MANAGER).output();
    let output = timeout(TIMEOUT, output).await.expect("the command ends in time").expect("the command runs");
    let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    let mut found: Vec<_> = all["items"].as_array().expect("items").iter().map(|item| item["name"].as_str()).collect();
    assert_eq!((found.len(), found[0]), (COUNT, Some("c00000")));
    found.dedup();
    assert_eq!(found.len(), COUNT);
}

#[tokio::test]
async fn a_cursor_survives_the_removal_of_the_connection_that_it_names() {
    let connection =
        |name: &str| format!("- {{name: {name}, active: false, client_id: a, token_url: \"http://127.0.0.1:1/t\"}}\n");
    let sidecar = Sidecar::start(config(&["b", "c", "d", "e"].map(connection).concat())).await;
    let page = get(&sidecar, "?limit=2").await.json();
    assert_eq!(page["items"][1]["name"], "c");
    let cursor = page["cursor"].as_str().expect("a cursor").to_owned();
    let file = sidecar.dir.path().join("keybearer.yaml");
    let yaml = std::fs::read_to_string(&file).expect("a file").replace("{name: c,", "{name: a,");
    std::fs::write(&file, yaml).expect("a file");
    sidecar.wait_for_metric("keybearer_config_reloads_total{outcome=\"applied\"}", |count| count >= 1.0).await;
    assert_eq!(names(&sidecar, "").await, ["a", "b", "d", "e"]);
    assert_eq!(names(&sidecar, &format!("?limit=2&cursor={cursor}")).await, ["d", "e"]);
}
