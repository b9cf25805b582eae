//! `strip`: which of the caller's own credentials a route removes: the known ones, or those that are named.

use super::header::{header, parameter};
use crate::config::reading::{Fault, Sink, Spot};
use crate::model::connection::{Inject, KNOWN, OtherToken, Strip, StripName, canonical_header};

const HINT: &str =
    "write `known`, or a list of names: X-Api-Key for header and parameter, \"?api_key\" for the parameter";

enum Item {
    Known,
    Name(StripName),
}

/// `places`: where the route's own tokens go.
pub fn strip(spot: &Spot<'_>, places: Option<&(Inject, Vec<OtherToken>)>, sink: &mut Sink) -> Strip {
    let known = |text: &str| if text == KNOWN { Ok(()) } else { Err(Fault::new("is not known here", HINT)) };
    if !spot.is_list() {
        return Strip { known: spot.parse(sink, known).is_some(), names: Vec::new() };
    }
    let items = spot.items(sink).unwrap_or_default();
    if items.is_empty() {
        spot.problem(sink, "names no credential", HINT);
    }
    let tokens: Vec<_> =
        places.into_iter().flat_map(|(own, others)| others.iter().map(|other| &other.inject).chain([own])).collect();
    let mut strip = Strip::default();
    for at in &items {
        match at.parse(sink, item) {
            Some(Item::Name(name)) if tokens.iter().any(|inject| is_place(&name, inject)) => {
                at.problem(
                    sink,
                    "is where the token goes",
                    "remove it: `existing` says what becomes of what the caller sends there",
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
    let unfit = |_| Fault::new("is no name of a credential", HINT);
    if let Some(parameter) = text.strip_prefix('?') {
        let name = self::parameter(parameter.strip_suffix('=').unwrap_or(parameter)).map_err(unfit)?;
        return Ok(Item::Name(StripName::Parameter(name)));
    }
    let header = header(text).map_err(unfit)?;
    Ok(Item::Name(StripName::HeaderOrParameter(header, text.to_owned())))
}

fn is_place(name: &StripName, inject: &Inject) -> bool {
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
