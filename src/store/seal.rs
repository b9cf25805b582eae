//! Seals records with AES-256-GCM, under a key derived for each record name.
//!
//! A sealed record is `format (1) | key id (8) | version (8) | nonce (12) | ciphertext | tag (16)`. Table, name and the
//! first three parts are associated data: a record opens only unchanged and under the name it was sealed for.
//! Not here: the encoding of records (`record`), loading the keys (`keys`).
//! Invariant: the nonce is random and the key is derived from the name (HKDF-SHA256, RFC 5869), so no two records share
//! both.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use crate::model::secret::SealKey;

/// Version of this layout; a newer program may write a higher one.
pub const FORMAT: u8 = 1;

const ID_BYTES: usize = 8;
const VERSION_AT: usize = 1 + ID_BYTES;
const NONCE_AT: usize = VERSION_AT + 8;
/// Length of a record's head: format, key id, version and nonce. No two sealed records have the same.
pub const NONCE_END: usize = NONCE_AT + NONCE_LEN;
const TEXT_AT: usize = NONCE_END;
const TAG_BYTES: usize = 16;
const SALT: &[u8] = b"keybearer store 1";

/// A short digest that identifies a key without revealing it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; ID_BYTES]);

impl KeyId {
    pub fn parse(hex: &str) -> Option<KeyId> {
        let number = u64::from_str_radix(hex, 16).ok()?;
        (hex.len() == 2 * ID_BYTES).then(|| KeyId(number.to_be_bytes()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Context of a record; it opens in no other context.
#[derive(Debug, Clone, Copy)]
pub struct SealedIn<'a> {
    pub table: &'a str,
    pub name: &'a [u8],
}

impl SealedIn<'_> {
    /// Unambiguous encoding of table and name.
    fn info(&self) -> Vec<u8> {
        [self.table.as_bytes(), &[0], self.name].concat()
    }
}

/// The part of a sealed record that is readable without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub format: u8,
    pub key: KeyId,
    pub version: u64,
}

impl Header {
    /// `None`: too short to be a record.
    pub fn parse(sealed: &[u8]) -> Option<Header> {
        if sealed.len() < TEXT_AT + TAG_BYTES {
            return None;
        }
        let key = KeyId(sealed[1..VERSION_AT].try_into().ok()?);
        let version = u64::from_be_bytes(sealed[VERSION_AT..NONCE_AT].try_into().ok()?);
        Some(Header { format: sealed[0], key, version })
    }
}

/// Why a record cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    #[error("it is truncated")]
    Torn,
    #[error("a newer version of Keybearer wrote it; upgrade, or restore a backup")]
    Newer,
    #[error("it is sealed under a key that is not configured; add that key to `store.seal_key`")]
    Key(KeyId),
    #[error("it was changed, or moved from another record")]
    Changed,
}

impl UnsealError {
    pub fn why(self) -> &'static str {
        match self {
            UnsealError::Torn => "it is truncated",
            UnsealError::Newer => "a newer version of Keybearer wrote it; upgrade, or restore a backup",
            UnsealError::Key(_) => "it is sealed under a key that is not configured; add that key to `store.seal_key`",
            UnsealError::Changed => "it was changed, or moved from another record",
        }
    }
}

struct Key {
    id: KeyId,
    root: Prk,
}

/// The keys of a store: the first one seals, all of them open.
pub struct Keyring {
    first: Key,
    others: Vec<Key>,
}

/// The cipher failed; only its length limit could cause this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record cannot be sealed")]
pub struct SealError;

impl From<Unspecified> for SealError {
    fn from(_: Unspecified) -> Self {
        SealError
    }
}

impl Keyring {
    /// `others` open records sealed under an earlier key, during a rotation.
    ///
    /// # Errors
    /// Only if key derivation fails.
    pub fn new(first: &SealKey, others: &[SealKey]) -> Result<Keyring, SealError> {
        let others = others.iter().map(Key::new).collect::<Result<_, _>>()?;
        Ok(Keyring { first: Key::new(first)?, others })
    }

    /// The sealing key, then the others.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys().map(|key| key.id)
    }

    /// ID of the key that seals.
    pub fn sealing(&self) -> KeyId {
        self.first.id
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Seals `text` under a random nonce. `version` and `sealed_in` are authenticated: a record that was moved or
    /// relabelled does not open.
    ///
    /// # Errors
    /// No randomness, or a text beyond the length limit of the cipher.
    pub fn seal(&self, sealed_in: SealedIn<'_>, version: u64, text: &[u8]) -> Result<Vec<u8>, SealError> {
        let info = sealed_in.info();
        let mut sealed = Vec::with_capacity(TEXT_AT + text.len() + TAG_BYTES);
        sealed.push(FORMAT);
        sealed.extend_from_slice(&self.first.id.0);
        sealed.extend_from_slice(&version.to_be_bytes());
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce)?;
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(text);
        let bound = bound(&info, &sealed);
        let key = self.first.derive(&info)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(bound), &mut sealed[TEXT_AT..])?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    fn header(&self, sealed: &[u8]) -> Result<(Header, &Key), UnsealError> {
        let header = Header::parse(sealed).ok_or(UnsealError::Torn)?;
        if header.format > FORMAT {
            return Err(UnsealError::Newer);
        }
        let key = self.keys().find(|key| key.id == header.key).ok_or(UnsealError::Key(header.key))?;
        Ok((header, key))
    }

    /// Why the record does not open here, if a replica with more keys or a newer version could open it.
    pub fn readable_elsewhere(&self, sealed: &[u8]) -> Option<UnsealError> {
        match self.header(sealed) {
            // A printable first byte is text, not a format.
            Err(newer @ UnsealError::Newer) => sealed.first().filter(|format| **format < b' ').map(|_| newer),
            Err(key @ UnsealError::Key(_)) => Some(key),
            Err(UnsealError::Torn | UnsealError::Changed) | Ok(_) => None,
        }
    }

    /// Returns the version of a record and its content.
    pub fn open(&self, sealed_in: SealedIn<'_>, sealed: &[u8]) -> Result<(u64, Zeroizing<Vec<u8>>), UnsealError> {
        let (header, key) = self.header(sealed)?;
        let info = sealed_in.info();
        let (key, bound) = (key.derive(&info).map_err(|_| UnsealError::Changed)?, bound(&info, sealed));
        let nonce = Nonce::try_assume_unique_for_key(&sealed[NONCE_AT..TEXT_AT]).map_err(|_| UnsealError::Torn)?;
        let mut text = Zeroizing::new(sealed[TEXT_AT..].to_vec());
        let length = match key.open_in_place(nonce, Aad::from(bound), &mut text) {
            Ok(text) => text.len(),
            Err(Unspecified) => return Err(UnsealError::Changed),
        };
        text.truncate(length);
        Ok((header.version, text))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

/// The associated data: the context, its length, and the header.
fn bound(info: &[u8], sealed: &[u8]) -> Vec<u8> {
    [info, &(info.len() as u64).to_be_bytes(), &sealed[..NONCE_AT]].concat()
}

impl Key {
    fn new(key: &SealKey) -> Result<Key, SealError> {
        let root = Salt::new(HKDF_SHA256, SALT).extract(key.expose());
        let mut id = [0; ID_BYTES];
        // Distinct from every record's key: a record's info starts with a table name.
        root.expand(&[b"\0key id"], Length(ID_BYTES))?.fill(&mut id)?;
        Ok(Key { id: KeyId(id), root })
    }

    /// Derives the key of one record.
    fn derive(&self, info: &[u8]) -> Result<LessSafeKey, Unspecified> {
        let mut bytes = Zeroizing::new([0; 32]);
        self.root.expand(&[info], Length(32))?.fill(&mut *bytes)?;
        Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*bytes)?))
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SealKey {
        SealKey::new([byte; 32])
    }

    const SEALED_IN: SealedIn<'static> = SealedIn { table: "tokens", name: b"crm\0default" };

    #[test]
    fn a_record_opens_only_in_its_own_context() {
        let ring = Keyring::new(&key(1), &[]).unwrap();
        let sealed = ring.seal(SEALED_IN, 7, b"text").unwrap();
        assert_eq!(ring.open(SEALED_IN, &sealed).unwrap(), (7, Zeroizing::new(b"text".to_vec())));
        for other in [SealedIn { table: "secrets", ..SEALED_IN }, SealedIn { name: b"crm\0default\0", ..SEALED_IN }] {
            assert_eq!(ring.open(other, &sealed), Err(UnsealError::Changed));
        }
        assert_ne!(ring.seal(SEALED_IN, 7, b"text").unwrap(), sealed, "the nonce is fresh");
    }

    #[test]
    fn a_changed_bit_or_length_is_detected() {
        let ring = Keyring::new(&key(1), &[]).unwrap();
        let sealed = ring.seal(SEALED_IN, 7, b"text").unwrap();
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[at] ^= 1 << bit;
                assert!(ring.open(SEALED_IN, &changed).is_err(), "bit {bit} of byte {at}");
            }
            assert!(ring.open(SEALED_IN, &sealed[..at]).is_err(), "{at} bytes");
        }
        assert_eq!(ring.open(SEALED_IN, &[&sealed[..], &[0]].concat()), Err(UnsealError::Changed));
        let newer = [&[FORMAT + 1], &sealed[1..]].concat();
        assert_eq!(ring.open(SEALED_IN, &newer), Err(UnsealError::Newer));
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let (old, both) = (Keyring::new(&key(1), &[]).unwrap(), Keyring::new(&key(2), &[key(1)]).unwrap());
        let sealed = old.seal(SEALED_IN, 1, b"text").unwrap();
        assert!(both.open(SEALED_IN, &sealed).is_ok());
        let sealed = both.seal(SEALED_IN, 1, b"text").unwrap();
        assert_eq!(old.open(SEALED_IN, &sealed), Err(UnsealError::Key(both.sealing())));
        assert_eq!(Header::parse(&sealed).unwrap().key, both.sealing());
        assert_eq!(KeyId::parse(&both.sealing().to_string()), Some(both.sealing()));
        assert_eq!(format!("{both:?}"), format!("[{}, {}]", both.sealing(), old.sealing()));
    }
}
