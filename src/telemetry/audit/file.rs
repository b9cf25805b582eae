//! The audit's file: JSON lines behind a bounded queue, written by one thread.
//!
//! Holds: appended to and never truncated; no symbolic link is followed; a line is never divided between two files; whoever
//! pushes never waits. A write that fails is told at most once a minute and tried again; when the queue is closed, what
//! is in it is written before the writer ends, or the loss is told.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::fs::{Access, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::model::time::WallTime;
use crate::sync::lock;

/// Lines that may wait for the writer. Each is bounded by what `Clean` leaves of a request, so that all are a few MiB.
const QUEUE_LINES_MAX: usize = 8192;
/// Lines of one write.
const BATCH_LINES_MAX: usize = 256;
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// A file that cannot be written is complained of this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Lost lines are told this often.
const TELL_LOST_EVERY: Duration = Duration::from_secs(1);

/// What both ends of a queue know.
#[derive(Debug, Default)]
struct QueueState {
    lost: AtomicU64,
    /// When the last one was lost: milliseconds since the Unix epoch.
    lost_at_ms: AtomicU64,
    closed: AtomicBool,
    writer: Mutex<Option<Thread>>,
}

/// The end of those who record.
#[derive(Debug)]
pub struct Queue {
    pub path: PathBuf,
    lines: SyncSender<String>,
    shared: Arc<QueueState>,
}

/// The end that writes.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    lines: Receiver<String>,
    shared: Arc<QueueState>,
    /// Whole lines that are being written, and how many of their bytes have been.
    batch: Vec<u8>,
    written_bytes: usize,
    failing: bool,
    complained: Option<Instant>,
    told_lost: Option<Instant>,
}

/// Opens the file at `path` with a queue before it.
pub fn open(path: &Path) -> io::Result<(Queue, Writer)> {
    open_with(path, QUEUE_LINES_MAX)
}

fn open_with(path: &Path, lines_max: usize) -> io::Result<(Queue, Writer)> {
    let file = open_file(path, true)?;
    let (sender, lines) = sync_channel(lines_max);
    let shared = Arc::<QueueState>::default();
    let queue = Queue { path: path.to_owned(), lines: sender, shared: shared.clone() };
    let writer = Writer {
        path: path.to_owned(),
        file,
        lines,
        shared,
        batch: Vec::new(),
        written_bytes: 0,
        failing: false,
        complained: None,
        told_lost: None,
    };
    Ok((queue, writer))
}

/// Could the file be opened? Nothing is made.
pub fn openable(path: &Path) -> io::Result<()> {
    match open_file(path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
        }
        other => other.map(drop),
    }
}

fn open_file(path: &Path, create: bool) -> io::Result<File> {
    // Without waiting: a pipe would make us wait for its reader.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().append(true).create(create).mode(0o600).custom_flags(flags).open(path);
    let file = file.map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => io::Error::other("a symbolic link"),
        Some(code) if code == Errno::NXIO.raw_os_error() => io::Error::other("not a regular file"),
        _ => error,
    })?;
    let kind = file.metadata()?.file_type();
    match kind.is_file() || kind.is_char_device() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

impl Queue {
    pub fn push(&self, at: WallTime, line: String) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            self.shared.lost_at_ms.store(at.as_millis(), Ordering::Relaxed);
            self.shared.lost.fetch_add(1, Ordering::Release);
        }
    }

    /// Lets the writer look at its path although nothing is to be written.
    pub fn look(&self) {
        // Where there is no place, the writer is about to look.
        let _ = self.lines.try_send(String::new());
    }

    /// Names the thread that waits between two tries.
    pub fn wakes(&self, writer: &Thread) {
        *lock(&self.shared.writer) = Some(writer.clone());
    }

    /// From now on a write that fails is not tried again.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        if let Some(writer) = &*lock(&self.shared.writer) {
            writer.unpark();
        }
    }
}

impl Writer {
    /// Writes until the queue has no other end and is empty.
    pub fn run(mut self) {
        loop {
            let first = match self.shared.lost.load(Ordering::Relaxed) {
                0 => self.lines.recv().map_err(|_| RecvTimeoutError::Disconnected),
                _ => self.lines.recv_timeout(TELL_LOST_EVERY),
            };
            let over = first == Err(RecvTimeoutError::Disconnected);
            let rest = self.lines.try_iter().take(BATCH_LINES_MAX - 1);
            first.iter().map(String::as_bytes).for_each(|line| self.batch.extend_from_slice(line));
            rest.for_each(|line| self.batch.extend_from_slice(line.as_bytes()));
            self.tell_lost(over);
            self.write();
            if over {
                return;
            }
        }
    }

    fn tell_lost(&mut self, over: bool) {
        if !over && self.told_lost.is_some_and(|told| told.elapsed() < TELL_LOST_EVERY) {
            return;
        }
        let count = self.shared.lost.swap(0, Ordering::Acquire);
        if count == 0 {
            return;
        }
        #[derive(Serialize)]
        struct Lost {
            count: u64,
        }
        self.told_lost = Some(Instant::now());
        let at = WallTime::from_millis(self.shared.lost_at_ms.load(Ordering::Relaxed));
        self.batch.extend_from_slice(super::line(at, "lost", Lost { count }).as_bytes());
        tracing::warn!(count, "records of the audit found no place in its queue and are lost");
    }

    /// Returns when the batch is written, or given up because the queue is closed.
    fn write(&mut self) {
        loop {
            let last = self.shared.closed.load(Ordering::SeqCst);
            match self.try_write() {
                Ok(()) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(path = %self.path.display(), "the audit is written again");
                    }
                    return;
                }
                Err(error) if last => {
                    let lost = self.batch[self.written_bytes..].iter().filter(|byte| **byte == b'\n').count();
                    tracing::error!(path = %self.path.display(), %error, lost, "the audit could not be written to its end");
                    (self.batch, self.written_bytes) = (Vec::new(), 0);
                    return;
                }
                Err(error) => {
                    self.failing = true;
                    if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
                        self.complained = Some(Instant::now());
                        tracing::error!(path = %self.path.display(), %error, "the audit cannot be written; it is tried again");
                    }
                    std::thread::park_timeout(RETRY_EVERY);
                }
            }
        }
    }

    fn try_write(&mut self) -> io::Result<()> {
        self.follow()?;
        while self.written_bytes < self.batch.len() {
            match self.file.write(&self.batch[self.written_bytes..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written_bytes += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.batch.clear();
        self.written_bytes = 0;
        Ok(())
    }

    /// Opens the path again where another file stands there, or none.
    fn follow(&mut self) -> io::Result<()> {
        let open = self.file.metadata()?;
        let there = std::fs::symlink_metadata(&self.path);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (open.dev(), open.ino())) {
            return Ok(());
        }
        self.file = open_file(&self.path, true)?;
        // A line that was begun in the other file is written whole.
        let written = &self.batch[..self.written_bytes];
        self.written_bytes = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
