//! Guards that count what a downstream connection serves: requests, tunnels inside HTTP/2, and request bodies.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Version;

use super::super::presence::Presence;
use super::Watch;

/// Reports to the watch that a request is being served.
pub struct Activity(Arc<Watch>);

impl Activity {
    pub fn new(watch: Arc<Watch>) -> Activity {
        Activity(watch)
    }

    pub fn begin(&self) -> Serving {
        self.0.serving.fetch_add(1, Ordering::Relaxed);
        self.0.responding.store(true, Ordering::Relaxed);
        Serving(self.0.clone())
    }

    /// Like `begin`, for a request over this version of HTTP.
    pub fn begin_request(&self, version: Version) -> Serving {
        self.0.presence.begin_request(version == Version::HTTP_11 && !self.0.is_multiplexed());
        self.begin()
    }

    pub fn presence(&self) -> &Presence {
        &self.0.presence
    }

    /// Counts a request body until it is finished or dropped.
    pub fn upload(&self) -> Upload {
        self.0.uploads.fetch_add(1, Ordering::Relaxed);
        Upload { watch: self.0.clone(), finished: false }
    }

    /// Writes an interim response. No effect over HTTP/2, where hyper offers no means to send one.
    pub async fn write_interim(&self, head: Bytes) {
        if !self.0.is_multiplexed() {
            self.0.interim.write(head).await;
        }
    }

    /// True if the head of the current request may be longer than `head_bytes`. The bytes read when it began are an
    /// upper bound over HTTP/1.1; over HTTP/2 there is none.
    pub fn may_exceed(&self, head_bytes: usize) -> bool {
        self.0.is_multiplexed() || self.0.head_bytes.load(Ordering::Relaxed) > head_bytes
    }
}

/// A request, or a tunnel inside HTTP/2, being served; ends on drop.
pub struct Serving(Arc<Watch>);

impl Serving {
    /// Marks the start of the response; no interim response may follow.
    pub fn respond(&self) {
        self.0.presence.begin_response();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !self.0.is_multiplexed() {
            self.0.head_bytes.store(0, Ordering::Relaxed);
        }
        self.0.served.store(true, Ordering::Relaxed);
        self.0.since_ms.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.serving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request body being received; it may outlast the response.
pub struct Upload {
    watch: Arc<Watch>,
    finished: bool,
}

impl Upload {
    pub fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.finished {
            self.watch.abandoned.store(true, Ordering::Relaxed);
        }
        self.watch.since_ms.store(self.watch.now_ms(), Ordering::Relaxed);
        self.watch.uploads.fetch_sub(1, Ordering::Relaxed);
    }
}
