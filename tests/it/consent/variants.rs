//! Other ways to a person's token: without PKCE or by `plain`, by a pushed request, without a secret, by a device code.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{DEVICE, House, OFFLINE, endpoints, issuer, text};
use crate::rig::browser::Page;
use crate::rig::peers::AuthorizationServer;

const PATIENCE: Duration = Duration::from_secs(25);

async fn op(client: &'static str, options: Value) -> House {
    let server = AuthorizationServer::op(options).await;
    let keys = format!("{}, scopes: [{OFFLINE}]", issuer(&server));
    House::with(server, client, &keys, "").await
}

async fn al(client: &'static str, keys: &str) -> House {
    let server = AuthorizationServer::al(json!({"lifetime": 600})).await;
    let keys = format!("issuer: \"{}\", scopes: [api.read]{keys}", server.issuer());
    House::with(server, client, &keys, "").await
}

async fn connected(house: &House) -> Page {
    let link = house.link("").await;
    let page = house.connect(house.browser.tab("a", "1"), &link, "ann").await;
    house.pages_hold(&page);
    assert_eq!(house.accepted("").await, "ann");
    assert_eq!(house.exchanges().await, 1);
    house.tells_no_secret(&page).await;
    page
}

#[tokio::test]
async fn authlib_takes_the_method_of_pkce_that_the_configuration_names() {
    let cases = [
        ("p-web", ", grant: authorization_code", Some("S256")),
        ("p-plain", ", grant: authorization_code, pkce: {method: plain}", Some("plain")),
        ("p-none", ", grant: authorization_code, pkce: {required: false, method: none}", None),
    ];
    for (client, keys, method) in cases {
        let house = al(client, keys).await;
        let page = connected(&house).await;
        let callback = page.documents().into_iter().find(|one| text(&one["url"]).contains("/oauth/callback?"));
        assert!(!text(&callback.expect("a callback")["url"]).contains("iss="), "this server does not name itself");
        let asked = &house.server.authorizations(client).await[0];
        let form = &house.server.forms(client).await[0];
        assert_eq!(asked["code_challenge_method"].as_str(), method, "{asked}");
        assert_eq!(
            (asked["code_challenge"].is_string(), form["code_verifier"].is_string()),
            (method.is_some(), method.is_some())
        );
        if method == Some("plain") {
            assert_eq!(asked["code_challenge"], form["code_verifier"]);
        }
    }
}

/// RFC 6749 §3.1: oidc-provider refuses a request that names a parameter twice.
#[tokio::test]
async fn each_parameter_is_sent_once_whatever_the_url_has() {
    let server = AuthorizationServer::op(json!({"lifetime": 600})).await;
    let query = "?prompt=login&state=mine&client_id=other&scope=email&ui_locales=de&code_challenge=x";
    let urls = endpoints(&server, query);
    let keys = format!("{urls}, grant: authorization_code, authorize_params: {{prompt: consent}}, scopes: [{OFFLINE}]");
    let house = House::with(server, "p-web", &keys, "").await;
    connected(&house).await;
    let asked = &house.server.authorizations("p-web").await[0];
    assert_eq!((&asked["prompt"], &asked["ui_locales"]), (&json!("consent"), &json!("de")), "{asked}");
    assert_eq!(asked["scope"], "openid offline_access api.read", "{asked}");
}

/// PKCE is what the configuration says: a server that takes only `plain` is told S256, and its refusal is shown.
#[tokio::test]
async fn pkce_never_falls_back() {
    let house = al("p-plain", ", grant: authorization_code").await;
    let link = house.link("").await;
    let tab = house.browser.tab("a", "1");
    tab.open(&link).await;
    super::sign_in(tab).await;
    tab.confirm().await;
    let page = tab.until("/oauth/callback", "must be plain").await;
    assert_eq!((page.status(), house.exchanges().await), (400, 0));
    let methods: Vec<_> = house.server.authorizations("p-plain").await;
    assert!(methods.iter().all(|asked| asked["code_challenge_method"] == "S256"), "{methods:?}");
}

#[tokio::test]
async fn a_client_without_a_secret_connects_by_pkce_alone() {
    let house = op("p-public", json!({"lifetime": 600})).await;
    connected(&house).await;
    let form = &house.server.forms("p-public").await[0];
    assert_eq!((&form["client_id"], form.get("client_secret")), (&json!("p-public"), None));
}

#[tokio::test]
async fn a_server_that_wants_its_requests_pushed_gets_them_pushed() {
    let house = op("p-par", json!({"lifetime": 600, "pushed_only": true})).await;
    connected(&house).await;
    let stats = house.server.stats().await;
    let pushed = &stats["pushed"]["p-par"][0];
    assert_eq!((&pushed["code_challenge_method"], &pushed["prompt"]), (&json!("S256"), &json!("consent")), "{stats}");
    assert!(text(&pushed["redirect_uri"]).ends_with("/oauth/callback") && pushed["state"].is_string(), "{pushed}");
    let asked = stats["authorizations"]["p-par"][0].as_object().expect("parameters");
    let names: Vec<_> = asked.keys().collect();
    assert_eq!(names, ["client_id", "request_uri"], "the browser carries nothing else");
}

#[tokio::test]
async fn a_code_for_another_device_connects_at_oidc_provider() {
    let server = AuthorizationServer::op(json!({"lifetime": 600})).await;
    let keys = format!("issuer: \"{}\", grant: device_code, scopes: [{OFFLINE}]", server.issuer());
    let house = House::with(server, "p-device-web", &keys, "").await;
    let (tab, link) = (house.browser.tab("a", "1"), house.link("").await);
    assert_eq!(tab.open(&link).await.status(), 401, "it asks to sign in");
    super::sign_in(tab).await;
    tab.until("/connect/crm", "Connect an account?").await;
    assert!(house.server.stats().await["device_authorizations"]["p-device-web"].is_null(), "nothing is confirmed");
    tab.confirm().await;
    let page = tab.until("/connect/crm/result", &house.server.issuer()).await;
    let code = user_code(page.text());
    assert!(house.server.token_requests_by_grant("p-device-web", DEVICE).await <= 1);

    let device = house.browser.tab("b", "1");
    device.open(&format!("{}/device", house.server.issuer())).await;
    device.fill("input[name=user_code]", &code).await;
    device.agree().await;
    device.until(&house.server.issuer(), &code).await;
    device.agree().await;
    house.agree(device, "ann").await;
    device.until("", "Device connected").await;

    let page = tab.until("/connect/crm", "Connected").await;
    house.pages_hold(&page);
    assert_eq!(house.accepted("").await, "ann");
    gaps(&house, 5000).await;
    assert_eq!(house.server.stats().await["device_authorizations"]["p-device-web"], 1, "one code for all looks");
    house.tells_no_secret(&page).await;
}

#[tokio::test]
async fn a_code_for_another_device_obeys_authlib_and_ends_as_the_person_says() {
    let house = al("p-device", ", grant: device_code").await;
    let begin = async || {
        let begun = house.call("POST", "/connections/crm/authorize", json!({})).await;
        assert_eq!(begun.status, 201, "{}", begun.text());
        begun.json()
    };
    let ends = async |begun: &Value| {
        let end = Instant::now() + PATIENCE;
        loop {
            let path = format!("/authorizations/{}", text(&begun["id"]));
            let told = house.call("GET", &path, json!({})).await.json();
            if told["status"] != "pending" {
                return text(&told["status"]).to_owned();
            }
            assert!(Instant::now() < end, "{told}");
            sleep(Duration::from_millis(100)).await;
        }
    };
    let denied = begin().await;
    assert_eq!(denied["interval"], 1, "{denied}");
    assert!(denied.get("device_code").is_none(), "{denied}");
    assert!(text(&denied["verification_uri_complete"]).contains(text(&denied["user_code"])), "{denied}");
    house.server.decide(text(&denied["user_code"]), false).await;
    assert_eq!(ends(&denied).await, "denied");
    house.server.control(json!({"device_lifetime": 2})).await;
    assert_eq!(ends(&begin().await).await, "expired");
    assert_eq!(house.ask("").await.code(), "consent_required");
    house.server.control(json!({"device_lifetime": 600})).await;

    let before = polls(&house).await.len();
    house.server.control(json!({"slow_downs": 1})).await;
    let good = begin().await;
    let end = Instant::now() + PATIENCE;
    while polls(&house).await.len() < before + 2 {
        assert!(Instant::now() < end, "{:?}", polls(&house).await);
        sleep(Duration::from_millis(100)).await;
    }
    let last = polls(&house).await.split_off(before);
    assert!(last[1] - last[0] >= 6000, "5 s more after slow_down: {last:?}");
    house.server.decide(text(&good["user_code"]), true).await;
    assert_eq!(ends(&good).await, "connected");
    assert_eq!(house.accepted("").await, "ann");
    gaps(&house, 1000).await;
    assert_eq!(house.server.stats().await["slowed_down"], 1, "no poll came too early by itself");
}

/// RFC 8628 §3.2: without an interval it is 5 s.
#[tokio::test]
async fn a_device_answer_with_the_least_in_it_will_do() {
    let house = al("p-device-bare", ", grant: device_code").await;
    let begun = house.call("POST", "/connections/crm/authorize", json!({})).await.json();
    assert_eq!((&begun["interval"], &begun["verification_uri_complete"]), (&json!(5), &Value::Null), "{begun}");
    let end = Instant::now() + PATIENCE;
    while polls(&house).await.len() < 2 {
        assert!(Instant::now() < end, "no poll arrives");
        sleep(Duration::from_millis(100)).await;
    }
    house.server.decide(text(&begun["user_code"]), true).await;
    while house.ask("").await.status != 200 {
        assert!(Instant::now() < end, "{}", house.sidecar.log());
        sleep(Duration::from_millis(100)).await;
    }
    gaps(&house, 5000).await;
    assert_eq!(house.server.stats().await["slowed_down"], 0);
}

/// When the server was asked with a device code, in milliseconds.
async fn polls(house: &House) -> Vec<i64> {
    let stats = house.server.stats().await;
    stats["polls"][house.client].as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
}

/// Of polls with the same code, each at least so long after the one before.
async fn gaps(house: &House, least_ms: i64) {
    let forms = house.server.forms(house.client).await;
    let codes: Vec<_> =
        forms.iter().filter(|form| form["grant_type"] == DEVICE).map(|form| form["device_code"].clone()).collect();
    let polls = polls(house).await;
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
