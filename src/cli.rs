//! The command line: one file a command under `cli/`.
//!
//! Exit codes: 0 done, 1 failed at run time, 2 wrong arguments or configuration.

mod ask;
mod ca;
mod check;
mod connect;
mod demo;
mod environment;
mod run;
mod secret;
mod store;
mod table;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Problems};

/// A proxy that injects fresh OAuth tokens, so that services hold no secret.
#[derive(Debug, Parser)]
#[command(name = "keybearer", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy
    Run(ConfigArguments),
    /// See it work with nothing else installed: an authorization server, an API and the proxy in one process
    Demo(demo::DemoArguments),
    /// Say every problem of a configuration at once
    Check(check::CheckArguments),
    /// Print the configuration's JSON Schema, for editors
    Schema,
    /// Show the connections of a running instance, with their state
    Connections(ask::AskArguments),
    /// Get another token of a connection now
    Refresh(ask::RefreshArguments),
    /// Revoke a connection's token at the authorization server, and forget it here
    Revoke(ask::RefreshArguments),
    /// Send one request with a connection's token and show how it was answered
    Test(ask::TestArguments),
    /// Connect a connection: a link or a code for the person, and the wait for the token
    Connect(connect::ConnectArguments),
    /// Secrets in the sealed store, for `{store: NAME}`
    #[command(subcommand)]
    Secret(secret::SecretCommand),
    /// Move or re-seal what the store holds
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// The interception CA, with which HTTPS through CONNECT is opened
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Run a command that uses the proxy and trusts its CA; exits as the command does
    Exec(environment::ExecArguments),
    /// Print the variables that make clients use the proxy and trust its CA
    Env(environment::EnvArguments),
    /// Exit 0 when a running instance is ready, else 1
    Healthcheck(ask::AskArguments),
    /// Print the version and what it was built from
    Version,
}

#[derive(Debug, Args)]
struct ConfigArguments {
    /// The configuration [default: ./config/keybearer.yaml, then /etc/keybearer/keybearer.yaml]
    #[arg(long, value_name = "PATH", env = "KEYBEARER_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigArguments {
    /// The file that is given, else the first that exists, else the first.
    fn path(&self) -> PathBuf {
        let usual = ["./config/keybearer.yaml", "/etc/keybearer/keybearer.yaml"].map(PathBuf::from);
        let found = || usual.iter().find(|path| path.exists()).unwrap_or(&usual[0]).clone();
        self.config.clone().unwrap_or_else(found)
    }
}

pub fn main() -> ExitCode {
    // Libraries that bring no TLS provider of their own take the process's; a second call changes nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Schema => schema(),
        Command::Connections(arguments) => ask::connections(&arguments),
        Command::Refresh(arguments) => ask::refresh(&arguments),
        Command::Revoke(arguments) => ask::revoke(&arguments),
        Command::Test(arguments) => ask::test(&arguments),
        Command::Connect(arguments) => connect::connect(&arguments),
        Command::Secret(command) => secret::secret(&command),
        Command::Store(command) => store::store(&command),
        Command::Ca(command) => ca::ca(&command),
        Command::Exec(arguments) => environment::exec(&arguments),
        Command::Env(arguments) => environment::env(&arguments),
        Command::Healthcheck(arguments) => ask::healthcheck(&arguments),
        Command::Version => {
            println!(
                "keybearer {} ({}, {})",
                env!("CARGO_PKG_VERSION"),
                env!("KEYBEARER_REVISION"),
                env!("KEYBEARER_RUSTC")
            );
            ExitCode::SUCCESS
        }
    }
}

/// Whoever reads it may stop early, which is no failure.
fn schema() -> ExitCode {
    match writeln!(std::io::stdout(), "{:#}", config::schema()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Wrong arguments or configuration.
const MISCONFIGURED: u8 = 2;

/// Says how many problems there are, after the warnings; the problems themselves are the caller's to print.
fn refuse(path: &Path, problems: &Problems) -> ExitCode {
    for warning in &problems.warnings {
        eprintln!("warning: {warning}");
    }
    let count = problems.problems.len();
    eprintln!("{}: {count} problem{}", path.display(), if count == 1 { "" } else { "s" });
    ExitCode::from(MISCONFIGURED)
}
