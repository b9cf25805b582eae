//! `admin`: users of the admin API, and sign-in at an OpenID provider (`sign_in`).
//!
//! Not here: the listener itself (`listener`), the manager's token file (`crate::admin`).

mod sign_in;

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Fault, Field, Keys, Keyword, NodeRef, Section, Sink, secret, shape, value};
use crate::model::origin::Authority;
use crate::model::secret::SecretDigest;
use crate::model::{AdminAccess, Listener, Name, Role, User};
use sign_in::SignInFile;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "admin", deny_unknown_fields)]
pub struct AdminFile {
    /// Users of the admin API. Absent or empty: a manager token is kept in the state directory.
    #[schemars(extend("examples" = [[{"name": "ops", "role": "operator", "token": {"env": "OPS_TOKEN"}}]]))]
    pub users: Field<shape::List<UserFile>>,
    /// Additional Host values that the admin listener accepts.
    #[schemars(extend("examples" = [["keys.example"]]))]
    pub hosts: Field<shape::List<shape::Text>>,
    /// People sign in at an OpenID provider; the callback is on the admin listener. Absent: with a user's token only.
    #[schemars(extend(
        "examples" = [{"issuer": "https://login.example.com", "client_id": "keys", "roles": {"ops": "operator"}}]
    ))]
    pub sign_in: Field<SignInFile>,
    /// Whether connections may be made and changed over the API. false: files are the only source, and definitions in
    /// the store are not in force.
    #[schemars(extend("default" = true))]
    pub editing: Field<shape::Boolean>,
}

impl Keys for AdminFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "user", deny_unknown_fields)]
pub struct UserFile {
    /// Unique name, recorded in the log.
    #[schemars(required, extend("examples" = ["ops"]))]
    pub name: Field<shape::Name>,
    /// viewer: reads. operator: also connects, tests, refreshes, revokes and switches `active`. manager: also changes
    /// connections, reloads and manages stored secrets.
    #[schemars(required, extend("examples" = ["operator"]))]
    pub role: Field<shape::OneOf<Role>>,
    /// Token that the user sends as `Authorization: Bearer TOKEN`.
    #[schemars(required, extend("examples" = [{"file": "/run/secrets/ops"}]))]
    pub token: Field<shape::ComparedSecret>,
}

impl Keys for UserFile {}

impl Keyword for Role {
    fn keywords() -> Vec<(&'static str, Role)> {
        Role::ALL.map(|role| (role.as_str(), role)).into()
    }
}

/// Reads `admin`; the flag is true if any user is listed or `sign_in` is given, even an invalid one.
pub fn access(node: Option<NodeRef<'_>>, sink: &mut Sink) -> (AdminAccess, bool) {
    let mut access = AdminAccess::default();
    let Some(section) = node.and_then(|node| node.section::<AdminFile>(sink)) else { return (access, false) };
    let users = section.get(section.keys.users);
    let has_users = users.as_ref().is_some_and(NodeRef::has_items);
    access.users = users.map(|node| self::users(&node, sink)).unwrap_or_default();
    access.editing = section.get(section.keys.editing).is_none_or(|node| node.boolean(sink).unwrap_or_default());
    for item in section.get(section.keys.hosts).and_then(|node| node.items(sink)).unwrap_or_default() {
        access.hosts.extend(item.parse(sink, host));
    }
    let sign_in = section.get(section.keys.sign_in);
    access.sign_in = sign_in.as_ref().and_then(|node| sign_in::sign_in(node, sink));
    (access, has_users || sign_in.is_some())
}

/// Checks `sign_in` against the admin listener.
pub fn check_sign_in(access: &AdminAccess, listener: &Listener, node: &NodeRef<'_>, sink: &mut Sink) {
    sign_in::check_redirect(access.sign_in.as_ref(), listener, node, sink);
}

fn users(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<User> {
    let mut lines: HashMap<Name, usize> = HashMap::new();
    let mut users: Vec<User> = Vec::new();
    for item in node.items(sink).unwrap_or_default() {
        let Some(section) = item.section::<UserFile>(sink) else { continue };
        let at = section.require(section.keys.name, "name", "give the user a name", sink);
        let name = at.as_ref().and_then(|node| node.parse(sink, value::name));
        if let (Some(at), Some(name)) = (at, &name)
            && let Some(line) = lines.insert(name.clone(), at.line)
        {
            let message = format!("another user is named `{name}` (line {line})");
            at.problem(sink, message, "give each user its own name");
        }
        let role = section.require(section.keys.role, "role", "write viewer, operator or manager", sink);
        let role = role.and_then(|node| node.choice(sink));
        let token = token(&section, &users, sink);
        if let (Some(name), Some(role), Some(token)) = (name, role, token) {
            users.push(User { name, role, token });
        }
    }
    users
}

/// Reads a user's token. Tokens are unique, so that the audit can tell users apart.
fn token(section: &Section<'_, UserFile>, users: &[User], sink: &mut Sink) -> Option<SecretDigest> {
    let node =
        section.require(section.keys.token, "token", "write {file: PATH}, {env: NAME} or {sha256: HEX}", sink)?;
    let token = secret::compared(&node, sink)?;
    if let Some(other) = users.iter().find(|user| user.token == token) {
        node.problem(sink, format!("is also the token of `{}`", other.name), "give each user its own token");
    }
    Some(token)
}

fn host(text: &str) -> Result<Authority, Fault> {
    let hint = "write a host with or without a port, such as keys.example or keys.example:8443";
    Authority::parse(text).map_err(|error| Fault::new(format!("is not a valid Host value: {error}"), hint))
}
