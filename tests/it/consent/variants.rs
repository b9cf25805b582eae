//! Variants of consent: no PKCE or `plain`, pushed requests, no client secret, device codes.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{DEVICE, Fixture, OFFLINE, endpoints, issuer, text};
use crate::rig::browser::Page;
use crate::rig::peers::AuthorizationServer;

const TIMEOUT: Duration = Duration::from_secs(25);

async fn op(client: &'static str, options: Value) -> Fixture {
    let server = AuthorizationServer::op(options).await;
    let keys = format!("{}, scopes: [{OFFLINE}]", issuer(&server));
    Fixture::with(server, client, &keys, "").await
}

async fn al(client: &'static str, keys: &str) -> Fixture {
    let server = AuthorizationServer::al(json!({"lifetime": 600})).await;
    let keys = format!("issuer: \"{}\", scopes: [api.read]{keys}", server.issuer());
    Fixture::with(server, client, &keys, "").await
}

async fn connected(fixture: &Fixture) -> Page {
    let link = fixture.link("").await;
    let page = fixture.connect(fixture.browser.tab("a", "1"), &link, "ann").await;
    fixture.check_pages(&page);
    assert_eq!(fixture.account("").await, "ann");
    assert_eq!(fixture.exchanges().await, 1);
    fixture.check_no_secret_shown(&page).await;
    page
}

#[tokio::test]
async fn the_configuration_selects_the_pkce_method() {
    let cases = [
        ("p-web", ", grant: authorization_code", Some("S256")),
        ("p-plain", ", grant: authorization_code, pkce: {method: plain}", Some("plain")),
        ("p-none", ", grant: authorization_code, pkce: {required: false, method: none}", None),
    ];
    for (client, keys, method) in cases {
        let fixture = al(client, keys).await;
        let page = connected(&fixture).await;
        let callback = page.documents().into_iter().find(|one| text(&one["url"]).contains("/oauth/callback?"));
        assert!(!text(&callback.expect("a callback")["url"]).contains("iss="), "this server sends no iss");
        let request = &fixture.server.authorizations(client).await[0];
        let form = &fixture.server.forms(client).await[0];
        assert_eq!(request["code_challenge_method"].as_str(), method, "{request}");
        assert_eq!(
            (request["code_challenge"].is_string(), form["code_verifier"].is_string()),
            (method.is_some(), method.is_some())
        );
        if method == Some("plain") {
            assert_eq!(request["code_challenge"], form["code_verifier"]);
        }
    }
}

/// RFC 6749 §3.1: oidc-provider refuses a request that has a parameter twice.
#[tokio::test]
async fn each_parameter_is_sent_once_even_if_the_url_has_it() {
    let server = AuthorizationServer::op(json!({"lifetime": 600})).await;
    let query = "?prompt=login&state=mine&client_id=other&scope=email&ui_locales=de&code_challenge=x";
    let urls = endpoints(&server, query);
    let keys = format!("{urls}, grant: authorization_code, authorize_params: {{prompt: consent}}, scopes: [{OFFLINE}]");
    let fixture = Fixture::with(server, "p-web", &keys, "").await;
    connected(&fixture).await;
    let request = &fixture.server.authorizations("p-web").await[0];
    assert_eq!((&request["prompt"], &request["ui_locales"]), (&json!("consent"), &json!("de")), "{request}");
    assert_eq!(request["scope"], "openid offline_access api.read", "{request}");
}

/// A server that accepts only `plain` gets S256 as configured, and its refusal is shown.
#[tokio::test]
async fn pkce_never_falls_back() {
    let fixture = al("p-plain", ", grant: authorization_code").await;
    let link = fixture.link("").await;
    let tab = fixture.browser.tab("a", "1");
    tab.open(&link).await;
    super::sign_in(tab).await;
    tab.confirm().await;
    let page = tab.wait_until("/oauth/callback", "must be plain").await;
    assert_eq!((page.status(), fixture.exchanges().await), (400, 0));
    let methods: Vec<_> = fixture.server.authorizations("p-plain").await;
    assert!(methods.iter().all(|request| request["code_challenge_method"] == "S256"), "{methods:?}");
}

#[tokio::test]
async fn a_client_without_a_secret_connects_by_pkce_alone() {
    let fixture = op("p-public", json!({"lifetime": 600})).await;
    connected(&fixture).await;
    let form = &fixture.server.forms("p-public").await[0];
    assert_eq!((&form["client_id"], form.get("client_secret")), (&json!("p-public"), None));
}

#[tokio::test]
async fn requests_are_pushed_to_a_server_that_requires_it() {
    let fixture = op("p-par", json!({"lifetime": 600, "pushed_only": true})).await;
    connected(&fixture).await;
    let stats = fixture.server.stats().await;
    let pushed = &stats["pushed"]["p-par"][0];
    assert_eq!((&pushed["code_challenge_method"], &pushed["prompt"]), (&json!("S256"), &json!("consent")), "{stats}");
    assert!(text(&pushed["redirect_uri"]).ends_with("/oauth/callback") && pushed["state"].is_string(), "{pushed}");
    let request = stats["authorizations"]["p-par"][0].as_object().expect("parameters");
    let names: Vec<_> = request.keys().collect();
    assert_eq!(names, ["client_id", "request_uri"], "the browser carries no other parameter");
}

#[tokio::test]
async fn a_device_code_connects_at_oidc_provider() {
    let server = AuthorizationServer::op(json!({"lifetime": 600})).await;
    let keys = format!("issuer: \"{}\", grant: device_code, scopes: [{OFFLINE}]", server.issuer());
    let fixture = Fixture::with(server, "p-device-web", &keys, "").await;
    let (tab, link) = (fixture.browser.tab("a", "1"), fixture.link("").await);
    assert_eq!(tab.open(&link).await.status(), 401, "the link requires sign-in");
    super::sign_in(tab).await;
    tab.wait_until("/connect/crm", "Connect an account?").await;
    assert!(fixture.server.stats().await["device_authorizations"]["p-device-web"].is_null(), "no person has confirmed");
    tab.confirm().await;
    let page = tab.wait_until("/connect/crm/result", &fixture.server.issuer()).await;
    let code = user_code(page.text());
    assert!(fixture.server.token_requests_by_grant("p-device-web", DEVICE).await <= 1);

    let device = fixture.browser.tab("b", "1");
    device.open(&format!("{}/device", fixture.server.issuer())).await;
    device.fill("input[name=user_code]", &code).await;
    device.approve().await;
    device.wait_until(&fixture.server.issuer(), &code).await;
    device.approve().await;
    fixture.approve(device, "ann").await;
    device.wait_until("", "Device connected").await;

    let page = tab.wait_until("/connect/crm", "Connected").await;
    fixture.check_pages(&page);
    assert_eq!(fixture.account("").await, "ann");
    check_poll_intervals(&fixture, 5000).await;
    assert_eq!(
        fixture.server.stats().await["device_authorizations"]["p-device-web"],
        1,
        "reloads of the page request no further code"
    );
    fixture.check_no_secret_shown(&page).await;
}

#[tokio::test]
async fn a_device_flow_follows_the_servers_interval_and_the_persons_decision() {
    let fixture = al("p-device", ", grant: device_code").await;
    let begin = async || {
        let flow = fixture.call("POST", "/connections/crm/authorize", json!({})).await;
        assert_eq!(flow.status, 201, "{}", flow.text());
        flow.json()
    };
    let ends = async |flow: &Value| {
        let end = Instant::now() + TIMEOUT;
        loop {
            let path = format!("/authorizations/{}", text(&flow["id"]));
            let authorization = fixture.call("GET", &path, json!({})).await.json();
            if authorization["status"] != "pending" {
                return text(&authorization["status"]).to_owned();
            }
            assert!(Instant::now() < end, "{authorization}");
            sleep(Duration::from_millis(100)).await;
        }
    };
    let denied = begin().await;
    assert_eq!(denied["interval"], 1, "{denied}");
    assert!(denied.get("device_code").is_none(), "{denied}");
    assert!(text(&denied["verification_uri_complete"]).contains(text(&denied["user_code"])), "{denied}");
    fixture.server.decide(text(&denied["user_code"]), false).await;
    assert_eq!(ends(&denied).await, "denied");
    fixture.server.control(json!({"device_lifetime": 2})).await;
    assert_eq!(ends(&begin().await).await, "expired");
    assert_eq!(fixture.get("").await.code(), "consent_required");
    fixture.server.control(json!({"device_lifetime": 600})).await;

    let before = polls(&fixture).await.len();
    fixture.server.control(json!({"slow_downs": 1})).await;
    let good = begin().await;
    let end = Instant::now() + TIMEOUT;
    while polls(&fixture).await.len() < before + 2 {
        assert!(Instant::now() < end, "{:?}", polls(&fixture).await);
        sleep(Duration::from_millis(100)).await;
    }
    let last = polls(&fixture).await.split_off(before);
    assert!(last[1] - last[0] >= 6000, "5 s longer after slow_down: {last:?}");
    fixture.server.decide(text(&good["user_code"]), true).await;
    assert_eq!(ends(&good).await, "connected");
    assert_eq!(fixture.account("").await, "ann");
    check_poll_intervals(&fixture, 1000).await;
    assert_eq!(fixture.server.stats().await["slowed_down"], 1, "no other poll was too early");
}

/// RFC 8628 §3.2: the default interval is 5 s.
#[tokio::test]
async fn a_minimal_device_authorization_response_is_accepted() {
    let fixture = al("p-device-bare", ", grant: device_code").await;
    let flow = fixture.call("POST", "/connections/crm/authorize", json!({})).await.json();
    assert_eq!((&flow["interval"], &flow["verification_uri_complete"]), (&json!(5), &Value::Null), "{flow}");
    let end = Instant::now() + TIMEOUT;
    while polls(&fixture).await.len() < 2 {
        assert!(Instant::now() < end, "no poll arrives");
        sleep(Duration::from_millis(100)).await;
    }
    fixture.server.decide(text(&flow["user_code"]), true).await;
    while fixture.get("").await.status != 200 {
        assert!(Instant::now() < end, "{}", fixture.sidecar.log());
        sleep(Duration::from_millis(100)).await;
    }
    check_poll_intervals(&fixture, 5000).await;
    assert_eq!(fixture.server.stats().await["slowed_down"], 0);
}

/// Times of the polls that the server received, in milliseconds.
async fn polls(fixture: &Fixture) -> Vec<i64> {
    let stats = fixture.server.stats().await;
    stats["polls"][fixture.client].as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
}

/// Checks that polls with the same code are at least `least_ms` apart.
async fn check_poll_intervals(fixture: &Fixture, least_ms: i64) {
    let forms = fixture.server.forms(fixture.client).await;
    let codes: Vec<_> =
        forms.iter().filter(|form| form["grant_type"] == DEVICE).map(|form| form["device_code"].clone()).collect();
    let polls = polls(fixture).await;
    assert!(!polls.is_empty() && polls.len() == codes.len(), "{polls:?}");
    for (times, codes) in polls.windows(2).zip(codes.windows(2)) {
        let least = if codes[0] == codes[1] { least_ms - 100 } else { 0 };
        assert!(times[1] - times[0] >= least, "{polls:?}");
    }
}

/// `ABCD-EFGH` in the text of a page.
fn user_code(text: &str) -> String {
    let is_code = |word: &&str| {
        word.len() == 9
            && word.chars().enumerate().all(|(at, c)| if at == 4 { c == '-' } else { c.is_ascii_uppercase() })
    };
    text.split_whitespace().find(is_code).unwrap_or_else(|| panic!("no code in {text}")).to_owned()
}
