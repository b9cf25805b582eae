//! `inject`: the injection points of a request: one, none, or a list with tokens of other connections.

use http::header::AUTHORIZATION;

use super::file::InjectFile;
use super::header::{header, parameter};
use crate::config::reading::{Fault, Sink, Spot, Unit, value};
use crate::model::Name;
use crate::model::connection::{Inject, OtherToken};

/// Where a token goes unless that is written.
pub fn standard_inject() -> Inject {
    Inject::Header { header: AUTHORIZATION, scheme: "Bearer".to_owned() }
}

/// The place of the connection's own token, and those of other connections'.
pub fn places(spot: &Spot<'_>, sink: &mut Sink) -> Option<(Inject, Vec<OtherToken>)> {
    if !spot.is_list() {
        let (inject, connection) = item(spot, sink)?;
        if let Some((at, _)) = connection {
            at.problem(
                sink,
                "only an item of a list may say whose token it is",
                "write inject: [{…, connection: NAME}]",
            );
        }
        return Some((inject, Vec::new()));
    }
    let (mut own, mut others): (Option<Inject>, Vec<OtherToken>) = (None, Vec::new());
    let items = spot.items(sink).unwrap_or_default();
    if items.is_empty() {
        spot.problem(sink, "names no place", "write one place, or none");
    }
    for at in &items {
        let Some((inject, connection)) = item(at, sink) else { continue };
        let hint = "give each token a header or a parameter of its own";
        let mut taken = others.iter().map(|other| &other.inject).chain(&own);
        match (&inject, connection) {
            (Inject::Nothing, _) => at.problem(sink, "is `none` within a list", "leave it out"),
            _ if taken.any(|other| is_one_place(other, &inject)) => {
                at.problem(sink, "is the place of two tokens", hint)
            }
            (_, Some((_, connection))) => others.push(OtherToken { connection, inject }),
            (_, None) if own.is_some() => {
                at.problem(sink, "is a second place for the connection's own token", "give one `connection: NAME`");
            }
            (_, None) => own = Some(inject),
        }
    }
    Some((own.unwrap_or(Inject::Nothing), others))
}

fn is_one_place(one: &Inject, other: &Inject) -> bool {
    match (one, other) {
        (Inject::Header { header: one, .. }, Inject::Header { header: other, .. }) => one == other,
        (Inject::Query { name: one }, Inject::Query { name: other }) => one == other,
        _ => false,
    }
}

/// A map over the standard, or `none`; with the connection that it names.
fn item<'a>(spot: &Spot<'a>, sink: &mut Sink) -> Option<(Inject, Option<(Spot<'a>, Name)>)> {
    if !spot.is_map() {
        let inject = spot.parse(sink, |text| match text {
            "none" => Ok(Inject::Nothing),
            _ => Err(Fault::new("is not known here", "write {header: NAME, scheme: WORD}, {query: NAME} or none")),
        });
        return Some((inject?, None));
    }
    let unit = spot.unit::<InjectFile>(sink)?;
    let connection = match unit.get(unit.keys.connection) {
        None => None,
        Some(at) => Some((at.clone(), at.parse(sink, value::name)?)),
    };
    Some((place(&unit, sink)?, connection))
}

fn place(unit: &Unit<'_, InjectFile>, sink: &mut Sink) -> Option<Inject> {
    if let Some(at) = unit.get(unit.keys.query) {
        for other in [unit.get(unit.keys.header), unit.get(unit.keys.scheme)].into_iter().flatten() {
            other.problem(sink, "stands beside `query`", "write {query: NAME}, or {header: NAME, scheme: WORD}");
        }
        return Some(Inject::Query { name: at.parse(sink, parameter)? });
    }
    let header = match unit.get(unit.keys.header) {
        None => Some(AUTHORIZATION),
        Some(spot) => spot.parse(sink, header),
    };
    let scheme = match unit.get(unit.keys.scheme) {
        None => Some("Bearer".to_owned()),
        Some(spot) => spot.parse(sink, scheme),
    };
    Some(Inject::Header { header: header?, scheme: scheme? })
}

/// Empty, or a token (RFC 9110 §5.6.2).
fn scheme(text: &str) -> Result<String, Fault> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err(Fault::new("is not one word", "write a scheme such as Bearer, or \"\" for the token alone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_one_word_or_none() {
        assert_eq!(
            (scheme("").unwrap().as_str(), scheme("Zoho-oauthtoken").unwrap().as_str()),
            ("", "Zoho-oauthtoken")
        );
        for bad in ["Bearer ", "a b", "a\n", "é", "a:"] {
            assert!(scheme(bad).is_err(), "{bad}");
        }
    }
}
