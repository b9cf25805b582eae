//! The browser that confirms and then finishes an authorization.
//!
//! Invariant: the store keeps the digest of its cookie alone.

use axum::http::HeaderValue;

use super::flow::{self, LIFE};
use super::visit::Visit;
use crate::admin::{Admin, cookie};
use crate::model::secret::Secret;

const COOKIE: &str = "keybearer_browser";
/// 256 bits in base64url.
const COOKIE_CHARS: usize = 43;

/// Identified by a cookie of its own.
pub struct Browser(Secret);

impl Browser {
    pub fn random() -> Option<Browser> {
        flow::random::<32>().map(Browser)
    }

    /// The browser of this visit, if it has a cookie of ours.
    pub fn of(admin: &Admin, visit: &Visit) -> Option<Browser> {
        let value = cookie::get(&visit.headers, COOKIE, cookie::is_secure(admin, &visit.headers))?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (value.len() == COOKIE_CHARS && value.bytes().all(plain)).then(|| Browser(Secret::new(value)))
    }

    /// The digest of this visit's browser, as the store keeps it.
    pub fn digest_of(admin: &Admin, visit: &Visit) -> Option<String> {
        Browser::of(admin, visit).map(|browser| browser.digest())
    }

    pub fn digest(&self) -> String {
        flow::digest(self.0.expose())
    }

    /// `Set-Cookie`, for as long as a flow lasts.
    pub fn cookie(&self, admin: &Admin, visit: &Visit) -> Option<HeaderValue> {
        cookie::set(COOKIE, self.0.expose(), LIFE, cookie::is_secure(admin, &visit.headers))
    }
}
