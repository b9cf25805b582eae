//! `admin`: who may use the admin API.
//!
//! Not here: the listener itself (`listener`), the manager's token file (`crate::admin`).

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Fault, Field, Keys, Sink, Spot, Unit, Words, secret, shape, value};
use crate::model::origin::Authority;
use crate::model::secret::SecretDigest;
use crate::model::{AdminAccess, Name, Role, User};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "admin", deny_unknown_fields)]
pub struct AdminFile {
    /// Users of the admin API. Absent or empty: a manager token is kept in the state directory.
    #[schemars(extend("examples" = [[{"name": "ops", "role": "operator", "token": {"env": "OPS_TOKEN"}}]]))]
    pub users: Field<shape::List<UserFile>>,
    /// Further Host values that the admin listener accepts.
    #[schemars(extend("examples" = [["keys.example"]]))]
    pub hosts: Field<shape::List<shape::Text>>,
    /// Whether connections may be changed over the API. Not built yet: only false is accepted, and files are the only
    /// source.
    #[schemars(extend("examples" = [false]))]
    pub editing: Field<shape::Boolean>,
}

impl Keys for AdminFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "user", deny_unknown_fields)]
pub struct UserFile {
    /// Unique name, recorded in the log.
    #[schemars(required, extend("examples" = ["ops"]))]
    pub name: Field<shape::Name>,
    /// viewer: reads. operator: also connects, tests, refreshes and revokes. manager: also reloads and manages stored
    /// secrets.
    #[schemars(required, extend("examples" = ["operator"]))]
    pub role: Field<shape::OneOf<Role>>,
    /// Token that the user sends as `Authorization: Bearer TOKEN`.
    #[schemars(required, extend("examples" = [{"file": "/run/secrets/ops"}]))]
    pub token: Field<shape::ComparedSecret>,
}

impl Keys for UserFile {}

impl Words for Role {
    fn words() -> Vec<(&'static str, Role)> {
        vec![("viewer", Role::Viewer), ("operator", Role::Operator), ("manager", Role::Manager)]
    }
}

/// The users of the admin API; true if any is listed, even one with a problem.
pub fn access(spot: Option<Spot<'_>>, sink: &mut Sink) -> (AdminAccess, bool) {
    let mut access = AdminAccess::default();
    let Some(unit) = spot.and_then(|spot| spot.unit::<AdminFile>(sink)) else { return (access, false) };
    let users = unit.get(unit.keys.users);
    let has_users = users.as_ref().is_some_and(Spot::has_items);
    access.users = users.map(|spot| self::users(&spot, sink)).unwrap_or_default();
    if let Some(spot) = unit.get(unit.keys.editing)
        && spot.boolean(sink) == Some(true)
    {
        spot.problem(sink, "changing connections over the API is not built yet", "write false, or remove `editing`");
    }
    for item in unit.get(unit.keys.hosts).and_then(|spot| spot.items(sink)).unwrap_or_default() {
        access.hosts.extend(item.parse(sink, host));
    }
    (access, has_users)
}

fn users(spot: &Spot<'_>, sink: &mut Sink) -> Vec<User> {
    let mut places: HashMap<Name, usize> = HashMap::new();
    let mut users: Vec<User> = Vec::new();
    for item in spot.items(sink).unwrap_or_default() {
        let Some(unit) = item.unit::<UserFile>(sink) else { continue };
        let at = unit.require(unit.keys.name, "name", "give the user a name", sink);
        let name = at.as_ref().and_then(|spot| spot.parse(sink, value::name));
        if let (Some(at), Some(name)) = (at, &name)
            && let Some(line) = places.insert(name.clone(), at.line)
        {
            let message = format!("another user is named `{name}` (line {line})");
            at.problem(sink, message, "give each its own name");
        }
        let role = unit.require(unit.keys.role, "role", "write viewer, operator or manager", sink);
        let role = role.and_then(|spot| spot.choice(sink));
        let token = token(&unit, &users, sink);
        if let (Some(name), Some(role), Some(token)) = (name, role, token) {
            users.push(User { name, role, token });
        }
    }
    users
}

/// Tokens are unique, so that the audit can tell users apart.
fn token(unit: &Unit<'_, UserFile>, users: &[User], sink: &mut Sink) -> Option<SecretDigest> {
    let spot = unit.require(unit.keys.token, "token", "write {file: PATH}, {env: NAME} or {sha256: HEX}", sink)?;
    let token = secret::compared(&spot, sink)?;
    if let Some(other) = users.iter().find(|user| user.token == token) {
        spot.problem(sink, format!("is the token of `{}` too", other.name), "give each user a token of its own");
    }
    Some(token)
}

fn host(text: &str) -> Result<Authority, Fault> {
    let hint = "write a host with or without a port, such as keys.example or keys.example:8443";
    Authority::parse(text).map_err(|error| Fault::new(format!("is no Host value: {error}"), hint))
}
