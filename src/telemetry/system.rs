//! Operating system integration: service manager notifications (`sd_notify`), the open file limit and its division,
//! core dumps.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;

/// File descriptors reserved for everything except proxied connections, if the limit is high enough: listeners, the
/// admin side, connections refused as overload, token endpoints, the store, name servers, logs.
const RESERVED_MAX: usize = 1024;
/// Idle upstream connections.
const IDLE_MAX: usize = 4096;
/// Open connections to one admin listener.
pub const ADMIN_MAX: usize = 256;
/// Downstream connections that are being refused at once.
const REFUSED_MAX: usize = 256;

/// Notifies the service manager, if there is one.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "service manager not notified");
    }
}

pub fn ready() {
    notify(&[NotifyState::Ready]);
}

pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Announces a reload, which [`ready`] ends (`Type=notify-reload`).
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "service manager not notified"),
    }
}

/// Disables core dumps, which would contain every token and key in plaintext.
pub fn disable_core_files() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps cannot be disabled; they would contain secrets");
    }
}

/// Raises the soft limit of open files as far as needed and the hard limit permits. Warns if it is too low for
/// `connections` downstream connections with an upstream connection each.
pub fn raise_open_file_limit(connections: usize) -> OpenFiles {
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
            "open file limit is lower than limits.downstream_connections may need, so fewer connections are served; raise it \
             (ulimit -n, LimitNOFILE), or lower limits.downstream_connections"
        );
    } else {
        tracing::info!(open_files = raised, downstream, upstream, "open file limit");
    }
    files
}

/// The open file limit and its division. A third, up to [`RESERVED_MAX`], is reserved for everything except proxied
/// connections; downstream connections get at most half of the rest, and upstream connections the remainder.
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

    /// Maximum number of downstream connections; `configured` is the limit of the configuration.
    pub fn downstream_max(self, configured: usize) -> usize {
        configured.min(self.connections() / 2).max(1)
    }

    /// Maximum number of upstream connections.
    pub fn upstream_max(self, downstream_configured: usize) -> usize {
        self.connections().saturating_sub(self.downstream_max(downstream_configured)).max(1)
    }

    /// Maximum number of idle upstream connections. A dial rarely finds every descriptor in use, and memory is bounded
    /// even if the open file limit is not.
    pub fn idle_max(self, downstream_configured: usize) -> usize {
        (self.upstream_max(downstream_configured) / 2).min(IDLE_MAX)
    }

    /// Maximum number of connections to one admin listener, of `listeners`.
    pub fn admin_max(self, listeners: usize) -> usize {
        (self.reserved() / 2 / listeners.max(1)).clamp(1, ADMIN_MAX)
    }

    /// Maximum number of downstream connections that are being refused at once.
    pub fn refused_max(self) -> usize {
        (self.reserved() / 8).min(REFUSED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_file_limit_is_divided() {
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
