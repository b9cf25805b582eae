//! From a terminal: `keybearer connect` waits for the browser, and device codes (RFC 8628) are polled at the given interval.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{Instant, sleep, timeout};

use super::{OPERATOR, TIMEOUT, act_as_person, connection, get, web};
use crate::rig::manager::{MANAGER, call};
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};

/// Runs `keybearer connect`, and returns its standard error up to the line that contains `part`.
async fn connect_command(sidecar: &Sidecar, arguments: &[&str], part: &str) -> (tokio::process::Child, String) {
    let mut child = program()
        .args(["connect", "crm", "--no-browser", "--json", "--admin", &format!("http://{}", sidecar.admin())])
        .args(arguments)
        .env("KEYBEARER_ADMIN_TOKEN", OPERATOR)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let mut printed = String::new();
    let found = async {
        while let Ok(Some(line)) = lines.next_line().await {
            printed.push_str(&format!("{line}\n"));
            if line.contains(part) {
                return;
            }
        }
        panic!("standard error ends without it:\n{printed}");
    };
    timeout(TIMEOUT, found).await.expect("the line arrives in time");
    // Drains the pipe, so that the program does not block.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, printed)
}

async fn outcome(child: tokio::process::Child) -> (Option<i32>, Value) {
    let output = timeout(TIMEOUT, child.wait_with_output()).await.expect("exits before the timeout").expect("output");
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

#[tokio::test]
async fn the_command_waits_for_the_person_in_the_browser() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&connection(&server, &upstream, "", "p-web", &web(&server))).await;
    for (options, code, status) in [(&[][..], 0, "connected"), (&["deny"][..], 1, "denied")] {
        let (child, printed) = connect_command(&sidecar, &[], "/connect/crm").await;
        let link = printed.split_whitespace().find(|word| word.contains("/connect/crm")).expect("a link");
        let end = act_as_person(link, "ann", options).await;
        let outcome = outcome(child).await;
        assert_eq!(
            (outcome.0, &outcome.1["status"]),
            (Some(code), &json!(status)),
            "{outcome:?} {end}\n{}",
            sidecar.log()
        );
    }
    assert_eq!(
        get(&sidecar, "").await.json()["sub"],
        "ann",
        "a denied authorization does not affect the present token"
    );
}

#[tokio::test]
async fn polling_for_a_device_code_continues_after_a_restart() {
    let server = AuthorizationServer::al(json!({ "lifetime": 60 })).await;
    server.control(json!({ "interval": 1 })).await;
    let upstream = Upstream::start(&server).await;
    let keys = format!("grant: device_code, device_authorization_url: \"{}\", ", server.device_authorization_url());
    let sidecar = Sidecar::start(&connection(&server, &upstream, "", "p-device-web", &keys)).await;
    let (child, printed) = connect_command(&sidecar, &[], "enter this code").await;
    assert!(printed.contains("http"), "{printed}");
    drop(child);
    let flow = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await;
    assert_eq!(flow.status, 201, "{}", flow.text());
    let flow = flow.json();
    assert_eq!(flow["interval"], 1);
    let polls = async || server.stats().await["polls"]["p-device-web"].as_array().map_or(0, Vec::len);
    let end = Instant::now() + TIMEOUT;
    while polls().await < 2 {
        assert!(Instant::now() < end, "no poll arrives\n{}", sidecar.log());
        sleep(Duration::from_millis(50)).await;
    }
    let (dir, addresses, log) = sidecar.crash().await;
    assert!(!log.contains(flow["user_code"].as_str().expect("a code")), "{log}");
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    server.decide(flow["user_code"].as_str().expect("a code"), true).await;
    let path = format!("/authorizations/{}", flow["id"].as_str().expect("an id"));
    let end = Instant::now() + TIMEOUT;
    loop {
        let authorization = call(sidecar.admin(), "GET", &path, &Value::Null).await.json();
        match authorization["status"].as_str() {
            Some("connected") => break,
            Some("pending") if Instant::now() < end => sleep(Duration::from_millis(100)).await,
            _ => panic!("{authorization}\n{}", sidecar.log()),
        }
    }
    assert_eq!(get(&sidecar, "").await.status, 200);
    let labels = "connection=\"crm\",profile=\"default\",grant=\"device_code\",outcome=\"ok\"";
    sidecar.wait_for_metric(&format!("keybearer_token_requests_total{{{labels}}}"), |count| count == 1.0).await;
}

#[tokio::test]
async fn slow_down_lengthens_the_poll_interval_permanently() {
    let server = Scripted::start(|request, before| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        if request.request_line().contains("/device") {
            let members = json!({ "device_code": "dc", "user_code": "AB-12", "verification_uri": "https://as.test/go",
                "expires_in": 600, "interval": 1 });
            return Reply::json(200, &members);
        }
        assert!(body.contains("device_code=dc"), "{body}");
        match before {
            1 => Reply::json(400, &json!({ "error": "authorization_pending" })),
            2 => Reply::json(400, &json!({ "error": "slow_down" })),
            _ => Reply::token("t", 3600),
        }
    })
    .await;
    let sidecar = Sidecar::start(&format!(
        "admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nconnections:\n- {{name: crm, client_id: id, \
         grant: device_code, token_url: \"http://{0}/token\", device_authorization_url: \"http://{0}/device\"}}\n",
        server.address
    ))
    .await;
    let flow = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await;
    assert_eq!(flow.status, 201, "{}", flow.text());
    let end = Instant::now() + TIMEOUT;
    let mut times = Vec::new();
    while times.len() < 4 {
        assert!(Instant::now() < end, "{} requests\n{}", times.len(), sidecar.log());
        if server.count() > times.len() {
            times.push(Instant::now());
        }
        sleep(Duration::from_millis(20)).await;
    }
    let pauses: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert!(pauses[0] > 0.8 && pauses[1] > 0.8 && pauses[2] > 5.8, "{pauses:?}");
}

/// RFC 8628 §3.5: a slow poll delays the next one. The client ID is a part of an error code, which must not be masked.
#[tokio::test]
async fn polls_do_not_overlap_and_the_interval_starts_at_the_end_of_each() {
    const RESPONSE_DELAY: Duration = Duration::from_millis(2500);
    let polls = Arc::<Mutex<Vec<Instant>>>::default();
    let recorded = polls.clone();
    let server = Scripted::start(move |request, _| {
        if request.request_line().contains("/device") {
            let members = json!({ "device_code": "dc", "user_code": "AB-12", "verification_uri": "https://as.test/go",
                "expires_in": 600, "interval": 1 });
            return Reply::json(200, &members);
        }
        let mut polls = recorded.lock().unwrap();
        polls.push(Instant::now());
        match polls.len() {
            1..=3 => Reply::json(400, &json!({ "error": "authorization_pending" })).delayed(RESPONSE_DELAY),
            _ => Reply::token("t", 3600),
        }
    })
    .await;
    let sidecar = Sidecar::start(&format!(
        "admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nconnections:\n- {{name: crm, client_id: auth, \
         grant: device_code, token_url: \"http://{0}/token\", device_authorization_url: \"http://{0}/device\"}}\n",
        server.address
    ))
    .await;
    let flow = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await;
    assert_eq!(flow.status, 201, "{}", flow.text());
    let path = format!("/authorizations/{}", flow.json()["id"].as_str().expect("an id"));
    let end = Instant::now() + TIMEOUT;
    loop {
        let authorization = call(sidecar.admin(), "GET", &path, &Value::Null).await.json();
        match authorization["status"].as_str() {
            Some("connected") => break,
            Some("pending") if Instant::now() < end => sleep(Duration::from_millis(50)).await,
            _ => panic!("{authorization}\n{}", sidecar.log()),
        }
    }
    let times = polls.lock().unwrap().clone();
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses.len(), 3, "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause >= RESPONSE_DELAY + Duration::from_millis(950)), "{pauses:?}");
}
