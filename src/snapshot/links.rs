//! Links that people open to connect their accounts.
//!
//! Not here: what opening a link does (`admin::consent`).
//! Invariants: a link for a subject is sealed to connection, profile and subject, and valid for ten minutes; any
//! replica with the same key can open it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use url::Url;

use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::store::{Keyring, SealedIn};

/// Lifetime of a link for a subject.
const LINK_TTL: Duration = Duration::from_secs(10 * 60);
const SEALED_IN: SealedIn<'static> = SealedIn { table: "links", name: b"connect" };
/// Longer sealed links are rejected unread.
const SEALED_CHARS_MAX: usize = 1024;

pub struct Links {
    seal: Arc<Keyring>,
    /// Public base URL; `None` if it is not known.
    base: Option<Url>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Links({:?})", self.base.as_ref().map(Url::as_str))
    }
}

impl Links {
    pub fn new(seal: Arc<Keyring>, base: Option<Url>) -> Links {
        Links { seal, base }
    }

    pub fn base(&self) -> Option<&Url> {
        self.base.as_ref()
    }

    /// The redirect URI for authorization servers.
    pub fn callback(&self) -> Option<String> {
        self.url(&["oauth", "callback"]).map(String::from)
    }

    /// The link that connects a token; for a subject's token, it needs no sign-in.
    pub fn connect(&self, key: &TokenKey, wall: WallTime) -> Option<String> {
        let mut url = self.connection_url(key)?;
        if key.subject.is_some() {
            let expires_at = (wall + LINK_TTL).as_secs();
            let sealed = self.seal.seal(SEALED_IN, expires_at, key.to_string().as_bytes()).ok()?;
            url.set_query(Some(&format!("for={}", BASE64_URL_SAFE_NO_PAD.encode(sealed))));
        } else if key.profile.as_str() != "default" {
            url.set_query(Some(&format!("profile={}", key.profile)));
        }
        Some(url.into())
    }

    /// The link for an operator who is signed in there.
    pub fn operator(&self, key: &TokenKey) -> Option<Url> {
        let mut url = self.connection_url(key)?;
        url.set_query(key.selection().as_deref());
        Some(url)
    }

    /// The link of a started authorization; the `secret` alone opens it.
    pub fn of_authorization(&self, key: &TokenKey, secret: &str) -> Option<String> {
        let mut url = self.connection_url(key)?;
        url.set_query(Some(&format!("flow={secret}")));
        Some(url.into())
    }

    /// The token that a sealed link is for; `None` if the seal is not ours, or the link has expired.
    pub fn open(&self, sealed: &str, wall: WallTime) -> Option<TokenKey> {
        let sealed = (sealed.len() <= SEALED_CHARS_MAX).then(|| BASE64_URL_SAFE_NO_PAD.decode(sealed).ok())??;
        let (expires_at, text) = self.seal.open(SEALED_IN, &sealed).ok()?;
        let key = TokenKey::parse(std::str::from_utf8(&text).ok()?)?;
        (wall < WallTime::from_secs(expires_at)).then_some(key)
    }

    fn connection_url(&self, key: &TokenKey) -> Option<Url> {
        self.url(&["connect", key.connection.as_str()])
    }

    fn url(&self, path: &[&str]) -> Option<Url> {
        let mut url = self.base.clone()?;
        url.path_segments_mut().ok()?.pop_if_empty().extend(path);
        Some(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;
    use crate::model::secret::SealKey;
    use crate::model::token::Subject;

    fn links(base: &str, key: u8) -> Links {
        let keyring = Keyring::new(&SealKey::new([key; 32]), &[]).unwrap();
        Links::new(Arc::new(keyring), Some(base.parse().unwrap()))
    }

    #[test]
    fn a_link_is_valid_for_one_token_for_ten_minutes() {
        let crm = TokenKey::of_connection(Name::parse("crm").unwrap());
        let other = TokenKey { profile: Name::parse("other").unwrap(), ..crm.clone() };
        let ann = TokenKey { subject: Subject::parse("ann@acme.test"), ..other.clone() };
        let (ours, base, now) =
            (links("https://keys.test/kb/", 1), "https://keys.test/kb/connect/crm", WallTime::from_secs(900));
        assert_eq!(ours.callback().as_deref(), Some("https://keys.test/kb/oauth/callback"));
        assert_eq!(ours.connect(&crm, now).as_deref(), Some(base));
        assert_eq!(ours.connect(&other, now), Some(format!("{base}?profile=other")));
        let link = ours.connect(&ann, now).unwrap();
        let sealed = link.strip_prefix(&format!("{base}?for=")).unwrap();
        assert!(!link.contains("ann"));
        assert_eq!(ours.open(sealed, now), Some(ann.clone()));
        assert_eq!(ours.open(sealed, now + LINK_TTL - Duration::from_secs(1)), Some(ann));
        assert_eq!(ours.open(sealed, now + LINK_TTL), None);
        let mut changed = sealed.to_owned().into_bytes();
        changed[40] ^= 1;
        for bad in ["", "x", &sealed[1..], std::str::from_utf8(&changed).unwrap(), &sealed.repeat(9)] {
            assert_eq!(ours.open(bad, now), None, "{bad}");
        }
        assert_eq!(links("https://keys.test", 2).open(sealed, now), None);
    }
}
