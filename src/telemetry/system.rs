//! What the system around the program is told, and what it is asked for: the service manager's notices (`sd_notify`),
//! the limit of open files and how it is divided, and that a crash writes no memory to a disk.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;

/// Open files beside the connections that the proxy serves, where the limit is high enough: listeners, the admin side, callers that
/// are told that there is no place, token endpoints, the store, name servers, logs.
const RESERVED_MAX: usize = 1024;
/// Idle connections to upstreams.
const IDLE_MAX: usize = 4096;
/// Open connections to one of the admin side's listeners.
pub const ADMIN_MAX: usize = 256;
/// Callers at once that are told that there is no place.
const REFUSED_MAX: usize = 256;

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
pub fn raise_open_files(connections: usize) -> OpenFiles {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = 2 * connections as u64 + RESERVED_MAX as u64;
    let wanted = maximum.map_or(needed, |maximum| needed.min(maximum)).max(current.unwrap_or(u64::MAX));
    let raised = match current {
        Some(current) if current < wanted => {
            setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).map_or(current, |()| wanted)
        }
        _ => wanted,
    };
    let files = OpenFiles(usize::try_from(raised).unwrap_or(usize::MAX));
    let (downstream, upstream) = (files.downstream_max(connections), files.upstream_max(connections));
    if raised < needed {
        tracing::warn!(
            open_files = raised,
            needed,
            downstream,
            upstream,
            "the limit of open files is lower than limits.downstream_connections may need, so fewer connections are served; \
             raise it (ulimit -n, LimitNOFILE), or lower that limit"
        );
    } else {
        tracing::info!(open_files = raised, downstream, upstream, "open files");
    }
    files
}

/// The limit of open files, and how it is divided. A third, within bounds, is reserved for what is no connection of the
/// proxy; callers get at most half of the rest, and upstreams what callers do not.
#[derive(Debug, Clone, Copy)]
pub struct OpenFiles(usize);

impl OpenFiles {
    #[cfg(test)]
    pub fn of(limit: usize) -> OpenFiles {
        OpenFiles(limit)
    }

    fn reserved(self) -> usize {
        (self.0 / 3).min(RESERVED_MAX)
    }

    fn connections(self) -> usize {
        self.0 - self.reserved()
    }

    /// Connections from callers, where `limits` permits so many.
    pub fn downstream_max(self, configured: usize) -> usize {
        configured.min(self.connections() / 2).max(1)
    }

    /// Connections to upstreams beside them.
    pub fn upstream_max(self, downstream_configured: usize) -> usize {
        self.connections().saturating_sub(self.downstream_max(downstream_configured)).max(1)
    }

    /// Those of them that may be idle: a dial rarely finds all taken, and memory has a bound where the limit is no bound.
    pub fn idle_max(self, downstream_configured: usize) -> usize {
        (self.upstream_max(downstream_configured) / 2).min(IDLE_MAX)
    }

    /// Connections to one listener of the admin side, which has so many.
    pub fn admin_max(self, listeners: usize) -> usize {
        (self.reserved() / 2 / listeners.max(1)).clamp(1, ADMIN_MAX)
    }

    /// Callers that are told that there is no place for them.
    pub fn refused_max(self) -> usize {
        (self.reserved() / 8).min(REFUSED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_divided_and_some_are_reserved() {
        #[track_caller]
        fn check(limit: usize, configured: usize, downstream: usize, upstream: usize, admin: usize, refused: usize) {
            let files = OpenFiles(limit);
            assert_eq!(
                (files.downstream_max(configured), files.upstream_max(configured)),
                (downstream, upstream),
                "of {limit}"
            );
            assert_eq!((files.admin_max(2), files.refused_max()), (admin, refused), "of {limit}");
            assert_eq!(files.idle_max(configured), (upstream / 2).min(IDLE_MAX), "of {limit}");
        }
        check(600, 10_000, 200, 200, 50, 25);
        check(600, 50, 50, 350, 50, 25);
        check(1024, 10_000, 341, 342, 85, 42);
        check(21_024, 10_000, 10_000, 10_000, 256, 128);
        check(1_048_576, 10_000, 10_000, 1_037_552, 256, 128);
    }
}
