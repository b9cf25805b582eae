//! Identifies the browser that confirms and then finishes an authorization.
//!
//! Invariant: the store holds only the digest of the cookie.

use axum::http::HeaderValue;

use super::flow::{self, FLOW_LIFETIME};
use super::visit::Visit;
use crate::admin::{Admin, cookie};
use crate::model::secret::Secret;

const COOKIE: &str = "keybearer_browser";
/// 256 bits in base64url.
const COOKIE_CHARS: usize = 43;

/// The value of a browser's cookie.
pub struct Browser(Secret);

impl Browser {
    pub fn random() -> Option<Browser> {
        flow::random::<32>().map(Browser)
    }

    /// The browser of this visit, if it sent our cookie.
    pub fn of(admin: &Admin, visit: &Visit) -> Option<Browser> {
        let value = cookie::get(&visit.headers, COOKIE, cookie::is_secure(admin, &visit.headers, visit.addrs))?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (value.len() == COOKIE_CHARS && value.bytes().all(plain)).then(|| Browser(Secret::new(value)))
    }

    /// The digest of this visit's browser, as it is in the store.
    pub fn digest_of(admin: &Admin, visit: &Visit) -> Option<String> {
        Browser::of(admin, visit).map(|browser| browser.digest())
    }

    pub fn digest(&self) -> String {
        flow::digest(self.0.expose())
    }

    /// `Set-Cookie`, for the lifetime of a flow.
    pub fn cookie(&self, admin: &Admin, visit: &Visit) -> Option<HeaderValue> {
        cookie::set(COOKIE, self.0.expose(), FLOW_LIFETIME, cookie::is_secure(admin, &visit.headers, visit.addrs))
    }
}
