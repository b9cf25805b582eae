//! `state_dir`: the directory for Keybearer's own files, and the environment variables that decide its default.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::reading::{NodeRef, Sink};

const SYSTEM_STATE_DIR: &str = "/var/lib/keybearer";
/// Relative to the home directory.
const HOME_STATE_DIR: &str = ".local/state/keybearer";

/// Reads `state_dir`, or returns the default directory.
pub fn state_dir(node: Option<NodeRef<'_>>, sink: &mut Sink) -> PathBuf {
    node.and_then(|node| node.file(sink)).unwrap_or_else(default_state_dir)
}

fn default_state_dir() -> PathBuf {
    if let Some(value) = variable("STATE_DIRECTORY") {
        // systemd separates several directories by colons.
        return value.split(|b| *b == b':').next().map(path).unwrap_or_default();
    }
    let system = Path::new(SYSTEM_STATE_DIR);
    match variable("HOME") {
        Some(home) if !is_writable(system) => path(&home).join(HOME_STATE_DIR),
        _ => system.to_owned(),
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// True if the directory is writable, or can be created.
fn is_writable(directory: &Path) -> bool {
    let directory = if directory.exists() { directory } else { directory.parent().unwrap_or(directory) };
    rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// An environment variable that is set and not empty.
#[allow(clippy::disallowed_methods, reason = "only the configuration reads the environment")]
pub fn variable(name: &str) -> Option<Vec<u8>> {
    std::env::var_os(name).map(OsStringExt::into_vec).filter(|value| !value.is_empty())
}
