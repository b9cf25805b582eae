//! Real client libraries, run as their users run them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use super::{node, peers_path, python};

/// Timeout of a script.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a script of `tests/peers` with nothing but `environment`; returns the JSON that it prints.
pub async fn run_script(program: PathBuf, script: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Value {
    let mut client = Command::new(program);
    client.arg(peers_path(script)).args(arguments).env_clear().env("PYTHONDONTWRITEBYTECODE", "1");
    client.envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(SCRIPT_TIMEOUT, client.output())
        .await
        .expect("exits before the timeout")
        .expect("the command starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{script}: {error}: {stderr}"))
}

/// A client library, run with only proxy variables in the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    Requests,
    Httpx,
    Fetch,
    Undici,
    Axios,
    Curl,
}

impl ClientKind {
    pub const ALL: [Self; 6] = [Self::Requests, Self::Httpx, Self::Fetch, Self::Undici, Self::Axios, Self::Curl];

    /// The environment variable that makes this client trust a CA file, for `run_client_with`.
    pub fn ca_variable(self) -> &'static str {
        match self {
            Self::Requests => "REQUESTS_CA_BUNDLE",
            Self::Httpx => "SSL_CERT_FILE",
            Self::Fetch | Self::Undici | Self::Axios => "NODE_EXTRA_CA_CERTS",
            Self::Curl => "CURL_CA_BUNDLE",
        }
    }

    fn command(self) -> Command {
        let (program, script) = match self {
            Self::Requests => (python(), "clients/requests_loop.py"),
            Self::Httpx => (python(), "clients/httpx_loop.py"),
            Self::Fetch => (node(), "clients/fetch_loop.mjs"),
            Self::Undici => (node(), "clients/undici_loop.mjs"),
            Self::Axios => (node(), "clients/axios_loop.mjs"),
            Self::Curl => (PathBuf::from("bash"), "clients/curl_loop.sh"),
        };
        let mut command = Command::new(program);
        command.arg(peers_path(script));
        command
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientReport {
    /// Requests with a 2xx response.
    pub ok: u64,
    pub failed: u64,
    pub statuses: BTreeMap<String, u64>,
    pub first_error: Option<String>,
}

/// Requests `url` in a loop through `proxy_url`, at least once.
pub async fn run_client(kind: ClientKind, url: &str, proxy_url: &str, seconds: u32, pause_ms: u32) -> ClientReport {
    run_client_with(kind, url, proxy_url, seconds, pause_ms, &[]).await
}

/// Like `run_client`, with further environment, for example `kind.ca_variable()` for an https target.
pub async fn run_client_with(
    kind: ClientKind,
    url: &str,
    proxy_url: &str,
    seconds: u32,
    pause_ms: u32,
    environment: &[(&str, &str)],
) -> ClientReport {
    let mut command = kind.command();
    command.args([url, &seconds.to_string(), &pause_ms.to_string()]).env_clear();
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
        command.env(name, proxy_url);
    }
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("PYTHONDONTWRITEBYTECODE", "1");
    if kind == ClientKind::Fetch {
        command.env("NODE_USE_ENV_PROXY", "1");
    }
    command.envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);

    let limit = Duration::from_secs(u64::from(seconds) + 60);
    let ended = tokio::time::timeout(limit, command.output()).await;
    let output = ended.unwrap_or_else(|_| panic!("client {kind:?} did not end in {limit:?}")).expect("client starts");
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("client {kind:?} gave no report: {}", String::from_utf8_lossy(&output.stderr)));
    client_report(&report)
}

fn client_report(report: &Value) -> ClientReport {
    let statuses = report["statuses"].as_object().into_iter().flatten();
    ClientReport {
        ok: report["ok"].as_u64().expect("ok is a count"),
        failed: report["failed"].as_u64().expect("failed is a count"),
        statuses: statuses.map(|(status, count)| (status.clone(), count.as_u64().unwrap_or(0))).collect(),
        first_error: report["first_error"].as_str().map(str::to_owned),
    }
}
