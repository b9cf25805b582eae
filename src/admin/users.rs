//! The users of the admin API in force, and the one who sends a request.
//!
//! Not here: how a request proves its user (`auth`, `session`), the file of the manager's token (`token_file`).
//! Invariants: every user's token is compared, in constant time; the answer to a wrong token is delayed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use axum::http::{HeaderMap, StatusCode, header};

use super::problem::Problem;
use super::token_file;
use crate::model::secret::SecretDigest;
use crate::model::{AdminAccess, Model, Name, Role, User};
use crate::telemetry::audit::Person;

const FILE: &str = "admin-token";
/// The user whom the token file stands for.
const HOLDER: &str = "admin-token";
/// Delay of the response to a wrong token.
const AFTER_WRONG_TOKEN: Duration = Duration::from_millis(100);
pub const USER_UNKNOWN: &str = "user_unknown";

/// The users and host names in force; a reload replaces them.
#[derive(Debug)]
pub struct Access {
    state_dir: PathBuf,
    current: ArcSwap<AdminAccess>,
}

/// The user who sends a request, and from where.
#[derive(Debug, Clone)]
pub struct Asker {
    pub name: Name,
    pub role: Role,
    pub from: SocketAddr,
}

impl Asker {
    pub fn person(&self) -> Person {
        Person { user: Some(self.name.clone()), from: Some(self.from) }
    }
}

impl Access {
    pub fn new(model: &Model) -> Access {
        let access = Access { state_dir: model.state_dir.clone(), current: ArcSwap::default() };
        access.follow(model);
        access
    }

    /// Takes over the users of `model`. Without any, the holder of the token file is a manager.
    pub fn follow(&self, model: &Model) {
        let mut access = model.admin.clone();
        if access.users.is_empty() {
            access.users.extend(self.holder());
        }
        self.current.store(Arc::new(access));
    }

    fn holder(&self) -> Option<User> {
        let path = self.state_dir.join(FILE);
        match token_file::read_or_make(&path) {
            Ok(token) => {
                tracing::info!(path = %path.display(), "no users are configured; the admin token is in this file");
                Some(User { name: Name::parse(HOLDER)?, role: Role::Manager, token: token.digest() })
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error,
                    "no admin token can be kept, so no user may use the API; set state_dir, or list admin.users");
                None
            }
        }
    }

    /// The user whose token the request carries.
    pub fn bearer(&self, headers: &HeaderMap, from: SocketAddr) -> Option<Asker> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (value, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
        let (scheme, token) = value.split_once(' ')?;
        let user = self.holder_of(token.trim()).filter(|_| scheme.eq_ignore_ascii_case("Bearer"))?;
        Some(Asker { name: user.name, role: user.role, from })
    }

    /// The user who has this token.
    pub fn holder_of(&self, token: &str) -> Option<User> {
        let digest = SecretDigest::of(token.as_bytes());
        let access = self.current.load();
        // Compares with every user, so that the time reveals nothing.
        let found = access.users.iter().fold(None, |found, user| if user.token == digest { Some(user) } else { found });
        found.cloned()
    }

    /// The configured users and host names.
    pub fn current(&self) -> Guard<Arc<AdminAccess>> {
        self.current.load()
    }

    pub fn named(&self, name: &Name) -> Option<User> {
        self.current.load().users.iter().find(|user| user.name == *name).cloned()
    }
}

/// The problem of a request that proves no user.
pub fn user_unknown() -> Problem {
    let detail = "send `Authorization: Bearer <token>` with the token of a user, or the one in <state_dir>/admin-token; \
                  a page that has signed in sends its X-CSRF-Token with every change";
    Problem::new(StatusCode::UNAUTHORIZED, USER_UNKNOWN, detail)
}

/// Slows down guessing.
pub async fn after_wrong_token() {
    tokio::time::sleep(AFTER_WRONG_TOKEN).await;
}
