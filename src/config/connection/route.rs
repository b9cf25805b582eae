//! One item of `routes:` from marks to the checked [`Route`].

use http::{HeaderName, HeaderValue, Method};

use super::file::{RouteFile, UpstreamTlsFile};
use super::header::header;
use super::inject::{self, standard_inject};
use super::strip;
use crate::config::reading::{Fault, Sink, Spot, Unit, endpoint, pem, reference, suggest, value};
use crate::model::Name;
use crate::model::connection::*;
use crate::model::origin::{Authority, Host, HostError, Scheme};

/// `certificate`: the connection's own, if it has one; `Some(None)`: one is given and no good. `profiles`: those that the
/// connection has; `None`: one of them has no good name.
pub fn route(
    spot: &Spot<'_>,
    allow_cleartext: bool,
    certificate: Option<Option<&ClientCertificate>>,
    profiles: Option<&[Name]>,
    sink: &mut Sink,
) -> Option<Route> {
    let unit = spot.unit::<RouteFile>(sink)?;
    let keys = &unit.keys;
    let tls = unit.get(keys.upstream_tls).map(|spot| upstream_tls(&spot, certificate, sink));
    let matches = route_match(&unit, tls.as_ref(), allow_cleartext, sink);
    let path = match unit.get(keys.path) {
        None => Some(PathPrefix::root()),
        Some(spot) if unit.get(keys.mount).is_some() => {
            spot.problem(sink, "`path` goes with `host`", "write the path into `mount` or `upstream`");
            None
        }
        Some(spot) => spot.parse(sink, prefix),
    };
    let methods = unit.get(keys.methods).map(|spot| methods(&spot, sink));
    let places =
        unit.get(keys.inject).map_or_else(|| Some((standard_inject(), Vec::new())), |spot| inject::places(&spot, sink));
    let set_headers =
        unit.get(keys.set_headers).map(|spot| set_headers(&spot, places.as_ref(), sink)).unwrap_or_default();
    let existing = unit.get(keys.existing).and_then(|spot| spot.choice(sink));
    let strip = unit.get(keys.strip).map(|spot| strip::strip(&spot, places.as_ref(), sink));
    let without_token = unit.get(keys.without_token).and_then(|spot| spot.choice(sink));
    let profile = unit.get(keys.profile).map(|spot| profile(&spot, profiles, sink));
    let only_when_named = unit.get(keys.only_when_named).and_then(|spot| spot.boolean(sink));
    let intercept = intercept(&unit, sink);
    let (matches, tls) = (matches?, tls.unwrap_or_default());
    let (inject, others) = places?;
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

/// A profile of the connection, or `default`.
fn profile(spot: &Spot<'_>, profiles: Option<&[Name]>, sink: &mut Sink) -> Option<Name> {
    let name = spot.parse(sink, value::name)?;
    let known = profiles.into_iter().flatten().map(Name::as_str).chain(["default"]);
    if profiles.is_some() && !known.clone().any(|known| known == name.as_str()) {
        let hint = suggest(name.as_str(), known, "add it under `profiles` of the connection, or remove the key");
        spot.problem(sink, format!("the connection has no profile `{name}`"), hint);
    }
    Some(name)
}

/// `upstream_tls` as written; `upgrade` is `None` where it did not say.
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
        RouteMatch::Host { pattern: HostPattern::Below(_), .. } => written.unwrap_or(true),
    }
}

fn upstream_tls(spot: &Spot<'_>, certificate: Option<Option<&ClientCertificate>>, sink: &mut Sink) -> WrittenTls {
    if !spot.is_map() {
        return WrittenTls { upgrade: spot.boolean(sink), ..WrittenTls::default() };
    }
    let Some(unit) = spot.unit::<UpstreamTlsFile>(sink) else { return WrittenTls::default() };
    let server_name = unit.get(unit.keys.server_name).and_then(|spot| spot.parse(sink, server_name));
    let trust = unit.get(unit.keys.trust).and_then(|spot| pem::own_roots(&spot, sink));
    let mutual = unit.get(unit.keys.mutual_tls).is_some_and(|spot| {
        let shown = spot.boolean(sink).unwrap_or(false);
        if shown && certificate.is_none() {
            let hint = "add `mutual_tls` with a certificate to the connection, or remove this";
            spot.problem(sink, "the connection has no `mutual_tls`, so there is no certificate to show", hint);
        }
        shown
    });
    let certificate = certificate.flatten().filter(|_| mutual).cloned();
    WrittenTls { upgrade: Some(true), trust, server_name, certificate }
}

fn server_name(text: &str) -> Result<Host, Fault> {
    let refused = |error: HostError| Fault::new(format!("is refused: {error}"), "write the name in the certificate");
    Host::parse(text).map_err(refused)
}

/// Exactly one of `host` and `mount`; `upstream` with the latter alone.
fn route_match(
    unit: &Unit<'_, RouteFile>,
    tls: Option<&WrittenTls>,
    allow_cleartext: bool,
    sink: &mut Sink,
) -> Option<RouteMatch> {
    let keys = &unit.keys;
    match (unit.get(keys.host), unit.get(keys.mount)) {
        (Some(host), None) => {
            if let Some(upstream) = unit.get(keys.upstream) {
                upstream.problem(sink, "`upstream` goes with `mount`", "remove it: the request names the upstream");
            }
            let text = reference::text(&host, sink)?.value;
            let (pattern, port) = host.is_filled_in(&text, sink).then(|| host.parse(sink, host_pattern))??;
            Some(RouteMatch::Host { pattern, port })
        }
        (None, Some(mount)) => {
            let prefix = mount.parse(sink, prefix);
            let hint = "write where the mount leads, such as https://api.acme.test";
            let at = unit.require(keys.upstream, "upstream", hint, sink)?;
            let (upstream, base) = at.secretive(sink, endpoint::upstream)?;
            let written = tls.and_then(|tls| tls.upgrade);
            check_scheme(&at, (upstream.scheme, &upstream.host), written, allow_cleartext, sink);
            Some(RouteMatch::Mount { prefix: prefix?, upstream, base })
        }
        (Some(_), Some(mount)) => {
            mount.problem(sink, "the route has both `host` and `mount`", "make two routes of it");
            None
        }
        (None, None) => {
            let hint = "write `host: api.acme.test`, or `mount: /acme` with `upstream: https://api.acme.test`";
            unit.spot.problem(sink, "the route has neither `host` nor `mount`", hint);
            None
        }
    }
}

/// The scheme of a mount's upstream decides; `upstream_tls` may only agree, and http to other machines must be meant.
fn check_scheme(
    at: &Spot<'_>,
    (scheme, host): (Scheme, &Host),
    written: Option<bool>,
    allow_cleartext: bool,
    sink: &mut Sink,
) {
    match (scheme, written) {
        (Scheme::Https, Some(false)) => at.problem(sink, "is https, but `upstream_tls` is false", "write http://…"),
        (Scheme::Http, Some(true)) => at.problem(sink, "is http, but `upstream_tls` is on", "write https://…"),
        (Scheme::Http, None) if !host.is_loopback() && !allow_cleartext => at.problem(
            sink,
            "sends the token in the clear",
            "write https://…, or `upstream_tls: false` if that is meant",
        ),
        _ => {}
    }
}

/// Is TLS inside a tunnel to the route's host opened?
fn intercept(unit: &Unit<'_, RouteFile>, sink: &mut Sink) -> bool {
    let Some(spot) = unit.get(unit.keys.intercept) else { return true };
    if unit.get(unit.keys.mount).is_some() {
        spot.problem(sink, "`intercept` goes with `host`", "remove it: no tunnel leads to a mount");
    }
    spot.boolean(sink).unwrap_or(true)
}

fn prefix(text: &str) -> Result<PathPrefix, Fault> {
    PathPrefix::parse(text).ok_or_else(|| Fault::new("is not a plain path", endpoint::PLAIN_PATH))
}

/// `host`, `*.suffix`, with `:port` or `:*`.
fn host_pattern(text: &str) -> Result<(HostPattern, PortRule), Fault> {
    if text.contains("://") {
        return Err(Fault::new("is a URL", "write the host alone; `path` limits a route to a path"));
    }
    if text.contains('/') {
        return Err(Fault::new("holds a path", "write the host alone, and the path under `path`"));
    }
    let (rest, any) = text.strip_suffix(":*").map_or((text, false), |rest| (rest, true));
    let (rest, below) = rest.strip_prefix("*.").map_or((rest, false), |rest| (rest, true));
    if rest.contains('*') {
        let hint = "`*` may stand for the first labels (*.acme.test) or the port (acme.test:*)";
        return Err(Fault::new("has a `*` where none can stand", hint));
    }
    let refused = |error: HostError| {
        Fault::new(format!("is refused: {error}"), "write a name, *.NAME or an address, with :PORT or :* at most")
    };
    let authority = if any {
        Authority { host: Host::parse(rest).map_err(refused)?, port: None }
    } else {
        Authority::parse(rest).map_err(refused)?
    };
    let port = match authority.port {
        _ if any => PortRule::Any,
        Some(port) => PortRule::Stated(port),
        None => PortRule::Default,
    };
    match (below, authority.host) {
        (true, Host::Ip(_)) => Err(Fault::new("has a `*` before an address", "write the address alone")),
        (true, host) => Ok((HostPattern::Below(host), port)),
        (false, host) => Ok((HostPattern::Exact(host), port)),
    }
}

fn methods(spot: &Spot<'_>, sink: &mut Sink) -> Vec<Method> {
    let items = spot.items(sink);
    if items.as_ref().is_some_and(Vec::is_empty) {
        spot.problem(sink, "names no method", "write some, or remove the key for all");
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
    let upper = "write it in capitals, such as GET";
    match Method::from_bytes(text.as_bytes()) {
        Ok(Method::TRACE | Method::CONNECT) => Err(Fault::new("never carries a token", "remove it")),
        Ok(method) if !text.bytes().any(|b| b.is_ascii_lowercase()) => Ok(method),
        Ok(_) => Err(Fault::new("is in small letters", upper)),
        Err(_) => Err(Fault::new("is not a method", upper)),
    }
}

/// Headers that each request gets, whatever the caller sent there.
fn set_headers(
    spot: &Spot<'_>,
    places: Option<&(Inject, Vec<OtherToken>)>,
    sink: &mut Sink,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut set: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (key, place, value) in spot.pairs(sink) {
        let Ok(name) = header(key) else {
            place.problem(sink, format!("`{key}` cannot be set"), "write a name such as X-Api-Version");
            continue;
        };
        let mut taken =
            places.into_iter().flat_map(|(own, others)| others.iter().map(|other| &other.inject).chain([own]));
        if taken.any(|place| matches!(place, Inject::Header { header, .. } if *header == name)) {
            place.problem(sink, format!("the token goes into `{key}`"), "remove it, or give `inject` another header");
        } else if set.iter().any(|(other, _)| *other == name) {
            place.problem(sink, format!("`{key}` is there twice"), "keep one of the two");
        }
        let text = value.and_then(|value| Some((reference::text(&value, sink)?.value, value)));
        let Some((text, at)) = text else { continue };
        match HeaderValue::try_from(text) {
            Ok(mut value) => {
                value.set_sensitive(true);
                set.push((name, value));
            }
            Err(_) => at.problem(sink, "holds what no header can hold", "remove line breaks and control characters"),
        }
    }
    set
}

#[cfg(test)]
mod tests;
