//! `store:`: where tokens are kept, and under which keys they are sealed.
//!
//! Not here: opening it (`store`), what `{store: NAME}` means (`reference`).

use std::path::Path;

use super::file::{EmbeddedFile, MemoryFile, StoreFile};
use super::problem::Sink;
use super::reference;
use super::spot::Spot;
use crate::model::secret::SealKey;
use crate::model::{StoreKind, StoreSettings};

const FILE: &str = "tokens.redb";

pub fn settings(spot: Option<Spot<'_>>, state_dir: &Path, sink: &mut Sink) -> StoreSettings {
    let kind = StoreKind::Embedded { path: state_dir.join(FILE), chosen: false };
    let mut settings = StoreSettings { kind, seal_keys: Vec::new() };
    let Some((spot, unit)) = spot.and_then(|spot| Some((spot.clone(), spot.unit::<StoreFile>(sink)?))) else {
        return settings;
    };
    match (unit.get(unit.keys.embedded), unit.get(unit.keys.memory)) {
        (Some(_), Some(_)) => {
            spot.problem(sink, "names two stores", "keep one of `embedded` and `memory`");
        }
        (Some(embedded), None) => {
            let unit = embedded.unit::<EmbeddedFile>(sink);
            let path = unit.and_then(|unit| unit.get(unit.keys.path)?.line(sink));
            let path = state_dir.join(path.as_deref().unwrap_or(FILE));
            settings.kind = StoreKind::Embedded { path, chosen: true };
        }
        (None, Some(memory)) => {
            memory.unit::<MemoryFile>(sink);
            settings.kind = StoreKind::Memory;
        }
        (None, None) => {}
    }
    if let Some(keys) = unit.get(unit.keys.seal_key) {
        if settings.kind == StoreKind::Memory {
            keys.problem(sink, "nothing is sealed in memory", "remove `seal_key`, or write `embedded: {}`");
        }
        settings.seal_keys = seal_keys(&keys, sink);
    }
    settings
}

/// One key, or a list of which the first seals and all open.
fn seal_keys(spot: &Spot<'_>, sink: &mut Sink) -> Vec<SealKey> {
    let items = if spot.is_list() { spot.items(sink).unwrap_or_default() } else { vec![spot.clone()] };
    if items.is_empty() {
        spot.problem(sink, "names no key", "write {file: PATH}, or remove `seal_key` to have one made");
    }
    let mut keys: Vec<SealKey> = Vec::new();
    for item in &items {
        let Some(text) = reference::secret(item, sink) else { continue };
        match SealKey::parse(text.expose()) {
            None => item.problem(sink, "is no key", "give 32 bytes in base64: `openssl rand -base64 32`"),
            Some(key) if keys.contains(&key) => item.problem(sink, "is the same key again", "remove one of the two"),
            Some(key) => keys.push(key),
        }
    }
    keys
}
