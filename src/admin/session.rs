//! Browser sessions: a sealed cookie in place of a user's token, for twelve hours, or for `admin.sign_in.session` after a
//! sign-in at the OpenID provider.
//!
//! Invariants: a cookie is valid only while its user still has the token that it was created with, or while the provider
//! and its roles are those of the sign-in. A request that changes something needs a CSRF token, which no other site can
//! read. Every replica with the same seal key can open the cookie.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::body::body;
use super::problem::Problem;
use super::sign_in_limiter::too_many_attempts;
use super::users::{AuthenticatedUser, delay_after_wrong_token, user_unknown};
use super::view::Time;
use super::{Admin, ConnAddrs, cookie};
use crate::model::secret::SecretDigest;
use crate::model::time::WallTime;
use crate::model::{Name, Role, User};
use crate::oauth::OpenIdClient;
use crate::store::SealedIn;

pub const SESSION_LIFETIME: Duration = Duration::from_secs(12 * 3600);
pub const COOKIE: &str = "keybearer_session";
/// Sessions of users with a token, and of people who signed in at the OpenID provider.
const OF_USER: SealedIn<'static> = SealedIn { table: "sessions", name: b"cookie" };
const OF_PERSON: SealedIn<'static> = SealedIn { table: "sessions", name: b"openid" };
const COOKIE_CHARS_MAX: usize = 1024;
/// Header with the CSRF token.
pub const CSRF_HEADER: &str = "x-csrf-token";

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignIn {
    /// The token of a user.
    #[schemars(required, extend("writeOnly" = true))]
    token: Option<String>,
}

/// Who is signed in.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Session")]
pub struct SignedIn {
    user: String,
    #[schemars(extend("enum" = Role::ALL.map(Role::as_str)))]
    role: &'static str,
    /// For the header `X-CSRF-Token`; null with a bearer token.
    csrf_token: Option<String>,
    /// Null with a bearer token.
    expires_at: Option<Time>,
}

/// `POST session`
pub async fn post(State(admin): State<Admin>, request: Request) -> Result<Response, Problem> {
    let (headers, addrs) = (request.headers().clone(), ConnAddrs::of(&request));
    admin.sign_in_limiter.admit(addrs.peer.ip(), admin.clock.now().boot).map_err(rate_limited)?;
    let SignIn { token } = body(request).await?;
    let token = Zeroizing::new(token.unwrap_or_default());
    let Some(user) = admin.access.user_with_token(&token) else {
        delay_after_wrong_token().await;
        return Err(user_unknown());
    };
    let session = begin(&admin, &user, &headers, addrs)?;
    tracing::info!(user = %user.name, from = %addrs.peer, "signed in");
    let response = SignedIn {
        user: user.name.to_string(),
        role: user.role.as_str(),
        csrf_token: Some(csrf_token(&session.value)),
        expires_at: Some(Time(session.ends)),
    };
    Ok(([(header::SET_COOKIE, session.cookie)], Json(response)).into_response())
}

/// `DELETE session`
pub async fn delete(State(admin): State<Admin>, request: Request) -> Response {
    let secure = cookie::is_secure(&admin, request.headers(), ConnAddrs::of(&request));
    let removal = cookie::removal(COOKIE, secure);
    ([(header::SET_COOKIE, removal)], StatusCode::NO_CONTENT).into_response()
}

/// `GET session`: who is signed in, and the CSRF token if it is by cookie.
pub async fn get(
    State(admin): State<Admin>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Json<SignedIn> {
    let by_token = request.headers().contains_key(header::AUTHORIZATION);
    let open = || open(&admin, request.headers(), ConnAddrs::of(&request));
    let session = Some(()).filter(|()| !by_token).and_then(|()| open());
    Json(SignedIn {
        user: user.name.to_string(),
        role: user.role.as_str(),
        csrf_token: session.as_ref().map(|session| csrf_token(&session.value)),
        expires_at: session.as_ref().map(|session| Time(session.ends)),
    })
}

fn rate_limited(wait: Duration) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_attempts", too_many_attempts()).retry_after(wait)
}

/// A session that has just begun.
pub struct NewSession {
    pub cookie: HeaderValue,
    value: String,
    ends: WallTime,
}

/// Begins a session of a user for the browser that sent `headers`.
pub fn begin(admin: &Admin, user: &User, headers: &HeaderMap, addrs: ConnAddrs) -> Result<NewSession, Problem> {
    let text = format!("{}\n{}", user.name, user.token.text());
    let secure = cookie::is_secure(admin, headers, addrs);
    seal(admin, OF_USER, &text, SESSION_LIFETIME, secure).ok_or_else(|| {
        let detail = "the session could not be sealed; retry";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "session_failed", detail)
    })
}

/// Begins the session of a person who has signed in at the OpenID provider.
pub fn begin_for_person(
    admin: &Admin,
    (user, role): (&Name, Role),
    provider: &OpenIdClient,
    (headers, addrs): (&HeaderMap, ConnAddrs),
) -> Option<HeaderValue> {
    let text = format!("{user}\n{}\n{}", role.as_str(), provider.settings.digest().text());
    let secure = cookie::is_secure(admin, headers, addrs);
    seal(admin, OF_PERSON, &text, provider.settings.session, secure).map(|session| session.cookie)
}

fn seal(admin: &Admin, sealed_in: SealedIn<'_>, text: &str, life: Duration, secure: bool) -> Option<NewSession> {
    let ends = admin.clock.now().wall + life;
    let sealed = admin.seal.seal(sealed_in, ends.as_secs(), text.as_bytes()).ok()?;
    let value = BASE64_URL_SAFE_NO_PAD.encode(sealed);
    let cookie = cookie::set(COOKIE, &value, life, secure)?;
    Some(NewSession { cookie, value, ends })
}

/// The session of a request.
struct Session {
    name: Name,
    role: Role,
    /// The cookie's value.
    value: String,
    ends: WallTime,
}

/// The user of this browser's session, if it is valid. An unsafe method also requires the CSRF token.
pub fn authenticate(
    admin: &Admin,
    method: &Method,
    headers: &HeaderMap,
    addrs: ConnAddrs,
) -> Option<AuthenticatedUser> {
    let session = open(admin, headers, addrs)?;
    let sent = headers.get(CSRF_HEADER).map_or(&[][..], HeaderValue::as_bytes);
    let permitted = method.is_safe() || is_csrf_token(&session, sent);
    permitted.then_some(AuthenticatedUser { name: session.name, role: session.role, from: addrs.peer })
}

/// The CSRF token of this browser's session, for a form.
pub fn csrf_token_of(admin: &Admin, headers: &HeaderMap, addrs: ConnAddrs) -> Option<String> {
    open(admin, headers, addrs).map(|session| csrf_token(&session.value))
}

pub fn has_csrf_token(admin: &Admin, headers: &HeaderMap, addrs: ConnAddrs, sent: &str) -> bool {
    open(admin, headers, addrs).is_some_and(|session| is_csrf_token(&session, sent.as_bytes()))
}

/// The session in the cookie, if it has not ended.
fn open(admin: &Admin, headers: &HeaderMap, addrs: ConnAddrs) -> Option<Session> {
    let value = cookie::get(headers, COOKIE, cookie::is_secure(admin, headers, addrs))?;
    let sealed = (value.len() <= COOKIE_CHARS_MAX).then(|| BASE64_URL_SAFE_NO_PAD.decode(&value).ok())??;
    let of_user = || admin.seal.open(OF_USER, &sealed).ok().map(|(ends, text)| (ends, user_of(admin, &text)));
    let of_person = || admin.seal.open(OF_PERSON, &sealed).ok().map(|(ends, text)| (ends, person_of(admin, &text)));
    let (ends, user) = of_user().or_else(of_person)?;
    let ((name, role), ends) = (user?, WallTime::from_secs(ends));
    (admin.clock.now().wall < ends).then_some(Session { name, role, value, ends })
}

/// The user who still has the token of the sign-in.
fn user_of(admin: &Admin, text: &[u8]) -> Option<(Name, Role)> {
    let (name, digest) = std::str::from_utf8(text).ok()?.split_once('\n')?;
    let digest: [u8; 32] = BASE64_URL_SAFE_NO_PAD.decode(digest).ok()?.try_into().ok()?;
    let user = admin.access.named(&Name::parse(name)?)?;
    (user.token == SecretDigest::new(digest)).then_some((user.name, user.role))
}

/// The person who signed in, if provider and roles are unchanged.
fn person_of(admin: &Admin, text: &[u8]) -> Option<(Name, Role)> {
    let mut parts = std::str::from_utf8(text).ok()?.split('\n');
    let (name, role, digest) = (parts.next()?, parts.next()?, parts.next()?);
    let snapshot = admin.snapshot.load();
    let current = snapshot.sign_in.as_ref()?.settings.digest().text();
    let role = Role::ALL.into_iter().find(|known| known.as_str() == role)?;
    (digest == current).then_some((Name::parse(name)?, role))
}

fn is_csrf_token(session: &Session, sent: &[u8]) -> bool {
    csrf_token(&session.value).as_bytes().ct_eq(sent).into()
}

/// Derived from the session, so nothing is stored; another site can read neither the cookie nor the response.
fn csrf_token(session: &str) -> String {
    SecretDigest::of(format!("csrf {session}").as_bytes()).text()
}
