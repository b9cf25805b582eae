//! Access tokens as real servers issue them: characters outside the `b64token` set, and sizes up to 64 KiB.
//!
//! Not here: the other members of a token response (`token::endpoint`).

use serde_json::json;

use crate::rig::fleet::store;
use crate::rig::manager::{MANAGER, call, import_refresh_token};
use crate::rig::peers::{Http2Server, Peers};
use crate::rig::raw;
use crate::rig::redis::Redis;
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

/// Formats of Salesforce, Adobe Marketo, eBay and Asana, and unusual visible ASCII characters.
const SHAPES: [&str; 5] = [
    "00D5g000004abcd!AQ8AQNb9.x_y~z0",
    "cdf01657-110d-4155-99a7-f986b2ff13a0:int",
    "v^1.1#i^1#f^0#p^3#r^0#I^3#t^H4sIAAAA/+A=",
    "1/1204567890:34abcdef",
    "\"'(),;<>?@[\\]`{|}&%+$*",
];

/// A JWT with many roles, as Keycloak issues it.
fn large() -> String {
    let mut text = "eyJhbGciOiJSUzI1NiJ9.".to_owned();
    text.extend(
        (0..).map(|at: u32| char::from(b'a' + u8::try_from(at.wrapping_mul(7) % 26).unwrap())).take(61_440 - 22),
    );
    text + "."
}

fn formats() -> Vec<String> {
    SHAPES.iter().map(|shape| (*shape).to_owned()).chain([large()]).collect()
}

fn field(request: &Received, name: &str) -> String {
    let fields = url::form_urlencoded::parse(&request.body);
    fields.filter(|(own, _)| own == name).map(|(_, value)| value.into_owned()).collect()
}

/// A token endpoint that issues the first token to the client `s0`, the second to `s1`, and so on.
async fn issuing(formats: Vec<String>) -> Scripted {
    Scripted::start(move |request, _| {
        let number: usize = field(request, "client_id").trim_start_matches('s').parse().expect("a number");
        Reply::token(&formats[number], 3600)
    })
    .await
}

/// The tokens in the query of a target, decoded.
fn in_query(target: &str) -> Vec<String> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let parameters = url::form_urlencoded::parse(query.as_bytes());
    parameters.filter(|(name, _)| name == "access_token").map(|(_, value)| value.into_owned()).collect()
}

#[tokio::test]
async fn every_token_arrives_unchanged_regardless_of_limits_head() {
    let formats = formats();
    assert_eq!(formats.last().map(String::len), Some(60 * 1024));
    let (tokens, plain) = (issuing(formats.clone()).await, Scripted::upstream().await);
    let server = Http2Server::start(json!({})).await;
    let connection = |number: usize| {
        format!(
            "- {{name: s{number}, client_id: s{number}, client_secret: s, send_credentials: body, token_url: \"http://{}/token\", \
             routes: [{{host: plain.test, path: /h{number}, upstream_tls: false}}, \
             {{host: plain.test, path: /q{number}, upstream_tls: false, inject: {{query: access_token}}}}, \
             {{host: api.test, path: /h{number}}}, {{host: api.test, path: /q{number}, inject: {{query: access_token}}}}]}}\n",
            tokens.address
        )
    };
    let config = format!(
        "limits: {{head: 8KiB}}\nhosts: {{plain.test: \"{}\", api.test: \"127.0.0.1:{}\"}}\ntrust: [{}]\nadmin: {{users: [{{name: ops, \
         role: manager, token: {MANAGER}}}]}}\nconnections:\n{}",
        plain.address,
        server.port(),
        Peers::certs().ca.display(),
        (0..formats.len()).map(connection).collect::<String>()
    );
    let sidecar = Sidecar::start(&config).await;
    for (number, token) in formats.iter().enumerate() {
        // The caller's head alone nearly fills `limits.head`.
        let lines = format!("X-Filler: {}\r\n", "f".repeat(7_000));
        let send = async |url: String| {
            let response = raw::get_through(sidecar.proxy(), &url, &lines).await;
            assert_eq!(response.status, 200, "{number} {url}: {}", response.text());
            response
        };
        send(format!("http://plain.test/h{number}/x?a=%20b")).await;
        let arrived = plain.received().pop().expect("a request");
        assert!(arrived.values("authorization") == [format!("Bearer {token}")], "{number}");
        assert_eq!(arrived.request_line(), format!("GET /h{number}/x?a=%20b HTTP/1.1"));
        send(format!("http://plain.test/q{number}/x?a=%20b")).await;
        let arrived = plain.received().pop().expect("a request");
        assert!(in_query(arrived.request_line().split(' ').nth(1).expect("a target")) == [token.as_str()], "{number}");
        assert!(arrived.request_line().starts_with(&format!("GET /q{number}/x?a=%20b&access_token=")), "{number}");
        assert!(arrived.values("authorization").is_empty());

        let echoed = send(format!("http://api.test/h{number}/x")).await.json();
        assert!(echoed["headers"]["authorization"] == format!("Bearer {token}"), "{number} over HTTP/2");
        let echoed = send(format!("http://api.test/q{number}/x?a=%20b")).await.json();
        let target = echoed["headers"][":path"].as_str().expect("a path");
        assert!(
            in_query(target) == [token.as_str()] && target.starts_with(&format!("/q{number}/x?a=%20b&")),
            "{number}"
        );
        // An operator's test request sends the same.
        let tried = call(sidecar.admin(), "POST", &format!("/connections/s{number}/test"), &json!({})).await;
        assert_eq!((tried.status, &tried.json()["status"]), (200, &json!(200)), "{number}: {}", tried.text());
        let arrived = plain.received().pop().expect("a request");
        assert!(arrived.values("authorization") == [format!("Bearer {token}")], "{number}");
        assert!(!sidecar.log().contains(token.as_str()));
    }
    // `limits.head` still applies to what the caller sends.
    let lines = format!("X-Filler: {}\r\n", "f".repeat(9_000));
    let refused = raw::get_through(sidecar.proxy(), "http://plain.test/h0/x", &lines).await;
    assert_eq!((refused.status, refused.code()), (431, "head_too_large"));
}

#[tokio::test]
async fn a_token_that_does_not_fit_is_refused_with_the_reason() {
    let formats = ["with space".to_owned(), "x".repeat(65_537), "x".repeat(65_536)];
    let (tokens, plain) = (issuing(formats.to_vec()).await, Scripted::upstream().await);
    let connection = |number: usize| {
        format!(
            "- {{name: s{number}, client_id: s{number}, client_secret: s, send_credentials: body, token_url: \"http://{}/token\", \
             routes: [{{host: plain.test, path: /h{number}, upstream_tls: false}}, \
             {{host: plain.test, path: /q{number}, upstream_tls: false, inject: {{query: access_token}}}}]}}\n",
            tokens.address
        )
    };
    let connections: String = (0..formats.len()).map(connection).collect();
    let sidecar =
        Sidecar::start(&format!("hosts: {{plain.test: \"{}\"}}\nconnections:\n{connections}", plain.address)).await;
    let send = async |path: &str| raw::get_through(sidecar.proxy(), &format!("http://plain.test/{path}"), "").await;
    for refused in ["h0", "h1"] {
        let response = send(refused).await;
        assert_eq!((response.status, response.code()), (503, "token_unavailable"), "{refused}: {}", response.text());
        assert!(response.text().contains("invalid_access_token"), "{}", response.text());
    }
    assert_eq!(send("h2").await.status, 200);
    assert_eq!(plain.received()[0].values("authorization"), [format!("Bearer {}", formats[2])]);
    let response = send("q2").await;
    assert_eq!((response.status, response.code()), (414, "target_too_long"));
    assert!(response.text().contains("into a header"), "{}", response.text());
    assert_eq!(plain.count(), 1);
}

/// An imported token of 60 KiB survives a crash; with Redis, another replica can use it.
#[tokio::test]
async fn large_tokens_are_imported_and_stored_in_both_stores() {
    let (token, shape) = (large(), SHAPES[0]);
    let issued = token.clone();
    let tokens = Scripted::start(move |request, _| {
        let access = if field(request, "refresh_token") == "r-large" { &issued } else { shape };
        Reply::json(200, &json!({"access_token": access, "expires_in": 3600, "refresh_token": "next"}))
    })
    .await;
    let upstream = Scripted::upstream().await;
    let redis = Redis::start().await;
    let config = |store: &str| {
        format!(
            "{store}admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nhosts: {{api.test: \"{}\"}}\nconnections:\n\
             - {{name: crm, client_id: a, client_secret: b, grant: authorization_code, tokens: per_subject, token_url: \"http://{}/token\", \
             routes: [{{host: api.test, upstream_tls: false}}]}}\n",
            upstream.address, tokens.address
        )
    };
    let arrives = async |sidecar: &Sidecar| {
        for (subject, expected) in [("large", token.as_str()), ("short", shape)] {
            let lines = format!("Keybearer-Subject: {subject}\r\n");
            let response = raw::get_through(sidecar.proxy(), "http://api.test/x", &lines).await;
            assert_eq!(response.status, 200, "{subject}: {}\n{}", response.text(), sidecar.log());
            let arrived = upstream.received().pop().expect("a request");
            assert!(arrived.values("authorization") == [format!("Bearer {expected}")], "{subject}");
        }
    };
    for (row, store) in [("embedded", String::new()), ("redis", store(redis.port))] {
        let before = tokens.count();
        let sidecar = Sidecar::start(&config(&store)).await;
        for subject in ["large", "short"] {
            let response = import_refresh_token(&sidecar, &format!("r-{subject}"), Some(subject)).await;
            assert_eq!(response.status, 200, "{row} {subject}: {}", response.text());
        }
        arrives(&sidecar).await;
        let other = match row {
            "redis" => Sidecar::start(&config(&store)).await,
            _ => {
                let (dir, addresses, _) = sidecar.crash().await;
                Sidecar::start_over(dir, addresses, &[]).await
            }
        };
        arrives(&other).await;
        assert_eq!(tokens.count(), before + 2, "{row}: stored tokens are not requested again");
    }
}

#[tokio::test]
async fn unusual_and_large_caller_tokens_can_be_exchanged() {
    let upstream = Scripted::upstream().await;
    let tokens = Scripted::start(|_, before| Reply::token(&format!("exchanged-{before}"), 3600)).await;
    let config = format!(
        "hosts: {{api.test: \"{}\"}}\nconnections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \"http://{}/token\", grant: \
         token_exchange, subject_token: {{from: caller}}, routes: [{{host: api.test, upstream_tls: false}}]}}\n",
        upstream.address, tokens.address
    );
    let sidecar = Sidecar::start(&config).await;
    let send = async |own: &str| {
        let lines = format!("Authorization: Bearer {own}\r\n");
        raw::get_through(sidecar.proxy(), "http://api.test/x", &lines).await
    };
    for (number, own) in formats().iter().enumerate() {
        let response = send(own).await;
        assert_eq!(response.status, 200, "{number}: {}", response.text());
        let sent = tokens.received().pop().expect("a token request");
        assert!(field(&sent, "subject_token") == *own, "{number}");
        let arrived = upstream.received().pop().expect("a request");
        assert_eq!(arrived.values("authorization"), [format!("Bearer exchanged-{number}")]);
    }
    let before = tokens.count();
    for (row, own) in [("two words", "a b"), ("a tab", "a\tb"), ("not ASCII", "t\u{f6}ken"), ("none", "")] {
        let response = send(own).await;
        assert_eq!((response.status, response.code()), (400, "subject_required"), "{row}: {}", response.text());
        assert!(response.json()["detail"].as_str().is_some_and(|text| text.contains("visible ASCII")), "{row}");
    }
    assert_eq!((tokens.count(), upstream.received().len()), (before, formats().len()));
}

/// A script gets the JSON of a response beyond the limit of `response.text`, and a script that changes nothing loses
/// nothing.
#[tokio::test]
async fn a_script_passes_a_large_response_unchanged() {
    let token = large();
    let issued = token.clone();
    let tokens = Scripted::start(move |_, _| {
        let id_token = "i".repeat(20_000);
        Reply::json(200, &json!({"id_token": id_token, "access_token": issued, "expires_in": 3600}))
    })
    .await;
    let upstream = Scripted::upstream().await;
    let scripts = [
        "fn token_request(request, ctx) { request }",
        "fn token_response(response, ctx) { response }",
        "fn token_response(response, ctx) { #{access_token: response.json.access_token, expires_in: 3600} }",
    ];
    let connection = |(number, script): (usize, &&str)| {
        format!(
            "- {{name: s{number}, client_id: a, client_secret: b, token_url: \"http://{}/token\", script: {{source: \"{script}\"}}, routes: \
             [{{host: api.test, path: /{number}, upstream_tls: false}}]}}\n",
            tokens.address
        )
    };
    let connections: String = scripts.iter().enumerate().map(connection).collect();
    let sidecar =
        Sidecar::start(&format!("hosts: {{api.test: \"{}\"}}\nconnections:\n{connections}", upstream.address)).await;
    for number in 0..scripts.len() {
        let response = raw::get_through(sidecar.proxy(), &format!("http://api.test/{number}"), "").await;
        assert_eq!(response.status, 200, "{number}: {}\n{}", response.text(), sidecar.log());
        let arrived: Vec<String> =
            upstream.received().iter().map(|request| request.values("authorization").concat()).collect();
        assert!(arrived.last() == Some(&format!("Bearer {token}")), "{number}");
    }
}
