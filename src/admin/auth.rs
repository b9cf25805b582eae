//! Who asks, and whether under a name of ours.
//!
//! Holds: Host is checked before the token, so that a page that rebinds its own name learns nothing; every user's token
//! is compared, in constant time; a wrong token is answered late.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::extract::{OriginalUri, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use url::Url;

pub use super::Arrived;
use super::problem::Problem;
use super::{Admin, session, token_file};
use crate::model::origin::{Authority, Host};
use crate::model::secret::SecretDigest;
use crate::model::token::{Subject, TokenKey};
use crate::model::{AdminAccess, Model, Name, Role, User};
use crate::telemetry::audit::{self, Kind, Person};

const FILE: &str = "admin-token";
/// Whom the token file makes its holder.
const HOLDER: &str = "admin-token";
/// One connection guesses at most so often.
const AFTER_WRONG_TOKEN: Duration = Duration::from_millis(100);

const HOST_UNKNOWN: &str = "host_unknown";
pub const USER_UNKNOWN: &str = "user_unknown";
const ROLE_TOO_LOW: &str = "role_too_low";
/// Below the API's base.
pub const SESSION_PATH: &str = "/session";
/// What is a denial in the audit, each for one reason.
const DENIED: [(StatusCode, &str); 3] = [
    (StatusCode::MISDIRECTED_REQUEST, HOST_UNKNOWN),
    (StatusCode::UNAUTHORIZED, USER_UNKNOWN),
    (StatusCode::FORBIDDEN, ROLE_TOO_LOW),
];

/// The users and names in force; a reload replaces them.
#[derive(Debug)]
pub struct Access {
    state_dir: PathBuf,
    current: ArcSwap<AdminAccess>,
}

/// Whoever asks, once known.
#[derive(Debug, Clone)]
pub struct Asker {
    pub name: Name,
    pub role: Role,
    pub from: SocketAddr,
}

impl Asker {
    pub fn person(&self) -> Person {
        Person { user: Some(self.name.clone()), from: Some(self.from) }
    }
}

impl Access {
    pub fn new(model: &Model) -> Access {
        let access = Access { state_dir: model.state_dir.clone(), current: ArcSwap::default() };
        access.follow(model);
        access
    }

    /// Puts the users of `model` into force. Without any, the holder of the token file is a manager.
    pub fn follow(&self, model: &Model) {
        let mut access = model.admin.clone();
        if access.users.is_empty() {
            access.users.extend(self.holder());
        }
        self.current.store(Arc::new(access));
    }

    fn holder(&self) -> Option<User> {
        let path = self.state_dir.join(FILE);
        match token_file::read_or_make(&path) {
            Ok(token) => {
                tracing::info!(path = %path.display(), "no users are configured; the admin token is in this file");
                Some(User { name: Name::parse(HOLDER)?, role: Role::Manager, token: token.digest() })
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error,
                    "no admin token can be kept, so nobody may use the API; set state_dir, or list admin.users");
                None
            }
        }
    }

    fn user(&self, headers: &HeaderMap, from: SocketAddr) -> Option<Asker> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (value, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
        let (scheme, token) = value.split_once(' ')?;
        let user = self.holder_of(token.trim()).filter(|_| scheme.eq_ignore_ascii_case("Bearer"))?;
        Some(Asker { name: user.name, role: user.role, from })
    }

    /// Whose token this is.
    pub fn holder_of(&self, token: &str) -> Option<User> {
        let digest = SecretDigest::of(token.as_bytes());
        let access = self.current.load();
        // To the end: how long it takes tells nothing about whose token it is.
        let found = access.users.iter().fold(None, |found, user| if user.token == digest { Some(user) } else { found });
        found.cloned()
    }

    pub fn named(&self, name: &Name) -> Option<User> {
        self.current.load().users.iter().find(|user| user.name == *name).cloned()
    }

    /// Is this one of the names that we answer to, at the address where the request arrived?
    fn answers_to(&self, named: &Authority, arrived: SocketAddr) -> bool {
        let own = match &named.host {
            Host::Ip(address) => address.to_canonical() == arrived.ip().to_canonical(),
            Host::Name(name) => &**name == "localhost" && arrived.ip().to_canonical().is_loopback(),
        };
        let listed = |host: &Authority| host.host == named.host && (host.port.is_none() || host.port == named.port);
        own && named.port.unwrap_or(80) == arrived.port() || self.current.load().hosts.iter().any(listed)
    }

    fn knows_host(&self, uri: &Uri, headers: &HeaderMap, arrived: SocketAddr) -> bool {
        let known = |text: &str| Authority::parse(text).is_ok_and(|named| self.answers_to(&named, arrived));
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        host.to_str().is_ok_and(known) && uri.authority().is_none_or(|authority| known(authority.as_str()))
    }
}

/// Around every answer of the API: who asks is known before anything is said, and what is said is not kept.
pub async fn guard(State(admin): State<Admin>, mut request: Request, next: Next) -> Response {
    let (method, uri, arrived) = (request.method().clone(), whole_uri(&request), arrived(&request));
    let mut user = None;
    let mut response = match admit(&admin, &request, arrived) {
        Ok(asker) => {
            user = Some(asker.name.clone());
            request.extensions_mut().insert(asker);
            next.run(request).await
        }
        // The one operation of somebody who has yet to say who it is.
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
        record_denial(&admin, arrived.from, &method, uri.path(), (user.as_ref(), code, response.status()));
    }
    response
}

fn is_sign_in(request: &Request) -> bool {
    request.method() == Method::POST && request.uri().path() == SESSION_PATH
}

/// As it was before the router took the API's base away.
fn whole_uri(request: &Request) -> Uri {
    let whole = request.extensions().get::<OriginalUri>().map(|uri| &uri.0);
    whole.unwrap_or(request.uri()).clone()
}

/// Both ends of the connection that brought it.
pub fn arrived(request: &Request) -> Arrived {
    let nowhere = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
    request.extensions().get().copied().unwrap_or(Arrived { at: nowhere, from: nowhere })
}

fn admit(admin: &Admin, request: &Request, arrived: Arrived) -> Result<Asker, Problem> {
    if !knows_host(admin, request, arrived.at) {
        let detail = "the Host header is neither this listener's address nor in `admin.hosts`";
        return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, HOST_UNKNOWN, detail));
    }
    asker(admin, request.method(), request.headers(), arrived.from).ok_or_else(user_unknown)
}

/// Who asks, by a token or by a session. A token that is sent decides alone.
pub fn asker(admin: &Admin, method: &Method, headers: &HeaderMap, from: SocketAddr) -> Option<Asker> {
    match headers.contains_key(header::AUTHORIZATION) {
        true => admin.access.user(headers, from),
        false => session::asker(admin, method, headers, from),
    }
}

pub fn user_unknown() -> Problem {
    let detail = "send `Authorization: Bearer <token>` with the token of a user, or the one in <state_dir>/admin-token; \
                  a page that has signed in sends its X-CSRF-Token with every change";
    Problem::new(StatusCode::UNAUTHORIZED, USER_UNKNOWN, detail)
}

pub async fn after_wrong_token() {
    tokio::time::sleep(AFTER_WRONG_TOKEN).await;
}

/// Does the request name a host of ours: the listener's address, one of `admin.hosts`, or that of `public_url`?
pub fn knows_host(admin: &Admin, request: &Request, arrived: SocketAddr) -> bool {
    let own = admin.access.knows_host(request.uri(), request.headers(), arrived);
    own || request.uri().authority().is_none() && is_host_of(admin.snapshot.load().links.base(), request.headers())
}

/// Does the request name the host of `base`?
pub fn is_host_of(base: Option<&Url>, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let asked = host.to_str().ok().and_then(|text| Authority::parse(text).ok());
    let (Some(base), Some(asked)) = (base, asked) else { return false };
    let port = base.port_or_known_default();
    base.host_str() == Some(asked.host.to_string().as_str()) && asked.port.or(port) == port
}

/// Was the request sent by a page of ours? Browsers name the origin of the page with every POST; a request that names none,
/// several or `null` comes from elsewhere.
pub fn is_own_origin(base: Option<&Url>, headers: &HeaderMap) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else { return false };
    let Some(text) = origin.to_str().ok() else { return false };
    let Some(origin) = Url::parse(text).ok().filter(|url| url.origin().ascii_serialization() == text) else {
        return false;
    };
    // Under another name than that of `public_url` the scheme is not known: a proxy in front may end TLS.
    base.is_some_and(|base| base.origin() == origin.origin())
        || !is_host_of(base, headers) && is_host_of(Some(&origin), headers)
}

/// What is not permitted, in the audit.
pub fn record_denial(
    admin: &Admin,
    from: SocketAddr,
    method: &Method,
    path: &str,
    (user, code, status): (Option<&Name>, &str, StatusCode),
) {
    let record = audit::Request {
        user: user.map(Name::as_str),
        listener: Some("admin"),
        code: Some(code),
        ..audit::Request::new(from, method.as_str(), path, status.as_u16())
    };
    admin.audit.now().admin(admin.clock.now().wall, Kind::Denial, &record);
}

/// What somebody has changed about a token, in the audit; `code`: why it came to nothing.
pub fn record_change(
    admin: &Admin,
    (user, from): (Option<&Name>, SocketAddr),
    (method, path): (&Method, &str),
    key: &TokenKey,
    (status, code): (StatusCode, Option<&str>),
) {
    let record = audit::Request {
        user: user.map(Name::as_str),
        listener: Some("admin"),
        connection: Some(key.connection.as_str()),
        profile: Some(key.profile.as_str()),
        subject: key.subject.as_ref().map(Subject::as_str),
        code,
        ..audit::Request::new(from, method.as_str(), path, status.as_u16())
    };
    admin.audit.now().admin(admin.clock.now().wall, Kind::Change, &record);
}

/// Before a handler: may this user do that?
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(base: Option<&str>, host: &'static str, origins: &[&'static str], expected: bool) {
        let base = base.map(|base| base.parse().unwrap());
        let mut headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
        for origin in origins {
            headers.append(header::ORIGIN, HeaderValue::from_static(origin));
        }
        assert_eq!(is_own_origin(base.as_ref(), &headers), expected, "{base:?} {host} {origins:?}");
    }

    #[test]
    fn a_form_counts_from_a_page_of_public_url_or_of_the_host_that_is_asked() {
        let https = Some("https://keys.test/kb");
        check(https, "keys.test", &["https://keys.test"], true);
        // A proxy in front may have put its own name for us into Host.
        check(https, "127.0.0.1:8081", &["https://keys.test"], true);
        check(https, "127.0.0.1:8081", &["http://127.0.0.1:8081"], true);
        check(https, "keys.internal", &["https://keys.internal"], true);
        check(https, "[::1]:8081", &["http://[::1]:8081"], true);
        check(None, "localhost:8081", &["http://localhost:8081"], true);
        check(None, "keys.test", &["https://keys.test"], true);
        for foreign in [
            "http://keys.test",
            "https://keys.test:444",
            "https://keys.test/",
            "https://keys.test.evil.test",
            "https://evil.test",
            "null",
            "",
            "keys.test",
        ] {
            check(https, "keys.test", &[foreign], false);
        }
        check(Some("http://localhost:8081"), "localhost:8081", &["http://localhost:8082"], false);
        check(None, "localhost:8081", &["http://localhost"], false);
        check(https, "keys.test", &[], false);
        check(https, "keys.test", &["https://keys.test", "https://keys.test"], false);
    }
}
