//! Blind relay: copies bytes in both directions.
//!
//! Invariants: a half-close is propagated while the other direction continues; an idle tunnel is closed; backpressure:
//! at most one buffer per direction is read ahead. Not here: propagating RST, which needs the socket.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep_until};

use crate::tasks::{Phase, PhaseWatch};

/// Size of the copy buffer of each direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// The outcome of a relay; `up` is from downstream to upstream.
#[derive(Debug, Default)]
pub struct Relayed {
    up: Cell<u64>,
    down: Cell<u64>,
    last_moved: Cell<Option<Instant>>,
    up_ended: Cell<bool>,
    down_ended: Cell<bool>,
    failed: Cell<bool>,
}

impl Relayed {
    pub fn up_bytes(&self) -> u64 {
        self.up.get()
    }

    pub fn down_bytes(&self) -> u64 {
        self.down.get()
    }

    /// True if a side failed before the caller's end of stream reached the upstream.
    pub fn up_is_broken(&self) -> bool {
        self.failed.get() && !self.up_ended.get()
    }

    /// True if a side failed before the upstream's end of stream reached the caller.
    pub fn down_is_broken(&self) -> bool {
        self.failed.get() && !self.down_ended.get()
    }

    fn add(&self, count: &Cell<u64>, bytes: usize) {
        count.set(count.get() + bytes as u64);
        self.last_moved.set(Some(Instant::now()));
    }
}

/// A relay in which no byte moves for this long is closed.
pub struct IdleTimeouts {
    pub idle: Duration,
    /// Applies during a drain, so that idle tunnels do not delay it.
    pub draining: Duration,
}

/// Copies until both directions have ended, one side has failed, or the idle timeout expires.
pub async fn relay<D, U>(downstream: D, upstream: U, timeouts: IdleTimeouts, mut drain: PhaseWatch) -> Relayed
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let relayed = Relayed::default();
    let (mut from_downstream, mut to_downstream) = split(downstream);
    let (mut from_upstream, mut to_upstream) = split(upstream);
    let both = async {
        let up = async {
            pump(&mut from_downstream, &mut to_upstream, |bytes| relayed.add(&relayed.up, bytes)).await?;
            relayed.up_ended.set(true);
            io::Result::Ok(())
        };
        let down = async {
            pump(&mut from_upstream, &mut to_downstream, |bytes| relayed.add(&relayed.down, bytes)).await?;
            relayed.down_ended.set(true);
            io::Result::Ok(())
        };
        relayed.failed.set(tokio::try_join!(up, down).is_err());
    };
    let started = Instant::now();
    let idle = async {
        let (mut idle_timeout, mut draining) = (timeouts.idle, false);
        loop {
            let deadline = relayed.last_moved.get().unwrap_or(started) + idle_timeout;
            if deadline <= Instant::now() {
                return;
            }
            tokio::select! {
                () = sleep_until(deadline) => {}
                () = drain.reached(Phase::Drain), if !draining => {
                    (idle_timeout, draining) = (timeouts.draining.min(timeouts.idle), true);
                }
            }
        }
    };
    tokio::select! {
        () = both => {}
        () = idle => {}
    }
    relayed
}

async fn pump<R, W>(from: &mut R, to: &mut W, moved: impl Fn(usize)) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
        moved(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Tasks;
    use tokio::io::duplex;

    const MINUTE: IdleTimeouts = IdleTimeouts { idle: Duration::from_secs(60), draining: Duration::from_secs(2) };

    #[tokio::test(start_paused = true)]
    async fn a_half_close_leaves_the_other_direction_open() {
        let ((mut caller, downstream), (upstream, mut server)) = (duplex(4096), duplex(4096));
        let tasks = Tasks::default();
        let relaying = relay(downstream, upstream, MINUTE, tasks.watch());
        let talk = async {
            caller.write_all(b"question").await.unwrap();
            caller.shutdown().await.unwrap();
            let mut received = String::new();
            server.read_to_string(&mut received).await.unwrap();
            assert_eq!(received, "question");
            server.write_all(&[7; 1000]).await.unwrap();
            drop(server);
            let mut answer = Vec::new();
            caller.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, [7; 1000]);
        };
        let relayed = tokio::join!(relaying, talk).0;
        assert_eq!((relayed.up_bytes(), relayed.down_bytes()), (8, 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_tunnel_is_closed() {
        let ((mut caller, downstream), (upstream, server)) = (duplex(64), duplex(64));
        let (tasks, started) = (Tasks::default(), Instant::now());
        let talk = async {
            tokio::time::sleep(Duration::from_secs(40)).await;
            caller.write_all(b"x").await.unwrap();
        };
        tokio::join!(relay(downstream, upstream, MINUTE, tasks.watch()), talk);
        assert_eq!(started.elapsed(), Duration::from_secs(100));
        drop(server);
    }

    #[tokio::test(start_paused = true)]
    async fn during_a_drain_a_tunnel_lasts_while_bytes_move() {
        for (sent_at_ms, ends_after_ms) in [(vec![], 5000), (vec![4000], 6000), (vec![4000, 5500, 7000], 9000)] {
            let ((mut caller, downstream), (upstream, server)) = (duplex(64), duplex(64));
            let (tasks, started) = (Tasks::default(), Instant::now());
            let relaying = relay(downstream, upstream, MINUTE, tasks.watch());
            let drain = async {
                sleep_until(started + Duration::from_secs(5)).await;
                tasks.enter(Phase::Drain);
            };
            let talk = async {
                for at in &sent_at_ms {
                    sleep_until(started + Duration::from_millis(*at)).await;
                    caller.write_all(b"x").await.unwrap();
                }
            };
            tokio::join!(relaying, drain, talk);
            assert_eq!(started.elapsed(), Duration::from_millis(ends_after_ms), "{sent_at_ms:?}");
            drop(server);
        }
    }
}
