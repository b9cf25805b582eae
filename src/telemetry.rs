//! Logs: one structured line per event on stderr, without secrets.
//!
//! Invariants: events of libraries are never logged, because at `trace` they may contain headers and bodies. Untrusted
//! text is escaped by [`Clean`], so it cannot start a new line. Logging never blocks: lines go through a bounded queue
//! to one writer thread; when the queue is full, lines are dropped and counted.
//! Metrics: `keybearer_log_lines_dropped_total`.

pub mod audit;
pub mod events;
pub mod health;
pub mod metrics;
pub mod system;
pub mod traces;

use std::fmt::{self, Write as _};
use std::io::IsTerminal;

use serde::{Serialize, Serializer};
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::model::{Log, LogFormat, LogLevel};

type Filtered = Layered<reload::Layer<Targets, Registry>, Registry>;
type Lines = Box<dyn Layer<Filtered> + Send + Sync>;

/// Capacity of the queue, for when stderr is slow or blocked; a few MiB, since [`Clean`] bounds each field.
const QUEUE_MAX_LINES: usize = 8192;

/// The running logger. Its configuration can be changed.
#[derive(Clone)]
pub struct Logging {
    stderr: NonBlocking,
    filter: reload::Handle<Targets, Registry>,
    lines: reload::Handle<Lines, Filtered>,
}

impl Logging {
    /// Starts logging to stderr, panics included. Does nothing if the process has a logger already.
    ///
    /// Dropping the guard flushes the queue; it gives up after about a second if stderr stays blocked.
    pub fn start(log: Log) -> (Logging, WorkerGuard) {
        let queue = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE_MAX_LINES).thread_name("log");
        let (stderr, guard) = queue.finish(std::io::stderr());
        let (filter, filter_handle) = reload::Layer::new(filter(log));
        let (lines, lines_handle) = reload::Layer::new(lines(log, stderr.clone()));
        if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
            std::panic::set_hook(Box::new(|panic| {
                let place = panic.location().map(ToString::to_string).unwrap_or_default();
                // Only a literal is logged: a formatted message could contain a secret.
                let why = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or_default();
                tracing::error!(%place, why, "task panicked; other tasks continue");
            }));
        }
        (Logging { stderr, filter: filter_handle, lines: lines_handle }, guard)
    }

    /// Counts the lines dropped because the queue was full.
    pub fn dropped_lines(&self) -> ErrorCounter {
        self.stderr.error_counter()
    }

    /// Applies `log` from now on.
    pub fn reconfigure(&self, log: Log) {
        // Both fail only if the subscriber is gone; then nothing is logged.
        let _ = self.filter.reload(filter(log));
        let _ = self.lines.reload(lines(log, self.stderr.clone()));
    }
}

/// Our own events at the configured level; audit lines always pass.
fn filter(log: Log) -> Targets {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_target("keybearer", level).with_target(audit::TARGET, level.max(LevelFilter::INFO))
}

fn lines(log: Log, stderr: NonBlocking) -> Lines {
    let terminal = std::io::stderr().is_terminal();
    let text = match log.format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(stderr).with_target(false).with_ansi(terminal);
    match text {
        true => layer.boxed(),
        false => layer.json().flatten_event(true).with_current_span(false).boxed(),
    }
}

/// True for control characters and for those that change the text direction: line breaks, cursor movement, bidi
/// overrides.
pub fn is_deceptive(c: char) -> bool {
    let is_bidi = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}');
    c.is_control() || is_bidi
}

/// Displays untrusted text on one line: escapes deceptive characters, truncates to 200 characters.
#[derive(Debug, Clone, Copy)]
pub struct Clean<'a>(pub &'a str);

impl fmt::Display for Clean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, c) in self.0.chars().enumerate() {
            if position == 200 {
                return f.write_char('…');
            }
            if is_deceptive(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

impl Serialize for Clean<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_stays_on_its_line() {
        assert_eq!(Clean("a\r\nb\u{1b}[31m\u{202e}").to_string(), "a\\r\\nb\\u{1b}[31m\\u{202e}");
        assert_eq!(Clean(&"x".repeat(300)).to_string().chars().count(), 201);
    }
}
