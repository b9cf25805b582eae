//! One attempt to sign in at the OpenID provider, in a sealed cookie of the browser that began it.
//!
//! Invariants: the cookie is readable by no script and valid for ten minutes; any replica with the same seal key opens it.

use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::admin::consent::visit::Visit;
use crate::admin::consent::{constant_time_eq, random};
use crate::admin::{Admin, cookie};
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::store::SealedIn;

const ATTEMPT_TTL: Duration = Duration::from_secs(10 * 60);
const COOKIE: &str = "keybearer_sign_in";
const SEALED_IN: SealedIn<'static> = SealedIn { table: "sign-ins", name: b"attempt" };
const COOKIE_CHARS_MAX: usize = 2048;

pub struct Attempt {
    pub state: Secret,
    pub nonce: Secret,
    pub verifier: Secret,
    /// The token to connect afterwards.
    pub target: Option<TokenKey>,
}

impl Attempt {
    pub fn new(target: Option<TokenKey>) -> Option<Attempt> {
        Some(Attempt { state: random::<32>()?, nonce: random::<32>()?, verifier: Secret::new(""), target })
    }

    pub fn with_verifier(self, verifier: Secret) -> Attempt {
        Attempt { verifier, ..self }
    }

    /// `Set-Cookie`.
    pub fn cookie(&self, admin: &Admin, visit: &Visit) -> Option<HeaderValue> {
        let target = self.target.as_ref().map(TokenKey::to_string).unwrap_or_default();
        let parts = [self.state.expose(), self.nonce.expose(), self.verifier.expose(), &target];
        let text = Secret::new(parts.join("\n"));
        let ends = admin.clock.now().wall + ATTEMPT_TTL;
        let sealed = admin.seal.seal(SEALED_IN, ends.as_secs(), text.expose().as_bytes()).ok()?;
        let secure = cookie::is_secure(admin, &visit.headers, visit.addrs);
        cookie::set(COOKIE, &BASE64_URL_SAFE_NO_PAD.encode(sealed), ATTEMPT_TTL, secure)
    }

    /// The attempt of this browser, if it has not expired.
    pub fn of(admin: &Admin, visit: &Visit) -> Option<Attempt> {
        let value = cookie::get(&visit.headers, COOKIE, cookie::is_secure(admin, &visit.headers, visit.addrs))?;
        let sealed = (value.len() <= COOKIE_CHARS_MAX).then(|| BASE64_URL_SAFE_NO_PAD.decode(value).ok())??;
        let (ends, text) = admin.seal.open(SEALED_IN, &sealed).ok()?;
        let mut parts = std::str::from_utf8(&text).ok()?.split('\n');
        let mut secret = || parts.next().map(Secret::new);
        let (state, nonce, verifier) = (secret()?, secret()?, secret()?);
        let target = TokenKey::parse(parts.next()?);
        (admin.clock.now().wall < WallTime::from_secs(ends)).then_some(Attempt { state, nonce, verifier, target })
    }

    pub fn is_named_by(&self, state: Option<&str>) -> bool {
        state.is_some_and(|state| constant_time_eq(state, self.state.expose()))
    }

    /// Ends the attempt: `response` removes the cookie.
    pub fn remove_cookie(admin: &Admin, visit: &Visit, mut response: Response) -> Response {
        let secure = cookie::is_secure(admin, &visit.headers, visit.addrs);
        response.headers_mut().append(header::SET_COOKIE, cookie::removal(COOKIE, secure));
        response
    }
}
