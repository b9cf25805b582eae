//! Each account for itself: a person connects, withdraws, connects again, and no refresh token is spent twice.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{OPERATOR, ask, connection, link, person, web};
use crate::rig::manager::{MANAGER, call};
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::sidecar::Sidecar;

async fn connect_shared(sidecar: &Sidecar, account: &str) {
    let end = person(&link(&ask(sidecar, "").await), account, &["--sign-in", OPERATOR]).await;
    assert_eq!((&end["status"], is_connected(&end)), (&json!(200), true), "{end}\n{}", sidecar.log());
}

fn is_connected(end: &Value) -> bool {
    end["text"].as_str().is_some_and(|text| text.contains("Connected"))
}

#[tokio::test]
async fn three_subjects_of_two_callers_each_get_their_own_persons_token() {
    let server = AuthorizationServer::op(json!({})).await;
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
    // Not its own: refused, and nothing is asked of the server, then or later.
    for (caller, subject) in [("desk", "cleo"), ("night", "ann"), ("desk", "desk")] {
        let refused = ask(&sidecar, &lines(caller, subject)).await;
        assert_eq!((refused.status, refused.code()), (403, "subject_not_allowed"));
    }
    let people = [("desk", "ann"), ("desk", "bob"), ("night", "cleo")];
    let connect = async |(caller, subject): (&str, &str)| {
        let end =
            person(&link(&ask(&sidecar, &lines(caller, subject)).await), &format!("{subject}-account"), &[]).await;
        assert!(is_connected(&end), "{end}\n{}", sidecar.log());
    };
    tokio::join!(connect(people[0]), connect(people[1]), connect(people[2]));
    assert_eq!(server.token_requests_by_grant("p-web", "authorization_code").await, 3);

    let rounds = people.map(async |(caller, subject)| {
        for _ in 0..15 {
            let answer = ask(&sidecar, &lines(caller, subject)).await;
            assert_eq!((answer.status, &answer.json()["sub"]), (200, &json!(format!("{subject}-account"))));
        }
    });
    futures_util::future::join_all(rounds).await;
    for (caller, subject) in [("desk", "cleo"), ("night", "bob")] {
        assert_eq!(ask(&sidecar, &lines(caller, subject)).await.status, 403);
    }
    let stats = server.stats().await;
    assert_eq!(server.token_requests("p-web").await, 3, "{stats}");
}

#[tokio::test]
async fn a_withdrawn_consent_lasts_until_the_person_connects_again() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let config = connection(&server, &upstream, "audit: {to: {file: audit.log}}\n", "p-short", &web(&server));
    let sidecar = Sidecar::start(&config).await;
    connect_shared(&sidecar, "ann").await;
    assert_eq!(ask(&sidecar, "").await.json()["sub"], "ann");
    assert!(server.end_grants("ann").await > 0);
    let refused = sidecar
        .until_metric("keybearer_tokens{connection=\"crm\",profile=\"default\",state=\"reauthorize\"}", |n| n == 1.0);
    refused.await;
    let before = server.token_requests("p-short").await;
    let (end, mut seen) = (Instant::now() + Duration::from_secs(5), 0);
    while Instant::now() < end {
        let answer = ask(&sidecar, "").await;
        // The last token may still be good for a moment here; the server knows better.
        if answer.status == 424 {
            assert_eq!(answer.code(), "refresh_token_expired");
            link(&answer);
            seen += 1;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert!(seen > 20, "{seen}\n{}", sidecar.log());
    assert_eq!(server.token_requests("p-short").await, before, "a refused refresh token is not tried again");
    let tokens = call(sidecar.admin(), "GET", "/connections/crm/tokens", &Value::Null).await.json();
    let item = &tokens["items"][0];
    assert_eq!((&item["state"], &item["last_attempt"]["error"]), (&json!("reauthorize"), &json!("invalid_grant")));
    assert_eq!(item["last_attempt"]["next_at"], Value::Null, "{item}");
    let audit = std::fs::read_to_string(sidecar.dir.path().join("audit.log")).expect("an audit");
    let line = |part: &str| audit.lines().find(|line| line.contains(part)).map(str::to_owned);
    assert!(line("\"outcome\":\"refused\"").is_some_and(|line| line.contains("invalid_grant")), "{audit}");

    // By the API this time; a forced refresh is refused until then.
    let forced = call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert_eq!(forced.status, 424, "{}", forced.text());
    let begun = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await.json();
    let end = person(begun["authorization_url"].as_str().expect("a link"), "bob", &[]).await;
    assert!(is_connected(&end), "{end}");
    let id = begun["id"].as_str().expect("an id");
    let told = call(sidecar.admin(), "GET", &format!("/authorizations/{id}"), &Value::Null).await.json();
    assert_eq!(
        (&told["status"], &told["connection"], &told["error"]),
        (&json!("connected"), &json!("crm"), &Value::Null)
    );
    assert_eq!(ask(&sidecar, "").await.json()["sub"], "bob");
    let shown = call(sidecar.admin(), "GET", "/connections/crm", &Value::Null).await.json();
    assert!(["fresh", "due"].contains(&shown["state"].as_str().expect("a state")), "{shown}");
    // It rotates on its own again, past the first token's end.
    let renewed =
        "keybearer_token_requests_total{connection=\"crm\",profile=\"default\",grant=\"refresh_token\",outcome=\"ok\"}";
    let before = sidecar.metric(renewed).await;
    sidecar.until_metric(renewed, |count| count >= before + 2.0).await;
    assert_eq!(ask(&sidecar, "").await.json()["sub"], "bob");
    let stats = server.stats().await;
    assert_eq!(stats["second_uses"]["p-short"], Value::Null, "{stats}");
    for secret in ["code=", "code_verifier", "eyJ"] {
        assert!(!sidecar.log().contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn the_audit_names_the_person_who_signed_in_even_if_another_began() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let config = connection(&server, &upstream, "audit: {to: {file: audit.log}}\n", "p-web", &web(&server));
    let sidecar = Sidecar::start(&config).await;
    let link = link(&ask(&sidecar, "").await);
    let first = person(&link, "ann", &["--sign-in", OPERATOR, "--stop-before-callback"]).await;
    assert!(first["callback"].is_string(), "{first}");
    let second = person(&link, "bob", &["--sign-in", MANAGER]).await;
    assert!(is_connected(&second), "{second}");
    assert_eq!(ask(&sidecar, "").await.json()["sub"], "bob");
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
async fn a_hundred_at_once_and_reloads_at_the_edge_of_a_life_spend_no_refresh_token_twice() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let config = connection(&server, &upstream, "", "p-short", &web(&server));
    let sidecar = Sidecar::start(&config).await;
    connect_shared(&sidecar, "ann").await;
    let file = sidecar.dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let end = Instant::now() + Duration::from_secs(9);
    let reloads = async {
        let mut count = 0;
        while Instant::now() < end {
            count += 1;
            let changed = text.replace(
                "- {name: crm,",
                &format!("- {{name: crm, comments: number {count}, refresh_ahead: {}ms,", 500 + count % 9),
            );
            std::fs::write(&file, changed).expect("it is written");
            assert_eq!(call(sidecar.admin(), "POST", "/reload", &json!({})).await.status, 200);
            sleep(Duration::from_millis(200)).await;
        }
        count
    };
    let requests = async {
        let mut count = 0;
        while Instant::now() < end {
            let answers = futures_util::future::join_all((0..100).map(|_| ask(&sidecar, ""))).await;
            for answer in &answers {
                assert_eq!((answer.status, &answer.json()["sub"]), (200, &json!("ann")), "{}", answer.text());
            }
            count += answers.len();
            sleep(Duration::from_millis(100)).await;
        }
        count
    };
    let (reloads, requests) = tokio::join!(reloads, requests);
    assert!(reloads > 10 && requests > 1000, "{reloads} reloads, {requests} requests");
    let stats = server.stats().await;
    let refreshes = stats["asked"]["p-short"]["refresh_token"].as_u64().expect("a count");
    assert!((3..=8).contains(&refreshes), "{stats}");
    assert_eq!((&stats["second_uses"]["p-short"], &stats["refused"]), (&Value::Null, &json!(0)), "{stats}");
}
