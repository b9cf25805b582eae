//! A changed configuration goes into force whole or not at all, and nothing in flight notices.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, scale};

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

/// Puts a file in place at once, as a careful editor does.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, path).unwrap();
}

impl Sidecar {
    fn write(&self, text: &str) {
        replace(&self.dir.path().join("keybearer.yaml"), text);
    }

    async fn reloaded(&self, times: f64) {
        self.until_metric(APPLIED, |value| value >= times).await;
    }

    async fn token(&self) -> String {
        raw::get_through(self.proxy(), "http://api.test/", "").await.text()
    }
}

/// An upstream that answers with the Authorization that it received.
async fn echo() -> Scripted {
    Scripted::start(|request, _| {
        Reply::text(200, "text/plain", request.values("authorization").first().unwrap_or(&"none"))
    })
    .await
}

#[tokio::test]
async fn a_changed_file_is_noticed_and_sighup_reads_it_at_once() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let config = |more| format!("log: {{level: debug}}\n{}", config(&server, &upstream, more));
    let sidecar = Sidecar::start(&config("")).await;
    assert_eq!(sidecar.token().await, "Bearer token-1");
    sidecar.write(&config(", active: false"));
    sidecar.reloaded(1.0).await;
    assert_eq!(raw::get_through(sidecar.proxy(), "http://api.test/", "").await.code(), "connection_inactive");
    sidecar.write(&config(""));
    sidecar.signal("HUP");
    sidecar.reloaded(2.0).await;
    assert_eq!((sidecar.token().await.as_str(), server.count()), ("Bearer token-1", 1), "the store had kept it");
    sidecar.signal("HUP");
    let line = sidecar.logged("configuration unchanged").await;
    assert!(line.contains("DEBUG"), "{line}");
    assert_eq!(sidecar.metric(APPLIED).await, 2.0);
}

/// The store, the audit and a log are in the folder that is watched for the configuration's sake.
#[tokio::test]
async fn what_else_is_written_in_the_folder_causes_no_reload() {
    let (server, upstream) = (Scripted::tokens(1).await, echo().await);
    let own = "log: {level: debug}\nstate_dir: .\naudit: {to: {file: audit.jsonl}}\ninclude: [included]\n";
    let text = |more| format!("{own}{}", config(&server, &upstream, more));
    let sidecar = Sidecar::start_with(&text(""), &[("included/.keep", ""), ("secret", "s")]).await;
    let folder = sidecar.dir.path();
    for round in 0..10 {
        // Longer than what has to be quiet before a change is acted on.
        sleep(Duration::from_millis(300)).await;
        std::fs::write(folder.join("keybearer.log"), format!("{round}")).unwrap();
        std::fs::write(folder.join("included/crm.yaml.bak"), format!("{round}")).unwrap();
        sidecar.token().await;
    }
    assert!(folder.join("tokens.redb").exists() && folder.join("audit.jsonl").exists() && server.count() > 1);
    // At most once: if the configuration itself was written just before it was read.
    let reloads = sidecar.log().lines().filter(|line| line.contains("configuration unchanged")).count();
    assert!(reloads <= 1, "{reloads} reloads\n{}", sidecar.log());
    // All the while a change is noticed.
    sidecar.write(&text(", comments: changed"));
    sidecar.reloaded(1.0).await;
}

/// What a refused configuration lacks is noticed when it comes, wherever that is.
#[tokio::test]
async fn a_missing_file_that_comes_is_noticed() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let elsewhere = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::start(&config(&server, &upstream, "")).await;
    let file = elsewhere.path().join("secret");
    sidecar.write(&config(&server, &upstream, &format!(", client_secret: {{file: \"{}\"}}", file.display())));
    sidecar.until_metric(SUCCESSFUL, |value| value == 0.0).await;
    replace(&file, "s3cret");
    sidecar.reloaded(1.0).await;
}

#[tokio::test]
async fn secrets_and_margins_keep_the_token_and_the_next_request_uses_them() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let more = ", client_secret: {file: secret}";
    let sidecar = Sidecar::start_with(&config(&server, &upstream, more), &[("secret", "first")]).await;
    assert_eq!(sidecar.token().await, "Bearer token-1");
    replace(&sidecar.dir.path().join("secret"), "second\n");
    sidecar.reloaded(1.0).await;
    assert_eq!((sidecar.token().await.as_str(), server.count()), ("Bearer token-1", 1));
    // Another audience is another token, asked for with the secret that now stands in the file.
    sidecar.write(&config(&server, &upstream, &format!("{more}, audience: new")));
    sidecar.reloaded(2.0).await;
    assert_eq!(sidecar.token().await, "Bearer token-2");
    let bodies: Vec<_> = server.received().iter().map(|r| String::from_utf8_lossy(&r.body).into_owned()).collect();
    assert!(bodies[0].contains("client_secret=first"), "{bodies:?}");
    assert!(bodies[1].contains("client_secret=second") && bodies[1].contains("audience=new"), "{bodies:?}");
}

#[tokio::test]
async fn a_token_never_goes_to_an_origin_that_it_was_not_granted_for() {
    let (server, upstream, other) = (Scripted::tokens(600).await, echo().await, echo().await);
    let sidecar = Sidecar::start(&config(&server, &upstream, "")).await;
    assert_eq!(sidecar.token().await, "Bearer token-1");
    let wider =
        config(&server, &upstream, "").replace("api.test:", &format!("other.test: \"{}\", api.test:", other.address));
    let wider = wider.replace("routes: [", "routes: [{host: other.test, upstream_tls: false}, ");
    sidecar.write(&wider);
    sidecar.reloaded(1.0).await;
    assert_eq!(raw::get_through(sidecar.proxy(), "http://other.test/", "").await.text(), "Bearer token-2");
    sidecar.write(&config(&server, &upstream, ""));
    sidecar.reloaded(2.0).await;
    assert_eq!(sidecar.token().await, "Bearer token-2", "fewer origins keep it");
}

#[tokio::test]
async fn a_broken_configuration_changes_nothing_and_says_so() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let good = config(&server, &upstream, "");
    let sidecar = Sidecar::start(&good).await;
    let configured = raw::get(sidecar.admin(), "/readyz?verbose").await.text();
    sidecar.write(&good.replace("client_id", "clint_id"));
    sidecar.until_metric(SUCCESSFUL, |value| value == 0.0).await;
    sidecar.logged("did you mean `client_id`?").await;
    // As it is for a moment while an editor writes it in place.
    sidecar.write("");
    sidecar.logged("is empty; if it is not just being written").await;
    assert_eq!(sidecar.token().await, "Bearer token-1");
    assert_eq!(raw::get(sidecar.admin(), "/readyz?verbose").await.text(), configured);
    sidecar.write(&good);
    sidecar.until_metric(SUCCESSFUL, |value| value == 1.0).await;
    assert_eq!(sidecar.metric(APPLIED).await, 0.0, "what is in force already is not applied again");
}

#[tokio::test]
async fn what_is_fixed_at_start_is_named_and_the_rest_applied() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let sidecar = Sidecar::start(&config(&server, &upstream, "")).await;
    let changed = config(&server, &upstream, ", active: false").replace("127.0.0.1:0", "127.0.0.1:1") + "workers: 3\n";
    let changed = changed.replacen("proxy: \"127.0.0.1:1\"", "proxy: \"127.0.0.1:2\"", 1);
    sidecar.write(&changed);
    sidecar.reloaded(1.0).await;
    assert_eq!(sidecar.metric("keybearer_config_restart_required").await, 1.0);
    let line = sidecar.logged("restart_required").await;
    assert!(line.contains("\"restart_required\":\"listeners workers\""), "{line}");
    assert_eq!(raw::get_through(sidecar.proxy(), "http://api.test/", "").await.code(), "connection_inactive");
    sidecar.write(&config(&server, &upstream, ""));
    sidecar.until_metric("keybearer_config_restart_required", |value| value == 0.0).await;
}

/// What the kubelet does with a mounted ConfigMap: a new directory, and `..data` swapped to it by a rename.
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
async fn every_swap_of_a_config_map_is_noticed() {
    let (server, upstream) = (Scripted::tokens(600).await, echo().await);
    let config = format!("include: [mounted]\nhosts: {{api.test: \"{}\"}}\n", upstream.address);
    let sidecar = Sidecar::start_with(&config, &[("mounted/.keep", "")]).await;
    let mount = sidecar.dir.path().join("mounted");
    for version in 1..=3 {
        let connections = format!("connections:\n{}", connection(&server, &format!(", audience: v{version}")));
        swap(&mount, version, &connections);
        sidecar.reloaded(version as f64).await;
        assert_eq!(sidecar.token().await, format!("Bearer token-{version}"));
    }
}

/// Requests on kept connections, until told to stop: how many, and what went wrong.
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
                let answer = conn.read_response().await;
                count += 1;
                if answer.status != 200 || answer.text() != "good" {
                    wrong.push(format!("{} {}", answer.status, answer.text()));
                }
                next += Duration::from_millis(40);
                tokio::time::sleep_until(next).await;
            }
            (count, wrong)
        });
    }
    callers
}

/// A server and an upstream that belong together: the upstream takes this server's tokens alone.
async fn pair(name: &'static str, answer_after: Duration) -> (Scripted, Scripted) {
    let token = move |_: &_, before| Reply::token(&format!("{name}-{before}"), 600).late(answer_after);
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
async fn a_thousand_requests_a_second_notice_nothing_of_a_reload_every_100_ms() {
    let ((server_a, upstream_a), (server_b, upstream_b)) =
        (pair("a", Duration::ZERO).await, pair("b", Duration::ZERO).await);
    let secret = ", client_secret: {file: secret}";
    let configs = [config(&server_a, &upstream_a, secret), config(&server_b, &upstream_b, secret)];
    let sidecar =
        Sidecar::start_with(&format!("include: [mounted]\n{}", configs[0]), &[("secret", "s"), ("mounted/.keep", "")])
            .await;
    let mount = sidecar.dir.path().join("mounted");
    let stop = Arc::new(AtomicBool::new(false));
    let callers = load(&sidecar, 40, stop.clone()).await;
    let reloads = AtomicUsize::new(0);
    for round in 0..100 * scale() as usize {
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
    assert!(requests > 5_000 * scale() as usize, "{requests} requests");
    assert!(sidecar.metric(APPLIED).await > 50.0, "{} of {reloads:?}", sidecar.metric(APPLIED).await);
    assert!(sidecar.metric("keybearer_config_reloads_total{outcome=\"refused\"}").await >= 1.0);
}

#[tokio::test]
async fn a_request_that_waits_for_its_token_is_served_though_reloads_overtake_it() {
    let slow = Duration::from_millis(250);
    let ((server_a, upstream_a), (server_b, upstream_b)) = (pair("a", slow).await, pair("b", slow).await);
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
    assert!(server_a.count() + server_b.count() > 4, "a reload means another token");
}
