//! Secrets in Redis: one hash, and another that tells which were removed on purpose.
//!
//! Holds: what the configuration of a running process was given is written back where Redis has lost it, and nowhere else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{ENDED_LIFE, Shared, ms};
use crate::model::secret::Secret;
use crate::store::StoreError;
use crate::store::seal::Header;
use crate::store::sealed::{check_secret, secret_record};
use crate::sync::lock;

/// The secrets that a process has read, with their versions; of all its stores.
#[derive(Clone, Default)]
pub struct Lent(Arc<Mutex<BTreeMap<String, (u64, Secret)>>>);

impl Lent {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, (u64, Secret)>> {
        lock(&self.0)
    }
}

impl Shared {
    pub async fn secret(&self, name: &str) -> Result<Option<Secret>, StoreError> {
        let value = self.scripts.field(&self.link, &self.names.secrets(), name).await?;
        let Some(sealed) = self.found(|| secret_record(name), value)? else { return Ok(None) };
        let secret = self.sealed.secret(name, &sealed)?;
        let version = Header::of(&sealed).map_or(0, |header| header.version);
        self.lent.all().insert(name.to_owned(), (version, secret.clone()));
        Ok(Some(secret))
    }

    pub async fn put_secret(&self, name: &str, secret: Secret) -> Result<(), StoreError> {
        check_secret(name, &secret)?;
        let version = self.sealed.wall_ms();
        self.write_secret(name, self.sealed.seal_secret(name, version, &secret)?).await?;
        self.lent.all().entry(name.to_owned()).and_modify(|lent| *lent = (version, secret));
        Ok(())
    }

    pub async fn write_secret(&self, name: &str, sealed: Vec<u8>) -> Result<(), StoreError> {
        let mut call = self.scripts.put_secret.prepare_invoke();
        call.key(self.names.secrets()).key(self.names.removed_secrets()).arg(name).arg(sealed);
        self.link.run(&call).await
    }

    pub async fn remove_secret(&self, name: &str) -> Result<bool, StoreError> {
        let mut call = self.scripts.remove_secret.prepare_invoke();
        call.key(self.names.secrets()).key(self.names.removed_secrets());
        call.arg(name).arg(self.sealed.wall_ms()).arg(ms(ENDED_LIFE));
        let removed = self.link.run(&call).await?;
        self.lent.all().remove(name);
        Ok(removed)
    }

    pub async fn secret_names(&self) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = self.link.query(redis::cmd("HKEYS").arg(self.names.secrets())).await?;
        names.sort_unstable();
        Ok(names)
    }

    /// Writes back what Redis has lost.
    pub async fn restore_secrets(&self) -> Result<(), StoreError> {
        let lent = self.lent.all().clone();
        for (name, (version, secret)) in lent {
            let mut call = self.scripts.restore_secret.prepare_invoke();
            call.key(self.names.secrets()).key(self.names.removed_secrets());
            call.arg(&name).arg(version).arg(self.sealed.seal_secret(&name, version, &secret)?);
            if self.link.run(&call).await? {
                tracing::warn!(secret = name, "the store had lost a secret that is in use here; it was written back");
            }
        }
        Ok(())
    }
}
