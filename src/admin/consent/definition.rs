//! A connection's current definition, with what connecting an account needs.

use std::sync::Arc;

use crate::model::connection::Connection;
use crate::model::token::TokenKey;
use crate::oauth::TokenEndpoint;
use crate::snapshot::BoundConnection;
use crate::token::Slots;
use crate::token::slot::TokenSlot;

#[derive(Clone)]
pub struct Definition {
    pub connection: Arc<Connection>,
    pub endpoint: Arc<TokenEndpoint>,
    pub slots: Slots,
}

impl Definition {
    pub fn of(bound: &BoundConnection, key: &TokenKey) -> Option<Definition> {
        let definition = bound.definition(key.profile.as_str())?;
        let (endpoint, slots) = definition.endpoint.clone().zip(definition.slots.clone())?;
        Some(Definition { connection: definition.connection.clone(), endpoint, slots })
    }

    pub fn slot(&self, key: &TokenKey) -> Option<Arc<TokenSlot>> {
        // A shared token has no subject.
        self.slots.slot(key.subject.as_ref()).filter(|slot| slot.key == *key)
    }

    /// The host on which a person logs in, if the configuration reveals it.
    pub fn login_host(&self) -> &str {
        let endpoints = &self.connection.endpoints;
        endpoints.authorization.as_ref().unwrap_or(&endpoints.server).host_str().unwrap_or_default()
    }
}
