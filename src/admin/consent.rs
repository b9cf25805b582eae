//! Pages on which a person connects an account: `/connect/{name}` asks for confirmation and starts a flow,
//! `/oauth/callback` completes it.
//!
//! Invariants: a GET starts nothing, so neither another site nor a link scanner can. A POST is accepted only from our
//! own pages. Only the browser that confirmed a flow can complete it, and only with the flow's `state`. A code is
//! exchanged once.
//! Not here: resolving a link (`link`), the confirmation (`confirm`), the flow in the store (`flow`), the HTML
//! (`pages`, `refusal`), device codes (`device`), the API (`api`), sign-in at the OpenID provider (`admin::sign_in`).

mod api;
mod begin;
mod browser;
mod callback;
mod confirm;
mod definition;
pub mod device;
mod finish;
mod flow;
mod hand_over;
mod link;
pub mod pages;
pub mod refusal;
mod sign_in;
pub mod visit;

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{Admin, ConnAddrs, host};
use pages::Page;
use refusal::not_allowed;
use visit::Visit;

pub use api::{AuthorizationStatus, BegunAuthorization, authorization, authorize};
pub use flow::{FlowId, constant_time_eq, random};
pub use hand_over::hand_over;

const FORM_BYTES_MAX: usize = 16 * 1024;
const FORM_TIMEOUT: Duration = Duration::from_secs(10);
const QUERY_BYTES_MAX: usize = 16 * 1024;

/// The router of the pages.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/connect/{name}", any(connect))
        .route("/connect/{name}/result", any(callback::result))
        .route("/oauth/callback", any(callback::callback))
        .layer(from_fn_with_state(admin.clone(), guard))
        .with_state(admin)
}

/// Middleware of every page: requires an accepted Host header, and forbids caching.
pub async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let known = host::is_accepted(&admin, &request, ConnAddrs::of(&request));
    let fits = request.uri().query().is_none_or(|query| query.len() <= QUERY_BYTES_MAX);
    pages::with_security_headers(match (known, fits) {
        (false, _) => Page::new(StatusCode::MISDIRECTED_REQUEST, "Unknown host name")
            .text("Keybearer does not serve this host name.")
            .note("Open the address in `public_url`, or add the host name to `admin.hosts`.")
            .into_response(),
        (true, false) => StatusCode::URI_TOO_LONG.into_response(),
        (true, true) => next.run(request).await,
    })
}

async fn connect(State(admin): State<Admin>, Path(name): Path<String>, request: Request) -> Response {
    let visit = Visit::of(&request);
    let response = match visit.method {
        Method::GET | Method::HEAD => confirm::show(&admin, &name, &visit).await,
        Method::POST => submit(&admin, &name, &visit, request).await,
        _ => return not_allowed("GET, HEAD, POST"),
    };
    response.unwrap_or_else(Page::into_response)
}

/// Handles the two forms of our pages: sign-in with a user's token, and confirmation.
async fn submit(admin: &Admin, name: &str, visit: &Visit, request: Request) -> Result<Response, Page> {
    let form = own_form(admin, visit, request).await?;
    match (form_field(&form, "token"), form_field(&form, "confirmation")) {
        (Some(token), _) => sign_in::sign_in(admin, visit, &token).await,
        (None, Some(confirmation)) => confirm::confirmed(admin, name, visit, &confirmation).await,
        (None, None) => Err(unreadable()),
    }
}

/// The body of a form that one of our pages sent.
async fn own_form(admin: &Admin, visit: &Visit, request: Request) -> Result<Zeroizing<Vec<u8>>, Page> {
    if !host::is_from_own_page(admin.snapshot.load().links.base(), &visit.headers, visit.addrs.secure) {
        tracing::warn!(from = %visit.from(), "cross-site form refused");
        return Err(Page::new(StatusCode::FORBIDDEN, "Not from another site")
            .text("This form was not sent from a Keybearer page, so it was rejected.")
            .note("Open the link itself, and submit the form there."));
    }
    let body = tokio::time::timeout(FORM_TIMEOUT, axum::body::to_bytes(request.into_body(), FORM_BYTES_MAX));
    Ok(Zeroizing::new(body.await.map_err(|_| unreadable())?.map_err(|_| unreadable())?.to_vec()))
}

fn form_field(form: &[u8], name: &str) -> Option<Zeroizing<String>> {
    let value = form_urlencoded::parse(form).find(|(key, _)| key == name)?.1;
    Some(Zeroizing::new(value.into_owned()))
}

fn unreadable() -> Page {
    Page::refused("The form was incomplete").text("Submit it again.")
}
