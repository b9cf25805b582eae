//! A person connects an account: `/connect/{name}` asks for confirmation and starts a flow, `/oauth/callback` ends it.
//!
//! Not here: what a link opens (`link`), the confirmation (`confirm`), the flow in the store (`flow`), how pages look
//! (`pages`, `refusal`), device codes (`device`), the API (`api`).
//! Invariants: a GET starts nothing, so neither another site nor a link scanner can. A POST is accepted only from our own
//! pages. Only the browser that confirmed, with its own state, ends a flow; a code is exchanged once.

mod api;
mod begin;
mod browser;
mod callback;
mod confirm;
mod definition;
pub mod device;
mod finish;
mod flow;
mod link;
mod pages;
mod refusal;
mod sign_in;
mod visit;

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{Admin, Arrived, host};
use pages::Page;
use refusal::not_allowed;
use visit::Visit;

pub use api::{authorization, authorize};

const FORM_BYTES_MAX: usize = 16 * 1024;
const FORM_WAIT: Duration = Duration::from_secs(10);
const QUERY_BYTES_MAX: usize = 16 * 1024;

/// The pages that people reach with a browser.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/connect/{name}", any(connect))
        .route("/connect/{name}/result", any(callback::result))
        .route("/oauth/callback", any(callback::callback))
        .layer(from_fn_with_state(admin.clone(), guard))
        .with_state(admin)
}

/// Middleware of every page: the Host must be ours, and no page is cached.
async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let known = host::is_ours(&admin, &request, Arrived::of(&request));
    let fits = request.uri().query().is_none_or(|query| query.len() <= QUERY_BYTES_MAX);
    pages::guarded(match (known, fits) {
        (false, _) => Page::new(StatusCode::MISDIRECTED_REQUEST, "Not this address")
            .says("Keybearer does not answer under this host name.")
            .notes("Open the address that `public_url` names, or add the name to `admin.hosts`.")
            .into_response(),
        (true, false) => StatusCode::URI_TOO_LONG.into_response(),
        (true, true) => next.run(request).await,
    })
}

async fn connect(State(admin): State<Admin>, Path(name): Path<String>, request: Request) -> Response {
    let visit = Visit::of(&request);
    let response = match visit.method {
        Method::GET | Method::HEAD => confirm::show(&admin, &name, &visit).await,
        Method::POST => posted(&admin, &name, &visit, request).await,
        _ => return not_allowed("GET, HEAD, POST"),
    };
    response.unwrap_or_else(Page::into_response)
}

/// The two forms of our pages: a user's token, or a confirmation.
async fn posted(admin: &Admin, name: &str, visit: &Visit, request: Request) -> Result<Response, Page> {
    if !host::is_from_own_page(admin.snapshot.load().links.base(), &visit.headers) {
        tracing::warn!(from = %visit.from, "a form of another site is refused");
        return Err(Page::new(StatusCode::FORBIDDEN, "Not from another site")
            .says("This form was not sent by a page of Keybearer, so it is not used.")
            .notes("Open the link itself, and send the form there."));
    }
    let body = tokio::time::timeout(FORM_WAIT, axum::body::to_bytes(request.into_body(), FORM_BYTES_MAX));
    let unread = || Page::refused("The form did not arrive").says("Send it again.");
    let body = Zeroizing::new(body.await.map_err(|_| unread())?.map_err(|_| unread())?.to_vec());
    let field = |name: &str| {
        let value = form_urlencoded::parse(&body).find(|(key, _)| key == name)?.1;
        Some(Zeroizing::new(value.into_owned()))
    };
    match (field("token"), field("confirmation")) {
        (Some(token), _) => sign_in::sign_in(admin, visit, &token).await,
        (None, Some(confirmation)) => confirm::confirmed(admin, name, visit, &confirmation).await,
        (None, None) => Err(unread()),
    }
}
