//! Reload: a changed configuration takes effect completely or not at all, and requests in flight are unaffected.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, duration_factor};

const LISTENERS: &str = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n";
const APPLIED: &str = "keybearer_config_reloads_total{outcome=\"applied\"}";
const SUCCESSFUL: &str = "keybearer_config_last_reload_successful";

/// A connection for `api.test`, with further keys.
fn connection(server: &Scripted, more: &str) -> String {
    format!(
        "- {{name: crm, client_id: a, token_url: \"http://{}/token\", routes: [{{host: api.test, upstream_tls: false}}]{more}}}\n",
        server.address
    )
}

fn config(server: &Scripted, upstream: &Scripted, more: &str) -> String {
    format!("{LISTENERS}hosts: {{api.test: \"{}\"}}\nconnections:\n{}", upstream.address, connection(server, more))
}

/// Replaces a file atomically, as careful editors do.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, path).unwrap();
}

impl Sidecar {
    fn write(&self, text: &str) {
        replace(&self.dir.path().join("keybearer.yaml"), text);
    }

    async fn wait_for_reloads(&self, times: f64) {
        self.wait_for_metric(APPLIED, |value| value >= times).await;
    }

    async fn token(&self) -> String {
        raw::get_through(self.proxy(), "http://api.test/", "").await.text()
    }
}

/// An upstream that responds with the Authorization that it received.
async fn echo() -> Scripted {
    Scripted::start(|request, _| {
        Reply::text(200, "text/plain", request.values("authorization").first().unwrap_or(&"none"))
    })
    .await
}

#[tokio::test]
async fn a_changed_file_is_reloaded_and_sighup_reloads_at_once() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let config = |more| format!("log: {{level: debug}}\n{}", config(&server, &upstream, more));
    let sidecar = Sidecar::start(&config("")).await;
    assert_eq!(sidecar.token().await, "Bearer token-1");
    sidecar.write(&config(", active: false"));
    sidecar.wait_for_reloads(1.0).await;
    assert_eq!(raw::get_through(sidecar.proxy(), "http://api.test/", "").await.code(), "connection_inactive");
    sidecar.write(&config(""));
    sidecar.signal("HUP");
    sidecar.wait_for_reloads(2.0).await;
    assert_eq!((sidecar.token().await.as_str(), server.count()), ("Bearer token-1", 1), "the token was in the store");
    sidecar.signal("HUP");
    let line = sidecar.wait_for_log("configuration unchanged").await;
    assert!(line.contains("DEBUG"), "{line}");
    assert_eq!(sidecar.metric(APPLIED).await, 2.0);
}

/// The store, the audit file and a log are in the watched folder of the configuration.
#[tokio::test]
async fn other_files_written_in_the_folder_cause_no_reload() {
    let (server, upstream) = (Scripted::tokens(1).await, echo().await);
    let own = "log: {level: debug}\nstate_dir: .\naudit: {to: {file: audit.jsonl}}\ninclude: [included]\n";
    let text = |more| format!("{own}{}", config(&server, &upstream, more));
    let sidecar = Sidecar::start_with(&text(""), &[("included/.keep", ""), ("secret", "s")]).await;
    let folder = sidecar.dir.path();
    for round in 0..10 {
        // Longer than the debounce interval of the watcher.
        sleep(Duration::from_millis(300)).await;
        std::fs::write(folder.join("keybearer.log"), format!("{round}")).unwrap();
        std::fs::write(folder.join("included/crm.yaml.bak"), format!("{round}")).unwrap();
        sidecar.token().await;
    }
    assert!(folder.join("tokens.redb").exists() && folder.join("audit.jsonl").exists() && server.count() > 1);
    // At most one: if the configuration itself was written just before it was read.
    let reloads = sidecar.log().lines().filter(|line| line.contains("configuration unchanged")).count();
    assert!(reloads <= 1, "{reloads} reloads\n{}", sidecar.log());
    // A change is still noticed.
    sidecar.write(&text(", comments: changed"));
    sidecar.wait_for_reloads(1.0).await;
}

/// A file missing from a refused configuration is watched for in any directory.
#[tokio::test]
async fn a_missing_file_that_appears_causes_a_reload() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let elsewhere = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::start(&config(&server, &upstream, "")).await;
    let file = elsewhere.path().join("secret");
    sidecar.write(&config(&server, &upstream, &format!(", client_secret: {{file: \"{}\"}}", file.display())));
    sidecar.wait_for_metric(SUCCESSFUL, |value| value == 0.0).await;
    replace(&file, "s3cret");
    sidecar.wait_for_reloads(1.0).await;
}

#[tokio::test]
async fn a_changed_secret_keeps_the_token_and_is_used_by_the_next_token_request() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let more = ", client_secret: {file: secret}";
    let sidecar = Sidecar::start_with(&config(&server, &upstream, more), &[("secret", "first")]).await;
    assert_eq!(sidecar.token().await, "Bearer token-1");
    replace(&sidecar.dir.path().join("secret"), "second\n");
    sidecar.wait_for_reloads(1.0).await;
    assert_eq!((sidecar.token().await.as_str(), server.count()), ("Bearer token-1", 1));
    // Another audience needs another token, which is requested with the new secret.
    sidecar.write(&config(&server, &upstream, &format!("{more}, audience: new")));
    sidecar.wait_for_reloads(2.0).await;
    assert_eq!(sidecar.token().await, "Bearer token-2");
    let bodies: Vec<_> = server.received().iter().map(|r| String::from_utf8_lossy(&r.body).into_owned()).collect();
    assert!(bodies[0].contains("client_secret=first"), "{bodies:?}");
    assert!(bodies[1].contains("client_secret=second") && bodies[1].contains("audience=new"), "{bodies:?}");
}

#[tokio::test]
async fn a_token_is_never_sent_to_an_origin_that_it_was_not_granted_for() {
    let (server, upstream, other) = (Scripted::tokens(600).await, echo().await, echo().await);
    let sidecar = Sidecar::start(&config(&server, &upstream, "")).await;
    assert_eq!(sidecar.token().await, "Bearer token-1");
    let wider =
        config(&server, &upstream, "").replace("api.test:", &format!("other.test: \"{}\", api.test:", other.address));
    let wider = wider.replace("routes: [", "routes: [{host: other.test, upstream_tls: false}, ");
    sidecar.write(&wider);
    sidecar.wait_for_reloads(1.0).await;
    assert_eq!(raw::get_through(sidecar.proxy(), "http://other.test/", "").await.text(), "Bearer token-2");
    sidecar.write(&config(&server, &upstream, ""));
    sidecar.wait_for_reloads(2.0).await;
    assert_eq!(sidecar.token().await, "Bearer token-2", "fewer origins keep the token");
}

#[tokio::test]
async fn an_invalid_configuration_changes_nothing_and_is_reported() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let good = config(&server, &upstream, "");
    let sidecar = Sidecar::start(&good).await;
    let configured = raw::get(sidecar.admin(), "/readyz?verbose").await.text();
    sidecar.write(&good.replace("client_id", "clint_id"));
    sidecar.wait_for_metric(SUCCESSFUL, |value| value == 0.0).await;
    sidecar.wait_for_log("did you mean `client_id`?").await;
    // Readers see this for a moment while an editor writes the file in place.
    sidecar.write("");
    sidecar.wait_for_log("is empty; write `connections: []`").await;
    assert_eq!(sidecar.token().await, "Bearer token-1");
    assert_eq!(raw::get(sidecar.admin(), "/readyz?verbose").await.text(), configured);
    sidecar.write(&good);
    sidecar.wait_for_metric(SUCCESSFUL, |value| value == 1.0).await;
    assert_eq!(sidecar.metric(APPLIED).await, 0.0, "a configuration in force is not applied again");
}

#[tokio::test]
async fn settings_that_need_a_restart_are_named_and_the_rest_is_applied() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let sidecar = Sidecar::start(&config(&server, &upstream, "")).await;
    let changed = config(&server, &upstream, ", active: false").replace("127.0.0.1:0", "127.0.0.1:1") + "workers: 3\n";
    let changed = changed.replacen("proxy: \"127.0.0.1:1\"", "proxy: \"127.0.0.1:2\"", 1);
    sidecar.write(&changed);
    sidecar.wait_for_reloads(1.0).await;
    assert_eq!(sidecar.metric("keybearer_config_restart_required").await, 1.0);
    let line = sidecar.wait_for_log("restart_required").await;
    assert!(line.contains("\"restart_required\":\"listeners workers\""), "{line}");
    assert_eq!(raw::get_through(sidecar.proxy(), "http://api.test/", "").await.code(), "connection_inactive");
    sidecar.write(&config(&server, &upstream, ""));
    sidecar.wait_for_metric("keybearer_config_restart_required", |value| value == 0.0).await;
}

/// Updates a mounted ConfigMap as the kubelet does: creates a new directory, and renames a symlink over `..data`.
fn swap(mount: &Path, version: usize, text: &str) {
    let versioned = format!("..version_{version}");
    std::fs::create_dir(mount.join(&versioned)).unwrap();
    std::fs::write(mount.join(&versioned).join("crm.yaml"), text).unwrap();
    symlink(&versioned, mount.join("..data_tmp")).unwrap();
    std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    if version == 1 {
        symlink("..data/crm.yaml", mount.join("crm.yaml")).unwrap();
    } else {
        std::fs::remove_dir_all(mount.join(format!("..version_{}", version - 1))).unwrap();
    }
}

#[tokio::test]
async fn every_update_of_a_config_map_is_applied() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let config = format!("include: [mounted]\nhosts: {{api.test: \"{}\"}}\n", upstream.address);
    let sidecar = Sidecar::start_with(&config, &[("mounted/.keep", "")]).await;
    let mount = sidecar.dir.path().join("mounted");
    for version in 1..=3 {
        let connections = format!("connections:\n{}", connection(&server, &format!(", audience: v{version}")));
        swap(&mount, version, &connections);
        sidecar.wait_for_reloads(version as f64).await;
        assert_eq!(sidecar.token().await, format!("Bearer token-{version}"));
    }
}

/// Sends requests on keep-alive connections until `stop`; returns their number and the unexpected responses.
async fn load(sidecar: &Sidecar, connections: usize, stop: Arc<AtomicBool>) -> JoinSet<(usize, Vec<String>)> {
    let mut callers = JoinSet::new();
    for _ in 0..connections {
        let (address, stop) = (sidecar.proxy(), stop.clone());
        callers.spawn(async move {
            let mut conn = Conn::open(address).await;
            let (mut count, mut wrong) = (0, Vec::new());
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                conn.write(b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
                let response = conn.read_response().await;
                count += 1;
                if response.status != 200 || response.text() != "good" {
                    wrong.push(format!("{} {}", response.status, response.text()));
                }
                next += Duration::from_millis(40);
                tokio::time::sleep_until(next).await;
            }
            (count, wrong)
        });
    }
    callers
}

/// A token endpoint, and an upstream that accepts only its tokens.
async fn server_and_upstream(name: &'static str, delay: Duration) -> (Scripted, Scripted) {
    let token = move |_: &_, before| Reply::token(&format!("{name}-{before}"), 600).delayed(delay);
    let server = Scripted::start(token).await;
    let mine = format!("Bearer {name}-");
    let upstream = Scripted::start(move |request, _| {
        let fields = request.values("authorization");
        let good = fields.len() == 1 && fields[0].starts_with(&mine);
        Reply::text(200, "text/plain", if good { "good" } else { "mixed" })
    });
    (server, upstream.await)
}

#[tokio::test]
async fn a_reload_every_100_ms_fails_none_of_a_thousand_requests_per_second() {
    let ((server_a, upstream_a), (server_b, upstream_b)) =
        (server_and_upstream("a", Duration::ZERO).await, server_and_upstream("b", Duration::ZERO).await);
    let secret = ", client_secret: {file: secret}";
    let configs = [config(&server_a, &upstream_a, secret), config(&server_b, &upstream_b, secret)];
    let sidecar =
        Sidecar::start_with(&format!("include: [mounted]\n{}", configs[0]), &[("secret", "s"), ("mounted/.keep", "")])
            .await;
    let mount = sidecar.dir.path().join("mounted");
    let stop = Arc::new(AtomicBool::new(false));
    let callers = load(&sidecar, 40, stop.clone()).await;
    let reloads = AtomicUsize::new(0);
    for round in 0..100 * duration_factor() as usize {
        match round {
            30 => sidecar.write("connections: [{name: crm, client_id}]\n"),
            31..35 => {}
            50 => replace(&sidecar.dir.path().join("secret"), "rotated"),
            40 | 60 | 80 => {
                let other = connection(&server_a, "").replace("crm", "other").replace("api.test", "other.test");
                swap(
                    &mount,
                    round / 20 - 1,
                    &format!("connections:\n{}", other.replace("}}", &format!("}}, comments: v{round}}}"))),
                );
            }
            _ => sidecar.write(&format!("include: [mounted]\n{}", configs[round % 2])),
        }
        sidecar.signal("HUP");
        reloads.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let results = callers.join_all().await;
    let wrong: Vec<_> = results.iter().flat_map(|(_, wrong)| wrong).collect();
    let requests: usize = results.iter().map(|(count, _)| count).sum();
    assert!(wrong.is_empty(), "{} of {requests}: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(requests > 5_000 * duration_factor() as usize, "{requests} requests");
    assert!(sidecar.metric(APPLIED).await > 50.0, "{} of {reloads:?}", sidecar.metric(APPLIED).await);
    assert!(sidecar.metric("keybearer_config_reloads_total{outcome=\"refused\"}").await >= 1.0);
}

#[tokio::test]
async fn a_request_waiting_for_its_token_survives_reloads() {
    let slow = Duration::from_millis(250);
    let ((server_a, upstream_a), (server_b, upstream_b)) =
        (server_and_upstream("a", slow).await, server_and_upstream("b", slow).await);
    let configs = [config(&server_a, &upstream_a, ""), config(&server_b, &upstream_b, "")];
    let sidecar = Sidecar::start(&configs[0]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers = load(&sidecar, 10, stop.clone()).await;
    for round in 0..20 {
        sidecar.write(&configs[round % 2]);
        sidecar.signal("HUP");
        sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let results = callers.join_all().await;
    let wrong: Vec<_> = results.iter().flat_map(|(_, wrong)| wrong).collect();
    assert!(wrong.is_empty(), "{}: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(server_a.count() + server_b.count() > 4, "each reload needs another token");
}
