//! Users of the admin API, sign-in at an OpenID provider, and the Host values that the admin listener accepts.

use std::time::Duration;

use url::Url;

use super::Name;
use super::connection::Pointer;
use super::origin::Authority;
use super::secret::{Secret, SecretDigest};

/// `admin`; without users, the token in the token file is a manager's.
#[derive(Debug, Clone)]
pub struct AdminAccess {
    pub users: Vec<User>,
    /// Host values accepted in addition to the listener's address; one without a port matches any port.
    pub hosts: Vec<Authority>,
    /// `None`: people sign in with a user's token only.
    pub sign_in: Option<SignIn>,
    /// False: files are the only source of connections.
    pub editing: bool,
}

impl Default for AdminAccess {
    fn default() -> AdminAccess {
        AdminAccess { users: Vec::new(), hosts: Vec::new(), sign_in: None, editing: true }
    }
}

/// `admin.sign_in`: people sign in at an OpenID provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignIn {
    pub issuer: String,
    pub client_id: String,
    /// `None`: a public client.
    pub client_secret: Option<Secret>,
    /// Includes `openid`.
    pub scopes: Vec<String>,
    /// Where the ID token has the person's groups.
    pub claim: Pointer,
    /// The role of each group.
    pub roles: Vec<(String, Role)>,
    /// `None`: derived from the admin listener, which is on loopback.
    pub redirect_url: Option<Url>,
    /// Lifetime of a session.
    pub session: Duration,
}

impl SignIn {
    /// The highest role of a member of these groups.
    pub fn role<'a>(&self, groups: impl IntoIterator<Item = &'a str>) -> Option<Role> {
        let role = |group| self.roles.iter().find(|(known, _)| known == group).map(|(_, role)| *role);
        groups.into_iter().filter_map(role).max()
    }

    /// Identifies what decides a person's role. A session ends when it changes.
    pub fn digest(&self) -> SecretDigest {
        let text = format!("{:?}", (&self.issuer, &self.client_id, &self.claim, &self.roles));
        SecretDigest::of(text.as_bytes())
    }
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
    /// Also connects, tests, refreshes, revokes, and switches `active`.
    Operator,
    /// Also changes connections, reloads, and manages stored secrets.
    Manager,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Viewer, Role::Operator, Role::Manager];

    /// The name in the configuration and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Manager => "manager",
        }
    }
}
