//! `keybearer check`: reports every problem in one run; on a terminal with an excerpt of the file.
//!
//! Not here: stored tokens that no longer match the configuration (`consent`).

mod consent;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::{ConfigArguments, MISCONFIGURED};
use crate::clock::Clock;
use crate::config;
use crate::model::Model;
use crate::model::connection::{Inject, Route, RouteMatch};
use crate::store::StoreOpener;
use crate::tasks::Tasks;

#[derive(Debug, Args)]
pub struct CheckArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Print one JSON object, for programs
    #[arg(long)]
    json: bool,
}

pub fn check(arguments: &CheckArguments) -> ExitCode {
    let path = arguments.config.path();
    let opener = Arc::new(StoreOpener::new(Clock::system(), Tasks::default()));
    let result = config::load(&path, opener.clone(), &[]);
    let notes = result.as_ref().map(|loaded| notes(&loaded.model, &opener)).unwrap_or_default();
    if arguments.json {
        let (problems, warnings) = match &result {
            Ok(loaded) => (&[][..], &loaded.warnings),
            Err(problems) => (&problems.problems[..], &problems.warnings),
        };
        println!("{}", json!({ "file": path, "problems": problems, "warnings": warnings, "notes": notes }));
        return ExitCode::from(if result.is_ok() { 0 } else { MISCONFIGURED });
    }
    match result {
        Err(problems) => {
            let mut excerpts = std::io::stdout().is_terminal().then(config::excerpts);
            for problem in &problems.problems {
                println!("{problem}");
                if let Some(lines) = excerpts.as_mut().and_then(|excerpts| excerpts.of(problem)) {
                    println!("{lines}");
                }
            }
            super::refuse(&path, &problems)
        }
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            let connections = loaded.model.connections.len();
            println!("{}: OK, {connections} connection{}", path.display(), if connections == 1 { "" } else { "s" });
            for note in &notes {
                println!("note: {note}");
            }
            ExitCode::SUCCESS
        }
    }
}

/// Facts that are no problem but worth knowing before the configuration is applied.
fn notes(model: &Model, opener: &StoreOpener) -> Vec<String> {
    let relayed = relays_https(model).then(|| RELAYED.to_owned());
    relayed.into_iter().chain(consent::notes(model, opener)).collect()
}

const RELAYED: &str = "without `interception`, requests to https:// URLs, for which programs send CONNECT, are relayed without a \
                       token; http:// URLs and mounts get theirs";

/// Does a route exist whose HTTPS requests would get a token only with interception?
fn relays_https(model: &Model) -> bool {
    let hosted = |route: &&Route| matches!(route.matches, RouteMatch::Host { .. }) && route.tls.upgrade;
    let mut routes = model.connections.iter().flat_map(|connection| &connection.routes).filter(hosted);
    model.interception.is_none()
        && routes.any(|route| route.intercept && (route.inject != Inject::Nothing || !route.others.is_empty()))
}
