//! State of the data plane, and of one worker: its connection pool, metric handles and cached snapshot.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use prometheus::Histogram;

use super::connection_limit::ConnectionLimiter;
use super::error::{Fault, ProxyError};
use super::headers::Via;
use super::io::HeadBudget;
use super::upstream::{Descriptors, Gates, Pool};
use crate::clock::Clock;
use crate::gate::{Gate, Permit, Sharing, Turn};
use crate::model::connection::Connection;
use crate::model::{Limits, Name};
use crate::snapshot::Snapshot;
use crate::tasks::Tasks;
use crate::telemetry::audit::Audit;
use crate::telemetry::metrics::{Metrics, RequestCounters};

/// State common to all workers. The request path takes no lock on it.
pub struct ProxyState {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub clock: Clock,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub audit: Audit,
    /// `keybearer-<instance>`
    pub via: Via,
    pub gates: Arc<Gates>,
    pub descriptors: Arc<Descriptors>,
    pub connection_limiter: Arc<ConnectionLimiter>,
    pub tunnels: Arc<Gate>,
    pub head_budget: Arc<HeadBudget>,
}

impl ProxyState {
    /// Acquires a tunnel permit under `limits.tunnels`.
    pub fn tunnel_permit(&self, limits: &Limits, turn: &Turn) -> Result<Permit, Fault> {
        let permits = self.descriptors.tunnels_max(limits);
        let permit = self.tunnels.enter_now(permits, Sharing::Fair, turn);
        permit
            .ok_or_else(|| ProxyError::Overloaded.because("limits.tunnels, or this caller's share of it, is exhausted"))
    }
}

/// One worker. Everything but `state` belongs to its thread.
pub struct Worker {
    pub state: Arc<ProxyState>,
    pub pool: Pool,
    snapshot: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    counters: RefCell<HashMap<Labels, Rc<Counters>>>,
}

/// Connection and profile, then caller.
type Labels = (Option<(Name, Name)>, Option<Name>);

/// Metric handles for one connection profile and one caller.
pub struct Counters {
    pub requests: RequestCounters,
    pub duration: Histogram,
}

impl Worker {
    pub fn new(state: Arc<ProxyState>, number: usize) -> Worker {
        let (gates, descriptors) = (state.gates.clone(), state.descriptors.clone());
        Worker {
            pool: Pool::new(state.tasks.clone(), gates, descriptors, number, &state.metrics),
            snapshot: RefCell::new(Cache::new(state.snapshot.clone())),
            counters: RefCell::default(),
            state,
        }
    }

    /// The configuration for one request: loaded once and kept to its end.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow_mut().load().clone()
    }

    pub fn counters(&self, connection: Option<&Connection>, caller: Option<&Name>) -> Rc<Counters> {
        let key = (connection.map(|connection| (connection.name.clone(), connection.profile.clone())), caller.cloned());
        let mut counters = self.counters.borrow_mut();
        let counters = counters.entry(key).or_insert_with(|| {
            let label = |name: Option<&Name>| name.map_or(String::new(), Name::to_string);
            let (name, profile) = connection.map(|connection| (&connection.name, &connection.profile)).unzip();
            let (connection, profile, caller) = (label(name), label(profile), label(caller));
            let metrics = &self.state.metrics;
            Rc::new(Counters {
                requests: metrics.request_counters(&connection, &profile, &caller),
                duration: metrics.duration.with_label_values(&[&connection]),
            })
        });
        counters.clone()
    }
}
