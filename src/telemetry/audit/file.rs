//! The audit file: JSON lines behind a bounded queue, written by one thread.
//!
//! Invariants: the file is appended to and never truncated; a symbolic link is refused; a line is never split across
//! two files; `push` never blocks. A failed write is logged at most once a minute and retried. After the queue is
//! closed, the writer writes the remaining lines, or logs their loss, before it ends.

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

/// Capacity of the queue: a few MiB, since `Clean` bounds each line.
const QUEUE_LINES_MAX: usize = 8192;
/// Maximum number of lines in one write.
const BATCH_LINES_MAX: usize = 256;
/// Retry interval of a failed write.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between log lines about failed writes.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Minimum interval between reports of lost lines.
const LOSS_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// State shared by both ends of a queue.
#[derive(Debug, Default)]
struct QueueState {
    lost: AtomicU64,
    /// Time of the last loss, in milliseconds since the Unix epoch.
    lost_at_ms: AtomicU64,
    closed: AtomicBool,
    writer: Mutex<Option<Thread>>,
}

/// The sending end of the queue.
#[derive(Debug)]
pub struct Queue {
    pub path: PathBuf,
    lines: SyncSender<String>,
    shared: Arc<QueueState>,
}

/// The writing end of the queue.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    lines: Receiver<String>,
    shared: Arc<QueueState>,
    /// Whole lines that are being written, and the number of bytes already written.
    batch: Vec<u8>,
    written_bytes: usize,
    failing: bool,
    failure_logged: Option<Instant>,
    loss_reported: Option<Instant>,
}

/// Opens the file at `path` and its queue.
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
        failure_logged: None,
        loss_reported: None,
    };
    Ok((queue, writer))
}

/// Checks that the file could be opened or created, without creating it.
pub fn check_can_open(path: &Path) -> io::Result<()> {
    match open_file(path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK)?)
        }
        other => other.map(drop),
    }
}

fn open_file(path: &Path, create: bool) -> io::Result<File> {
    // Non-blocking: opening a pipe would wait for its reader.
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

    /// Wakes the writer to check its path even if there is nothing to write.
    pub fn wake_writer(&self) {
        // If the queue is full, the writer is about to check anyway.
        let _ = self.lines.try_send(String::new());
    }

    /// Sets the writer's thread, to wake it when the queue is closed.
    pub fn set_writer(&self, writer: &Thread) {
        *lock(&self.shared.writer) = Some(writer.clone());
    }

    /// Closes the queue: from now on a failed write is not retried.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        if let Some(writer) = &*lock(&self.shared.writer) {
            writer.unpark();
        }
    }
}

impl Writer {
    /// Writes until the sending end is dropped and the queue is empty.
    pub fn run(mut self) {
        loop {
            let first = match self.shared.lost.load(Ordering::Relaxed) {
                0 => self.lines.recv().map_err(|_| RecvTimeoutError::Disconnected),
                _ => self.lines.recv_timeout(LOSS_REPORT_INTERVAL),
            };
            let over = first == Err(RecvTimeoutError::Disconnected);
            let rest = self.lines.try_iter().take(BATCH_LINES_MAX - 1);
            first.iter().map(String::as_bytes).for_each(|line| self.batch.extend_from_slice(line));
            rest.for_each(|line| self.batch.extend_from_slice(line.as_bytes()));
            self.report_loss(over);
            self.write();
            if over {
                return;
            }
        }
    }

    fn report_loss(&mut self, over: bool) {
        if !over && self.loss_reported.is_some_and(|at| at.elapsed() < LOSS_REPORT_INTERVAL) {
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
        self.loss_reported = Some(Instant::now());
        let at = WallTime::from_millis(self.shared.lost_at_ms.load(Ordering::Relaxed));
        self.batch.extend_from_slice(super::line(at, "lost", Lost { count }).as_bytes());
        tracing::warn!(count, "audit queue full; records lost");
    }

    /// Returns when the batch is written, or dropped because the queue is closed.
    fn write(&mut self) {
        loop {
            let last = self.shared.closed.load(Ordering::SeqCst);
            match self.try_write() {
                Ok(()) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(path = %self.path.display(), "audit file writable again");
                    }
                    return;
                }
                Err(error) if last => {
                    let lost = self.batch[self.written_bytes..].iter().filter(|byte| **byte == b'\n').count();
                    tracing::error!(path = %self.path.display(), %error, lost, "audit file not writable; the last records are lost");
                    (self.batch, self.written_bytes) = (Vec::new(), 0);
                    return;
                }
                Err(error) => {
                    self.failing = true;
                    if self.failure_logged.is_none_or(|at| at.elapsed() >= FAILURE_LOG_INTERVAL) {
                        self.failure_logged = Some(Instant::now());
                        tracing::error!(path = %self.path.display(), %error, "audit file not writable; retrying");
                    }
                    std::thread::park_timeout(WRITE_RETRY_INTERVAL);
                }
            }
        }
    }

    fn try_write(&mut self) -> io::Result<()> {
        self.reopen_if_moved()?;
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

    /// Reopens the path if it names another file, or none.
    fn reopen_if_moved(&mut self) -> io::Result<()> {
        let open = self.file.metadata()?;
        let present = std::fs::symlink_metadata(&self.path);
        if present.is_ok_and(|present| (present.dev(), present.ino()) == (open.dev(), open.ino())) {
            return Ok(());
        }
        self.file = open_file(&self.path, true)?;
        // A partly written line is written again, whole, to the new file.
        let written = &self.batch[..self.written_bytes];
        self.written_bytes = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
