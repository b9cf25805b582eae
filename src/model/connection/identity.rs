//! The identity of a token: the settings that it was granted under, other than its origins.

use aws_lc_rs::digest;

use super::{Connection, DefinedIn, ServerProxy};

/// A digest of the settings that a token was granted under, other than its origins. A stored token with a different
/// identity is never sent.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    digest: [u8; 32],
    /// A digest of the settings that revocation depends on: server, client, grant, owner and [`Connection::travel`].
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

    /// The digest of the settings that revocation depends on; `None` in records of older versions.
    pub fn grant_bytes(&self) -> Option<&[u8; 32]> {
        self.grant.as_ref()
    }

    /// True if the settings that revocation depends on are known to be equal.
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
    /// Digests token URL (or issuer), client, grant, scopes in any order, audience, resource, owner and
    /// [`Connection::travel`], but not secrets, margins, callers or paths. The digest is stored: its input may change
    /// only with the store's format.
    pub fn identity(&self) -> Identity {
        let mut scopes: Vec<&str> = self.scopes.iter().map(String::as_str).collect();
        scopes.sort_unstable();
        let scopes = scopes.join(" ");
        let travel = self.travel();
        let travel: Vec<_> = travel.iter().map(Option::as_deref).collect();
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
        let digest = |parts: &[Option<&str>]| sha256(&[parts, &travel].concat());
        Identity { digest: digest(&parts), grant: Some(digest(&grant)) }
    }

    /// What else decides where a stored token is sent, in which form, and who sees it, for a definition that was made
    /// over the API; empty if nothing does. It is empty for a file, whose author may send its tokens anywhere.
    pub fn travel(&self) -> Vec<Option<String>> {
        if let DefinedIn::File(_) = self.written.defined_in {
            return Vec::new();
        }
        let endpoints = &self.endpoints;
        // Without a token URL, the issuer is already the server.
        let issuer = endpoints.issuer.clone().filter(|_| endpoints.token.is_some());
        let proxy = match &self.authorization_server.proxy {
            ServerProxy::Inherit => None,
            ServerProxy::Direct => Some("none".to_owned()),
            ServerProxy::Own(proxy) => Some(proxy.url.to_string()),
        };
        // As written, so that the digest does not depend on how the program represents them; secrets are masked.
        let written: serde_json::Value = serde_json::from_str(&self.written.json).unwrap_or_default();
        let as_written = |key: &str| written.get(key).map(serde_json::Value::to_string);
        let travel = [
            endpoints.revocation.as_ref().map(|url| url.to_string()),
            issuer,
            proxy,
            endpoints.allow_cleartext.then(|| "allow_cleartext".to_owned()),
            self.script.as_ref().map(|script| script.text.clone()),
            as_written("token_request"),
            as_written("token_response"),
        ];
        if travel.iter().any(Option::is_some) { travel.to_vec() } else { Vec::new() }
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

    use std::sync::Arc;

    use super::*;
    use crate::model::connection::{ClientAuth, ForwardProxy, Grant, Revision, ScriptSource, WrittenDefinition};
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

    #[test]
    fn over_the_api_an_identity_covers_where_and_how_a_stored_token_travels() {
        let of = |defined_in: &DefinedIn, json: &str, change: fn(&mut Connection)| {
            let mut connection = Connection::sample("crm");
            let (defined_in, json) = (defined_in.clone(), json.to_owned());
            connection.written = Arc::new(WrittenDefinition { defined_in, json, lines: Vec::new() });
            change(&mut connection);
            connection.identity()
        };
        let (file, api) = (Connection::sample("crm").written.defined_in.clone(), DefinedIn::Api(Revision::random()));
        let unchanged = of(&file, "{}", |_| {});
        let changes: [fn(&mut Connection); 6] = [
            |c| c.endpoints.revocation = Some("https://evil.test/revoke".parse().unwrap()),
            |c| c.endpoints.issuer = Some("https://evil.test".to_owned()),
            |c| c.endpoints.allow_cleartext = true,
            |c| c.script = Some(ScriptSource { location: "s".to_owned(), text: "throw 1".to_owned() }),
            |c| c.authorization_server.proxy = ServerProxy::Direct,
            |c| {
                let url = "http://evil.test:1".parse().unwrap();
                let proxy = ForwardProxy { url, credentials: None, trust: None, may_be_private: false };
                c.authorization_server.proxy = ServerProxy::Own(proxy);
            },
        ];
        let with_keys = [r#"{"token_request":{"encoding":"query"}}"#, r#"{"token_response":{"error":"/a"}}"#];
        let all = |defined_in: &DefinedIn| -> Vec<Identity> {
            let changed = changes.iter().map(|change| of(defined_in, "{}", *change));
            changed.chain(with_keys.iter().map(|json| of(defined_in, json, |_| {}))).collect()
        };
        for (index, identity) in all(&file).into_iter().enumerate() {
            assert!(identity == unchanged && identity.is_of_same_grant(&unchanged), "in a file, change {index}");
        }
        let over_the_api = all(&api);
        for (index, identity) in over_the_api.iter().enumerate() {
            assert!(*identity != unchanged && !identity.is_of_same_grant(&unchanged), "over the API, change {index}");
            assert_eq!(over_the_api.iter().filter(|other| *other == identity).count(), 1, "change {index}");
        }
        let other_keys = of(&api, r#"{"comments":"new","token_params":{"a":"b"}}"#, |_| {});
        assert_eq!(other_keys, unchanged, "nothing but the token URL decides it");
    }
}
