//! Every request of the API: for a host of ours, and from a user, by a token or a session.
//!
//! Not here: the users (`users`), sessions (`session`), host names (`host`).
//! Invariant: Host is checked before the token, so that a page that rebinds its own name learns nothing.

use std::net::SocketAddr;

use axum::extract::{OriginalUri, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::users::{Asker, USER_UNKNOWN, after_wrong_token, user_unknown};
use super::{Admin, Arrived, host, record, session};
use crate::model::Role;

const HOST_UNKNOWN: &str = "host_unknown";
const ROLE_TOO_LOW: &str = "role_too_low";
/// Below the API's base.
pub const SESSION_PATH: &str = "/session";
/// Responses that the audit records as denials.
const DENIED: [(StatusCode, &str); 3] = [
    (StatusCode::MISDIRECTED_REQUEST, HOST_UNKNOWN),
    (StatusCode::UNAUTHORIZED, USER_UNKNOWN),
    (StatusCode::FORBIDDEN, ROLE_TOO_LOW),
];

/// Middleware of the API: authenticates the user before anything else, and forbids caching the response.
pub async fn guard(State(admin): State<Admin>, mut request: Request, next: Next) -> Response {
    let (method, uri, arrived) = (request.method().clone(), whole_uri(&request), Arrived::of(&request));
    let mut user = None;
    let mut response = match admit(&admin, &request, arrived) {
        Ok(asker) => {
            user = Some(asker.name.clone());
            request.extensions_mut().insert(asker);
            next.run(request).await
        }
        // Signing in is the one operation without a user.
        Err(problem) if problem.code() == USER_UNKNOWN && is_sign_in(&request) => next.run(request).await,
        Err(problem) => {
            if request.headers().contains_key(header::AUTHORIZATION) {
                after_wrong_token().await;
            }
            problem.into_response()
        }
    };
    const HEADERS: [(HeaderName, &str); 5] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Some(code) = DENIED.iter().find_map(|(status, code)| (*status == response.status()).then_some(*code)) {
        record::denial(&admin, arrived.from, &method, uri.path(), (user.as_ref(), code, response.status()));
    }
    response
}

fn is_sign_in(request: &Request) -> bool {
    request.method() == Method::POST && request.uri().path() == SESSION_PATH
}

/// The URI before the router stripped the API's base.
fn whole_uri(request: &Request) -> Uri {
    let whole = request.extensions().get::<OriginalUri>().map(|uri| &uri.0);
    whole.unwrap_or(request.uri()).clone()
}

fn admit(admin: &Admin, request: &Request, arrived: Arrived) -> Result<Asker, Problem> {
    if !host::is_ours(admin, request, arrived) {
        let detail = "the Host header is neither this listener's address nor in `admin.hosts`";
        return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, HOST_UNKNOWN, detail));
    }
    asker(admin, request.method(), request.headers(), arrived.from).ok_or_else(user_unknown)
}

/// The user, by token or else by session; with an `Authorization` header the session does not count.
pub fn asker(admin: &Admin, method: &Method, headers: &HeaderMap, from: SocketAddr) -> Option<Asker> {
    match headers.contains_key(header::AUTHORIZATION) {
        true => admin.access.bearer(headers, from),
        false => session::asker(admin, method, headers, from),
    }
}

/// Middleware of a handler: does the user have `role` or a higher one?
pub async fn permit(role: Role, request: Request, next: Next) -> Response {
    match request.extensions().get::<Asker>() {
        None if is_sign_in(&request) => next.run(request).await,
        Some(asker) if asker.role >= role => next.run(request).await,
        _ => {
            let detail = format!("this takes the role {} or a higher one", role.as_str());
            Problem::new(StatusCode::FORBIDDEN, ROLE_TOO_LOW, detail).into_response()
        }
    }
}
