//! Notes in Redis. Each note is a key with a TTL; each namespace has an index of names, to count and list them.

use std::time::Duration;

use super::backend::Backend;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::store::{LONG_NOTE, NOTE_BYTES_MAX, NOTES_PER_NAMESPACE_MAX, Note, StoreError, namespace_of};

/// Redis rejects a TTL of zero.
const TTL_MIN: Duration = Duration::from_millis(1);

impl Backend {
    pub async fn load_note(&self, name: &str) -> Result<Option<Note>, StoreError> {
        let value = self.get(&self.names.note(name)).await?;
        let sealed = value.bytes(|| format!("note {name}"))?;
        sealed.map(|sealed| self.codec.note(name, &sealed)).transpose()
    }

    pub async fn save_note(
        &self,
        name: &str,
        text: Secret,
        expires_at: WallTime,
        replaces: Option<u64>,
    ) -> Result<bool, StoreError> {
        if text.expose().len() > NOTE_BYTES_MAX {
            return Err(LONG_NOTE);
        }
        let (before, now) = (replaces.unwrap_or(0), self.codec.wall());
        let sealed = self.codec.seal_note(name, before + 1, &text)?;
        let mut call = self.scripts.put_note.prepare_invoke();
        let namespace = namespace_of(name);
        call.key(self.names.note(name)).key(self.names.notes_of(namespace)).key(self.names.note_namespaces());
        call.arg(name).arg(sealed).arg(expires_at.max(now + TTL_MIN).as_millis()).arg(now.as_millis()).arg(before);
        call.arg(NOTES_PER_NAMESPACE_MAX).arg(namespace).arg(self.names.note(""));
        self.link.run(&call).await
    }

    pub async fn note_names(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for namespace in self.live(&self.names.note_namespaces()).await? {
            if namespace.starts_with(prefix) || prefix.starts_with(&namespace) {
                names.extend(self.live(&self.names.notes_of(&namespace)).await?);
            }
        }
        names.retain(|name| name.starts_with(prefix));
        names.sort_unstable();
        Ok(names)
    }

    /// The members of an index that have not expired.
    async fn live(&self, index: &str) -> Result<Vec<String>, StoreError> {
        let after = format!("({}", self.codec.wall_ms());
        self.link.query(redis::cmd("ZRANGEBYSCORE").arg(index).arg(after).arg("+inf")).await
    }
}
