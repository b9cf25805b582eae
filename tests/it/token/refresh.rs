//! Refresh tokens with real servers: imported, rotated, refused, kept across restarts, one per subject.
//!
//! Not here: crashes and broken disks (`store`).

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};

use crate::rig::crm::{connection, get, person};
use crate::rig::manager::{MANAGER, call, import_refresh_token};
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::sidecar::{Sidecar, program};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Sends requests for this duration, all of which must be accepted; returns their number.
async fn accepted(sidecar: &Sidecar, span: Duration) -> usize {
    let (end, mut count) = (Instant::now() + span, 0);
    while Instant::now() < end {
        let response = get(sidecar, "").await;
        assert_eq!(response.status, 200, "{}\n{}", response.text(), sidecar.log());
        count += 1;
        sleep(Duration::from_millis(20)).await;
    }
    count
}

#[tokio::test]
async fn a_refresh_token_imported_on_the_command_line_rotates_through_three_lifetimes() {
    let server = AuthorizationServer::op(json!({ "lifetime": 2 })).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&person(&server, &upstream, "", ", grant: authorization_code")).await;
    let refused = get(&sidecar, "").await;
    assert_eq!((refused.status, refused.code()), (424, "consent_required"));
    assert_eq!(refused.json()["action"], "reauthorize");
    assert!(refused.header("retry-after").is_none());
    assert_eq!(server.token_requests("person").await, 0, "no token request before a person has acted");

    let token = server.refresh_token("ann").await;
    let mut child = program()
        .args(["connect", "crm", "--import", "-", "--admin", &format!("http://{}", sidecar.admin())])
        .env("KEYBEARER_ADMIN_TOKEN", MANAGER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(format!("{token}\n").as_bytes()).await.expect("write succeeds");
    let output = timeout(TIMEOUT, child.wait_with_output()).await.expect("exits before the timeout").expect("output");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{}", sidecar.log());
    assert!(!text.contains(&token), "{text}");

    assert!(accepted(&sidecar, Duration::from_secs(7)).await > 50);
    let stats = server.stats().await;
    assert!(stats["rotations"].as_u64() >= Some(4), "{stats}");
    assert_eq!((&stats["refused"], &stats["grants_revoked"]), (&json!(0), &json!(0)), "{stats}");
    let requests = server.token_requests("person").await as f64;
    let labels = "connection=\"crm\",profile=\"default\",grant=\"refresh_token\",outcome=\"ok\"";
    sidecar.wait_for_metric(&format!("keybearer_token_requests_total{{{labels}}}"), |count| count >= requests).await;
    assert!(!sidecar.log().contains(&token));
}

#[tokio::test]
async fn a_refresh_token_that_the_server_refuses_is_not_kept() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&person(&server, &upstream, "", ", grant: authorization_code")).await;
    let response = import_refresh_token(&sidecar, "never-issued", None).await;
    assert_eq!((response.status, response.json()["code"].as_str()), (422, Some("not_proven")), "{}", response.text());
    assert_eq!(response.json()["error"], "invalid_grant");
    assert_eq!(import_refresh_token(&sidecar, "", None).await.status, 422);
    assert_eq!(import_refresh_token(&sidecar, "a\u{7}b", None).await.status, 422);
    assert_eq!(get(&sidecar, "").await.code(), "consent_required");
    assert_eq!(server.token_requests("person").await, 1);
    assert!(!sidecar.log().contains("never-issued"));
    assert_eq!(import_refresh_token(&sidecar, &server.refresh_token("ann").await, None).await.status, 200);
    assert_eq!(get(&sidecar, "").await.status, 200);
}

#[tokio::test]
async fn a_refused_refresh_token_is_reported_and_never_sent_again() {
    let server = AuthorizationServer::op(json!({ "lifetime": 2 })).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&person(&server, &upstream, "", ", grant: authorization_code")).await;
    let token = server.refresh_token("ann").await;
    assert_eq!(import_refresh_token(&sidecar, &token, None).await.status, 200);
    // An attacker reuses the first refresh token, so the server revokes the grant.
    assert_eq!(import_refresh_token(&sidecar, &token, None).await.status, 422);
    let state = async || call(sidecar.admin(), "GET", "/connections/crm", &json!({})).await.json()["state"].clone();
    let started = Instant::now();
    while state().await != "reauthorize" {
        assert!(started.elapsed() < TIMEOUT, "{}\n{}", state().await, sidecar.log());
        sleep(Duration::from_millis(50)).await;
    }
    let response = get(&sidecar, "").await;
    assert_eq!((response.status, response.code()), (424, "refresh_token_expired"));
    let before = server.token_requests("person").await;
    for _ in 0..20 {
        assert_eq!(get(&sidecar, "").await.status, 424);
    }
    assert_eq!(call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await.status, 424);
    assert_eq!(server.token_requests("person").await, before, "no token request until a person has acted");
    assert_eq!(import_refresh_token(&sidecar, &server.refresh_token("ann").await, None).await.status, 200);
    assert_eq!(get(&sidecar, "").await.status, 200, "served again after the import");
    assert_eq!(state().await, "fresh");
}

#[tokio::test]
async fn the_password_grant_refreshes_and_falls_back_to_the_password() {
    let server = AuthorizationServer::al(json!({ "lifetime": 2 })).await;
    let upstream = Upstream::start(&server).await;
    let keys = "client_id: owner, client_secret: owner-secret, grant: password, username: ann, password: ann-password";
    let sidecar = Sidecar::start(&connection(&server, &upstream, "", keys)).await;
    assert!(accepted(&sidecar, Duration::from_secs(4)).await > 30);
    let stats = server.stats().await;
    assert!(stats["rotations"].as_u64() >= Some(2), "{stats}");
    assert_eq!(stats["reused"], 0, "{stats}");
    let count = async |grant: &str| {
        let labels = format!("connection=\"crm\",profile=\"default\",grant=\"{grant}\",outcome=\"ok\"");
        sidecar.metric(&format!("keybearer_token_requests_total{{{labels}}}")).await
    };
    assert_eq!(count("password").await, 1.0, "one password grant, then refreshes only");
    server.control(json!({ "forget_refresh_tokens": true })).await;
    let started = Instant::now();
    while count("password").await < 2.0 {
        assert!(started.elapsed() < TIMEOUT, "{}", sidecar.log());
        assert_eq!(get(&sidecar, "").await.status, 200);
        sleep(Duration::from_millis(50)).await;
    }
    assert!(!sidecar.log().contains("ann-password"));
}

#[tokio::test]
async fn each_caller_and_subject_gets_its_own_token() {
    let server = AuthorizationServer::op(json!({ "lifetime": 3 })).await;
    let upstream = Upstream::start(&server).await;
    let top = "log: {requests: all}\ncallers:\n- {name: web, secret: web-secret, subjects: [ann, \"team-*\"]}\n- {name: eve, secret: eve-secret}\n";
    let keys = ", grant: authorization_code, tokens: per_subject";
    let sidecar = Sidecar::start(&person(&server, &upstream, top, keys)).await;
    for subject in ["ann", "team-1", "eve"] {
        let token = server.refresh_token(subject).await;
        let response = import_refresh_token(&sidecar, &token, Some(subject)).await;
        assert_eq!((response.status, response.json()["subject"].as_str()), (200, Some(subject)), "{}", response.text());
    }
    assert_eq!(import_refresh_token(&sidecar, "x", None).await.status, 422, "a subject is required");

    let line = |caller: &str, subject: Option<&str>| {
        let credential = match caller {
            "web" => "Basic d2ViOndlYi1zZWNyZXQ=",
            _ => "Basic ZXZlOmV2ZS1zZWNyZXQ=",
        };
        let subject = subject.map(|subject| format!("Keybearer-Subject: {subject}\r\n")).unwrap_or_default();
        format!("Proxy-Authorization: {credential}\r\n{subject}")
    };
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        let cases = [
            ("web", Some("ann"), "ann"),
            ("web", Some("team-1"), "team-1"),
            ("eve", None, "eve"),
            ("eve", Some("eve"), "eve"),
        ];
        for (caller, subject, expected) in cases {
            let response = get(&sidecar, &line(caller, subject)).await;
            assert_eq!(response.status, 200, "{caller} {subject:?}: {}\n{}", response.text(), sidecar.log());
            let record = response.json();
            assert_eq!(record["sub"], expected, "{caller} {subject:?}: {record}");
            assert!(record["headers"].get("keybearer-subject").is_none(), "{record}");
        }
    }

    let used = sidecar.wait_for_log("\"audit\":\"use\"").await;
    assert!(used.contains("\"subject\":\"ann\""), "{used}");
    let before = server.token_requests("person").await;
    for (caller, subject, status, code) in [
        ("web", Some("eve"), 403, "subject_not_allowed"),
        ("eve", Some("ann"), 403, "subject_not_allowed"),
        ("web", None, 403, "subject_not_allowed"),
        ("web", Some("team-2"), 424, "consent_required"),
        ("web", Some("a b"), 400, "subject_required"),
    ] {
        let response = get(&sidecar, &line(caller, subject)).await;
        assert_eq!((response.status, response.code()), (status, code), "{caller} {subject:?}");
    }
    let twice = line("web", Some("ann")) + "Keybearer-Subject: ann\r\n";
    assert_eq!(get(&sidecar, &twice).await.code(), "subject_required");
    assert!(
        server.token_requests("person").await <= before + 3,
        "no token request for subjects that the caller may not act for"
    );

    let listed = call(sidecar.admin(), "GET", "/connections/crm/tokens?limit=2", &json!({})).await.json();
    let names = |page: &Value| -> Vec<String> {
        page["items"].as_array().unwrap().iter().map(|item| item["subject"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&listed), ["ann", "eve"]);
    let path = format!("/connections/crm/tokens?limit=2&cursor={}", listed["cursor"].as_str().expect("a cursor"));
    let rest = call(sidecar.admin(), "GET", &path, &json!({})).await.json();
    assert_eq!((names(&rest), &rest["cursor"]), (vec!["team-1".to_owned()], &Value::Null));
    let one = call(sidecar.admin(), "GET", "/connections/crm/tokens?subject=eve", &json!({})).await.json();
    assert_eq!(names(&one), ["eve"]);
}
