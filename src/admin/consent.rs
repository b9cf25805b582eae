//! A person connects an account: `/connect/{name}` asks for a confirmation and begins, `/oauth/callback` ends.
//!
//! Not here: what a link opens (`link`), the confirmation (`confirm`), what is kept in the store meanwhile (`flow`), how pages
//! look (`pages`), codes for another device (`device`), what programs ask (`api`).
//! Holds: a GET starts nothing, so neither another site nor a link scanner does. A POST counts from our own pages alone. Only
//! the browser that has confirmed, with the state that it was given, ends what it began; a code is exchanged once.

mod api;
mod begin;
mod callback;
mod confirm;
pub mod device;
mod finish;
mod flow;
mod link;
mod pages;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::auth::{self, Arrived};
use super::{Admin, session};
use crate::model::Role;
use crate::model::connection::Connection;
use crate::model::token::TokenKey;
use crate::oauth::{Failure, TokenEndpoint};
use crate::snapshot::BoundConnection;
use crate::store::StoreError;
use crate::token::Slots;
use crate::token::slot::TokenSlot;
pub use api::{authorization, authorize};
use flow::Status;
use pages::Page;

const FORM_BYTES_MAX: usize = 16 * 1024;
const FORM_WAIT: Duration = Duration::from_secs(10);
const QUERY_BYTES_MAX: usize = 16 * 1024;

/// Everything that browsers of people may reach.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/connect/{name}", any(connect))
        .route("/connect/{name}/result", any(callback::result))
        .route("/oauth/callback", any(callback::callback))
        .layer(from_fn_with_state(admin.clone(), guard))
        .with_state(admin)
}

/// One request of a browser.
struct Visit {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    from: SocketAddr,
}

impl Visit {
    fn of(request: &Request) -> Visit {
        let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
        Visit { method, uri, headers, from: auth::arrived(request).from }
    }

    /// The value of a query parameter; `Err`: it is there more than once.
    fn query(&self, name: &str) -> Result<Option<String>, Page> {
        let query = self.uri.query().unwrap_or_default();
        let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(|(_, value)| value.into_owned())),
            _ => Err(Page::refused("This address is not readable")
                .says("A parameter of the address stands in it twice, so it is not used at all.")
                .notes("Nothing was connected. Begin again with a new link.")),
        }
    }

    /// The address of this page, as a link on it.
    fn here(&self) -> String {
        let name = self.uri.path().rsplit('/').next().unwrap_or_default();
        let query = self.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        // Relative, since a proxy in front may have taken a part of the path away.
        format!("./{name}{query}")
    }
}

/// A definition of a connection that is in force, and all that connecting it takes.
#[derive(Clone)]
struct Definition {
    connection: Arc<Connection>,
    endpoint: Arc<TokenEndpoint>,
    slots: Slots,
}

impl Definition {
    fn of(bound: &BoundConnection, key: &TokenKey) -> Option<Definition> {
        let own = bound.definition(key.profile.as_str())?;
        let (endpoint, slots) = own.endpoint.clone().zip(own.slots.clone())?;
        Some(Definition { connection: own.connection.clone(), endpoint, slots })
    }

    fn slot(&self, key: &TokenKey) -> Option<Arc<TokenSlot>> {
        // A shared token has no subject.
        self.slots.slot(key.subject.as_ref()).filter(|slot| slot.key == *key)
    }

    /// Where a person logs in, as far as the configuration says.
    fn login_host(&self) -> &str {
        let endpoints = &self.connection.endpoints;
        endpoints.authorization.as_ref().unwrap_or(&endpoints.server).host_str().unwrap_or_default()
    }
}

/// Around every page: under our own names alone, and nothing is kept.
async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let Arrived { at, .. } = auth::arrived(&request);
    let known = auth::knows_host(&admin, &request, at);
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

/// What the two forms of our pages send.
async fn posted(admin: &Admin, name: &str, visit: &Visit, request: Request) -> Result<Response, Page> {
    if !auth::is_own_origin(admin.snapshot.load().links.base(), &visit.headers) {
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
        (Some(token), _) => sign_in(admin, visit, &token).await,
        (None, Some(confirmation)) => confirm::confirmed(admin, name, visit, &confirmation).await,
        (None, None) => Err(unread()),
    }
}

fn not_allowed(methods: &'static str) -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, methods)]).into_response()
}

async fn sign_in(admin: &Admin, visit: &Visit, token: &str) -> Result<Response, Page> {
    let Some(user) = admin.access.holder_of(token.trim()) else {
        auth::after_wrong_token().await;
        let denied = (None, auth::USER_UNKNOWN, StatusCode::UNAUTHORIZED);
        auth::record_denial(admin, visit.from, &Method::POST, visit.uri.path(), denied);
        let page = Page::new(StatusCode::UNAUTHORIZED, "Sign in").says("Nobody has this token. Try again.");
        return Err(page.asks_for_token());
    };
    let made = session::begin(admin, &user, &visit.headers)
        .map_err(|_| Page::new(StatusCode::INTERNAL_SERVER_ERROR, "Signing in failed").says("Try again."))?;
    tracing::info!(user = %user.name, from = %visit.from, "signed in");
    // A redirect would be part of the form's way, which the policy of its page confines to this site.
    let page = Page::new(StatusCode::OK, "Signed in")
        .says(&format!("You are signed in as {}.", user.name))
        .goes_on(0, &visit.here())
        .link(&visit.here(), "Go on");
    Ok(([(header::SET_COOKIE, made.cookie)], page).into_response())
}

/// A store that cannot be used, as a page.
fn no_store(error: &StoreError) -> Page {
    tracing::error!(%error, "an authorization cannot be kept or found");
    Page::new(StatusCode::SERVICE_UNAVAILABLE, "Not now")
        .says("Keybearer cannot reach its store, so nothing can be connected at the moment.")
        .notes("Try again in a minute; an administrator finds the reason in the log.")
}

fn signed_in(admin: &Admin, visit: &Visit) -> Result<auth::Asker, Page> {
    match auth::asker(admin, &Method::GET, &visit.headers, visit.from) {
        Some(asker) if asker.role >= Role::Operator => Ok(asker),
        Some(asker) => Err(Page::new(StatusCode::FORBIDDEN, "Not permitted")
            .says(&format!("{} may look at connections, not connect them.", asker.name))
            .notes("Sign in as an operator or a manager.")
            .asks_for_token()),
        None => Err(Page::new(StatusCode::UNAUTHORIZED, "Sign in")
            .says("Everybody who may use this connection will use the account that is connected here.")
            .says("So an operator's or manager's admin token is needed to begin.")
            .asks_for_token()),
    }
}

/// What a flow that is over says; `None`: it is not over.
fn over(status: &Status) -> Option<Page> {
    let again = "If you need to connect again, begin with a new link: repeat the request that named it, or ask whoever sent it.";
    let page = match status {
        Status::Pending => return None,
        Status::Exchanging { .. } | Status::Connected => Page::refused("This link was already used")
            .says("The account has been connected with it, or is just being."),
        Status::Denied => Page::refused("Access was declined").says("Somebody has declined access with this link."),
        Status::Expired => Page::refused("This link has expired").says("A link is good for ten minutes."),
        Status::Replaced => Page::refused("A newer link has replaced this one")
            .says("The same connection was begun once more after this, and only the last one counts."),
        Status::Failed { error, .. } => {
            Page::refused("Connecting has failed").says(&format!("It failed with this link before: {error}"))
        }
    };
    Some(page.notes(again))
}

/// The authorization server gave nothing to begin with.
fn not_asked(failure: &Failure) -> Page {
    Page::new(StatusCode::BAD_GATEWAY, "The authorization server cannot be asked")
        .says(&why(failure))
        .notes("Nothing was connected. Try again; if it stays so, an administrator has to look at the connection.")
}

fn why(failure: &Failure) -> String {
    match failure {
        Failure::Permanent(refusal) => format!("It refused: {refusal}"),
        Failure::Retryable { reason, .. } => format!("It did not answer as it should: {reason}"),
        Failure::Script { message, .. } => format!("The connection's script failed: {message}"),
    }
}

/// A token that no longer is what it was when somebody began.
fn changed() -> Page {
    Page::refused("The connection has changed")
        .says("Its configuration is another one now, so what was begun cannot be finished.")
        .notes("Begin again with a new link.")
}

fn no_random() -> Page {
    Page::new(StatusCode::INTERNAL_SERVER_ERROR, "Not now").says("Something went wrong here. Try again.")
}
