//! Limits of a document.

use super::Flaw;

/// Maximum size of a file.
pub const BYTES_MAX: usize = 4 * 1024 * 1024;
/// Maximum nesting of lists and maps.
pub const DEPTH_MAX: usize = 32;
/// Maximum number of keys, scalars, lists and maps, with aliases expanded.
pub const NODES_MAX: usize = 500_000;

/// What differs between a file and an export.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub bytes: usize,
    /// Number of keys, scalars, lists and maps, with aliases expanded.
    pub nodes: usize,
}

impl Limits {
    /// A file of the configuration.
    pub const FILE: Limits = Limits { bytes: BYTES_MAX, nodes: NODES_MAX };
    /// An export of every definition in a store.
    pub const EXPORT: Limits = Limits { bytes: 64 * 1024 * 1024, nodes: 4_000_000 };

    /// The flaw of a document with more bytes.
    pub fn too_big(self) -> Flaw {
        let message = format!("is larger than {} MiB", self.bytes / 1024 / 1024);
        Flaw { line: 1, column: 1, path: String::new(), message, hint: "split it into files under `include`" }
    }
}
