//! What an authorization server's error responses do: to a refresh token, to the next attempt, to a person, to a fleet.
//!
//! The servers are scripted, with the responses that real ones and the gateways before them have been seen to send.
//! Not here: the table itself (`src/oauth/verdict.rs`), real servers (`renewal`, `grants`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use url::form_urlencoded;

use crate::fleet;
use crate::renewal::{MANAGER, call, hand_in};
use crate::rig::raw::{self, Answer};
use crate::rig::redis::Redis;
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::stage::until;

const PATIENCE: Duration = Duration::from_secs(15);
const PASSWORD: &str = "grant: password, username: ann, password: pass";
const PERSON: &str = "grant: authorization_code, authorization_url: \"https://as.test/authorize\"";

/// What a server says to a refresh token.
type Response = fn() -> Reply;

/// The connection `crm` for `api.test`; `top` are whole lines.
fn crm(server: &Scripted, upstream: &Scripted, top: &str, keys: &str) -> String {
    let of = [(String::from("crm"), keys.to_owned())];
    connections(server, upstream, top, &of)
}

/// Each connection has the token URL `/NAME`, and the host `NAME.test`; `crm` has `api.test`.
fn connections(server: &Scripted, upstream: &Scripted, top: &str, of: &[(String, String)]) -> String {
    let host = |name: &str| if name == "crm" { "api.test".to_owned() } else { format!("{name}.test") };
    let hosts: Vec<_> = of.iter().map(|(name, _)| format!("{}: \"{}\"", host(name), upstream.address)).collect();
    let connections = of.iter().map(|(name, keys)| {
        format!(
            "- {{name: {name}, client_id: the-client, client_secret: s3cret-of-the-client, token_url: \"http://{}/{name}\", {keys}, \
             routes: [{{host: {}, upstream_tls: false}}]}}\n",
            server.address,
            host(name)
        )
    });
    format!(
        "{top}admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nhosts: {{{}}}\nconnections:\n{}",
        hosts.join(", "),
        connections.collect::<String>()
    )
}

/// `c0`, `c1`, … with the same keys.
fn numbered(count: usize, keys: &str) -> Vec<(String, String)> {
    (0..count).map(|number| (format!("c{number}"), keys.to_owned())).collect()
}

/// The connection that asks, by its token URL's path.
fn name(request: &Received) -> &str {
    request.request_line().split(' ').nth(1).expect("a path").trim_start_matches('/')
}

fn number(request: &Received) -> usize {
    name(request)[1..].parse().expect("a connection of `numbered`")
}

fn field(request: &Received, name: &str) -> Option<String> {
    form_urlencoded::parse(&request.body).find(|(own, _)| own == name).map(|(_, value)| value.into_owned())
}

fn is_refresh(request: &Received) -> bool {
    field(request, "grant_type").as_deref() == Some("refresh_token")
}

/// What was asked for a connection: `password`, or the refresh token.
fn asked(server: &Scripted, of: &str) -> Vec<String> {
    let received = server.received();
    let own = received.iter().filter(|request| name(request) == of);
    own.map(|request| field(request, "refresh_token").unwrap_or_else(|| field(request, "grant_type").unwrap()))
        .collect()
}

fn tokens(access: &str, refresh: &str, expires_in: u64) -> Reply {
    Reply::json(200, &json!({"access_token": access, "refresh_token": refresh, "expires_in": expires_in}))
}

fn refusal(status: u16, error: &str) -> Reply {
    Reply::json(status, &json!({"error": error}))
}

fn bare(status: u16) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").into_bytes())
}

fn html(status: u16) -> Reply {
    Reply::text(status, "text/html", "<html>nginx</html>")
}

async fn get(sidecar: &Sidecar, host: &str) -> Answer {
    raw::get_through(sidecar.proxy(), &format!("http://{host}/x"), "").await
}

/// Waits until a request through `host` is served.
async fn served(sidecar: &Sidecar, host: &str) {
    let served = async {
        while get(sidecar, host).await.status != 200 {
            sleep(Duration::from_millis(30)).await;
        }
    };
    timeout(PATIENCE, served).await.unwrap_or_else(|_| panic!("{host} is not served:\n{}", sidecar.log()));
}

async fn refresh(sidecar: &Sidecar, connection: &str) -> Answer {
    call(sidecar.admin(), "POST", &format!("/connections/{connection}/refresh"), &json!({})).await
}

async fn last_attempt(sidecar: &Sidecar, connection: &str) -> Value {
    let tokens = call(sidecar.admin(), "GET", &format!("/connections/{connection}/tokens"), &json!({})).await.json();
    tokens["items"][0]["last_attempt"].clone()
}

/// Seconds from one time to another, both as the API shows them.
fn seconds_between(from: &Value, to: &Value) -> i64 {
    let seconds = |time: &Value| {
        let text = time.as_str().unwrap_or_else(|| panic!("no time: {time}"));
        let date = std::process::Command::new("date").args(["-d", text, "+%s"]).output().expect("date runs");
        String::from_utf8(date.stdout).expect("digits").trim().parse::<i64>().expect("a number")
    };
    seconds(to) - seconds(from)
}

// --- a grant that needs no person ------------------------------------------------------------------------------------

#[tokio::test]
async fn a_grant_that_needs_no_person_follows_a_refused_refresh_token_in_the_same_attempt() {
    const REFUSALS: [Response; 8] = [
        || bare(400),
        || bare(401),
        || refusal(400, "unsupported_grant_type"),
        || Reply::json(401, &json!({"error": "server_error", "error_description": "access_denied"})),
        || refusal(400, "invalid_grant"),
        || refusal(403, "unauthorized_client"),
        || refusal(400, "interaction_required"),
        || Reply::json(200, &json!({"error": "token_revoked_by_admin"})),
    ];
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|request, before| match is_refresh(request) {
        true => REFUSALS[number(request)](),
        false => tokens(&format!("t{before}"), "dead", 3600),
    })
    .await;
    let of = numbered(REFUSALS.len(), PASSWORD);
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    for (name, _) in &of {
        served(&sidecar, &format!("{name}.test")).await;
        let answer = refresh(&sidecar, name).await;
        assert_eq!(answer.status, 200, "{name}: {}\n{}", answer.text(), sidecar.log());
        assert_eq!(asked(&server, name), ["password", "dead", "password"], "{name}");
    }
    assert!(!sidecar.log().contains("s3cret-of-the-client"));
}

#[tokio::test]
async fn a_refresh_token_outlives_a_refused_client_a_busy_server_and_a_broken_one() {
    const FAILURES: [Response; 7] = [
        || refusal(401, "invalid_client"),
        || bare(429),
        || refusal(429, "invalid_grant"),
        || refusal(500, "invalid_grant"),
        || bare(503),
        || html(403),
        || html(404),
    ];
    let upstream = Scripted::upstream().await;
    let failed = Mutex::new([false; FAILURES.len()]);
    let server = Scripted::start(move |request, before| {
        let number = number(request);
        let first = is_refresh(request) && !std::mem::replace(&mut failed.lock().unwrap()[number], true);
        if first { FAILURES[number]() } else { tokens(&format!("t{before}"), "alive", 4) }
    })
    .await;
    // `failed` is true after the first refresh alone: the first grant of each is no refresh.
    let of = numbered(FAILURES.len(), &format!("{PASSWORD}, usable_margin: 100ms"));
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    // Whatever the verdict, the next attempt comes before the token's end, with the same refresh token.
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        for (name, _) in &of {
            let answer = get(&sidecar, &format!("{name}.test")).await;
            assert_eq!(answer.status, 200, "{name}: {}\n{}", answer.text(), sidecar.log());
        }
        sleep(Duration::from_millis(50)).await;
    }
    for (name, _) in &of {
        let asked = asked(&server, name);
        assert!(asked.len() >= 3, "{name}: {asked:?}");
        assert_eq!(asked[0], "password", "{name}");
        assert!(asked[1..].iter().all(|token| token == "alive"), "{name}: {asked:?}");
    }
}

#[tokio::test]
async fn a_refused_refresh_token_strands_nobody_across_a_restart() {
    let upstream = Scripted::upstream().await;
    let down = Arc::new(AtomicBool::new(false));
    let is_down = down.clone();
    let server = Scripted::start(move |request, before| match (is_refresh(request), is_down.load(Ordering::SeqCst)) {
        (true, _) => bare(400),
        (false, true) => bare(503),
        (false, false) => tokens(&format!("t{before}"), "dead", 1),
    })
    .await;
    let sidecar = Sidecar::start(&crm(&server, &upstream, "", PASSWORD)).await;
    served(&sidecar, "api.test").await;
    // From here on neither works, until another program starts over what this one has left.
    down.store(true, Ordering::SeqCst);
    until("the refresh token is refused", || asked(&server, "crm").iter().any(|token| token == "dead")).await;
    let (dir, addresses, _) = sidecar.crash().await;
    // Not from the store: the token is over.
    sleep(Duration::from_secs(1)).await;
    down.store(false, Ordering::SeqCst);
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    let own_grant = || asked(&server, "crm").last().is_some_and(|last| last == "password");
    until("its own grant follows", own_grant).await;
    served(&sidecar, "api.test").await;
}

// --- the next attempt ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_stray_response_at_the_first_request_is_retried_within_seconds() {
    const STRAY: [Response; 8] = [
        || html(404),
        || html(403),
        || html(400),
        || bare(400),
        || bare(401),
        || html(405),
        || Reply::Bytes(b"HTTP/1.1 302 X\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n".to_vec()),
        || Reply::json(403, &json!({"status": 403, "error": "Forbidden", "path": "/oauth/token"})),
    ];
    let upstream = Scripted::upstream().await;
    let strayed = Mutex::new([false; STRAY.len()]);
    let server = Scripted::start(move |request, _| {
        let number = number(request);
        match std::mem::replace(&mut strayed.lock().unwrap()[number], true) {
            false => STRAY[number](),
            true => Reply::token("t", 3600),
        }
    })
    .await;
    let of = numbered(STRAY.len(), "comments: stray");
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    let begun = Instant::now();
    let hosts: Vec<_> = of.iter().map(|(name, _)| format!("{name}.test")).collect();
    for answer in join_all(hosts.iter().map(|host| get(&sidecar, host))).await {
        // Some may have been asked for again already.
        if answer.status == 200 {
            continue;
        }
        assert_eq!((answer.status, answer.code()), (503, "token_unavailable"), "{}", answer.text());
        assert_eq!(answer.json()["action"], "retry_later");
        let seconds: u64 = answer.header("retry-after").expect("Retry-After").parse().expect("seconds");
        assert!((1..=3).contains(&seconds), "{seconds}");
    }
    for host in &hosts {
        served(&sidecar, host).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_permanent_verdict_does_not_outlast_the_present_token() {
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|_, before| match before {
        1 => refusal(400, "invalid_scope"),
        _ => Reply::token(&format!("t{before}"), 4),
    })
    .await;
    let sidecar = Sidecar::start(&crm(&server, &upstream, "", "comments: none")).await;
    until("the refresh is refused", || server.count() >= 2).await;
    let attempt = async {
        loop {
            let attempt = last_attempt(&sidecar, "crm").await;
            if attempt["error"] == "invalid_scope" {
                return attempt;
            }
        }
    };
    let attempt = timeout(PATIENCE, attempt).await.expect("it is shown");
    assert!(seconds_between(&attempt["at"], &attempt["next_at"]) <= 3, "{attempt}");
    until("it is asked again", || server.count() >= 3).await;
    served(&sidecar, "api.test").await;
}

#[tokio::test]
async fn a_person_is_held_up_by_no_verdict() {
    let upstream = Scripted::upstream().await;
    let response = Arc::new(Mutex::new(None::<Response>));
    let now = response.clone();
    let server = Scripted::start(move |_, before| match &*now.lock().unwrap() {
        Some(response) => response(),
        None => Reply::token(&format!("t{before}"), 3600),
    })
    .await;
    const BUSY: Response = || Reply::Bytes(b"HTTP/1.1 503 X\r\nRetry-After: 300\r\nContent-Length: 0\r\n\r\n".to_vec());
    for (failure, status) in [((|| refusal(401, "invalid_client")) as Response, 424), (BUSY, 503)] {
        *response.lock().unwrap() = Some(failure);
        let sidecar = Sidecar::start(&crm(&server, &upstream, "", "comments: none")).await;
        assert_eq!(get(&sidecar, "api.test").await.status, status);
        for _ in 0..3 {
            // Each asks the server anew, although nothing has changed.
            let before = server.count();
            assert_eq!(refresh(&sidecar, "crm").await.status, status);
            assert_eq!(server.count(), before + 1, "{}", sidecar.log());
        }
        let before = server.count();
        assert_eq!(get(&sidecar, "api.test").await.status, status);
        assert_eq!(server.count(), before, "a request asks nobody");
        let reloaded = call(sidecar.admin(), "POST", "/reload", &json!({})).await;
        assert_eq!((reloaded.status, &reloaded.json()["outcome"]), (200, &json!("unchanged")));
        until("a reload asks", || server.count() == before + 1).await;
        *response.lock().unwrap() = None;
        sidecar.signal("HUP");
        served(&sidecar, "api.test").await;
    }
}

// --- in doubt --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_gateways_5xx_to_a_refresh_leaves_it_in_doubt_and_other_statuses_do_not() {
    const FAILURES: [(bool, Response); 10] = [
        (true, || html(500)),
        (true, || html(502)),
        (true, || html(504)),
        (true, || html(524)),
        (true, || refusal(500, "server_error")),
        (true, || Reply::Close),
        (false, || html(503)),
        (false, || bare(429)),
        (false, || html(404)),
        (false, || refusal(503, "temporarily_unavailable")),
    ];
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|request, _| match field(request, "refresh_token").as_deref() {
        Some("given") => tokens("a0", "r0", 3600),
        _ => FAILURES[number(request)].1(),
    })
    .await;
    let of = numbered(FAILURES.len(), PERSON);
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    for ((name, _), (in_doubt, _)) in of.iter().zip(FAILURES) {
        let given = json!({"refresh_token": "given"});
        let answer = call(sidecar.admin(), "PUT", &format!("/connections/{name}/tokens"), &given).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let answer = refresh(&sidecar, name).await;
        assert_eq!(answer.status, 503, "{name}: {}", answer.text());
        let attempt = last_attempt(&sidecar, name).await;
        let pause = seconds_between(&attempt["at"], &attempt["next_at"]);
        let expected = if in_doubt { 3500..=3600 } else { 2..=4 };
        assert!(expected.contains(&pause), "{name}: {attempt}");
        assert_eq!(get(&sidecar, &format!("{name}.test")).await.status, 200, "the token is still good");
    }
}

#[tokio::test]
async fn a_discovery_that_fails_before_a_refresh_leaves_nothing_in_doubt() {
    let upstream = Scripted::upstream().await;
    let address = Arc::new(Mutex::new(String::new()));
    let own = address.clone();
    let server = Scripted::start(move |request, _| match request.request_line().contains(".well-known") {
        true if own.lock().unwrap().is_empty() => html(502),
        true => {
            let issuer = own.lock().unwrap().clone();
            Reply::json(200, &json!({"issuer": issuer, "token_endpoint": format!("{issuer}/token")}))
        }
        false => tokens("a0", "r0", 3600),
    })
    .await;
    let issuer = format!("http://{}", server.address);
    *address.lock().unwrap() = issuer.clone();
    let config = crm(&server, &upstream, "", PERSON);
    let config = config.replace(&format!("token_url: \"{issuer}/crm\""), &format!("issuer: \"{issuer}\""));
    let sidecar = Sidecar::start(&config).await;
    assert_eq!(hand_in(&sidecar, "given", None).await.status, 200, "{}", sidecar.log());
    // A restart forgets what was discovered.
    address.lock().unwrap().clear();
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    let answer = refresh(&sidecar, "crm").await;
    assert_eq!((answer.status, &answer.json()["error"]), (503, &json!("discovery_failed")), "{}", answer.text());
    let attempt = last_attempt(&sidecar, "crm").await;
    assert!((2..=4).contains(&seconds_between(&attempt["at"], &attempt["next_at"])), "{attempt}");
    assert!(attempt["description"].as_str().is_some_and(|text| text.contains("http_502")), "{attempt}");
}

// --- connect again ---------------------------------------------------------------------------------------------------

/// A person's connections, one for each response to a refresh; what a forced refresh says.
async fn refreshed(responses: &'static [Response], keys: &str) -> (Sidecar, Vec<Answer>, Scripted) {
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|request, _| match field(request, "refresh_token").as_deref() {
        Some("given") => tokens("a0", "r0-of-the-person", 3600),
        _ => responses[number(request)](),
    })
    .await;
    let of = numbered(responses.len(), &format!("{PERSON}, {keys}"));
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    let mut answers = Vec::new();
    for (name, _) in &of {
        let given = json!({"refresh_token": "given"});
        let answer = call(sidecar.admin(), "PUT", &format!("/connections/{name}/tokens"), &given).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        answers.push(refresh(&sidecar, name).await);
    }
    (sidecar, answers, server)
}

#[tokio::test]
async fn a_person_is_asked_to_connect_again_after_the_signs_of_real_servers() {
    const SIGNS: [Response; 5] = [
        || refusal(400, "invalid_grant"),
        || refusal(400, "interaction_required"),
        || refusal(400, "login_required"),
        || refusal(400, "consent_required"),
        || refusal(400, "bad_refresh_token"),
    ];
    let (sidecar, answers, server) = refreshed(&SIGNS, "comments: none").await;
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (424, &json!("refresh_token_expired")),
            "{}",
            answer.text()
        );
        assert_eq!(refresh(&sidecar, &format!("c{number}")).await.status, 424);
        assert_eq!(asked(&server, &format!("c{number}")), ["given", "r0-of-the-person"], "it is never sent again");
    }
}

#[tokio::test]
async fn other_refusals_leave_a_persons_refresh_token_alone() {
    const OTHERS: [(Response, u16, &str); 5] = [
        (|| refusal(403, "unauthorized_client"), 424, "token_refused"),
        (|| refusal(400, "invalid_scope"), 424, "token_refused"),
        (|| refusal(401, "invalid_client"), 424, "token_refused"),
        (|| bare(401), 503, "token_unavailable"),
        (|| html(400), 503, "token_unavailable"),
    ];
    const RESPONSES: [Response; 5] = [OTHERS[0].0, OTHERS[1].0, OTHERS[2].0, OTHERS[3].0, OTHERS[4].0];
    let (sidecar, answers, server) = refreshed(&RESPONSES, "comments: none").await;
    for (number, (answer, (_, status, code))) in answers.iter().zip(OTHERS).enumerate() {
        let name = format!("c{number}");
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{name}: {}", answer.text());
        assert_eq!(refresh(&sidecar, &name).await.json()["code"], code, "{name}");
        assert_eq!(asked(&server, &name), ["given", "r0-of-the-person", "r0-of-the-person"], "{name}");
    }
}

#[tokio::test]
async fn refresh_refused_names_the_signs_of_a_server_before_anything_is_masked() {
    const SIGNS: [Response; 5] = [
        // Atlassian's, with the refresh token in the text, which drops the description from every message.
        || {
            let description = "Refresh_Token is invalid: r0-of-the-person";
            Reply::json(403, &json!({"error": "unauthorized_client", "error_description": description}))
        },
        // The code repeats the client's id, so that no message shows it.
        || refusal(400, "dead_for_the-client"),
        || html(418),
        || Reply::json(200, &json!({"error": 190})),
        // Not the sign: another description.
        || Reply::json(403, &json!({"error": "unauthorized_client", "error_description": "not for you"})),
    ];
    let keys = "token_response: {refresh_refused: [\
                {status: 403, error: unauthorized_client, description_contains: refresh_token}, \
                {error: dead_for_the-client}, {status: 418}, {error: 190}]}";
    let (sidecar, answers, _server) = refreshed(&SIGNS, keys).await;
    let codes: Vec<_> = answers.iter().map(|answer| answer.json()["code"].clone()).collect();
    let again = "refresh_token_expired";
    assert_eq!(codes, [again, again, again, again, "token_refused"], "{}", sidecar.log());
    assert!(!sidecar.log().contains("r0-of-the-person"));
}

#[tokio::test]
async fn a_second_empty_400_in_a_row_asks_a_person_to_connect_again() {
    let upstream = Scripted::upstream().await;
    let responses: Arc<Mutex<Vec<Response>>> = Arc::default();
    let next = responses.clone();
    let server = Scripted::start(move |request, _| match field(request, "refresh_token").as_deref() {
        Some("given") => tokens("a0", "r0", 3600),
        _ => next.lock().unwrap().pop().map_or_else(|| bare(400), |response| response()),
    })
    .await;
    let sidecar = Sidecar::start(&crm(&server, &upstream, "", PERSON)).await;
    assert_eq!(hand_in(&sidecar, "given", None).await.status, 200);
    // Not in a row: a gateway's page lies between them.
    responses.lock().unwrap().extend([(|| bare(400)) as Response, || html(404), || bare(400)]);
    for _ in 0..3 {
        assert_eq!(refresh(&sidecar, "crm").await.status, 503, "{}", sidecar.log());
    }
    let answer = refresh(&sidecar, "crm").await;
    assert_eq!((answer.status, &answer.json()["code"]), (424, &json!("refresh_token_expired")), "{}", answer.text());
    assert_eq!(asked(&server, "crm").len(), 5);
}

// --- an upstream that rejects every token -----------------------------------------------------------------------------

#[tokio::test]
async fn the_pause_between_forced_refreshes_grows_until_the_upstream_accepts_a_token() {
    let accepts = Arc::new(AtomicBool::new(false));
    let now = accepts.clone();
    let upstream = Scripted::start(move |request, _| {
        let accepted = request.values("host")[0].starts_with("c0") && now.load(Ordering::SeqCst);
        if accepted { Reply::ok() } else { Reply::text(401, "text/plain", "go away") }
    })
    .await;
    let server = Scripted::tokens(3600).await;
    let of = numbered(2, "comments: none");
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    let forced = |name: &str| asked(&server, name).len() - 1;
    let reject = async || {
        for host in ["c0.test", "c1.test"] {
            assert_eq!(get(&sidecar, host).await.status, 401);
        }
    };
    reject().await;
    assert_eq!([forced("c0"), forced("c1")], [1, 1]);
    let second = Instant::now() + Duration::from_secs(15);
    while [forced("c0"), forced("c1")] != [2, 2] {
        assert!(Instant::now() < second, "{}", sidecar.log());
        reject().await;
        sleep(Duration::from_millis(100)).await;
    }
    let forced_at = Instant::now();
    // One request with the current token is accepted, at one of the two.
    accepts.store(true, Ordering::SeqCst);
    assert_eq!(get(&sidecar, "c0.test").await.status, 200);
    accepts.store(false, Ordering::SeqCst);
    while forced("c0") == 2 {
        assert!(forced_at.elapsed() < Duration::from_secs(15), "{}", sidecar.log());
        reject().await;
        sleep(Duration::from_millis(100)).await;
    }
    assert!(forced_at.elapsed() > Duration::from_secs(9), "{:?}", forced_at.elapsed());
    assert_eq!(forced("c1"), 2, "twenty seconds for the one whose tokens are all rejected");
}

// --- a fleet ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_verdict_that_one_replica_has_holds_up_no_person_at_another_and_outlasts_no_token() {
    let response = Arc::new(Mutex::new(None::<Response>));
    let now = response.clone();
    let server = Scripted::start(move |_, before| match &*now.lock().unwrap() {
        Some(response) => response(),
        None => Reply::token(&format!("t{before}"), 5),
    })
    .await;
    let (upstream, redis) = (Scripted::upstream().await, Redis::start().await);
    let config = crm(&server, &upstream, &fleet::store(redis.port), "comments: none");
    let (one, other) = (Sidecar::start(&config).await, Sidecar::start(&config).await);
    let both = [&one, &other];
    for replica in both {
        served(replica, "api.test").await;
    }
    // At the refresh one is told for both; at the token's end the server is asked again.
    *response.lock().unwrap() = Some(|| refusal(400, "invalid_scope"));
    for replica in both {
        replica.logged("\"error\":\"invalid_scope\"").await;
    }
    *response.lock().unwrap() = None;
    let before = server.count();
    until("it is asked again at the token's end", || server.count() > before).await;
    for replica in both {
        served(replica, "api.test").await;
    }
    // Without a token, a verdict that lasts and a long pause.
    const BUSY: Response = || Reply::Bytes(b"HTTP/1.1 503 X\r\nRetry-After: 300\r\nContent-Length: 0\r\n\r\n".to_vec());
    for (failure, status) in [((|| refusal(401, "invalid_client")) as Response, 424), (BUSY, 503)] {
        *response.lock().unwrap() = Some(failure);
        for replica in both {
            let over = async { while get(replica, "api.test").await.status != status {} };
            timeout(PATIENCE, over).await.unwrap_or_else(|_| panic!("{status}: {}", replica.log()));
        }
        for replica in both {
            let before = server.count();
            assert_eq!(refresh(replica, "crm").await.status, status);
            assert_eq!(server.count(), before + 1, "{}", replica.log());
        }
        let before = server.count();
        other.signal("HUP");
        until("a reload asks", || server.count() == before + 1).await;
        *response.lock().unwrap() = None;
        assert_eq!(refresh(&other, "crm").await.status, 200, "{}", other.log());
        for replica in both {
            served(replica, "api.test").await;
        }
    }
}

#[tokio::test]
async fn replicas_whose_upstream_rejects_every_token_force_one_refresh_in_ten_seconds_together() {
    let server = Scripted::tokens(3600).await;
    let upstream = Scripted::start(|_, _| Reply::text(401, "text/plain", "go away")).await;
    let redis = Redis::start().await;
    let config = crm(&server, &upstream, &fleet::store(redis.port), "comments: none");
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Sidecar::start(&config).await);
    }
    assert_eq!(server.count(), 1);
    assert_eq!(get(&replicas[0], "api.test").await.status, 401);
    assert_eq!(server.count(), 2);
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        for replica in &replicas {
            assert_eq!(get(replica, "api.test").await.status, 401);
        }
    }
    assert_eq!(server.count(), 2, "{}", replicas[1].log());
    // What is due and what a person asks for go on.
    assert_eq!(refresh(&replicas[1], "crm").await.status, 200);
    assert_eq!(server.count(), 3);
}

#[tokio::test]
async fn a_refused_refresh_token_is_followed_by_the_own_grant_while_redis_is_down() {
    let refuses = Arc::new(AtomicBool::new(false));
    let now = refuses.clone();
    let server = Scripted::start(move |request, before| match is_refresh(request) && now.load(Ordering::SeqCst) {
        true => bare(400),
        false => tokens(&format!("t{before}"), "stays-the-same", 3),
    })
    .await;
    let (upstream, mut redis) = (Scripted::upstream().await, Redis::start().await);
    let sidecar = Sidecar::start(&crm(&server, &upstream, &fleet::store(redis.port), PASSWORD)).await;
    // Only a refresh token that has proven not to rotate is used without Redis.
    until("it was refreshed twice", || server.count() >= 3).await;
    redis.stop().await;
    refuses.store(true, Ordering::SeqCst);
    let passwords = || asked(&server, "crm").iter().filter(|asked| *asked == "password").count();
    until("its own grant follows", || passwords() == 2).await;
    served(&sidecar, "api.test").await;
    sidecar.logged("the authorization server refused the refresh token").await;
}
