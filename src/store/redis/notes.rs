//! Notes in Redis, each with its end; their names in an index, so that they can be counted and listed.

use std::time::Duration;

use super::{Shared, ms};
use crate::model::secret::Secret;
use crate::store::{LONG_NOTE, NOTE_BYTES_MAX, NOTES_MAX, Note, StoreError, TOO_MANY_NOTES};

/// A note that ends sooner is as good as over.
const LIFE_MIN: Duration = Duration::from_millis(1);

impl Shared {
    pub async fn load_note(&self, name: &str) -> Result<Option<Note>, StoreError> {
        let value = self.scripts.get(&self.link, &self.names.note(name)).await?;
        let sealed = self.found(|| format!("note {name}"), value)?;
        sealed.map(|sealed| self.sealed.note(name, &sealed)).transpose()
    }

    pub async fn save_note(
        &self,
        name: &str,
        text: Secret,
        ends: Duration,
        over: Option<u64>,
    ) -> Result<bool, StoreError> {
        if text.expose().len() > NOTE_BYTES_MAX {
            return Err(LONG_NOTE);
        }
        let (before, now) = (over.unwrap_or(0), self.sealed.wall());
        let sealed = self.sealed.seal_note(name, before + 1, &text)?;
        let mut call = self.scripts.put_note.prepare_invoke();
        call.key(self.names.note(name)).key(self.names.notes());
        call.arg(name).arg(sealed).arg(ms(ends.max(now + LIFE_MIN))).arg(ms(now)).arg(before).arg(NOTES_MAX);
        match self.link.run(&call).await? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StoreError::Unavailable(TOO_MANY_NOTES.to_owned())),
        }
    }

    pub async fn names_of_notes(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let after = format!("({}", self.sealed.wall_ms());
        let mut names: Vec<String> =
            self.link.query(redis::cmd("ZRANGEBYSCORE").arg(self.names.notes()).arg(after).arg("+inf")).await?;
        names.retain(|name| name.starts_with(prefix));
        names.sort_unstable();
        Ok(names)
    }
}
