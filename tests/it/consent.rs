//! People connect accounts: a real browser walks from the proxy's error to a token, at real authorization servers.
//!
//! Not here: time that passes (a flow and a link end after ten minutes, which their unit tests hold), Authlib's and
//! oidc-provider's own pages (`tests/peers`).

mod again;
mod confirmation;
mod endings;
mod people;
mod refusals;
mod secrets;
mod variants;
mod walk;

use serde_json::{Value, json};

use crate::rig::browser::{Browser, Page, Tab};
use crate::rig::manager::{MANAGER, call};
use crate::rig::pages;
use crate::rig::peers::{AuthorizationServer, Peers, Upstream};
use crate::rig::raw::{self, RawResponse};
use crate::rig::sidecar::Sidecar;

/// Scopes with which oidc-provider gives a refresh token, if it is asked for consent.
const OFFLINE: &str = "openid, offline_access, api.read";
const CODE: &str = "authorization_code";
const DEVICE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// A sidecar with the connection `crm` for http://api.test, and all that it needs around it.
struct House {
    server: AuthorizationServer,
    upstream: Upstream,
    sidecar: Sidecar,
    browser: Browser,
    client: &'static str,
}

/// The endpoints written out, with more of a query where people are sent.
fn endpoints(server: &AuthorizationServer, query: &str) -> String {
    let (url, token, revocation) = (server.authorization_url(), server.token_url(), server.revocation_url());
    format!("authorization_url: \"{url}{query}\", token_url: \"{token}\", revocation_url: \"{revocation}\"")
}

/// What discovery has.
fn issuer(server: &AuthorizationServer) -> String {
    format!("issuer: \"{}\", grant: authorization_code, authorize_params: {{prompt: consent}}", server.issuer())
}

impl House {
    async fn op(client: &'static str) -> House {
        let server = AuthorizationServer::op(json!({"lifetime": 600})).await;
        let keys = format!("{}, scopes: [{OFFLINE}]", issuer(&server));
        House::with(server, client, &keys, "").await
    }

    /// `keys` are those of the connection, `top` those around it.
    async fn with(server: AuthorizationServer, client: &'static str, keys: &str, top: &str) -> House {
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
        House { server, upstream, sidecar, browser, client }
    }

    /// Where browsers reach the sidecar.
    fn public(&self) -> String {
        format!("http://localhost:{}", self.sidecar.admin().port())
    }

    async fn ask(&self, lines: &str) -> RawResponse {
        raw::get_through(self.sidecar.proxy(), "http://api.test/x", lines).await
    }

    /// The account whose token the upstream has accepted.
    async fn accepted(&self, lines: &str) -> String {
        let answer = self.ask(lines).await;
        assert_eq!(answer.status, 200, "{}\n{}", answer.text(), self.sidecar.log());
        let seen = answer.json();
        assert_eq!((&seen["active"], &seen["client_id"]), (&json!(true), &json!(self.client)), "{seen}");
        seen["sub"].as_str().unwrap_or_default().to_owned()
    }

    /// What a refused request names as the way out.
    async fn link(&self, lines: &str) -> String {
        let answer = self.ask(lines).await;
        assert_eq!(answer.status, 424, "{}", answer.text());
        let problem = answer.json();
        assert_eq!(problem["action"], "reauthorize", "{problem}");
        assert!(answer.header("retry-after").is_none(), "a retry changes nothing");
        problem["link"].as_str().unwrap_or_else(|| panic!("no link: {problem}")).to_owned()
    }

    /// Opens a link, signs in where that is asked, confirms, and stops at the authorization server's page.
    async fn arrive(&self, tab: Tab<'_>, link: &str) -> Page {
        let page = tab.open(link).await;
        if page.status() == 401 {
            sign_in(tab).await;
        }
        tab.confirm().await;
        tab.until(&self.server.issuer(), "Continue").await
    }

    /// Logs in there, where that is asked, and agrees.
    async fn agree(&self, tab: Tab<'_>, account: &str) -> Page {
        let page = tab.until(&self.server.issuer(), "Continue").await;
        if page.html().contains("name=\"account\"") {
            tab.sign_in(account).await;
        }
        tab.until(&self.server.issuer(), &format!("{account}, may")).await;
        tab.agree().await
    }

    /// From the link to the page that says that it is done.
    async fn connect(&self, tab: Tab<'_>, link: &str, account: &str) -> Page {
        self.arrive(tab, link).await;
        self.agree(tab, account).await;
        tab.until("/result", "Connected").await
    }

    /// The same up to the callback, which is held back: its address.
    async fn until_callback(&self, tab: Tab<'_>, link: &str, account: &str) -> String {
        tab.hold("/oauth/callback").await;
        self.arrive(tab, link).await;
        let page = self.agree(tab, account).await;
        page.held().pop().unwrap_or_else(|| panic!("no callback: {} {}", page.url(), page.text()))
    }

    /// Token requests with a code, refused ones included.
    async fn exchanges(&self) -> u64 {
        self.server.token_requests_by_grant(self.client, CODE).await
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> RawResponse {
        call(self.sidecar.admin(), method, path, &body).await
    }

    /// A request to a page without a browser, with further header lines.
    async fn visit(&self, method: &str, url: &str, lines: &str) -> RawResponse {
        pages::visit(self.sidecar.admin(), method, url, lines, "").await
    }

    /// The cookie of a person who has signed in, as a header line.
    async fn session(&self, link: &str) -> String {
        let body = format!("token={MANAGER}");
        let answer = pages::visit(self.sidecar.admin(), "POST", link, &pages::origin(link), &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        pages::cookie(&answer)
    }

    /// What every page of the sidecar on the way of this tab has to hold; how many there were.
    fn pages_hold(&self, page: &Page) -> usize {
        let own: Vec<_> = page.documents().into_iter().filter(|one| self.is_own(&one["url"])).collect();
        for one in &own {
            let header = |name: &str| one["headers"][name].as_str().unwrap_or_default();
            assert_eq!((header("referrer-policy"), header("cache-control")), ("same-origin", "no-store"), "{one}");
            let policy = header("content-security-policy");
            assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{one}");
        }
        for url in page.requests() {
            let known = url.starts_with(&self.public()) || url.starts_with(&self.server.issuer());
            assert!(known || url.starts_with("data:"), "{url} is a third party's");
        }
        let refused = "Failed to load resource: the server responded with a status of 4";
        let problems: Vec<_> = page.problems().into_iter().filter(|one| !one.contains(refused)).collect();
        assert_eq!(problems, Vec::<String>::new());
        own.len()
    }

    fn is_own(&self, url: &Value) -> bool {
        url.as_str().is_some_and(|url| url.starts_with(&self.public()))
    }
}

fn secret_of(client: &str) -> String {
    format!("{client}-secret-0123456789abcdef0123456789abcdef")
}

/// On the page that asks a person to sign in.
async fn sign_in(tab: Tab<'_>) {
    tab.fill("input[name=token]", MANAGER).await;
    tab.click("button[type=submit]").await;
}

/// The value of a query parameter, as it is written.
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
