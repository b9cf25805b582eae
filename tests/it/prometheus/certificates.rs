//! Certificate expiry in metrics and in `check`.

use std::path::Path;

use super::now_s;
use crate::rig::peers::Peers;
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;

fn certificate(r#use: &str, name: &str) -> String {
    format!("keybearer_certificate_expiry_timestamp_seconds{{use=\"{use}\",name=\"{name}\"}}")
}

#[tokio::test]
async fn each_bundle_of_certificates_exposes_its_earliest_expiry() {
    let certs = Peers::certs();
    let read = |name: &str| std::fs::read_to_string(certs.dir.join(name)).expect("a certificate");
    // The CA is valid for 30 days, the leaf for 7.
    let both = read("ca.pem") + &read("server.pem");
    let server = Scripted::tokens(600).await;
    let connection = |name: &str, rest: &str| {
        format!("- {{name: {name}, client_id: a, token_url: \"http://{}/t\", {rest}}}\n", server.address)
    };
    let crm = connection(
        "crm",
        "authorization_server: {trust: [both.pem]}, routes: [{host: a.test, upstream_tls: {trust: [ca.pem]}}, {host: b.test, upstream_tls: {trust: [both.pem]}}]",
    );
    let plain = connection("plain", "routes: []");
    let listeners = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n";
    let sidecar = Sidecar::start_with(
        &format!("{listeners}trust: [ca.pem]\nconnections:\n{crm}{plain}"),
        &[("ca.pem", &read("ca.pem")), ("both.pem", &both)],
    )
    .await;
    let days = async |series: String| ((sidecar.metric(&series).await - now_s()) / 86400.0).round();
    assert_eq!(days(certificate("trust", "")).await, 30.0);
    assert_eq!(days(certificate("authorization_server_trust", "crm")).await, 7.0);
    assert_eq!(days(certificate("upstream_trust", "crm")).await, 7.0);
    let path = sidecar.dir.path().join("keybearer.yaml");
    // A missing series reads as 0.
    assert_eq!(sidecar.metric(&certificate("upstream_trust", "plain")).await, 0.0);
    std::fs::write(sidecar.dir.path().join("both.pem"), read("ca.pem")).unwrap();
    sidecar.signal("HUP");
    sidecar.wait_for_metric(&certificate("upstream_trust", "crm"), |end| (end - now_s()) / 86400.0 > 29.0).await;
    std::fs::write(&path, format!("{listeners}trust: [ca.pem]\nconnections:\n{plain}")).unwrap();
    sidecar.signal("HUP");
    sidecar.wait_for_metric(&certificate("upstream_trust", "crm"), |end| end == 0.0).await;
    assert_eq!(sidecar.metric(&certificate("authorization_server_trust", "crm")).await, 0.0);
    assert_eq!(days(certificate("trust", "")).await, 30.0);
    // A refused configuration changes nothing.
    std::fs::write(&path, format!("{listeners}connections: 1\n")).unwrap();
    sidecar.signal("HUP");
    sidecar.wait_for_metric("keybearer_config_reloads_total{outcome=\"refused\"}", |count| count >= 1.0).await;
    assert_eq!(days(certificate("trust", "")).await, 30.0);
    for (series, value) in [
        ("keybearer_config_reloads_total{outcome=\"applied\"}", 2.0),
        ("keybearer_config_last_reload_successful", 0.0),
        ("keybearer_config_restart_required", 0.0),
    ] {
        assert_eq!(sidecar.metric(series).await, value, "{series}");
    }
    let success = sidecar.metric("keybearer_config_last_reload_success_timestamp_seconds").await;
    assert!(now_s() - success < 60.0, "{success}");
}

#[tokio::test]
async fn check_warns_about_an_expired_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let expired = Peers::certs().dir.join("expired.pem");
    let (file, list) = (dir.path().join("keybearer.yaml"), Path::new("list.pem"));
    std::fs::write(dir.path().join(list), std::fs::read(Peers::certs().ca.as_path()).unwrap()).unwrap();
    std::fs::write(&file, format!("trust: [list.pem, \"{}\"]\nconnections:\n- {{name: a, client_id: a, token_url: \"http://127.0.0.1:1/t\"}}\n", expired.display())).unwrap();
    let output =
        crate::rig::sidecar::program().args(["check", "--json", "--config"]).arg(&file).output().await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let [warning] = report["warnings"].as_array().expect("a list").as_slice() else { panic!("{report}") };
    assert_eq!(warning["path"], "trust[1]");
    let message = warning["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("expired.pem contains a certificate that expired on ") && message.ends_with(" GMT"),
        "{warning}"
    );
}
