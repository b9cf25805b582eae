//! What the system around the program is told, and what it is asked for: the service manager's notices (`sd_notify`),
//! the limit of open files, and that a crash writes no memory to a disk.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;

/// Listeners, logs, token endpoints and the like, beside the connections themselves.
const FILES_APART: u64 = 256;

/// Tells a service manager that waits for it; without one this does nothing.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

pub fn ready() {
    notify(&[NotifyState::Ready]);
}

pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// A reload begins; `ready` ends it (`Type=notify-reload`).
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager could not be told"),
    }
}

/// A core file would hold every token and key in the clear.
pub fn no_core_files() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core files cannot be switched off; they would hold secrets");
    }
}

/// Raises the soft limit of open files as far as the hard one permits, and warns where that is less than
/// `connections` callers with an upstream connection each may need.
pub fn raise_open_files(connections: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = 2 * connections as u64 + FILES_APART;
    let wanted = maximum.map_or(needed, |maximum| needed.min(maximum)).max(current.unwrap_or(u64::MAX));
    let raised = match current {
        Some(current) if current < wanted => {
            setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).map_or(current, |()| wanted)
        }
        _ => wanted,
    };
    if raised < needed {
        tracing::warn!(
            open_files = raised,
            needed,
            "the limit of open files is lower than limits.downstream_connections may need; raise it, or lower that limit"
        );
    } else {
        tracing::info!(open_files = raised, "open files");
    }
}
