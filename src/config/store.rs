//! `store:`: where tokens are kept, and under which keys they are sealed.
//!
//! Not here: opening it (`store`), what `{store: NAME}` means (`reference`).

use std::path::Path;

use rustix::fs::Access;

use super::file::{EmbeddedFile, MemoryFile, StoreFile, TopFile};
use super::problem::Sink;
use super::reference;
use super::spot::{Spot, Unit};
use crate::model::secret::SealKey;
use crate::model::{StoreKind, StoreSettings};

const FILE: &str = "tokens.redb";

pub fn settings(spot: Option<Spot<'_>>, state_dir: &Path, sink: &mut Sink) -> StoreSettings {
    let kind = StoreKind::Embedded { path: state_dir.join(FILE) };
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
            settings.kind = StoreKind::Embedded { path };
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

/// Tokens that only a person can give again need a place that outlasts the process; for others memory will do.
pub fn check_place(top: &Unit<'_, TopFile>, store: &StoreSettings, person: bool, sink: &mut Sink) {
    let StoreKind::Embedded { path, .. } = &store.kind else {
        if person {
            let message = "a connection needs a person, and a store in memory forgets at every restart";
            top.at("store").warning(sink, message, "write `store: {embedded: {}}`");
        }
        return;
    };
    let here = |directory| if directory == Path::new("") { Path::new(".") } else { directory };
    let existing = path.ancestors().skip(1).map(here).find(|directory| directory.exists());
    let may_write = |it: &Path| rustix::fs::access(it, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    let writable = existing.is_some_and(|it| it.is_dir() && may_write(it));
    if writable {
        return;
    }
    let message = format!("{} cannot be written", path.display());
    let hint = "set `state_dir` to a directory that may be written";
    match person {
        true => top.at("store").problem(sink, message + ", and a connection needs a person", hint),
        false => top.at("store").warning(sink, message + "; tokens are kept in memory", hint),
    }
}
