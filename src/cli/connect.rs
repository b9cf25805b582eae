//! `connect`: a person's side of a grant, from a terminal.
//!
//! Holds: the link and the code go to standard error, as progress does; standard output has the outcome alone.

use std::io::{IsTerminal as _, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use http::Method;
use serde_json::Value;

use super::ask::{AskArguments, Failed, fail, finish, given, read_secret};
use super::table;
use crate::config;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What opens a link on a desktop.
const OPENERS: [&str; 2] = ["xdg-open", "open"];

#[derive(Debug, Args)]
pub struct ConnectArguments {
    /// The connection
    name: String,
    /// Take over a refresh token from standard input (`-`)
    #[arg(long, value_name = "-", value_parser = ["-"])]
    import: Option<String>,
    /// Its profile [default: default]
    #[arg(long)]
    profile: Option<String>,
    /// Whose token it is, of a connection with one for each subject
    #[arg(long)]
    subject: Option<String>,
    /// Print the link, and leave opening it to you
    #[arg(long)]
    no_browser: bool,
    #[command(flatten)]
    ask: AskArguments,
}

pub fn connect(arguments: &ConnectArguments) -> ExitCode {
    match &arguments.import {
        Some(_) => import(arguments),
        None => authorize(arguments),
    }
}

/// Reads a refresh token from standard input and hands it in; the server has to accept it.
fn import(arguments: &ConnectArguments) -> ExitCode {
    let token = match read_secret("the refresh token") {
        Ok(token) => token,
        Err(text) => return fail(&arguments.ask, Failed::Said(text)),
    };
    let mut body = given([("profile", &arguments.profile), ("subject", &arguments.subject)]);
    body["refresh_token"] = token.expose().into();
    let answer = arguments.ask.ask(Method::PUT, &["connections", &arguments.name, "tokens"], Some(body));
    finish(&arguments.ask, answer, |token| table::refreshed(&arguments.name, token))
}

/// Begins an authorization, shows the way to the person, and waits for the end of it.
fn authorize(arguments: &ConnectArguments) -> ExitCode {
    let body = given([("profile", &arguments.profile), ("subject", &arguments.subject)]);
    let begun = arguments.ask.ask(Method::POST, &["connections", &arguments.name, "authorize"], Some(body));
    let begun = match begun {
        Ok(begun) => begun,
        Err(failed) => return fail(&arguments.ask, failed),
    };
    let text = |name: &str| begun[name].as_str().map(table::clean);
    let link = match (text("authorization_url"), text("user_code")) {
        (Some(link), _) => {
            eprintln!("Open this link in a browser, confirm what it shows, and log in:\n\n  {link}\n");
            link
        }
        (None, Some(code)) => {
            let place = text("verification_uri").unwrap_or_default();
            eprintln!("Open this page on any device:\n\n  {place}\n\nand give it this code:\n\n  {code}\n");
            text("verification_uri_complete").unwrap_or(place)
        }
        (None, None) => {
            let why = "the instance answers without a link or a code; it may be of another version";
            return fail(&arguments.ask, Failed::Said(why.to_owned()));
        }
    };
    if !arguments.no_browser && std::io::stderr().is_terminal() && config::has_desktop() {
        open(&link);
    }
    wait(arguments, begun["id"].as_str().unwrap_or_default())
}

/// Tries to open the link; where that fails, the person has it in print.
fn open(link: &str) {
    let quiet = |program: &&str| {
        let started =
            Command::new(program).arg(link).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        started.is_ok()
    };
    let _ = OPENERS.iter().any(quiet);
}

/// Asks until the authorization has ended, and tells how.
fn wait(arguments: &ConnectArguments, id: &str) -> ExitCode {
    let begun = Instant::now();
    let mut progress = Progress::new();
    loop {
        let answer = arguments.ask.ask(Method::GET, &["authorizations", id], None);
        let status = answer.as_ref().ok().and_then(|answer| answer["status"].as_str()).map(table::clean);
        match (answer, status.as_deref()) {
            (Ok(_), Some("pending")) => progress.waiting(begun.elapsed()),
            (Ok(answer), Some("connected")) => {
                progress.end();
                return finish(&arguments.ask, Ok(answer), table::connected);
            }
            (Ok(answer), _) => {
                progress.end();
                return ended(arguments, answer);
            }
            (Err(failed), _) => {
                progress.end();
                return fail(&arguments.ask, failed);
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn ended(arguments: &ConnectArguments, answer: Value) -> ExitCode {
    if arguments.ask.json {
        super::ask::say(&answer.to_string());
        return ExitCode::FAILURE;
    }
    let text = |name: &str| answer[name].as_str().map(table::clean);
    let why = [text("error"), text("description")].into_iter().flatten().collect::<Vec<_>>().join(": ");
    let status = text("status").unwrap_or_default();
    let said = match status.as_str() {
        "denied" => "access was declined".to_owned(),
        "expired" => "nobody has connected in time; run this again for a new link".to_owned(),
        _ => format!("connecting has failed: {why}"),
    };
    fail(&arguments.ask, Failed::Said(said))
}

/// A line that is written over on a terminal, and one for each minute elsewhere.
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
            let _ = writeln!(std::io::stderr(), "waiting for the person, since {minutes} min");
        }
    }

    fn end(&self) {
        if self.terminal {
            let _ = writeln!(std::io::stderr());
        }
    }
}
