//! IDs of flows in the API and in links, and the names of their notes in the store.
//!
//! Invariants: a token has one note, whose name starts with its connection's prefix; an ID holds only digests of the
//! token's key.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::random;
use crate::model::connection::ConsentFlow;
use crate::model::secret::SecretDigest;
use crate::model::token::TokenKey;

/// Prefix of the names of all notes of flows.
const NOTES: &str = "flow/";
const CODE: char = 'c';
const DEVICE: char = 'd';
/// Length of the grant's letter and the digest of the connection.
const PREFIX_CHARS: usize = 7;
/// Length with the digest of the token's key.
const KEY_CHARS: usize = PREFIX_CHARS + 22;
/// Length with 128 random bits.
const ID_CHARS: usize = KEY_CHARS + 22;
// As `FlowId::PATTERN` states.
const _: () = assert!(ID_CHARS == 51);

/// Identifies the note with the flows of one token and one grant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlowKey(String);

impl FlowKey {
    pub fn of(flow: ConsentFlow, key: &TokenKey) -> FlowKey {
        let letter = match flow {
            ConsentFlow::AuthorizationCode => CODE,
            ConsentFlow::DeviceCode => DEVICE,
        };
        let digest = |text: &str| {
            let digest = SecretDigest::of(text.as_bytes());
            BASE64_URL_SAFE_NO_PAD.encode(&digest.as_bytes()[..16])
        };
        let connection = digest(key.connection.as_str());
        let connection = connection.get(..PREFIX_CHARS - 1).unwrap_or_default();
        FlowKey(format!("{letter}{connection}{}", digest(&key.to_string())))
    }

    /// Parses the name that [`FlowKey::note`] wrote.
    pub fn of_note(name: &str) -> Option<FlowKey> {
        let (prefix, rest) = name.strip_prefix(NOTES)?.split_once('/')?;
        Some(FlowKey(format!("{prefix}{rest}")))
    }

    /// The name of the note.
    pub fn note(&self) -> String {
        let (prefix, rest) = self.0.split_at_checked(PREFIX_CHARS).unwrap_or((&self.0, ""));
        format!("{NOTES}{prefix}/{rest}")
    }
}

/// Prefix of the names of all notes of device authorizations.
pub fn device_notes() -> String {
    format!("{NOTES}{DEVICE}")
}

/// Identifies one flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowId(String);

impl FlowId {
    /// A regular expression for all IDs.
    pub const PATTERN: &str = "^[cd][A-Za-z0-9_-]{50}$";

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
    fn an_id_names_the_note_of_its_token_under_the_prefix_of_its_connection() {
        let of = |connection: &str, subject: &str| {
            let key = TokenKey::of_subject(Name::parse(connection).unwrap(), Subject::parse(subject).unwrap());
            FlowKey::of(ConsentFlow::AuthorizationCode, &key)
        };
        let prefix = |key: &FlowKey| key.note().rsplit_once('/').map(|(prefix, _)| prefix.to_owned());
        let ann = of("crm", "ann");
        assert_eq!(prefix(&ann), prefix(&of("crm", "bob")));
        assert_ne!(prefix(&ann), prefix(&of("erp", "ann")));
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
