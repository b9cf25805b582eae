//! The request queue of the database thread.
//!
//! Invariant: no caller waits longer than `OPERATION_TIMEOUT`.

use std::io;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::engine::{Engine, Failure, Outcome, Reply, Request};
use crate::tasks::Tasks;

/// Timeout of one operation.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);
/// Capacity of the queue.
const QUEUE_MAX: usize = 1024;
/// Poll interval of blocking callers that wait for space in the queue, or for the thread to end.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

const TIMED_OUT: &str = "timed out";
pub const ENDED: &str = "its thread has ended";

pub struct Queue {
    /// `None`: closed.
    requests: Option<mpsc::Sender<Request>>,
    thread: JoinHandle<()>,
}

impl Queue {
    pub fn start(engine: Engine, tasks: &Tasks) -> io::Result<Queue> {
        let (requests, queued) = mpsc::channel(QUEUE_MAX);
        let thread = tasks.thread("store".to_owned(), move || engine.run(queued))?;
        Ok(Queue { requests: Some(requests), thread })
    }

    pub async fn send<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Outcome<T> {
        let (reply, outcome) = oneshot::channel();
        let request = request(Reply::Task(reply));
        let done = async {
            self.requests.as_ref()?.send(request).await.ok()?;
            outcome.await.ok()
        };
        match tokio::time::timeout(OPERATION_TIMEOUT, done).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(Failure::Unavailable(ENDED.to_owned())),
            Err(_) => Err(Failure::Unavailable(TIMED_OUT.to_owned())),
        }
    }

    pub fn send_blocking<T: Send + 'static>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Outcome<T> {
        let failed = |why: &str| Err(Failure::Unavailable(why.to_owned()));
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        let (reply, outcome) = std_mpsc::sync_channel(1);
        let mut request = request(Reply::Thread(reply));
        loop {
            let Some(requests) = &self.requests else { return failed(ENDED) };
            match requests.try_send(request) {
                Ok(()) => break,
                Err(mpsc::error::TrySendError::Closed(_)) => return failed(ENDED),
                Err(mpsc::error::TrySendError::Full(_)) if Instant::now() > deadline => return failed(TIMED_OUT),
                Err(mpsc::error::TrySendError::Full(returned)) => {
                    request = returned;
                    std::thread::sleep(POLL_INTERVAL);
                }
            }
        }
        outcome.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap_or_else(|_| failed(TIMED_OUT))
    }
}

impl Drop for Queue {
    /// Waits until the file is closed, with a timeout.
    fn drop(&mut self) {
        self.requests = None;
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}
