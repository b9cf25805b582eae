//! `admin:` and `state_dir:`, and what a command must know of a configuration to ask the instance that runs it.
//!
//! Not here: the listener itself (`listener`), the token file (`admin`).

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::document::Kind;
use super::file::{AdminFile, TopFile, UserFile};
use super::problem::Sink;
use super::spot::{Spot, Unit};
use super::value::{self, Fault};
use super::{listener, reference};
use crate::model::origin::Authority;
use crate::model::secret::{Secret, SecretDigest};
use crate::model::{AdminAccess, Name, Role, User};

const SYSTEM_STATE_DIR: &str = "/var/lib/keybearer";
/// Below the home directory.
const HOME_STATE_DIR: &str = ".local/state/keybearer";
const ROLES: [(&str, Role); 3] = [("viewer", Role::Viewer), ("operator", Role::Operator), ("manager", Role::Manager)];

/// Who may use the admin API; true if anybody is listed, also where that user has a problem.
pub fn access(spot: Option<Spot<'_>>, sink: &mut Sink) -> (AdminAccess, bool) {
    let mut access = AdminAccess::default();
    let Some(unit) = spot.and_then(|spot| spot.unit::<AdminFile>(sink)) else { return (access, false) };
    let listed = |spot: &Spot<'_>| matches!(spot.kind(), Kind::List(items) if !items.is_empty());
    let users = unit.get(unit.keys.users);
    let has_users = users.as_ref().is_some_and(listed);
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
        let role = role.and_then(|spot| spot.choice(sink, &ROLES));
        let token = token(&unit, &users, sink);
        if let (Some(name), Some(role), Some(token)) = (name, role, token) {
            users.push(User { name, role, token });
        }
    }
    users
}

/// Two users with one token would be one: nobody could say who asked.
fn token(unit: &Unit<'_, UserFile>, users: &[User], sink: &mut Sink) -> Option<SecretDigest> {
    let spot = unit.require(unit.keys.token, "token", "write {file: PATH}, {env: NAME} or {sha256: HEX}", sink)?;
    let token = reference::compared(&spot, sink)?;
    if let Some(other) = users.iter().find(|user| user.token == token) {
        spot.problem(sink, format!("is the token of `{}` too", other.name), "give each user a token of its own");
    }
    Some(token)
}

fn host(text: &str) -> Result<Authority, Fault> {
    let hint = "write a host with or without a port, such as keys.example or keys.example:8443";
    Authority::parse(text).map_err(|error| Fault::new(format!("is no Host value: {error}"), hint))
}

pub fn state_dir(spot: Option<Spot<'_>>, sink: &mut Sink) -> PathBuf {
    spot.and_then(|spot| spot.file(sink)).unwrap_or_else(default_state_dir)
}

fn default_state_dir() -> PathBuf {
    if let Some(value) = variable("STATE_DIRECTORY") {
        // systemd joins several directories with colons.
        return value.split(|b| *b == b':').next().map(path).unwrap_or_default();
    }
    let system = Path::new(SYSTEM_STATE_DIR);
    match variable("HOME") {
        Some(home) if !may_write(system) => path(&home).join(HOME_STATE_DIR),
        _ => system.to_owned(),
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// What is not there yet may be written if it can be made.
fn may_write(directory: &Path) -> bool {
    let directory = if directory.exists() { directory } else { directory.parent().unwrap_or(directory) };
    rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

#[allow(clippy::disallowed_methods, reason = "this room alone reads the environment")]
fn variable(name: &str) -> Option<Vec<u8>> {
    std::env::var_os(name).map(OsStringExt::into_vec).filter(|value| !value.is_empty())
}

/// The admin token that the environment holds, for commands that ask a running instance.
pub fn presented_token() -> Option<Secret> {
    let text = variable("KEYBEARER_ADMIN_TOKEN").and_then(|value| String::from_utf8(value).ok());
    text.map(reference::without_line_break).filter(|token| !token.is_empty()).map(Secret::new)
}

/// Is there a desktop on which a link can be opened?
pub fn has_desktop() -> bool {
    cfg!(target_os = "macos") || ["DISPLAY", "WAYLAND_DISPLAY"].into_iter().any(|name| variable(name).is_some())
}

/// The admin token that a file holds, or why not.
pub fn read_token(file: &Path, bytes_max: usize) -> Result<Secret, String> {
    let bytes = reference::read_bounded(file, bytes_max)?;
    let text = String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
    match text.trim_end() {
        "" => Err("empty".to_owned()),
        token => Ok(Secret::new(token)),
    }
}

/// Where the instance of a configuration is found, and where it keeps its token.
#[derive(Debug)]
pub struct Whereabouts {
    /// Port 0: only the instance's log knows.
    pub admin: SocketAddr,
    /// Where health is asked for.
    pub health: SocketAddr,
    pub state_dir: PathBuf,
}

/// Reads what it can: whoever asks need not hold the secrets that the configuration refers to.
pub fn whereabouts(file: &Path) -> Whereabouts {
    let mut sink = Sink::default();
    let source = super::read(file, &mut sink);
    let top = source.as_ref().and_then(|source| source.root()?.unit::<TopFile>(&mut sink));
    let key = |pick: fn(&TopFile) -> super::spot::Field| top.as_ref().and_then(|top| top.get(pick(&top.keys)));
    let listeners =
        listener::listeners(key(|keys| keys.listeners), true, true, &mut sink).map(|(listeners, _)| listeners);
    let standard = SocketAddr::from((Ipv4Addr::LOCALHOST, listener::ADMIN_PORT));
    let admin = listeners.as_ref().map_or(standard, |listeners| listeners.admin.address);
    let health = listeners.and_then(|listeners| listeners.telemetry).map_or(admin, |telemetry| telemetry.address);
    let state_dir = state_dir(key(|keys| keys.state_dir), &mut sink);
    Whereabouts { admin: reachable(admin), health: reachable(health), state_dir }
}

/// Whoever listens at every address listens at loopback too.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
