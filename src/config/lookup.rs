//! What commands look up in a configuration without loading all of it.
//!
//! Not here: the commands (`cli`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::reading::{Problems, Sink, reference};
use super::state_dir::{state_dir, variable};
use super::top::TopFile;
use super::{caller, listener, load, store};
use crate::model::secret::{Secret, Vault};
use crate::model::{Name, StoreSettings};

/// Where the instance of a configuration is found, and where it keeps its token.
#[derive(Debug)]
pub struct Whereabouts {
    /// Port 0: only the instance's log knows.
    pub admin: SocketAddr,
    /// Where health is asked for.
    pub health: SocketAddr,
    pub state_dir: PathBuf,
}

/// Reads what it can: the command may lack the secrets that the configuration refers to.
pub fn whereabouts(file: &Path) -> Whereabouts {
    let mut sink = Sink::default();
    let source = load::read(file, &mut sink);
    let top = source.as_ref().and_then(|source| source.root()?.unit::<TopFile>(&mut sink));
    let listeners = top.as_ref().and_then(|top| top.get(top.keys.listeners));
    let listeners = listener::listeners(listeners, true, true, &mut sink).map(|(listeners, _)| listeners);
    let standard = SocketAddr::from((Ipv4Addr::LOCALHOST, listener::ADMIN_PORT));
    let admin = listeners.as_ref().map_or(standard, |listeners| listeners.admin.address);
    let health = listeners.and_then(|listeners| listeners.telemetry).map_or(admin, |telemetry| telemetry.address);
    let state_dir = state_dir(top.as_ref().and_then(|top| top.get(top.keys.state_dir)), &mut sink);
    Whereabouts { admin: reachable(admin), health: reachable(health), state_dir }
}

/// A listener on the unspecified address is reachable on loopback too.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The store of a configuration and its state directory, whatever else it holds.
///
/// # Errors
/// The problems of those two keys, and of the file as a whole.
pub fn store_of(path: &Path) -> Result<(StoreSettings, PathBuf), Problems> {
    let mut sink = Sink::default();
    let source = load::read(path, &mut sink);
    let top = source.as_ref().and_then(|source| source.root()?.unit::<TopFile>(&mut sink));
    let state_dir = state_dir(top.as_ref().and_then(|top| top.get(top.keys.state_dir)), &mut sink);
    let store = top.as_ref().and_then(|top| top.get(top.keys.store));
    let settings = store::settings(store, &state_dir, &mut sink);
    sink.finish(path).map(|_| (settings, state_dir))
}

/// What the caller `name` proves itself with; `None` where nothing is asked of it.
///
/// # Errors
/// The problems of that secret, such as one of which the configuration has a digest alone.
pub fn caller_secret(path: &Path, name: &Name, vault: Arc<dyn Vault>) -> Result<Option<Secret>, Problems> {
    let mut sink = Sink::default();
    sink.vault = Some(vault);
    let source = load::read(path, &mut sink);
    let top = source.as_ref().and_then(|source| source.root()?.unit::<TopFile>(&mut sink));
    let secret = top.and_then(|top| {
        let state_dir = state_dir(top.get(top.keys.state_dir), &mut sink);
        let store = store::settings(top.get(top.keys.store), &state_dir, &mut sink);
        sink.store = Some((store, state_dir));
        caller::secret_to_send(top.get(top.keys.callers), name, &mut sink)
    });
    sink.finish(path).map(|_| secret)
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
