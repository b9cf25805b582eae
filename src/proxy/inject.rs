//! Puts the token where the route says, and drops what the caller sent there. Pure.
//!
//! Holds: this is the only function that writes a token into a request, and it compares the origin that is about to be
//! dialled with the origins of the token. It runs last, so nothing that the caller sent can remove or double it.

use http::HeaderMap;
use http::uri::PathAndQuery;
use url::form_urlencoded;

use super::headers;
use crate::model::connection::{Existing, Inject};
use crate::model::origin::Origin;
use crate::token::slot::InjectedToken;

/// What the caller's own value in the token's place means for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The token goes there.
    Free,
    /// The caller's own value stays; the request needs no token.
    Kept,
    /// The request is refused.
    Refused,
}

/// Looks at what the caller sent where the token belongs.
pub fn look(headers: &HeaderMap, path: &PathAndQuery, inject: &Inject, existing: Existing) -> Place {
    let sent = match inject {
        Inject::Header { header, .. } => headers.get_all(header).iter().count(),
        Inject::Query { name } => pieces(path).filter(|piece| is_named(piece, name)).count(),
        Inject::Nothing => 0,
    };
    match (existing, sent) {
        (Existing::Overwrite, _) | (_, 0) => Place::Free,
        (Existing::Keep, 1) => Place::Kept,
        (Existing::Keep | Existing::Refuse, _) => Place::Refused,
    }
}

/// Why there is no token in the request.
#[derive(Debug, PartialEq, Eq)]
pub enum NotInjected {
    /// It was not granted for this origin.
    WrongOrigin,
    /// With it the target is longer than one can be.
    TooLong,
}

/// Writes the token into a request for `origin`: afterwards it stands there exactly once.
pub fn inject(
    headers: &mut HeaderMap,
    path: &mut PathAndQuery,
    origin: &Origin,
    inject: &Inject,
    token: &InjectedToken,
) -> Result<(), NotInjected> {
    match inject {
        Inject::Header { header, scheme } => {
            let value = token.header_for(origin, scheme).ok_or(NotInjected::WrongOrigin)?;
            headers::remove_with_twins(headers, header);
            headers.insert(header, value);
        }
        Inject::Query { name } => {
            let text = token.text_for(origin).ok_or(NotInjected::WrongOrigin)?;
            let added = form_urlencoded::Serializer::new(String::new()).append_pair(name, text).finish();
            *path = with_query(path, name, Some(added)).ok_or(NotInjected::TooLong)?;
        }
        Inject::Nothing => {}
    }
    Ok(())
}

/// Removes what the caller sent in the token's place: a request that is forwarded without a token carries none.
pub fn clear(headers: &mut HeaderMap, path: &mut PathAndQuery, inject: &Inject) {
    match inject {
        Inject::Header { header, .. } => headers::remove_with_twins(headers, header),
        Inject::Query { name } => *path = with_query(path, name, None).unwrap_or_else(|| path.clone()),
        Inject::Nothing => {}
    }
}

/// The same without what is called `name`, and with `added` at the end; the rest stays as it was written.
fn with_query(path: &PathAndQuery, name: &str, added: Option<String>) -> Option<PathAndQuery> {
    let kept = pieces(path).filter(|piece| !is_named(piece, name)).map(str::to_owned);
    let query = kept.chain(added).collect::<Vec<_>>().join("&");
    let mark = if query.is_empty() { "" } else { "?" };
    PathAndQuery::try_from([path.path(), mark, &query].concat()).ok()
}

fn pieces(path: &PathAndQuery) -> impl Iterator<Item = &str> {
    path.query().into_iter().flat_map(|query| query.split('&'))
}

/// However the caller has written it.
fn is_named(piece: &str, name: &str) -> bool {
    form_urlencoded::parse(piece.as_bytes()).next().is_some_and(|(own, _)| own == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_of_the_query_is_found_however_it_is_written_and_the_rest_stays() {
        #[track_caller]
        fn check(path: &str, sent: usize, with: &str, without: &str) {
            let path = PathAndQuery::try_from(path).unwrap();
            assert_eq!(pieces(&path).filter(|piece| is_named(piece, "access_token")).count(), sent);
            assert_eq!(with_query(&path, "access_token", Some("access_token=t".to_owned())).unwrap(), with);
            assert_eq!(with_query(&path, "access_token", None).unwrap(), without);
        }
        check("/x", 0, "/x?access_token=t", "/x");
        check("/x?", 0, "/x?&access_token=t", "/x");
        check("/x?a=%20b&c", 0, "/x?a=%20b&c&access_token=t", "/x?a=%20b&c");
        check("/x?access_token=old", 1, "/x?access_token=t", "/x");
        check("/x?a=1&acc%65ss_token=old&b=2&access_token", 2, "/x?a=1&b=2&access_token=t", "/x?a=1&b=2");
        check("/x?Access_Token=y", 0, "/x?Access_Token=y&access_token=t", "/x?Access_Token=y");
    }

    #[test]
    fn what_the_caller_sent_decides_as_the_route_says() {
        let path = |text: &str| PathAndQuery::try_from(text).unwrap();
        let query = Inject::Query { name: "key".to_owned() };
        for (text, keep, refuse) in [
            ("/x", Place::Free, Place::Free),
            ("/x?key=a", Place::Kept, Place::Refused),
            ("/x?key=a&key=b", Place::Refused, Place::Refused),
        ] {
            let look = |existing| look(&HeaderMap::new(), &path(text), &query, existing);
            assert_eq!(
                (look(Existing::Overwrite), look(Existing::Keep), look(Existing::Refuse)),
                (Place::Free, keep, refuse)
            );
        }
    }
}
