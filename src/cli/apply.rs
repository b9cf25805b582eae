//! `keybearer apply`: definitions in files become definitions of a running instance, all or none.
//!
//! References in the files are filled here (`config::fill`); the instance validates the result, and its problems are
//! reported at their positions in the files. Not here: what a change does (`admin`), the reverse (`export`).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::instance::{self, Call, CallError, InstanceArguments};
use super::{MISCONFIGURED, print_problems, refuse, table};
use crate::config::{FilledDefinitions, Problem, Problems};

/// Timeout of the request: the largest change takes seconds, revoking what `--prune` removes takes minutes.
const APPLY_TIMEOUT: Duration = Duration::from_secs(300);
/// Largest body that the instance accepts.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Members of the response, each a list of names.
const OUTCOMES: [&str; 4] = ["created", "changed", "unchanged", "removed"];

#[derive(Debug, Args)]
pub struct ApplyArguments {
    /// File with `connections` or with one definition, or directory of such files (`*.yaml`)
    #[arg(short, long, value_name = "FILE|DIR")]
    file: PathBuf,
    /// Report what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Also remove the definitions made over the API that the files do not contain
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    instance: InstanceArguments,
}

pub fn apply(arguments: &ApplyArguments) -> ExitCode {
    let mut definitions = match FilledDefinitions::read(&arguments.file) {
        Ok(definitions) => definitions,
        Err(problems) => return arguments.reject(&problems, |problem| json!(problem)),
    };
    definitions.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    match arguments.send(&mut definitions) {
        Err(CallError::Refused(refusal)) if refusal["status"] == 422 && refusal["problems"].is_array() => {
            arguments.report(&definitions, &refusal["problems"])
        }
        Err(CallError::Refused(mut refusal)) if !arguments.instance.json => {
            refusal["detail"] = explain(&refusal).into();
            instance::fail(&arguments.instance, CallError::Refused(refusal))
        }
        response => instance::finish(&arguments.instance, response, |response| describe(response, arguments.dry_run)),
    }
}

impl ApplyArguments {
    fn send(&self, definitions: &mut FilledDefinitions) -> Result<Value, CallError> {
        let body = std::mem::take(&mut definitions.json);
        if body.len() > BODY_BYTES_MAX {
            let mib = BODY_BYTES_MAX / 1024 / 1024;
            let text = format!("the definitions are larger than {mib} MiB; apply them in parts, without --prune");
            return Err(CallError::Local(text));
        }
        let flags = [("dry_run", self.dry_run), ("prune", self.prune)];
        let query: Vec<_> = flags.iter().filter(|(_, given)| *given).map(|(name, _)| (*name, "true")).collect();
        let (method, path) = (Method::POST, &["connections:apply"][..]);
        self.instance.instance()?.json(Call { method, path, query: &query, body: Some(body), timeout: APPLY_TIMEOUT })
    }

    /// Reports the problems that the instance found, at their positions in the files.
    fn report(&self, definitions: &FilledDefinitions, found: &Value) -> ExitCode {
        let found = found.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut located: Vec<_> = found.iter().map(|found| (self.locate(definitions, found), found)).collect();
        located.sort_by(|(a, _), (b, _)| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        let (problems, found): (Vec<_>, Vec<_>) = located.into_iter().unzip();
        let mut found = found.into_iter();
        let problems = Problems { problems, warnings: Vec::new(), files: Vec::new() };
        self.reject(&problems, |problem| {
            let (mut shown, found) = (json!(problem), found.next().unwrap_or(&Value::Null));
            for member in ["connection", "code"] {
                if found[member].is_string() {
                    shown[member] = found[member].clone();
                }
            }
            shown
        })
    }

    fn locate(&self, definitions: &FilledDefinitions, found: &Value) -> Problem {
        let [name, path, message, hint] =
            ["connection", "path", "message", "hint"].map(|member| found[member].as_str().unwrap_or_default());
        definitions.problem(name, path, message, hint).unwrap_or_else(|| Problem {
            file: self.file.clone(),
            line: 1,
            column: 1,
            path: [name, path].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("."),
            code: None,
            message: message.to_owned(),
            hint: hint.to_owned(),
        })
    }

    /// Prints problems, each as `to_json` makes it with `--json`.
    fn reject(&self, problems: &Problems, to_json: impl FnMut(&Problem) -> Value) -> ExitCode {
        if self.instance.json {
            let shown: Vec<Value> = problems.problems.iter().map(to_json).collect();
            let report = json!({ "file": self.file, "problems": shown, "warnings": problems.warnings });
            instance::print_line(&report.to_string());
            return ExitCode::from(MISCONFIGURED);
        }
        print_problems(&problems.problems);
        refuse(&self.file, problems)
    }
}

/// Why the instance refused all definitions, with the problems that are not those of the files, such as the problems of
/// connections that use a removed one.
fn explain(refusal: &Value) -> String {
    let text = |value: &Value, member: &str| value[member].as_str().unwrap_or_default().to_owned();
    let (mut detail, path) = (text(refusal, "detail"), text(refusal, "path"));
    if !detail.contains(&path) {
        detail += &format!(" ({path})");
    }
    for problem in refusal["problems"].as_array().into_iter().flatten() {
        let [connection, path, message] = ["connection", "path", "message"].map(|member| text(problem, member));
        detail += &format!("; {}: {message}", format!("{connection} {path}").trim());
    }
    detail + "; nothing was changed"
}

/// A line for each name, and a summary.
fn describe(response: &Value, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    let names = |outcome: &str| response[outcome].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |outcome: &'static str| names(outcome).iter().filter_map(Value::as_str).map(move |name| (name, outcome));
    let mut lines: Vec<(&str, &str)> = OUTCOMES.into_iter().flat_map(of).collect();
    lines.sort_unstable();
    let mut lines: Vec<_> =
        lines.into_iter().map(|(name, outcome)| format!("{}: {would}{outcome}", table::clean(name))).collect();
    let counts = OUTCOMES.map(|outcome| format!("{} {would}{outcome}", names(outcome).len()));
    let end = if dry_run { "; dry run, nothing was changed" } else { "" };
    lines.push(format!("{}{end}", counts.join(", ")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_of_each_name_is_listed_by_name() {
        let response = json!({"created": ["b"], "changed": ["c\u{1b}"], "unchanged": ["a", "d"], "removed": []});
        let expected =
            "a: unchanged\nb: created\nc?: changed\nd: unchanged\n1 created, 1 changed, 2 unchanged, 0 removed";
        assert_eq!(describe(&response, false), expected);
        let expected = "a: would be created\n1 would be created, 0 would be changed, 0 would be unchanged, \
                        0 would be removed; dry run, nothing was changed";
        assert_eq!(describe(&json!({"created": ["a"]}), true), expected);
    }
}
