//! `listeners:` where callers, people and monitors reach us.
//!
//! Holds: nothing listens beyond loopback without somebody having said who may come, or `open: true`.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};

use super::file::{ListenerFile, ListenersFile};
use super::problem::Sink;
use super::spot::Spot;
use super::value;
use crate::model::{Listener, Listeners, Name};

const PROXY_PORT: u16 = 8080;
pub const ADMIN_PORT: u16 = 8081;

/// A listener as read, with its place unless it is a default.
struct Draft<'a> {
    name: Option<Name>,
    address: SocketAddr,
    open: bool,
    spot: Option<Spot<'a>>,
}

impl Draft<'_> {
    fn standard(name: &str, port: u16) -> Self {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        Draft { name: Name::parse(name), address, open: false, spot: None }
    }

    fn refuse_beyond_loopback(&self, why: &str, way_out: &str, sink: &mut Sink) {
        if let Some(spot) = &self.spot
            && !self.open
            && !self.address.ip().to_canonical().is_loopback()
        {
            let hint = format!("{way_out}, or write {{address: …, open: true}}");
            spot.problem(sink, format!("listens beyond loopback {why}"), hint);
        }
    }

    fn finish(self) -> Option<Listener> {
        Some(Listener { name: self.name?, address: self.address })
    }
}

/// The listeners; `None` after a problem that leaves none to speak of.
pub fn listeners(spot: Option<Spot<'_>>, has_callers: bool, has_users: bool, sink: &mut Sink) -> Option<Listeners> {
    let unit = spot.and_then(|spot| spot.unit::<ListenersFile>(sink));
    let get = |pick: fn(&ListenersFile) -> super::spot::Field| unit.as_ref().and_then(|u| u.get(pick(&u.keys)));
    let proxy = match get(|keys| keys.proxy) {
        None => vec![Draft::standard("proxy", PROXY_PORT)],
        Some(spot) => proxies(&spot, sink),
    };
    let admin = match get(|keys| keys.admin) {
        None => Some(Draft::standard("admin", ADMIN_PORT)),
        Some(spot) => listener(&spot, "admin", sink),
    };
    let telemetry = get(|keys| keys.telemetry).and_then(|spot| listener(&spot, "telemetry", sink));
    let public = get(|keys| keys.public).and_then(|spot| listener(&spot, "public", sink));
    if !has_callers {
        for listener in &proxy {
            listener.refuse_beyond_loopback("although no callers are configured", "name them under `callers`", sink);
        }
    }
    if let Some(admin) = admin.as_ref().filter(|_| !has_users) {
        admin.refuse_beyond_loopback("although no users are configured", "name them under `admin.users`", sink);
    }
    refuse_equals(&proxy.iter().chain(&admin).chain(&telemetry).chain(&public).collect::<Vec<_>>(), sink);
    Some(Listeners {
        proxy: proxy.into_iter().map(Draft::finish).collect::<Option<_>>()?,
        admin: admin?.finish()?,
        telemetry: telemetry.and_then(Draft::finish),
        public: public.and_then(Draft::finish),
    })
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
    named.filter_map(|(item, name)| listener(item, &name, sink)).collect()
}

/// An address, or a map with one.
fn listener<'a>(spot: &Spot<'a>, default_name: &str, sink: &mut Sink) -> Option<Draft<'a>> {
    let name = Name::parse(default_name);
    if !spot.is_map() {
        let address = spot.parse(sink, value::listen_address)?;
        return Some(Draft { name, address, open: false, spot: Some(spot.clone()) });
    }
    let unit = spot.unit::<ListenerFile>(sink)?;
    let keys = &unit.keys;
    let open = unit.get(keys.open).and_then(|spot| spot.boolean(sink)).unwrap_or(false);
    let name = match unit.get(keys.name) {
        Some(spot) => spot.parse(sink, value::name),
        None => name,
    };
    let at = unit.require(keys.address, "address", "write IP:PORT, such as 127.0.0.1:8080", sink)?;
    let address = at.parse(sink, value::listen_address)?;
    Some(Draft { name, address, open, spot: Some(at) })
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
        let clash = all[..index].iter().find(|other| collide(one.address, other.address));
        if let Some(other) = clash
            && let Some(spot) = one.spot.as_ref().or(other.spot.as_ref())
        {
            let message = format!("two listeners want the port of {}", one.address);
            spot.problem(sink, message, "give each its own address (the defaults are 127.0.0.1:8080 and :8081)");
        }
    }
}

/// The system would refuse the second: the same port at one address, or at one and all of its family.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let family = one.is_ipv4() == other.is_ipv4();
    let all = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || family && all)
}
