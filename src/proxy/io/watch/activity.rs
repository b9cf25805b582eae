//! What is being served on a caller's connection: requests, tunnels inside HTTP/2, and request bodies.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Version;

use super::super::presence::Presence;
use super::Watch;

/// Tells the watch that a request is being served.
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

    /// The same for a request over this version of HTTP.
    pub fn begin_request(&self, version: Version) -> Serving {
        self.0.presence.begin_request(version == Version::HTTP_11 && !self.0.is_multiplexed());
        self.begin()
    }

    /// Of the caller.
    pub fn presence(&self) -> &Presence {
        &self.0.presence
    }

    /// A request body begins.
    pub fn upload(&self) -> Upload {
        self.0.uploads.fetch_add(1, Ordering::Relaxed);
        Upload { watch: self.0.clone(), finished: false }
    }

    /// Passes an interim answer on; hyper gives no way to, where many are under way at once.
    pub async fn say(&self, head: Bytes) {
        if !self.0.is_multiplexed() {
            self.0.saying.say(head).await;
        }
    }

    /// Can the head of the present request be longer than that? What was read when it began is at least its head; over
    /// HTTP/2 that says nothing.
    pub fn may_exceed(&self, head_bytes: usize) -> bool {
        self.0.is_multiplexed() || self.0.head_bytes.load(Ordering::Relaxed) > head_bytes
    }
}

/// A request, or a tunnel inside HTTP/2, until it is dropped.
pub struct Serving(Arc<Watch>);

impl Serving {
    /// The response begins: nothing may be written before it any more.
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

/// A request body on its way in; it may outlast the answer.
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
