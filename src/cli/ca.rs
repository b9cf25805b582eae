//! `keybearer ca`: makes the interception CA, and prints it for clients.
//!
//! Holds: nothing is ever overwritten; the key is written to a file of mode 0600 and shown nowhere.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use rustls::pki_types::CertificateDer;

use super::ConfigArguments;
use crate::clock::Clock;
use crate::config;
use crate::model::connection::{HostPattern, RouteMatch};
use crate::model::origin::Host;
use crate::private_file;
use crate::store::StoreOpener;
use crate::tasks::Tasks;
use crate::tls::{self, authority};

#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make a CA: a certificate for clients to trust, and its key
    Init(InitArguments),
    /// Print the certificate for clients, alone or with the system's roots
    Export(ExportArguments),
}

#[derive(Debug, Args)]
pub struct InitArguments {
    /// Where the certificate goes
    #[arg(long, value_name = "PATH")]
    certificate: PathBuf,
    /// Where the key goes; nobody else may read the file
    #[arg(long, value_name = "PATH")]
    key: PathBuf,
    /// Let it vouch for the hosts of the configuration's routes alone
    #[arg(long)]
    constrain: bool,
    #[command(flatten)]
    config: ConfigArguments,
}

#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The certificate that `ca init` made
    #[arg(long, value_name = "PATH")]
    certificate: PathBuf,
    /// With the system's roots, for variables that replace them, such as SSL_CERT_FILE
    #[arg(long)]
    bundle: bool,
}

pub fn ca(command: &CaCommand) -> ExitCode {
    match command {
        CaCommand::Init(arguments) => init(arguments),
        CaCommand::Export(arguments) => match export(&arguments.certificate, arguments.bundle) {
            Ok(pem) => print(&pem),
            Err(why) => fail(&why),
        },
    }
}

fn init(arguments: &InitArguments) -> ExitCode {
    let InitArguments { certificate, key, constrain, config } = arguments;
    let hosts = match constrain.then(|| hosts(&config.path())) {
        None => Vec::new(),
        Some(Ok(hosts)) if hosts.is_empty() => {
            return fail("no route of the configuration names a host; add one, or leave out --constrain");
        }
        Some(Ok(hosts)) => hosts,
        Some(Err(code)) => return code,
    };
    let made = match authority::make_ca("Keybearer interception CA", &hosts, Clock::system().now().wall) {
        Ok(made) => made,
        Err(error) => return fail(&format!("the CA cannot be made: {error}")),
    };
    if let Err(why) = write(certificate, &made.certificate_pem, key, made.key_pem.expose()) {
        return fail(&why);
    }
    let vouches = match hosts.as_slice() {
        [] => "for every host".to_owned(),
        hosts => format!("for {} and what is below", hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(", ")),
    };
    let (certificate, key) = (certificate.display(), key.display());
    println!("{certificate}: the certificate; it can vouch {vouches}");
    println!("{key}: its key; whoever reads it can do the same, so keep it where Keybearer alone can read it");
    println!();
    println!("In the configuration (paths are relative to its file):");
    println!("  interception: {{ca_certificate: {certificate}, ca_key: {{file: {key}}}}}");
    println!("For clients, which then use the proxy and trust the CA:");
    println!("  keybearer exec -- CMD");
    ExitCode::SUCCESS
}

/// Hosts of all routes, wildcards without their `*.`; else the exit code, the problems being printed.
fn hosts(path: &Path) -> Result<Vec<Host>, ExitCode> {
    let loaded =
        config::load(path, Arc::new(StoreOpener::new(Clock::system(), Tasks::default()))).map_err(|problems| {
            println!("{problems}");
            super::refuse(path, &problems)
        })?;
    let routes = loaded.model.connections.iter().flat_map(|connection| &connection.routes);
    let mut hosts: Vec<_> = routes
        .filter_map(|route| match &route.matches {
            RouteMatch::Host { pattern: HostPattern::Exact(host) | HostPattern::Subdomains(host), .. } => {
                Some(host.clone())
            }
            RouteMatch::Mount { .. } => None,
        })
        .collect();
    hosts.sort();
    hosts.dedup();
    Ok(hosts)
}

/// Both files, or neither.
fn write(certificate: &Path, certificate_pem: &str, key: &Path, key_pem: &str) -> Result<(), String> {
    let refused = |path: &Path, error: io::Error| match error.kind() {
        ErrorKind::AlreadyExists => {
            format!("{} is there already; give another path, for clients may trust what it holds", path.display())
        }
        _ => format!("{} cannot be written: {error}", path.display()),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).open(certificate);
    let written = file.as_mut().map_err(|error| io::Error::from(error.kind()));
    let written = written.and_then(|file| file.write_all(certificate_pem.as_bytes()).and_then(|()| file.sync_all()));
    let both = match (file, written) {
        (Err(error), _) => return Err(refused(certificate, error)),
        (Ok(_), Err(error)) => Err(refused(certificate, error)),
        (Ok(_), Ok(())) => private_file::create(key, key_pem.trim_end()).map_err(|error| refused(key, error)),
    };
    if both.is_err() {
        // It was not there before.
        let _ = std::fs::remove_file(certificate);
    }
    both
}

/// The CA's certificate in PEM, perhaps with the system's roots behind it.
pub fn export(certificate: &Path, bundle: bool) -> Result<String, String> {
    let pem =
        std::fs::read(certificate).map_err(|error| format!("{} cannot be read: {error}", certificate.display()))?;
    let own = authority::read_certificates(&pem).map_err(|error| format!("{} {error}", certificate.display()))?;
    let roots: Vec<CertificateDer<'static>> = if bundle { tls::platform_roots() } else { Vec::new() };
    if bundle && roots.is_empty() {
        return Err("the system has no roots to put beside it; install its package ca-certificates".to_owned());
    }
    let ended = own.first().and_then(tls::expiry).filter(|end| *end <= Clock::system().now().wall);
    if let Some(end) = ended {
        let date = httpdate::fmt_http_date(end.to_system());
        eprintln!("warning: {} ended on {date}; make a new CA with `keybearer ca init`", certificate.display());
    }
    Ok(tls::to_pem(own.iter().chain(&roots)))
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
