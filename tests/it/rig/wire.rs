//! A way to a port of this machine that can be cut, and turned to another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub struct Wire {
    pub port: u16,
    far: Arc<AtomicU16>,
    whole: Arc<AtomicBool>,
    cut: watch::Sender<()>,
}

impl Wire {
    pub async fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("an address").port();
        let (whole, cut) = (Arc::new(AtomicBool::new(true)), watch::Sender::new(()));
        let far = Arc::new(AtomicU16::new(port));
        let (is_whole, cuts, end) = (whole.clone(), cut.clone(), far.clone());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                if !is_whole.load(Ordering::SeqCst) {
                    continue;
                }
                let port = end.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Wire { port: own, far, whole, cut }
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

    pub fn mend(&self) {
        self.whole.store(true, Ordering::SeqCst);
    }
}
