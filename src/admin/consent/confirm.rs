//! The confirmation page, and the proof that a person confirmed there.
//!
//! Not here: what a link opens (`link`), what a confirmation starts (`begin`, `device`).
//! Invariants: showing the page starts nothing and stores nothing. A confirmation is valid only with the cookie of the
//! browser that got the page, and only for the token and the link that the page showed.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::browser::Browser;
use super::flow::{self, LIFE};
use super::link::{self, Link, Opened};
use super::pages::Page;
use super::refusal::no_random;
use super::visit::Visit;
use super::{begin, device};
use crate::admin::Admin;
use crate::model::connection::ConsentFlow;
use crate::model::time::WallTime;
use crate::store::SealedIn;

const PLACE: SealedIn<'static> = SealedIn { table: "confirmations", name: b"browser" };
/// Longest confirmation that is read.
const CONFIRMATION_CHARS_MAX: usize = 2048;

/// Shows what will be connected.
pub async fn show(admin: &Admin, name: &str, visit: &Visit) -> Result<Response, Page> {
    let opened = link::open(admin, name, visit).await?;
    // A second tab keeps the first one's cookie.
    let browser = Browser::of(admin, visit).or_else(Browser::random).ok_or_else(no_random)?;
    let confirmation = seal(admin, &opened, &browser).ok_or_else(no_random)?;
    let cookie = browser.cookie(admin, visit).ok_or_else(no_random)?;
    let mut response = page(&opened, &confirmation).into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}

/// Starts what the page has shown.
pub async fn confirmed(admin: &Admin, name: &str, visit: &Visit, confirmation: &str) -> Result<Response, Page> {
    let opened = link::open(admin, name, visit).await?;
    let browser = Browser::of(admin, visit).filter(|browser| proves(admin, &opened, browser, confirmation));
    let Some(browser) = browser else {
        tracing::warn!(connection = %opened.key.connection, from = %visit.from, "a confirmation does not fit its browser");
        return Err(Page::new(StatusCode::FORBIDDEN, "Please confirm again")
            .says("The page was opened in another browser, without cookies, or more than ten minutes ago.")
            .link(&visit.here(), "Show the page again"));
    };
    match opened.consent_flow {
        ConsentFlow::DeviceCode => device::start(admin, opened, &browser, visit).await,
        ConsentFlow::AuthorizationCode => begin::send_away(admin, opened, &browser, visit).await,
    }
}

/// What a confirmation is for: the browser, the token and the link.
fn shown(opened: &Opened, browser: &Browser) -> String {
    format!("{}\n{}\n{}", browser.digest(), opened.key, opened.link.digest().unwrap_or_default())
}

fn seal(admin: &Admin, opened: &Opened, browser: &Browser) -> Option<String> {
    let ends = admin.clock.now().wall + LIFE;
    let sealed = admin.seal.seal(PLACE, ends.as_secs(), shown(opened, browser).as_bytes()).ok()?;
    Some(BASE64_URL_SAFE_NO_PAD.encode(sealed))
}

fn proves(admin: &Admin, opened: &Opened, browser: &Browser, confirmation: &str) -> bool {
    let fits = confirmation.len() <= CONFIRMATION_CHARS_MAX;
    let sealed = fits.then(|| BASE64_URL_SAFE_NO_PAD.decode(confirmation).ok()).flatten();
    let Some((ends, text)) = sealed.and_then(|sealed| admin.seal.open(PLACE, &sealed).ok()) else { return false };
    let same = std::str::from_utf8(&text).is_ok_and(|text| flow::same(text, &shown(opened, browser)));
    same && admin.clock.now().wall < WallTime::from_secs(ends)
}

fn page(opened: &Opened, confirmation: &str) -> Page {
    let Opened { key, definition, .. } = opened;
    let page = Page::new(StatusCode::OK, "Connect an account?").says("This connects an account to:");
    let page = page.fact("Connection", key.connection.as_str()).fact("Profile", key.profile.as_str());
    let (page, use_of_it) = match &key.subject {
        Some(subject) => (
            page.fact("Subject", subject.as_str()),
            format!("Requests made for {subject} will use the account that you log in with."),
        ),
        None => (
            page.fact("Subject", "none (shared by everyone)"),
            "Everyone who may use this connection will use the account that you log in with.".to_owned(),
        ),
    };
    let page = page.fact("Log in at", definition.login_host());
    let page = match (&opened.link, &opened.by) {
        (Link::Begun(..), Some(user)) => page.fact("Requested by", user.as_str()),
        (Link::Operator, Some(user)) => page.fact("Signed in as", user.as_str()),
        _ => page,
    };
    page.says(&use_of_it)
        .says("Go on only if you asked for this and the names above are what you expect.")
        .confirms(confirmation, &format!("Connect {}", key.connection))
        .notes("Nothing has started yet. If you did not expect this page, close it.")
}
