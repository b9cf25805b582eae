//! Commands that call a running instance, and how they find it.

use std::process::Output;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{OPERATOR, Stage, TIMEOUT, VIEWER, text};
use crate::rig::sidecar::{Sidecar, program};

/// Runs a command against the stage's instance.
async fn command(stage: &Stage, token: &str, arguments: &[&str]) -> Output {
    let url = format!("http://{}", stage.sidecar.admin());
    let mut command = program();
    command.args(arguments).env("KEYBEARER_ADMIN_URL", url).env("KEYBEARER_ADMIN_TOKEN", token);
    timeout(TIMEOUT, command.output()).await.expect("exits before the timeout").expect("the command starts")
}

#[tokio::test]
async fn commands_call_a_running_instance() {
    let stage = Stage::start().await;
    let shown = command(&stage, VIEWER, &["connections"]).await;
    let lines: Vec<_> = text(&shown.stdout).lines().map(str::to_owned).collect();
    assert_eq!((shown.status.code(), lines.len()), (Some(0), 3), "{lines:?} {}", text(&shown.stderr));
    assert!(lines[0].starts_with("NAME  STATE     GRANT") && lines[1].contains("api.test/v1"), "{lines:?}");
    assert!(lines[2].starts_with("off   inactive"), "{lines:?}");
    let json: Value =
        serde_json::from_slice(&command(&stage, VIEWER, &["connections", "--json"]).await.stdout).expect("JSON");
    assert_eq!(json["items"][0]["name"], "crm");
    let refused = command(&stage, VIEWER, &["refresh", "crm"]).await;
    assert_eq!((refused.status.code(), text(&refused.stdout).as_str()), (Some(1), ""));
    assert!(text(&refused.stderr).starts_with("role_too_low: "), "{}", text(&refused.stderr));
    let refreshed = command(&stage, OPERATOR, &["refresh", "crm"]).await;
    assert!(refreshed.status.success() && text(&refreshed.stdout).starts_with("crm/default: fresh, expires 2"));
    let tested = command(&stage, OPERATOR, &["test", "crm", "http://api.test/v1/x", "--json"]).await;
    let tested: Value = serde_json::from_slice(&tested.stdout).expect("JSON");
    assert_eq!(tested["status"], 200);
    let refused = command(&stage, OPERATOR, &["test", "crm", "http://evil.test/", "--json"]).await;
    let problem: Value = serde_json::from_slice(&refused.stdout).expect("JSON");
    assert_eq!((refused.status.code(), &problem["code"]), (Some(1), &json!("url_refused")));
    let healthy = command(&stage, "", &["healthcheck"]).await;
    assert_eq!((healthy.status.code(), text(&healthy.stdout).contains("is ready")), (Some(0), true));
}

#[tokio::test]
async fn commands_find_the_instance_and_its_token_by_the_configuration() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let admin = taken.local_addr().expect("a bound listener");
    drop(taken);
    // The commands cannot read the secret that the configuration refers to.
    let config = format!(
        "listeners: {{proxy: \"127.0.0.1:0\", admin: \"{admin}\"}}\nstate_dir: kept\nconnections:\n\
         - {{name: crm, active: false, client_id: a, client_secret: {{file: secret}}, token_url: \"http://127.0.0.1:1/t\"}}\n"
    );
    let mut sidecar = Sidecar::start_with(&config, &[("secret", "x")]).await;
    std::fs::remove_file(sidecar.dir.path().join("secret")).expect("removed");
    let file = sidecar.dir.path().join("keybearer.yaml");
    let run = |command: &'static str| {
        let file = file.clone();
        async move { program().args([command, "--config"]).arg(file).output().await.expect("the command starts") }
    };
    let shown = run("connections").await;
    assert!(shown.status.success() && text(&shown.stdout).contains("crm   inactive"), "{shown:?}");
    assert!(run("healthcheck").await.status.success());
    sidecar.signal("TERM");
    sidecar.exit().await;
    for command in ["connections", "healthcheck"] {
        let output = run(command).await;
        let printed = text(&output.stderr);
        assert_eq!((output.status.code(), printed.lines().count()), (Some(1), 1), "{printed}");
        assert!(printed.contains(&format!("no instance responds at http://{admin}/; ")), "{printed}");
    }
}
