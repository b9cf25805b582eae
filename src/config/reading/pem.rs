//! Reads PEM files: private keys, certificates, roots. Detects common mistakes, such as escaped line breaks.
//!
//! Not here: signing (`jwt`), certificate verification (`tls`).

use std::path::Path;

use rustls::pki_types::CertificateDer;

use super::node::{Field, Keys, NodeRef, Section};
use super::problem::Sink;
use super::reference::bytes;
use super::secret::secret;
use super::shape;
use crate::clock::Clock;
use crate::model::Roots;
use crate::model::connection::ClientCertificate;
use crate::model::secret::Secret;
use crate::tls;

/// Start of a PEM block.
const BEGIN: &str = "-----BEGIN ";
/// Maximum size of a PEM file.
const PEM_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Reads a private key in PEM.
pub fn key(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Secret> {
    let key = secret(node, sink)?;
    check_line_breaks(node, "the key", key.expose(), sink).then_some(key)
}

/// Reports PEM whose line breaks are the two characters `\n`, as in a JSON key file or an environment variable copied
/// from one. Returns true if there is no such problem. `what` is the subject of the message.
pub fn check_line_breaks(node: &NodeRef<'_>, what: &str, text: &str, sink: &mut Sink) -> bool {
    if !text.contains(BEGIN) || !text.contains("\\n") {
        return true;
    }
    if text.trim_start().starts_with('{') {
        let hint = "extract the PEM, for example with `jq -r .private_key FILE > key.pem`, and use that file";
        node.problem(sink, format!("{what} is JSON with the PEM in a member"), hint);
    } else {
        let hint = "restore them, for example with `printf '%b' \"$KEY\" > key.pem`, and use that file";
        node.problem(sink, format!("{what} has the two characters `\\n` instead of line breaks"), hint);
    }
    false
}

/// Reads a PEM file.
pub fn file(node: &NodeRef<'_>, path: &Path, sink: &mut Sink) -> Option<Vec<u8>> {
    let bytes = bytes(node, path, PEM_BYTES_MAX, sink)?;
    let text = String::from_utf8_lossy(&bytes);
    check_line_breaks(node, &path.display().to_string(), &text, sink).then_some(bytes)
}

/// Reads a list of PEM files with certificates.
pub fn roots(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Roots> {
    let files: Vec<_> = node.items(sink)?.iter().map(|item| roots_in_file(item, sink)).collect();
    let files = files.into_iter().collect::<Option<Vec<_>>>()?;
    Some(files.iter().flat_map(|roots| roots.iter()).cloned().collect())
}

/// Reads one PEM file with certificates.
pub fn roots_in_file(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Roots> {
    let path = node.file(sink)?;
    let pem = file(node, &path, sink)?;
    match tls::read_roots(&pem) {
        Ok(certificates) => {
            warn_of_expired(&certificates, node, &path, sink);
            Some(certificates.into())
        }
        Err(error) => {
            node.problem(sink, format!("{} {error}", path.display()), "use a PEM file of CA certificates");
            None
        }
    }
}

/// Warns of the earliest certificate that has expired.
pub fn warn_of_expired(certificates: &[CertificateDer<'_>], item: &NodeRef<'_>, path: &Path, sink: &mut Sink) {
    let now = Clock::system().now().wall;
    let earliest = certificates.iter().filter_map(tls::expiry).filter(|expiry| *expiry <= now).min();
    if let Some(expiry) = earliest {
        let date = httpdate::fmt_http_date(expiry.to_system());
        let message = format!("{} contains a certificate that expired on {date}", path.display());
        item.warning(sink, message, "replace or remove it");
    }
}

/// Reads roots that replace the global ones; an empty list would trust no server.
pub fn replacement_roots(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Roots> {
    let roots = roots(node, sink)?;
    if roots.is_empty() {
        node.problem(sink, "is an empty list", "add a PEM file, or remove the key to use the global roots");
        return None;
    }
    Some(roots)
}

/// Reads a certificate with its chain, and the private key that belongs to it.
pub fn certificate<K: Keys>(
    section: &Section<'_, K>,
    (certificate, key): (Field<shape::FilePath>, Field<shape::Secret>),
    sink: &mut Sink,
) -> Option<ClientCertificate> {
    let hint = "write the path of a PEM file with the certificate, then its chain";
    let at = section.require(certificate, "certificate", hint, sink);
    let pem = at.as_ref().and_then(|at| {
        let path = at.file(sink)?;
        Some((file(at, &path, sink)?, path))
    });
    let hint = "write `key: {file: PATH}` with the private key in PEM";
    let key_at = section.require(key, "key", hint, sink);
    let key = key_at.as_ref().and_then(|node| self::key(node, sink));
    let ((pem, path), at, key) = (pem?, at?, key?);
    match tls::read_client_certificate(&pem, key) {
        Ok(certificate) => {
            warn_of_expired(&certificate.chain[..1], &at, &path, sink);
            Some(certificate)
        }
        Err(error) => {
            report_certificate(&error, (&at, &path), &key_at?, sink);
            None
        }
    }
}

fn report_certificate(
    error: &tls::ClientCertificateError,
    (at, path): (&NodeRef<'_>, &Path),
    key_at: &NodeRef<'_>,
    sink: &mut Sink,
) {
    match error {
        tls::ClientCertificateError::Certificate(error) => {
            let hint = match error {
                tls::RootsError::Version1 => {
                    "reissue it as version 3: with `openssl x509 -req`, pass `-extfile` with an extension such as \
                     `extendedKeyUsage = clientAuth`"
                }
                _ => "use a PEM file of the certificate and its chain",
            };
            at.problem(sink, format!("{} {error}", path.display()), hint);
        }
        error => key_at.problem(sink, format!("the key {error}"), "use the private key of this certificate, in PEM"),
    }
}
