//! `keybearer connect`: the person's side of a grant, on a terminal.
//!
//! Invariant: link, code and progress go to standard error; standard output has only the outcome.

use std::io::{IsTerminal as _, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use http::Method;
use serde_json::Value;

use super::instance::{CallError, InstanceArguments, fail, finish, given, read_secret};
use super::table;
use crate::config;

/// Poll interval of a pending authorization.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Programs that open a link on a desktop.
const OPENERS: [&str; 2] = ["xdg-open", "open"];

#[derive(Debug, Args)]
pub struct ConnectArguments {
    /// The connection
    name: String,
    /// Import a refresh token from standard input (`-`)
    #[arg(long, value_name = "-", value_parser = ["-"])]
    import: Option<String>,
    /// Profile of the connection [default: default]
    #[arg(long)]
    profile: Option<String>,
    /// Subject of the token, for a per-subject connection
    #[arg(long)]
    subject: Option<String>,
    /// Print the link without opening a browser
    #[arg(long)]
    no_browser: bool,
    #[command(flatten)]
    instance: InstanceArguments,
}

pub fn connect(arguments: &ConnectArguments) -> ExitCode {
    match &arguments.import {
        Some(_) => import(arguments),
        None => authorize(arguments),
    }
}

/// Reads a refresh token from standard input and imports it, if the server accepts it.
fn import(arguments: &ConnectArguments) -> ExitCode {
    let token = match read_secret("the refresh token") {
        Ok(token) => token,
        Err(text) => return fail(&arguments.instance, CallError::Local(text)),
    };
    let mut body = given([("profile", &arguments.profile), ("subject", &arguments.subject)]);
    body["refresh_token"] = token.expose().into();
    let response = arguments.instance.call(Method::PUT, &["connections", &arguments.name, "tokens"], Some(body));
    finish(&arguments.instance, response, |token| table::refreshed(&arguments.name, token))
}

/// Starts an authorization, prints its link or code, and waits for the outcome.
fn authorize(arguments: &ConnectArguments) -> ExitCode {
    let body = given([("profile", &arguments.profile), ("subject", &arguments.subject)]);
    let begun = arguments.instance.call(Method::POST, &["connections", &arguments.name, "authorize"], Some(body));
    let begun = match begun {
        Ok(begun) => begun,
        Err(failed) => return fail(&arguments.instance, failed),
    };
    let text = |name: &str| begun[name].as_str().map(table::clean);
    let link = match (text("authorization_url"), text("user_code")) {
        (Some(link), _) => {
            eprintln!("Open this link in a browser, confirm the connection it shows, and log in:\n\n  {link}\n");
            link
        }
        (None, Some(code)) => {
            let page = text("verification_uri").unwrap_or_default();
            eprintln!("Open this page on any device:\n\n  {page}\n\nand enter this code:\n\n  {code}\n");
            text("verification_uri_complete").unwrap_or(page)
        }
        (None, None) => {
            let why = "the instance returned neither a link nor a code; it may run another version";
            return fail(&arguments.instance, CallError::Local(why.to_owned()));
        }
    };
    if !arguments.no_browser && std::io::stderr().is_terminal() && config::has_desktop() {
        open(&link);
    }
    wait(arguments, begun["id"].as_str().unwrap_or_default())
}

/// Tries to open the link. If that fails, the person still has the printed one.
fn open(link: &str) {
    let spawn = |program: &&str| {
        let started =
            Command::new(program).arg(link).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        started.is_ok()
    };
    let _ = OPENERS.iter().any(spawn);
}

/// Polls until the authorization has ended, and prints the outcome.
fn wait(arguments: &ConnectArguments, id: &str) -> ExitCode {
    let begun = Instant::now();
    let mut progress = Progress::new();
    loop {
        let response = arguments.instance.call(Method::GET, &["authorizations", id], None);
        let status = response.as_ref().ok().and_then(|response| response["status"].as_str()).map(table::clean);
        match (response, status.as_deref()) {
            (Ok(_), Some("pending")) => progress.waiting(begun.elapsed()),
            (Ok(response), Some("connected")) => {
                progress.end();
                return finish(&arguments.instance, Ok(response), table::connected);
            }
            (Ok(response), _) => {
                progress.end();
                return ended(arguments, response);
            }
            (Err(failed), _) => {
                progress.end();
                return fail(&arguments.instance, failed);
            }
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn ended(arguments: &ConnectArguments, response: Value) -> ExitCode {
    if arguments.instance.json {
        super::instance::print_line(&response.to_string());
        return ExitCode::FAILURE;
    }
    let text = |name: &str| response[name].as_str().map(table::clean);
    let why = [text("error"), text("description")].into_iter().flatten().collect::<Vec<_>>().join(": ");
    let status = text("status").unwrap_or_default();
    let message = match status.as_str() {
        "denied" => "access was declined".to_owned(),
        "expired" => "the authorization expired; run this again for a new link".to_owned(),
        _ => format!("the authorization failed: {why}"),
    };
    fail(&arguments.instance, CallError::Local(message))
}

/// Progress on standard error: one line that is overwritten on a terminal, else one line per minute.
struct Progress {
    terminal: bool,
    minutes: u64,
}

impl Progress {
    fn new() -> Progress {
        Progress { terminal: std::io::stderr().is_terminal(), minutes: 0 }
    }

    fn waiting(&mut self, span: Duration) {
        let (seconds, minutes) = (span.as_secs(), span.as_secs() / 60);
        if self.terminal {
            let _ = write!(std::io::stderr(), "\rwaiting for you in the browser … {}:{:02} ", minutes, seconds % 60);
        } else if minutes > self.minutes || seconds == 0 && self.minutes == 0 {
            self.minutes = minutes.max(1);
            let _ = writeln!(std::io::stderr(), "still waiting for the person ({minutes} min)");
        }
    }

    fn end(&self) {
        if self.terminal {
            let _ = writeln!(std::io::stderr());
        }
    }
}
