//! Real HTTP libraries against real authorization servers: sequential requests over more than three token lifetimes.
//!
//! A library gets only its proxy variables, and the upstream introspects every token at the authorization server. One test per
//! server and scheme, so that a failure names its pair.

mod environment;
mod matrix;

use std::collections::BTreeSet;
use std::time::Instant;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::rig::config::{Config, Connection, local};
use crate::rig::peers::{AuthorizationServer, ClientKind, Upstream, run_client};
use crate::rig::sidecar::{Sidecar, duration_factor};

const LIFETIME_S: u32 = 3;
/// Three lifetimes and a bit.
const SPAN_S: u32 = 10;
const PAUSE_MS: u32 = 100;
/// The number that the slowest client (one process per request) achieves on a busy machine.
const REQUESTS_MIN: u64 = 20;

#[tokio::test]
async fn every_client_is_served_over_plain_http_with_oidc_provider() {
    let server = AuthorizationServer::op(json!({"lifetime": LIFETIME_S})).await;
    check("op.test", &server, UpstreamHop::Plain).await;
}

#[tokio::test]
async fn every_client_is_served_over_tls_with_oidc_provider() {
    let server = AuthorizationServer::op(json!({"lifetime": LIFETIME_S})).await;
    check("op.test", &server, UpstreamHop::Tls).await;
}

#[tokio::test]
async fn every_client_is_served_over_plain_http_with_authlib() {
    let server = AuthorizationServer::al(json!({"lifetime": LIFETIME_S})).await;
    check("al.test", &server, UpstreamHop::Plain).await;
}

#[tokio::test]
async fn every_client_is_served_over_tls_with_authlib() {
    let server = AuthorizationServer::al(json!({"lifetime": LIFETIME_S})).await;
    check("al.test", &server, UpstreamHop::Tls).await;
}

/// How the sidecar reaches the upstream for an `http://` URL.
#[derive(Clone, Copy, PartialEq)]
enum UpstreamHop {
    Plain,
    Tls,
}

/// The token URL has no port: `hosts` maps `server_name` to its address.
fn config(server_name: &str, server_port: u16, upstream: &Upstream, hop: UpstreamHop) -> String {
    let (port, route) = match hop {
        UpstreamHop::Plain => (upstream.http_port(), "host: api.test, upstream_tls: false"),
        UpstreamHop::Tls => (upstream.https_port(), "host: api.test"),
    };
    let machine = "client_id: machine, client_secret: machine-secret";
    let crm = Connection::new("crm", format_args!("https://{server_name}/token")).client(machine).route(route);
    let config = Config::new().trust_peers().host(server_name, local(server_port)).host("api.test", local(port));
    config.connection(crm).to_string()
}

async fn check(server_name: &str, server: &AuthorizationServer, hop: UpstreamHop) {
    let upstream = Upstream::start(server).await;
    let began = Instant::now();
    let sidecar = Sidecar::start(&config(server_name, server.port(), &upstream, hop)).await;
    let proxy = sidecar.proxy_url();

    let clients = ClientKind::ALL.map(|kind| {
        let (url, proxy) = (format!("http://api.test/{kind:?}?x=1"), &proxy);
        async move { (kind, run_client(kind, &url, proxy, SPAN_S * duration_factor(), PAUSE_MS).await) }
    });
    let mut accepted = 0;
    for (kind, report) in join_all(clients).await {
        assert_eq!((report.failed, &report.first_error), (0, &None), "{kind:?}: {report:?}\n{}", sidecar.log());
        assert!(report.ok >= REQUESTS_MIN, "{kind:?} made too few requests to show anything: {report:?}");
        accepted += report.ok;
    }

    let summary = upstream.summary().await;
    for (verdict, count) in
        [("missing_token", 0), ("inactive", 0), ("unreachable", 0), ("double", 0), ("active", accepted)]
    {
        assert_eq!(summary[verdict], count, "{verdict} in {summary}");
    }
    let records = upstream.records().await;
    assert_eq!(records.len() as u64, accepted);
    let scheme = if hop == UpstreamHop::Tls { "https" } else { "http" };
    assert!(records.iter().all(|record| record["scheme"] == scheme && field(record, "host") == ["api.test"]));
    for kind in ClientKind::ALL {
        let path = format!("/{kind:?}?x=1");
        let own: Vec<_> = records.iter().filter(|record| record["url"] == path.as_str()).collect();
        let tokens: BTreeSet<_> = own.iter().flat_map(|record| field(record, "authorization")).collect();
        assert!(tokens.len() >= 3, "{kind:?} used only {} tokens", tokens.len());
    }

    // A token is refreshed no earlier than at half of its lifetime.
    let refreshes_max = began.elapsed().as_secs_f64() / (f64::from(LIFETIME_S) / 2.0);
    let token_requests = server.token_requests("machine").await;
    let is_plausible = (4..=refreshes_max as u64 + 2).contains(&token_requests);
    assert!(is_plausible, "{token_requests} token requests in {:?}", began.elapsed());
}

/// All values of a field in an upstream's record.
fn field<'a>(record: &'a Value, name: &str) -> Vec<&'a str> {
    let raw: Vec<_> = record["headers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let pairs = raw.chunks_exact(2).filter(|pair| pair[0].eq_ignore_ascii_case(name));
    pairs.map(|pair| pair[1]).collect()
}
