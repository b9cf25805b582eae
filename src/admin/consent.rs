//! A person connects an account: `/connect/{name}` begins, `/oauth/callback` ends.
//!
//! Not here: what lies in the store meanwhile (`flow`), how pages look (`pages`), codes for another device (`device`).
//! Holds: a browser that begins gets a state and a cookie of its own, and only the two together end anything; the first
//! callback that completes ends all of its flow; a code is exchanged once. What only looks (HEAD, prefetch, previews)
//! begins nothing.

mod begin;
mod callback;
pub mod device;
mod finish;
mod flow;
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
pub use begin::{authorization, authorize};
use flow::Status;
use pages::Page;

/// What browsers say when nobody has clicked yet.
const AHEAD: [&str; 3] = ["prefetch", "preview", "prerender"];
/// What fetches links to show them, by its name for itself.
const BOTS: [&str; 10] = [
    "bot/",
    "bot)",
    "slackbot",
    "preview",
    "facebookexternalhit",
    "whatsapp/",
    "embedly",
    "unfurl",
    "crawler",
    "spider",
];
const FORM_BYTES_MAX: usize = 16 * 1024;
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

    /// Somebody who looks ahead and has not asked for anything.
    fn is_preview(&self) -> bool {
        const PURPOSES: [&str; 4] = ["sec-purpose", "purpose", "x-purpose", "x-moz"];
        let text = |name: &str| {
            self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase())
        };
        let ahead = |value: String| AHEAD.iter().any(|word| value.contains(word));
        let embedded = text("sec-fetch-dest").is_some_and(|dest| dest != "document");
        let bot = text("user-agent").is_some_and(|agent| BOTS.iter().any(|bot| agent.contains(bot)));
        embedded || bot || PURPOSES.iter().any(|name| text(name).is_some_and(ahead))
    }

    /// A form of our own page, or no browser at all.
    fn is_same_origin(&self) -> bool {
        let text = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(site) = text("sec-fetch-site") {
            return matches!(site, "same-origin" | "none");
        }
        let host = text("host").unwrap_or_default();
        // Our pages send no referrer, and then browsers name no origin either.
        text("origin")
            .is_none_or(|origin| origin == "null" || origin.split_once("://").is_some_and(|(_, own)| own == host))
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
    match visit.method {
        Method::GET if !visit.is_preview() => {
            begin::open(&admin, &name, &visit).await.unwrap_or_else(Page::into_response)
        }
        Method::GET | Method::HEAD => idle(),
        Method::POST => sign_in(&admin, &visit, request).await.unwrap_or_else(Page::into_response),
        _ => not_allowed("GET, HEAD, POST"),
    }
}

/// What a look without a wish gets.
fn idle() -> Response {
    let page = Page::new(StatusCode::OK, "Connect an account").says("Open this link in a browser to begin.");
    page.into_response()
}

fn not_allowed(methods: &'static str) -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, methods)]).into_response()
}

async fn sign_in(admin: &Admin, visit: &Visit, request: Request) -> Result<Response, Page> {
    if !visit.is_same_origin() {
        return Err(Page::new(StatusCode::FORBIDDEN, "Not from another site")
            .says("Another site has sent this form, so it is not used.")
            .notes("Open the link itself and sign in there."));
    }
    let body = tokio::time::timeout(Duration::from_secs(10), axum::body::to_bytes(request.into_body(), FORM_BYTES_MAX));
    let unread = || Page::refused("The form did not arrive").says("Send it again.");
    let body = body.await.map_err(|_| unread())?.map_err(|_| unread())?;
    let token = form_urlencoded::parse(&body).find(|(name, _)| name == "token");
    let token = Zeroizing::new(token.ok_or_else(unread)?.1.into_owned());
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
    let here = visit.uri.path_and_query().map_or("/", |path| path.as_str());
    let page = Page::new(StatusCode::OK, "Signed in")
        .says(&format!("You are signed in as {}.", user.name))
        .goes_on(0, here)
        .link(here, "Go on");
    let mut response = page.into_response();
    response.headers_mut().insert(header::SET_COOKIE, made.cookie);
    Ok(response)
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
        Status::Exchanging | Status::Connected => Page::refused("This link was already used")
            .says("The account has been connected with it, or is just being."),
        Status::Denied => Page::refused("Access was declined").says("Somebody has declined access with this link."),
        Status::Expired => Page::refused("This link has expired").says("A link is good for ten minutes."),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_only_looks_begins_nothing() {
        #[track_caller]
        fn check(name: &'static str, value: &str, expected: bool) {
            let headers = HeaderMap::from_iter([(header::HeaderName::from_static(name), value.parse().unwrap())]);
            let from = SocketAddr::from(([127, 0, 0, 1], 1));
            let visit = Visit { method: Method::GET, uri: Uri::from_static("/connect/crm"), headers, from };
            assert_eq!(visit.is_preview(), expected, "{name}: {value}");
        }
        check("sec-purpose", "prefetch;prerender", true);
        check("purpose", "prefetch", true);
        check("x-moz", "Prefetch", true);
        check("sec-fetch-dest", "iframe", true);
        check("sec-fetch-dest", "document", false);
        check("user-agent", "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", true);
        check("user-agent", "TelegramBot (like TwitterBot)", true);
        check("user-agent", "Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5", true);
        check("user-agent", "Mozilla/5.0 (Linux; Android 9; CUBOT_NOTE_7) AppleWebKit/537.36 Chrome/90 Mobile", false);
        check("user-agent", "curl/8.5.0", false);
    }
}
