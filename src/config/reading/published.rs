//! What the operator publishes for `{use: NAME}`, and where the connection that is being read would send it.
//!
//! Invariant: a published secret is sent to its hosts alone, and never in the clear. Destinations that only the
//! issuer's metadata names are checked when a request is sent (`oauth::call`).
//! Not here: the keys `secrets` and `mutual_tls_profiles` (`config::published`).

use std::collections::BTreeMap;

use crate::model::Name;
use crate::model::connection::ClientCertificate;
use crate::model::origin::Host;
use crate::model::secret::Secret;

/// The entries of `secrets` and `mutual_tls_profiles`; the value of an invalid one is `None`.
#[derive(Debug, Default)]
pub struct Published {
    pub secrets: BTreeMap<Name, Option<PublishedSecret>>,
    pub mutual_tls: BTreeMap<Name, Option<ClientCertificate>>,
}

#[derive(Debug)]
pub struct PublishedSecret {
    pub secret: Secret,
    /// The only hosts that it may be sent to.
    pub hosts: Vec<Host>,
}

/// Where the secrets of a connection, or of a part of it, are sent.
#[derive(Debug, Default)]
pub struct Destinations {
    /// The key of each URL, and its host.
    pub hosts: Vec<(&'static str, Host)>,
    /// The key that permits or uses http, with the remedy.
    pub cleartext: Option<(&'static str, &'static str)>,
    /// Hosts that every published secret read so far permits; `None`: no published secret was read.
    pub permitted: Option<Vec<Host>>,
}

impl Destinations {
    /// The first destination that is not among `hosts`.
    pub fn outside(&self, hosts: &[Host]) -> Option<&(&'static str, Host)> {
        self.hosts.iter().find(|(_, host)| !hosts.contains(host))
    }

    /// Restricts the destinations to `hosts`.
    pub fn restrict(&mut self, hosts: &[Host]) {
        match &mut self.permitted {
            Some(permitted) => permitted.retain(|host| hosts.contains(host)),
            None => self.permitted = Some(hosts.to_vec()),
        }
    }
}
