//! Logs: one structured line for each event on stderr, without secrets and without line breaks from outside.
//!
//! Holds: only our own events are logged, whatever the level: what libraries say at `trace` may hold headers and
//! bodies. Text from the network goes through [`Clean`].

pub mod health;
pub mod metrics;

use std::fmt::{self, Write as _};
use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::model::{Log, LogFormat, LogLevel};

/// Starts logging to stderr and routes panics there; later calls change nothing.
pub fn start(log: Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let terminal = std::io::stderr().is_terminal();
    let text = match log.format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let ours = Targets::new().with_target("keybearer", level);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(terminal);
    let layer = match text {
        true => layer.with_filter(ours).boxed(),
        false => layer.json().flatten_event(true).with_current_span(false).with_filter(ours).boxed(),
    };
    if tracing_subscriber::registry().with(layer).try_init().is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            // Only a literal is shown: a formatted message could hold anything.
            let why = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or_default();
            tracing::error!(%place, why, "a task panicked; it ends alone");
        }));
    }
}

/// Shows text from outside on one line: control characters escaped, at most 200 characters.
pub struct Clean<'a>(pub &'a str);

impl fmt::Display for Clean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, c) in self.0.chars().enumerate() {
            if position == 200 {
                return f.write_char('…');
            }
            if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}') {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
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
