//! Gates of the origins in use: each bounds the requests in flight to one origin, across all workers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::time::timeout;

use super::super::error::{Fault, ProxyError};
use super::{CheckoutContext, Key};
use crate::gate::{Bounds, Full, Gate, Permit, Sharing};
use crate::model::Limits;
use crate::sync::lock;

/// Locked only when a worker starts or stops using an origin.
#[derive(Debug, Default)]
pub struct Gates(Mutex<HashMap<Key, Arc<Gate>>>);

impl Gates {
    pub fn get(self: &Arc<Gates>, key: Key) -> OriginGate {
        let gate = self.lock().entry(key.clone()).or_default().clone();
        OriginGate { gate, key, gates: self.clone() }
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Gate>>> {
        lock(&self.0)
    }
}

/// Handle to the gate of one origin; dropping the last handle removes the gate. Its permits must not outlive it.
pub struct OriginGate {
    pub gate: Arc<Gate>,
    key: Key,
    gates: Arc<Gates>,
}

impl Drop for OriginGate {
    fn drop(&mut self) {
        let mut gates = self.gates.lock();
        drop(std::mem::take(&mut self.gate));
        // The lock keeps other workers from cloning the gate now.
        if gates.get(&self.key).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(&self.key);
        }
    }
}

/// Waits for a permit of the origin's gate, for at most `timeouts.connect`.
pub async fn wait_for_permit(ctx: CheckoutContext<'_>, gate: &Arc<Gate>) -> Result<Permit, Fault> {
    let bounds = origin_bounds(&ctx.snapshot.limits);
    match timeout(ctx.snapshot.timeouts.connect, gate.enter(bounds, ctx.turn)).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(Full)) => Err(ProxyError::Overloaded.because("limits.queued_per_upstream is reached")),
        Err(_) => Err(ProxyError::Overloaded.because("limits.per_upstream is reached, and no permit became free")),
    }
}

pub fn origin_bounds(limits: &Limits) -> Bounds {
    Bounds { permits: limits.per_upstream, queued: limits.queued_per_upstream, sharing: Sharing::Fair }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::origin::{Authority, Origin, Scheme};

    #[test]
    fn a_gate_that_no_worker_uses_is_removed() {
        let gates = Arc::<Gates>::default();
        let key = Key::of_origin(Origin::new(Scheme::Http, Authority::parse("a.test").unwrap()));
        let (one, two) = (gates.get(key.clone()), gates.get(key));
        assert!(Arc::ptr_eq(&one.gate, &two.gate));
        drop(one);
        assert_eq!(gates.count(), 1);
        drop(two);
        assert_eq!(gates.count(), 0);
    }
}
