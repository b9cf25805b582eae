//! The gates of the origins in use: each bounds the requests in flight to one origin, over all workers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Key;
use crate::gate::Gate;
use crate::sync::lock;

/// The lock is taken when a worker begins or ceases to use an origin.
#[derive(Debug, Default)]
pub struct Gates(Mutex<HashMap<Key, Arc<Gate>>>);

impl Gates {
    pub fn of(self: &Arc<Gates>, key: Key) -> GateOf {
        let gate = self.lock().entry(key.clone()).or_default().clone();
        GateOf { gate, key, gates: self.clone() }
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Gate>>> {
        lock(&self.0)
    }
}

/// The gate of one origin; the last one to drop it removes the gate. Its permits must not outlive it.
pub struct GateOf {
    pub gate: Arc<Gate>,
    key: Key,
    gates: Arc<Gates>,
}

impl Drop for GateOf {
    fn drop(&mut self) {
        let mut gates = self.gates.lock();
        drop(std::mem::take(&mut self.gate));
        // Under the lock no waiter gets another.
        if gates.get(&self.key).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::origin::{Authority, Origin, Scheme};

    #[test]
    fn a_gate_that_no_worker_uses_is_forgotten() {
        let gates = Arc::<Gates>::default();
        let key = Key::of_origin(Origin::new(Scheme::Http, Authority::parse("a.test").unwrap()));
        let (one, two) = (gates.of(key.clone()), gates.of(key));
        assert!(Arc::ptr_eq(&one.gate, &two.gate));
        drop(one);
        assert_eq!(gates.count(), 1);
        drop(two);
        assert_eq!(gates.count(), 0);
    }
}
