//! Secrets in Redis: a hash of secrets, and a hash with the versions of those removed on purpose.
//!
//! Invariant: a secret that this process uses is written back if Redis has lost it, and only then.

use super::backend::Backend;
use super::ttl::{TOMBSTONE_TTL, ms};
use crate::model::secret::Secret;
use crate::store::StoreError;
use crate::store::codec::{check_secret, secret_record};
use crate::store::seal::Header;

impl Backend {
    pub async fn secret(&self, name: &str) -> Result<Option<Secret>, StoreError> {
        let value = self.field(&self.names.secrets(), name).await?;
        let Some(sealed) = value.bytes(|| secret_record(name))? else { return Ok(None) };
        let secret = self.codec.secret(name, &sealed)?;
        let version = Header::parse(&sealed).map_or(0, |header| header.version);
        self.secrets_in_use.lock().insert(name.to_owned(), (version, secret.clone()));
        Ok(Some(secret))
    }

    pub async fn put_secret(&self, name: &str, secret: Secret) -> Result<(), StoreError> {
        check_secret(name, &secret)?;
        let version = self.codec.wall_ms();
        self.write_secret(name, self.codec.seal_secret(name, version, &secret)?).await?;
        self.secrets_in_use.lock().entry(name.to_owned()).and_modify(|in_use| *in_use = (version, secret));
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
        call.arg(name).arg(self.codec.wall_ms()).arg(ms(TOMBSTONE_TTL));
        let removed = self.link.run(&call).await?;
        self.secrets_in_use.lock().remove(name);
        Ok(removed)
    }

    pub async fn secret_names(&self) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = self.link.query(redis::cmd("HKEYS").arg(self.names.secrets())).await?;
        names.sort_unstable();
        Ok(names)
    }

    /// Writes back the secrets in use that Redis has lost.
    pub async fn restore_secrets(&self) -> Result<(), StoreError> {
        let in_use = self.secrets_in_use.lock().clone();
        for (name, (version, secret)) in in_use {
            let mut call = self.scripts.restore_secret.prepare_invoke();
            call.key(self.names.secrets()).key(self.names.removed_secrets());
            call.arg(&name).arg(version).arg(self.codec.seal_secret(&name, version, &secret)?);
            if self.link.run(&call).await? {
                tracing::warn!(secret = name, "secret in use missing from the store; written back");
            }
        }
        Ok(())
    }
}
