//! What a file takes from elsewhere: `${env:NAME}`, `${file:PATH}`, secrets, certificates.
//!
//! Holds: what is filled in is never read again as YAML or as a reference; every file is bounded and noted; messages
//! name the variable or the file, never its content.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustls::pki_types::CertificateDer;

use super::file::SecretFile;
use super::pem;
use super::problem::Sink;
use super::spot::Spot;
use crate::clock::Clock;
use crate::model::Roots;
use crate::model::secret::{NoVault, Secret, SecretDigest};
use crate::tls;

/// The longest secret, or file behind `${file:…}`, in bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// The longest file of certificates, in bytes.
const ROOTS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A scalar with its references filled.
pub struct Text<'a> {
    pub value: String,
    /// As it stands in the file; this, not the value, may be repeated.
    pub written: &'a str,
    /// It held a reference.
    pub filled: bool,
}

/// The text at `spot`; a list, a map, or a reference without a value is a problem.
pub fn text<'a>(spot: &Spot<'a>, sink: &mut Sink) -> Option<Text<'a>> {
    let Some(written) = spot.written() else {
        spot.problem(sink, "must be a single value", "write one text or number here, not a list or a map");
        return None;
    };
    let (mut value, mut rest, mut filled, mut whole) = (String::new(), written, false, true);
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            value += &rest[..at - 1];
            value += "${";
            rest = &rest[at + 2..];
            continue;
        }
        value += &rest[..at];
        let (inside, tail) = rest[at + 2..].split_once('}').unwrap_or(("", ""));
        match reference(spot, inside, sink) {
            Some(text) => value += &text,
            None => whole = false,
        }
        (filled, rest) = (true, tail);
    }
    value += rest;
    whole.then_some(Text { value, written, filled })
}

fn reference(spot: &Spot<'_>, inside: &str, sink: &mut Sink) -> Option<String> {
    if let Some(name) = inside.strip_prefix("env:") {
        return variable(spot, name, sink);
    }
    if let Some(path) = inside.strip_prefix("file:") {
        return file_text(spot, &spot.source.resolve(path), sink);
    }
    spot.problem(sink, "holds `${` without a reference", "write ${env:NAME}, ${file:PATH}, or $${ for a plain `${`");
    None
}

#[allow(clippy::disallowed_methods, reason = "references of the configuration are what the ban leaves open")]
fn variable(spot: &Spot<'_>, name: &str, sink: &mut Sink) -> Option<String> {
    match std::env::var(name) {
        Ok(value) => return Some(without_line_break(value)),
        Err(std::env::VarError::NotPresent) => {
            spot.problem(sink, format!("environment variable `{name}` is not set"), "set it for this process")
        }
        Err(std::env::VarError::NotUnicode(_)) => {
            spot.problem(sink, format!("environment variable `{name}` is not UTF-8"), "set it to a UTF-8 text")
        }
    }
    None
}

/// A file's text without one trailing line break.
pub fn file_text(spot: &Spot<'_>, path: &Path, sink: &mut Sink) -> Option<String> {
    let bytes = bytes(spot, path, TEXT_BYTES_MAX, sink)?;
    let Ok(text) = String::from_utf8(bytes) else {
        spot.problem(sink, format!("{} is not UTF-8", path.display()), "store the value as plain text");
        return None;
    };
    Some(without_line_break(text))
}

/// Without one trailing `\n` or `\r\n`: editors, `echo` and `kubectl` end a value with one.
pub fn without_line_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

fn bytes(spot: &Spot<'_>, path: &Path, max: usize, sink: &mut Sink) -> Option<Vec<u8>> {
    sink.file(path);
    match read_bounded(path, max) {
        Ok(bytes) => {
            sink.content(&bytes);
            Some(bytes)
        }
        Err(reason) => {
            let message = format!("{} cannot be read ({reason})", path.display());
            spot.problem(sink, message, "mount it or give another path");
            None
        }
    }
}

/// A regular file of at most `max` bytes, or why not.
pub fn read_bounded(path: &Path, max: usize) -> Result<Vec<u8>, String> {
    let why = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        kind => kind.to_string(),
    };
    // Looked at before it is opened: opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(why)?.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(why)?;
    file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(why)?;
    if bytes.len() > max {
        return Err(format!("larger than {max} bytes"));
    }
    Ok(bytes)
}

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
            spot.warning(sink, "the secret stands in the file as text", "write {file: PATH} or {env: NAME}");
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

/// Stands for a secret that only a running instance can look up, while a configuration is checked beside it.
const UNKNOWN: &str = "(in the store)";

/// Does it stand for one that was not looked up?
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

/// The bytes of a file in PEM.
pub fn pem(spot: &Spot<'_>, path: &Path, sink: &mut Sink) -> Option<Vec<u8>> {
    let bytes = bytes(spot, path, ROOTS_BYTES_MAX, sink)?;
    let text = String::from_utf8_lossy(&bytes);
    pem::has_lines(spot, &path.display().to_string(), &text, sink).then_some(bytes)
}

/// The certificates of a list of PEM files.
pub fn roots(spot: &Spot<'_>, sink: &mut Sink) -> Option<Roots> {
    let files: Vec<_> = spot.items(sink)?.iter().map(|item| roots_of_file(item, sink)).collect();
    let files = files.into_iter().collect::<Option<Vec<_>>>()?;
    Some(files.iter().flat_map(|roots| roots.iter()).cloned().collect())
}

/// The certificates of one PEM file.
pub fn roots_of_file(spot: &Spot<'_>, sink: &mut Sink) -> Option<Roots> {
    let path = spot.file(sink)?;
    let pem = pem(spot, &path, sink)?;
    match tls::read_roots(&pem) {
        Ok(certificates) => {
            warn_of_expired(&certificates, spot, &path, sink);
            Some(certificates.into())
        }
        Err(error) => {
            spot.problem(sink, format!("{} {error}", path.display()), "give a PEM file of CA certificates");
            None
        }
    }
}

pub fn warn_of_expired(certificates: &[CertificateDer<'_>], item: &Spot<'_>, path: &Path, sink: &mut Sink) {
    let now = Clock::system().now().wall;
    let ended = certificates.iter().filter_map(tls::expiry).filter(|end| *end <= now).min();
    if let Some(end) = ended {
        let date = httpdate::fmt_http_date(end.to_system());
        let message = format!("{} holds a certificate that expired on {date}", path.display());
        item.warning(sink, message, "replace it, or take it out");
    }
}

/// The same where it stands in place of other roots, so that none at all would trust nobody.
pub fn own_roots(spot: &Spot<'_>, sink: &mut Sink) -> Option<Roots> {
    let roots = roots(spot, sink)?;
    if roots.is_empty() {
        spot.problem(sink, "names no certificate", "name a PEM file, or remove the key to use the global roots");
        return None;
    }
    Some(roots)
}
