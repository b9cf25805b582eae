//! The thread that owns the database: takes a batch of requests from the queue, runs the reads, commits the writes
//! together.
//!
//! Not here: the reads and writes themselves (`embedded`), opening and checking the file (`file`).
//! Invariants: a request whose caller has gone is skipped; after an error or a panic of the database the file is closed
//! and reopened, with at most one failed attempt per `REOPEN_INTERVAL`. A damaged part of the file fails only the
//! requests that need it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use redb::{Database, ReadTransaction, ReadableDatabase as _, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use crate::store::error::OpenError;

/// Maximum number of requests between two commits.
const BATCH_MAX: usize = 256;
/// Retry interval of opening the file.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The whole store failed; retryable.
    Unavailable(String),
    /// The part of the file that the request needs is damaged.
    Damaged,
}

pub type Outcome<T> = Result<T, Failure>;
/// Reopens the file.
pub type Reopen = Box<dyn Fn() -> Result<Database, OpenError> + Send>;

/// Work inside a transaction.
pub trait Job<Tx>: Send {
    /// True if the caller is still waiting.
    fn has_waiter(&self) -> bool;

    /// May run again, in another transaction, if this one fails.
    fn apply(&mut self, transaction: &Tx) -> Result<(), redb::Error>;

    /// Sends the outcome to the caller.
    fn finish(self: Box<Self>, outcome: Outcome<()>);
}

pub enum Request {
    Read(Box<dyn Job<ReadTransaction>>),
    Write(Box<dyn Job<WriteTransaction>>),
}

/// The waiting caller.
pub enum Reply<T> {
    Task(oneshot::Sender<Outcome<T>>),
    Thread(SyncSender<Outcome<T>>),
}

/// A job that returns a value.
pub struct ValueJob<F, T> {
    work: F,
    value: Option<T>,
    reply: Reply<T>,
}

impl<F, T> ValueJob<F, T> {
    pub fn new(work: F, reply: Reply<T>) -> Box<ValueJob<F, T>> {
        Box::new(ValueJob { work, value: None, reply })
    }
}

impl<Tx, F, T> Job<Tx> for ValueJob<F, T>
where
    F: FnMut(&Tx) -> Result<T, redb::Error> + Send,
    T: Send,
{
    fn has_waiter(&self) -> bool {
        match &self.reply {
            Reply::Task(reply) => !reply.is_closed(),
            Reply::Thread(_) => true,
        }
    }

    fn apply(&mut self, transaction: &Tx) -> Result<(), redb::Error> {
        self.value = Some((self.work)(transaction)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Outcome<()>) {
        let ValueJob { value, reply, .. } = *self;
        let outcome = outcome.and_then(|()| value.ok_or(Failure::Damaged));
        // The caller may have gone.
        match reply {
            Reply::Task(reply) => drop(reply.send(outcome)),
            Reply::Thread(reply) => drop(reply.try_send(outcome)),
        }
    }
}

pub struct Engine {
    database: Option<Database>,
    reopen: Reopen,
    /// When the file last failed to open, and why.
    open_failure: Option<(Instant, String)>,
}

impl Engine {
    pub fn new(database: Database, reopen: Reopen) -> Engine {
        Engine { database: Some(database), reopen, open_failure: None }
    }

    /// Serves requests until every sender is dropped, then closes the file.
    pub fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let (mut reads, mut writes) = (Vec::new(), Vec::new());
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    Request::Read(job) => reads.push(job),
                    Request::Write(job) => writes.push(job),
                }
                next = if reads.len() + writes.len() < BATCH_MAX { requests.try_recv().ok() } else { None };
            }
            for mut job in reads.into_iter().filter(|job| job.has_waiter()) {
                let outcome = self.guarded(|database| job.apply(&database.begin_read()?));
                job.finish(outcome);
            }
            writes.retain(|job| job.has_waiter());
            self.write(writes);
        }
        self.close();
    }

    /// Commits all jobs in one transaction; if the file is damaged, one transaction per job.
    fn write(&mut self, mut jobs: Vec<Box<dyn Job<WriteTransaction>>>) {
        if jobs.is_empty() {
            return;
        }
        let outcome = self.commit(&mut jobs);
        if outcome == Err(Failure::Damaged) && jobs.len() > 1 {
            for job in jobs {
                self.write(vec![job]);
            }
            return;
        }
        for job in jobs {
            job.finish(outcome.clone());
        }
    }

    fn commit(&mut self, jobs: &mut [Box<dyn Job<WriteTransaction>>]) -> Outcome<()> {
        self.guarded(|database| {
            let mut transaction = database.begin_write()?;
            // Avoids a slow repair on startup after an unclean shutdown.
            transaction.set_quick_repair(true);
            for job in jobs {
                job.apply(&transaction)?;
            }
            Ok(transaction.commit()?)
        })
    }

    /// Runs `work` and turns a panic of the database into a failure.
    fn guarded(&mut self, work: impl FnOnce(&Database) -> Result<(), redb::Error>) -> Outcome<()> {
        let database = self.database()?;
        match catch_unwind(AssertUnwindSafe(|| work(database))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(redb::Error::Corrupted(_))) | Err(_) => {
                self.close();
                Err(Failure::Damaged)
            }
            Ok(Err(error)) => {
                self.close();
                tracing::warn!(%error, "store failed; reopening its file");
                Err(Failure::Unavailable(error.to_string()))
            }
        }
    }

    /// The database, reopened if it is closed.
    fn database(&mut self) -> Outcome<&Database> {
        if self.database.is_none() {
            if let Some((since, why)) = &self.open_failure
                && since.elapsed() < REOPEN_INTERVAL
            {
                return Err(Failure::Unavailable(why.clone()));
            }
            match (self.reopen)() {
                Ok(database) => {
                    self.open_failure = None;
                    self.database = Some(database);
                }
                Err(error) => self.open_failure = Some((Instant::now(), error.to_string())),
            }
        }
        let why = || self.open_failure.as_ref().map(|(_, why)| why.clone()).unwrap_or_default();
        self.database.as_ref().ok_or_else(|| Failure::Unavailable(why()))
    }

    fn close(&mut self) {
        let database = self.database.take();
        // Closing writes, so it may fail for the same reason.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}
