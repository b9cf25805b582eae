//! `egress` and `hosts`: which hosts may be reached, and by which address or proxy.

use std::collections::HashMap;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::forward_proxy::{ForwardProxyFile, forward_proxy};
use super::reading::{Field, Keys, Sink, Spot, Words, shape, value};
use crate::model::HostOverride;
use crate::model::egress::*;
use crate::model::origin::{Host, HostError};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "egress", deny_unknown_fields)]
pub struct EgressFile {
    /// Whether a request to a host that no route names is forwarded without a token, or denied.
    #[schemars(extend("default" = "forward"))]
    pub unmatched: Field<shape::OneOf<Unmatched>>,
    /// Private networks that any name may resolve to; true: all of them.
    #[schemars(extend("default" = [], "examples" = [["10.20.0.0/16"], true]))]
    pub allow_private: Field<shape::Either<shape::List<shape::Network>, shape::Boolean>>,
    /// Ports that may be reached where no route names the host and port, with CONNECT or without.
    #[schemars(extend("default" = [443, 80]))]
    pub connect_ports: Field<shape::List<shape::Port>>,
    /// Egress proxy for upstreams, tunnels and token endpoints: a URL, or a map with one. A name under `hosts` is
    /// dialled directly.
    #[schemars(extend(
        "examples" = [
            "http://proxy.internal:3128",
            {"url": "http://proxy.internal:3128", "username": "keybearer", "password": {"file": "proxy-password"}}
        ]
    ))]
    pub proxy: Field<shape::Either<shape::Url, ForwardProxyFile>>,
    /// Hosts reached without the egress proxy: names with their subdomains, addresses, networks or `*`; `:PORT`
    /// restricts an entry to one port.
    #[schemars(extend("examples" = [[".internal", "10.0.0.0/8"]]))]
    pub no_proxy: Field<shape::List<shape::Text>>,
}

impl Keys for EgressFile {}

impl Words for Unmatched {
    fn words() -> Vec<(&'static str, Unmatched)> {
        vec![("forward", Unmatched::Forward), ("deny", Unmatched::Deny)]
    }
}

/// The networks that `allow_private: true` means.
const PRIVATE: [&str; 7] =
    ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

pub fn hosts(spot: Option<Spot<'_>>, sink: &mut Sink) -> Vec<HostOverride> {
    let mut seen = HashMap::new();
    let mut hosts = Vec::new();
    for (key, place, value) in spot.map(|spot| spot.pairs(sink)).unwrap_or_default() {
        let host = match Host::parse(key) {
            Ok(Host::Ip(_)) => Err("is an address, not a name".to_owned()),
            Ok(host) => Ok(host),
            Err(HostError::Label) if key.contains(['*', ':', '/']) => Err("is not a name alone".to_owned()),
            Err(error) => Err(format!("is refused: {error}")),
        };
        let host = host.map_err(|why| {
            place.problem(sink, format!("the key {why}"), "write a host name: {api.acme.test: \"127.0.0.1:9443\"}")
        });
        let Some(value) = value else {
            place.problem(sink, "has no address", "write IP or IP:PORT, such as \"127.0.0.1:9443\"");
            continue;
        };
        let (Ok(host), Some((address, port))) = (host, value.parse(sink, value::dial_address)) else { continue };
        if let Some(first) = seen.insert(host.clone(), place.line) {
            place.problem(sink, format!("the same host is in line {first}"), "keep one of the two");
        }
        hosts.push(HostOverride { host, address, port });
    }
    hosts
}

pub fn egress(spot: Option<Spot<'_>>, sink: &mut Sink) -> Egress {
    let mut egress = Egress::default();
    let Some(unit) = spot.and_then(|spot| spot.unit::<EgressFile>(sink)) else { return egress };
    if let Some(unmatched) = unit.get(unit.keys.unmatched).and_then(|spot| spot.choice(sink)) {
        egress.unmatched = unmatched;
    }
    if let Some(spot) = unit.get(unit.keys.allow_private) {
        egress.allow_private = allow_private(&spot, sink);
    }
    if let Some(ports) = unit.get(unit.keys.connect_ports).and_then(|spot| spot.items(sink)) {
        egress.connect_ports = ports.iter().filter_map(|port| port.parse(sink, value::port)).collect();
    }
    egress.proxy = unit.get(unit.keys.proxy).and_then(|spot| forward_proxy(&spot, sink));
    if let Some(spot) = unit.get(unit.keys.no_proxy) {
        if egress.proxy.is_none() && unit.get(unit.keys.proxy).is_none() {
            spot.problem(sink, "goes around a proxy that is not there", "add `proxy`, or remove this");
        }
        let items = spot.items(sink).unwrap_or_default();
        egress.no_proxy = items.iter().filter_map(|item| item.parse(sink, value::bypass)).collect();
    }
    egress
}

fn allow_private(spot: &Spot<'_>, sink: &mut Sink) -> Vec<IpNet> {
    if spot.is_list() {
        return value::networks(spot, sink);
    }
    match spot.boolean(sink) {
        Some(true) => PRIVATE.iter().filter_map(|network| value::network(network).ok()).collect(),
        _ => Vec::new(),
    }
}
