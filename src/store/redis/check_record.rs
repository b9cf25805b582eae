//! The check record: sealed under the first key, and verified on each connection before any other record is accessed.
//!
//! Invariant: a replica without the other replicas' seal keys reads and writes nothing.

use std::sync::Arc;

use redis::{Script, ScriptInvocation};

use super::ttl::{EXPIRY_SLACK, REFRESH_TOKEN_TTL_MIN, ms};
use super::value::{VALUE_BYTES_MAX, Value};
use crate::store::StoreError;
use crate::store::seal::{Keyring, SealedIn, UnsealError};

const SEALED_IN: SealedIn<'static> = SealedIn { table: "mark", name: b"" };

/// Action if there is a check record already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    Keep,
    Replace,
}

pub struct CheckRecord {
    name: String,
    keyring: Arc<Keyring>,
    script: Script,
}

impl CheckRecord {
    pub fn new(name: String, keyring: Arc<Keyring>, script: Script) -> CheckRecord {
        CheckRecord { name, keyring, script }
    }

    /// The script call that writes the check record. It returns the existing one if that is kept.
    pub fn put(&self, existing: IfExists) -> Result<ScriptInvocation<'_>, StoreError> {
        let sealed =
            self.keyring.seal(SEALED_IN, 0, &[]).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let mut call = self.script.key(&self.name);
        call.arg(VALUE_BYTES_MAX)
            .arg(sealed)
            .arg(ms(REFRESH_TOKEN_TTL_MIN + EXPIRY_SLACK))
            .arg(u8::from(existing == IfExists::Replace));
        Ok(call)
    }

    /// # Errors
    /// [`StoreError::Unavailable`] if the records of the other replicas cannot be opened here.
    pub fn verify(&self, found: Value) -> Result<(), StoreError> {
        let Value::Bytes(found) = found else { return Ok(()) };
        let Err(UnsealError::Key(id)) = self.keyring.open(SEALED_IN, &found) else { return Ok(()) };
        let configured = self.keyring.ids().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
        Err(StoreError::Unavailable(format!(
            "Redis: its records are sealed under the key {id}, and `store.seal_key` has {configured}; add that key after the first"
        )))
    }
}
