//! The whole validator: text in, problems or a model out.

mod about;
mod accepted;
mod authorization;
mod client;
mod edit;
mod files;
mod files_win;
mod fill;
mod grants;
mod interception;
mod profiles;
mod published;
mod refused;
mod routes;
mod store;
mod stored;
mod written;

use std::path::Path;
use std::time::Duration;

use super::*;

/// The keys of a valid connection.
const GOOD: &str = "name: crm, client_id: id, token_url: \"https://login.acme.test/token\"";

#[track_caller]
fn accept(text: &str) -> Loaded {
    load_text(text, Path::new("a.yaml")).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Each problem must start with the expected text: `LINE:COLUMN: PATH: MESSAGE`.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let Err(problems) = load_text(text, Path::new("a.yaml")) else { panic!("accepted:\n{text}") };
    compare(&problems, "a.yaml:", expected);
}

#[track_caller]
fn compare(problems: &Problems, prefix: &str, expected: &[&str]) {
    let got = problems.to_string();
    assert_eq!(got.lines().count(), expected.len(), "{got}");
    for (line, expected) in got.lines().zip(expected) {
        assert!(line.starts_with(&format!("{prefix}{expected}")), "{line}\n  is not {expected}");
    }
    for problem in &problems.problems {
        assert!(!problem.hint.is_empty(), "{problem} has no hint");
    }
}

/// Checks a second connection with `keys`, in which `GOOD` is replaced by valid keys; its second line starts at column
/// 5.
#[track_caller]
fn check_connection(keys: &str, expected: &[&str]) {
    let keys = keys.replace("GOOD", &GOOD.replace("crm", "two")).replace('\n', "\n    ");
    check(&format!("connections:\n  - {{{GOOD}}}\n  - {{{keys}}}\n"), expected);
}

/// Checks a route with `keys`. Columns of line 4 count from the first key, which is in column 8.
#[track_caller]
fn check_route(keys: &str, expected: &str) {
    let text = format!("connections:\n  - {{{GOOD},\n     routes: [\n      {{{keys}}}]}}\n");
    check(&text, &[&shift(expected, 7)]);
}

/// `LINE:COLUMN: …` with the column moved to the right.
fn shift(expected: &str, columns: usize) -> String {
    let mut parts = expected.splitn(3, ':');
    let mut number = || parts.next().and_then(|part| part.parse::<usize>().ok()).unwrap();
    let (line, column) = (number(), number());
    format!("{line}:{}:{}", column + columns, parts.next().unwrap())
}

/// CPU time of this thread; unlike elapsed time, it does not depend on the load of the machine.
pub(super) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}
