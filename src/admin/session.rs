//! Browser sessions: a sealed cookie in place of a user's token, for twelve hours.
//!
//! Invariants: a cookie is valid only while its user still has the token that it was created with. A request that changes
//! something needs a CSRF token, which no other site can read. Every replica with the same seal key can open the cookie.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::json;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::body::body;
use super::problem::Problem;
use super::users::{AuthenticatedUser, delay_after_wrong_token, user_unknown};
use super::{Admin, ConnAddrs, cookie};
use crate::model::secret::SecretDigest;
use crate::model::time::{WallTime, rfc3339};
use crate::model::{Name, User};
use crate::store::SealedIn;

pub const SESSION_LIFETIME: Duration = Duration::from_secs(12 * 3600);
const COOKIE: &str = "keybearer_session";
const SEALED_IN: SealedIn<'static> = SealedIn { table: "sessions", name: b"cookie" };
const COOKIE_CHARS_MAX: usize = 1024;
/// Header with the CSRF token.
const CSRF_HEADER: &str = "x-csrf-token";

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    #[serde(default)]
    token: String,
}

/// `POST session`
pub async fn post(State(admin): State<Admin>, request: Request) -> Result<Response, Problem> {
    let (headers, addrs) = (request.headers().clone(), ConnAddrs::of(&request));
    let SignIn { token } = body(request).await?;
    let token = Zeroizing::new(token);
    let Some(user) = admin.access.user_with_token(&token) else {
        delay_after_wrong_token().await;
        return Err(user_unknown());
    };
    let session = begin(&admin, &user, &headers, addrs)?;
    tracing::info!(user = %user.name, from = %addrs.peer, "signed in");
    let response = json!({
        "user": user.name.as_str(),
        "role": user.role.as_str(),
        "csrf_token": csrf_token(&session.value),
        "expires_at": rfc3339(session.ends),
    });
    Ok(([(header::SET_COOKIE, session.cookie)], Json(response)).into_response())
}

/// `DELETE session`
pub async fn delete(State(admin): State<Admin>, request: Request) -> Response {
    let secure = cookie::is_secure(&admin, request.headers(), ConnAddrs::of(&request));
    let removal = cookie::removal(COOKIE, secure);
    ([(header::SET_COOKIE, removal)], StatusCode::NO_CONTENT).into_response()
}

/// A session that has just begun.
pub struct NewSession {
    pub cookie: HeaderValue,
    value: String,
    ends: WallTime,
}

/// Begins a session for the browser that sent `headers`.
pub fn begin(admin: &Admin, user: &User, headers: &HeaderMap, addrs: ConnAddrs) -> Result<NewSession, Problem> {
    let failed =
        || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "session_failed", "the session could not be sealed; retry");
    let ends = admin.clock.now().wall + SESSION_LIFETIME;
    let text = format!("{}\n{}", user.name, user.token.text());
    let sealed = admin.seal.seal(SEALED_IN, ends.as_secs(), text.as_bytes()).map_err(|_| failed())?;
    let value = BASE64_URL_SAFE_NO_PAD.encode(sealed);
    let secure = cookie::is_secure(admin, headers, addrs);
    let cookie = cookie::set(COOKIE, &value, SESSION_LIFETIME, secure).ok_or_else(failed)?;
    Ok(NewSession { cookie, value, ends })
}

/// The user who is signed in with this browser. An unsafe method needs the CSRF token.
pub fn authenticate(
    admin: &Admin,
    method: &Method,
    headers: &HeaderMap,
    addrs: ConnAddrs,
) -> Option<AuthenticatedUser> {
    let value = cookie::get(headers, COOKIE, cookie::is_secure(admin, headers, addrs))?;
    if !method.is_safe() && !has_csrf_token(headers, &value) {
        return None;
    }
    let sealed = (value.len() <= COOKIE_CHARS_MAX).then(|| BASE64_URL_SAFE_NO_PAD.decode(&value).ok())??;
    let (ends, text) = admin.seal.open(SEALED_IN, &sealed).ok()?;
    if admin.clock.now().wall >= WallTime::from_secs(ends) {
        return None;
    }
    let (name, digest) = std::str::from_utf8(&text).ok()?.split_once('\n')?;
    let digest: [u8; 32] = BASE64_URL_SAFE_NO_PAD.decode(digest).ok()?.try_into().ok()?;
    let user = admin.access.named(&Name::parse(name)?)?;
    let authenticated = AuthenticatedUser { name: user.name, role: user.role, from: addrs.peer };
    (user.token == SecretDigest::new(digest)).then_some(authenticated)
}

fn has_csrf_token(headers: &HeaderMap, session: &str) -> bool {
    let sent = headers.get(CSRF_HEADER).map_or(&[][..], HeaderValue::as_bytes);
    csrf_token(session).as_bytes().ct_eq(sent).into()
}

/// Derived from the session, so nothing is stored; another site can read neither the cookie nor the response.
fn csrf_token(session: &str) -> String {
    SecretDigest::of(format!("csrf {session}").as_bytes()).text()
}
