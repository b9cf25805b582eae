//! Users of the admin API, and the Host values that it accepts.

use super::Name;
use super::origin::Authority;
use super::secret::SecretDigest;

/// `admin`; without users, the token in the token file is a manager's.
#[derive(Debug, Clone, Default)]
pub struct AdminAccess {
    pub users: Vec<User>,
    /// Host values accepted in addition to the listener's address; one without a port matches any port.
    pub hosts: Vec<Authority>,
}

/// A person or a program that uses the admin API.
#[derive(Debug, Clone)]
pub struct User {
    pub name: Name,
    pub role: Role,
    pub token: SecretDigest,
}

/// The rights of a user; each role includes the previous ones.
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
