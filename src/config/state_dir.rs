//! `state_dir`: where the program keeps its own files; and the environment variables that locate it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::reading::{Sink, Spot};

const SYSTEM_STATE_DIR: &str = "/var/lib/keybearer";
/// Below the home directory.
const HOME_STATE_DIR: &str = ".local/state/keybearer";

/// `state_dir`, or the default directory.
pub fn state_dir(spot: Option<Spot<'_>>, sink: &mut Sink) -> PathBuf {
    spot.and_then(|spot| spot.file(sink)).unwrap_or_else(default_state_dir)
}

fn default_state_dir() -> PathBuf {
    if let Some(value) = variable("STATE_DIRECTORY") {
        // systemd joins several directories with colons.
        return value.split(|b| *b == b':').next().map(path).unwrap_or_default();
    }
    let system = Path::new(SYSTEM_STATE_DIR);
    match variable("HOME") {
        Some(home) if !may_write(system) => path(&home).join(HOME_STATE_DIR),
        _ => system.to_owned(),
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// What is not there yet may be written if it can be made.
fn may_write(directory: &Path) -> bool {
    let directory = if directory.exists() { directory } else { directory.parent().unwrap_or(directory) };
    rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// An environment variable that is set and not empty.
#[allow(clippy::disallowed_methods, reason = "the configuration alone reads the environment")]
pub fn variable(name: &str) -> Option<Vec<u8>> {
    std::env::var_os(name).map(OsStringExt::into_vec).filter(|value| !value.is_empty())
}
