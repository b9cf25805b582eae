//! The definition of a connection as its administrator wrote it: references unfilled, literal secrets masked.
//!
//! Not here: reading and masking it (`config::reading::written`), its JSON in the API (`admin::view`).

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a connection is defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefinedIn {
    /// A configuration file, which the API never changes.
    File(Arc<Path>),
    /// The store, through the API.
    Api(Revision),
}

/// Identifies one immutable version of a definition that was made over the API; it is also the ETag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(u128);

impl Revision {
    pub const BYTES: usize = 16;

    /// A new revision. It is unique, not secret.
    pub fn random() -> Revision {
        Revision(fastrand::u128(..))
    }

    /// 32 lower-case hexadecimal digits; `None` for anything else.
    pub fn parse(hex: &str) -> Option<Revision> {
        let revision = Revision(u128::from_str_radix(hex, 16).ok()?);
        (revision.to_string() == hex).then_some(revision)
    }

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0.to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Revision {
        Revision(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[derive(Clone)]
pub struct WrittenDefinition {
    pub defined_in: DefinedIn,
    /// A compact JSON object, in the order of the file; a masked secret is `{"set":true}`.
    pub json: String,
    /// The line of each key of the object.
    pub lines: Vec<(String, usize)>,
}

impl WrittenDefinition {
    /// `None`: it is defined in a file.
    pub fn revision(&self) -> Option<Revision> {
        match self.defined_in {
            DefinedIn::File(_) => None,
            DefinedIn::Api(revision) => Some(revision),
        }
    }

    /// True if the hosts that it names may have private addresses: only files open addresses.
    pub fn opens_addresses(&self) -> bool {
        match self.defined_in {
            DefinedIn::File(_) => true,
            DefinedIn::Api(_) => false,
        }
    }
}

/// Shows where it is; the text is long.
impl fmt::Debug for WrittenDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WrittenDefinition({:?})", self.defined_in)
    }
}

/// Ignores positions: a definition that moves within its file has not changed.
impl PartialEq for WrittenDefinition {
    fn eq(&self, other: &WrittenDefinition) -> bool {
        self.json == other.json && self.defined_in == other.defined_in
    }
}

impl Eq for WrittenDefinition {}
