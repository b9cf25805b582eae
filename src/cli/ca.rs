//! `keybearer ca`: creates the interception CA and exports its certificate.
//!
//! Invariants: no file is ever overwritten; the key is written to a file of mode 0600 and never printed.

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
    /// Create a CA: a certificate for programs to trust, and its key
    Init(InitArguments),
    /// Print the certificate, alone or with the system's roots
    Export(ExportArguments),
}

#[derive(Debug, Args)]
pub struct InitArguments {
    /// File to write the certificate to
    #[arg(long, value_name = "PATH")]
    certificate: PathBuf,
    /// File to write the key to, readable only by its owner
    #[arg(long, value_name = "PATH")]
    key: PathBuf,
    /// Constrain the CA to the hosts of the configured routes
    #[arg(long)]
    constrain: bool,
    #[command(flatten)]
    config: ConfigArguments,
}

#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The certificate that `ca init` created
    #[arg(long, value_name = "PATH")]
    certificate: PathBuf,
    /// Add the system's roots, for variables that replace them, such as SSL_CERT_FILE
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
            return fail("no configured route names a host; add one, or omit --constrain");
        }
        Some(Ok(hosts)) => hosts,
        Some(Err(code)) => return code,
    };
    let created = match authority::make_ca("Keybearer interception CA", &hosts, Clock::system().now().wall) {
        Ok(created) => created,
        Err(error) => return fail(&format!("cannot create the CA: {error}")),
    };
    if let Err(why) = write(certificate, &created.certificate_pem, key, created.key_pem.expose()) {
        return fail(&why);
    }
    let scope = match hosts.as_slice() {
        [] => "every host".to_owned(),
        hosts => format!("{} and their subdomains", hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(", ")),
    };
    let (certificate, key) = (certificate.display(), key.display());
    println!("{certificate}: certificate of a CA for {scope}");
    println!(
        "{key}: its key; anyone who can read it can impersonate these hosts, so keep it readable by Keybearer only"
    );
    println!();
    println!("Add to the configuration (paths are relative to its file):");
    println!("  interception: {{ca_certificate: {certificate}, ca_key: {{file: {key}}}}}");
    println!("Run a program that uses the proxy and trusts the CA:");
    println!("  keybearer exec -- CMD");
    ExitCode::SUCCESS
}

/// Hosts of all routes, wildcards without their `*.`. On an invalid configuration, prints the problems and returns the
/// exit code.
fn hosts(path: &Path) -> Result<Vec<Host>, ExitCode> {
    let loaded =
        config::load(path, Arc::new(StoreOpener::new(Clock::system(), Tasks::default())), &[]).map_err(|problems| {
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

/// Writes both files or neither.
fn write(certificate: &Path, certificate_pem: &str, key: &Path, key_pem: &str) -> Result<(), String> {
    let refused = |path: &Path, error: io::Error| match error.kind() {
        ErrorKind::AlreadyExists => {
            format!("{} already exists, and programs may trust it; use another path", path.display())
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
        // This run created it.
        let _ = std::fs::remove_file(certificate);
    }
    both
}

/// The CA certificate in PEM, followed by the system's roots if `bundle`.
pub fn export(certificate: &Path, bundle: bool) -> Result<String, String> {
    let pem =
        std::fs::read(certificate).map_err(|error| format!("{} cannot be read: {error}", certificate.display()))?;
    let chain = authority::read_certificates(&pem).map_err(|error| format!("{} {error}", certificate.display()))?;
    let roots: Vec<CertificateDer<'static>> = if bundle { tls::platform_roots() } else { Vec::new() };
    if bundle && roots.is_empty() {
        return Err("the system has no roots for a bundle; install the package ca-certificates".to_owned());
    }
    let expired = chain.first().and_then(tls::expiry).filter(|end| *end <= Clock::system().now().wall);
    if let Some(end) = expired {
        let date = httpdate::fmt_http_date(end.to_system());
        eprintln!("warning: {} expired on {date}; create a new CA with `keybearer ca init`", certificate.display());
    }
    Ok(tls::to_pem(chain.iter().chain(&roots)))
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
