//! The walk itself: from an error with a link to a token that is renewed, for one account or one for each person.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{House, OFFLINE, endpoints, issuer, param, sign_in, text};
use crate::rig::peers::AuthorizationServer;

#[tokio::test]
async fn a_person_connects_an_account_whose_token_is_refreshed_through_three_lifetimes() {
    let server = AuthorizationServer::op(json!({})).await;
    let keys = format!("{}, scopes: [{OFFLINE}]", endpoints(&server, "?prompt=consent&access_type=offline"));
    let house = House::with(server, "p-short", &keys, "").await;
    let (tab, link) = (house.browser.tab("a", "1"), house.link("").await);
    assert_eq!(link, format!("{}/connect/crm", house.public()));

    let page = tab.open(&link).await;
    assert_eq!((page.status(), page.documents().len()), (401, 1), "{}", page.text());
    assert!(house.server.authorizations("p-short").await.is_empty(), "no person has signed in");
    tab.fill("input[name=token]", "somebody-else-0123456789").await;
    assert_eq!(tab.click("button[type=submit]").await.status(), 401);
    sign_in(tab).await;
    let page = tab.until("/connect/crm", "Connect an account?").await;
    assert!(house.server.authorizations("p-short").await.is_empty(), "nothing is confirmed: {}", page.text());
    tab.confirm().await;
    tab.until(&house.server.issuer(), "Sign in").await;
    house.agree(tab, "ann").await;
    let page = tab.until("/connect/crm/result", "Connected").await;
    assert_eq!(page.status(), 200);
    assert!(!page.url().contains("code="), "{}", page.url());
    let passed = page.documents();
    assert!(passed.iter().any(|one| text(&one["url"]).contains("/oauth/callback?code=")), "{passed:?}");
    assert_eq!(house.pages_hold(&page), 7, "link, wrong token, token, link again, confirmed, callback, result");

    let asked = &house.server.authorizations("p-short").await[0];
    assert_eq!((&asked["prompt"], &asked["access_type"]), (&json!("consent"), &json!("offline")));
    assert_eq!((&asked["code_challenge_method"], &asked["response_type"]), (&json!("S256"), &json!("code")));
    assert_eq!(text(&asked["code_challenge"]).len(), 43, "256 bits: {asked}");
    assert_eq!(asked["redirect_uri"], format!("{}/oauth/callback", house.public()));

    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        assert_eq!(house.accepted("").await, "ann");
        sleep(Duration::from_millis(20)).await;
    }
    let refreshes = house.server.token_requests_by_grant("p-short", "refresh_token").await;
    let stats = house.server.stats().await;
    assert!(refreshes >= 3, "{stats}");
    assert_eq!((house.exchanges().await, stats["rotations"].as_u64()), (1, Some(refreshes)), "{stats}");
    assert_eq!(stats["second_uses"], json!({}), "{stats}");
    house.tells_no_secret(&page).await;
}

#[tokio::test]
async fn two_people_connect_their_own_accounts_in_their_own_browsers() {
    let server = AuthorizationServer::op(json!({"lifetime": 600})).await;
    let keys = format!("{}, scopes: [{OFFLINE}], tokens: per_subject", issuer(&server));
    let top = "callers: [{name: web, secret: web-secret, subjects: [\"*\"]}]\n";
    let house = House::with(server, "p-web", &keys, top).await;
    let of =
        |subject: &str| format!("Proxy-Authorization: Basic d2ViOndlYi1zZWNyZXQ=\r\nKeybearer-Subject: {subject}\r\n");
    for (context, subject, account) in [("a", "ann@acme.test", "ann"), ("b", "bob", "bob")] {
        let link = house.link(&of(subject)).await;
        let sealed = param(&link, "for").to_owned();
        assert!(sealed.len() > 40 && !link.contains(subject), "{link}");
        // Another letter in the middle of what is sealed.
        let at = link.len() - sealed.len() / 2;
        let other = if &link[at..=at] == "A" { "B" } else { "A" };
        let broken = format!("{}{other}{}", &link[..at], &link[at + 1..]);
        assert_eq!(house.visit("GET", &broken, "").await.status, 400);

        let page = house.connect(house.browser.tab(context, "1"), &link, account).await;
        house.pages_hold(&page);
        assert_eq!(house.accepted(&of(subject)).await, account);
        house.tells_no_secret(&page).await;
    }
    assert_eq!(house.accepted(&of("ann@acme.test")).await, "ann", "each has the own account still");
    assert_eq!(house.ask(&of("carol")).await.code(), "consent_required");
    assert_eq!(house.exchanges().await, 2);
}

#[tokio::test]
async fn an_authorization_of_the_api_is_opened_without_signing_in_and_shows_how_it_ends() {
    let house = House::op("p-web").await;
    let begin = async || {
        let begun = house.call("POST", "/connections/crm/authorize", json!({})).await;
        assert_eq!(begun.status, 201, "{}", begun.text());
        begun.json()
    };
    let status = async |begun: &Value| {
        let told = house.call("GET", &format!("/authorizations/{}", text(&begun["id"])), json!({})).await.json();
        assert_eq!((&told["connection"], &told["profile"]), (&json!("crm"), &json!("default")), "{told}");
        (text(&told["status"]).to_owned(), text(&told["error"]).to_owned())
    };
    let denied = begin().await;
    assert!(denied["expires_at"].is_string() && status(&denied).await.0 == "pending", "{denied}");
    let tab = house.browser.tab("a", "1");
    house.arrive(tab, text(&denied["authorization_url"])).await;
    let page = tab.deny().await;
    assert_eq!(page.status(), 400);
    assert!(page.text().contains("declined"), "{}", page.text());
    house.pages_hold(&page);
    assert_eq!(status(&denied).await, ("denied".to_owned(), "access_denied".to_owned()));
    assert_eq!((house.exchanges().await, house.ask("").await.status), (0, 424));

    let good = begin().await;
    let link = text(&good["authorization_url"]);
    assert!(link.starts_with(&house.public()), "{link}");
    let page = house.connect(tab, link, "ann").await;
    assert_eq!(status(&good).await.0, "connected");
    assert_eq!(house.accepted("").await, "ann");
    let again = tab.open(link).await;
    assert_eq!((again.status(), again.text().contains("already used")), (400, true), "{}", again.text());
    assert_eq!(house.exchanges().await, 1);
    assert_eq!(house.call("GET", "/authorizations/c0123456789012345678901", json!({})).await.status, 404);
    house.tells_no_secret(&page).await;
}
