//! A record that tells whether replicas have a seal key in common, before any other is read or written.

use std::sync::Arc;

use redis::{Script, ScriptInvocation};

use super::scripts::Value;
use super::{LINGER, UNKNOWN_LIFE, VALUE_BYTES_MAX, ms};
use crate::store::StoreError;
use crate::store::seal::{Keyring, Place, Unopened};

const PLACE: Place<'static> = Place { table: "mark", name: b"" };

pub struct Mark {
    name: String,
    keyring: Arc<Keyring>,
    script: Script,
}

impl Mark {
    pub fn new(name: String, keyring: Arc<Keyring>, script: Script) -> Mark {
        Mark { name, keyring, script }
    }

    /// Brings what is there, or leaves a mark where there is none. With `over`, it takes the place of what is there.
    pub fn put(&self, over: bool) -> Result<ScriptInvocation<'_>, StoreError> {
        let sealed = self.keyring.seal(PLACE, 0, &[]).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let mut call = self.script.key(&self.name);
        call.arg(VALUE_BYTES_MAX).arg(sealed).arg(ms(UNKNOWN_LIFE + LINGER)).arg(u8::from(over));
        Ok(call)
    }

    /// Could we read what lies beside it?
    pub fn verify(&self, found: Value) -> Result<(), StoreError> {
        let Value::Bytes(found) = found else { return Ok(()) };
        let Err(Unopened::Key(id)) = self.keyring.open(PLACE, &found) else { return Ok(()) };
        let at_hand = self.keyring.ids().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
        Err(StoreError::Unavailable(format!(
            "Redis: its records are sealed under the key {id}, and `store.seal_key` has {at_hand}; add that key behind the first"
        )))
    }
}
