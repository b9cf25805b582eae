//! Secrets: as text, or from a file, an environment variable or the sealed store.
//!
//! Holds: a message names where a secret comes from, never the secret.

use std::os::unix::fs::MetadataExt as _;

use super::problem::Sink;
use super::reference::{file_text, text, variable};
use super::shape::SecretFile;
use super::spot::Spot;
use crate::model::secret::{NoVault, Secret, SecretDigest};

/// A secret that is sent: text, `{file: PATH}` or `{env: NAME}`.
pub fn secret(spot: &Spot<'_>, sink: &mut Sink) -> Option<Secret> {
    match either(spot, sink)? {
        Either::Secret(secret) => Some(secret),
        Either::Digest(_, spot) => {
            spot.problem(sink, "a digest cannot be sent", "give the secret itself: {file: PATH} or {env: NAME}");
            None
        }
    }
}

/// A secret that is only compared: the same, or `{sha256: HEX}`.
pub fn compared(spot: &Spot<'_>, sink: &mut Sink) -> Option<SecretDigest> {
    match either(spot, sink)? {
        Either::Secret(secret) => Some(secret.digest()),
        Either::Digest(digest, _) => Some(digest),
    }
}

enum Either<'a> {
    Secret(Secret),
    Digest(SecretDigest, Spot<'a>),
}

fn either<'a>(spot: &Spot<'a>, sink: &mut Sink) -> Option<Either<'a>> {
    let value = if spot.is_map() {
        let unit = spot.unit::<SecretFile>(sink)?;
        let keys = &unit.keys;
        match (unit.get(keys.file), unit.get(keys.env), unit.get(keys.store), unit.get(keys.sha256)) {
            (Some(at), None, None, None) => secret_file(&at, sink)?,
            (None, Some(at), None, None) => variable(&at, &text(&at, sink)?.value, sink)?,
            (None, None, Some(at), None) => return Some(Either::Secret(stored(&at, sink)?)),
            (None, None, None, Some(at)) => return Some(Either::Digest(digest(&at, sink)?, at)),
            (None, None, None, None) if spot.pairs(sink).iter().any(|(key, ..)| !unit.knows(key)) => return None,
            _ => {
                spot.problem(sink, "must have exactly one source", "write {file: PATH} or {env: NAME}");
                return None;
            }
        }
    } else {
        let text = text(spot, sink)?;
        if !text.filled {
            spot.warning(sink, "the secret is in the file as text", "write {file: PATH} or {env: NAME}");
        }
        text.value
    };
    if value.is_empty() {
        spot.problem(sink, "the secret is empty", "put a value where it comes from");
        return None;
    }
    Some(Either::Secret(Secret::new(value)))
}

/// The secret of this name in the sealed store.
fn stored(spot: &Spot<'_>, sink: &mut Sink) -> Option<Secret> {
    let name = text(spot, sink)?.value;
    if !is_stored_name(&name) {
        let hint = "use 1 to 200 letters, digits and `._-/`";
        spot.problem(sink, "is no name of a stored secret", hint);
        return None;
    }
    let Some((store, state_dir)) = sink.store.clone() else {
        spot.problem(sink, "the store's own key cannot lie in it", "write {file: PATH} or {env: NAME}");
        return None;
    };
    if !store.kind.is_durable() {
        spot.problem(sink, "a store in memory keeps no secrets", "write `store: {embedded: {}}`, or {file: PATH}");
        return None;
    }
    let Some(vault) = sink.vault.clone() else {
        spot.problem(sink, "no store is at hand here", "write {file: PATH} or {env: NAME}");
        return None;
    };
    match vault.secret(&store, &state_dir, &name) {
        Ok(Some(secret)) => {
            sink.content(secret.digest().as_bytes());
            Some(secret)
        }
        Ok(None) => {
            let hint = format!("put it there: `keybearer secret set {name}`");
            spot.problem(sink, format!("the store has no secret `{name}`"), hint);
            None
        }
        Err(NoVault::InUse) => {
            let hint = "the instance that runs has looked it up itself";
            spot.warning(sink, format!("`{name}` cannot be looked up while an instance uses the store"), hint);
            Some(Secret::new(UNKNOWN))
        }
        Err(NoVault::Failed(why)) => {
            spot.problem(sink, format!("`{name}` cannot be looked up: {why}"), "mend the store, or write {file: PATH}");
            None
        }
    }
}

/// Substitute for a secret that only the running instance can look up, while `check` runs beside it.
const UNKNOWN: &str = "(in the store)";

/// Whether it is the substitute for one that was not looked up.
pub fn is_unknown(secret: &Secret) -> bool {
    secret.expose() == UNKNOWN
}

/// `[A-Za-z0-9._/-]{1,200}`: what `secret set` takes.
pub fn is_stored_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
    (1..=200).contains(&text.len()) && text.bytes().all(plain)
}

fn secret_file(spot: &Spot<'_>, sink: &mut Sink) -> Option<String> {
    let path = spot.file(sink)?;
    let value = file_text(spot, &path, sink)?;
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
        spot.warning(sink, format!("everybody may read {}", path.display()), "take the right away: chmod o-r");
    }
    Some(value)
}

fn digest(spot: &Spot<'_>, sink: &mut Sink) -> Option<SecretDigest> {
    let hex = text(spot, sink)?.value;
    let pair = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let digits = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = (0..64).step_by(2).map(|at| pair(at).filter(|_| digits)).collect();
    let array = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    if array.is_none() {
        spot.problem(sink, "is not a SHA-256 digest", "write 64 hexadecimal digits, as `sha256sum` prints them");
    }
    array.map(SecretDigest::new)
}
