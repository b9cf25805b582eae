//! Bytes copied both ways, unread.
//!
//! Invariants: the end of one direction is passed on while the other goes on; a tunnel in which nothing moves ends; what one
//! side does not take is not read from the other beyond a buffer. Not here: passing on a reset, which takes the socket.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep_until};

use crate::tasks::{Phase, PhaseWatch};

/// Held for each direction of a tunnel.
const BUFFER_BYTES: usize = 16 * 1024;

/// What went through, in bytes.
#[derive(Debug, Default)]
pub struct Moved {
    up: Cell<u64>,
    down: Cell<u64>,
    at: Cell<Option<Instant>>,
    up_ended: Cell<bool>,
    down_ended: Cell<bool>,
    failed: Cell<bool>,
}

impl Moved {
    pub fn up_bytes(&self) -> u64 {
        self.up.get()
    }

    pub fn down_bytes(&self) -> u64 {
        self.down.get()
    }

    /// One side has failed before the upstream got the end of what the caller sends.
    pub fn up_is_broken(&self) -> bool {
        self.failed.get() && !self.up_ended.get()
    }

    /// The same of what the upstream sends.
    pub fn down_is_broken(&self) -> bool {
        self.failed.get() && !self.down_ended.get()
    }

    fn add(&self, count: &Cell<u64>, bytes: usize) {
        count.set(count.get() + bytes as u64);
        self.at.set(Some(Instant::now()));
    }
}

/// For how long nothing may move.
pub struct Silence {
    pub idle: Duration,
    /// From when a drain has begun: what is silent would only delay its end.
    pub draining: Duration,
}

/// Copies until both sides have ended, one has failed, or nothing has moved for too long.
pub async fn relay<D, U>(downstream: D, upstream: U, bound: Silence, mut drain: PhaseWatch) -> Moved
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Moved::default();
    let (mut from_downstream, mut to_downstream) = split(downstream);
    let (mut from_upstream, mut to_upstream) = split(upstream);
    let both = async {
        let up = async {
            pump(&mut from_downstream, &mut to_upstream, |bytes| moved.add(&moved.up, bytes)).await?;
            moved.up_ended.set(true);
            io::Result::Ok(())
        };
        let down = async {
            pump(&mut from_upstream, &mut to_downstream, |bytes| moved.add(&moved.down, bytes)).await?;
            moved.down_ended.set(true);
            io::Result::Ok(())
        };
        moved.failed.set(tokio::try_join!(up, down).is_err());
    };
    let started = Instant::now();
    let silence = async {
        let (mut silence_max, mut draining) = (bound.idle, false);
        loop {
            let end = moved.at.get().unwrap_or(started) + silence_max;
            if end <= Instant::now() {
                return;
            }
            tokio::select! {
                () = sleep_until(end) => {}
                () = drain.reached(Phase::Drain), if !draining => {
                    (silence_max, draining) = (bound.draining.min(bound.idle), true);
                }
            }
        }
    };
    tokio::select! {
        () = both => {}
        () = silence => {}
    }
    moved
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

    const MINUTE: Silence = Silence { idle: Duration::from_secs(60), draining: Duration::from_secs(2) };

    #[tokio::test(start_paused = true)]
    async fn one_direction_may_end_while_the_other_goes_on() {
        let ((mut caller, downstream), (upstream, mut server)) = (duplex(4096), duplex(4096));
        let tasks = Tasks::default();
        let relaying = relay(downstream, upstream, MINUTE, tasks.watch());
        let talk = async {
            caller.write_all(b"question").await.unwrap();
            caller.shutdown().await.unwrap();
            let mut asked = String::new();
            server.read_to_string(&mut asked).await.unwrap();
            assert_eq!(asked, "question");
            server.write_all(&[7; 1000]).await.unwrap();
            drop(server);
            let mut answer = Vec::new();
            caller.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, [7; 1000]);
        };
        let reading = tokio::join!(relaying, talk).0;
        assert_eq!((reading.up_bytes(), reading.down_bytes()), (8, 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_ends_when_nothing_has_moved_for_the_idle_time() {
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
    async fn in_a_drain_a_tunnel_lasts_as_long_as_something_moves() {
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
