//! People connect accounts at a real server: each for itself, once, and again when the server has let go.
//!
//! Not here: what a browser shows and does (`consent`).

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::renewal::{MANAGER, call};
use crate::rig::pages;
use crate::rig::peers::{AuthorizationServer, Peers, Upstream, python, rig};
use crate::rig::raw::{self, Answer};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};
use crate::rig::wall_clock::WallClock;

const PATIENCE: Duration = Duration::from_secs(30);
const OPERATOR: &str = "an-operator-of-these-tests-0123456789";
const VIEWER: &str = "a-viewer-of-these-tests-0123456789ab";

/// A connection `crm` of the client `client_id`, for whose token `api.test` asks.
fn connection(server: &AuthorizationServer, upstream: &Upstream, top: &str, client: &str, keys: &str) -> String {
    let (ca, port) = (Peers::certs().ca.display(), upstream.http_port());
    let secret = format!("client_secret: {client}-secret-0123456789abcdef0123456789abcdef, ");
    let secret = if client == "p-device" || client == "p-public" { String::new() } else { secret };
    format!(
        "{top}admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}, {{name: op, role: operator, token: \
         {OPERATOR}}}, {{name: eye, role: viewer, token: {VIEWER}}}]}}\ntrust: [\"{ca}\"]\n\
         hosts: {{api.test: \"127.0.0.1:{port}\"}}\nconnections:\n- {{name: crm, token_url: \"{}\", \
         revocation_url: \"{}\", client_id: {client}, {secret}{keys}scopes: [openid, offline_access, api.read], \
         routes: [{{host: api.test, upstream_tls: false}}]}}\n",
        server.token_url(),
        server.revocation_url(),
    )
}

fn web(server: &AuthorizationServer) -> String {
    format!("authorization_url: \"{}?prompt=consent\", ", server.authorization_url())
}

/// A person follows a link to the server's pages and back: the last page, or with `options` what they say.
async fn person(link: &str, account: &str, options: &[&str]) -> Value {
    let walk = Command::new(python()).arg(rig("person.py")).args([link, account]).args(options).output();
    let output = timeout(PATIENCE, walk).await.expect("the person comes back").expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

async fn ask(sidecar: &Sidecar, lines: &str) -> Answer {
    raw::get_through(sidecar.proxy(), "http://api.test/x", lines).await
}

fn link(answer: &Answer) -> String {
    assert_eq!((answer.status, answer.json()["action"].as_str()), (424, Some("reauthorize")), "{}", answer.text());
    assert!(answer.header("retry-after").is_none());
    answer.json()["link"].as_str().expect("a link").to_owned()
}

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
    assert_eq!(server.asked("p-web", "authorization_code").await, 3);

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
async fn a_withdrawn_consent_stands_until_a_person_connects_again_and_then_everything_goes_on() {
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
async fn the_audit_names_whoever_signed_in_though_another_began_before() {
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
async fn a_restarted_program_finishes_what_a_person_has_begun() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&connection(&server, &upstream, "", "p-web", &web(&server))).await;
    let begun = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await.json();
    let begun = begun["authorization_url"].as_str().expect("a link").to_owned();
    let back = person(&begun, "ann", &["--stop-before-callback"]).await;
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    let callback = back["callback"].as_str().expect("a callback");
    let query = callback.split_once('?').expect("a query").1;
    let path = format!("/oauth/callback?{query}");
    let (admin, cookies) = (sidecar.admin(), back["cookies"].as_str().expect("cookies"));
    let request = |cookie: &str| format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\n{cookie}Connection: close\r\n\r\n");
    let stranger = raw::send(admin, request("").as_bytes()).await;
    assert_eq!((stranger.status, stranger.text().contains("Another browser")), (400, true), "{}", stranger.text());
    let answer = raw::send(admin, request(&format!("Cookie: {cookies}\r\n")).as_bytes()).await;
    assert_eq!(answer.status, 303, "{}\n{}", answer.text(), sidecar.log());
    assert!(!answer.header("location").expect("a place").contains("code"), "{answer:?}");
    assert_eq!(ask(&sidecar, "").await.json()["sub"], "ann");
    let again = raw::send(admin, request(&format!("Cookie: {cookies}\r\n")).as_bytes()).await;
    assert_eq!((again.status, again.text().contains("already used")), (400, true), "{}", again.text());
    assert_eq!(server.asked("p-web", "authorization_code").await, 1);
}

#[tokio::test]
async fn a_link_and_what_was_begun_with_it_are_over_after_ten_minutes() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let clock = WallClock::start();
    let keys = format!("{}tokens: per_subject, ", web(&server));
    let sidecar = Sidecar::start_in(&connection(&server, &upstream, "", "p-web", &keys), &clock.environment()).await;
    let sealed = link(&ask(&sidecar, "Keybearer-Subject: ann\r\n").await);
    let begun = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({ "subject": "ann" })).await.json();
    let opened = begun["authorization_url"].as_str().expect("a link");
    let back = person(opened, "ann", &["--stop-before-callback"]).await;
    let own = format!("{}?subject=ann", sealed.split('?').next().expect("a link"));
    let session = pages::visit(sidecar.admin(), "POST", &own, &pages::origin(&own), &format!("token={OPERATOR}")).await;
    let session = pages::cookie(&session);
    let pages_of = async || {
        let of = async |link: &str, lines: &str| pages::visit(sidecar.admin(), "GET", link, lines, "").await;
        [
            of(&sealed, "").await,
            of(opened, &format!("Cookie: {}\r\n", back["cookies"].as_str().expect("cookies"))).await,
            of(&own, &session).await,
        ]
    };
    let [.., early] = pages_of().await;
    clock.set("+9m");
    for shown in pages_of().await {
        assert_eq!(shown.status, 200, "{}", shown.text());
    }
    clock.set("+11m");
    // The operator is signed in still; the page of before is too old to confirm.
    let lines = format!("{}; {}", pages::cookie(&early).trim_end(), session.trim_start_matches("Cookie: "));
    let body = format!("confirmation={}", pages::confirmation(&early.text()));
    let late = pages::visit(sidecar.admin(), "POST", &own, &format!("{lines}{}", pages::origin(&own)), &body).await;
    assert_eq!((late.status, late.text().contains("confirm again")), (403, true), "{}", late.text());
    for link in [sealed.as_str(), opened] {
        let page = person(link, "ann", &[]).await;
        assert_eq!(page["status"], 400, "{page}");
        assert!(page["text"].as_str().expect("a text").contains("has expired"), "{page}");
    }
    let path = back["callback"].as_str().and_then(|url| url.split_once("/oauth/")).expect("a callback").1.to_owned();
    let (admin, cookies) = (sidecar.admin(), back["cookies"].as_str().expect("cookies"));
    let request =
        format!("GET /oauth/{path} HTTP/1.1\r\nHost: {admin}\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n");
    let late = raw::send(admin, request.as_bytes()).await;
    assert_eq!((late.status, late.text().contains("has expired")), (400, true), "{}", late.text());
    let path = format!("/authorizations/{}", begun["id"].as_str().expect("an id"));
    assert_eq!(call(admin, "GET", &path, &Value::Null).await.json()["status"], "expired");
    assert_eq!(server.asked("p-web", "authorization_code").await, 0);
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

#[tokio::test]
async fn a_connection_that_changed_meanwhile_takes_no_code() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let config = connection(&server, &upstream, "", "p-web", &web(&server));
    let sidecar = Sidecar::start(&config).await;
    let begun = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await.json();
    let back = person(begun["authorization_url"].as_str().expect("a link"), "ann", &["--stop-before-callback"]).await;
    let text = std::fs::read_to_string(sidecar.dir.path().join("keybearer.yaml")).expect("the configuration");
    std::fs::write(sidecar.dir.path().join("keybearer.yaml"), text.replace("api.read]", "api.write]")).expect("a file");
    let reloaded = call(sidecar.admin(), "POST", "/reload", &json!({})).await;
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    let path = back["callback"].as_str().and_then(|url| url.split_once("/oauth/")).expect("a callback").1.to_owned();
    let (admin, cookies) = (sidecar.admin(), back["cookies"].as_str().expect("cookies"));
    let request =
        format!("GET /oauth/{path} HTTP/1.1\r\nHost: {admin}\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n");
    let answer = raw::send(admin, request.as_bytes()).await;
    assert_eq!((answer.status, answer.text().contains("has changed")), (400, true), "{}", answer.text());
    assert_eq!(server.asked("p-web", "authorization_code").await, 0);
}

/// `keybearer connect`, and what it says on standard error until `part` is in it.
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
    let mut said = String::new();
    let found = async {
        while let Ok(Some(line)) = lines.next_line().await {
            said.push_str(&format!("{line}\n"));
            if line.contains(part) {
                return;
            }
        }
        panic!("it ends with:\n{said}");
    };
    timeout(PATIENCE, found).await.expect("it says so");
    // Whatever follows is read, so that nothing blocks.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, said)
}

async fn outcome(child: tokio::process::Child) -> (Option<i32>, Value) {
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").expect("output");
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

#[tokio::test]
async fn a_terminal_waits_for_the_person_in_the_browser() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&connection(&server, &upstream, "", "p-web", &web(&server))).await;
    for (options, code, status) in [(&[][..], 0, "connected"), (&["deny"][..], 1, "denied")] {
        let (child, said) = connect_command(&sidecar, &[], "/connect/crm").await;
        let link = said.split_whitespace().find(|word| word.contains("/connect/crm")).expect("a link");
        let end = person(link, "ann", options).await;
        let outcome = outcome(child).await;
        assert_eq!(
            (outcome.0, &outcome.1["status"]),
            (Some(code), &json!(status)),
            "{outcome:?} {end}\n{}",
            sidecar.log()
        );
    }
    assert_eq!(ask(&sidecar, "").await.json()["sub"], "ann", "a denial takes nothing away");
}

#[tokio::test]
async fn a_code_for_another_device_is_waited_for_across_a_restart_and_as_slowly_as_asked() {
    let server = AuthorizationServer::al(json!({ "lifetime": 60 })).await;
    server.control(json!({ "interval": 1 })).await;
    let upstream = Upstream::start(&server).await;
    let keys = format!("grant: device_code, device_authorization_url: \"{}\", ", server.device_authorization_url());
    let sidecar = Sidecar::start(&connection(&server, &upstream, "", "p-device-web", &keys)).await;
    let (child, said) = connect_command(&sidecar, &[], "give it this code").await;
    assert!(said.contains("http"), "{said}");
    drop(child);
    let begun = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await;
    assert_eq!(begun.status, 201, "{}", begun.text());
    let begun = begun.json();
    assert_eq!(begun["interval"], 1);
    let asked = async || server.stats().await["polls"]["p-device-web"].as_array().map_or(0, Vec::len);
    let end = Instant::now() + PATIENCE;
    while asked().await < 2 {
        assert!(Instant::now() < end, "nobody asks\n{}", sidecar.log());
        sleep(Duration::from_millis(50)).await;
    }
    let (dir, addresses, log) = sidecar.crash().await;
    assert!(!log.contains(begun["user_code"].as_str().expect("a code")), "{log}");
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    server.decide(begun["user_code"].as_str().expect("a code"), true).await;
    let path = format!("/authorizations/{}", begun["id"].as_str().expect("an id"));
    let end = Instant::now() + PATIENCE;
    loop {
        let told = call(sidecar.admin(), "GET", &path, &Value::Null).await.json();
        match told["status"].as_str() {
            Some("connected") => break,
            Some("pending") if Instant::now() < end => sleep(Duration::from_millis(100)).await,
            _ => panic!("{told}\n{}", sidecar.log()),
        }
    }
    assert_eq!(ask(&sidecar, "").await.status, 200);
    let labels = "connection=\"crm\",profile=\"default\",grant=\"device_code\",outcome=\"ok\"";
    sidecar.until_metric(&format!("keybearer_token_requests_total{{{labels}}}"), |count| count == 1.0).await;
}

#[tokio::test]
async fn a_server_that_asks_for_patience_gets_it_for_good() {
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
    let begun = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await;
    assert_eq!(begun.status, 201, "{}", begun.text());
    let end = Instant::now() + PATIENCE;
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

/// RFC 8628 §3.5: a poll that takes long delays the next one, and a client whose name is a part of an error code sees it.
#[tokio::test]
async fn one_poll_at_a_time_and_the_interval_counts_from_its_end() {
    const TAKES: Duration = Duration::from_millis(2500);
    let polls = Arc::<Mutex<Vec<Instant>>>::default();
    let seen = polls.clone();
    let server = Scripted::start(move |request, _| {
        if request.request_line().contains("/device") {
            let members = json!({ "device_code": "dc", "user_code": "AB-12", "verification_uri": "https://as.test/go",
                "expires_in": 600, "interval": 1 });
            return Reply::json(200, &members);
        }
        let mut polls = seen.lock().unwrap();
        polls.push(Instant::now());
        match polls.len() {
            1..=3 => Reply::json(400, &json!({ "error": "authorization_pending" })).late(TAKES),
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
    let begun = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await;
    assert_eq!(begun.status, 201, "{}", begun.text());
    let path = format!("/authorizations/{}", begun.json()["id"].as_str().expect("an id"));
    let end = Instant::now() + PATIENCE;
    loop {
        let told = call(sidecar.admin(), "GET", &path, &Value::Null).await.json();
        match told["status"].as_str() {
            Some("connected") => break,
            Some("pending") if Instant::now() < end => sleep(Duration::from_millis(50)).await,
            _ => panic!("{told}\n{}", sidecar.log()),
        }
    }
    let times = polls.lock().unwrap().clone();
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses.len(), 3, "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause >= TAKES + Duration::from_millis(950)), "{pauses:?}");
}

#[tokio::test]
async fn people_have_a_listener_of_their_own_and_addresses_come_from_the_configuration_alone() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let top = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", public: \"127.0.0.1:0\"}\n\
               public_url: https://keys.test/kb\n";
    let sidecar = Sidecar::start(&connection(&server, &upstream, top, "p-web", &web(&server))).await;
    let (public, admin) = (sidecar.address("public"), sidecar.admin());
    let begun = call(admin, "POST", "/connections/crm/authorize", &json!({})).await.json();
    let place =
        begun["authorization_url"].as_str().and_then(|url| url.strip_prefix("https://keys.test/kb")).expect("a link");
    let get = async |at, host: &str, path: &str| {
        raw::send(
            at,
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: evil.test\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .await
    };
    for path in ["/", "/api/v1/connections", "/metrics", "/readyz"] {
        assert_eq!(get(public, "keys.test", path).await.status, 404, "{path}");
    }
    for path in [place, "/connect/crm", "/oauth/callback?state=x&code=y"] {
        assert_eq!(get(admin, &admin.to_string(), path).await.status, 404, "{path}");
        assert_eq!(get(public, "evil.test", path).await.status, 421, "{path}");
    }
    assert_eq!(get(public, "keys.test", "/connect/crm").await.status, 401);
    let shown = get(public, "keys.test", place).await;
    assert_eq!(shown.status, 200, "{}", shown.text());
    // The proxy in front takes `/kb` away.
    let (sent, _) = pages::confirm(public, &format!("https://keys.test{place}"), "").await;
    assert_eq!(sent.status, 200, "{}", sent.text());
    for answer in [&shown, &sent] {
        let cookie = answer.header("set-cookie").expect("a cookie");
        for part in ["__Host-keybearer_browser=", "; Path=/;", "; HttpOnly", "; SameSite=Lax", "; Secure"] {
            assert!(cookie.contains(part), "{part}: {cookie}");
        }
    }
    // What arrives over https is not confirmed by a page that came without.
    let lines = format!("{}Origin: http://keys.test\r\n", pages::cookie(&shown));
    let body = format!("confirmation={}", pages::confirmation(&shown.text()));
    let refused = pages::visit(public, "POST", &format!("https://keys.test{place}"), &lines, &body).await;
    assert_eq!((refused.status, refused.header("set-cookie")), (403, None), "{}", refused.text());
    let target = pages::onward(&sent);
    for part in [
        "redirect_uri=https%3A%2F%2Fkeys.test%2Fkb%2Foauth%2Fcallback",
        "code_challenge_method=S256",
        "prompt=consent&",
    ] {
        assert!(target.contains(part), "{part}: {target}");
    }
    assert!(!target.contains("evil"));
}

#[tokio::test]
async fn a_browser_signs_in_with_a_token_and_changes_nothing_without_its_pages_own() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&connection(&server, &upstream, "", "p-web", &web(&server))).await;
    let admin = sidecar.admin();
    let send = async |method: &str, path: &str, lines: &str, body: &str| {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {admin}\r\n{lines}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        raw::send(admin, head.as_bytes()).await
    };
    let wrong = send("POST", "/api/v1/session", "", r#"{"token": "nobody's"}"#).await;
    assert_eq!((wrong.status, wrong.header("set-cookie")), (401, None));
    let signed = send("POST", "/api/v1/session", "", &json!({ "token": OPERATOR }).to_string()).await;
    assert_eq!((signed.status, &signed.json()["role"]), (200, &json!("operator")), "{}", signed.text());
    let cookie = signed.header("set-cookie").expect("a cookie");
    assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Lax"), "{cookie}");
    let session = format!("Cookie: {}\r\n", cookie.split(';').next().expect("a pair"));
    let csrf = format!("X-CSRF-Token: {}\r\n", signed.json()["csrf_token"].as_str().expect("a token"));
    assert_eq!(send("GET", "/api/v1/connections", &session, "").await.status, 200);
    let begin = "/api/v1/connections/crm/authorize";
    assert_eq!(send("POST", begin, &session, "{}").await.status, 401);
    assert_eq!(send("POST", begin, &format!("{session}X-CSRF-Token: x\r\n"), "{}").await.status, 401);
    assert_eq!(send("POST", begin, &csrf, "{}").await.status, 401);
    assert_eq!(send("POST", begin, &format!("{session}{csrf}"), "{}").await.status, 201);
    assert_eq!(send("POST", "/api/v1/reload", &format!("{session}{csrf}"), "{}").await.status, 403);
    let both = format!("{session}{csrf}Authorization: Bearer nobody's\r\n");
    assert_eq!(send("GET", "/api/v1/connections", &both, "").await.status, 401, "a token that is sent decides alone");
    // A viewer may look, not connect; nobody else's cookie opens anything.
    let page = format!("http://{admin}/connect/crm");
    let form = async |lines: &str, body: &str| pages::visit(admin, "POST", &page, lines, body).await;
    let viewer = pages::cookie(&form(&pages::origin(&page), &format!("token={VIEWER}")).await);
    assert_eq!(send("GET", "/connect/crm", &viewer, "").await.status, 403);
    assert_eq!(send("GET", "/connect/crm", &session, "").await.status, 200);
    let broken = session.replace("keybearer_session=A", "keybearer_session=B");
    assert_eq!(send("GET", "/connect/crm", &broken, "").await.status, 401);
    for lines in ["", "Origin: null\r\n", "Origin: https://evil.test\r\n"] {
        let foreign = form(lines, &format!("token={OPERATOR}")).await;
        assert_eq!((foreign.status, foreign.header("set-cookie")), (403, None), "{lines}");
    }
    // A user whose token is another one now is signed out.
    let path = sidecar.dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&path).expect("the configuration");
    std::fs::write(&path, text.replace(OPERATOR, "another-token-of-the-operator-0123456789")).expect("a file");
    assert_eq!(call(admin, "POST", "/reload", &json!({})).await.status, 200);
    assert_eq!(send("GET", "/api/v1/connections", &session, "").await.status, 401);
    let gone = send("DELETE", "/api/v1/session", &format!("Authorization: Bearer {MANAGER}\r\n"), "").await;
    assert!(gone.status == 204 && gone.header("set-cookie").is_some_and(|cookie| cookie.contains("Max-Age=0")));
    for secret in [OPERATOR, cookie.split(';').next().expect("a pair")] {
        assert!(!sidecar.log().contains(secret));
    }
}
