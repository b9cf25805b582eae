//! The names of keys in Redis.
//!
//! They contain connection, profile and subject in plaintext, and no secret. All keys of one connection share its name
//! as a hash tag (in braces), so that a cluster keeps them in one slot.

use crate::model::Name;
use crate::model::token::TokenKey;
use crate::store::record;

pub struct Names {
    prefix: String,
}

impl Names {
    pub fn new(prefix: &str) -> Names {
        Names { prefix: prefix.to_owned() }
    }

    fn of(&self, kind: &str, key: &TokenKey) -> String {
        let subject = key.subject.as_ref().map_or("", |subject| subject.as_str());
        let between = if key.subject.is_some() { "/" } else { "" };
        format!("{}{{{}}}:{kind}:{}{between}{subject}", self.prefix, key.connection, key.profile)
    }

    pub fn token(&self, key: &TokenKey) -> String {
        self.of("token", key)
    }

    pub fn lease(&self, key: &TokenKey) -> String {
        self.of("lease", key)
    }

    /// The holder that is about to spend the refresh token.
    pub fn spending(&self, key: &TokenKey) -> String {
        self.of("spending", key)
    }

    /// The version of a token that was removed on purpose.
    pub fn removed(&self, key: &TokenKey) -> String {
        self.of("removed", key)
    }

    /// The backoff that all replicas observe.
    pub fn backoff(&self, key: &TokenKey) -> String {
        self.of("put-off", key)
    }

    /// The members of all tokens of a connection, sorted.
    pub fn index(&self, connection: &Name) -> String {
        format!("{}{{{connection}}}:tokens", self.prefix)
    }

    /// All keys of one token, in the order of the scripts: lease, token, index, spending, removed, backoff.
    pub fn keys_of(&self, key: &TokenKey) -> [String; 6] {
        let (lease, token, index) = (self.lease(key), self.token(key), self.index(&key.connection));
        [lease, token, index, self.spending(key), self.removed(key), self.backoff(key)]
    }

    /// The names of all connections with records.
    pub fn connections(&self) -> String {
        format!("{}connections", self.prefix)
    }

    pub fn secrets(&self) -> String {
        format!("{}{{secrets}}:secrets", self.prefix)
    }

    /// The versions of secrets that were removed on purpose.
    pub fn removed_secrets(&self) -> String {
        format!("{}{{secrets}}:removed-secrets", self.prefix)
    }

    /// The catalog of definitions.
    pub fn catalog(&self) -> String {
        format!("{}{{definitions}}:catalog", self.prefix)
    }

    /// The revisions of definitions.
    pub fn definitions(&self) -> String {
        format!("{}{{definitions}}:definitions", self.prefix)
    }

    /// The revisions that no catalog names yet, by the time of their writing.
    pub fn pending_definitions(&self) -> String {
        format!("{}{{definitions}}:pending", self.prefix)
    }

    pub fn note(&self, name: &str) -> String {
        format!("{}{{notes}}:note:{name}", self.prefix)
    }

    /// The names of the notes in one namespace, by expiry.
    pub fn notes_of(&self, namespace: &str) -> String {
        format!("{}{{notes}}:notes:{namespace}", self.prefix)
    }

    /// The namespaces with notes, by the expiry of their last note.
    pub fn note_namespaces(&self) -> String {
        format!("{}{{notes}}:note-shares", self.prefix)
    }

    /// A key that is never set.
    pub fn probe(&self) -> String {
        format!("{}probe", self.prefix)
    }

    /// The check record, which identifies the sealing key.
    pub fn check_record(&self) -> String {
        format!("{}mark", self.prefix)
    }

    /// The channel of change notifications.
    pub fn notifications(&self) -> String {
        format!("{}news", self.prefix)
    }
}

/// A record's name within its connection; members sort like keys.
pub fn member(key: &TokenKey) -> Vec<u8> {
    record::name_of(key).split_off(record::prefix_of(&key.connection).len())
}

/// The inverse of [`member`].
pub fn key_of(connection: &Name, member: &[u8]) -> Option<TokenKey> {
    record::key_of(&[&record::prefix_of(connection), member].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::token::Subject;

    #[test]
    fn redis_keys_are_readable_and_members_round_trip() {
        let (names, crm) = (Names::new("kb:"), Name::parse("crm").unwrap());
        let shared = TokenKey::of_connection(crm.clone());
        let of_subject = TokenKey::of_subject(crm.clone(), Subject::parse("ann@a.test").unwrap());
        assert_eq!(names.token(&shared), "kb:{crm}:token:default");
        assert_eq!(names.lease(&of_subject), "kb:{crm}:lease:default/ann@a.test");
        assert_eq!(names.index(&crm), "kb:{crm}:tokens");
        for key in [shared, of_subject] {
            assert_eq!(key_of(&crm, &member(&key)), Some(key));
        }
    }
}
