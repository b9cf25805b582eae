//! `strip`: the caller's own credentials that a route removes: well-known ones, or listed ones.

use super::header::{header, parameter};
use crate::config::reading::{Fault, NodeRef, Sink};
use crate::model::connection::{Inject, KNOWN, OtherToken, Strip, StripName, canonical_header};

const HINT: &str = "write `known`, or a list of names: X-Api-Key for the header and the parameter, \"?api_key\" for \
                    the parameter alone";

enum Item {
    Known,
    Name(StripName),
}

/// Reads `strip`. `points`: the injection points of the route.
pub fn strip(node: &NodeRef<'_>, points: Option<&(Inject, Vec<OtherToken>)>, sink: &mut Sink) -> Strip {
    let known = |text: &str| if text == KNOWN { Ok(()) } else { Err(Fault::new("is not a valid value", HINT)) };
    if !node.is_list() {
        return Strip { known: node.parse(sink, known).is_some(), names: Vec::new() };
    }
    let items = node.items(sink).unwrap_or_default();
    if items.is_empty() {
        node.problem(sink, "is an empty list", HINT);
    }
    let tokens: Vec<_> =
        points.into_iter().flat_map(|(own, others)| others.iter().map(|other| &other.inject).chain([own])).collect();
    let mut strip = Strip::default();
    for at in &items {
        match at.parse(sink, item) {
            Some(Item::Name(name)) if tokens.iter().any(|inject| is_injection_point(&name, inject)) => {
                at.problem(
                    sink,
                    "is an injection point of the route",
                    "remove it: `existing` decides what happens to a credential that the caller sends there",
                );
            }
            Some(Item::Name(name)) if !strip.names.contains(&name) => strip.names.push(name),
            Some(Item::Known) => strip.known = true,
            Some(Item::Name(_)) | None => {}
        }
    }
    strip
}

fn item(text: &str) -> Result<Item, Fault> {
    if text == KNOWN {
        return Ok(Item::Known);
    }
    let invalid = |_| Fault::new("is not a header or parameter name", HINT);
    if let Some(parameter) = text.strip_prefix('?') {
        let name = self::parameter(parameter.strip_suffix('=').unwrap_or(parameter)).map_err(invalid)?;
        return Ok(Item::Name(StripName::Parameter(name)));
    }
    let header = header(text).map_err(invalid)?;
    Ok(Item::Name(StripName::HeaderOrParameter(header, text.to_owned())))
}

fn is_injection_point(name: &StripName, inject: &Inject) -> bool {
    match (name, inject) {
        (StripName::HeaderOrParameter(stripped, _), Inject::Header { header, .. }) => {
            canonical_header(stripped.as_str()) == canonical_header(header.as_str())
        }
        (StripName::HeaderOrParameter(_, stripped) | StripName::Parameter(stripped), Inject::Query { name }) => {
            stripped == name
        }
        _ => false,
    }
}
