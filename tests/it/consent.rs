//! Consent end to end: a real browser goes from the proxy's error to a token, at real authorization servers.
//!
//! Not here: expiry of flows and links (unit tests, `people::pending`), the login pages of Authlib and oidc-provider
//! (`tests/peers`).

mod reconsent;
mod confirmation;
mod outcomes;
mod people;
mod refusals;
mod secrets;
mod variants;
mod end_to_end;

use serde_json::{Value, json};

use crate::rig::browser::{Browser, Page, Tab};
use crate::rig::manager::{MANAGER, call};
use crate::rig::pages;
use crate::rig::peers::{AuthorizationServer, Peers, Upstream};
use crate::rig::raw::{self, RawResponse};
use crate::rig::sidecar::Sidecar;

/// Scopes with which oidc-provider issues a refresh token, if the request has `prompt=consent`.
const OFFLINE: &str = "openid, offline_access, api.read";
const CODE: &str = "authorization_code";
const DEVICE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// A sidecar with the connection `crm` for http://api.test, its authorization server, the upstream and a browser.
struct Fixture {
    server: AuthorizationServer,
    upstream: Upstream,
    sidecar: Sidecar,
    browser: Browser,
    client: &'static str,
}

/// Configuration keys with explicit endpoints; `query` is appended to the authorization URL.
fn endpoints(server: &AuthorizationServer, query: &str) -> String {
    let (url, token, revocation) = (server.authorization_url(), server.token_url(), server.revocation_url());
    format!("authorization_url: \"{url}{query}\", token_url: \"{token}\", revocation_url: \"{revocation}\"")
}

/// Configuration keys for discovery.
fn issuer(server: &AuthorizationServer) -> String {
    format!("issuer: \"{}\", grant: authorization_code, authorize_params: {{prompt: consent}}", server.issuer())
}

impl Fixture {
    async fn op(client: &'static str) -> Fixture {
        let server = AuthorizationServer::op(json!({"lifetime": 600})).await;
        let keys = format!("{}, scopes: [{OFFLINE}]", issuer(&server));
        Fixture::with(server, client, &keys, "").await
    }

    /// `keys` are those of the connection, `top` are top-level ones.
    async fn with(server: AuthorizationServer, client: &'static str, keys: &str, top: &str) -> Fixture {
        let (upstream, browser) = (Upstream::start(&server).await, Browser::start().await);
        let (ca, port) = (Peers::certs().ca.display(), upstream.http_port());
        let secret = match client {
            "p-public" | "p-device" | "p-device-bare" => String::new(),
            _ => format!("client_secret: {}, send_credentials: basic, ", secret_of(client)),
        };
        let text = format!(
            "log: {{level: trace, requests: all}}\nadmin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\n\
             trust: [\"{ca}\"]\nhosts: {{api.test: \"127.0.0.1:{port}\"}}\n{top}connections:\n\
             - {{name: crm, client_id: {client}, {secret}{keys}, routes: [{{host: api.test, upstream_tls: false}}]}}\n"
        );
        let sidecar = Sidecar::start(&text).await;
        Fixture { server, upstream, sidecar, browser, client }
    }

    /// The base URL at which browsers reach the sidecar.
    fn public(&self) -> String {
        format!("http://localhost:{}", self.sidecar.admin().port())
    }

    async fn get(&self, lines: &str) -> RawResponse {
        raw::get_through(self.sidecar.proxy(), "http://api.test/x", lines).await
    }

    /// Sends a request and returns the account whose token the upstream accepted.
    async fn account(&self, lines: &str) -> String {
        let response = self.get(lines).await;
        assert_eq!(response.status, 200, "{}\n{}", response.text(), self.sidecar.log());
        let record = response.json();
        assert_eq!((&record["active"], &record["client_id"]), (&json!(true), &json!(self.client)), "{record}");
        record["sub"].as_str().unwrap_or_default().to_owned()
    }

    /// Sends a request that is refused and returns the link in its error.
    async fn link(&self, lines: &str) -> String {
        let response = self.get(lines).await;
        assert_eq!(response.status, 424, "{}", response.text());
        let problem = response.json();
        assert_eq!(problem["action"], "reauthorize", "{problem}");
        assert!(response.header("retry-after").is_none(), "a retry cannot succeed");
        problem["link"].as_str().unwrap_or_else(|| panic!("no link: {problem}")).to_owned()
    }

    /// Opens a link, signs in if required, confirms, and stops at the authorization server's page.
    async fn arrive(&self, tab: Tab<'_>, link: &str) -> Page {
        let page = tab.open(link).await;
        if page.status() == 401 {
            sign_in(tab).await;
        }
        tab.confirm().await;
        tab.wait_until(&self.server.issuer(), "Continue").await
    }

    /// Logs in at the authorization server if required, and approves.
    async fn approve(&self, tab: Tab<'_>, account: &str) -> Page {
        let page = tab.wait_until(&self.server.issuer(), "Continue").await;
        if page.html().contains("name=\"account\"") {
            tab.sign_in(account).await;
        }
        tab.wait_until(&self.server.issuer(), &format!("{account}, may")).await;
        tab.approve().await
    }

    /// From the link to the page with the outcome.
    async fn connect(&self, tab: Tab<'_>, link: &str, account: &str) -> Page {
        self.arrive(tab, link).await;
        self.approve(tab, account).await;
        tab.wait_until("/result", "Connected").await
    }

    /// The same up to the callback, which is held back; returns its URL.
    async fn wait_for_callback(&self, tab: Tab<'_>, link: &str, account: &str) -> String {
        tab.hold("/oauth/callback").await;
        self.arrive(tab, link).await;
        let page = self.approve(tab, account).await;
        page.held().pop().unwrap_or_else(|| panic!("no callback: {} {}", page.url(), page.text()))
    }

    /// Token requests with a code, refused ones included.
    async fn exchanges(&self) -> u64 {
        self.server.token_requests_by_grant(self.client, CODE).await
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> RawResponse {
        call(self.sidecar.admin(), method, path, &body).await
    }

    /// Requests a page without a browser, with additional header lines.
    async fn visit(&self, method: &str, url: &str, lines: &str) -> RawResponse {
        pages::visit(self.sidecar.admin(), method, url, lines, "").await
    }

    /// Signs in and returns the cookie as a header line.
    async fn session(&self, link: &str) -> String {
        let body = format!("token={MANAGER}");
        let response = pages::visit(self.sidecar.admin(), "POST", link, &pages::origin(link), &body).await;
        assert_eq!(response.status, 200, "{}", response.text());
        pages::cookie(&response)
    }

    /// Checks the headers of every page of the sidecar that this tab has shown; returns their number.
    fn check_pages(&self, page: &Page) -> usize {
        let own: Vec<_> = page.documents().into_iter().filter(|one| self.is_sidecar(&one["url"])).collect();
        for one in &own {
            let header = |name: &str| one["headers"][name].as_str().unwrap_or_default();
            assert_eq!((header("referrer-policy"), header("cache-control")), ("same-origin", "no-store"), "{one}");
            let policy = header("content-security-policy");
            assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{one}");
        }
        for url in page.requests() {
            let known = url.starts_with(&self.public()) || url.starts_with(&self.server.issuer());
            assert!(known || url.starts_with("data:"), "{url} is of a third party");
        }
        let refused = "Failed to load resource: the server responded with a status of 4";
        let problems: Vec<_> = page.problems().into_iter().filter(|one| !one.contains(refused)).collect();
        assert_eq!(problems, Vec::<String>::new());
        own.len()
    }

    fn is_sidecar(&self, url: &Value) -> bool {
        url.as_str().is_some_and(|url| url.starts_with(&self.public()))
    }
}

fn secret_of(client: &str) -> String {
    format!("{client}-secret-0123456789abcdef0123456789abcdef")
}

/// Fills in and submits the sign-in page.
async fn sign_in(tab: Tab<'_>) {
    tab.fill("input[name=token]", MANAGER).await;
    tab.click("button[type=submit]").await;
}

/// The encoded value of a query parameter.
fn param<'a>(url: &'a str, name: &str) -> &'a str {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value).unwrap_or_else(|| panic!("no {name} in {url}"))
}

/// The browser's cookies for the sidecar, as a header line.
fn cookies(page: &Page) -> String {
    let own = page.cookies().into_iter().filter(|cookie| cookie["domain"] == "localhost");
    let pairs: Vec<_> = own.map(|one| format!("{}={}", text(&one["name"]), text(&one["value"]))).collect();
    format!("Cookie: {}\r\n", pairs.join("; "))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
