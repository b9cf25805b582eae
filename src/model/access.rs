//! Who may use the admin API, and under which names it answers.

use super::Name;
use super::origin::Authority;
use super::secret::SecretDigest;

/// `admin:` without users, whoever holds the token file is a manager.
#[derive(Debug, Clone, Default)]
pub struct AdminAccess {
    pub users: Vec<User>,
    /// Host values that are accepted beside the listener's own address; without a port: at any.
    pub hosts: Vec<Authority>,
}

/// A person or program that asks the admin API.
#[derive(Debug, Clone)]
pub struct User {
    pub name: Name,
    pub role: Role,
    pub token: SecretDigest,
}

/// What a user may do: each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Also tests and refreshes.
    Operator,
    /// Also reloads.
    Manager,
}

impl Role {
    /// The name in the configuration and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Manager => "manager",
        }
    }
}
