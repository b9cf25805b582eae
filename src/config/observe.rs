//! `log`, `tracing` and `audit`: what is recorded, and where it goes.

use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Field, Keys, Sink, Spot, Words, endpoint, shape, value};
use crate::model::*;
use crate::telemetry::audit::check_can_open;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "log", deny_unknown_fields)]
pub struct LogFile {
    /// The least important events that are logged.
    #[schemars(extend("default" = "info"))]
    pub level: Field<shape::OneOf<LogLevel>>,
    /// auto: text on a terminal, else one JSON object a line.
    #[schemars(extend("default" = "auto"))]
    pub format: Field<shape::OneOf<LogFormat>>,
    /// Which requests get a line, never with their query; errors: those that Keybearer itself answered with one.
    #[schemars(extend("default" = "errors"))]
    pub requests: Field<shape::OneOf<LogRequests>>,
}

impl Keys for LogFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "tracing", deny_unknown_fields)]
pub struct TracingFile {
    /// The collector's base URL, for OTLP over HTTP; /v1/traces is added. Certificates of https are verified with the
    /// platform's roots and `trust`.
    #[schemars(required, extend("examples" = ["http://collector:4318"]))]
    pub otlp: Field<shape::Url>,
    /// Of the requests that bring no trace of their own, the part that is recorded: 0 to 1. A request that brings one
    /// is recorded if its sampled flag says so.
    #[schemars(extend("default" = 1, "examples" = [0.01]))]
    pub sample: Field<shape::Fraction>,
}

impl Keys for TracingFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "audit", deny_unknown_fields)]
pub struct AuditFile {
    /// Nowhere, among the lines of the log, or as JSON lines to a file, which is appended to and may be rotated by
    /// renaming it.
    #[schemars(extend("default" = "log", "examples" = ["off", {"file": "/var/log/keybearer/audit.jsonl"}]))]
    pub to: Field<shape::Either<shape::OneOf<Audit>, AuditToFile>>,
}

impl Keys for AuditFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "audit_to", deny_unknown_fields)]
pub struct AuditToFile {
    /// Made with the rights 0600; a symbolic link is refused.
    #[schemars(required, extend("examples" = ["/var/log/keybearer/audit.jsonl"]))]
    pub file: Field<shape::Text>,
}

impl Keys for AuditToFile {}

impl Words for LogLevel {
    fn words() -> Vec<(&'static str, LogLevel)> {
        vec![
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ]
    }
}

impl Words for LogFormat {
    fn words() -> Vec<(&'static str, LogFormat)> {
        vec![("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)]
    }
}

impl Words for LogRequests {
    fn words() -> Vec<(&'static str, LogRequests)> {
        vec![("off", LogRequests::Off), ("errors", LogRequests::Errors), ("all", LogRequests::All)]
    }
}

impl Words for Audit {
    fn words() -> Vec<(&'static str, Audit)> {
        vec![("off", Audit::Off), ("log", Audit::Log)]
    }
}

pub fn log(spot: Option<Spot<'_>>, sink: &mut Sink) -> Log {
    let Some(unit) = spot.and_then(|spot| spot.unit::<LogFile>(sink)) else { return Log::default() };
    Log {
        level: unit.get(unit.keys.level).and_then(|spot| spot.choice(sink)).unwrap_or_default(),
        format: unit.get(unit.keys.format).and_then(|spot| spot.choice(sink)).unwrap_or_default(),
        requests: unit.get(unit.keys.requests).and_then(|spot| spot.choice(sink)).unwrap_or_default(),
    }
}

pub fn tracing(spot: Option<Spot<'_>>, sink: &mut Sink) -> Option<Tracing> {
    let unit = spot?.unit::<TracingFile>(sink)?;
    let hint = "write the collector's URL, such as http://collector:4318";
    let collector = unit.require(unit.keys.otlp, "otlp", hint, sink);
    let collector = collector.and_then(|spot| spot.secretive(sink, endpoint::collector));
    let sample = unit.get(unit.keys.sample).map_or(Some(1.0), |spot| spot.parse(sink, value::fraction));
    Some(Tracing { collector: collector?, sample: sample? })
}

pub fn audit(spot: Option<Spot<'_>>, sink: &mut Sink) -> Option<Audit> {
    let unit = spot?.unit::<AuditFile>(sink)?;
    let to = unit.get(unit.keys.to)?;
    if !to.is_map() {
        return to.choice(sink);
    }
    let unit = to.unit::<AuditToFile>(sink)?;
    let at = unit.require(unit.keys.file, "file", "write {file: PATH}", sink)?;
    let path = at.file(sink)?;
    // Only the running program creates the file; `check` must not.
    if let Err(error) = check_can_open(&path) {
        let message = format!("{} cannot be opened for writing ({error})", path.display());
        at.problem(sink, message, "give a file in a folder that Keybearer may write to");
    }
    Some(Audit::File(path))
}
