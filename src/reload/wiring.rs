//! From a checked model to a snapshot in force, at the start and at every reload.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::admin::Access;
use crate::clock::Clock;
use crate::dial::{AddressPolicy, Dialer};
use crate::model::connection::Connection;
use crate::model::{Listener, Model, Name};
use crate::oauth::{ClientError, HttpClients, TokenEndpoint};
use crate::snapshot::{Snapshot, TlsProfiles};
use crate::tasks::Tasks;
use crate::telemetry::events::Events;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use crate::tls::Trust;
use crate::token::slot::TokenSlot;
use crate::token::{Slots, TokenCache};

/// Why a valid configuration could not be put into force.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    #[error("connection {connection}: {source}")]
    Client { connection: Name, source: ClientError },
    #[error("the configuration could not be read to its end; this is a bug")]
    Panicked,
}

/// What every configuration is put into force with.
pub struct Parts {
    pub clock: Clock,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub health: Arc<Health>,
    pub cache: Arc<TokenCache>,
    pub access: Arc<Access>,
    pub events: Events,
    /// Real addresses of our listeners.
    pub listeners: Vec<Listener>,
}

/// The parts, and the snapshot that is in force.
pub struct Wiring {
    pub parts: Parts,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    profiles: Mutex<TlsProfiles>,
}

impl Wiring {
    /// Puts the first configuration into force; also gives the shared slots of its active connections.
    pub fn start(parts: Parts, model: &Model) -> Result<(Wiring, Vec<Arc<TokenSlot>>), WiringError> {
        let mut profiles = TlsProfiles::default();
        let (snapshot, slots) = parts.build(model, &mut profiles, None)?;
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let shared = slots.values().filter_map(|slots| slots.shared().cloned()).collect();
        Ok((Wiring { parts, snapshot, profiles: Mutex::new(profiles) }, shared))
    }

    /// Puts another one into force. Requests that have begun end under the old one.
    pub fn apply(&self, model: &Model) -> Result<(), WiringError> {
        let mut profiles = self.profiles.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.snapshot.load_full();
        let (snapshot, slots) = self.parts.build(model, &mut profiles, Some(&before.dialer))?;
        self.snapshot.store(Arc::new(snapshot));
        self.parts.cache.retain(&slots.into_keys().collect());
        self.parts.access.follow(model);
        profiles.sweep();
        Ok(())
    }

    /// Tells what is in force.
    pub fn in_force(&self, fingerprint: &str, restart_required: bool) {
        self.parts.health.configured(fingerprint);
        self.parts.metrics.configured(self.parts.clock.now().wall, restart_required);
    }
}

impl Parts {
    fn build(
        &self,
        model: &Model,
        profiles: &mut TlsProfiles,
        dialer_before: Option<&Dialer>,
    ) -> Result<(Snapshot, HashMap<Name, Slots>), WiringError> {
        let trust = Trust::new(&model.trust);
        let dialer = Dialer::new(&model.hosts, AddressPolicy::new(model, &self.listeners), dialer_before);
        let clients = HttpClients::new(trust.clone(), Arc::new(dialer.clone()));
        // All clients first: what can fail fails before anything has changed.
        let mut endpoints = Vec::new();
        for connection in model.connections.iter().filter(|connection| connection.active) {
            let failed = |source| WiringError::Client { connection: connection.name.clone(), source };
            endpoints.push((connection, TokenEndpoint::new(connection.clone(), &clients).map_err(failed)?));
        }
        let ensure = |(connection, endpoint): (&Arc<Connection>, TokenEndpoint)| {
            (connection.name.clone(), self.cache.ensure(connection, Box::new(endpoint)))
        };
        let slots: HashMap<Name, Slots> = endpoints.into_iter().map(ensure).collect();
        let of = |connection: &Connection| slots.get(&connection.name).cloned();
        let snapshot = Snapshot::build(model, &trust, profiles, dialer, &self.metrics, of);
        Ok((snapshot, slots))
    }
}
