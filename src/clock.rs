//! The two clocks: time since boot, suspension included, and wall time.
//!
//! A token's lifetime is measured on both: the wall clock may be stepped, and a virtual machine may freeze the boot
//! clock.
//! Invariant: a deadline has passed once it has passed on either clock.
//! Not here: the time types and their arithmetic (`model::time`).

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::model::time::{BootTime, WallTime};

/// An instant on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub boot: BootTime,
    pub wall: WallTime,
}

impl Now {
    /// Later than any instant that either clock returns.
    pub const NEVER: Now = Now { boot: BootTime::MAX, wall: WallTime::MAX };

    pub fn plus(self, span: Duration) -> Now {
        Now { boot: self.boot + span, wall: self.wall + span }
    }

    /// The later of two instants, per clock.
    pub fn later(self, other: Now) -> Now {
        Now { boot: self.boot.max(other.boot), wall: self.wall.max(other.wall) }
    }

    /// The earlier of two instants, per clock.
    pub fn earlier(self, other: Now) -> Now {
        Now { boot: self.boot.min(other.boot), wall: self.wall.min(other.wall) }
    }

    /// True if `moment` has passed on either clock.
    pub fn reached(self, moment: Now) -> bool {
        self.boot >= moment.boot || self.wall >= moment.wall
    }

    /// Time until `moment`, on the clock that reaches it first.
    pub fn until(self, moment: Now) -> Duration {
        moment.boot.since(self.boot).min(moment.wall.since(self.wall))
    }
}

/// Source of `Now`; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    #[cfg(test)]
    simulated: Option<std::sync::Arc<simulated::Simulated>>,
}

impl Clock {
    /// The clocks of the operating system.
    pub fn system() -> Clock {
        Clock::default()
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        #[cfg(test)]
        if let Some(simulated) = &self.simulated {
            return simulated.now();
        }
        let boot = clock_gettime(ClockId::Boottime);
        let boot = Duration::new(boot.tv_sec.unsigned_abs(), u32::try_from(boot.tv_nsec).unwrap_or(0));
        Now { boot: BootTime::new(boot), wall: wall_now() }
    }
}

#[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock for token lifetimes")]
fn wall_now() -> WallTime {
    WallTime::from_system(SystemTime::now())
}

#[cfg(test)]
mod simulated {
    //! A clock over tokio's (paused) time, for a machine that can be suspended and whose wall clock can be stepped.

    use std::sync::atomic::{AtomicI64, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::{BootTime, Clock, Now, WallTime};

    #[derive(Debug)]
    pub struct Simulated {
        start: tokio::time::Instant,
        suspended: Mutex<Duration>,
        wall_offset_seconds: AtomicI64,
    }

    impl Simulated {
        pub fn now(&self) -> Now {
            let boot = Duration::from_secs(1000) + self.start.elapsed() + *self.suspended.lock().unwrap();
            let offset = self.wall_offset_seconds.load(Ordering::Relaxed);
            let wall = Duration::from_secs(1_800_000_000u64.saturating_add_signed(offset)) + boot;
            Now { boot: BootTime::new(boot), wall: WallTime::new(wall) }
        }
    }

    impl Clock {
        /// Starts 1000 seconds after boot; advances with tokio's time.
        pub fn simulated() -> Clock {
            let simulated = Simulated {
                start: tokio::time::Instant::now(),
                suspended: Mutex::default(),
                wall_offset_seconds: AtomicI64::new(0),
            };
            Clock { simulated: Some(Arc::new(simulated)) }
        }

        /// Steps the wall clock forwards or backwards.
        pub fn step_wall(&self, seconds: i64) {
            self.simulated.as_ref().unwrap().wall_offset_seconds.fetch_add(seconds, Ordering::Relaxed);
        }

        /// Suspends the machine: both clocks advance, timers do not.
        pub fn suspend(&self, span: Duration) {
            *self.simulated.as_ref().unwrap().suspended.lock().unwrap() += span;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_on_either_clock() {
        let now = Clock::system().now();
        let end = now.plus(Duration::from_secs(10));
        assert!(!now.reached(end));
        assert!(Now { boot: end.boot, ..now }.reached(end));
        assert!(Now { wall: end.wall, ..now }.reached(end));
        assert_eq!(Now { wall: now.wall + Duration::from_secs(4), ..now }.until(end), Duration::from_secs(6));
    }
}
