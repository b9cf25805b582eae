//! `egress` and `hosts`: which hosts may be reached, and through which address or proxy.

use std::collections::HashMap;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::forward_proxy::{ForwardProxyFile, forward_proxy};
use super::reading::{Field, Keys, Keyword, NodeRef, Sink, shape, value};
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
    /// Ports that may be reached if no route names the host and port, with or without CONNECT.
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
    /// Hosts that bypass the egress proxy: names with their subdomains, addresses, networks or `*`; `:PORT` restricts
    /// an entry to one port.
    #[schemars(extend("examples" = [[".internal", "10.0.0.0/8"]]))]
    pub no_proxy: Field<shape::List<shape::Text>>,
}

impl Keys for EgressFile {}

impl Keyword for Unmatched {
    fn keywords() -> Vec<(&'static str, Unmatched)> {
        vec![("forward", Unmatched::Forward), ("deny", Unmatched::Deny)]
    }
}

/// The networks that `allow_private: true` stands for.
const PRIVATE: [&str; 7] =
    ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

pub fn hosts(node: Option<NodeRef<'_>>, sink: &mut Sink) -> Vec<HostOverride> {
    let mut seen = HashMap::new();
    let mut hosts = Vec::new();
    for (key, key_node, value) in node.map(|node| node.pairs(sink)).unwrap_or_default() {
        let host = match Host::parse(key) {
            Ok(Host::Ip(_)) => Err("is an address, not a name".to_owned()),
            Ok(host) => Ok(host),
            Err(HostError::Label) if key.contains(['*', ':', '/']) => Err("is not a plain host name".to_owned()),
            Err(error) => Err(format!("is invalid: {error}")),
        };
        let host = host.map_err(|why| {
            key_node.problem(sink, format!("the key {why}"), "write a host name: {api.acme.test: \"127.0.0.1:9443\"}")
        });
        let Some(value) = value else {
            key_node.problem(sink, "has no address", "write IP or IP:PORT, such as \"127.0.0.1:9443\"");
            continue;
        };
        let (Ok(host), Some((address, port))) = (host, value.parse(sink, value::dial_address)) else { continue };
        if let Some(first) = seen.insert(host.clone(), key_node.line) {
            key_node.problem(sink, format!("the same host is already on line {first}"), "remove one of the two");
        }
        hosts.push(HostOverride { host, address, port });
    }
    hosts
}

pub fn egress(node: Option<NodeRef<'_>>, sink: &mut Sink) -> Egress {
    let mut egress = Egress::default();
    let Some(section) = node.and_then(|node| node.section::<EgressFile>(sink)) else { return egress };
    if let Some(unmatched) = section.get(section.keys.unmatched).and_then(|node| node.choice(sink)) {
        egress.unmatched = unmatched;
    }
    if let Some(node) = section.get(section.keys.allow_private) {
        egress.allow_private = allow_private(&node, sink);
    }
    if let Some(ports) = section.get(section.keys.connect_ports).and_then(|node| node.items(sink)) {
        egress.connect_ports = ports.iter().filter_map(|port| port.parse(sink, value::port)).collect();
    }
    egress.proxy = section.get(section.keys.proxy).and_then(|node| forward_proxy(&node, sink));
    if let Some(node) = section.get(section.keys.no_proxy) {
        if egress.proxy.is_none() && section.get(section.keys.proxy).is_none() {
            node.problem(sink, "has no effect without `proxy`", "add `proxy`, or remove `no_proxy`");
        }
        let items = node.items(sink).unwrap_or_default();
        egress.no_proxy = items.iter().filter_map(|item| item.parse(sink, value::bypass)).collect();
    }
    egress
}

fn allow_private(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<IpNet> {
    if node.is_list() {
        return value::networks(node, sink);
    }
    match node.boolean(sink) {
        Some(true) => PRIVATE.iter().filter_map(|network| value::network(network).ok()).collect(),
        _ => Vec::new(),
    }
}
