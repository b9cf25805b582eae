//! Separate accounts: a person connects, withdraws the consent, connects again, and no refresh token is spent twice.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{OPERATOR, act_as_person, connection, get, link, web};
use crate::rig::manager::{MANAGER, call};
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::sidecar::Sidecar;

async fn connect_shared(sidecar: &Sidecar, account: &str) {
    let last_page = act_as_person(&link(&get(sidecar, "").await), account, &["--sign-in", OPERATOR]).await;
    assert_eq!((&last_page["status"], is_connected(&last_page)), (&json!(200), true), "{last_page}\n{}", sidecar.log());
}

fn is_connected(last_page: &Value) -> bool {
    last_page["text"].as_str().is_some_and(|text| text.contains("Connected"))
}

#[tokio::test]
async fn three_subjects_of_two_callers_each_get_the_token_of_their_own_account() {
    // Tokens outlive the test, which counts token requests.
    let server = AuthorizationServer::op(json!({"lifetime": 600})).await;
    let upstream = Upstream::start(&server).await;
    let callers = "callers: [{name: desk, secret: desk-secret, subjects: [ann, bob]}, \
                   {name: night, secret: night-secret, subjects: [\"c*\"]}]\n";
    let keys = format!("{}tokens: per_subject, ", web(&server));
    let sidecar = Sidecar::start(&connection(&server, &upstream, callers, "p-web", &keys)).await;
    let lines = |caller: &str, subject: &str| {
        use base64::prelude::{BASE64_STANDARD, Engine};
        let pair = BASE64_STANDARD.encode(format!("{caller}:{caller}-secret"));
        format!("Proxy-Authorization: Basic {pair}\r\nKeybearer-Subject: {subject}\r\n")
    };
    // Subjects that the caller may not act for are refused, and the server gets no request.
    for (caller, subject) in [("desk", "cleo"), ("night", "ann"), ("desk", "desk")] {
        let refused = get(&sidecar, &lines(caller, subject)).await;
        assert_eq!((refused.status, refused.code()), (403, "subject_not_allowed"));
    }
    let people = [("desk", "ann"), ("desk", "bob"), ("night", "cleo")];
    let connect = async |(caller, subject): (&str, &str)| {
        let end =
            act_as_person(&link(&get(&sidecar, &lines(caller, subject)).await), &format!("{subject}-account"), &[])
                .await;
        assert!(is_connected(&end), "{end}\n{}", sidecar.log());
    };
    tokio::join!(connect(people[0]), connect(people[1]), connect(people[2]));
    assert_eq!(server.token_requests_by_grant("p-web", "authorization_code").await, 3);

    let rounds = people.map(async |(caller, subject)| {
        for _ in 0..15 {
            let response = get(&sidecar, &lines(caller, subject)).await;
            assert_eq!((response.status, &response.json()["sub"]), (200, &json!(format!("{subject}-account"))));
        }
    });
    futures_util::future::join_all(rounds).await;
    for (caller, subject) in [("desk", "cleo"), ("night", "bob")] {
        assert_eq!(get(&sidecar, &lines(caller, subject)).await.status, 403);
    }
    let stats = server.stats().await;
    assert_eq!(server.token_requests("p-web").await, 3, "{stats}");
}

#[tokio::test]
async fn after_a_withdrawn_consent_requests_fail_until_the_person_connects_again() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let config = connection(&server, &upstream, "audit: {to: {file: audit.log}}\n", "p-short", &web(&server));
    let sidecar = Sidecar::start(&config).await;
    connect_shared(&sidecar, "ann").await;
    assert_eq!(get(&sidecar, "").await.json()["sub"], "ann");
    assert!(server.end_grants("ann").await > 0);
    let refused = sidecar
        .wait_for_metric("keybearer_tokens{connection=\"crm\",profile=\"default\",state=\"reauthorize\"}", |n| {
            n == 1.0
        });
    refused.await;
    let before = server.token_requests("p-short").await;
    let (end, mut refusals) = (Instant::now() + Duration::from_secs(5), 0);
    while Instant::now() < end {
        let response = get(&sidecar, "").await;
        // The last token may be fresh here for another moment, although the server has revoked it.
        if response.status == 424 {
            assert_eq!(response.code(), "refresh_token_expired");
            link(&response);
            refusals += 1;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert!(refusals > 20, "{refusals}\n{}", sidecar.log());
    assert_eq!(server.token_requests("p-short").await, before, "a refused refresh token is not sent again");
    let tokens = call(sidecar.admin(), "GET", "/connections/crm/tokens", &Value::Null).await.json();
    let item = &tokens["items"][0];
    assert_eq!((&item["state"], &item["last_attempt"]["error"]), (&json!("reauthorize"), &json!("invalid_grant")));
    assert_eq!(item["last_attempt"]["next_at"], Value::Null, "{item}");
    let audit = std::fs::read_to_string(sidecar.dir.path().join("audit.log")).expect("an audit");
    let line = |part: &str| audit.lines().find(|line| line.contains(part)).map(str::to_owned);
    assert!(line("\"outcome\":\"refused\"").is_some_and(|line| line.contains("invalid_grant")), "{audit}");

    // Connects through the API this time; a forced refresh is refused until then.
    let forced = call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert_eq!(forced.status, 424, "{}", forced.text());
    let flow = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await.json();
    let end = act_as_person(flow["authorization_url"].as_str().expect("a link"), "bob", &[]).await;
    assert!(is_connected(&end), "{end}");
    let id = flow["id"].as_str().expect("an id");
    let authorization = call(sidecar.admin(), "GET", &format!("/authorizations/{id}"), &Value::Null).await.json();
    assert_eq!(
        (&authorization["status"], &authorization["connection"], &authorization["error"]),
        (&json!("connected"), &json!("crm"), &Value::Null)
    );
    assert_eq!(get(&sidecar, "").await.json()["sub"], "bob");
    let shown = call(sidecar.admin(), "GET", "/connections/crm", &Value::Null).await.json();
    assert!(["fresh", "due"].contains(&shown["state"].as_str().expect("a state")), "{shown}");
    // Automatic refresh continues past the end of the first token.
    let refreshed =
        "keybearer_token_requests_total{connection=\"crm\",profile=\"default\",grant=\"refresh_token\",outcome=\"ok\"}";
    let before = sidecar.metric(refreshed).await;
    sidecar.wait_for_metric(refreshed, |count| count >= before + 2.0).await;
    assert_eq!(get(&sidecar, "").await.json()["sub"], "bob");
    let stats = server.stats().await;
    assert_eq!(stats["second_uses"]["p-short"], Value::Null, "{stats}");
    for secret in ["code=", "code_verifier", "eyJ"] {
        assert!(!sidecar.log().contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn the_audit_names_the_user_who_finished_even_if_another_began() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let config = connection(&server, &upstream, "audit: {to: {file: audit.log}}\n", "p-web", &web(&server));
    let sidecar = Sidecar::start(&config).await;
    let link = link(&get(&sidecar, "").await);
    let first = act_as_person(&link, "ann", &["--sign-in", OPERATOR, "--stop-before-callback"]).await;
    assert!(first["callback"].is_string(), "{first}");
    let second = act_as_person(&link, "bob", &["--sign-in", MANAGER]).await;
    assert!(is_connected(&second), "{second}");
    assert_eq!(get(&sidecar, "").await.json()["sub"], "bob");
    let audit = std::fs::read_to_string(sidecar.dir.path().join("audit.log")).expect("an audit");
    let connected: Vec<Value> = audit
        .lines()
        .filter(|line| line.contains("/oauth/callback"))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(
        (connected.len(), &connected[0]["user"], &connected[0]["status"]),
        (1, &json!("ops"), &json!(303)),
        "{audit}"
    );
    let refresh =
        audit.lines().find(|line| line.contains("\"grant\":\"authorization_code\"")).expect("a token request");
    assert!(refresh.contains("\"user\":\"ops\"") && refresh.contains("\"cause\":\"person\""), "{refresh}");
}

#[tokio::test]
async fn concurrent_requests_and_reloads_at_expiry_spend_no_refresh_token_twice() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let config = connection(&server, &upstream, "", "p-short", &web(&server));
    let sidecar = Sidecar::start(&config).await;
    connect_shared(&sidecar, "ann").await;
    let file = sidecar.dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&file).expect("a readable file");
    let end = Instant::now() + Duration::from_secs(9);
    let reloads = async {
        let mut count = 0;
        while Instant::now() < end {
            count += 1;
            let changed = text.replace(
                "- {name: crm,",
                &format!("- {{name: crm, comments: number {count}, refresh_ahead: {}ms,", 500 + count % 9),
            );
            std::fs::write(&file, changed).expect("write succeeds");
            assert_eq!(call(sidecar.admin(), "POST", "/reload", &json!({})).await.status, 200);
            sleep(Duration::from_millis(200)).await;
        }
        count
    };
    let requests = async {
        let mut count = 0;
        while Instant::now() < end {
            let responses = futures_util::future::join_all((0..100).map(|_| get(&sidecar, ""))).await;
            for response in &responses {
                assert_eq!((response.status, &response.json()["sub"]), (200, &json!("ann")), "{}", response.text());
            }
            count += responses.len();
            sleep(Duration::from_millis(100)).await;
        }
        count
    };
    let (reloads, requests) = tokio::join!(reloads, requests);
    assert!(reloads > 10 && requests > 1000, "{reloads} reloads, {requests} requests");
    let stats = server.stats().await;
    let refreshes = stats["requests_by_grant"]["p-short"]["refresh_token"].as_u64().expect("a count");
    assert!((3..=8).contains(&refreshes), "{stats}");
    assert_eq!((&stats["second_uses"]["p-short"], &stats["refused"]), (&Value::Null, &json!(0)), "{stats}");
}
