//! Encoding of a token's record before it is sealed, and of record names.
//!
//! A name is connection, profile and subject, separated by a zero byte, so that names sort like keys. Numbers are
//! big-endian; texts are length-prefixed.
//! Not here: the seal (`seal`).
//! Invariant: a boot time is stored with its boot id; after a reboot only the wall clock gives a token's age.

use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::stored::{Refresh, RefreshLife, StoredToken};
use crate::clock::Now;
use crate::model::Name;
use crate::model::connection::{Identity, OriginSet};
use crate::model::time::{BootTime, WallTime};
use crate::model::token::{AccessToken, RefreshToken, TokenKey};

/// Format version of tables, names and records. Files and exports of a newer format are refused.
pub const FORMAT: u32 = 1;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Separates the parts of a name; no part contains it.
const SEPARATOR: u8 = 0;

/// The name of a key's record.
pub fn name_of(key: &TokenKey) -> Vec<u8> {
    let mut name = prefix_of(&key.connection);
    name.extend_from_slice(key.profile.as_str().as_bytes());
    if let Some(subject) = &key.subject {
        name.push(SEPARATOR);
        name.extend_from_slice(subject.as_str().as_bytes());
    }
    name
}

/// The prefix of the names of a connection's records.
pub fn prefix_of(connection: &Name) -> Vec<u8> {
    [connection.as_str().as_bytes(), &[SEPARATOR]].concat()
}

/// The first name after all that start with `prefix`, which ends with the separator.
pub fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = SEPARATOR + 1;
    }
    end
}

/// The inverse of [`name_of`]; `None` for anything else.
pub fn key_of(name: &[u8]) -> Option<TokenKey> {
    let parts = std::str::from_utf8(name).ok()?.replace(char::from(SEPARATOR), "/");
    TokenKey::parse(&parts).filter(|key| name_of(key) == name)
}

/// The id of the boot that the boot clock counts from; `None`: unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot(Option<u128>);

impl Boot {
    pub fn present() -> Boot {
        let hex = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().replace('-', "");
        Boot(u128::from_str_radix(&hex, 16).ok())
    }
}

/// Encodes a token as the content of its record.
pub fn encode(token: &StoredToken, boot: Boot) -> Zeroizing<Vec<u8>> {
    let origins: Vec<String> = token.origins.lines().collect();
    let scopes = token.scopes.as_deref().unwrap_or_default();
    let refresh = match &token.refresh {
        Refresh::None => "",
        Refresh::Token(token) => token.expose(),
        Refresh::Refused { error } => error,
    };
    let texts = origins.iter().chain(scopes).map(|text| text.len() + 4).sum::<usize>();
    // Allocated once: growth would leave copies of secrets in freed memory.
    let length = 192 + texts + token.access_token.expose().len() + refresh.len();
    let mut out = Writer(Zeroizing::new(Vec::with_capacity(length)));
    out.bytes(token.identity.as_bytes());
    out.bytes(&boot.0.unwrap_or_default().to_be_bytes());
    for span in [token.obtained.boot.since_boot(), token.obtained.wall.since_epoch(), token.lifetime] {
        out.span(span);
    }
    out.texts(&origins);
    out.text(token.access_token.expose());
    out.bytes(&[u8::from(token.scopes.is_some())]);
    out.texts(scopes);
    out.bytes(&[match token.refresh {
        Refresh::None => 0,
        Refresh::Token(_) => 1,
        Refresh::Refused { .. } => 2,
    }]);
    out.text(refresh);
    out.span(token.refresh_life.since.unwrap_or_default().since_epoch());
    out.span(token.refresh_life.stated.unwrap_or_default());
    out.bytes(token.identity.grant_bytes().map_or(&[], <[u8; 32]>::as_slice));
    out.0
}

/// The inverse of [`encode`], at `now` of the boot `boot`; `None` for anything else.
pub fn decode(bytes: &[u8], boot: Boot, now: Now) -> Option<StoredToken> {
    let mut from = Reader(bytes);
    let identity = Identity::new(*from.array()?);
    let written = Boot(Some(u128::from_be_bytes(*from.array()?)).filter(|id| *id != 0));
    let obtained = Now { boot: BootTime::new(from.span()?), wall: WallTime::new(from.span()?) };
    let lifetime = from.span()?;
    let origins = OriginSet::from_lines(from.texts()?)?;
    let access_token = AccessToken::parse(from.text()?)?;
    let stated = from.flag()?;
    let scopes: Vec<String> = from.texts()?.into_iter().map(str::to_owned).collect();
    let (kind, refresh) = (from.array::<1>()?[0], from.text()?);
    let refresh = match kind {
        0 => Refresh::None,
        1 => Refresh::Token(RefreshToken::parse(refresh)?),
        2 => Refresh::Refused { error: refresh.to_owned() },
        _ => return None,
    };
    // Older versions end here.
    let refresh_life = if from.0.is_empty() {
        RefreshLife::default()
    } else {
        let [since, stated] = [from.span()?, from.span()?].map(|span| Some(span).filter(|span| !span.is_zero()));
        RefreshLife { since: since.map(WallTime::new), stated }
    };
    let grant = if from.0.is_empty() { None } else { Some(*from.array()?) };
    let obtained = if written == boot && boot.0.is_some() { obtained } else { of_another_boot(obtained, now) };
    let token = StoredToken {
        identity: identity.with_grant(grant),
        origins: Arc::new(origins),
        access_token,
        obtained,
        lifetime,
        scopes: stated.then_some(scopes),
        refresh,
        refresh_life,
        version: 0,
    };
    from.0.is_empty().then_some(token)
}

/// Converts a time of another boot to this boot's clock by its age on the wall clock. If the wall clock was set back,
/// the age is zero.
fn of_another_boot(obtained: Now, now: Now) -> Now {
    Now { boot: now.boot - now.wall.since(obtained.wall), ..obtained }
}

struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn length(&mut self, length: usize) {
        // No text comes near 4 GiB; a longer one would not decode.
        self.bytes(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.length(text.len());
        self.bytes(text.as_bytes());
    }

    fn texts(&mut self, texts: &[String]) {
        self.length(texts.len());
        texts.iter().for_each(|text| self.text(text));
    }

    fn span(&mut self, span: Duration) {
        self.bytes(&span.as_secs().to_be_bytes());
        self.bytes(&span.subsec_nanos().to_be_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(u32::from_be_bytes(*self.array()?)).ok()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.array::<1>()?[0] {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.length()?;
        std::str::from_utf8(self.bytes(length)?).ok()
    }

    fn texts(&mut self) -> Option<Vec<&'a str>> {
        (0..self.length()?).map(|_| self.text()).collect()
    }

    fn span(&mut self) -> Option<Duration> {
        let seconds = u64::from_be_bytes(*self.array()?);
        let nanos = u32::from_be_bytes(*self.array()?);
        (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::connection::Connection;
    use crate::model::token::Subject;

    fn token(refresh: Refresh, scopes: Option<Vec<String>>) -> StoredToken {
        StoredToken {
            identity: Connection::sample("crm").identity(),
            origins: Arc::new(OriginSet::from_lines(["tls a.test", "plain *.b.test 81"]).unwrap()),
            access_token: AccessToken::parse("access").unwrap(),
            obtained: Now {
                boot: BootTime::new(Duration::new(500, 7)),
                wall: WallTime::new(Duration::new(1_800_000_000, 9)),
            },
            lifetime: Duration::from_secs(3600),
            scopes,
            refresh,
            refresh_life: RefreshLife {
                since: Some(WallTime::from_secs(1_799_999_999)),
                stated: Some(Duration::from_secs(9)),
            },
            version: 0,
        }
    }

    fn sample() -> StoredToken {
        token(Refresh::Token(RefreshToken::parse("refresh").unwrap()), Some(vec!["a".to_owned(), "b c".to_owned()]))
    }

    #[test]
    fn a_token_survives_encoding() {
        let (boot, refused) = (Boot(Some(1)), Refresh::Refused { error: "invalid_grant".to_owned() });
        for token in [sample(), token(Refresh::None, None), token(refused, Some(Vec::new()))] {
            let bytes = encode(&token, boot);
            assert_eq!(decode(&bytes, boot, token.obtained), Some(token.clone()));
            let read = decode(&bytes, boot, token.obtained).map(|read| read.identity);
            assert!(read.is_some_and(|read| read.grant_bytes() == token.identity.grant_bytes()));
            // Older versions wrote no grant; still older ones no lifetime of the refresh token.
            let (no_grant, no_life) = (bytes.len() - 32, bytes.len() - 56);
            for cut in (0..bytes.len()).filter(|cut| ![no_grant, no_life].contains(cut)) {
                assert_eq!(decode(&bytes[..cut], boot, token.obtained), None, "{cut}");
            }
            let read = decode(&bytes[..no_grant], boot, token.obtained);
            assert!(read.as_ref().is_some_and(|read| read.identity.grant_bytes().is_none()));
            assert_eq!(read, Some(token.clone()));
            let unknown = StoredToken { refresh_life: RefreshLife::default(), ..token.clone() };
            assert_eq!(decode(&bytes[..no_life], boot, token.obtained), Some(unknown));
            assert_eq!(decode(&[&bytes[..], &[0]].concat(), boot, token.obtained), None);
        }
    }

    #[test]
    fn after_a_reboot_only_the_wall_clock_gives_the_age() {
        #[track_caller]
        fn check(now: (u64, u64), written: Boot, present: Boot, boot: Duration) {
            let now =
                Now { boot: BootTime::new(Duration::from_secs(now.0)), wall: WallTime::new(Duration::new(now.1, 9)) };
            let read = decode(&encode(&sample(), written), present, now).unwrap();
            assert_eq!(read.obtained, Now { boot: BootTime::new(boot), ..sample().obtained });
        }
        let (one, other, unknown) = (Boot(Some(1)), Boot(Some(2)), Boot(None));
        let seconds = Duration::from_secs;
        check((900, 1_800_000_100), one, one, Duration::new(500, 7));
        check((900, 1_800_000_100), one, other, seconds(800));
        check((900, 1_800_000_100), unknown, unknown, seconds(800));
        check((900, 1_800_000_100), one, unknown, seconds(800));
        check((20, 1_800_000_100), one, other, seconds(0));
        check((20, 1_700_000_000), one, other, seconds(20));
        assert!(Boot::present().0.is_some());
    }

    #[test]
    fn names_round_trip_and_sort_like_keys() {
        let name = |text| Name::parse(text).unwrap();
        let key = |connection, profile, subject: Option<&str>| TokenKey {
            connection: name(connection),
            profile: name(profile),
            subject: subject.map(|text| Subject::parse(text).unwrap()),
        };
        let every: String =
            (0u8..128).map(char::from).filter(|c| c.is_ascii_alphanumeric() || "._@:+-".contains(*c)).collect();
        let mut keys = vec![
            key("crm", "default", None),
            key("crm", "default", Some("a")),
            key("crm", "default", Some("+")),
            key("crm", "default", Some(&every)),
            key("crm", "default", Some(&"x".repeat(128))),
            key("crm", "default-x", None),
            key("crm", "default_x", Some("a")),
            key("crm", "a", None),
            key("crm-2", "a", None),
            key("crm2", "a", None),
            key("cr", "z", None),
        ];
        for key in &keys {
            assert_eq!(key_of(&name_of(key)).as_ref(), Some(key));
            let prefix = prefix_of(&key.connection);
            assert!(name_of(key).starts_with(&prefix) && name_of(key) < end_of(&prefix));
        }
        keys.sort();
        assert!(keys.is_sorted_by_key(name_of));
        for bad in [&b"crm"[..], b"crm\0", b"crm\0default\0", b"crm/default", b"crm\0default/ann", b"\xff\0default"] {
            assert_eq!(key_of(bad), None, "{bad:?}");
        }
    }
}
