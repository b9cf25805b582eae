//! Owner of every task and thread: starts them with a name, and ends them with the process's phases.
//!
//! Phases only advance: `Serve` (normal), `Drain` (accept nothing new, finish requests in flight), `Stop` (end now).
//! Invariant: a panic ends only its own task; the panic hook logs it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serve,
    Drain,
    Stop,
}

/// Handle for starting tasks and following phases; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks {
    phase: Arc<watch::Sender<Phase>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Tasks { phase: Arc::new(watch::Sender::new(Phase::Serve)) }
    }
}

impl Tasks {
    /// Runs `future` on the current runtime until it ends or the `Stop` phase begins.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_on(&Handle::current(), name, future);
    }

    /// Like [`Tasks::spawn`], on another runtime.
    #[allow(clippy::disallowed_methods, reason = "this is the owner of every task")]
    pub fn spawn_on<F>(&self, runtime: &Handle, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut stop = self.watch();
        runtime.spawn(async move {
            tokio::select! {
                biased;
                () = future => {}
                () = stop.reached(Phase::Stop) => tracing::debug!(task = name, "task stopped"),
            }
        });
    }

    /// Runs `future` on the current worker's own runtime; it ends with that runtime.
    #[allow(clippy::disallowed_methods, reason = "this is the owner of every task")]
    pub fn spawn_local<F>(&self, future: F)
    where
        F: Future<Output = ()> + 'static,
    {
        tokio::task::spawn_local(future);
    }

    /// Runs `work` on a thread that may block; `None` if it panicked.
    #[allow(clippy::disallowed_methods, reason = "this is the owner of every task")]
    pub async fn blocking<T, F>(&self, work: F) -> Option<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        tokio::task::spawn_blocking(work).await.ok()
    }

    /// Starts a named thread; the name appears in `top -H` and in panic messages.
    pub fn thread<F>(&self, name: String, body: F) -> io::Result<JoinHandle<()>>
    where
        F: FnOnce() + Send + 'static,
    {
        std::thread::Builder::new().name(name).spawn(body)
    }

    /// Enters `phase`, unless it or a later one has begun: phases only advance.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let forward = phase > *current;
            if forward {
                *current = phase;
            }
            forward
        });
    }

    /// The phase in progress.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Follows the phases, from the current one on.
    pub fn watch(&self) -> PhaseWatch {
        PhaseWatch(self.phase.subscribe())
    }
}

/// Waits for a phase.
#[derive(Debug, Clone)]
pub struct PhaseWatch(watch::Receiver<Phase>);

impl PhaseWatch {
    /// Returns once `phase` or a later one has begun.
    pub async fn reached(&mut self, phase: Phase) {
        let _ = self.0.wait_for(|current| *current >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_advance() {
        let tasks = Tasks::default();
        let mut watch = tasks.watch();
        tasks.enter(Phase::Drain);
        tasks.enter(Phase::Serve);
        watch.reached(Phase::Drain).await;
        assert_eq!(tasks.phase(), Phase::Drain);
    }
}
