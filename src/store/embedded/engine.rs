//! The thread that owns the database: it takes what waits, reads, then commits all writes together.
//!
//! Not here: what is read and written (`embedded`), opening and checking the file (`file`).
//! Holds: whoever no longer waits is passed over; an error or a panic below closes the file, which is opened again, and
//! at most once a second while that fails. A damaged part of the file fails those alone who need it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use redb::{Database, ReadTransaction, ReadableDatabase as _, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use crate::store::open::OpenError;

/// Writes that are committed together, and reads between two commits.
const BATCH_MAX: usize = 256;
/// Between two attempts to open a file that cannot be opened.
const PAUSE: Duration = Duration::from_secs(1);

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The store as a whole; it may pass.
    Unavailable(String),
    /// The part of the file that was needed.
    Damaged,
}

pub type Outcome<T> = Result<T, Failure>;
pub type Opener = Box<dyn Fn() -> Result<Database, OpenError> + Send>;

/// What the thread is asked to do within a transaction.
pub trait Job<Tx>: Send {
    /// Does anybody wait for it?
    fn wanted(&self) -> bool;

    /// May be called again in another transaction if this one fails.
    fn apply(&mut self, transaction: &Tx) -> Result<(), redb::Error>;

    /// Tells whoever waits.
    fn finish(self: Box<Self>, outcome: Outcome<()>);
}

pub enum Request {
    Read(Box<dyn Job<ReadTransaction>>),
    Write(Box<dyn Job<WriteTransaction>>),
}

/// Where an answer goes.
pub enum Reply<T> {
    Task(oneshot::Sender<Outcome<T>>),
    Thread(SyncSender<Outcome<T>>),
}

/// A job whose work gives a value.
pub struct Ask<F, T> {
    work: F,
    value: Option<T>,
    reply: Reply<T>,
}

impl<F, T> Ask<F, T> {
    pub fn new(work: F, reply: Reply<T>) -> Box<Ask<F, T>> {
        Box::new(Ask { work, value: None, reply })
    }
}

impl<Tx, F, T> Job<Tx> for Ask<F, T>
where
    F: FnMut(&Tx) -> Result<T, redb::Error> + Send,
    T: Send,
{
    fn wanted(&self) -> bool {
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
        let Ask { value, reply, .. } = *self;
        let outcome = outcome.and_then(|()| value.ok_or(Failure::Damaged));
        // Whoever waited may have gone.
        match reply {
            Reply::Task(reply) => drop(reply.send(outcome)),
            Reply::Thread(reply) => drop(reply.try_send(outcome)),
        }
    }
}

pub struct Engine {
    database: Option<Database>,
    opener: Opener,
    /// When the file could not be opened, and why.
    unopened: Option<(Instant, String)>,
}

impl Engine {
    pub fn new(database: Database, opener: Opener) -> Engine {
        Engine { database: Some(database), opener, unopened: None }
    }

    /// Serves until nobody can ask any more, then closes the file.
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
            for mut job in reads.into_iter().filter(|job| job.wanted()) {
                let outcome = self.guarded(|database| job.apply(&database.begin_read()?));
                job.finish(outcome);
            }
            writes.retain(|job| job.wanted());
            self.write(writes);
        }
        self.close();
    }

    /// All in one commit; where that meets damage, each in its own.
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
            // A file that was not closed is then opened as fast as one that was.
            transaction.set_quick_repair(true);
            for job in jobs {
                job.apply(&transaction)?;
            }
            Ok(transaction.commit()?)
        })
    }

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
                tracing::warn!(%error, "the store failed; it is opened again");
                Err(Failure::Unavailable(error.to_string()))
            }
        }
    }

    /// The open database, opened again where it was closed.
    fn database(&mut self) -> Outcome<&Database> {
        if self.database.is_none() {
            if let Some((since, why)) = &self.unopened
                && since.elapsed() < PAUSE
            {
                return Err(Failure::Unavailable(why.clone()));
            }
            match (self.opener)() {
                Ok(database) => {
                    self.unopened = None;
                    self.database = Some(database);
                }
                Err(error) => self.unopened = Some((Instant::now(), error.to_string())),
            }
        }
        let why = || self.unopened.as_ref().map(|(_, why)| why.clone()).unwrap_or_default();
        self.database.as_ref().ok_or_else(|| Failure::Unavailable(why()))
    }

    fn close(&mut self) {
        let database = self.database.take();
        // Closing writes, and may meet the same damage.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}
