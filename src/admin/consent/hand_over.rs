//! From the admin listener to the link on `public_url`: an operator who has signed in there gets a one-time link, because
//! the browser does not send the session's cookie to the other host.
//!
//! Invariants: a GET starts nothing; the POST needs the session, its CSRF token and our own page.

use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};

use super::api::{code_flow, store_flow};
use super::flow::FlowId;
use super::link::{self, Link, OpenedLink};
use super::pages::Page;
use super::refusal::{internal_error, not_allowed};
use super::sign_in::sign_in;
use super::visit::Visit;
use super::{form_field, own_form};
use crate::admin::{Admin, record, session};
use crate::model::connection::ConsentFlow;

/// `/sign-in/connect/{name}`
pub async fn hand_over(State(admin): State<Admin>, Path(name): Path<String>, request: Request) -> Response {
    let visit = Visit::of(&request);
    let response = match visit.method {
        Method::GET | Method::HEAD => show(&admin, &name, &visit).await,
        Method::POST => create_link(&admin, &name, &visit, request).await,
        _ => return not_allowed("GET, HEAD, POST"),
    };
    response.unwrap_or_else(Page::into_response)
}

/// The token of an operator's link that is connected in a browser.
async fn opened(admin: &Admin, name: &str, visit: &Visit) -> Result<OpenedLink, Page> {
    let opened = link::open(admin, name, visit).await?;
    match (&opened.link, opened.consent_flow) {
        (Link::Operator, ConsentFlow::AuthorizationCode) => Ok(opened),
        (Link::Operator, ConsentFlow::DeviceCode) => Err(Page::new(StatusCode::CONFLICT, "Connected with a code")
            .text(&format!("Connect it from a terminal: keybearer connect {}", opened.key.connection))),
        _ => Err(Page::refused("This address is invalid").text("Open the link itself.")),
    }
}

async fn show(admin: &Admin, name: &str, visit: &Visit) -> Result<Response, Page> {
    let opened = opened(admin, name, visit).await?;
    let csrf = session::csrf_token_of(admin, &visit.headers, visit.addrs).ok_or_else(internal_error)?;
    Ok(Page::new(StatusCode::OK, "Continue to the link?")
        .text(&format!("You have signed in, and can now connect {}.", opened.key.connection))
        .confirm_button(&csrf, "Continue")
        .note("A one-time link opens, which shows again what will be connected.")
        .into_response())
}

async fn create_link(admin: &Admin, name: &str, visit: &Visit, request: Request) -> Result<Response, Page> {
    let form = own_form(admin, visit, request).await?;
    if let Some(token) = form_field(&form, "token") {
        return sign_in(admin, visit, &token).await;
    }
    let opened = opened(admin, name, visit).await?;
    let sent = form_field(&form, "confirmation").unwrap_or_default();
    if !session::has_csrf_token(admin, &visit.headers, visit.addrs, &sent) {
        return Err(Page::new(StatusCode::FORBIDDEN, "Please confirm again").link(&visit.here(), "Show the page again"));
    }
    let user = opened.by.as_ref().ok_or_else(internal_error)?;
    let id = FlowId::random(&opened.flow_key).ok_or_else(internal_error)?;
    let failed = |_| {
        Page::new(StatusCode::CONFLICT, "No link").text("A link cannot be made at the moment. Try again in a minute.")
    };
    let snapshot = admin.snapshot.load_full();
    let (flow, link) = code_flow(admin, &snapshot, &opened.definition, (id, &opened.key), user).map_err(failed)?;
    store_flow(admin, &flow).await.map_err(failed)?;
    let by = (Some(user), visit.from());
    record::change(admin, by, (&Method::POST, visit.uri.path()), &opened.key, (StatusCode::CREATED, None));
    // Not an HTTP redirect: the policy `form-action` of the page with the form would block one to another site.
    Ok(Page::new(StatusCode::OK, "One moment").refresh(0, &link).link(&link, "Continue").into_response())
}
