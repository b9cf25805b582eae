//! The whole path: from an error with a link to a token that is refreshed, for a shared account or one for each subject.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Fixture, OFFLINE, endpoints, issuer, param, sign_in, text};
use crate::rig::peers::AuthorizationServer;

#[tokio::test]
async fn a_person_connects_an_account_whose_token_is_refreshed_through_three_lifetimes() {
    let server = AuthorizationServer::op(json!({})).await;
    let keys = format!("{}, scopes: [{OFFLINE}]", endpoints(&server, "?prompt=consent&access_type=offline"));
    let fixture = Fixture::with(server, "p-short", &keys, "").await;
    let (tab, link) = (fixture.browser.tab("a", "1"), fixture.link("").await);
    assert_eq!(link, format!("{}/connect/crm", fixture.public()));

    let page = tab.open(&link).await;
    assert_eq!((page.status(), page.documents().len()), (401, 1), "{}", page.text());
    assert!(fixture.server.authorizations("p-short").await.is_empty(), "no person has signed in");
    tab.fill("input[name=token]", "an-unknown-token-0123456789").await;
    assert_eq!(tab.click("button[type=submit]").await.status(), 401);
    sign_in(tab).await;
    let page = tab.wait_until("/connect/crm", "Connect an account?").await;
    assert!(fixture.server.authorizations("p-short").await.is_empty(), "no person has confirmed: {}", page.text());
    tab.confirm().await;
    tab.wait_until(&fixture.server.issuer(), "Sign in").await;
    fixture.approve(tab, "ann").await;
    let page = tab.wait_until("/connect/crm/result", "Connected").await;
    assert_eq!(page.status(), 200);
    assert!(!page.url().contains("code="), "{}", page.url());
    let passed = page.documents();
    assert!(passed.iter().any(|one| text(&one["url"]).contains("/oauth/callback?code=")), "{passed:?}");
    assert_eq!(fixture.check_pages(&page), 7, "link, wrong token, token, link again, confirmation, callback, result");

    let request = &fixture.server.authorizations("p-short").await[0];
    assert_eq!((&request["prompt"], &request["access_type"]), (&json!("consent"), &json!("offline")));
    assert_eq!((&request["code_challenge_method"], &request["response_type"]), (&json!("S256"), &json!("code")));
    assert_eq!(text(&request["code_challenge"]).len(), 43, "256 bits: {request}");
    assert_eq!(request["redirect_uri"], format!("{}/oauth/callback", fixture.public()));

    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        assert_eq!(fixture.account("").await, "ann");
        sleep(Duration::from_millis(20)).await;
    }
    let refreshes = fixture.server.token_requests_by_grant("p-short", "refresh_token").await;
    let stats = fixture.server.stats().await;
    assert!(refreshes >= 3, "{stats}");
    assert_eq!((fixture.exchanges().await, stats["rotations"].as_u64()), (1, Some(refreshes)), "{stats}");
    assert_eq!(stats["second_uses"], json!({}), "{stats}");
    fixture.check_no_secret_shown(&page).await;
}

#[tokio::test]
async fn two_people_connect_their_own_accounts_in_their_own_browsers() {
    let server = AuthorizationServer::op(json!({"lifetime": 600})).await;
    let keys = format!("{}, scopes: [{OFFLINE}], tokens: per_subject", issuer(&server));
    let top = "callers: [{name: web, secret: web-secret, subjects: [\"*\"]}]\n";
    let fixture = Fixture::with(server, "p-web", &keys, top).await;
    let of =
        |subject: &str| format!("Proxy-Authorization: Basic d2ViOndlYi1zZWNyZXQ=\r\nKeybearer-Subject: {subject}\r\n");
    for (context, subject, account) in [("a", "ann@acme.test", "ann"), ("b", "bob", "bob")] {
        let link = fixture.link(&of(subject)).await;
        let sealed = param(&link, "for").to_owned();
        assert!(sealed.len() > 40 && !link.contains(subject), "{link}");
        // Alters one letter in the middle of the sealed text.
        let at = link.len() - sealed.len() / 2;
        let other = if &link[at..=at] == "A" { "B" } else { "A" };
        let broken = format!("{}{other}{}", &link[..at], &link[at + 1..]);
        assert_eq!(fixture.visit("GET", &broken, "").await.status, 400);

        let page = fixture.connect(fixture.browser.tab(context, "1"), &link, account).await;
        fixture.check_pages(&page);
        assert_eq!(fixture.account(&of(subject)).await, account);
        fixture.check_no_secret_shown(&page).await;
    }
    assert_eq!(fixture.account(&of("ann@acme.test")).await, "ann", "each subject still has its own account");
    assert_eq!(fixture.get(&of("carol")).await.code(), "consent_required");
    assert_eq!(fixture.exchanges().await, 2);
}

#[tokio::test]
async fn a_one_time_link_needs_no_sign_in_and_the_api_shows_the_outcome() {
    let fixture = Fixture::op("p-web").await;
    let begin = async || {
        let flow = fixture.call("POST", "/connections/crm/authorize", json!({})).await;
        assert_eq!(flow.status, 201, "{}", flow.text());
        flow.json()
    };
    let status = async |flow: &Value| {
        let authorization =
            fixture.call("GET", &format!("/authorizations/{}", text(&flow["id"])), json!({})).await.json();
        assert_eq!(
            (&authorization["connection"], &authorization["profile"]),
            (&json!("crm"), &json!("default")),
            "{authorization}"
        );
        (text(&authorization["status"]).to_owned(), text(&authorization["error"]).to_owned())
    };
    let denied = begin().await;
    assert!(denied["expires_at"].is_string() && status(&denied).await.0 == "pending", "{denied}");
    let tab = fixture.browser.tab("a", "1");
    fixture.arrive(tab, text(&denied["authorization_url"])).await;
    let page = tab.deny().await;
    assert_eq!(page.status(), 400);
    assert!(page.text().contains("declined"), "{}", page.text());
    fixture.check_pages(&page);
    assert_eq!(status(&denied).await, ("denied".to_owned(), "access_denied".to_owned()));
    assert_eq!((fixture.exchanges().await, fixture.get("").await.status), (0, 424));

    let good = begin().await;
    let link = text(&good["authorization_url"]);
    assert!(link.starts_with(&fixture.public()), "{link}");
    let page = fixture.connect(tab, link, "ann").await;
    assert_eq!(status(&good).await.0, "connected");
    assert_eq!(fixture.account("").await, "ann");
    let again = tab.open(link).await;
    assert_eq!((again.status(), again.text().contains("already used")), (400, true), "{}", again.text());
    assert_eq!(fixture.exchanges().await, 1);
    assert_eq!(fixture.call("GET", "/authorizations/c0123456789012345678901", json!({})).await.status, 404);
    fixture.check_no_secret_shown(&page).await;
}
