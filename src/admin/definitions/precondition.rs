//! Preconditions of changes (RFC 9110 §13.1), and the entity tags that they name.

use axum::http::{HeaderMap, HeaderValue, header};

use crate::admin::Precondition;
use crate::admin::problem::{Problem, bad_request};
use crate::model::connection::Revision;

/// Revisions that `If-Match` may list.
const REVISIONS_MAX: usize = 16;

/// The entity tag of a revision.
pub fn etag(revision: Revision) -> HeaderValue {
    // Hexadecimal digits in quotes are always a valid value.
    HeaderValue::from_str(&format!("\"{revision}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Reads `If-Match` and `If-None-Match`.
pub fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let lists = |name| -> Result<Option<Vec<&str>>, Problem> {
        let values = headers.get_all(name).iter().map(|value| value.to_str());
        let values: Vec<_> =
            values.collect::<Result<_, _>>().map_err(|_| bad_request("the precondition is invalid"))?;
        Ok((!values.is_empty()).then(|| values.iter().flat_map(|value| value.split(',')).map(str::trim).collect()))
    };
    match (lists(header::IF_MATCH)?, lists(header::IF_NONE_MATCH)?) {
        (None, None) => Ok(Precondition::Absent),
        (None, Some(tags)) if tags == ["*"] => Ok(Precondition::New),
        (Some(tags), None) if tags == ["*"] => Ok(Precondition::Existing),
        (Some(tags), None) if tags.len() <= REVISIONS_MAX => {
            // Another tag, or a weak one, matches no revision.
            let revision = |tag: &&str| Revision::parse(tag.strip_prefix('"')?.strip_suffix('"')?);
            Ok(Precondition::Revisions(tags.iter().filter_map(revision).collect()))
        }
        _ => Err(bad_request("send `If-Match` with the ETag of `GET`, or `If-None-Match: *` for a new connection")),
    }
}
