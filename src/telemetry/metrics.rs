//! The Prometheus metrics, each with its name, its labels and its help.
//!
//! Holds: label values are names from the configuration or closed lists, never text from a request. The hot path keeps
//! handles ([`RequestCounters`]) and looks no label up.

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use tracing_appender::non_blocking::ErrorCounter;

use crate::model::time::WallTime;

/// All metrics of one program; handles are cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    pub errors: IntCounterVec,
    pub in_flight: IntGauge,
    pub duration: HistogramVec,
    pub overhead: Histogram,
    pub token_wait: Histogram,
    injections: IntCounterVec,
    pub stripped: IntCounterVec,
    pub token_requests: IntCounterVec,
    pub token_request_duration: HistogramVec,
    pub token_expiry: GaugeVec,
    pub refresh_token_expiry: GaugeVec,
    pub tokens: IntGaugeVec,
    pub replays: IntCounterVec,
    pub upstream_connections: IntGaugeVec,
    certificate_expiry: GaugeVec,
    pub store_operations: IntCounterVec,
    reloads: IntCounterVec,
    last_reload_successful: IntGauge,
    last_reload_success: Gauge,
    restart_required: IntGauge,
}

impl Metrics {
    /// # Errors
    /// Only if two metrics had one name, which a test rules out.
    pub fn new() -> Result<Metrics, Error> {
        let registry = Registry::new();
        let overhead = [25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3];
        let waits = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(&registry, Histogram::with_opts(options)?)
        };
        let histograms = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(&registry, HistogramVec::new(options, labels)?)
        };
        let metrics = Metrics {
            requests: counter(
                "keybearer_requests_total",
                "Requests, by who answered: the upstream or the proxy itself.",
                &["connection", "profile", "caller", "origin", "status_class"],
            )?,
            errors: counter(
                "keybearer_errors_total",
                "Requests that the proxy itself answered with an error.",
                &["connection", "code"],
            )?,
            in_flight: register(
                &registry,
                IntGauge::new(
                    "keybearer_requests_in_flight",
                    "Requests between their head and the end of their answer.",
                )?,
            )?,
            duration: histograms(
                "keybearer_request_duration_seconds",
                "From the head of a request to the end of its answer.",
                &waits,
                &["connection"],
            )?,
            overhead: histogram(
                "keybearer_request_overhead_seconds",
                "Time the proxy itself adds before an answer begins, waits for tokens and upstreams apart.",
                &overhead,
            )?,
            token_wait: histogram(
                "keybearer_token_wait_seconds",
                "How long requests waited for a token, of those that had to.",
                &waits,
            )?,
            injections: counter(
                "keybearer_injections_total",
                "Requests to routes with a token, by what became of them.",
                &["connection", "profile", "outcome"],
            )?,
            stripped: counter(
                "keybearer_stripped_total",
                "Credentials of callers that routes with `strip` removed from requests.",
                &["connection"],
            )?,
            token_requests: counter(
                "keybearer_token_requests_total",
                "Requests to token endpoints.",
                &["connection", "profile", "grant", "outcome"],
            )?,
            token_request_duration: histograms(
                "keybearer_token_request_duration_seconds",
                "Duration of requests to token endpoints.",
                &waits,
                &["connection"],
            )?,
            token_expiry: register(
                &registry,
                GaugeVec::new(
                    Opts::new("keybearer_token_expiry_timestamp_seconds", "When the current access token expires."),
                    &["connection", "profile"],
                )?,
            )?,
            refresh_token_expiry: register(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "keybearer_refresh_token_expiry_timestamp_seconds",
                        "When the current refresh token is expected to expire, as far as anybody has said.",
                    ),
                    &["connection", "profile"],
                )?,
            )?,
            tokens: gauge("keybearer_tokens", "Tokens, by state.", &["connection", "profile", "state"])?,
            replays: counter(
                "keybearer_replays_total",
                "Requests that were sent again because the upstream had rejected their token.",
                &["connection", "outcome"],
            )?,
            upstream_connections: gauge("keybearer_upstream_connections", "Open upstream connections.", &["state"])?,
            certificate_expiry: register(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "keybearer_certificate_expiry_timestamp_seconds",
                        "When the first certificate of a use ends.",
                    ),
                    &["use", "name"],
                )?,
            )?,
            store_operations: counter(
                "keybearer_store_operations_total",
                "Operations on the store of tokens and secrets.",
                &["operation", "outcome"],
            )?,
            reloads: counter("keybearer_config_reloads_total", "Attempts to reload the configuration.", &["outcome"])?,
            last_reload_successful: register(
                &registry,
                IntGauge::new(
                    "keybearer_config_last_reload_successful",
                    "1: the configuration as it stands is in force.",
                )?,
            )?,
            last_reload_success: register(
                &registry,
                Gauge::new(
                    "keybearer_config_last_reload_success_timestamp_seconds",
                    "When the configuration in force was loaded.",
                )?,
            )?,
            restart_required: register(
                &registry,
                IntGauge::new(
                    "keybearer_config_restart_required",
                    "1: some change takes effect only after a restart.",
                )?,
            )?,
            registry: registry.clone(),
        };
        for outcome in ["applied", "refused"] {
            metrics.reloads.with_label_values(&[outcome]);
        }
        let build = gauge("keybearer_build_info", "What is running.", &["version", "revision", "rustc"])?;
        let revision = env!("KEYBEARER_REVISION");
        let rustc = env!("KEYBEARER_RUSTC");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision, rustc]).set(1);
        for state in ["active", "idle"] {
            metrics.upstream_connections.with_label_values(&[state]);
        }
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// The counters of one connection and caller; "" where there is none.
    pub fn request_counters(&self, connection: &str, profile: &str, caller: &str) -> RequestCounters {
        let class = |origin, class| self.requests.with_label_values(&[connection, profile, caller, origin, class]);
        let origin = |origin| CLASSES.map(|name| class(origin, name));
        RequestCounters { upstream: origin("upstream"), proxy: origin("proxy") }
    }

    pub fn injection_counters(&self, connection: &str, profile: &str) -> InjectionCounters {
        let outcome = |outcome| self.injections.with_label_values(&[connection, profile, outcome]);
        InjectionCounters {
            injected: outcome("injected"),
            kept: outcome("kept"),
            forwarded: outcome("forwarded"),
            refused: outcome("refused"),
        }
    }

    /// Exports the lines that the log has dropped.
    ///
    /// # Errors
    /// If it was called before.
    pub fn watch_log(&self, dropped: ErrorCounter) -> Result<(), Error> {
        self.registry.register(Box::new(DroppedLines { zero: DroppedLines::counter()?, dropped }))
    }

    /// A configuration is in force from `wall` on.
    pub fn configured(&self, wall: WallTime, restart_required: bool) {
        self.last_reload_successful.set(1);
        self.last_reload_success.set(wall.as_secs_f64());
        self.restart_required.set(restart_required.into());
    }

    /// The certificates of the configuration in force: the use, the name of what uses them ("" for the whole program), and
    /// when the first of them ends.
    pub fn certificates(&self, found: &[(CertificateUse, String, WallTime)]) {
        self.certificate_expiry.reset();
        for (r#use, name, expiry) in found {
            self.certificate_expiry.with_label_values(&[r#use.as_str(), name]).set(expiry.as_secs_f64());
        }
    }

    pub fn reload_applied(&self) {
        self.reloads.with_label_values(&["applied"]).inc();
    }

    /// The configuration as it stands is refused; the one before stays in force.
    pub fn reload_refused(&self) {
        self.reloads.with_label_values(&["refused"]).inc();
        self.last_reload_successful.set(0);
    }

    /// Prometheus text format 0.0.4.
    pub fn render(&self) -> Result<Vec<u8>, Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// The log's own counter, read at each scrape.
struct DroppedLines {
    /// Carries the description.
    zero: IntCounter,
    dropped: ErrorCounter,
}

impl DroppedLines {
    fn counter() -> Result<IntCounter, Error> {
        let help = "Log lines dropped because stderr took none and the queue before it was full.";
        IntCounter::new("keybearer_log_lines_dropped_total", help)
    }
}

impl Collector for DroppedLines {
    fn desc(&self) -> Vec<&Desc> {
        self.zero.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(total) = DroppedLines::counter() else { return Vec::new() };
        total.inc_by(self.dropped.dropped_lines() as u64);
        total.collect()
    }
}

/// What a certificate of the configuration is used for: the label `use`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateUse {
    /// Vouches for every host.
    Trust,
    /// Vouches for the authorization server of a connection.
    AuthorizationServerTrust,
    /// Vouches for the upstreams of a connection.
    UpstreamTrust,
    /// Says who we are.
    MutualTls,
    /// Says who we are to callers.
    Listener,
    /// Vouches for callers.
    ClientCa,
    /// Vouches, to callers, for the hosts whose tunnels are opened.
    Interception,
}

impl CertificateUse {
    fn as_str(self) -> &'static str {
        match self {
            CertificateUse::Trust => "trust",
            CertificateUse::AuthorizationServerTrust => "authorization_server_trust",
            CertificateUse::UpstreamTrust => "upstream_trust",
            CertificateUse::MutualTls => "mutual_tls",
            CertificateUse::Listener => "listener",
            CertificateUse::ClientCa => "client_ca",
            CertificateUse::Interception => "interception",
        }
    }
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Ready-made handles: `requests_total` of one connection and caller.
#[derive(Debug)]
pub struct RequestCounters {
    upstream: [IntCounter; 5],
    proxy: [IntCounter; 5],
}

impl RequestCounters {
    pub fn count(&self, from_upstream: bool, status: http::StatusCode) {
        let counters = if from_upstream { &self.upstream } else { &self.proxy };
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        counters[class].inc();
    }
}

/// Ready-made handles: `injections_total` of one connection and profile.
#[derive(Debug)]
pub struct InjectionCounters {
    pub injected: IntCounter,
    pub kept: IntCounter,
    pub forwarded: IntCounter,
    pub refused: IntCounter,
}

#[cfg(test)]
mod tests;
