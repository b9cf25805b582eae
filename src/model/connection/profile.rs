//! The definitions of one connection: itself, and a profile for each other way to ask its server for a token.
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

    /// Those of the connection itself and of its profiles.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        std::iter::once(&self.grant).chain(self.profiles.iter().map(|own| &own.grant))
    }

    /// Can only a person give some first token?
    pub fn needs_person(&self) -> bool {
        self.grants().any(Grant::needs_person)
    }

    /// The key of this definition's token; without a subject of the one for everybody.
    pub fn token_key(&self, subject: Option<Subject>) -> TokenKey {
        TokenKey { connection: self.name.clone(), profile: self.profile.clone(), subject }
    }
}

impl Route {
    /// May it carry a token of this profile?
    pub fn carries(&self, profile: &Name) -> bool {
        match &self.profile {
            Some(stated) => stated == profile,
            // A request may name any profile where none is stated.
            None => self.only_when_named || *profile == default_profile(),
        }
    }
}
