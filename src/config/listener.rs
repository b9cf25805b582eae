//! `listeners`: the addresses of the proxy, the admin API, health checks and consent pages.
//!
//! Invariant: a listener beyond loopback needs configured callers or users, or `open: true`.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Field, Keys, NodeRef, Section, Sink, pem, shape, value};
use crate::model::{ListenAt, Listener, ListenerTls, Listeners, Name, ProxyListener};

/// An address, or a map with one.
type Bound = shape::Either<shape::Address, ListenerFile>;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "listeners", deny_unknown_fields)]
pub struct ListenersFile {
    /// Where services send their requests: one address, or a list. Beyond loopback it requires `callers` or `open:
    /// true`.
    #[schemars(extend(
        "default" = "127.0.0.1:8080",
        "examples" = [["127.0.0.1:8080", {"name": "fleet", "address": "0.0.0.0:8443"}]]
    ))]
    pub proxy: Field<shape::OneOrMany<Bound>>,
    /// Admin API; also /metrics, /livez and /readyz unless `telemetry` is given.
    #[schemars(extend("default" = "127.0.0.1:8081"))]
    pub admin: Field<Bound>,
    /// Separate listener for /metrics, /livez and /readyz only.
    #[schemars(extend("examples" = ["0.0.0.0:8082"]))]
    pub telemetry: Field<Bound>,
    /// Separate listener for /connect and /oauth/callback only, where `public_url` points.
    #[schemars(extend("examples" = ["0.0.0.0:8083"]))]
    pub public: Field<Bound>,
}

impl Keys for ListenersFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "listener", deny_unknown_fields)]
pub struct ListenerFile {
    /// Name in logs and metrics. Absent: `proxy`, `proxy-2` and so on, `admin`, `telemetry`, `public`.
    #[schemars(extend("examples" = ["fleet"]))]
    pub name: Field<shape::Name>,
    /// `IP:PORT`; port 0 picks a free port. A proxy listener may also be `unix:PATH`.
    #[schemars(required, extend("examples" = ["0.0.0.0:8443"]))]
    pub address: Field<shape::Address>,
    /// Permits an address beyond loopback without configured callers or users.
    #[schemars(extend("default" = false))]
    pub open: Field<shape::Boolean>,
    /// Octal permissions of a Unix socket. Absent: 0600, owner only.
    #[schemars(extend("examples" = ["0660"]))]
    pub mode: Field<shape::Text>,
    /// Terminates TLS at this listener; its URLs are then https.
    #[schemars(extend(
        "examples" = [{"certificate": "tls.pem", "key": {"file": "tls.key"}, "client_ca": "callers.pem"}]
    ))]
    pub tls: Field<ListenerTlsFile>,
}

impl Keys for ListenerFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "listener_tls", deny_unknown_fields)]
pub struct ListenerTlsFile {
    /// PEM file of the certificate, followed by its chain; read again when it changes.
    #[schemars(required, extend("examples" = ["tls.pem"]))]
    pub certificate: Field<shape::FilePath>,
    /// Private key of the certificate in PEM.
    #[schemars(required, extend("examples" = [{"file": "tls.key"}]))]
    pub key: Field<shape::Secret>,
    /// PEM file of the CAs that sign callers' certificates: each caller, and each client of an admin, telemetry or
    /// public listener, must then present one. Absent: no client certificate is requested.
    #[schemars(extend("examples" = ["callers.pem"]))]
    pub client_ca: Field<shape::Text>,
}

impl Keys for ListenerTlsFile {}

const PROXY_PORT: u16 = 8080;
pub const ADMIN_PORT: u16 = 8081;

/// Default mode of a Unix socket: only its owner may connect.
const SOCKET_MODE: u32 = 0o600;
/// The longest path that fits in `sockaddr_un`.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A listener as read; `node` is `None` for a default.
struct Draft<'a> {
    name: Option<Name>,
    at: ListenAt,
    open: bool,
    secure: bool,
    tls: Option<ListenerTls>,
    node: Option<NodeRef<'a>>,
}

impl Draft<'_> {
    fn default_at(name: &str, port: u16) -> Self {
        let at = ListenAt::Address((Ipv4Addr::LOCALHOST, port).into());
        Draft { name: Name::parse(name), at, open: false, secure: false, tls: None, node: None }
    }

    fn refuse_beyond_loopback(&self, reason: &str, remedy: &str, sink: &mut Sink) {
        if let Some(node) = &self.node
            && !self.open
            && let ListenAt::Address(address) = self.at
            && !address.ip().to_canonical().is_loopback()
        {
            let hint = format!("{remedy}, or permit it with {{address: …, open: true}}");
            node.problem(sink, format!("listens beyond loopback, but {reason}"), hint);
        }
    }

    fn finish(self) -> Option<(Listener, Option<ListenerTls>)> {
        let ListenAt::Address(address) = self.at else { return None };
        Some((Listener { name: self.name?, address, secure: self.secure }, self.tls))
    }

    fn finish_proxy(self) -> Option<(ProxyListener, Option<ListenerTls>)> {
        Some((ProxyListener { name: self.name?, at: self.at, secure: self.secure }, self.tls))
    }
}

/// Reads `listeners`, with the TLS settings by name; `None` if a listener is invalid.
pub fn listeners(
    node: Option<NodeRef<'_>>,
    has_callers: bool,
    has_users: bool,
    sink: &mut Sink,
) -> Option<(Listeners, HashMap<Name, ListenerTls>)> {
    let section = node.and_then(|node| node.section::<ListenersFile>(sink));
    let proxy = match section.as_ref().and_then(|section| section.get(section.keys.proxy)) {
        None => vec![Draft::default_at("proxy", PROXY_PORT)],
        Some(node) => proxies(&node, sink),
    };
    let admin = match section.as_ref().and_then(|section| section.get(section.keys.admin)) {
        None => Some(Draft::default_at("admin", ADMIN_PORT)),
        Some(node) => listener(&node, "admin", sink),
    };
    let telemetry = section
        .as_ref()
        .and_then(|section| section.get(section.keys.telemetry))
        .and_then(|node| listener(&node, "telemetry", sink));
    let public = section
        .as_ref()
        .and_then(|section| section.get(section.keys.public))
        .and_then(|node| listener(&node, "public", sink));
    if !has_callers {
        for listener in &proxy {
            listener.refuse_beyond_loopback("no callers are configured", "list them under `callers`", sink);
        }
    }
    if let Some(admin) = admin.as_ref().filter(|_| !has_users) {
        admin.refuse_beyond_loopback(
            "no users are configured",
            "list them under `admin.users`, or configure `admin.sign_in`",
            sink,
        );
    }
    refuse_collisions(&proxy.iter().chain(&admin).chain(&telemetry).chain(&public).collect::<Vec<_>>(), sink);
    let proxy = proxy.into_iter().map(Draft::finish_proxy).collect::<Option<Vec<_>>>()?;
    let mut all_tls = HashMap::new();
    let mut without_tls = |(listener, tls): (Listener, Option<ListenerTls>)| {
        all_tls.extend(tls.map(|tls| (listener.name.clone(), tls)));
        listener
    };
    let admin = without_tls(admin?.finish()?);
    let telemetry = telemetry.and_then(Draft::finish).map(&mut without_tls);
    let public = public.and_then(Draft::finish).map(&mut without_tls);
    all_tls.extend(proxy.iter().filter_map(|(listener, tls)| Some((listener.name.clone(), tls.clone()?))));
    let proxy = proxy.into_iter().map(|(listener, _)| listener).collect();
    Some((Listeners { proxy, admin, telemetry, public }, all_tls))
}

/// The listeners of a configuration without `listeners`.
pub fn default_listeners() -> (Listeners, HashMap<Name, ListenerTls>) {
    let name = |text| Name::parse(text).expect("a literal name");
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let proxy = ProxyListener { name: name("proxy"), at: ListenAt::Address(at(PROXY_PORT)), secure: false };
    let admin = Listener { name: name("admin"), address: at(ADMIN_PORT), secure: false };
    (Listeners { proxy: vec![proxy], admin, telemetry: None, public: None }, HashMap::new())
}

fn proxies<'a>(node: &NodeRef<'a>, sink: &mut Sink) -> Vec<Draft<'a>> {
    let items = if node.is_list() { node.items(sink).unwrap_or_default() } else { vec![node.clone()] };
    if items.is_empty() {
        node.problem(sink, "is an empty list", "add an address, or remove the key to use 127.0.0.1:8080");
    }
    let named = items.iter().enumerate().map(|(index, item)| {
        let name = if index == 0 { "proxy".to_owned() } else { format!("proxy-{}", index + 1) };
        (item, name)
    });
    named.filter_map(|(item, name)| proxy(item, &name, sink)).collect()
}

/// Reads a proxy listener, which may be a Unix socket and may use TLS.
fn proxy<'a>(node: &NodeRef<'a>, default_name: &str, sink: &mut Sink) -> Option<Draft<'a>> {
    if !node.is_map() {
        let at = listen_at(node, None, sink)?;
        let name = Name::parse(default_name);
        return Some(Draft { name, at, open: false, secure: false, tls: None, node: Some(node.clone()) });
    }
    let section = node.section::<ListenerFile>(sink)?;
    let (name, open) = name_and_open(&section, default_name, sink);
    let mode = section.get(section.keys.mode);
    let tls_at = section.get(section.keys.tls);
    let tls = tls_at.as_ref().and_then(|node| tls(node, sink));
    let hint = "write IP:PORT, such as 127.0.0.1:8080, or unix:PATH";
    let address = section.require(section.keys.address, "address", hint, sink)?;
    let at = listen_at(&address, mode.as_ref(), sink)?;
    Some(Draft { name, at, open, secure: tls_at.is_some(), tls, node: Some(address) })
}

/// Reads `IP:PORT`, or `unix:PATH` with a mode.
fn listen_at(node: &NodeRef<'_>, mode: Option<&NodeRef<'_>>, sink: &mut Sink) -> Option<ListenAt> {
    let text = node.line(sink)?;
    let Some(path) = text.strip_prefix("unix:") else {
        if let Some(mode) = mode {
            mode.problem(sink, "only a Unix socket has a mode", "remove it, or write address: \"unix:PATH\"");
        }
        return node.parse(sink, value::listen_address).map(ListenAt::Address);
    };
    if path.is_empty() {
        node.problem(sink, "has no path", "write unix:PATH, such as unix:/run/keybearer/proxy.sock");
        return None;
    }
    let path = node.resolve(path);
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let message = format!("is longer than {SOCKET_PATH_BYTES_MAX} bytes: {}", path.display());
        node.problem(sink, message, "choose a shorter path, such as one under /run");
        return None;
    }
    let mode = match mode {
        Some(mode) => mode.parse(sink, value::mode)?,
        None => SOCKET_MODE,
    };
    Some(ListenAt::Unix { path, mode })
}

fn tls(node: &NodeRef<'_>, sink: &mut Sink) -> Option<ListenerTls> {
    let section = node.section::<ListenerTlsFile>(sink)?;
    let certificate = pem::certificate(&section, (section.keys.certificate, section.keys.key), sink);
    let client_ca = match section.get(section.keys.client_ca) {
        None => None,
        Some(node) => Some(pem::roots_in_file(&node, sink)?),
    };
    Some(ListenerTls { certificate: certificate?, client_ca })
}

fn name_and_open(section: &Section<'_, ListenerFile>, default_name: &str, sink: &mut Sink) -> (Option<Name>, bool) {
    let open = section.get(section.keys.open).and_then(|node| node.boolean(sink)).unwrap_or(false);
    let name = match section.get(section.keys.name) {
        Some(node) => node.parse(sink, value::name),
        None => Name::parse(default_name),
    };
    (name, open)
}

/// Reads an address, or a map with one.
fn listener<'a>(node: &NodeRef<'a>, default_name: &str, sink: &mut Sink) -> Option<Draft<'a>> {
    if !node.is_map() {
        let at = ListenAt::Address(node.parse(sink, value::listen_address)?);
        let name = Name::parse(default_name);
        return Some(Draft { name, at, open: false, secure: false, tls: None, node: Some(node.clone()) });
    }
    let section = node.section::<ListenerFile>(sink)?;
    if let Some(mode) = section.get(section.keys.mode) {
        mode.problem(sink, "`mode` applies only to proxy listeners", "remove it");
    }
    let (name, open) = name_and_open(&section, default_name, sink);
    let tls_at = section.get(section.keys.tls);
    let tls = tls_at.as_ref().and_then(|node| tls(node, sink));
    let address = section.require(section.keys.address, "address", "write IP:PORT, such as 127.0.0.1:8080", sink)?;
    let at = ListenAt::Address(address.parse(sink, value::listen_address)?);
    Some(Draft { name, at, open, secure: tls_at.is_some(), tls, node: Some(address) })
}

fn refuse_collisions(all: &[&Draft<'_>], sink: &mut Sink) {
    let mut names = HashSet::new();
    for (index, one) in all.iter().enumerate() {
        if let (Some(name), Some(node)) = (&one.name, &one.node)
            && names.contains(name)
        {
            node.problem(sink, format!("another listener is named `{name}`"), "give each listener its own `name`");
        }
        names.extend(one.name.as_ref());
        let clash = all[..index].iter().find(|other| collide(&one.at, &other.at));
        if let Some(other) = clash
            && let Some(node) = one.node.as_ref().or(other.node.as_ref())
        {
            let message = format!("two listeners cannot share {}", one.at);
            node.problem(
                sink,
                message,
                "give each its own address (defaults: `proxy` 127.0.0.1:8080, `admin` 127.0.0.1:8081)",
            );
        }
    }
}

/// True if the system would refuse to bind both: the same path, or the same port on the same address, or on an address
/// and the unspecified one of its family.
fn collide(one: &ListenAt, other: &ListenAt) -> bool {
    let (one, other) = match (one, other) {
        (ListenAt::Address(one), ListenAt::Address(other)) => (one, other),
        (ListenAt::Unix { path: one, .. }, ListenAt::Unix { path: other, .. }) => return one == other,
        _ => return false,
    };
    let same_family = one.is_ipv4() == other.is_ipv4();
    let unspecified = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || same_family && unspecified)
}
