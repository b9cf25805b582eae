//! Reads one item of `routes` into a checked [`Route`].

use http::{HeaderName, HeaderValue, Method};

use super::file::{RouteFile, UpstreamTlsFile};
use super::header::header;
use super::inject::{self, default_inject};
use super::strip;
use crate::config::reading::{Fault, NodeRef, Section, Sink, endpoint, pem, reference, suggest, value};
use crate::model::Name;
use crate::model::connection::*;
use crate::model::origin::{Authority, Host, HostError, Scheme};

/// Reads a route. `certificate`: the connection's client certificate; `Some(None)` if it is invalid. `profiles`: the
/// names of the connection's profiles; `None` if one is invalid.
pub fn route(
    node: &NodeRef<'_>,
    allow_cleartext: bool,
    certificate: Option<Option<&ClientCertificate>>,
    profiles: Option<&[Name]>,
    sink: &mut Sink,
) -> Option<Route> {
    let section = node.section::<RouteFile>(sink)?;
    let keys = &section.keys;
    let tls = section.get(keys.upstream_tls).map(|node| upstream_tls(&node, certificate, sink));
    let matches = route_match(&section, tls.as_ref(), allow_cleartext, sink);
    let path = match section.get(keys.path) {
        None => Some(PathPrefix::root()),
        Some(node) if section.get(keys.mount).is_some() => {
            node.problem(sink, "`path` applies only to `host`", "put the path in `mount` or `upstream`");
            None
        }
        Some(node) => node.parse(sink, prefix),
    };
    let methods = section.get(keys.methods).map(|node| methods(&node, sink));
    let points = section
        .get(keys.inject)
        .map_or_else(|| Some((default_inject(), Vec::new())), |node| inject::injection_points(&node, sink));
    let set_headers =
        section.get(keys.set_headers).map(|node| set_headers(&node, points.as_ref(), sink)).unwrap_or_default();
    let existing = section.get(keys.existing).and_then(|node| node.choice(sink));
    let strip = section.get(keys.strip).map(|node| strip::strip(&node, points.as_ref(), sink));
    let without_token = section.get(keys.without_token).and_then(|node| node.choice(sink));
    let profile = section.get(keys.profile).map(|node| profile(&node, profiles, sink));
    let only_when_named = section.get(keys.only_when_named).and_then(|node| node.boolean(sink));
    let intercept = intercept(&section, sink);
    let (matches, tls) = (matches?, tls.unwrap_or_default());
    let (inject, others) = points?;
    Some(Route {
        tls: UpstreamTls {
            upgrade: upgrade(&matches, tls.upgrade),
            trust: tls.trust,
            server_name: tls.server_name,
            certificate: tls.certificate,
        },
        matches,
        path: path?,
        methods,
        inject,
        others,
        set_headers,
        existing: existing.unwrap_or_default(),
        strip: strip.unwrap_or_default(),
        without_token: without_token.unwrap_or_default(),
        profile: profile.flatten(),
        only_when_named: only_when_named.unwrap_or_default(),
        intercept,
    })
}

/// Reads the name of a profile of the connection, or `default`.
fn profile(node: &NodeRef<'_>, profiles: Option<&[Name]>, sink: &mut Sink) -> Option<Name> {
    let name = node.parse(sink, value::name)?;
    let known = profiles.into_iter().flatten().map(Name::as_str).chain(["default"]);
    if profiles.is_some() && !known.clone().any(|known| known == name.as_str()) {
        let hint = suggest(name.as_str(), known, "add it under `profiles` of the connection, or remove the key");
        node.problem(sink, format!("the connection has no profile `{name}`"), hint);
    }
    Some(name)
}

/// `upstream_tls` as written; `upgrade` is `None` if it is absent.
#[derive(Default)]
struct WrittenTls {
    upgrade: Option<bool>,
    trust: Option<crate::model::Roots>,
    server_name: Option<Host>,
    certificate: Option<ClientCertificate>,
}

fn upgrade(matches: &RouteMatch, written: Option<bool>) -> bool {
    match matches {
        RouteMatch::Mount { upstream, .. } => upstream.scheme == Scheme::Https,
        RouteMatch::Host { pattern: HostPattern::Exact(host), .. } => written.unwrap_or(!host.is_loopback()),
        RouteMatch::Host { pattern: HostPattern::Subdomains(_), .. } => written.unwrap_or(true),
    }
}

fn upstream_tls(node: &NodeRef<'_>, certificate: Option<Option<&ClientCertificate>>, sink: &mut Sink) -> WrittenTls {
    if !node.is_map() {
        return WrittenTls { upgrade: node.boolean(sink), ..WrittenTls::default() };
    }
    let Some(section) = node.section::<UpstreamTlsFile>(sink) else { return WrittenTls::default() };
    let server_name = section.get(section.keys.server_name).and_then(|node| node.parse(sink, server_name));
    let trust = section.get(section.keys.trust).and_then(|node| pem::replacement_roots(&node, sink));
    let mutual = section.get(section.keys.mutual_tls).is_some_and(|node| {
        let enabled = node.boolean(sink).unwrap_or(false);
        if enabled && certificate.is_none() {
            let hint = "add `mutual_tls` with a certificate to the connection, or remove the key";
            node.problem(sink, "the connection has no `mutual_tls`, so there is no certificate to present", hint);
        }
        enabled
    });
    let certificate = certificate.flatten().filter(|_| mutual).cloned();
    WrittenTls { upgrade: Some(true), trust, server_name, certificate }
}

fn server_name(text: &str) -> Result<Host, Fault> {
    let invalid =
        |error: HostError| Fault::new(format!("is invalid: {error}"), "write a name from the server's certificate");
    Host::parse(text).map_err(invalid)
}

/// Reads exactly one of `host` and `mount`; `upstream` belongs to `mount`.
fn route_match(
    section: &Section<'_, RouteFile>,
    tls: Option<&WrittenTls>,
    allow_cleartext: bool,
    sink: &mut Sink,
) -> Option<RouteMatch> {
    let keys = &section.keys;
    match (section.get(keys.host), section.get(keys.mount)) {
        (Some(host), None) => {
            if let Some(upstream) = section.get(keys.upstream) {
                upstream.problem(
                    sink,
                    "`upstream` applies only to `mount`",
                    "remove it: the request names the upstream",
                );
            }
            let text = reference::text(&host, sink)?.value;
            let (pattern, port) = host.check_placeholders(&text, sink).then(|| host.parse(sink, host_pattern))??;
            Some(RouteMatch::Host { pattern, port })
        }
        (None, Some(mount)) => {
            let prefix = mount.parse(sink, prefix);
            let hint = "write the URL that the mount forwards to, such as https://api.acme.test";
            let at = section.require(keys.upstream, "upstream", hint, sink)?;
            let (upstream, base) = at.parse_url(sink, endpoint::upstream)?;
            let written = tls.and_then(|tls| tls.upgrade);
            check_scheme(&at, (upstream.scheme, &upstream.host), written, allow_cleartext, sink);
            Some(RouteMatch::Mount { prefix: prefix?, upstream, base })
        }
        (Some(_), Some(mount)) => {
            mount.problem(sink, "the route has both `host` and `mount`", "split it into two routes");
            None
        }
        (None, None) => {
            let hint = "write `host: api.acme.test`, or `mount: /acme` with `upstream: https://api.acme.test`";
            section.node.problem(sink, "the route has neither `host` nor `mount`", hint);
            None
        }
    }
}

/// The scheme of a mount's upstream decides. `upstream_tls` must agree, and http to another machine must be explicit.
fn check_scheme(
    at: &NodeRef<'_>,
    (scheme, host): (Scheme, &Host),
    written: Option<bool>,
    allow_cleartext: bool,
    sink: &mut Sink,
) {
    match (scheme, written) {
        (Scheme::Https, Some(false)) => {
            at.problem(sink, "is https, but `upstream_tls` is false", "write http://…, or remove `upstream_tls`")
        }
        (Scheme::Http, Some(true)) => {
            at.problem(sink, "is http, but `upstream_tls` is set", "write https://…, or remove `upstream_tls`")
        }
        (Scheme::Http, None) if !host.is_loopback() && !allow_cleartext => at.problem(
            sink,
            "would send the token in the clear",
            "write https://…, or `upstream_tls: false` if that is intended",
        ),
        _ => {}
    }
}

/// Reads `intercept`: whether TLS inside tunnels to the route's host is intercepted.
fn intercept(section: &Section<'_, RouteFile>, sink: &mut Sink) -> bool {
    let Some(node) = section.get(section.keys.intercept) else { return true };
    if section.get(section.keys.mount).is_some() {
        node.problem(sink, "`intercept` applies only to `host`", "remove it: mounts are not reached through tunnels");
    }
    node.boolean(sink).unwrap_or(true)
}

fn prefix(text: &str) -> Result<PathPrefix, Fault> {
    PathPrefix::parse(text).ok_or_else(|| Fault::new("is not a plain path", endpoint::PLAIN_PATH))
}

/// `HOST` or `*.SUFFIX`, with an optional `:PORT` or `:*`.
fn host_pattern(text: &str) -> Result<(HostPattern, PortRule), Fault> {
    if text.contains("://") {
        return Err(Fault::new("is a URL", "write the host alone; `path` limits a route to a path"));
    }
    if text.contains('/') {
        return Err(Fault::new("contains a path", "write the host alone, and the path under `path`"));
    }
    let (rest, any) = text.strip_suffix(":*").map_or((text, false), |rest| (rest, true));
    let (rest, below) = rest.strip_prefix("*.").map_or((rest, false), |rest| (rest, true));
    if rest.contains('*') {
        let hint = "use `*` only for the first labels (*.acme.test) or the port (acme.test:*)";
        return Err(Fault::new("has a misplaced `*`", hint));
    }
    let invalid = |error: HostError| {
        Fault::new(format!("is invalid: {error}"), "write a name, *.NAME or an address, optionally with :PORT or :*")
    };
    let authority = if any {
        Authority { host: Host::parse(rest).map_err(invalid)?, port: None }
    } else {
        Authority::parse(rest).map_err(invalid)?
    };
    let port = match authority.port {
        _ if any => PortRule::Any,
        Some(port) => PortRule::Stated(port),
        None => PortRule::Default,
    };
    match (below, authority.host) {
        (true, Host::Ip(_)) => Err(Fault::new("has a `*` before an address", "write the address alone")),
        (true, host) => Ok((HostPattern::Subdomains(host), port)),
        (false, host) => Ok((HostPattern::Exact(host), port)),
    }
}

fn methods(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<Method> {
    let items = node.items(sink);
    if items.as_ref().is_some_and(Vec::is_empty) {
        node.problem(sink, "is an empty list", "add a method, or remove the key to match all");
    }
    let mut methods = Vec::new();
    for method in items.unwrap_or_default().iter().filter_map(|item| item.parse(sink, method)) {
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    methods
}

fn method(text: &str) -> Result<Method, Fault> {
    let hint = "write it in upper case, such as GET";
    match Method::from_bytes(text.as_bytes()) {
        Ok(Method::TRACE | Method::CONNECT) => Err(Fault::new("never carries a token", "remove it")),
        Ok(method) if !text.bytes().any(|b| b.is_ascii_lowercase()) => Ok(method),
        Ok(_) => Err(Fault::new("is in lower case", hint)),
        Err(_) => Err(Fault::new("is not a method", hint)),
    }
}

/// Reads the headers that are set on each request, whatever the caller sent there.
fn set_headers(
    node: &NodeRef<'_>,
    points: Option<&(Inject, Vec<OtherToken>)>,
    sink: &mut Sink,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut set: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (key, key_node, value) in node.pairs(sink) {
        let Ok(name) = header(key) else {
            key_node.problem(sink, format!("`{key}` cannot be set"), "write a name such as X-Api-Version");
            continue;
        };
        let mut taken =
            points.into_iter().flat_map(|(own, others)| others.iter().map(|other| &other.inject).chain([own]));
        if taken.any(|inject| matches!(inject, Inject::Header { header, .. } if *header == name)) {
            key_node.problem(
                sink,
                format!("the token is injected into `{key}`"),
                "remove it, or give `inject` another header",
            );
        } else if set.iter().any(|(other, _)| *other == name) {
            key_node.problem(sink, format!("`{key}` is set twice"), "remove one of the two");
        }
        let text = value.and_then(|value| Some((reference::text(&value, sink)?.value, value)));
        let Some((text, at)) = text else { continue };
        match HeaderValue::try_from(text) {
            Ok(mut value) => {
                value.set_sensitive(true);
                set.push((name, value));
            }
            Err(_) => at.problem(
                sink,
                "contains characters that headers do not allow",
                "remove line breaks and control characters",
            ),
        }
    }
    set
}

#[cfg(test)]
mod tests;
