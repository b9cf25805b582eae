//! The command line: one file per command under `cli/`.
//!
//! Exit codes: 0 done, 1 failed at run time, 2 wrong arguments or configuration.

mod apply;
mod ca;
mod check;
mod connect;
mod demo;
mod environment;
mod export;
mod instance;
mod run;
mod secret;
mod store;
mod table;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Problem, Problems};

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
    /// Try it with nothing else installed: an authorization server, an API and the proxy in one process
    Demo(demo::DemoArguments),
    /// Report every problem of a configuration at once
    Check(check::CheckArguments),
    /// Print the configuration's JSON Schema, for editors
    Schema,
    /// List the connections of a running instance with their state
    Connections(instance::InstanceArguments),
    /// Refresh a connection's token now
    Refresh(instance::RefreshArguments),
    /// Revoke a connection's token at the authorization server and forget it
    Revoke(instance::RefreshArguments),
    /// Send one request with a connection's token and show the status of the response
    Test(instance::TestArguments),
    /// Connect an account: print a link or a code for the person and wait for the token
    Connect(connect::ConnectArguments),
    /// Create or change definitions of a running instance as files say, all or none
    Apply(apply::ApplyArguments),
    /// Print the definitions made over the API as YAML, for `apply`; secrets as `{set: true}`
    Export(export::ExportArguments),
    /// Manage secrets in the sealed store, for `{store: NAME}`
    #[command(subcommand)]
    Secret(secret::SecretCommand),
    /// Export, import or reseal the records of the store
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Create or export the interception CA, for HTTPS through CONNECT
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Run a command with the proxy and CA variables set; exits with the command's exit code
    Exec(environment::ExecArguments),
    /// Print the variables that make programs use the proxy and trust its CA
    Env(environment::EnvArguments),
    /// Exit 0 if a running instance is ready, else 1
    Healthcheck(instance::InstanceArguments),
    /// Print the version and build information
    Version,
}

#[derive(Debug, Args)]
struct ConfigArguments {
    /// Configuration file [default: ./config/keybearer.yaml, then /etc/keybearer/keybearer.yaml]
    #[arg(long, value_name = "PATH", env = "KEYBEARER_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigArguments {
    /// The given file, else the first default that exists, else the first default.
    fn path(&self) -> PathBuf {
        let defaults = ["./config/keybearer.yaml", "/etc/keybearer/keybearer.yaml"].map(PathBuf::from);
        let default = || defaults.iter().find(|path| path.exists()).unwrap_or(&defaults[0]).clone();
        self.config.clone().unwrap_or_else(default)
    }
}

/// Parses the command line, runs the command, and returns the exit code of the process.
pub fn main() -> ExitCode {
    // Libraries without a TLS provider use the process default. A second call has no effect.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Schema => schema(),
        Command::Connections(arguments) => instance::connections(&arguments),
        Command::Refresh(arguments) => instance::refresh(&arguments),
        Command::Revoke(arguments) => instance::revoke(&arguments),
        Command::Test(arguments) => instance::test(&arguments),
        Command::Connect(arguments) => connect::connect(&arguments),
        Command::Apply(arguments) => apply::apply(&arguments),
        Command::Export(arguments) => export::export(&arguments),
        Command::Secret(command) => secret::secret(&command),
        Command::Store(command) => store::store(&command),
        Command::Ca(command) => ca::ca(&command),
        Command::Exec(arguments) => environment::exec(&arguments),
        Command::Env(arguments) => environment::env(&arguments),
        Command::Healthcheck(arguments) => instance::healthcheck(&arguments),
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

/// A reader that closes the pipe early is not a failure.
fn schema() -> ExitCode {
    match writeln!(std::io::stdout(), "{:#}", config::schema()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Exit code for wrong arguments or configuration.
const MISCONFIGURED: u8 = 2;

/// Prints problems to standard output; on a terminal, each with its line.
fn print_problems(problems: &[Problem]) {
    let mut excerpts = std::io::stdout().is_terminal().then(config::excerpts);
    for problem in problems {
        println!("{problem}");
        if let Some(lines) = excerpts.as_mut().and_then(|excerpts| excerpts.of(problem)) {
            println!("{lines}");
        }
    }
}

/// Prints the warnings and the number of problems. The caller prints the problems themselves.
fn refuse(path: &Path, problems: &Problems) -> ExitCode {
    for warning in &problems.warnings {
        eprintln!("warning: {warning}");
    }
    let count = problems.problems.len();
    eprintln!("{}: {count} problem{}", path.display(), if count == 1 { "" } else { "s" });
    ExitCode::from(MISCONFIGURED)
}
