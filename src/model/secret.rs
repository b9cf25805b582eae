//! Values that must never be shown.
//!
//! Invariants: only `expose` returns the value; `Debug` prints `***`; memory is wiped on drop.

use std::fmt;
use std::path::Path;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::StoreSettings;

/// A secret text: client secret, token, password.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(Zeroizing::new(text.into()))
    }

    /// The value itself, for the wire only.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn digest(&self) -> SecretDigest {
        SecretDigest::of(self.expose().as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

/// A key that seals the store's records.
#[derive(Clone, PartialEq, Eq)]
pub struct SealKey(Zeroizing<[u8; 32]>);

impl SealKey {
    /// `bytes` are random, not a passphrase; they are wiped on drop.
    pub fn new(bytes: [u8; 32]) -> SealKey {
        SealKey(Zeroizing::new(bytes))
    }

    /// 32 bytes in base64; `None` for anything else.
    pub fn parse(text: &str) -> Option<SealKey> {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text.trim()).ok()?);
        Some(SealKey(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }

    /// The key itself, for the store's seal only.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Resolves `{store: NAME}` in the sealed store.
pub trait Vault: Send + Sync {
    /// The secret called `name`; `None` if there is none. `state_dir` holds the seal key if none is configured.
    ///
    /// # Errors
    /// [`VaultError`] if the store cannot be read.
    fn secret(&self, store: &StoreSettings, state_dir: &Path, name: &str) -> Result<Option<Secret>, VaultError>;

    /// Applies the settings of a changed `store` that need no restart.
    fn apply(&self, store: &StoreSettings) {
        let _ = store;
    }
}

/// The reason why a store cannot be read.
#[derive(Debug)]
pub enum VaultError {
    /// A running instance has the store open; only that instance can read it.
    InUse,
    /// A message with a remedy.
    Failed(String),
}

/// The SHA-256 of a secret that is only ever compared.
#[derive(Clone, Copy)]
pub struct SecretDigest([u8; 32]);

impl SecretDigest {
    pub fn new(sha256: [u8; 32]) -> SecretDigest {
        SecretDigest(sha256)
    }

    /// The raw digest, as input of another digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// In base64url: identifies the secret without revealing it.
    pub fn text(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
    }

    pub fn of(presented: &[u8]) -> SecretDigest {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest::digest(&digest::SHA256, presented).as_ref());
        SecretDigest(sha256)
    }
}

impl PartialEq for SecretDigest {
    fn eq(&self, other: &SecretDigest) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretDigest {}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_hides_secrets_and_digests_are_comparable() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?} {:?}", secret.digest()), "*** ***");
        assert_eq!(secret.digest(), SecretDigest::of(b"hunter2"));
        assert_ne!(secret.digest(), SecretDigest::of(b"hunter3"));
    }
}
