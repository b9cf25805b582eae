//! The top-level keys.

use schemars::JsonSchema;
use serde::Deserialize;

use super::admin::AdminFile;
use super::bounds::{LimitsFile, TimeoutsFile};
use super::caller::CallerFile;
use super::connection::ConnectionFile;
use super::egress::EgressFile;
use super::interception::InterceptionFile;
use super::listener::ListenersFile;
use super::observe::{AuditFile, LogFile, TracingFile};
use super::reading::{Field, Keys, shape};
use super::store::StoreFile;

/// Upper limit of `workers`.
pub const WORKERS_MAX: usize = 64;

/// The main file, or a file of a folder under `include`, which holds `connections` only. `keybearer check` also finds what
/// no schema can: files that are missing, names that are taken, routes that meet.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "top", deny_unknown_fields)]
pub struct TopFile {
    /// Addresses where callers, people and monitors reach Keybearer.
    #[schemars(extend("examples" = [{"proxy": "127.0.0.1:8080", "admin": "127.0.0.1:8081"}]))]
    pub listeners: Field<ListenersFile>,
    /// Threads that serve requests. Absent: the cores that it may use, at most 4.
    #[schemars(range(min = 1, max = WORKERS_MAX), extend("examples" = [2]))]
    pub workers: Field<shape::Integer>,
    /// When /readyz turns 200.
    #[schemars(extend("examples" = [{"wait_for_tokens": "5s"}]))]
    pub readiness: Field<ReadinessFile>,
    /// Folders whose `*.yaml` hold further `connections`.
    #[schemars(extend("examples" = [["connections/"]]))]
    pub include: Field<shape::List<shape::Text>>,
    /// Host names and the addresses they are dialled at, `IP` or `IP:PORT`, in place of DNS. A name that is listed here
    /// may be private.
    #[schemars(extend("examples" = [{"api.acme.test": "127.0.0.1:9443"}]))]
    pub hosts: Field<shape::Map<shape::Text>>,
    /// PEM files of CA certificates beside the platform's, or of servers' own certificates. They may vouch for every
    /// host, so prefer the narrower `trust` of a connection or a route.
    #[schemars(extend("examples" = [["extra-ca.pem"]]))]
    pub trust: Field<shape::List<shape::Text>>,
    /// Where the sealed store, its key and the admin token are kept. Absent: `$STATE_DIRECTORY`, else
    /// /var/lib/keybearer if it is writable, else ~/.local/state/keybearer.
    #[schemars(extend("examples" = ["/var/lib/keybearer"]))]
    pub state_dir: Field<shape::Text>,
    /// Which hosts may be reached.
    #[schemars(extend("examples" = [{"unmatched": "deny"}]))]
    pub egress: Field<EgressFile>,
    /// Callers that may use the proxy. None listed: every program that reaches its listener.
    #[schemars(extend("examples" = [[{"name": "billing", "secret": {"env": "BILLING_SECRET"}}]]))]
    pub callers: Field<shape::List<CallerFile>>,
    /// Where tokens are kept.
    #[schemars(extend("default" = {"embedded": {}}))]
    pub store: Field<StoreFile>,
    /// Who may use the API.
    #[schemars(extend(
        "examples" = [{"users": [{"name": "ops", "role": "operator", "token": {"env": "OPS_TOKEN"}}]}]
    ))]
    pub admin: Field<AdminFile>,
    /// Timeouts of the proxy.
    #[schemars(extend("examples" = [{"token_wait": "10s", "idle": "5m"}]))]
    pub timeouts: Field<TimeoutsFile>,
    /// Limits of the proxy.
    #[schemars(extend("examples" = [{"tunnels": 4096, "replay_body": "64KiB"}]))]
    pub limits: Field<LimitsFile>,
    /// What is logged, and how. Logs go to stderr.
    #[schemars(extend("examples" = [{"level": "info", "format": "auto", "requests": "errors"}]))]
    pub log: Field<LogFile>,
    /// Audit records: which caller or user used, was denied, refreshed or changed what.
    #[schemars(extend("examples" = [{"to": {"file": "/var/log/keybearer/audit.jsonl"}}]))]
    pub audit: Field<AuditFile>,
    /// Export of traces. Absent: none; trace context that callers send is forwarded.
    #[schemars(extend("examples" = [{"otlp": "http://collector:4318", "sample": 0.01}]))]
    pub tracing: Field<TracingFile>,
    /// Where people's browsers reach /connect and /oauth/callback. Absent: http://localhost with the port of the
    /// `public` listener, else of the `admin` one, if it is on loopback.
    #[schemars(extend("examples" = ["https://keys.acme.test"]))]
    pub public_url: Field<shape::Url>,
    /// The CA with which HTTPS inside CONNECT tunnels is intercepted, so that its requests get tokens; callers must
    /// trust it. Absent: tunnels are relayed unread.
    #[schemars(extend("examples" = [{"ca_certificate": "ca.pem", "ca_key": {"file": "ca-key.pem"}}]))]
    pub interception: Field<InterceptionFile>,
    /// OAuth clients, and the requests that get their tokens.
    #[schemars(extend(
        "examples" = [
            [
                {
                    "name": "crm",
                    "client_id": "billing",
                    "client_secret": {"env": "CRM_SECRET"},
                    "token_url": "https://login.acme.test/token",
                    "routes": [{"host": "api.acme.test"}]
                }
            ]
        ]
    ))]
    pub connections: Field<shape::List<ConnectionFile>>,
}

impl Keys for TopFile {
    const NOT_BUILT: &'static [&'static str] = &["providers", "require_header"];
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "readiness", deny_unknown_fields)]
pub struct ReadinessFile {
    /// How long /readyz waits for the first token responses; 0s: not at all.
    #[schemars(extend("default" = "5s"))]
    pub wait_for_tokens: Field<shape::Duration>,
}

impl Keys for ReadinessFile {}
