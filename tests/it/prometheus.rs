//! The metrics as Prometheus reads them, and their values after known events.

mod certificates;
mod errors;
mod series;
mod values;

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::rig::peers::Peers;
use crate::rig::raw;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const CALLER: &str = "Proxy-Authorization: Bearer s3cret\r\n";

/// A sidecar after every outcome of a request and of a token request.
async fn sidecar_after_all_outcomes(server: &Scripted, upstream: &Scripted) -> Sidecar {
    let refused = Scripted::start(|_, _| Reply::json(400, &serde_json::json!({"error": "invalid_scope"}))).await;
    let away = Scripted::start(|_, _| Reply::text(503, "text/plain", "away")).await;
    let nonsense = Scripted::start(|_, _| Reply::text(200, "text/plain", "not JSON")).await;
    let token = serde_json::json!({"access_token": "t", "refresh_token": "r", "refresh_token_expires_in": 864_000});
    let lasting = Scripted::start(move |_, _| Reply::json(200, &token)).await;
    let connection = |name: &str, server: &Scripted, routes: &str| {
        format!(
            "- {{name: {name}, client_id: a, token_url: \"http://{}/token\", routes: [{routes}]}}\n",
            server.address
        )
    };
    let connections = [
        connection(
            "crm",
            server,
            "{host: api.test, upstream_tls: false, strip: known}, {host: kept.test, upstream_tls: false, existing: keep}",
        ),
        connection("replayed", server, "{host: replayed.test, upstream_tls: false}"),
        connection(
            "broken",
            &refused,
            "{host: refused.test, upstream_tls: false}, {host: refused.test, path: /open, upstream_tls: false, without_token: forward}",
        ),
        connection("away", &away, ""),
        connection("nonsense", &nonsense, ""),
        connection("lasting", &lasting, ""),
    ];
    let sidecar = Sidecar::start(&format!(
        "hosts: {{api.test: \"{up}\", kept.test: \"{up}\", refused.test: \"{up}\", replayed.test: \"{up}\"}}\n\
         callers: [{{name: billing, secret: s3cret}}]\ntimeouts: {{response_head: 2s}}\ntrust: [\"{}\"]\nconnections:\n{}",
        Peers::certs().ca.display(),
        connections.concat(),
        up = upstream.address,
    ))
    .await;
    let statuses = [
        ("http://api.test/200", CALLER, 200),
        ("http://api.test/302", CALLER, 302),
        ("http://api.test/404", CALLER, 404),
        ("http://api.test/500", CALLER, 500),
        ("http://api.test/401", CALLER, 401),
        // No further forced refresh within 10 s.
        ("http://api.test/401", CALLER, 401),
        ("http://replayed.test/401-once", CALLER, 200),
        ("http://kept.test/200", "Proxy-Authorization: Bearer s3cret\r\nAuthorization: Bearer own\r\n", 200),
        ("http://refused.test/200", CALLER, 424),
        ("http://refused.test/open/200", CALLER, 200),
        ("http://api.test/200", "", 407),
    ];
    for (url, lines, status) in statuses {
        assert_eq!(raw::get_through(sidecar.proxy(), url, lines).await.status, status, "{url}");
    }
    sidecar
}

/// An authorization server, and an upstream that responds with the status at the end of the path.
async fn peers() -> (Scripted, Scripted) {
    let refusals = AtomicUsize::new(0);
    let upstream = Scripted::start(move |request, _| {
        let path = request.request_line().split(' ').nth(1).unwrap_or_default().to_owned();
        if path.ends_with("/silence") {
            return Reply::Silence;
        }
        let status = match path.rsplit('/').next().unwrap_or_default() {
            "401-once" if refusals.fetch_add(1, Ordering::Relaxed) == 0 => 401,
            last => last.parse().unwrap_or(200),
        };
        Reply::text(status, "text/plain", "x")
    });
    (Scripted::tokens(600).await, upstream.await)
}

fn now_s() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// The number of series.
async fn series_count(sidecar: &Sidecar) -> usize {
    let text = raw::get(sidecar.admin(), "/metrics").await.text();
    text.lines().filter(|line| !line.starts_with('#')).count()
}
