//! `keybearer check`: every problem in one run.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{ConfigArguments, MISCONFIGURED};
use crate::config;

#[derive(Debug, Args)]
pub struct CheckArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// One JSON object on standard output, for programs
    #[arg(long)]
    json: bool,
}

pub fn check(arguments: &CheckArguments) -> ExitCode {
    let path = arguments.config.path();
    let result = config::load(&path);
    if arguments.json {
        let (problems, warnings) = match &result {
            Ok(loaded) => (&[][..], &loaded.warnings),
            Err(problems) => (&problems.problems[..], &problems.warnings),
        };
        println!("{}", json!({ "file": path, "problems": problems, "warnings": warnings }));
        return ExitCode::from(if result.is_ok() { 0 } else { MISCONFIGURED });
    }
    match result {
        Err(problems) => {
            for problem in &problems.problems {
                println!("{problem}");
            }
            super::refuse(&path, &problems)
        }
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            let connections = loaded.model.connections.len();
            println!("{}: good, {connections} connection{}", path.display(), if connections == 1 { "" } else { "s" });
            ExitCode::SUCCESS
        }
    }
}
