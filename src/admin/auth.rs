//! Authentication of API requests: the Host header, then the user, by token or session.
//!
//! Invariant: Host is checked before the token, so that a page that uses DNS rebinding learns nothing.
//! Not here: the users (`users`), sessions (`session`), accepted hosts (`host`).

use axum::extract::{OriginalUri, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::users::{AuthenticatedUser, USER_UNKNOWN, delay_after_wrong_token, user_unknown};
use super::{Admin, ConnAddrs, host, record, session};
use crate::model::Role;

const HOST_UNKNOWN: &str = "host_unknown";
const ROLE_TOO_LOW: &str = "role_too_low";
/// `Cache-Control` of the few responses that a browser may cache.
pub const BROWSER_CACHE: &str = "private, max-age=600";
/// Relative to the API's base path.
pub const SESSION_PATH: &str = "/session";
/// Responses that the audit records as denials.
const DENIED: [(StatusCode, &str); 3] = [
    (StatusCode::MISDIRECTED_REQUEST, HOST_UNKNOWN),
    (StatusCode::UNAUTHORIZED, USER_UNKNOWN),
    (StatusCode::FORBIDDEN, ROLE_TOO_LOW),
];

/// Middleware of the API: authenticates the user before anything else, and forbids caching the response, unless it has
/// [`BROWSER_CACHE`].
pub async fn guard(State(admin): State<Admin>, mut request: Request, next: Next) -> Response {
    let (method, uri, addrs) = (request.method().clone(), full_uri(&request), ConnAddrs::of(&request));
    let mut user = None;
    let mut response = match admit(&admin, &request, addrs) {
        Ok(authenticated) => {
            user = Some(authenticated.name.clone());
            request.extensions_mut().insert(authenticated);
            next.run(request).await
        }
        // Signing in is the one operation without a user.
        Err(problem) if problem.code() == USER_UNKNOWN && is_sign_in(&request) => next.run(request).await,
        Err(problem) => {
            if request.headers().contains_key(header::AUTHORIZATION) {
                delay_after_wrong_token().await;
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
    let is_cacheable = response.headers().get(header::CACHE_CONTROL).is_some_and(|value| value == BROWSER_CACHE);
    for (name, value) in HEADERS {
        if name != header::CACHE_CONTROL || !is_cacheable {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
    }
    if let Some(code) = DENIED.iter().find_map(|(status, code)| (*status == response.status()).then_some(*code)) {
        record::denial(&admin, addrs.peer, &method, uri.path(), (user.as_ref(), code, response.status()));
    }
    response
}

fn is_sign_in(request: &Request) -> bool {
    request.method() == Method::POST && request.uri().path() == SESSION_PATH
}

/// The URI before the router stripped the API's base path.
fn full_uri(request: &Request) -> Uri {
    let full = request.extensions().get::<OriginalUri>().map(|uri| &uri.0);
    full.unwrap_or(request.uri()).clone()
}

fn admit(admin: &Admin, request: &Request, addrs: ConnAddrs) -> Result<AuthenticatedUser, Problem> {
    if !host::is_accepted(admin, request, addrs) {
        let detail = "the Host header is neither this listener's address nor in `admin.hosts`";
        return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, HOST_UNKNOWN, detail));
    }
    authenticate(admin, request.method(), request.headers(), addrs).ok_or_else(user_unknown)
}

/// The user by token, else by session. With an `Authorization` header the session is ignored.
pub fn authenticate(
    admin: &Admin,
    method: &Method,
    headers: &HeaderMap,
    addrs: ConnAddrs,
) -> Option<AuthenticatedUser> {
    match headers.contains_key(header::AUTHORIZATION) {
        true => admin.access.bearer(headers, addrs.peer),
        false => session::authenticate(admin, method, headers, addrs),
    }
}

/// Middleware of a handler: requires `role` or a higher one.
pub async fn permit(role: Role, request: Request, next: Next) -> Response {
    match request.extensions().get::<AuthenticatedUser>() {
        None if is_sign_in(&request) => next.run(request).await,
        Some(user) if user.role >= role => next.run(request).await,
        _ => role_too_low(role).into_response(),
    }
}

/// The problem of a user below `role`; the audit records the response as a denial.
pub fn role_too_low(role: Role) -> Problem {
    let detail = format!("this requires the role {} or a higher one", role.as_str());
    Problem::new(StatusCode::FORBIDDEN, ROLE_TOO_LOW, detail)
}
