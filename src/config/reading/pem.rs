//! PEM files: private keys, certificates, roots; and what people paste in place of PEM.
//!
//! Not here: what a key signs (`jwt`), which certificates vouch for whom (`tls`).

use std::path::Path;

use rustls::pki_types::CertificateDer;

use super::problem::Sink;
use super::reference::bytes;
use super::secret::secret;
use super::shape;
use super::spot::{Field, Keys, Spot, Unit};
use crate::clock::Clock;
use crate::model::Roots;
use crate::model::connection::ClientCertificate;
use crate::model::secret::Secret;
use crate::tls;

/// What PEM begins with.
const BEGIN: &str = "-----BEGIN ";
/// The longest file of certificates, in bytes.
const ROOTS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A private key in PEM.
pub fn key(spot: &Spot<'_>, sink: &mut Sink) -> Option<Secret> {
    let key = secret(spot, sink)?;
    has_lines(spot, "the key", key.expose(), sink).then_some(key)
}

/// False, with a problem, where `text` would be PEM if its line breaks were not the two characters `\n`: as in a JSON key
/// file, and in what is copied from one into a variable. `what` begins the sentence.
pub fn has_lines(spot: &Spot<'_>, what: &str, text: &str, sink: &mut Sink) -> bool {
    if !text.contains(BEGIN) || !text.contains("\\n") {
        return true;
    }
    if text.trim_start().starts_with('{') {
        let hint = "take the PEM out of it, as `jq -r .private_key FILE > key.pem` does, and name that file";
        spot.problem(sink, format!("{what} is JSON that holds PEM in a member"), hint);
    } else {
        let hint = "write line breaks in their place, as `printf '%b' \"$KEY\" > key.pem` does, and name that file";
        spot.problem(sink, format!("{what} has the two characters `\\n` in place of line breaks"), hint);
    }
    false
}

/// The bytes of a file in PEM.
pub fn file(spot: &Spot<'_>, path: &Path, sink: &mut Sink) -> Option<Vec<u8>> {
    let bytes = bytes(spot, path, ROOTS_BYTES_MAX, sink)?;
    let text = String::from_utf8_lossy(&bytes);
    has_lines(spot, &path.display().to_string(), &text, sink).then_some(bytes)
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
    let pem = file(spot, &path, sink)?;
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

/// The same for a list that replaces other roots: an empty one would trust no server.
pub fn own_roots(spot: &Spot<'_>, sink: &mut Sink) -> Option<Roots> {
    let roots = roots(spot, sink)?;
    if roots.is_empty() {
        spot.problem(sink, "names no certificate", "name a PEM file, or remove the key to use the global roots");
        return None;
    }
    Some(roots)
}

/// A certificate with its chain, and the private key that belongs to it.
pub fn certificate<K: Keys>(
    unit: &Unit<'_, K>,
    (certificate, key): (Field<shape::Text>, Field<shape::Secret>),
    sink: &mut Sink,
) -> Option<ClientCertificate> {
    let hint = "name the PEM file of the certificate, its chain behind it";
    let at = unit.require(certificate, "certificate", hint, sink);
    let pem = at.as_ref().and_then(|at| {
        let path = at.file(sink)?;
        Some((file(at, &path, sink)?, path))
    });
    let hint = "write key: {file: PATH} of the private key in PEM";
    let key_at = unit.require(key, "key", hint, sink);
    let key = key_at.as_ref().and_then(|spot| self::key(spot, sink));
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
    (at, path): (&Spot<'_>, &Path),
    key_at: &Spot<'_>,
    sink: &mut Sink,
) {
    match error {
        tls::ClientCertificateError::Certificate(error) => {
            let hint = match error {
                tls::RootsError::Version1 => {
                    "have it issued again as version 3: with `openssl x509 -req`, give it `-extfile` with an extension, \
                     such as `extendedKeyUsage = clientAuth`"
                }
                _ => "give a PEM file of the certificate and its chain",
            };
            at.problem(sink, format!("{} {error}", path.display()), hint);
        }
        error => key_at.problem(sink, format!("the key {error}"), "give the certificate's own private key in PEM"),
    }
}
