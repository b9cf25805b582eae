//! The identity of a token: the settings that it was granted under, other than its origins.

use aws_lc_rs::digest;

use super::Connection;

/// A digest of the settings that a token was granted under, other than its origins. A stored token with a different
/// identity is never sent.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    digest: [u8; 32],
    /// A digest of the settings that revocation depends on: server, client, grant and owner.
    grant: Option<[u8; 32]>,
}

impl Identity {
    /// An identity without a grant digest. `digest` is SHA-256.
    pub fn new(digest: [u8; 32]) -> Identity {
        Identity { digest, grant: None }
    }

    /// Sets the value of [`Identity::grant_bytes`]; records of older versions have none.
    pub fn with_grant(self, grant: Option<[u8; 32]>) -> Identity {
        Identity { grant, ..self }
    }

    /// The digest of everything that the token belongs to.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The digest of server, client, grant and owner; `None` in records of older versions.
    pub fn grant_bytes(&self) -> Option<&[u8; 32]> {
        self.grant.as_ref()
    }

    /// True if server, client, grant and owner are known to be equal.
    pub fn is_of_same_grant(&self, other: &Identity) -> bool {
        self.grant.is_some() && self.grant == other.grant
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Identity {}

impl Connection {
    /// Digests token URL (or issuer), client, grant, scopes in any order, audience, resource and owner, but not
    /// secrets, margins, callers or paths. The digest is stored: its input may change only with the store's format.
    pub fn identity(&self) -> Identity {
        let mut scopes: Vec<&str> = self.scopes.iter().map(String::as_str).collect();
        scopes.sort_unstable();
        let scopes = scopes.join(" ");
        let parts = [
            Some(self.endpoints.server.as_str()),
            Some(&self.client_id),
            Some(self.grant.as_str()),
            Some(&scopes),
            self.audience.as_deref(),
            self.resource.as_deref(),
            self.grant.owner(),
        ];
        let grant = [parts[0], parts[1], parts[2], self.grant_type.as_deref(), parts[6]];
        Identity { digest: sha256(&parts), grant: Some(sha256(&grant)) }
    }
}

fn sha256(parts: &[Option<&str>]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        // The length prefix keeps different lists from having the same encoding.
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        context.update(&length.to_be_bytes());
        context.update(part.unwrap_or_default().as_bytes());
    }
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(context.finish().as_ref());
    sha256
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::connection::{ClientAuth, Grant};
    use crate::model::secret::Secret;

    #[test]
    fn an_identity_covers_exactly_the_settings_of_a_grant() {
        let changed = |change: fn(&mut Connection)| {
            let mut connection = Connection::sample("crm");
            connection.scopes = vec!["a".to_owned(), "b".to_owned()];
            change(&mut connection);
            connection.identity()
        };
        let password = |username: &str, password: &str| Grant::Password {
            username: username.to_owned(),
            password: Secret::new(password),
        };
        let unchanged = changed(|_| {});
        assert_eq!(changed(|c| c.scopes.reverse()), unchanged);
        assert_eq!(changed(|c| c.client_auth = ClientAuth::Body(vec![Secret::new("x")])), unchanged);
        assert_eq!(changed(|c| c.lifetimes.keep_warm = Some(Duration::from_secs(1))), unchanged);
        for other in [
            changed(|c| c.endpoints.server = "https://as.test/other".parse().unwrap()),
            changed(|c| c.client_id = "other".to_owned()),
            changed(|c| c.grant = Grant::AuthorizationCode),
            changed(|c| c.scopes.truncate(1)),
            changed(|c| c.audience = Some(String::new())),
            changed(|c| c.resource = Some(String::new())),
        ] {
            assert_ne!(other, unchanged);
        }
        let rescoped = changed(|c| c.scopes.truncate(1));
        assert!(rescoped.is_of_same_grant(&unchanged) && unchanged.is_of_same_grant(&rescoped));
        assert!(
            !rescoped.with_grant(None).is_of_same_grant(&unchanged.with_grant(None)),
            "unknown grants are not equal"
        );
        for other in [
            changed(|c| c.endpoints.server = "https://as.test/other".parse().unwrap()),
            changed(|c| c.client_id = "other".to_owned()),
            changed(|c| c.grant = Grant::AuthorizationCode),
            changed(|c| c.grant_type = Some("own".to_owned())),
        ] {
            assert!(!other.is_of_same_grant(&unchanged));
        }
        let mut connection = Connection::sample("crm");
        let mut of = |grant| {
            connection.grant = grant;
            connection.identity()
        };
        assert_eq!(of(password("ann", "x")), of(password("ann", "y")));
        assert_ne!(of(password("ann", "x")), of(password("bob", "x")));
    }
}
