//! How authorizations are named, towards the outside and in the store.
//!
//! Holds: a token has one note, which is in the share of its connection; of what an id says of the token there are digests
//! alone.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::random;
use crate::model::connection::ConsentFlow;
use crate::model::secret::SecretDigest;
use crate::model::token::TokenKey;

/// What the names of all notes begin with.
const NOTES: &str = "flow/";
const CODE: char = 'c';
const DEVICE: char = 'd';
/// The mark, and the digest of the connection.
const SHARE_CHARS: usize = 7;
/// With the digest of the token's key.
const KEY_CHARS: usize = SHARE_CHARS + 22;
/// With 128 random bits.
const ID_CHARS: usize = KEY_CHARS + 22;

/// Where the authorizations of one token by one grant are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlowKey(String);

impl FlowKey {
    pub fn of(flow: ConsentFlow, key: &TokenKey) -> FlowKey {
        let mark = match flow {
            ConsentFlow::AuthorizationCode => CODE,
            ConsentFlow::DeviceCode => DEVICE,
        };
        let digest = |text: &str| {
            let digest = SecretDigest::of(text.as_bytes());
            BASE64_URL_SAFE_NO_PAD.encode(&digest.as_bytes()[..16])
        };
        let connection = digest(key.connection.as_str());
        let connection = connection.get(..SHARE_CHARS - 1).unwrap_or_default();
        FlowKey(format!("{mark}{connection}{}", digest(&key.to_string())))
    }

    /// What [`FlowKey::note`] has written.
    pub fn of_note(name: &str) -> Option<FlowKey> {
        let (share, rest) = name.strip_prefix(NOTES)?.split_once('/')?;
        Some(FlowKey(format!("{share}{rest}")))
    }

    pub fn note(&self) -> String {
        let (share, rest) = self.0.split_at_checked(SHARE_CHARS).unwrap_or((&self.0, ""));
        format!("{NOTES}{share}/{rest}")
    }
}

/// What the notes of all device authorizations begin with.
pub fn device_notes() -> String {
    format!("{NOTES}{DEVICE}")
}

/// One authorization of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowId(String);

impl FlowId {
    pub fn parse(text: &str) -> Option<FlowId> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let fits = text.len() == ID_CHARS && text.starts_with([CODE, DEVICE]) && text.bytes().all(plain);
        fits.then(|| FlowId(text.to_owned()))
    }

    pub fn random(key: &FlowKey) -> Option<FlowId> {
        Some(FlowId(format!("{}{}", key.0, random::<16>()?.expose())))
    }

    pub fn key(&self) -> FlowKey {
        FlowKey(self.0.get(..KEY_CHARS).unwrap_or_default().to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;
    use crate::model::token::Subject;

    #[test]
    fn an_id_leads_to_the_note_of_its_token_in_the_share_of_its_connection() {
        let of = |connection: &str, subject: &str| {
            let key = TokenKey::of_subject(Name::parse(connection).unwrap(), Subject::parse(subject).unwrap());
            FlowKey::of(ConsentFlow::AuthorizationCode, &key)
        };
        let share = |key: &FlowKey| key.note().rsplit_once('/').map(|(share, _)| share.to_owned());
        let ann = of("crm", "ann");
        assert_eq!(share(&ann), share(&of("crm", "bob")));
        assert_ne!(share(&ann), share(&of("erp", "ann")));
        assert_ne!(ann, of("crm", "bob"));
        assert_eq!(FlowKey::of_note(&ann.note()), Some(ann.clone()));
        let (first, second) = (FlowId::random(&ann).unwrap(), FlowId::random(&ann).unwrap());
        assert!(first != second && first.key() == ann && second.key() == ann);
        assert_eq!(FlowId::parse(first.as_str()), Some(first.clone()));
        for bad in ["", "c", &first.as_str()[1..], &first.as_str().replace('c', "."), "é"] {
            assert_eq!(FlowId::parse(bad), None, "{bad}");
        }
    }
}
