//! `interception:` and what `intercept` of the routes may be beside it.
//!
//! Not here: what is made with the CA (`tls::authority`).

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::conflict::callers_meet;
use super::connection::Draft;
use super::file::{InterceptionFile, RouteFile};
use super::problem::Sink;
use super::spot::{Spot, Unit};
use super::{pem, reference};
use crate::clock::Clock;
use crate::model::Interception;
use crate::model::connection::{HostPattern, Place, PortRule, Route};
use crate::model::time::WallTime;
use crate::tls::{self, authority};

/// A CA that ends sooner is warned of.
const LEFT_MIN: Duration = Duration::from_secs(30 * 24 * 3600);
const HTTPS_PORT: u16 = 443;

pub fn interception(spot: &Spot<'_>, sink: &mut Sink) -> Option<Interception> {
    let unit = spot.unit::<InterceptionFile>(sink)?;
    let hint = "name the PEM file of a CA's certificate; `keybearer ca init` makes one";
    let at = unit.require(unit.keys.ca_certificate, "ca_certificate", hint, sink);
    let pem = at.as_ref().and_then(|at| {
        let path = at.file(sink)?;
        Some((reference::pem(at, &path, sink)?, path))
    });
    let hint = "write ca_key: {file: PATH} of the CA's private key in PEM";
    let key_at = unit.require(unit.keys.ca_key, "ca_key", hint, sink);
    let key = key_at.as_ref().and_then(|spot| pem::key(spot, sink));
    let ((pem, path), at, key) = (pem?, at?, key?);
    use authority::CaError::*;
    match authority::read_ca(&pem, key) {
        Ok(read) => {
            let end = read.chain.first().and_then(tls::expiry)?;
            check_end(end, &at, &path, sink).then_some(read)
        }
        Err(error @ (Certificate | NotCa)) => {
            at.problem(sink, format!("{} {error}", path.display()), "make a CA: `keybearer ca init`");
            None
        }
        Err(error @ (Key | Pair)) => {
            key_at?.problem(sink, format!("the key {error}"), "give the CA's own private key in PEM");
            None
        }
    }
}

fn check_end(end: WallTime, at: &Spot<'_>, path: &Path, sink: &mut Sink) -> bool {
    let (now, date) = (Clock::system().now().wall, httpdate::fmt_http_date(end.to_system()));
    let hint = "make another with `keybearer ca init`, and let clients trust it";
    if end <= now {
        at.problem(sink, format!("{} ended on {date}", path.display()), hint);
    } else if end <= now + LEFT_MIN {
        at.warning(sink, format!("{} ends on {date}", path.display()), hint);
    }
    end > now
}

/// Is TLS inside a tunnel to the route's host opened?
pub fn intercept(unit: &Unit<'_, RouteFile>, sink: &mut Sink) -> bool {
    let Some(spot) = unit.get(unit.keys.intercept) else { return true };
    if unit.get(unit.keys.mount).is_some() {
        spot.problem(sink, "`intercept` goes with `host`", "remove it: no tunnel leads to a mount");
    }
    spot.boolean(sink).unwrap_or(true)
}

/// A route with its connection and its place.
type Rival<'d> = (&'d Draft<'d>, &'d Spot<'d>, &'d Route);

/// What routes say together: a tunnel is opened or not before the path of any request is known.
pub fn check(drafts: &[Draft<'_>], given: bool, sink: &mut Sink) {
    let mut places: HashMap<(&HostPattern, Option<u16>), Vec<Rival<'_>>> = HashMap::new();
    for draft in drafts {
        let mut warned = false;
        for (spot, route) in &draft.routes {
            let Place::Host { pattern, port } = &route.place else { continue };
            let at = spot.value_of("intercept");
            if let Some(at) = at.as_ref().filter(|_| route.intercept && !given) {
                let hint = "add `interception: {ca_certificate: PATH, ca_key: {file: PATH}}`, or remove this";
                at.problem(sink, "there is no `interception`, so no tunnel can be opened", hint);
            }
            if let Some(at) = at.as_ref().filter(|_| !route.intercept && !warned) {
                let hint = "callers that need it use http:// URLs or a mount; else remove the key";
                at.warning(sink, "HTTPS through CONNECT gets no token here: the tunnel is relayed as it is", hint);
                warned = true;
            }
            let port = match port {
                PortRule::Stated(port) => Some(*port),
                PortRule::Default => Some(HTTPS_PORT),
                PortRule::Any => None,
            };
            let others = places.entry((pattern, port)).or_default();
            let other = others.iter().find(|(other, _, theirs)| {
                theirs.intercept != route.intercept && callers_meet(draft.callers.as_deref(), other.callers.as_deref())
            });
            if let Some((_, other, _)) = other {
                let message = format!("`intercept` differs from {} ({})", other.path, other.place());
                let hint = "write the same at all routes of one host and port: a tunnel is opened or not before a path is known";
                spot.problem(sink, message, hint);
            }
            others.push((draft, spot, route));
        }
    }
}
