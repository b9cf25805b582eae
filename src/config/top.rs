//! The top-level keys.

use schemars::JsonSchema;
use serde::Deserialize;

use super::admin::AdminFile;
use super::bounds::{LimitsFile, TimeoutsFile};
use super::caller::CallerFile;
use super::connection::{ConnectionFile, MutualTlsFile};
use super::egress::EgressFile;
use super::interception::InterceptionFile;
use super::listener::ListenersFile;
use super::observe::{AuditFile, LogFile, TracingFile};
use super::published::PublishedSecretFile;
use super::reading::{Field, Keys, shape};
use super::store::StoreFile;

/// Upper limit of `workers`.
pub const WORKERS_MAX: usize = 64;

/// The main file, or a file in a directory under `include`, which holds `connections` only. `keybearer check` also
/// finds what no schema can: missing files, duplicate names, conflicting routes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "top", deny_unknown_fields)]
pub struct TopFile {
    /// Listen addresses: the proxy, the admin API, telemetry and the public consent pages.
    #[schemars(extend("examples" = [{"proxy": "127.0.0.1:8080", "admin": "127.0.0.1:8081"}]))]
    pub listeners: Field<ListenersFile>,
    /// Data-plane worker threads. Absent: the number of available cores, at most 4.
    #[schemars(range(min = 1, max = WORKERS_MAX), extend("examples" = [2]))]
    pub workers: Field<shape::Integer>,
    /// When /readyz reports ready.
    #[schemars(extend("examples" = [{"wait_for_tokens": "5s"}]))]
    pub readiness: Field<ReadinessFile>,
    /// Directories whose `*.yaml` files contain additional `connections`.
    #[schemars(extend("examples" = [["connections/"]]))]
    pub include: Field<shape::List<shape::Text>>,
    /// Host names and the addresses to dial for them, `IP` or `IP:PORT`, instead of DNS. A name listed here may have a
    /// private address.
    #[schemars(extend("examples" = [{"api.acme.test": "127.0.0.1:9443"}]))]
    pub hosts: Field<shape::Map<shape::Text>>,
    /// PEM files of CA certificates to trust in addition to the platform's roots, or of servers' own certificates. They
    /// are trusted for every host; prefer the narrower `trust` of a connection or a route.
    #[schemars(extend("examples" = [["extra-ca.pem"]]))]
    pub trust: Field<shape::List<shape::Text>>,
    /// Directory of the sealed store, its key and the admin token. Absent: `$STATE_DIRECTORY`, else /var/lib/keybearer
    /// if it is writable, else ~/.local/state/keybearer.
    #[schemars(extend("examples" = ["/var/lib/keybearer"]))]
    pub state_dir: Field<shape::Text>,
    /// Which hosts may be reached, and through which egress proxy.
    #[schemars(extend("examples" = [{"unmatched": "deny"}]))]
    pub egress: Field<EgressFile>,
    /// Programs that may use the proxy. Absent or empty: every program that can reach its listener.
    #[schemars(extend("examples" = [[{"name": "billing", "secret": {"env": "BILLING_SECRET"}}]]))]
    pub callers: Field<shape::List<CallerFile>>,
    /// Where tokens are stored.
    #[schemars(extend("default" = {"embedded": {}}))]
    pub store: Field<StoreFile>,
    /// Access to the admin API.
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
    /// What is logged, and in which format. Logs go to stderr.
    #[schemars(extend("examples" = [{"level": "info", "format": "auto", "requests": "errors"}]))]
    pub log: Field<LogFile>,
    /// Audit records: each use, denial, refresh and change, with the caller or user behind it.
    #[schemars(extend("examples" = [{"to": {"file": "/var/log/keybearer/audit.jsonl"}}]))]
    pub audit: Field<AuditFile>,
    /// Trace export. Absent: no spans are exported; trace context from callers is still forwarded.
    #[schemars(extend("examples" = [{"otlp": "http://collector:4318", "sample": 0.01}]))]
    pub tracing: Field<TracingFile>,
    /// Base URL at which browsers reach /connect and /oauth/callback. Absent: http://localhost, or https with `tls`, and
    /// the port of the `public` listener, else of the `admin` listener, if that listener is on loopback.
    #[schemars(extend("examples" = ["https://keys.acme.test"]))]
    pub public_url: Field<shape::Url>,
    /// CA that signs the certificates for HTTPS inside CONNECT tunnels, so that requests in them get tokens; callers
    /// must trust it. Absent: TLS in tunnels is relayed untouched.
    #[schemars(extend("examples" = [{"ca_certificate": "ca.pem", "ca_key": {"file": "ca-key.pem"}}]))]
    pub interception: Field<InterceptionFile>,
    /// Secrets that connections may use by name, `{use: NAME}`; meant for definitions made over the API, which hold no
    /// references of their own.
    #[schemars(extend(
        "propertyNames" = {"pattern": "^[a-z0-9][a-z0-9_-]{0,62}$"},
        "examples" = [{"crm": {"file": "/run/secrets/crm", "hosts": ["login.acme.test"]}}]
    ))]
    pub secrets: Field<shape::Map<PublishedSecretFile>>,
    /// Client certificates that connections may use by name, `mutual_tls: NAME`.
    #[schemars(extend(
        "propertyNames" = {"pattern": "^[a-z0-9][a-z0-9_-]{0,62}$"},
        "examples" = [{"partner": {"certificate": "partner.pem", "key": {"file": "/run/secrets/partner.key"}}}]
    ))]
    pub mutual_tls_profiles: Field<shape::Map<MutualTlsFile>>,
    /// OAuth clients and the requests that carry their tokens.
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
    /// How long /readyz waits for the first token responses. 0s: it does not wait.
    #[schemars(extend("default" = "5s"))]
    pub wait_for_tokens: Field<shape::Duration>,
}

impl Keys for ReadinessFile {}
