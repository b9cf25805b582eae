//! `log`, `tracing` and `audit`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Field, Keys, Keyword, NodeRef, Sink, endpoint, shape, value};
use crate::model::*;
use crate::telemetry::audit::check_can_open;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "log", deny_unknown_fields)]
pub struct LogFile {
    /// Least severe level that is logged.
    #[schemars(extend("default" = "info"))]
    pub level: Field<shape::OneOf<LogLevel>>,
    /// auto: text on a terminal, otherwise one JSON object per line.
    #[schemars(extend("default" = "auto"))]
    pub format: Field<shape::OneOf<LogFormat>>,
    /// Which requests are logged; the query never is. errors: requests that Keybearer itself answered with an error,
    /// and those whose response the upstream cut off.
    #[schemars(extend("default" = "errors"))]
    pub requests: Field<shape::OneOf<LogRequests>>,
}

impl Keys for LogFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "tracing", deny_unknown_fields)]
pub struct TracingFile {
    /// Base URL of the collector, for OTLP over HTTP; /v1/traces is appended. https certificates are verified against
    /// the platform's roots and `trust`.
    #[schemars(required, extend("examples" = ["http://collector:4318"]))]
    pub otlp: Field<shape::Url>,
    /// Fraction of the requests without trace context that is recorded: 0 to 1. A request with trace context is
    /// recorded if its sampled flag is set.
    #[schemars(extend("default" = 1, "examples" = [0.01]))]
    pub sample: Field<shape::Fraction>,
}

impl Keys for TracingFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "audit", deny_unknown_fields)]
pub struct AuditFile {
    /// off: no audit. log: records are lines of the log. A file: records are appended as JSON lines; rotate it by
    /// renaming it.
    #[schemars(extend("default" = "log", "examples" = ["off", {"file": "/var/log/keybearer/audit.jsonl"}]))]
    pub to: Field<shape::Either<shape::OneOf<Audit>, AuditToFile>>,
}

impl Keys for AuditFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "audit_to", deny_unknown_fields)]
pub struct AuditToFile {
    /// Path of the file, created with mode 0600; a symbolic link is refused.
    #[schemars(required, extend("examples" = ["/var/log/keybearer/audit.jsonl"]))]
    pub file: Field<shape::Text>,
}

impl Keys for AuditToFile {}

impl Keyword for LogLevel {
    fn keywords() -> Vec<(&'static str, LogLevel)> {
        vec![
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ]
    }
}

impl Keyword for LogFormat {
    fn keywords() -> Vec<(&'static str, LogFormat)> {
        vec![("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)]
    }
}

impl Keyword for LogRequests {
    fn keywords() -> Vec<(&'static str, LogRequests)> {
        vec![("off", LogRequests::Off), ("errors", LogRequests::Errors), ("all", LogRequests::All)]
    }
}

impl Keyword for Audit {
    fn keywords() -> Vec<(&'static str, Audit)> {
        vec![("off", Audit::Off), ("log", Audit::Log)]
    }
}

pub fn log(node: Option<NodeRef<'_>>, sink: &mut Sink) -> Log {
    let Some(section) = node.and_then(|node| node.section::<LogFile>(sink)) else { return Log::default() };
    Log {
        level: section.get(section.keys.level).and_then(|node| node.choice(sink)).unwrap_or_default(),
        format: section.get(section.keys.format).and_then(|node| node.choice(sink)).unwrap_or_default(),
        requests: section.get(section.keys.requests).and_then(|node| node.choice(sink)).unwrap_or_default(),
    }
}

pub fn tracing(node: Option<NodeRef<'_>>, sink: &mut Sink) -> Option<Tracing> {
    let section = node?.section::<TracingFile>(sink)?;
    let hint = "write the collector's URL, such as http://collector:4318";
    let collector = section.require(section.keys.otlp, "otlp", hint, sink);
    let collector = collector.and_then(|node| node.parse_url(sink, endpoint::collector));
    let sample = section.get(section.keys.sample).map_or(Some(1.0), |node| node.parse(sink, value::fraction));
    Some(Tracing { collector: collector?, sample: sample? })
}

pub fn audit(node: Option<NodeRef<'_>>, sink: &mut Sink) -> Option<Audit> {
    let section = node?.section::<AuditFile>(sink)?;
    let to = section.get(section.keys.to)?;
    if !to.is_map() {
        return to.choice(sink);
    }
    let section = to.section::<AuditToFile>(sink)?;
    let at = section.require(section.keys.file, "file", "write {file: PATH}", sink)?;
    let path = at.file(sink)?;
    // Only the running program creates the file; `check` must not.
    if let Err(error) = check_can_open(&path) {
        let message = format!("{} cannot be opened for writing ({error})", path.display());
        at.problem(sink, message, "choose a file in a directory that Keybearer can write to");
    }
    Some(Audit::File(path))
}
