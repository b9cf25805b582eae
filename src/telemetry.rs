//! Logs: one structured line for each event on stderr, without secrets and without line breaks from outside.
//!
//! Holds: only our own events are logged, whatever the level: what libraries say at `trace` may hold headers and
//! bodies. Text from the network goes through [`Clean`]. Logging never blocks: lines pass through a bounded queue to one
//! writer thread, and lines that find it full are dropped and counted.
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

/// Lines that wait for the writer thread while stderr is slow or blocked; a few MiB, since [`Clean`] bounds each field.
const QUEUE_MAX_LINES: usize = 8192;

/// The running log; what is in its configuration can be changed.
#[derive(Clone)]
pub struct Logging {
    stderr: NonBlocking,
    filter: reload::Handle<Targets, Registry>,
    lines: reload::Handle<Lines, Filtered>,
}

impl Logging {
    /// Starts logging to stderr and routes panics there. In a process that logs already, this changes nothing.
    ///
    /// Dropping the guard writes what is queued; it gives up after about a second if stderr stays blocked.
    pub fn start(log: Log) -> (Logging, WorkerGuard) {
        let queue = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE_MAX_LINES).thread_name("log");
        let (stderr, guard) = queue.finish(std::io::stderr());
        let (filter, filter_handle) = reload::Layer::new(filter(log));
        let (lines, lines_handle) = reload::Layer::new(lines(log, stderr.clone()));
        if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
            std::panic::set_hook(Box::new(|panic| {
                let place = panic.location().map(ToString::to_string).unwrap_or_default();
                // Only a literal is shown: a formatted message could hold anything.
                let why = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or_default();
                tracing::error!(%place, why, "a task panicked; it ends alone");
            }));
        }
        (Logging { stderr, filter: filter_handle, lines: lines_handle }, guard)
    }

    /// Counts the lines that found the queue full.
    pub fn dropped_lines(&self) -> ErrorCounter {
        self.stderr.error_counter()
    }

    /// Logs as `log` says from now on.
    pub fn change(&self, log: Log) {
        // Both fail only when the subscriber is gone, and then nobody logs.
        let _ = self.filter.reload(filter(log));
        let _ = self.lines.reload(lines(log, self.stderr.clone()));
    }
}

/// Ours alone, down to the level; what is the audit is written in any case.
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

/// Characters that end a line, move the cursor or turn the direction of reading.
pub fn misleads(c: char) -> bool {
    let turns = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}');
    c.is_control() || turns
}

/// Shows text from outside on one line: what misleads is escaped, at most 200 characters.
#[derive(Debug, Clone, Copy)]
pub struct Clean<'a>(pub &'a str);

impl fmt::Display for Clean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, c) in self.0.chars().enumerate() {
            if position == 200 {
                return f.write_char('…');
            }
            if misleads(c) {
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
    fn text_from_outside_stays_on_its_line() {
        assert_eq!(Clean("a\r\nb\u{1b}[31m\u{202e}").to_string(), "a\\r\\nb\\u{1b}[31m\\u{202e}");
        assert_eq!(Clean(&"x".repeat(300)).to_string().chars().count(), 201);
    }
}
