//! The confirmation page, and the proof that a person confirmed on it.
//!
//! Invariants: showing the page starts nothing and stores nothing. A confirmation is valid only with the cookie of the
//! browser that got the page, and only for the token and the link that the page showed.
//! Not here: resolving a link (`link`), starting the flow (`begin`, `device`).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::browser::Browser;
use super::flow::{self, FLOW_LIFETIME};
use super::link::{self, Link, OpenedLink};
use super::pages::Page;
use super::refusal::internal_error;
use super::visit::Visit;
use super::{begin, device};
use crate::admin::Admin;
use crate::model::connection::ConsentFlow;
use crate::model::time::WallTime;
use crate::store::SealedIn;

const SEALED_IN: SealedIn<'static> = SealedIn { table: "confirmations", name: b"browser" };
/// A longer confirmation is refused.
const CONFIRMATION_CHARS_MAX: usize = 2048;

/// Shows what is about to be connected.
pub async fn show(admin: &Admin, name: &str, visit: &Visit) -> Result<Response, Page> {
    let opened = link::open(admin, name, visit).await?;
    // A second tab keeps the first one's cookie.
    let browser = Browser::of(admin, visit).or_else(Browser::random).ok_or_else(internal_error)?;
    let confirmation = seal(admin, &opened, &browser).ok_or_else(internal_error)?;
    let cookie = browser.cookie(admin, visit).ok_or_else(internal_error)?;
    let mut response = page(&opened, &confirmation).into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}

/// Starts the flow that the page showed.
pub async fn confirmed(admin: &Admin, name: &str, visit: &Visit, confirmation: &str) -> Result<Response, Page> {
    let opened = link::open(admin, name, visit).await?;
    let browser = Browser::of(admin, visit).filter(|browser| is_valid(admin, &opened, browser, confirmation));
    let Some(browser) = browser else {
        tracing::warn!(connection = %opened.key.connection, from = %visit.from(), "confirmation does not match its browser");
        return Err(Page::new(StatusCode::FORBIDDEN, "Please confirm again")
            .text("The page was opened in another browser, without cookies, or more than ten minutes ago.")
            .link(&visit.here(), "Show the page again"));
    };
    match opened.consent_flow {
        ConsentFlow::DeviceCode => device::start(admin, opened, &browser, visit).await,
        ConsentFlow::AuthorizationCode => begin::redirect_to_server(admin, opened, &browser, visit).await,
    }
}

/// The content of a confirmation: the browser, the token and the link.
fn content(opened: &OpenedLink, browser: &Browser) -> String {
    format!("{}\n{}\n{}", browser.digest(), opened.key, opened.link.digest().unwrap_or_default())
}

fn seal(admin: &Admin, opened: &OpenedLink, browser: &Browser) -> Option<String> {
    let ends = admin.clock.now().wall + FLOW_LIFETIME;
    let sealed = admin.seal.seal(SEALED_IN, ends.as_secs(), content(opened, browser).as_bytes()).ok()?;
    Some(BASE64_URL_SAFE_NO_PAD.encode(sealed))
}

fn is_valid(admin: &Admin, opened: &OpenedLink, browser: &Browser, confirmation: &str) -> bool {
    let fits = confirmation.len() <= CONFIRMATION_CHARS_MAX;
    let sealed = fits.then(|| BASE64_URL_SAFE_NO_PAD.decode(confirmation).ok()).flatten();
    let Some((ends, text)) = sealed.and_then(|sealed| admin.seal.open(SEALED_IN, &sealed).ok()) else { return false };
    let matches = std::str::from_utf8(&text).is_ok_and(|text| flow::constant_time_eq(text, &content(opened, browser)));
    matches && admin.clock.now().wall < WallTime::from_secs(ends)
}

fn page(opened: &OpenedLink, confirmation: &str) -> Page {
    let OpenedLink { key, definition, .. } = opened;
    let page = Page::new(StatusCode::OK, "Connect an account?").text("This connects an account to:");
    let page = page.fact("Connection", key.connection.as_str()).fact("Profile", key.profile.as_str());
    let (page, effect) = match &key.subject {
        Some(subject) => (
            page.fact("Subject", subject.as_str()),
            format!("Requests made for {subject} will use the account that you log in with."),
        ),
        None => (
            page.fact("Subject", "none (shared by all callers)"),
            "All callers of this connection will use the account that you log in with.".to_owned(),
        ),
    };
    let page = page.fact("Log in at", definition.login_host());
    let page = match (&opened.link, &opened.by) {
        (Link::OneTime(..), Some(user)) => page.fact("Requested by", user.as_str()),
        (Link::Operator, Some(user)) => page.fact("Signed in as", user.as_str()),
        _ => page,
    };
    page.text(&effect)
        .text("Continue only if you requested this and the names above are what you expect.")
        .confirm_button(confirmation, &format!("Connect {}", key.connection))
        .note("Nothing has started yet. If you did not expect this page, close it.")
}
