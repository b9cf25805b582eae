//! Access tokens as real servers issue them: characters that no `b64token` has, and sizes up to 64 KiB.
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

/// Of Salesforce, Adobe Marketo, eBay and Asana.
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

fn shapes() -> Vec<String> {
    SHAPES.iter().map(|shape| (*shape).to_owned()).chain([large()]).collect()
}

fn field(request: &Received, name: &str) -> String {
    let fields = url::form_urlencoded::parse(&request.body);
    fields.filter(|(own, _)| own == name).map(|(_, value)| value.into_owned()).collect()
}

/// A token endpoint that gives the client `s0` the first shape, and so on.
async fn issuing(shapes: Vec<String>) -> Scripted {
    Scripted::start(move |request, _| {
        let number: usize = field(request, "client_id").trim_start_matches('s').parse().expect("a number");
        Reply::token(&shapes[number], 3600)
    })
    .await
}

/// The token in the query of a target, decoded as servers do.
fn in_query(target: &str) -> Vec<String> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let parameters = url::form_urlencoded::parse(query.as_bytes());
    parameters.filter(|(name, _)| name == "access_token").map(|(_, value)| value.into_owned()).collect()
}

#[tokio::test]
async fn every_shape_arrives_as_it_was_issued_whatever_limits_head_is() {
    let shapes = shapes();
    assert_eq!(shapes.last().map(String::len), Some(60 * 1024));
    let (tokens, plain) = (issuing(shapes.clone()).await, Scripted::upstream().await);
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
        (0..shapes.len()).map(connection).collect::<String>()
    );
    let sidecar = Sidecar::start(&config).await;
    for (number, token) in shapes.iter().enumerate() {
        // Not only the proxy's own head is small: the caller's fills its limit.
        let lines = format!("X-Filler: {}\r\n", "f".repeat(7_000));
        let ask = async |url: String| {
            let answer = raw::get_through(sidecar.proxy(), &url, &lines).await;
            assert_eq!(answer.status, 200, "{number} {url}: {}", answer.text());
            answer
        };
        ask(format!("http://plain.test/h{number}/x?a=%20b")).await;
        let arrived = plain.received().pop().expect("a request");
        assert!(arrived.values("authorization") == [format!("Bearer {token}")], "{number}");
        assert_eq!(arrived.request_line(), format!("GET /h{number}/x?a=%20b HTTP/1.1"));
        ask(format!("http://plain.test/q{number}/x?a=%20b")).await;
        let arrived = plain.received().pop().expect("a request");
        assert!(in_query(arrived.request_line().split(' ').nth(1).expect("a target")) == [token.as_str()], "{number}");
        assert!(arrived.request_line().starts_with(&format!("GET /q{number}/x?a=%20b&access_token=")), "{number}");
        assert!(arrived.values("authorization").is_empty());

        let told = ask(format!("http://api.test/h{number}/x")).await.json();
        assert!(told["headers"]["authorization"] == format!("Bearer {token}"), "{number} over HTTP/2");
        let told = ask(format!("http://api.test/q{number}/x?a=%20b")).await.json();
        let target = told["headers"][":path"].as_str().expect("a path");
        assert!(
            in_query(target) == [token.as_str()] && target.starts_with(&format!("/q{number}/x?a=%20b&")),
            "{number}"
        );
        // What an operator tries goes the same way.
        let tried = call(sidecar.admin(), "POST", &format!("/connections/s{number}/test"), &json!({})).await;
        assert_eq!((tried.status, &tried.json()["status"]), (200, &json!(200)), "{number}: {}", tried.text());
        let arrived = plain.received().pop().expect("a request");
        assert!(arrived.values("authorization") == [format!("Bearer {token}")], "{number}");
        assert!(!sidecar.log().contains(token.as_str()));
    }
    // What the caller itself sends is bound as ever.
    let lines = format!("X-Filler: {}\r\n", "f".repeat(9_000));
    let refused = raw::get_through(sidecar.proxy(), "http://plain.test/h0/x", &lines).await;
    assert_eq!((refused.status, refused.code()), (431, "head_too_large"));
}

#[tokio::test]
async fn what_no_header_or_target_can_hold_is_refused_with_the_reason() {
    let shapes = ["with space".to_owned(), "x".repeat(65_537), "x".repeat(65_536)];
    let (tokens, plain) = (issuing(shapes.to_vec()).await, Scripted::upstream().await);
    let connection = |number: usize| {
        format!(
            "- {{name: s{number}, client_id: s{number}, client_secret: s, send_credentials: body, token_url: \"http://{}/token\", \
             routes: [{{host: plain.test, path: /h{number}, upstream_tls: false}}, \
             {{host: plain.test, path: /q{number}, upstream_tls: false, inject: {{query: access_token}}}}]}}\n",
            tokens.address
        )
    };
    let connections: String = (0..shapes.len()).map(connection).collect();
    let sidecar =
        Sidecar::start(&format!("hosts: {{plain.test: \"{}\"}}\nconnections:\n{connections}", plain.address)).await;
    let ask = async |path: &str| raw::get_through(sidecar.proxy(), &format!("http://plain.test/{path}"), "").await;
    for refused in ["h0", "h1"] {
        let answer = ask(refused).await;
        assert_eq!((answer.status, answer.code()), (503, "token_unavailable"), "{refused}: {}", answer.text());
        assert!(answer.text().contains("invalid_access_token"), "{}", answer.text());
    }
    assert_eq!(ask("h2").await.status, 200);
    assert_eq!(plain.received()[0].values("authorization"), [format!("Bearer {}", shapes[2])]);
    let answer = ask("q2").await;
    assert_eq!((answer.status, answer.code()), (414, "target_too_long"));
    assert!(answer.text().contains("into a header"), "{}", answer.text());
    assert_eq!(plain.count(), 1);
}

/// A person's token of 60 KiB comes by an import, and outlasts a crash; with Redis, another replica has it.
#[tokio::test]
async fn large_tokens_are_imported_and_kept_in_both_stores() {
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
            let answer = raw::get_through(sidecar.proxy(), "http://api.test/x", &lines).await;
            assert_eq!(answer.status, 200, "{subject}: {}\n{}", answer.text(), sidecar.log());
            let arrived = upstream.received().pop().expect("a request");
            assert!(arrived.values("authorization") == [format!("Bearer {expected}")], "{subject}");
        }
    };
    for (row, store) in [("embedded", String::new()), ("redis", store(redis.port))] {
        let before = tokens.count();
        let sidecar = Sidecar::start(&config(&store)).await;
        for subject in ["large", "short"] {
            let answer = import_refresh_token(&sidecar, &format!("r-{subject}"), Some(subject)).await;
            assert_eq!(answer.status, 200, "{row} {subject}: {}", answer.text());
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
        assert_eq!(tokens.count(), before + 2, "{row}: what is kept is not asked for again");
    }
}

#[tokio::test]
async fn callers_bring_such_tokens_to_be_exchanged() {
    let upstream = Scripted::upstream().await;
    let tokens = Scripted::start(|_, before| Reply::token(&format!("exchanged-{before}"), 3600)).await;
    let config = format!(
        "hosts: {{api.test: \"{}\"}}\nconnections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \"http://{}/token\", grant: \
         token_exchange, subject_token: {{from: caller}}, routes: [{{host: api.test, upstream_tls: false}}]}}\n",
        upstream.address, tokens.address
    );
    let sidecar = Sidecar::start(&config).await;
    let ask = async |own: &str| {
        let lines = format!("Authorization: Bearer {own}\r\n");
        raw::get_through(sidecar.proxy(), "http://api.test/x", &lines).await
    };
    for (number, own) in shapes().iter().enumerate() {
        let answer = ask(own).await;
        assert_eq!(answer.status, 200, "{number}: {}", answer.text());
        let asked = tokens.received().pop().expect("a token request");
        assert!(field(&asked, "subject_token") == *own, "{number}");
        let arrived = upstream.received().pop().expect("a request");
        assert_eq!(arrived.values("authorization"), [format!("Bearer exchanged-{number}")]);
    }
    let before = tokens.count();
    for (row, own) in [("two words", "a b"), ("a tab", "a\tb"), ("not ASCII", "t\u{f6}ken"), ("none", "")] {
        let answer = ask(own).await;
        assert_eq!((answer.status, answer.code()), (400, "subject_required"), "{row}: {}", answer.text());
        assert!(answer.json()["detail"].as_str().is_some_and(|text| text.contains("visible ASCII")), "{row}");
    }
    assert_eq!((tokens.count(), upstream.received().len()), (before, shapes().len()));
}

/// A script sees the JSON of a response that is longer than its text may be, and one that changes nothing loses nothing.
#[tokio::test]
async fn a_script_in_between_loses_nothing_of_a_large_response() {
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
        let answer = raw::get_through(sidecar.proxy(), &format!("http://api.test/{number}"), "").await;
        assert_eq!(answer.status, 200, "{number}: {}\n{}", answer.text(), sidecar.log());
        let arrived: Vec<String> =
            upstream.received().iter().map(|seen| seen.values("authorization").concat()).collect();
        assert!(arrived.last() == Some(&format!("Bearer {token}")), "{number}");
    }
}
