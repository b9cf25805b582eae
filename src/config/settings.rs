//! Reads every top-level key but `connections` into the model, and fills in defaults.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::caller::Callers;
use super::reading::{NodeRef, Section, Sink, endpoint, pem, value};
use super::top::{ReadinessFile, TopFile, WORKERS_MAX};
use super::{admin, bounds, caller, egress, interception, listener, observe, state_dir, store};
use crate::model::Model;

const READINESS_WAIT: Duration = Duration::from_secs(5);

/// The settings of the top-level keys.
pub struct Settings {
    /// Without connections. An invalid field has its default: the load fails anyway.
    pub model: Model,
    /// False if `listeners` was invalid, and the model has the default ones instead.
    pub listeners_are_valid: bool,
    pub callers: Callers,
}

pub fn settings(top: &Section<'_, TopFile>, sink: &mut Sink) -> Settings {
    let keys = &top.keys;
    // First, because other keys may refer to secrets in the store.
    let state_dir = state_dir::state_dir(top.get(keys.state_dir), sink);
    let store = store::settings(top.get(keys.store), &state_dir, sink);
    sink.store = Some((store.clone(), state_dir.clone()));
    let has_callers = top.get(keys.callers).is_some_and(|node| node.has_items());
    let (admin, has_users) = admin::access(top.get(keys.admin), sink);
    let listeners = listener::listeners(top.get(keys.listeners), has_callers, has_users, sink);
    let (callers, known_callers) =
        caller::callers(top.get(keys.callers), listeners.as_ref().map(|(listeners, _)| listeners), sink);
    let listeners_are_valid = listeners.is_some();
    if let (Some(node), Some((listeners, _))) =
        (top.get(keys.admin).and_then(|node| node.value_of("sign_in")), &listeners)
    {
        admin::check_sign_in(&admin, &listeners.admin, &node, sink);
    }
    let (listeners, listener_tls) = listeners.unwrap_or_else(listener::default_listeners);
    let model = Model {
        listeners,
        listener_tls,
        admin,
        public_url: top.get(keys.public_url).and_then(|node| node.parse(sink, endpoint::public_url)),
        state_dir,
        store,
        workers: workers(top.get(keys.workers), sink),
        readiness_wait: readiness(top.get(keys.readiness), sink).unwrap_or(READINESS_WAIT),
        hosts: egress::hosts(top.get(keys.hosts), sink),
        trust: top.get(keys.trust).and_then(|node| pem::roots(&node, sink)).unwrap_or_else(|| [].into()),
        egress: egress::egress(top.get(keys.egress), sink),
        interception: top.get(keys.interception).and_then(|node| interception::interception(&node, sink)),
        callers,
        timeouts: bounds::timeouts(top.get(keys.timeouts), sink),
        limits: bounds::limits(top.get(keys.limits), sink),
        log: observe::log(top.get(keys.log), sink),
        tracing: observe::tracing(top.get(keys.tracing), sink),
        audit: observe::audit(top.get(keys.audit), sink).unwrap_or_default(),
        connections: Vec::new(),
    };
    Settings { model, listeners_are_valid, callers: known_callers }
}

fn workers(node: Option<NodeRef<'_>>, sink: &mut Sink) -> usize {
    let written = node.and_then(|node| node.parse(sink, |text| value::integer(text, 1..=WORKERS_MAX)));
    written.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(4))
}

fn readiness(node: Option<NodeRef<'_>>, sink: &mut Sink) -> Option<Duration> {
    let section = node?.section::<ReadinessFile>(sink)?;
    section.get(section.keys.wait_for_tokens)?.parse(sink, value::duration)
}
