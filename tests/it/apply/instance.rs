//! `apply` and `export` against the program itself.

use serde_json::Value;

use super::{SECRET, folder, output, text};
use crate::rig::manager::{MANAGER, call};
use crate::rig::sidecar::Sidecar;

const CRM: &str = "\
connections:
- name: crm
  active: false
  comments: before
  client_id: a
  client_secret: {file: secret}
  token_url: https://as.test/t
  script: {file: token.rhai}
  routes: [{host: api.test}]
";
const SCRIPT: &str = "fn token_request(request, ctx) { request.form.note = `${1 + 1}`; request }";

/// An instance with one connection in its file.
async fn start() -> Sidecar {
    let config = format!(
        "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}}\nstate_dir: kept\n\
         admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nconnections:\n\
         - {{name: file, active: false, client_id: a, client_secret: {{file: secret}}, token_url: \"https://as.test/t\"}}\n"
    );
    Sidecar::start_with(&config, &[("secret", "x")]).await
}

async fn run(sidecar: &Sidecar, arguments: &[&str]) -> (i32, String, String) {
    output(sidecar.admin(), arguments).await
}

async fn get(sidecar: &Sidecar, name: &str) -> Value {
    call(sidecar.admin(), "GET", &format!("/connections/{name}"), &Value::Null).await.json()
}

#[tokio::test]
async fn files_are_applied_exported_and_applied_again() {
    let sidecar = start().await;
    let dir = folder(&[("crm.yaml", CRM), ("secret", SECRET), ("token.rhai", SCRIPT)]);
    let (crm, exported) = (dir.path().join("crm.yaml"), dir.path().join("exported.yaml"));
    let (crm, exported) = (text(&crm), text(&exported));
    let (code, stdout, stderr) = run(&sidecar, &["apply", "-f", crm, "--dry-run"]).await;
    let expected = "crm: would be created\n1 would be created, 0 would be changed, 0 would be unchanged, \
                    0 would be removed; dry run, nothing was changed\n";
    assert_eq!((code, stdout.as_str()), (0, expected), "{stderr}");
    assert_eq!(get(&sidecar, "crm").await["code"], "connection_unknown");

    let (code, stdout, stderr) = run(&sidecar, &["apply", "-f", crm]).await;
    assert_eq!((code, stdout.lines().next()), (0, Some("crm: created")), "{stderr}");
    let made = get(&sidecar, "crm").await;
    assert_eq!(made["client_secret"], serde_json::json!({"set": true}));
    // A literal `${` stays one.
    assert_eq!(made["script"]["source"], SCRIPT.replace("${", "$${"));
    let (_, stdout, _) = run(&sidecar, &["apply", "-f", crm]).await;
    assert_eq!(stdout.lines().next(), Some("crm: unchanged"));

    let (code, yaml, stderr) = run(&sidecar, &["export"]).await;
    assert!(code == 0 && yaml.contains("name: crm") && !yaml.contains("name: file"), "{yaml}{stderr}");
    std::fs::write(exported, &yaml).expect("a file");
    let (code, stdout, stderr) = run(&sidecar, &["apply", "-f", exported, "--prune"]).await;
    assert_eq!((code, stdout.lines().next()), (0, Some("crm: unchanged")), "{stderr}");
    let (_, one, _) = run(&sidecar, &["export", "crm"]).await;
    std::fs::write(exported, one.replace("comments: before", "comments: after")).expect("a file");
    let (code, stdout, stderr) = run(&sidecar, &["apply", "-f", exported]).await;
    assert_eq!((code, stdout.lines().next()), (0, Some("crm: changed")), "{stdout}{stderr}");
    assert_eq!(get(&sidecar, "crm").await["comments"], "after");

    std::fs::write(exported, "connections: []\n").expect("a file");
    let (code, stdout, stderr) = run(&sidecar, &["apply", "-f", exported, "--prune"]).await;
    assert_eq!((code, stdout.lines().next()), (0, Some("crm: removed")), "{stderr}");
    assert_eq!(get(&sidecar, "file").await["name"], "file");
    assert!(!sidecar.log().contains(SECRET));
}

#[tokio::test]
async fn what_the_instance_refuses_is_found_in_the_files() {
    let sidecar = start().await;
    let dir = folder(&[
        ("crm.yaml", &CRM.replace("https://as.test/t", "ftp://as.test/t")),
        ("secret", SECRET),
        ("token.rhai", SCRIPT),
        ("kept/kept.yaml", "name: kept\nclient_id: a\nclient_secret: {set: true}\ntoken_url: https://as.test/t\n"),
        ("read-only.yaml", "{name: file, client_id: b, token_url: \"https://as.test/t\"}\n"),
    ]);
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let refused = [
        ("crm.yaml", format!("{}:7:14: connections[0].token_url: the URL is neither https nor http", path("crm.yaml"))),
        ("kept", format!("{}:3:16: client_secret: no secret is kept here", path("kept/kept.yaml"))),
    ];
    for (name, expected) in refused {
        let (code, stdout, stderr) = run(&sidecar, &["apply", "-f", &path(name)]).await;
        assert_eq!((code, stdout.lines().count()), (2, 1), "{stdout}{stderr}");
        assert!(stdout.starts_with(&expected), "{stdout}  is not {expected}");
    }
    assert_eq!(get(&sidecar, "crm").await["code"], "connection_unknown");
    let (code, _, stderr) = run(&sidecar, &["apply", "-f", &path("read-only.yaml")]).await;
    assert!(code == 1 && stderr.starts_with("read_only: ") && stderr.ends_with("; nothing was changed\n"), "{stderr}");
}
