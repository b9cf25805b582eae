//! A TCP proxy to a local port that a test can cut, delay, and redirect to another port.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

pub struct Wire {
    pub port: u16,
    target: Arc<AtomicU16>,
    up: Arc<AtomicBool>,
    /// Delay of responses in milliseconds.
    delay_ms: Arc<AtomicU64>,
    cut: watch::Sender<()>,
}

impl Wire {
    pub async fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("a bound listener").port();
        let (up, cut) = (Arc::new(AtomicBool::new(true)), watch::Sender::new(()));
        let (target, delay_ms) = (Arc::new(AtomicU16::new(port)), Arc::<AtomicU64>::default());
        let (is_up, cuts, current, delay) = (up.clone(), cut.clone(), target.clone(), delay_ms.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (mut cut, delay) = (cuts.subscribe(), delay.clone());
                if !is_up.load(Ordering::SeqCst) {
                    continue;
                }
                let port = current.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let ((near_out, near_in), (far_out, far_in)) = (near.into_split(), far.into_split());
                    let both =
                        async { tokio::join!(carry(near_out, far_in, None), carry(far_out, near_in, Some(delay))) };
                    tokio::select! {
                        _ = both => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Wire { port: own, target, up, delay_ms, cut }
    }

    /// Delays all further responses.
    pub fn slow(&self, by: Duration) {
        self.delay_ms.store(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Redirects further connections to another port.
    pub fn redirect_to(&self, port: u16) {
        self.target.store(port, Ordering::SeqCst);
    }

    /// Closes all connections, and new ones as they arrive.
    pub fn cut(&self) {
        self.up.store(false, Ordering::SeqCst);
        self.cut.send_replace(());
    }

    /// Accepts connections again after `cut`.
    pub fn restore(&self) {
        self.up.store(true, Ordering::SeqCst);
    }
}

/// Forwards bytes in order; each chunk is delayed by the wire's current delay on arrival.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay_ms: Option<Arc<AtomicU64>>) {
    let (chunks, mut waiting) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            let delay_ms = delay_ms.as_ref().map_or(0, |delay_ms| delay_ms.load(Ordering::SeqCst));
            let _ = chunks.send((Instant::now() + Duration::from_millis(delay_ms), bytes[..count].to_vec()));
        }
    };
    let write = async move {
        while let Some((due, chunk)) = waiting.recv().await {
            sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
