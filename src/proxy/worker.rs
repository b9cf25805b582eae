//! What one worker holds: its pool, its handles on the metrics, its view of the snapshot. Nothing here is shared.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use prometheus::Histogram;

use super::error::{Fault, ProxyError};
use super::headers::Via;
use super::io::HeadBudget;
use super::seats::Seats;
use super::upstream::{Descriptors, Gates, Pool};
use crate::clock::Clock;
use crate::gate::{Gate, Permit, Sharing, Turn};
use crate::model::connection::Connection;
use crate::model::{Limits, Name};
use crate::snapshot::Snapshot;
use crate::tasks::Tasks;
use crate::telemetry::audit::Audit;
use crate::telemetry::metrics::{Metrics, RequestCounters};

/// What all workers share; none of it is locked on the way of a request.
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
    /// Of callers' connections.
    pub seats: Arc<Seats>,
    pub tunnels: Arc<Gate>,
    pub head_budget: Arc<HeadBudget>,
}

impl ProxyState {
    /// A place below `limits.tunnels`.
    pub fn tunnel(&self, limits: &Limits, turn: &Turn) -> Result<Permit, Fault> {
        let permits = self.descriptors.tunnels_max(limits);
        let permit = self.tunnels.enter_now(permits, Sharing::Fair, turn);
        permit.ok_or_else(|| ProxyError::Overloaded.because("limits.tunnels is reached, or this caller's share of it"))
    }
}

pub struct Worker {
    pub shared: Arc<ProxyState>,
    pub pool: Pool,
    snapshot: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    counters: RefCell<HashMap<Labels, Rc<Counters>>>,
}

/// Connection with profile, and caller, where there is one.
type Labels = (Option<(Name, Name)>, Option<Name>);

/// Ready-made handles for one profile of a connection and one caller.
pub struct Counters {
    pub requests: RequestCounters,
    pub duration: Histogram,
}

impl Worker {
    pub fn new(shared: Arc<ProxyState>, number: usize) -> Worker {
        let (gates, descriptors) = (shared.gates.clone(), shared.descriptors.clone());
        Worker {
            pool: Pool::new(shared.tasks.clone(), gates, descriptors, number, &shared.metrics),
            snapshot: RefCell::new(Cache::new(shared.snapshot.clone())),
            counters: RefCell::default(),
            shared,
        }
    }

    /// The configuration for one request: loaded once, kept to its end.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow_mut().load().clone()
    }

    pub fn counters(&self, connection: Option<&Connection>, caller: Option<&Name>) -> Rc<Counters> {
        let key = (connection.map(|own| (own.name.clone(), own.profile.clone())), caller.cloned());
        let mut counters = self.counters.borrow_mut();
        let counters = counters.entry(key).or_insert_with(|| {
            let label = |name: Option<&Name>| name.map_or(String::new(), Name::to_string);
            let (name, profile) = connection.map(|own| (&own.name, &own.profile)).unzip();
            let (connection, profile, caller) = (label(name), label(profile), label(caller));
            let metrics = &self.shared.metrics;
            Rc::new(Counters {
                requests: metrics.request_counters(&connection, &profile, &caller),
                duration: metrics.duration.with_label_values(&[&connection]),
            })
        });
        counters.clone()
    }
}
