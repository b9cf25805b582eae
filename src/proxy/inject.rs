//! Puts the token where the route says, and drops what the caller sent there. Pure.
//!
//! Holds: this is the only function that writes a token into a request, and it compares the origin that is about to be
//! dialled with the origins of the token. It runs last, so nothing that the caller sent can remove or double the field.

use http::HeaderMap;
use http::header::HeaderName;

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
pub fn look(headers: &HeaderMap, header: &HeaderName, existing: Existing) -> Place {
    let mut values = headers.get_all(header).iter();
    match (existing, values.next().is_some(), values.next().is_some()) {
        (Existing::Overwrite, ..) | (_, false, _) => Place::Free,
        (Existing::Keep, true, false) => Place::Kept,
        (Existing::Keep, true, true) | (Existing::Refuse, true, _) => Place::Refused,
    }
}

/// The token was not granted for this origin.
#[derive(Debug, PartialEq, Eq)]
pub struct WrongOrigin;

/// Writes the token into a request for `origin`: afterwards the field stands there exactly once.
pub fn inject(
    headers: &mut HeaderMap,
    origin: &Origin,
    inject: &Inject,
    token: &InjectedToken,
) -> Result<(), WrongOrigin> {
    let Inject::Header { header, scheme } = inject else { return Ok(()) };
    let value = token.header_for(origin, scheme).ok_or(WrongOrigin)?;
    headers::remove_with_twins(headers, header);
    headers.insert(header, value);
    Ok(())
}

/// Removes what the caller sent in the token's place: a request that is forwarded without a token carries none.
pub fn clear(headers: &mut HeaderMap, inject: &Inject) {
    if let Inject::Header { header, .. } = inject {
        headers::remove_with_twins(headers, header);
    }
}
