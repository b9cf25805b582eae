//! Everything but the connections: from marks to the checked model, with defaults filled.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::document::Kind;
use super::file::*;
use super::problem::Sink;
use super::spot::{Field, Spot, Unit};
use super::{admin, caller, client, consent, endpoint, interception, listener, reference, store, value};
use crate::model::origin::{Host, HostError};
use crate::model::*;
use crate::telemetry::audit::openable;

const READINESS_WAIT: Duration = Duration::from_secs(5);
const WORKERS_MAX: usize = 64;
/// Counts of connections and requests: more than any machine serves.
const COUNT_MAX: usize = 10_000_000;
/// What `allow_private: true` stands for.
const PRIVATE: [&str; 7] =
    ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

/// A [`Model`] without its connections. A field that was refused has its default: the load fails anyway.
pub struct Settings {
    pub listeners: Option<Listeners>,
    pub listener_tls: HashMap<Name, ListenerTls>,
    pub admin: AdminAccess,
    pub public_url: Option<Url>,
    pub state_dir: PathBuf,
    pub store: StoreSettings,
    pub workers: usize,
    pub readiness_wait: Duration,
    pub hosts: Vec<HostOverride>,
    pub trust: Roots,
    pub egress: Egress,
    pub interception: Option<Interception>,
    pub callers: Vec<Caller>,
    /// Names of all callers, those with other problems included.
    pub caller_names: HashSet<Name>,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub log: Log,
    pub tracing: Option<Tracing>,
    pub audit: Audit,
}

pub fn settings(top: &Unit<'_, TopFile>, sink: &mut Sink) -> Settings {
    let keys = &top.keys;
    // First of all: what follows may refer to secrets that lie there.
    let state_dir = admin::state_dir(top.get(keys.state_dir), sink);
    let store = store::settings(top.get(keys.store), &state_dir, sink);
    sink.store = Some((store.clone(), state_dir.clone()));
    let listed = |spot: Spot<'_>| matches!(spot.kind(), Kind::List(items) if !items.is_empty());
    let has_callers = top.get(keys.callers).is_some_and(listed);
    let (admin, has_users) = admin::access(top.get(keys.admin), sink);
    let listeners = listener::listeners(top.get(keys.listeners), has_callers, has_users, sink);
    let (listeners, listener_tls) = listeners.unzip();
    let (callers, caller_names) = caller::callers(top.get(keys.callers), listeners.as_ref(), sink);
    Settings {
        listeners,
        listener_tls: listener_tls.unwrap_or_default(),
        admin,
        public_url: top.get(keys.public_url).and_then(|spot| spot.parse(sink, consent::public_url)),
        state_dir,
        store,
        workers: workers(top.get(keys.workers), sink),
        readiness_wait: readiness(top.get(keys.readiness), sink).unwrap_or(READINESS_WAIT),
        hosts: hosts(top.get(keys.hosts), sink),
        trust: top.get(keys.trust).and_then(|spot| reference::roots(&spot, sink)).unwrap_or_else(|| [].into()),
        egress: egress(top.get(keys.egress), sink),
        interception: top.get(keys.interception).and_then(|spot| interception::interception(&spot, sink)),
        callers,
        caller_names,
        timeouts: timeouts(top.get(keys.timeouts), sink),
        limits: limits(top.get(keys.limits), sink),
        log: log(top.get(keys.log), sink),
        tracing: tracing(top.get(keys.tracing), sink),
        audit: audit(top.get(keys.audit), sink).unwrap_or_default(),
    }
}

fn workers(spot: Option<Spot<'_>>, sink: &mut Sink) -> usize {
    let written = spot.and_then(|spot| spot.parse(sink, |text| value::integer(text, 1..=WORKERS_MAX)));
    written.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(4))
}

fn readiness(spot: Option<Spot<'_>>, sink: &mut Sink) -> Option<Duration> {
    let unit = spot?.unit::<ReadinessFile>(sink)?;
    unit.get(unit.keys.wait_for_tokens)?.parse(sink, value::duration)
}

fn hosts(spot: Option<Spot<'_>>, sink: &mut Sink) -> Vec<HostOverride> {
    let mut seen = HashMap::new();
    let mut hosts = Vec::new();
    for (key, place, value) in spot.map(|spot| spot.pairs(sink)).unwrap_or_default() {
        let host = match Host::parse(key) {
            Ok(Host::Ip(_)) => Err("is an address, not a name".to_owned()),
            Ok(host) => Ok(host),
            Err(HostError::Label) if key.contains(['*', ':', '/']) => Err("is not a name alone".to_owned()),
            Err(error) => Err(format!("is refused: {error}")),
        };
        let host = host.map_err(|why| {
            place.problem(sink, format!("the key {why}"), "write a host name: {api.acme.test: \"127.0.0.1:9443\"}")
        });
        let Some(value) = value else {
            place.problem(sink, "has no address", "write IP or IP:PORT, such as \"127.0.0.1:9443\"");
            continue;
        };
        let (Ok(host), Some((address, port))) = (host, value.parse(sink, value::dial_address)) else { continue };
        if let Some(first) = seen.insert(host.clone(), place.line) {
            place.problem(sink, format!("the same host stands in line {first}"), "keep one of the two");
        }
        hosts.push(HostOverride { host, address, port });
    }
    hosts
}

fn egress(spot: Option<Spot<'_>>, sink: &mut Sink) -> Egress {
    let mut egress = Egress::default();
    let Some(unit) = spot.and_then(|spot| spot.unit::<EgressFile>(sink)) else { return egress };
    let words = [("forward", Unmatched::Forward), ("deny", Unmatched::Deny)];
    if let Some(unmatched) = unit.get(unit.keys.unmatched).and_then(|spot| spot.choice(sink, &words)) {
        egress.unmatched = unmatched;
    }
    if let Some(spot) = unit.get(unit.keys.allow_private) {
        egress.allow_private = allow_private(&spot, sink);
    }
    if let Some(ports) = unit.get(unit.keys.connect_ports).and_then(|spot| spot.items(sink)) {
        egress.connect_ports = ports.iter().filter_map(|port| port.parse(sink, value::port)).collect();
    }
    egress.proxy = unit.get(unit.keys.proxy).and_then(|spot| client::proxy(&spot, sink));
    if let Some(spot) = unit.get(unit.keys.no_proxy) {
        if egress.proxy.is_none() && unit.get(unit.keys.proxy).is_none() {
            spot.problem(sink, "goes around a proxy that is not there", "add `proxy`, or remove this");
        }
        let items = spot.items(sink).unwrap_or_default();
        egress.no_proxy = items.iter().filter_map(|item| item.parse(sink, value::bypass)).collect();
    }
    egress
}

fn allow_private(spot: &Spot<'_>, sink: &mut Sink) -> Vec<IpNet> {
    if spot.is_list() {
        return networks(spot, sink);
    }
    match spot.boolean(sink) {
        Some(true) => PRIVATE.iter().filter_map(|network| value::network(network).ok()).collect(),
        _ => Vec::new(),
    }
}

pub fn networks(spot: &Spot<'_>, sink: &mut Sink) -> Vec<IpNet> {
    let items = spot.items(sink).unwrap_or_default();
    items.iter().filter_map(|item| item.parse(sink, value::network)).collect()
}

fn timeouts(spot: Option<Spot<'_>>, sink: &mut Sink) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let Some(unit) = spot.and_then(|spot| spot.unit::<TimeoutsFile>(sink)) else { return timeouts };
    let keys = &unit.keys;
    let all: [(Field, &mut Duration); 7] = [
        (keys.client_head, &mut timeouts.client_head),
        (keys.token_wait, &mut timeouts.token_wait),
        (keys.connect, &mut timeouts.connect),
        (keys.response_head, &mut timeouts.response_head),
        (keys.idle, &mut timeouts.idle),
        (keys.keep_alive, &mut timeouts.keep_alive),
        (keys.drain, &mut timeouts.drain),
    ];
    for (field, timeout) in all {
        if let Some(written) = unit.get(field).and_then(|spot| spot.parse(sink, value::wait)) {
            *timeout = written;
        }
    }
    timeouts
}

fn limits(spot: Option<Spot<'_>>, sink: &mut Sink) -> Limits {
    let mut limits = Limits::default();
    let Some(unit) = spot.and_then(|spot| spot.unit::<LimitsFile>(sink)) else { return limits };
    let keys = &unit.keys;
    let counts: [(Field, &mut usize); 4] = [
        (keys.downstream_connections, &mut limits.downstream_connections),
        (keys.per_upstream, &mut limits.per_upstream),
        (keys.queued_per_upstream, &mut limits.queued_per_upstream),
        (keys.tunnels, &mut limits.tunnels),
    ];
    for (field, limit) in counts {
        let parse = |text: &str| value::integer(text, 1..=COUNT_MAX);
        if let Some(written) = unit.get(field).and_then(|spot| spot.parse(sink, parse)) {
            *limit = written;
        }
    }
    let sizes = [
        (keys.head, &mut limits.head_bytes, 8 << 10..=1 << 20),
        (keys.replay_body, &mut limits.replay_body_bytes, 1..=64 << 20),
    ];
    for (field, limit, range) in sizes {
        if let Some(written) = unit.get(field).and_then(|spot| spot.parse(sink, |text| value::size(text, range))) {
            *limit = written;
        }
    }
    limits
}

fn log(spot: Option<Spot<'_>>, sink: &mut Sink) -> Log {
    let Some(unit) = spot.and_then(|spot| spot.unit::<LogFile>(sink)) else { return Log::default() };
    use LogLevel::*;
    let levels = [("error", Error), ("warn", Warn), ("info", Info), ("debug", Debug), ("trace", Trace)];
    let formats = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let requests = [("off", LogRequests::Off), ("errors", LogRequests::Errors), ("all", LogRequests::All)];
    Log {
        level: unit.get(unit.keys.level).and_then(|spot| spot.choice(sink, &levels)).unwrap_or_default(),
        format: unit.get(unit.keys.format).and_then(|spot| spot.choice(sink, &formats)).unwrap_or_default(),
        requests: unit.get(unit.keys.requests).and_then(|spot| spot.choice(sink, &requests)).unwrap_or_default(),
    }
}

fn tracing(spot: Option<Spot<'_>>, sink: &mut Sink) -> Option<Tracing> {
    let unit = spot?.unit::<TracingFile>(sink)?;
    let hint = "write the collector's URL, such as http://collector:4318";
    let collector = unit.require(unit.keys.otlp, "otlp", hint, sink);
    let collector = collector.and_then(|spot| spot.secretive(sink, endpoint::collector));
    let sample = unit.get(unit.keys.sample).map_or(Some(1.0), |spot| spot.parse(sink, value::fraction));
    Some(Tracing { collector: collector?, sample: sample? })
}

fn audit(spot: Option<Spot<'_>>, sink: &mut Sink) -> Option<Audit> {
    let unit = spot?.unit::<AuditFile>(sink)?;
    let to = unit.get(unit.keys.to)?;
    if !to.is_map() {
        return to.choice(sink, &[("off", Audit::Off), ("log", Audit::Log)]);
    }
    let unit = to.unit::<AuditToFile>(sink)?;
    let at = unit.require(unit.keys.file, "file", "write {file: PATH}", sink)?;
    let path = at.file(sink)?;
    // The program opens it later; whoever only checks makes nothing.
    if let Err(error) = openable(&path) {
        let message = format!("{} cannot be opened for writing ({error})", path.display());
        at.problem(sink, message, "give a file in a folder that Keybearer may write to");
    }
    Some(Audit::File(path))
}
