//! `keybearer exec` and `env`: the variables by which common clients use the proxy and trust its CA.
//!
//! Holds: without `interception` no variable about trust is set; certificates go into files below the state directory,
//! keys nowhere; a secret is shown only inside the proxy's URL, where clients expect it.

mod java;
mod shell;

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use url::Url;
use zeroize::Zeroizing;

use super::{ConfigArguments, MISCONFIGURED};
use crate::clock::Clock;
use crate::config::{self, Loaded};
use crate::model::connection::{HostPattern, RouteMatch};
use crate::model::query::percent_encoded;
use crate::model::{ListenAt, Model, Name};
use crate::private_file;
use crate::store::StoreOpener;
use crate::tasks::Tasks;
use crate::tls;
use shell::Shell;

/// As a shell's: what was to be run is not there, or cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

#[derive(Debug, Args)]
pub struct ExecArguments {
    #[command(flatten)]
    about: About,
    /// The command and its arguments, behind `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct EnvArguments {
    #[command(flatten)]
    about: About,
    /// For whom they are written; docker: an --env-file, k8s: a container's `env`
    #[arg(long, value_enum, default_value_t)]
    shell: Shell,
}

#[derive(Debug, Args)]
struct About {
    #[command(flatten)]
    config: ConfigArguments,
    /// Who calls: a caller of the configuration, whose secret goes into the proxy's URL
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,
    /// Where clients reach the proxy [default: the first plain listener of the configuration]
    #[arg(long, value_name = "HOST:PORT")]
    proxy: Option<String>,
    /// Hosts that are called directly, beside this machine [default: those of $NO_PROXY and $no_proxy]
    #[arg(long, value_name = "HOSTS")]
    no_proxy: Option<String>,
    #[command(flatten)]
    before: Before,
}

/// What the environment holds already of what is set here.
#[derive(Debug, Args)]
struct Before {
    #[arg(long, hide = true, env = "NO_PROXY", hide_env_values = true)]
    no_proxy_large: Option<String>,
    #[arg(long, hide = true, env = "no_proxy", hide_env_values = true)]
    no_proxy_small: Option<String>,
    #[arg(long, hide = true, env = "JAVA_TOOL_OPTIONS", hide_env_values = true)]
    java_tool_options: Option<String>,
    #[arg(long, hide = true, env = "PHP_INI_SCAN_DIR", hide_env_values = true)]
    php_ini_scan_dir: Option<String>,
    #[arg(long, hide = true, env = "SYSTEM_WGETRC", hide_env_values = true)]
    system_wgetrc: Option<String>,
}

/// Why there are no variables.
enum Failed {
    /// The configuration's problems are printed.
    Misconfigured,
    Said(String),
}

type Variables = Vec<(&'static str, String)>;

/// In place of this process, so that the command's end is ours.
pub fn exec(arguments: &ExecArguments) -> ExitCode {
    let variables = match arguments.about.variables() {
        Ok(variables) => variables,
        Err(failed) => return failed.exit(),
    };
    let Some((program, rest)) = arguments.command.split_first() else { return ExitCode::from(MISCONFIGURED) };
    let error = std::process::Command::new(program).args(rest).envs(variables).exec();
    eprintln!("{} cannot be run: {error}", Path::new(program).display());
    ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE })
}

pub fn env(arguments: &EnvArguments) -> ExitCode {
    let written = arguments.about.variables().and_then(|variables| {
        let mut text = String::new();
        for (name, value) in variables {
            let line = arguments.shell.line(name, &value);
            text += &line.ok_or_else(|| Failed::Said(format!("{name} holds a line break, which cannot be written")))?;
        }
        Ok(text)
    });
    match written.map(|text| io::stdout().write_all(text.as_bytes())) {
        Err(failed) => failed.exit(),
        Ok(Err(error)) if error.kind() != ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
    }
}

impl Failed {
    fn exit(self) -> ExitCode {
        match self {
            Failed::Misconfigured => ExitCode::from(MISCONFIGURED),
            Failed::Said(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        }
    }
}

impl About {
    fn variables(&self) -> Result<Variables, Failed> {
        let path = self.config.path();
        let opener = || Arc::new(StoreOpener::new(Clock::system(), Tasks::default()));
        let refused = |problems| {
            eprintln!("{problems}");
            super::refuse(&path, &problems);
            Failed::Misconfigured
        };
        let Loaded { model, .. } = config::load(&path, opener()).map_err(refused)?;
        let mut proxy = self.proxy_url(&model)?;
        if let Some(caller) = &self.caller {
            let name = model.callers.iter().map(|own| &own.name).find(|name| name.as_str() == caller);
            let name =
                name.ok_or_else(|| Failed::Said(format!("no caller is named `{caller}` in the configuration")))?;
            if let Some(secret) = config::caller_secret(&path, name, opener()).map_err(refused)? {
                // A string that grew would leave unwiped copies behind.
                let mut password = Zeroizing::new(String::with_capacity(3 * secret.expose().len()));
                password.extend(percent_encoded(secret.expose()));
                let set = proxy.set_username(name.as_str()).and_then(|()| proxy.set_password(Some(&password)));
                set.map_err(|()| Failed::Said("the proxy's URL cannot hold the caller's secret".to_owned()))?;
            }
        }
        let no_proxy = self.no_proxy(&model);
        let url = proxy.as_str().trim_end_matches('/').to_owned();
        let mut variables: Variables =
            ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"].map(|name| (name, url.clone())).into();
        variables.extend(["NO_PROXY", "no_proxy"].map(|name| (name, no_proxy.clone())));
        variables.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
        let mut java = java::options(&proxy, &no_proxy);
        if let Some(interception) = &model.interception {
            let own = &interception.chain[..];
            let platform = tls::platform_roots();
            if platform.is_empty() {
                eprintln!("warning: the system has no roots; clients will trust the interception CA alone");
            }
            let all = || own.iter().chain(&platform);
            let ca = keep(&model, "interception-ca.pem", tls::to_pem(own).as_bytes())?;
            let bundle = keep(&model, "interception-bundle.pem", tls::to_pem(all()).as_bytes())?;
            let store = keep(&model, "interception-bundle.jks", &java::trust_store(all()))?;
            // These take the place of what a client trusts otherwise.
            let replace = [
                "SSL_CERT_FILE",
                "REQUESTS_CA_BUNDLE",
                "CURL_CA_BUNDLE",
                "GIT_SSL_CAINFO",
                "AWS_CA_BUNDLE",
                "CARGO_HTTP_CAINFO",
                "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
            ];
            variables.extend(replace.map(|name| (name, bundle.clone())));
            // wget reads no variable but for a file of settings; the user's own is read beside this one.
            let wgetrc = keep(&model, "interception-wgetrc", format!("ca_certificate = {bundle}\n").as_bytes())?;
            if let Some(before) = self.before.system_wgetrc.as_ref().filter(|before| **before != wgetrc) {
                eprintln!("warning: SYSTEM_WGETRC names one file alone: {wgetrc} takes the place of {before}");
            }
            variables.push(("SYSTEM_WGETRC", wgetrc));
            // PHP's curl neither.
            let ini = format!("curl.cainfo = \"{bundle}\"\nopenssl.cafile = \"{bundle}\"\n");
            let ini = keep(&model, "interception-php/keybearer.ini", ini.as_bytes())?;
            let php = scanned(self.before.php_ini_scan_dir.as_deref(), ini.trim_end_matches("/keybearer.ini"));
            variables.push(("PHP_INI_SCAN_DIR", php));
            variables.extend(["NODE_EXTRA_CA_CERTS", "DENO_CERT"].map(|name| (name, ca.clone())));
            java += &java::trusting(&store);
        }
        let before = self.before.java_tool_options.as_deref().map(|before| format!("{before} ")).unwrap_or_default();
        variables.push(("JAVA_TOOL_OPTIONS", format!("{before}{java}")));
        Ok(variables)
    }

    fn proxy_url(&self, model: &Model) -> Result<Url, Failed> {
        let said = |text: &str| Failed::Said(text.to_owned());
        let authority = match &self.proxy {
            Some(authority) => authority.clone(),
            None => listener(model, self.caller.as_deref()).ok_or_else(|| {
                said("no proxy listener takes plain HTTP at an address for this caller; say where with --proxy HOST:PORT")
            })?,
        };
        let url = Url::parse(&format!("http://{authority}/"))
            .ok()
            .filter(|url| url.path() == "/" && url.username().is_empty());
        match url {
            Some(url) if url.port() == Some(0) => {
                Err(said("the listener's port is chosen when it starts; say which it is with --proxy HOST:PORT"))
            }
            Some(url) => Ok(url),
            None => Err(said("--proxy takes HOST:PORT")),
        }
    }

    /// What was said before, and this machine, but for names of it that routes have.
    fn no_proxy(&self, model: &Model) -> String {
        let routes = model.connections.iter().flat_map(|connection| &connection.routes);
        let routed: Vec<_> = routes
            .filter_map(|route| match &route.matches {
                RouteMatch::Host { pattern: HostPattern::Exact(host), .. } if host.is_loopback() => {
                    Some(host.to_string())
                }
                _ => None,
            })
            .collect();
        let own = [("localhost", "localhost"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")];
        let own = own.iter().filter(|(_, host)| !routed.iter().any(|routed| routed == host)).map(|(name, _)| *name);
        let Before { no_proxy_large, no_proxy_small, .. } = &self.before;
        let said = match &self.no_proxy {
            Some(said) => [Some(said), None],
            None => [no_proxy_large.as_ref(), no_proxy_small.as_ref()],
        };
        let before = said.into_iter().flatten().flat_map(|text| text.split(','));
        let before = before.map(str::trim).filter(|name| !name.is_empty());
        let mut names: Vec<&str> = Vec::new();
        for name in before.chain(own) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(",")
    }
}

/// Where PHP looks for settings: where it did before, and in a directory of ours. An empty place stands for PHP's own, and an
/// empty list for none.
fn scanned(before: Option<&str>, own: &str) -> String {
    match before {
        Some("") => own.to_owned(),
        Some(before) if before.split(':').any(|directory| directory == own) => before.to_owned(),
        Some(before) => format!("{before}:{own}"),
        None => format!(":{own}"),
    }
}

/// The first listener that a client with a proxy variable can use, as this machine reaches it.
fn listener(model: &Model, caller: Option<&str>) -> Option<String> {
    let caller = model.callers.iter().find(|own| Some(own.name.as_str()) == caller);
    let bound: &[Name] = caller.map_or(&[], |caller| &caller.listeners);
    let mut usable = model.listeners.proxy.iter().filter(|own| bound.is_empty() || bound.contains(&own.name));
    usable.find_map(|own| match own.at {
        ListenAt::Address(address) if !own.secure => Some(reachable(address).to_string()),
        _ => None,
    })
}

fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if !ip.is_unspecified() => address,
        ip if ip.is_ipv4() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        _ => (Ipv6Addr::LOCALHOST, address.port()).into(),
    }
}

/// Writes a file of certificates below the state directory, for all to read who may enter that; its path.
fn keep(model: &Model, name: &str, bytes: &[u8]) -> Result<String, Failed> {
    let path = std::path::absolute(model.state_dir.join(name)).unwrap_or_else(|_| model.state_dir.join(name));
    // A client may be reading it at this moment: it is replaced whole.
    let fresh: PathBuf = path.with_extension(format!("{}.new", std::process::id()));
    let write = || {
        private_file::make_directory_of(&path)?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(bytes)?;
        fs::rename(&fresh, &path)
    };
    if fs::read(&path).is_ok_and(|there| there == bytes) {
        // As it should be.
    } else if let Err(error) = write() {
        let _ = fs::remove_file(&fresh);
        return Err(Failed::Said(format!("{} cannot be written: {error}; set `state_dir`", path.display())));
    }
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Failed::Said(format!("{} is not UTF-8; set `state_dir`", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn php_looks_where_it_did_before() {
        for (before, expected) in
            [(None, ":/own"), (Some(""), "/own"), (Some("/a:"), "/a::/own"), (Some("/a:/own"), "/a:/own")]
        {
            assert_eq!(scanned(before, "/own"), expected, "{before:?}");
        }
    }
}
