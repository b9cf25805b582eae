//! The definitions of a connection: the connection itself, and its profiles.
//!
//! Not here: which requests name a profile (`router`).

use std::sync::Arc;

use super::{Connection, Grant, Route};
use crate::model::Name;
use crate::model::token::{Subject, TokenKey, default_profile};

impl Connection {
    /// The connection itself, then its profiles.
    pub fn definitions(self: &Arc<Connection>) -> impl Iterator<Item = &Arc<Connection>> {
        std::iter::once(self).chain(&self.profiles)
    }

    /// The grants of the connection itself and of its profiles.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        std::iter::once(&self.grant).chain(self.profiles.iter().map(|profile| &profile.grant))
    }

    /// True if the first token of some definition needs a person.
    pub fn needs_person(&self) -> bool {
        self.grants().any(Grant::needs_person)
    }

    /// The key of this definition's token; without a subject, of the shared token.
    pub fn token_key(&self, subject: Option<Subject>) -> TokenKey {
        TokenKey { connection: self.name.clone(), profile: self.profile.clone(), subject }
    }
}

impl Route {
    /// True if the route may inject a token of this profile.
    pub fn carries(&self, profile: &Name) -> bool {
        match &self.profile {
            Some(stated) => stated == profile,
            // A request may name any profile if the route states none.
            None => self.only_when_named || *profile == default_profile(),
        }
    }
}
