//! `keybearer exec` and `env`: the variables that make common programs use the proxy and trust its CA.
//!
//! Invariants: without `interception` no trust variable is set; certificates are written to files in the state
//! directory, keys never; a secret appears only in the proxy URL, where programs expect it.

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

/// Exit codes of shells: the command was not found, or cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

#[derive(Debug, Args)]
pub struct ExecArguments {
    #[command(flatten)]
    proxy: ProxyArguments,
    /// Command and arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct EnvArguments {
    #[command(flatten)]
    proxy: ProxyArguments,
    /// Output format; docker: an --env-file, k8s: the `env` of a container
    #[arg(long, value_enum, default_value_t)]
    shell: Shell,
}

#[derive(Debug, Args)]
struct ProxyArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Caller in the configuration, whose secret goes into the proxy URL
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,
    /// Address of the proxy [default: the first plain HTTP listener of the configuration]
    #[arg(long, value_name = "HOST:PORT")]
    proxy: Option<String>,
    /// Hosts that bypass the proxy, in addition to this machine [default: $NO_PROXY and $no_proxy]
    #[arg(long, value_name = "HOSTS")]
    no_proxy: Option<String>,
    #[command(flatten)]
    inherited: Inherited,
}

/// Existing values of variables that are extended here.
#[derive(Debug, Args)]
struct Inherited {
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

/// Why the variables cannot be computed.
enum Failed {
    /// The problems of the configuration have been printed.
    Misconfigured,
    Other(String),
}

type Variables = Vec<(&'static str, String)>;

/// Replaces this process by the command, so that its exit code is ours.
pub fn exec(arguments: &ExecArguments) -> ExitCode {
    let variables = match arguments.proxy.variables() {
        Ok(variables) => variables,
        Err(failed) => return failed.exit(),
    };
    let Some((program, rest)) = arguments.command.split_first() else { return ExitCode::from(MISCONFIGURED) };
    let error = std::process::Command::new(program).args(rest).envs(variables).exec();
    eprintln!("{} cannot be run: {error}", Path::new(program).display());
    ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE })
}

pub fn env(arguments: &EnvArguments) -> ExitCode {
    let written = arguments.proxy.variables().and_then(|variables| {
        let mut text = String::new();
        for (name, value) in variables {
            let line = arguments.shell.line(name, &value);
            text += &line.ok_or_else(|| {
                Failed::Other(format!("{name} contains a line break, which this format cannot express"))
            })?;
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
            Failed::Other(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        }
    }
}

impl ProxyArguments {
    fn variables(&self) -> Result<Variables, Failed> {
        let path = self.config.path();
        let opener = || Arc::new(StoreOpener::new(Clock::system(), Tasks::default()));
        let refused = |problems| {
            eprintln!("{problems}");
            super::refuse(&path, &problems);
            Failed::Misconfigured
        };
        let Loaded { model, .. } = config::load(&path, opener(), &[]).map_err(refused)?;
        let mut proxy = self.proxy_url(&model)?;
        if let Some(caller) = &self.caller {
            let name = model.callers.iter().map(|configured| &configured.name).find(|name| name.as_str() == caller);
            let name =
                name.ok_or_else(|| Failed::Other(format!("no caller is named `{caller}` in the configuration")))?;
            if let Some(secret) = config::caller_secret(&path, name, opener()).map_err(refused)? {
                // Allocated once: growth would leave unwiped copies behind.
                let mut password = Zeroizing::new(String::with_capacity(3 * secret.expose().len()));
                password.extend(percent_encoded(secret.expose()));
                let set = proxy.set_username(name.as_str()).and_then(|()| proxy.set_password(Some(&password)));
                set.map_err(|()| Failed::Other("the proxy URL cannot contain the caller's secret".to_owned()))?;
            }
        }
        let no_proxy = self.no_proxy(&model);
        let url = proxy.as_str().trim_end_matches('/').to_owned();
        let mut variables: Variables =
            ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"].map(|name| (name, url.clone())).into();
        variables.extend(["NO_PROXY", "no_proxy"].map(|name| (name, no_proxy.clone())));
        variables.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
        let mut java = java::proxy_options(&proxy, &no_proxy);
        if let Some(interception) = &model.interception {
            let chain = &interception.chain[..];
            let platform = tls::platform_roots();
            if platform.is_empty() {
                eprintln!("warning: the system has no roots; programs will trust only the interception CA");
            }
            let all = || chain.iter().chain(&platform);
            let ca = write_state_file(&model, "interception-ca.pem", tls::to_pem(chain).as_bytes())?;
            let bundle = write_state_file(&model, "interception-bundle.pem", tls::to_pem(all()).as_bytes())?;
            let store = write_state_file(&model, "interception-bundle.jks", &java::trust_store(all()))?;
            // These replace the roots that a program trusts by default.
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
            // wget has a variable only for a settings file; the user's own file is read in addition.
            let wgetrc =
                write_state_file(&model, "interception-wgetrc", format!("ca_certificate = {bundle}\n").as_bytes())?;
            if let Some(before) = self.inherited.system_wgetrc.as_ref().filter(|before| **before != wgetrc) {
                eprintln!("warning: SYSTEM_WGETRC can name only one file: {wgetrc} replaces {before}");
            }
            variables.push(("SYSTEM_WGETRC", wgetrc));
            // PHP's curl has no variable either.
            let ini = format!("curl.cainfo = \"{bundle}\"\nopenssl.cafile = \"{bundle}\"\n");
            let ini = write_state_file(&model, "interception-php/keybearer.ini", ini.as_bytes())?;
            let php = php_scan_dirs(self.inherited.php_ini_scan_dir.as_deref(), ini.trim_end_matches("/keybearer.ini"));
            variables.push(("PHP_INI_SCAN_DIR", php));
            variables.extend(["NODE_EXTRA_CA_CERTS", "DENO_CERT"].map(|name| (name, ca.clone())));
            java += &java::trust_store_options(&store);
        }
        let before = self.inherited.java_tool_options.as_deref().map(|before| format!("{before} ")).unwrap_or_default();
        variables.push(("JAVA_TOOL_OPTIONS", format!("{before}{java}")));
        Ok(variables)
    }

    fn proxy_url(&self, model: &Model) -> Result<Url, Failed> {
        let failed = |text: &str| Failed::Other(text.to_owned());
        let authority = match &self.proxy {
            Some(authority) => authority.clone(),
            None => listener(model, self.caller.as_deref()).ok_or_else(|| {
                failed("no proxy listener accepts plain HTTP over TCP from this caller; set --proxy HOST:PORT")
            })?,
        };
        let url = Url::parse(&format!("http://{authority}/"))
            .ok()
            .filter(|url| url.path() == "/" && url.username().is_empty());
        match url {
            Some(url) if url.port() == Some(0) => {
                Err(failed("the listener's port is chosen when it starts; set --proxy HOST:PORT"))
            }
            Some(url) => Ok(url),
            None => Err(failed("--proxy must be HOST:PORT")),
        }
    }

    /// The inherited or given hosts, and this machine under each name that no route uses.
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
        let local = [("localhost", "localhost"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")];
        let local = local.iter().filter(|(_, host)| !routed.iter().any(|routed| routed == host)).map(|(name, _)| *name);
        let Inherited { no_proxy_large, no_proxy_small, .. } = &self.inherited;
        let given = match &self.no_proxy {
            Some(given) => [Some(given), None],
            None => [no_proxy_large.as_ref(), no_proxy_small.as_ref()],
        };
        let before = given.into_iter().flatten().flat_map(|text| text.split(','));
        let before = before.map(str::trim).filter(|name| !name.is_empty());
        let mut names: Vec<&str> = Vec::new();
        for name in before.chain(local) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(",")
    }
}

/// PHP_INI_SCAN_DIR with our directory appended. An empty entry means PHP's default directory, an empty value means
/// none.
fn php_scan_dirs(before: Option<&str>, ours: &str) -> String {
    match before {
        Some("") => ours.to_owned(),
        Some(before) if before.split(':').any(|directory| directory == ours) => before.to_owned(),
        Some(before) => format!("{before}:{ours}"),
        None => format!(":{ours}"),
    }
}

/// The first listener usable through a proxy variable, as reachable from this machine.
fn listener(model: &Model, caller: Option<&str>) -> Option<String> {
    let caller = model.callers.iter().find(|configured| Some(configured.name.as_str()) == caller);
    let bound: &[Name] = caller.map_or(&[], |caller| &caller.listeners);
    let mut usable = model.listeners.proxy.iter().filter(|listener| bound.is_empty() || bound.contains(&listener.name));
    usable.find_map(|listener| match listener.at {
        ListenAt::Address(address) if !listener.secure => Some(reachable(address).to_string()),
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

/// Writes a world-readable file in the state directory, whose own mode limits access. Returns the path.
fn write_state_file(model: &Model, name: &str, bytes: &[u8]) -> Result<String, Failed> {
    let path = std::path::absolute(model.state_dir.join(name)).unwrap_or_else(|_| model.state_dir.join(name));
    // Replaced atomically: a program may be reading it.
    let fresh: PathBuf = path.with_extension(format!("{}.new", std::process::id()));
    let write = || {
        private_file::make_directory_of(&path)?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(bytes)?;
        fs::rename(&fresh, &path)
    };
    if fs::read(&path).is_ok_and(|present| present == bytes) {
        // Up to date.
    } else if let Err(error) = write() {
        let _ = fs::remove_file(&fresh);
        return Err(Failed::Other(format!("{} cannot be written: {error}; set `state_dir`", path.display())));
    }
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Failed::Other(format!("{} is not UTF-8; set `state_dir`", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn php_keeps_its_other_scan_directories() {
        for (before, expected) in
            [(None, ":/own"), (Some(""), "/own"), (Some("/a:"), "/a::/own"), (Some("/a:/own"), "/a:/own")]
        {
            assert_eq!(php_scan_dirs(before, "/own"), expected, "{before:?}");
        }
    }
}
