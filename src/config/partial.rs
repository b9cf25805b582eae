//! Reads the few keys that a command needs, without loading the whole configuration.
//!
//! Not here: the commands (`cli`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::reading::{Problems, Sink, pem, reference};
use super::state_dir::{state_dir, variable};
use super::top::TopFile;
use super::{caller, listener, load, store};
use crate::model::san::San;
use crate::model::secret::{Secret, Vault};
use crate::model::{Listener, ListenerTls, Name, Roots, StoreSettings};

/// Admin addresses of the instance that runs a configuration, and the directory with its admin token.
#[derive(Debug)]
pub struct InstanceLocation {
    pub admin: ListenerLocation,
    /// The listener with `/readyz`.
    pub health: ListenerLocation,
    pub state_dir: PathBuf,
    /// `trust`, empty if it cannot be read.
    pub trust: Roots,
}

/// How a command on the same machine reaches a listener.
#[derive(Debug, Clone)]
pub struct ListenerLocation {
    /// With port 0, only the instance's log has the real port.
    pub address: SocketAddr,
    pub secure: bool,
    /// Name to verify in the certificate in place of the address, which is rarely in one.
    pub server_name: Option<String>,
}

/// Ignores problems: the command may have no access to the secrets that the configuration refers to.
pub fn locate_instance(file: &Path) -> InstanceLocation {
    let mut sink = Sink::default();
    let source = load::read(file, &mut sink);
    let top = source.as_ref().and_then(|source| source.root()?.section::<TopFile>(&mut sink));
    let listeners = top.as_ref().and_then(|top| top.get(top.keys.listeners));
    let (listeners, tls) =
        listener::listeners(listeners, true, true, &mut sink).unwrap_or_else(listener::default_listeners);
    let locate = |listener: &Listener| ListenerLocation {
        address: reachable(listener.address),
        secure: listener.secure,
        server_name: tls.get(&listener.name).and_then(|tls| server_name(tls, reachable(listener.address).ip())),
    };
    let (admin, health) = (locate(&listeners.admin), locate(listeners.telemetry.as_ref().unwrap_or(&listeners.admin)));
    let state_dir = state_dir(top.as_ref().and_then(|top| top.get(top.keys.state_dir)), &mut sink);
    let trust = top.as_ref().and_then(|top| pem::roots(&top.get(top.keys.trust)?, &mut sink));
    InstanceLocation { admin, health, state_dir, trust: trust.unwrap_or_else(|| [].into()) }
}

/// The first DNS name of the listener's certificate, unless the certificate names `address` itself.
fn server_name(tls: &ListenerTls, address: IpAddr) -> Option<String> {
    let names = crate::tls::names(tls.certificate.chain.first()?);
    if names.contains(&San::Ip(address)) {
        return None;
    }
    names.into_iter().find_map(|name| match name {
        San::Dns(name) if !name.starts_with('*') => Some(name),
        _ => None,
    })
}

/// The address to connect to: loopback for a listener on the unspecified address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The store and the state directory of a configuration; problems of other keys are ignored.
///
/// # Errors
/// The problems of those two keys, and of the whole file.
pub fn store_of(path: &Path) -> Result<(StoreSettings, PathBuf), Problems> {
    let mut sink = Sink::default();
    let source = load::read(path, &mut sink);
    let top = source.as_ref().and_then(|source| source.root()?.section::<TopFile>(&mut sink));
    let state_dir = state_dir(top.as_ref().and_then(|top| top.get(top.keys.state_dir)), &mut sink);
    let store = top.as_ref().and_then(|top| top.get(top.keys.store));
    let settings = store::settings(store, &state_dir, &mut sink);
    sink.finish(path).map(|_| (settings, state_dir))
}

/// The secret with which the caller `name` authenticates; `None` if it has none.
///
/// # Errors
/// The problems of that secret; a secret that is configured as a digest is one.
pub fn caller_secret(path: &Path, name: &Name, vault: Arc<dyn Vault>) -> Result<Option<Secret>, Problems> {
    let mut sink = Sink::default();
    sink.vault = Some(vault);
    let source = load::read(path, &mut sink);
    let top = source.as_ref().and_then(|source| source.root()?.section::<TopFile>(&mut sink));
    let secret = top.and_then(|top| {
        let state_dir = state_dir(top.get(top.keys.state_dir), &mut sink);
        let store = store::settings(top.get(top.keys.store), &state_dir, &mut sink);
        sink.store = Some((store, state_dir));
        caller::secret_to_send(top.get(top.keys.callers), name, &mut sink)
    });
    sink.finish(path).map(|_| secret)
}

/// The admin token from the environment, for commands that query a running instance.
pub fn presented_token() -> Option<Secret> {
    let text = variable("KEYBEARER_ADMIN_TOKEN").and_then(|value| String::from_utf8(value).ok());
    text.map(reference::without_line_break).filter(|token| !token.is_empty()).map(Secret::new)
}

/// True if there is a desktop on which a link can be opened.
pub fn has_desktop() -> bool {
    cfg!(target_os = "macos") || ["DISPLAY", "WAYLAND_DISPLAY"].into_iter().any(|name| variable(name).is_some())
}

/// Reads the admin token from a file. The error is a phrase for parentheses, such as `no such file`.
pub fn read_token(file: &Path, bytes_max: usize) -> Result<Secret, String> {
    let bytes = reference::read_bounded(file, bytes_max)?;
    let text = String::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
    match text.trim_end() {
        "" => Err("empty".to_owned()),
        token => Ok(Secret::new(token)),
    }
}
