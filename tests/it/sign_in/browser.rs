//! oidc-provider in Chromium: roles, sessions and their end, refused callbacks.

use serde_json::json;

use super::{api, session_of};
use crate::rig::browser::{Browser, Page, Tab};
use crate::rig::peers::{AuthorizationServer, Peers};
use crate::rig::sidecar::Sidecar;
use crate::rig::wall_clock::WallClock;

const SECRET: &str = "p-web-secret-0123456789abcdef0123456789abcdef";
const ROLES: &str = "{readers: viewer, ops: operator, admins: manager}";

struct Stage {
    server: AuthorizationServer,
    sidecar: Sidecar,
    browser: Browser,
}

fn config(issuer: &str, roles: &str) -> String {
    format!(
        "trust: [\"{}\"]\nadmin: {{sign_in: {{issuer: \"{issuer}\", client_id: p-web, client_secret: {SECRET}, \
         roles: {roles}, session: 1h}}}}\nconnections: []\n",
        Peers::certs().ca.display()
    )
}

impl Stage {
    async fn start(environment: &[(&str, String)]) -> Stage {
        let groups = json!({"reader": "readers", "op": ["readers", "ops"], "boss": ["admins", "x"], "guest": ["x"]});
        let server = AuthorizationServer::op(json!({"groups": groups})).await;
        let sidecar = Sidecar::start_in(config(&server.issuer(), ROLES), environment).await;
        Stage { server, sidecar, browser: Browser::start().await }
    }

    /// `127.0.0.1`, which is not the host that the provider returns to.
    fn sign_in_url(&self) -> String {
        format!("http://{}/sign-in", self.sidecar.admin())
    }

    /// Goes to the provider, logs in and approves; returns the page at the end.
    async fn sign_in(&self, tab: Tab<'_>, account: &str) -> Page {
        tab.open(&self.sign_in_url()).await;
        tab.wait_until(&self.server.issuer(), "Continue").await;
        tab.sign_in(account).await;
        tab.wait_until(&self.server.issuer(), &format!("{account}, may")).await;
        tab.approve().await
    }

    async fn statuses(&self, session: &str) -> (u16, u16) {
        let admin = self.sidecar.admin();
        let signed_in = api(admin, "GET", "/session", session).await;
        let csrf = signed_in.json()["csrf_token"].as_str().map(|csrf| format!("X-CSRF-Token: {csrf}\r\n"));
        let lines = format!("{session}{}", csrf.unwrap_or_default());
        (signed_in.status, api(admin, "POST", "/reload", &lines).await.status)
    }
}

#[tokio::test]
async fn a_persons_groups_decide_the_role_and_without_a_role_there_is_no_session() {
    let stage = Stage::start(&[]).await;
    for (account, role, reload) in [("reader", "viewer", 403), ("op", "operator", 403), ("boss", "manager", 200)] {
        let tab = stage.browser.tab(account, "1");
        let page = stage.sign_in(tab, account).await;
        assert!(page.text().contains(&format!("with the role {role}")), "{}\n{}", page.text(), stage.sidecar.log());
        assert!(page.url().ends_with("/sign-in/result"), "neither code nor state stays in the address: {}", page.url());
        let cookies = page.cookies();
        let kept: Vec<_> = cookies.iter().filter(|cookie| cookie["domain"] == "localhost").collect();
        assert_eq!(kept.len(), 1, "the cookie of the attempt is removed: {kept:?}");
        let session = session_of(&cookies).expect("a session");
        let cookie = cookies.iter().find(|cookie| cookie["name"] == "keybearer_session").expect("a cookie");
        assert_eq!((&cookie["httpOnly"], &cookie["sameSite"]), (&json!(true), &json!("Lax")));
        assert_eq!(stage.statuses(&session).await, (200, reload), "{account}");
        let user = api(stage.sidecar.admin(), "GET", "/session", &session).await.json();
        assert_eq!(user["role"], role);
        assert!(user["user"].as_str().is_some_and(|user| user.starts_with(&format!("{account}-"))), "{user}");
        let request = &stage.server.authorizations("p-web").await[0];
        assert_eq!((&request["code_challenge_method"], &request["scope"]), (&json!("S256"), &json!("openid")));
    }
    let page = stage.sign_in(stage.browser.tab("guest", "1"), "guest").await;
    assert_eq!((page.status(), page.title()), (403, "No role · Keybearer"), "{}", page.text());
    assert!(session_of(&page.cookies()).is_none());
    stage.sidecar.wait_for_log("no group has a role").await;
    stage.sidecar.wait_for_log("role_missing").await;
    let log = stage.sidecar.log();
    assert!(!log.contains(SECRET) && !log.contains("eyJ"), "{log}");
}

#[tokio::test]
async fn a_callback_is_valid_once_and_only_in_the_browser_that_began() {
    let stage = Stage::start(&[]).await;
    let tab = stage.browser.tab("a", "1");
    let page = stage.sign_in(tab, "op").await;
    let documents = page.documents();
    let callback =
        documents.iter().filter_map(|one| one["url"].as_str()).find(|url| url.contains("/sign-in/callback?"));
    let callback = callback.expect("a callback").to_owned();
    for (context, url) in
        [("a", callback.clone()), ("b", callback.clone()), ("a", callback.replace("state=", "state=x"))]
    {
        let page = stage.browser.tab(context, "2").open(&url).await;
        assert_eq!((page.status(), page.title()), (400, "This sign-in is unknown · Keybearer"), "{context} {url}");
    }
    let page = stage.browser.tab("b", "2").page().await;
    assert!(session_of(&page.cookies()).is_none());
    let exchanges = stage.server.token_requests_by_grant("p-web", "authorization_code").await;
    assert_eq!(exchanges, 1, "a replayed code never reaches the provider");
    // The first session still holds.
    assert_eq!(stage.statuses(&session_of(&tab.page().await.cookies()).expect("a session")).await.0, 200);
    let tab = stage.browser.tab("c", "1");
    tab.open(&stage.sign_in_url()).await;
    tab.wait_until(&stage.server.issuer(), "Continue").await;
    let page = tab.deny().await;
    assert!(page.text().contains("access_denied") && session_of(&page.cookies()).is_none(), "{}", page.text());
}

#[tokio::test]
async fn a_session_ends_after_its_time_and_when_the_roles_change() {
    let clock = WallClock::start();
    let stage = Stage::start(&clock.environment()).await;
    let page = stage.sign_in(stage.browser.tab("a", "1"), "boss").await;
    let session = session_of(&page.cookies()).unwrap_or_else(|| panic!("{}\n{}", page.text(), stage.sidecar.log()));
    for (offset, expected) in [("+0", 200), ("+59m", 200), ("+61m", 401), ("+30d", 401), ("+0", 200)] {
        clock.set(offset);
        assert_eq!(stage.statuses(&session).await, (expected, expected), "{offset}");
    }
    let path = stage.sidecar.dir.path().join("keybearer.yaml");
    let before = std::fs::read_to_string(&path).expect("a file");
    std::fs::write(&path, before.replace("ops: operator", "ops: viewer")).expect("a file");
    stage.sidecar.wait_for_metric("keybearer_config_reloads_total{outcome=\"applied\"}", |count| count >= 1.0).await;
    assert_eq!(stage.statuses(&session).await, (401, 401), "the roles have changed");
}
