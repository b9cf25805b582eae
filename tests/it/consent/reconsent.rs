//! A change of scopes, client or server makes a person's token unusable: the log, the API, the commands and `check` report
//! that consent is needed again.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::rig::fleet::store;
use crate::rig::manager::{MANAGER, call};
use crate::rig::raw;
use crate::rig::redis::Redis;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};

const WORDS: &str = "needs consent again";
const APPLIED: &str = "keybearer_config_reloads_total{outcome=\"applied\"}";

/// Connections `crm` and `each`, which need a person, and `machine`.
async fn start(store: &str) -> (Sidecar, Scripted, Scripted) {
    let tokens = Scripted::start(|_, before| {
        let (access, refresh) = (format!("access-{before}"), format!("refresh-{before}"));
        Reply::json(200, &json!({"access_token": access, "expires_in": 3600, "refresh_token": refresh}))
    })
    .await;
    let upstream = Scripted::upstream().await;
    let connection = |name: &str, keys: &str| {
        format!(
            "- {{name: {name}, client_id: {name}-client, client_secret: s, token_url: \"http://{}/token\", scopes: [read], {keys}routes: \
             [{{host: {name}.test, upstream_tls: false}}]}}\n",
            tokens.address
        )
    };
    let config = format!(
        "{store}admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nhosts: {{crm.test: \"{0}\", each.test: \"{0}\", \
         machine.test: \"{0}\"}}\nconnections:\n{1}{2}{3}",
        upstream.address,
        connection("crm", "grant: authorization_code, "),
        connection("each", "grant: authorization_code, tokens: per_subject, "),
        connection("machine", ""),
    );
    (Sidecar::start(&config).await, tokens, upstream)
}

async fn connect(sidecar: &Sidecar, name: &str, subject: Option<&str>) {
    let body = json!({ "refresh_token": "from-elsewhere", "subject": subject });
    let response = call(sidecar.admin(), "PUT", &format!("/connections/{name}/tokens"), &body).await;
    assert_eq!(response.status, 200, "{name}: {}", response.text());
}

async fn tokens_of(sidecar: &Sidecar, name: &str) -> Value {
    let response = call(sidecar.admin(), "GET", &format!("/connections/{name}/tokens"), &Value::Null).await;
    response.json()["items"][0].clone()
}

/// The notes on consent by `check` of the sidecar's configuration with `change`, which has no problems.
async fn notes(sidecar: &Sidecar, change: (&str, &str)) -> Vec<String> {
    let text = std::fs::read_to_string(sidecar.dir.path().join("keybearer.yaml")).expect("a file");
    let changed = sidecar.dir.path().join("changed.yaml");
    std::fs::write(&changed, text.replace(change.0, change.1)).expect("a file");
    let mut command = program();
    command
        .args(["check", "--json", "--config"])
        .arg(&changed)
        .env("STATE_DIRECTORY", sidecar.dir.path().join("state"));
    let output = command.stdin(Stdio::null()).output().await.expect("the command starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &report["problems"]), (Some(0), &json!([])), "{report}");
    let notes =
        report["notes"].as_array().expect("a list").iter().map(|note| note.as_str().expect("a text").to_owned());
    notes.filter(|note| note.contains("consent")).collect()
}

#[tokio::test]
async fn a_changed_definition_reports_who_has_to_consent_again() {
    let (mut sidecar, tokens, upstream) = start("").await;
    connect(&sidecar, "crm", None).await;
    connect(&sidecar, "each", Some("ann")).await;
    assert_eq!(raw::get_through(sidecar.proxy(), "http://crm.test/", "").await.status, 200);
    // The running instance holds the store file.
    let found = notes(&sidecar, ("scopes: [read]", "scopes: [read, write]")).await;
    assert!(
        found.len() == 1 && found[0].contains("cannot tell whether") && found[0].contains("`keybearer connections`"),
        "{found:?}"
    );

    let file = sidecar.dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&file).expect("a file");
    std::fs::write(&file, text.replace("scopes: [read]", "scopes: [read, write]")).expect("a file");
    let (requests, sent) = (tokens.count(), upstream.count());
    sidecar.signal("HUP");
    sidecar.wait_for_metric(APPLIED, |applied| applied >= 1.0).await;
    let logged = sidecar.wait_for_log("run `keybearer connect crm`").await;
    assert!(logged.contains(WORDS), "{logged}");
    sidecar.wait_for_log(&format!("each subject {WORDS}")).await;
    let item = tokens_of(&sidecar, "crm").await;
    assert_eq!((&item["state"], &item["last_attempt"]["error"]), (&json!("reauthorize"), &json!("consent_required")));
    let description = item["last_attempt"]["description"].as_str().expect("a text");
    assert!(description.contains(WORDS) && description.contains("`keybearer connect crm`"), "{description}");
    let shown = call(sidecar.admin(), "GET", "/connections/crm", &Value::Null).await.json();
    assert_eq!((&shown["state"], &shown["last_attempt"]["description"]), (&json!("reauthorize"), &json!(description)));
    let item = tokens_of(&sidecar, "each").await;
    let description = item["last_attempt"]["description"].as_str().unwrap_or_else(|| panic!("{item}"));
    assert_eq!((&item["subject"], &item["state"]), (&json!("ann"), &json!("reauthorize")));
    assert!(description.contains(WORDS) && description.contains("connect each --subject ann"), "{description}");
    for (url, lines) in [("http://crm.test/", ""), ("http://each.test/", "Keybearer-Subject: ann\r\n")] {
        let response = raw::get_through(sidecar.proxy(), url, lines).await;
        assert_eq!((response.status, response.code()), (424, "consent_required"), "{url}: {}", response.text());
        assert!(response.json()["detail"].as_str().is_some_and(|detail| detail.contains(WORDS)), "{}", response.text());
    }
    // No account was ever connected for bob.
    let response = raw::get_through(sidecar.proxy(), "http://each.test/", "Keybearer-Subject: bob\r\n").await;
    assert_eq!(response.code(), "consent_required");
    assert!(!response.text().contains(WORDS), "{}", response.text());
    let mut command = program();
    command
        .args(["connections", "--admin", &format!("http://{}", sidecar.admin())])
        .env("KEYBEARER_ADMIN_TOKEN", MANAGER);
    let output = command.output().await.expect("the command starts");
    let table = String::from_utf8_lossy(&output.stdout);
    let line = table.lines().find(|line| line.starts_with("crm")).unwrap_or_else(|| panic!("{table}"));
    assert!(line.contains(WORDS) && line.contains("keybearer connect crm"), "{table}");
    let refresh = call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert!(refresh.status == 424 && refresh.text().contains(WORDS), "{}", refresh.text());
    // The machine's new token needed no person, and no old token was sent.
    let machines = tokens.received()[requests..]
        .iter()
        .all(|request| String::from_utf8_lossy(&request.body).contains("machine-client"));
    assert!(machines && upstream.count() == sent);

    sidecar.signal("TERM");
    sidecar.exit().await;
    let stored = sidecar.dir.path().join("state/tokens.redb");
    let before = std::fs::read(&stored).expect("a store");
    let found = notes(&sidecar, ("", "")).await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with(&format!("crm {WORDS}")), "{found:?}");
    assert!(found[0].ends_with("run `keybearer connect crm`"), "{found:?}");
    assert!(found[1].starts_with(&format!("each subject of each {WORDS}")), "{found:?}");
    std::fs::write(&file, text).expect("a file");
    assert_eq!(notes(&sidecar, ("", "")).await, Vec::<String>::new());
    assert!(std::fs::read(&stored).expect("a store") == before, "`check` does not write to the store");
    for change in [("client_id: crm-client", "client_id: other"), ("/token\"", "/other\"")] {
        let found = notes(&sidecar, change).await;
        assert!(found.first().is_some_and(|note| note.starts_with(&format!("crm {WORDS}"))), "{change:?}: {found:?}");
    }
    assert_eq!(notes(&sidecar, ("client_secret: s", "client_secret: rotated")).await, Vec::<String>::new());
}

#[tokio::test]
async fn check_reads_redis_while_an_instance_runs() {
    let redis = Redis::start().await;
    let (sidecar, _tokens, _upstream) = start(&store(redis.port)).await;
    connect(&sidecar, "crm", None).await;
    assert_eq!(notes(&sidecar, ("", "")).await, Vec::<String>::new());
    let found = notes(&sidecar, ("scopes: [read]", "scopes: [write]")).await;
    assert!(found.len() == 1 && found[0].starts_with(&format!("crm {WORDS}")), "{found:?}");
    let away = notes(&sidecar, (&format!("127.0.0.1:{}/0", redis.port), "127.0.0.1:1/0")).await;
    assert!(away.len() == 1 && away[0].contains("cannot tell whether"), "{away:?}");
}
