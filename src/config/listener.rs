//! `listeners`: the addresses of the proxy, the admin API, health checks and consent pages.
//!
//! Holds: a listener beyond loopback needs configured callers or users, or `open: true`.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Field, Keys, Sink, Spot, Unit, pem, shape, value};
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
    /// Octal permissions of a Unix socket. Absent: 0600, its owner alone.
    #[schemars(extend("examples" = ["0660"]))]
    pub mode: Field<shape::Text>,
    /// Terminates TLS at this proxy listener.
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
    pub certificate: Field<shape::Text>,
    /// Private key of the certificate in PEM.
    #[schemars(required, extend("examples" = [{"file": "tls.key"}]))]
    pub key: Field<shape::Secret>,
    /// PEM file of the CAs that sign callers' certificates: each caller must then present one. Absent: no client
    /// certificate is requested.
    #[schemars(extend("examples" = ["callers.pem"]))]
    pub client_ca: Field<shape::Text>,
}

impl Keys for ListenerTlsFile {}

const PROXY_PORT: u16 = 8080;
pub const ADMIN_PORT: u16 = 8081;

/// Who may open a Unix socket, unless that is written.
const SOCKET_MODE: u32 = 0o600;
/// A longer path fits no `sockaddr_un`.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A listener as read, with its place unless it is a default.
struct Draft<'a> {
    name: Option<Name>,
    at: ListenAt,
    open: bool,
    secure: bool,
    tls: Option<ListenerTls>,
    spot: Option<Spot<'a>>,
}

impl Draft<'_> {
    fn standard(name: &str, port: u16) -> Self {
        let at = ListenAt::Address((Ipv4Addr::LOCALHOST, port).into());
        Draft { name: Name::parse(name), at, open: false, secure: false, tls: None, spot: None }
    }

    fn refuse_beyond_loopback(&self, why: &str, way_out: &str, sink: &mut Sink) {
        if let Some(spot) = &self.spot
            && !self.open
            && let ListenAt::Address(address) = self.at
            && !address.ip().to_canonical().is_loopback()
        {
            let hint = format!("{way_out}, or write {{address: …, open: true}}");
            spot.problem(sink, format!("listens beyond loopback {why}"), hint);
        }
    }

    fn finish(self) -> Option<Listener> {
        let ListenAt::Address(address) = self.at else { return None };
        Some(Listener { name: self.name?, address })
    }

    fn finish_proxy(self) -> Option<(ProxyListener, Option<ListenerTls>)> {
        Some((ProxyListener { name: self.name?, at: self.at, secure: self.secure }, self.tls))
    }
}

/// The listeners, and how those speak TLS that do; `None` after a problem that leaves none to speak of.
pub fn listeners(
    spot: Option<Spot<'_>>,
    has_callers: bool,
    has_users: bool,
    sink: &mut Sink,
) -> Option<(Listeners, HashMap<Name, ListenerTls>)> {
    let unit = spot.and_then(|spot| spot.unit::<ListenersFile>(sink));
    let proxy = match unit.as_ref().and_then(|unit| unit.get(unit.keys.proxy)) {
        None => vec![Draft::standard("proxy", PROXY_PORT)],
        Some(spot) => proxies(&spot, sink),
    };
    let admin = match unit.as_ref().and_then(|unit| unit.get(unit.keys.admin)) {
        None => Some(Draft::standard("admin", ADMIN_PORT)),
        Some(spot) => listener(&spot, "admin", sink),
    };
    let telemetry = unit
        .as_ref()
        .and_then(|unit| unit.get(unit.keys.telemetry))
        .and_then(|spot| listener(&spot, "telemetry", sink));
    let public =
        unit.as_ref().and_then(|unit| unit.get(unit.keys.public)).and_then(|spot| listener(&spot, "public", sink));
    if !has_callers {
        for listener in &proxy {
            listener.refuse_beyond_loopback("although no callers are configured", "name them under `callers`", sink);
        }
    }
    if let Some(admin) = admin.as_ref().filter(|_| !has_users) {
        admin.refuse_beyond_loopback("although no users are configured", "name them under `admin.users`", sink);
    }
    refuse_equals(&proxy.iter().chain(&admin).chain(&telemetry).chain(&public).collect::<Vec<_>>(), sink);
    let proxy = proxy.into_iter().map(Draft::finish_proxy).collect::<Option<Vec<_>>>()?;
    let tls = proxy.iter().filter_map(|(listener, tls)| Some((listener.name.clone(), tls.clone()?))).collect();
    let listeners = Listeners {
        proxy: proxy.into_iter().map(|(listener, _)| listener).collect(),
        admin: admin?.finish()?,
        telemetry: telemetry.and_then(Draft::finish),
        public: public.and_then(Draft::finish),
    };
    Some((listeners, tls))
}

/// The listeners of a configuration that names none.
pub fn standard() -> (Listeners, HashMap<Name, ListenerTls>) {
    let name = |text| Name::parse(text).expect("a literal name");
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let proxy = ProxyListener { name: name("proxy"), at: ListenAt::Address(at(PROXY_PORT)), secure: false };
    let admin = Listener { name: name("admin"), address: at(ADMIN_PORT) };
    (Listeners { proxy: vec![proxy], admin, telemetry: None, public: None }, HashMap::new())
}

fn proxies<'a>(spot: &Spot<'a>, sink: &mut Sink) -> Vec<Draft<'a>> {
    let items = if spot.is_list() { spot.items(sink).unwrap_or_default() } else { vec![spot.clone()] };
    if items.is_empty() {
        spot.problem(sink, "names no address", "write an address, or remove the key for 127.0.0.1:8080");
    }
    let named = items.iter().enumerate().map(|(index, item)| {
        let name = if index == 0 { "proxy".to_owned() } else { format!("proxy-{}", index + 1) };
        (item, name)
    });
    named.filter_map(|(item, name)| proxy(item, &name, sink)).collect()
}

/// The same, or a Unix socket, or either with TLS.
fn proxy<'a>(spot: &Spot<'a>, default_name: &str, sink: &mut Sink) -> Option<Draft<'a>> {
    if !spot.is_map() {
        let at = place(spot, None, sink)?;
        let name = Name::parse(default_name);
        return Some(Draft { name, at, open: false, secure: false, tls: None, spot: Some(spot.clone()) });
    }
    let unit = spot.unit::<ListenerFile>(sink)?;
    let (name, open) = name_and_open(&unit, default_name, sink);
    let mode = unit.get(unit.keys.mode);
    let tls_at = unit.get(unit.keys.tls);
    let tls = tls_at.as_ref().and_then(|spot| tls(spot, sink));
    let hint = "write IP:PORT, such as 127.0.0.1:8080, or unix:PATH";
    let address = unit.require(unit.keys.address, "address", hint, sink)?;
    let at = place(&address, mode.as_ref(), sink)?;
    Some(Draft { name, at, open, secure: tls_at.is_some(), tls, spot: Some(address) })
}

/// `IP:PORT`, or `unix:PATH` with a mode.
fn place(spot: &Spot<'_>, mode: Option<&Spot<'_>>, sink: &mut Sink) -> Option<ListenAt> {
    let text = spot.line(sink)?;
    let Some(path) = text.strip_prefix("unix:") else {
        if let Some(mode) = mode {
            mode.problem(sink, "only a Unix socket has a mode", "remove it, or write address: \"unix:PATH\"");
        }
        return spot.parse(sink, value::listen_address).map(ListenAt::Address);
    };
    if path.is_empty() {
        spot.problem(sink, "names no path", "write unix:PATH, such as unix:/run/keybearer/proxy.sock");
        return None;
    }
    let path = spot.beside(path);
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let message = format!("is longer than {SOCKET_PATH_BYTES_MAX} bytes: {}", path.display());
        spot.problem(sink, message, "choose a shorter path, such as one under /run");
        return None;
    }
    let mode = match mode {
        Some(mode) => mode.parse(sink, value::mode)?,
        None => SOCKET_MODE,
    };
    Some(ListenAt::Unix { path, mode })
}

fn tls(spot: &Spot<'_>, sink: &mut Sink) -> Option<ListenerTls> {
    let unit = spot.unit::<ListenerTlsFile>(sink)?;
    let certificate = pem::certificate(&unit, (unit.keys.certificate, unit.keys.key), sink);
    let client_ca = match unit.get(unit.keys.client_ca) {
        None => None,
        Some(spot) => Some(pem::roots_of_file(&spot, sink)?),
    };
    Some(ListenerTls { certificate: certificate?, client_ca })
}

fn name_and_open(unit: &Unit<'_, ListenerFile>, default_name: &str, sink: &mut Sink) -> (Option<Name>, bool) {
    let open = unit.get(unit.keys.open).and_then(|spot| spot.boolean(sink)).unwrap_or(false);
    let name = match unit.get(unit.keys.name) {
        Some(spot) => spot.parse(sink, value::name),
        None => Name::parse(default_name),
    };
    (name, open)
}

/// An address, or a map with one.
fn listener<'a>(spot: &Spot<'a>, default_name: &str, sink: &mut Sink) -> Option<Draft<'a>> {
    let plain = |name, open, address, spot| {
        let at = ListenAt::Address(address);
        Some(Draft { name, at, open, secure: false, tls: None, spot: Some(spot) })
    };
    if !spot.is_map() {
        let address = spot.parse(sink, value::listen_address)?;
        return plain(Name::parse(default_name), false, address, spot.clone());
    }
    let unit = spot.unit::<ListenerFile>(sink)?;
    for (key, spot) in [("mode", unit.get(unit.keys.mode)), ("tls", unit.get(unit.keys.tls))] {
        if let Some(spot) = spot {
            spot.problem(sink, format!("`{key}` is for listeners of the proxy"), "remove it");
        }
    }
    let (name, open) = name_and_open(&unit, default_name, sink);
    let at = unit.require(unit.keys.address, "address", "write IP:PORT, such as 127.0.0.1:8080", sink)?;
    let address = at.parse(sink, value::listen_address)?;
    plain(name, open, address, at)
}

fn refuse_equals(all: &[&Draft<'_>], sink: &mut Sink) {
    let mut names = HashSet::new();
    for (index, one) in all.iter().enumerate() {
        if let (Some(name), Some(spot)) = (&one.name, &one.spot)
            && names.contains(name)
        {
            spot.problem(sink, format!("another listener is named `{name}`"), "give each its own `name`");
        }
        names.extend(one.name.as_ref());
        let clash = all[..index].iter().find(|other| collide(&one.at, &other.at));
        if let Some(other) = clash
            && let Some(spot) = one.spot.as_ref().or(other.spot.as_ref())
        {
            let message = format!("two listeners want the place of {}", one.at);
            spot.problem(sink, message, "give each its own address (the defaults are 127.0.0.1:8080 and :8081)");
        }
    }
}

/// The system would refuse the second: the same path, the same port at one address, or at one and all of its family.
fn collide(one: &ListenAt, other: &ListenAt) -> bool {
    let (one, other) = match (one, other) {
        (ListenAt::Address(one), ListenAt::Address(other)) => (one, other),
        (ListenAt::Unix { path: one, .. }, ListenAt::Unix { path: other, .. }) => return one == other,
        _ => return false,
    };
    let family = one.is_ipv4() == other.is_ipv4();
    let all = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || family && all)
}
