//! The token endpoints that revoke the tokens of one connection, and the definitions that the tokens were granted under.

use std::collections::HashMap;
use std::sync::Arc;

use crate::admin::Admin;
use crate::admin::revoke::{Granting, granting};
use crate::model::Name;
use crate::model::connection::Connection;
use crate::model::token::TokenKey;
use crate::oauth::TokenEndpoint;
use crate::snapshot::{BoundConnection, BoundDefinition, Snapshot};

pub struct Issuers {
    snapshot: Arc<Snapshot>,
    /// One for each profile, the default first.
    issuers: Vec<Issuer>,
    /// What the tokens of each profile may have been granted under.
    granting: HashMap<Name, Vec<Granting>>,
}

/// A definition with its token endpoint, or why there is none.
struct Issuer {
    connection: Arc<Connection>,
    endpoint: Result<Arc<TokenEndpoint>, String>,
}

impl Issuers {
    pub fn new(snapshot: Arc<Snapshot>, bound: &BoundConnection) -> Issuers {
        let clients = snapshot.clients.separate();
        let issuer = |BoundDefinition { connection, endpoint, .. }: &BoundDefinition| {
            // An inactive connection has no endpoint.
            let build = || TokenEndpoint::new(connection.clone(), &clients).map(Arc::new);
            let endpoint = endpoint.clone().map_or_else(build, Ok).map_err(|error| error.to_string());
            Issuer { connection: connection.clone(), endpoint }
        };
        let issuers = bound.definitions.iter().map(issuer).collect();
        Issuers { snapshot, issuers, granting: HashMap::new() }
    }

    /// The definition and the endpoint that revoke a token; those of the default profile if the connection no longer has
    /// the token's profile. A token with another identity is not sent there (`token::acquire::revoke`).
    ///
    /// # Errors
    /// Why there is no endpoint.
    pub fn of(&self, key: &TokenKey) -> Result<(&Arc<Connection>, &Arc<TokenEndpoint>), String> {
        let Issuer { connection, endpoint } = self.issuer(key).ok_or("the connection has no definition")?;
        endpoint.as_ref().map(|endpoint| (connection, endpoint)).map_err(String::clone)
    }

    fn issuer(&self, key: &TokenKey) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| issuer.connection.profile == key.profile).or(self.issuers.first())
    }

    /// Finds what the tokens of this key's profile may have been granted under.
    pub fn prepare(&mut self, admin: &Admin, key: &TokenKey) {
        if self.granting.contains_key(&key.profile) {
            return;
        }
        let current = self.issuer(key).map(|issuer| issuer.connection.clone());
        let is_other = |other: &Connection| other.name != key.connection;
        let found = current.map(|current| granting(admin, &self.snapshot, (&current, key), is_other));
        self.granting.insert(key.profile.clone(), found.unwrap_or_default());
    }

    /// What a token may have been granted under, once it is prepared.
    pub fn granting(&self, key: &TokenKey) -> &[Granting] {
        self.granting.get(&key.profile).map(Vec::as_slice).unwrap_or_default()
    }
}
