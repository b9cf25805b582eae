//! `keybearer check`: reports every problem in one run; on a terminal with an excerpt of the file.
//!
//! Not here: stored tokens that no longer match the configuration (`consent`), what the servers respond (`online`).

mod consent;
mod online;

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
    /// Also check each connection against its authorization server: DNS, TLS, clock, metadata, client and secret
    #[arg(long)]
    online: bool,
}

pub fn check(arguments: &CheckArguments) -> ExitCode {
    let path = arguments.config.path();
    let opener = Arc::new(StoreOpener::new(Clock::system(), Tasks::default()));
    let result = config::load(&path, opener.clone(), &[]);
    let notes = result.as_ref().map(|loaded| notes(&loaded.model, &opener)).unwrap_or_default();
    let checked = result.as_ref().ok().filter(|_| arguments.online).map(|loaded| online::checks(&loaded.model));
    let checked = match checked.transpose() {
        Ok(checked) => checked,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let refused = checked.as_ref().is_some_and(|checked| online::has_failure(checked));
    if arguments.json {
        let (problems, warnings) = match &result {
            Ok(loaded) => (&[][..], &loaded.warnings),
            Err(problems) => (&problems.problems[..], &problems.warnings),
        };
        let mut report = json!({ "file": path, "problems": problems, "warnings": warnings, "notes": notes });
        if let Some(checked) = &checked {
            report["connections"] = online::json(checked);
        }
        println!("{report}");
        return ExitCode::from(if result.is_ok() && !refused { 0 } else { MISCONFIGURED });
    }
    match result {
        Err(problems) => {
            super::print_problems(&problems.problems);
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
            if let Some(checked) = &checked {
                println!("{}", online::table(checked));
            }
            ExitCode::from(if refused { MISCONFIGURED } else { 0 })
        }
    }
}

/// Notes: not problems, but worth knowing before the configuration is applied.
fn notes(model: &Model, opener: &StoreOpener) -> Vec<String> {
    let relayed = relays_https(model).then(|| RELAYED.to_owned());
    relayed.into_iter().chain(consent::notes(model, opener)).collect()
}

const RELAYED: &str = "without `interception`, requests to https:// URLs, for which programs send CONNECT, are relayed without a \
                       token; http:// URLs and mounts get theirs";

/// True if some route needs interception for its HTTPS requests to get a token.
fn relays_https(model: &Model) -> bool {
    let hosted = |route: &&Route| matches!(route.matches, RouteMatch::Host { .. }) && route.tls.upgrade;
    let mut routes = model.connections.iter().flat_map(|connection| &connection.routes).filter(hosted);
    model.interception.is_none()
        && routes.any(|route| route.intercept && (route.inject != Inject::Nothing || !route.others.is_empty()))
}
