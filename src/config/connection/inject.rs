//! `inject`: the injection points of a request: one, none, or a list that may include tokens of other connections.

use http::header::AUTHORIZATION;

use super::file::InjectFile;
use super::header::{header, parameter};
use crate::config::reading::{Fault, NodeRef, Section, Sink, value};
use crate::model::Name;
use crate::model::connection::{Inject, OtherToken};

/// The default injection point.
pub fn default_inject() -> Inject {
    Inject::Header { header: AUTHORIZATION, scheme: "Bearer".to_owned() }
}

/// Reads the injection point of the connection's own token, and those of other connections' tokens.
pub fn injection_points(node: &NodeRef<'_>, sink: &mut Sink) -> Option<(Inject, Vec<OtherToken>)> {
    if !node.is_list() {
        let (inject, connection) = item(node, sink)?;
        if let Some((at, _)) = connection {
            at.problem(sink, "`connection` is allowed only in a list", "write `inject: [{…, connection: NAME}]`");
        }
        return Some((inject, Vec::new()));
    }
    let (mut own, mut others): (Option<Inject>, Vec<OtherToken>) = (None, Vec::new());
    let items = node.items(sink).unwrap_or_default();
    if items.is_empty() {
        node.problem(sink, "is an empty list", "add an injection point, or write none");
    }
    for at in &items {
        let Some((inject, connection)) = item(at, sink) else { continue };
        let hint = "give each token its own header or parameter";
        let mut taken = others.iter().map(|other| &other.inject).chain(&own);
        match (&inject, connection) {
            (Inject::Nothing, _) => at.problem(sink, "`none` is not allowed in a list", "remove it"),
            _ if taken.any(|other| is_same_point(other, &inject)) => {
                at.problem(sink, "two tokens share this injection point", hint)
            }
            (_, Some((_, connection))) => others.push(OtherToken { connection, inject }),
            (_, None) if own.is_some() => {
                at.problem(
                    sink,
                    "is a second injection point for the connection's own token",
                    "add `connection: NAME` to one",
                );
            }
            (_, None) => own = Some(inject),
        }
    }
    Some((own.unwrap_or(Inject::Nothing), others))
}

fn is_same_point(one: &Inject, other: &Inject) -> bool {
    match (one, other) {
        (Inject::Header { header: one, .. }, Inject::Header { header: other, .. }) => one == other,
        (Inject::Query { name: one }, Inject::Query { name: other }) => one == other,
        _ => false,
    }
}

/// Reads a map over the default injection point, or `none`; with the connection that the map names.
fn item<'a>(node: &NodeRef<'a>, sink: &mut Sink) -> Option<(Inject, Option<(NodeRef<'a>, Name)>)> {
    if !node.is_map() {
        let inject = node.parse(sink, |text| match text {
            "none" => Ok(Inject::Nothing),
            _ => Err(Fault::new("is not a valid value", "write {header: NAME, scheme: WORD}, {query: NAME} or none")),
        });
        return Some((inject?, None));
    }
    let section = node.section::<InjectFile>(sink)?;
    let connection = match section.get(section.keys.connection) {
        None => None,
        Some(at) => Some((at.clone(), at.parse(sink, value::name)?)),
    };
    Some((injection_point(&section, sink)?, connection))
}

fn injection_point(section: &Section<'_, InjectFile>, sink: &mut Sink) -> Option<Inject> {
    if let Some(at) = section.get(section.keys.query) {
        for other in [section.get(section.keys.header), section.get(section.keys.scheme)].into_iter().flatten() {
            other.problem(
                sink,
                "cannot be combined with `query`",
                "write {query: NAME}, or {header: NAME, scheme: WORD}",
            );
        }
        return Some(Inject::Query { name: at.parse(sink, parameter)? });
    }
    let header = match section.get(section.keys.header) {
        None => Some(AUTHORIZATION),
        Some(node) => node.parse(sink, header),
    };
    let scheme = match section.get(section.keys.scheme) {
        None => Some("Bearer".to_owned()),
        Some(node) => node.parse(sink, scheme),
    };
    Some(Inject::Header { header: header?, scheme: scheme? })
}

/// An HTTP token (RFC 9110 §5.6.2), or empty.
fn scheme(text: &str) -> Result<String, Fault> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err(Fault::new("is not a single word", "write a scheme such as Bearer, or \"\" for the token alone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_one_token_or_empty() {
        assert_eq!(
            (scheme("").unwrap().as_str(), scheme("Zoho-oauthtoken").unwrap().as_str()),
            ("", "Zoho-oauthtoken")
        );
        for bad in ["Bearer ", "a b", "a\n", "é", "a:"] {
            assert!(scheme(bad).is_err(), "{bad}");
        }
    }
}
