//! A way to a port of this machine that can be cut, slowed down, and turned to another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

pub struct Wire {
    pub port: u16,
    far: Arc<AtomicU16>,
    whole: Arc<AtomicBool>,
    /// By how many milliseconds answers are late.
    late_ms: Arc<AtomicU64>,
    cut: watch::Sender<()>,
}

impl Wire {
    pub async fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("an address").port();
        let (whole, cut) = (Arc::new(AtomicBool::new(true)), watch::Sender::new(()));
        let (far, late_ms) = (Arc::new(AtomicU16::new(port)), Arc::<AtomicU64>::default());
        let (is_whole, cuts, end, late) = (whole.clone(), cut.clone(), far.clone(), late_ms.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (mut cut, late) = (cuts.subscribe(), late.clone());
                if !is_whole.load(Ordering::SeqCst) {
                    continue;
                }
                let port = end.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let ((near_out, near_in), (far_out, far_in)) = (near.into_split(), far.into_split());
                    let both =
                        async { tokio::join!(carry(near_out, far_in, None), carry(far_out, near_in, Some(late))) };
                    tokio::select! {
                        _ = both => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Wire { port: own, far, whole, late_ms, cut }
    }

    /// From here on all that comes back is so late.
    pub fn slow(&self, by: Duration) {
        self.late_ms.store(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// What comes from here on goes to another port.
    pub fn turn(&self, port: u16) {
        self.far.store(port, Ordering::SeqCst);
    }

    /// Closes what is open, and whatever comes.
    pub fn cut(&self) {
        self.whole.store(false, Ordering::SeqCst);
        self.cut.send_replace(());
    }

    pub fn restore(&self) {
        self.whole.store(true, Ordering::SeqCst);
    }
}

/// Passes bytes on, in order, each piece as late as the wire is when it comes.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, late_ms: Option<Arc<AtomicU64>>) {
    let (pieces, mut waiting) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            let late_ms = late_ms.as_ref().map_or(0, |late_ms| late_ms.load(Ordering::SeqCst));
            let _ = pieces.send((Instant::now() + Duration::from_millis(late_ms), bytes[..count].to_vec()));
        }
    };
    let write = async move {
        while let Some((due, piece)) = waiting.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
