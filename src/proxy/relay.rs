//! Bytes copied both ways, unread.
//!
//! Holds: the end of one direction is passed on while the other goes on; a tunnel in which nothing moves ends; what one
//! side does not take is not read from the other beyond a buffer.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep_until};

/// Held for each direction of a tunnel.
const BUFFER_BYTES: usize = 16 * 1024;

/// What went through, in bytes.
#[derive(Debug, Default)]
pub struct Moved {
    up: Cell<u64>,
    down: Cell<u64>,
    at: Cell<Option<Instant>>,
}

impl Moved {
    pub fn up_bytes(&self) -> u64 {
        self.up.get()
    }

    pub fn down_bytes(&self) -> u64 {
        self.down.get()
    }

    fn add(&self, count: &Cell<u64>, bytes: usize) {
        count.set(count.get() + bytes as u64);
        self.at.set(Some(Instant::now()));
    }
}

/// Copies until both sides have ended, one has failed, or nothing has moved for `idle`.
pub async fn relay<D, U>(downstream: D, upstream: U, idle: Duration) -> Moved
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Moved::default();
    let (mut from_downstream, mut to_downstream) = split(downstream);
    let (mut from_upstream, mut to_upstream) = split(upstream);
    let both = async {
        let up = pump(&mut from_downstream, &mut to_upstream, |bytes| moved.add(&moved.up, bytes));
        let down = pump(&mut from_upstream, &mut to_downstream, |bytes| moved.add(&moved.down, bytes));
        let _ = tokio::try_join!(up, down);
    };
    let started = Instant::now();
    let silence = async {
        loop {
            let end = moved.at.get().unwrap_or(started) + idle;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
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
    use tokio::io::duplex;

    #[tokio::test(start_paused = true)]
    async fn one_direction_may_end_while_the_other_goes_on() {
        let ((mut caller, downstream), (upstream, mut server)) = (duplex(4096), duplex(4096));
        let relaying = relay(downstream, upstream, Duration::from_secs(60));
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
        let started = Instant::now();
        let talk = async {
            tokio::time::sleep(Duration::from_secs(40)).await;
            caller.write_all(b"x").await.unwrap();
        };
        tokio::join!(relay(downstream, upstream, Duration::from_secs(60)), talk);
        assert_eq!(started.elapsed(), Duration::from_secs(100));
        drop(server);
    }
}
