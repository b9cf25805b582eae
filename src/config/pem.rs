//! Keys and certificates in PEM, and what people paste in their place.
//!
//! Not here: whether a key is of use (`jwt`, `tls`).

use super::problem::Sink;
use super::reference;
use super::spot::Spot;
use crate::model::secret::Secret;

/// What PEM begins with.
const BEGIN: &str = "-----BEGIN ";

/// A private key in PEM.
pub fn key(spot: &Spot<'_>, sink: &mut Sink) -> Option<Secret> {
    let key = reference::secret(spot, sink)?;
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
