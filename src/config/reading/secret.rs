//! Reads secrets: text, or a value from a file, an environment variable, the sealed store or `secrets`.
//!
//! Invariant: messages name the source of a secret, never its value.

use std::os::unix::fs::MetadataExt as _;

use super::node::NodeRef;
use super::problem::{Sink, suggest};
use super::published::PublishedSecret;
use super::reference::{file_text, is_refused, text, variable};
use super::shape::SecretFile;
use super::source::SourceKind;
use super::value;
use crate::model::Name;
use crate::model::origin::Host;
use crate::model::secret::{Secret, SecretDigest, VaultError};

/// Reads a secret that is sent: text, `{file: PATH}`, `{env: NAME}`, `{store: NAME}` or `{use: NAME}`.
pub fn secret(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Secret> {
    match secret_or_digest(node, sink)? {
        SecretOrDigest::Secret(secret) => Some(secret),
        SecretOrDigest::Digest(_, node) => {
            node.problem(sink, "this secret is sent, so a digest is not enough", "write {file: PATH} or {env: NAME}");
            None
        }
    }
}

/// Reads a secret that is only compared, which may also be `{sha256: HEX}`.
pub fn compared(node: &NodeRef<'_>, sink: &mut Sink) -> Option<SecretDigest> {
    match secret_or_digest(node, sink)? {
        SecretOrDigest::Secret(secret) => Some(secret.digest()),
        SecretOrDigest::Digest(digest, _) => Some(digest),
    }
}

enum SecretOrDigest<'a> {
    Secret(Secret),
    Digest(SecretDigest, NodeRef<'a>),
}

fn secret_or_digest<'a>(node: &NodeRef<'a>, sink: &mut Sink) -> Option<SecretOrDigest<'a>> {
    if node.is_map() {
        let section = node.section::<SecretFile>(sink)?;
        let keys = &section.keys;
        let digest = section.get(keys.sha256);
        let sources = Sources {
            file: section.get(keys.file),
            env: section.get(keys.env),
            store: section.get(keys.store),
            published: section.get(keys.published),
        };
        return match digest.filter(|_| sources.count() == 0) {
            Some(at) => Some(SecretOrDigest::Digest(self::digest(&at, sink)?, at)),
            // The unknown key is the problem.
            None if node.pairs(sink).iter().any(|(key, ..)| !section.knows(key)) => None,
            None if section.get(keys.sha256).is_some() => {
                not_one_source(node, sink);
                None
            }
            None => sources.read(node, sink).map(SecretOrDigest::Secret),
        };
    }
    let text = text(node, sink)?;
    // The store seals what is sent over the API.
    if !text.has_reference && node.source.kind == SourceKind::File {
        node.warning(sink, "the secret is plain text in the configuration", "write {file: PATH} or {env: NAME}");
    }
    nonempty(node, text.value, sink).map(SecretOrDigest::Secret)
}

/// The keys of a secret that is not written out, of which exactly one is allowed.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    pub file: Option<NodeRef<'a>>,
    pub env: Option<NodeRef<'a>>,
    pub store: Option<NodeRef<'a>>,
    /// `{use: NAME}`
    pub published: Option<NodeRef<'a>>,
}

impl Sources<'_> {
    fn count(&self) -> usize {
        [&self.file, &self.env, &self.store, &self.published].into_iter().flatten().count()
    }

    /// Reads the secret of `node`.
    pub fn read(&self, node: &NodeRef<'_>, sink: &mut Sink) -> Option<Secret> {
        let value = match (&self.file, &self.env, &self.store, &self.published) {
            (Some(at), None, None, None) => secret_file(at, sink)?,
            (None, Some(at), None, None) => variable(at, &text(at, sink)?.value, sink)?,
            (None, None, Some(at), None) => return stored(at, sink),
            (None, None, None, Some(at)) => return published(at, sink),
            _ => {
                not_one_source(node, sink);
                return None;
            }
        };
        nonempty(node, value, sink)
    }
}

fn not_one_source(node: &NodeRef<'_>, sink: &mut Sink) {
    node.problem(sink, "must have exactly one source", "write {file: PATH} or {env: NAME}");
}

fn nonempty(node: &NodeRef<'_>, value: String, sink: &mut Sink) -> Option<Secret> {
    if value.is_empty() {
        node.problem(sink, "the secret is empty", "give it a value");
        return None;
    }
    Some(Secret::new(value))
}

/// Reads a secret that the operator has published; a destination that is not among its hosts is a problem.
fn published(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Secret> {
    let name = node.parse(sink, value::name)?;
    let Some(published) = sink.published.clone() else {
        node.problem(sink, "only connections can use a published secret", "write {file: PATH} or {env: NAME}");
        return None;
    };
    let Some(entry) = published.secrets.get(&name) else {
        let known = published.secrets.keys().map(Name::as_str);
        let hint = suggest(name.as_str(), known, "add it under `secrets`, with the hosts that it may be sent to");
        node.problem(sink, format!("no published secret is named `{name}`"), hint);
        return None;
    };
    let PublishedSecret { secret, hosts } = entry.as_ref()?;
    if let Some((key, host)) = sink.destinations.outside(hosts) {
        let message = format!("`{key}` would send the published secret `{name}` to {host}");
        let all = hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(", ");
        node.problem(sink, message, format!("use a URL at its hosts ({all}), or add the host under `secrets`"));
    }
    if let Some((key, remedy)) = sink.destinations.cleartext {
        let message = format!("`{key}` would permit sending the published secret `{name}` in the clear");
        node.problem(sink, message, format!("{remedy}, or use another secret"));
    }
    sink.destinations.restrict(hosts);
    Some(secret.clone())
}

/// Reads a secret from the sealed store.
fn stored(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Secret> {
    if is_refused(node, "a stored secret", sink) {
        return None;
    }
    let name = text(node, sink)?.value;
    if !is_stored_name(&name) {
        let hint = "use 1 to 200 letters, digits and `._-/`";
        node.problem(sink, "is not a valid name of a stored secret", hint);
        return None;
    }
    let Some((store, state_dir)) = sink.store.clone() else {
        node.problem(sink, "the store's own key cannot be in the store", "write {file: PATH} or {env: NAME}");
        return None;
    };
    if !store.kind.is_durable() {
        node.problem(sink, "a store in memory keeps no secrets", "write `store: {embedded: {}}`, or {file: PATH}");
        return None;
    }
    let Some(vault) = sink.vault.clone() else {
        node.problem(sink, "no store is available here", "write {file: PATH} or {env: NAME}");
        return None;
    };
    match vault.secret(&store, &state_dir, &name) {
        Ok(Some(secret)) => {
            sink.content(secret.digest().as_bytes());
            Some(secret)
        }
        Ok(None) => {
            let hint = format!("add it with `keybearer secret set {name}`");
            node.problem(sink, format!("the store has no secret `{name}`"), hint);
            None
        }
        Err(VaultError::InUse) => {
            let hint = "nothing to do: the running instance reads it itself";
            node.warning(sink, format!("`{name}` cannot be read while a running instance uses the store"), hint);
            Some(Secret::new(UNRESOLVED))
        }
        Err(VaultError::Failed(reason)) => {
            node.problem(
                sink,
                format!("`{name}` cannot be read from the store: {reason}"),
                "fix the store, or write {file: PATH}",
            );
            None
        }
    }
}

/// Substitute for a stored secret that only the running instance can read.
const UNRESOLVED: &str = "(in the store)";

/// True for the substitute of a secret that could not be read.
pub fn is_unresolved(secret: &Secret) -> bool {
    secret.expose() == UNRESOLVED
}

/// The names that `secret set` accepts.
pub const STORED_NAME_PATTERN: &str = "^[A-Za-z0-9._/-]{1,200}$";

/// True for a name that matches [`STORED_NAME_PATTERN`].
pub fn is_stored_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
    (1..=200).contains(&text.len()) && text.bytes().all(plain)
}

fn secret_file(node: &NodeRef<'_>, sink: &mut Sink) -> Option<String> {
    let path = node.file(sink)?;
    let value = file_text(node, &path, sink)?;
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
        node.warning(sink, format!("{} is world-readable", path.display()), "remove the permission: chmod o-r");
    }
    Some(value)
}

fn digest(node: &NodeRef<'_>, sink: &mut Sink) -> Option<SecretDigest> {
    let hex = text(node, sink)?.value;
    let pair = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let digits = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = (0..64).step_by(2).map(|at| pair(at).filter(|_| digits)).collect();
    let array = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    if array.is_none() {
        node.problem(sink, "is not a SHA-256 digest", "write 64 hexadecimal digits, as `sha256sum` prints them");
    }
    array.map(SecretDigest::new)
}
