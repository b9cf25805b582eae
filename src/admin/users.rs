//! The users of the admin API, and the one who is authenticated by a request.
//!
//! Invariants: a token is compared with that of every user, in constant time; the response to a wrong token is delayed.
//! Not here: authentication of a request (`auth`, `session`), the file with the manager's token (`token_file`).

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

const TOKEN_FILE: &str = "admin-token";
/// Name of the user whose token is in that file.
const TOKEN_FILE_USER: &str = "admin-token";
/// Delay of the response to a wrong token.
const WRONG_TOKEN_DELAY: Duration = Duration::from_millis(100);
pub const USER_UNKNOWN: &str = "user_unknown";

/// The current users and host names; a reload replaces them.
#[derive(Debug)]
pub struct Access {
    state_dir: PathBuf,
    current: ArcSwap<AdminAccess>,
}

/// The user who sent a request, with the peer address.
#[derive(Debug, Clone)]
pub struct AuthenticatedUser {
    pub name: Name,
    pub role: Role,
    pub from: SocketAddr,
}

impl AuthenticatedUser {
    pub fn person(&self) -> Person {
        Person { user: Some(self.name.clone()), from: Some(self.from) }
    }
}

impl Access {
    pub fn new(model: &Model) -> Access {
        let access = Access { state_dir: model.state_dir.clone(), current: ArcSwap::default() };
        access.apply(model);
        access
    }

    /// Applies the users of `model`. Without any, the token in the token file is a manager's.
    pub fn apply(&self, model: &Model) {
        let mut access = model.admin.clone();
        if access.users.is_empty() {
            access.users.extend(self.token_file_user());
        }
        self.current.store(Arc::new(access));
    }

    fn token_file_user(&self) -> Option<User> {
        let path = self.state_dir.join(TOKEN_FILE);
        match token_file::read_or_create(&path) {
            Ok(token) => {
                tracing::info!(path = %path.display(), "no admin users configured; admin token is in this file");
                Some(User { name: Name::parse(TOKEN_FILE_USER)?, role: Role::Manager, token: token.digest() })
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error,
                    "admin token file unusable, so no user can use the API; set state_dir, or configure admin.users");
                None
            }
        }
    }

    /// The user whose token the request carries.
    pub fn bearer(&self, headers: &HeaderMap, from: SocketAddr) -> Option<AuthenticatedUser> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (value, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
        let (scheme, token) = value.split_once(' ')?;
        let user = self.user_with_token(token.trim()).filter(|_| scheme.eq_ignore_ascii_case("Bearer"))?;
        Some(AuthenticatedUser { name: user.name, role: user.role, from })
    }

    /// The user who has this token.
    pub fn user_with_token(&self, token: &str) -> Option<User> {
        let digest = SecretDigest::of(token.as_bytes());
        let access = self.current.load();
        // Compares with every user, so that timing reveals nothing.
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

/// The problem of a request without valid authentication.
pub fn user_unknown() -> Problem {
    let detail = "send `Authorization: Bearer <token>` with the token of a user, or the one in <state_dir>/admin-token; \
                  a signed-in page sends X-CSRF-Token with every request that changes something";
    Problem::new(StatusCode::UNAUTHORIZED, USER_UNKNOWN, detail)
}

/// Slows down guessing of tokens.
pub async fn delay_after_wrong_token() {
    tokio::time::sleep(WRONG_TOKEN_DELAY).await;
}
