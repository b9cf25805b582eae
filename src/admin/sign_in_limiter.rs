//! Limits sign-in attempts per address, by token and at the OpenID provider, whatever their outcome.
//!
//! Invariants: an address has [`ATTEMPTS_MAX`] attempts in each window; the table has a bound, and evicts the address that
//! was seen least recently. IPv6 addresses count by their /64, which one host can use at will.
//! Not here: requests with a bearer token, whose wrong ones are delayed (`users`).

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::Duration;

use lru::LruCache;

use crate::model::time::BootTime;
use crate::sync::lock;

/// Attempts of one address in one window.
pub const ATTEMPTS_MAX: u32 = 30;
const WINDOW: Duration = Duration::from_secs(60);
const ADDRESSES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// The text of a refusal.
pub fn too_many_attempts() -> &'static str {
    "too many sign-in attempts from this address; wait a minute, then try again"
}

pub struct SignInLimiter {
    attempts: Mutex<LruCache<IpAddr, Window>>,
}

struct Window {
    begun: BootTime,
    attempts: u32,
}

impl Default for SignInLimiter {
    fn default() -> Self {
        SignInLimiter { attempts: Mutex::new(LruCache::new(ADDRESSES_MAX)) }
    }
}

impl SignInLimiter {
    /// Counts an attempt.
    ///
    /// # Errors
    /// The address has none left: how long it has to wait.
    pub fn admit(&self, address: IpAddr, now: BootTime) -> Result<(), Duration> {
        let mut attempts = lock(&self.attempts);
        let window = attempts.get_or_insert_mut(network(address), || Window { begun: now, attempts: 0 });
        if now.since(window.begun) >= WINDOW {
            *window = Window { begun: now, attempts: 0 };
        }
        if window.attempts >= ATTEMPTS_MAX {
            return Err(WINDOW.saturating_sub(now.since(window.begun)));
        }
        window.attempts += 1;
        Ok(())
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exhaust(limiter: &SignInLimiter, address: &str, now: BootTime) -> u32 {
        let admitted = (0..2 * ATTEMPTS_MAX).filter(|_| limiter.admit(address.parse().unwrap(), now).is_ok());
        admitted.count() as u32
    }

    #[test]
    fn each_address_has_its_attempts_in_each_window() {
        let (limiter, now) = (SignInLimiter::default(), BootTime::new(Duration::from_secs(1000)));
        assert_eq!(exhaust(&limiter, "192.0.2.1", now), ATTEMPTS_MAX);
        assert_eq!(
            limiter.admit("::ffff:192.0.2.1".parse().unwrap(), now + Duration::from_secs(20)),
            Err(Duration::from_secs(40))
        );
        assert_eq!(exhaust(&limiter, "192.0.2.2", now), ATTEMPTS_MAX);
        assert_eq!(exhaust(&limiter, "2001:db8::1", now), ATTEMPTS_MAX);
        assert_eq!(exhaust(&limiter, "2001:db8::ffff:1", now), 0, "the same /64");
        assert_eq!(exhaust(&limiter, "2001:db8:0:1::1", now), ATTEMPTS_MAX);
        assert_eq!(exhaust(&limiter, "192.0.2.1", now + WINDOW), ATTEMPTS_MAX);
    }

    #[test]
    fn the_table_is_bounded() {
        let (limiter, now) = (SignInLimiter::default(), BootTime::new(Duration::from_secs(1000)));
        for host in 0..100_000_u32 {
            assert_eq!(limiter.admit(std::net::Ipv4Addr::from_bits(host).into(), now), Ok(()));
        }
        assert_eq!(lock(&limiter.attempts).len(), ADDRESSES_MAX.get());
    }
}
