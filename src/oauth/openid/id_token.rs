//! Verification of an ID token (OpenID Connect Core 1.0 §3.1.3.7). Pure.
//!
//! Invariants: only asymmetric signatures are accepted, with a key of the provider whose type and `alg` fit; a claim that
//! the standard requires is present and of its type; no error repeats a claim.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};

use crate::model::time::WallTime;
use crate::oauth::json::{Json, Members};

/// Tolerance for clocks that differ.
const CLOCK_SKEW_S: f64 = 60.0;
/// OpenID Connect Core §2.
const SUBJECT_CHARS_MAX: usize = 255;

/// What the ID token of this sign-in must state.
pub struct Expected<'a> {
    pub issuer: &'a str,
    pub client_id: &'a str,
    pub nonce: &'a str,
    /// From the same token response.
    pub access_token: Option<&'a str>,
    pub now: WallTime,
}

/// The claims of a verified ID token.
pub struct Claims {
    pub subject: String,
    pub members: Members,
}

/// Why an ID token is refused. The message completes a sentence that starts with the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdTokenError {
    #[error("is not a JWT")]
    Malformed,
    #[error("is signed with an algorithm that is not accepted: RS, PS, ES or EdDSA is required")]
    Algorithm,
    #[error("is signed with a key that the provider does not publish")]
    UnknownKey,
    #[error("has an invalid signature")]
    Signature,
    #[error("is of another issuer")]
    Issuer,
    #[error("is for another client")]
    Audience,
    #[error("has several audiences and does not name this client in `azp`")]
    AuthorizedParty,
    #[error("has expired, or has no `exp`")]
    Expired,
    #[error("was issued in the future, or has no `iat`; check the clocks")]
    IssuedAt,
    #[error("has another nonce than this sign-in")]
    Nonce,
    #[error("does not belong to the access token (`at_hash`)")]
    AccessToken,
    #[error("has no valid `sub`")]
    Subject,
}

/// Verifies signature and claims.
pub fn verify(token: &str, keys: &[Jwk], expected: &Expected<'_>) -> Result<Claims, IdTokenError> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| header_error(token))?;
    // RFC 7515 §4.1.11: we understand no extension.
    if header.crit.is_some() || !is_asymmetric(header.alg) {
        return Err(IdTokenError::Algorithm);
    }
    let members = signed_claims(token, &header, keys)?;
    let subject = check_claims(&members, header.alg, expected)?;
    Ok(Claims { subject, members })
}

/// jsonwebtoken refuses a header with `alg: none` as a whole.
fn header_error(token: &str) -> IdTokenError {
    let header = token.split('.').next().and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok());
    match header.and_then(|bytes| Json::object(&bytes).ok()) {
        Some(members) if members.contains_key("alg") => IdTokenError::Algorithm,
        _ => IdTokenError::Malformed,
    }
}

fn is_asymmetric(algorithm: Algorithm) -> bool {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    matches!(algorithm, RS256 | RS384 | RS512 | PS256 | PS384 | PS512 | ES256 | ES384 | EdDSA)
}

/// The claims, if a key of the provider has signed them: the one with the header's `kid`, else any that fits.
fn signed_claims(token: &str, header: &Header, keys: &[Jwk]) -> Result<Members, IdTokenError> {
    let fits = |key: &&Jwk| header.kid.is_none() || key.common.key_id == header.kid;
    let alg = jsonwebtoken::jwk::KeyAlgorithm::from(header.alg);
    let fits = |key: &&Jwk| fits(key) && key.common.key_algorithm.is_none_or(|of_key| of_key == alg);
    let usable = |key: &Jwk| DecodingKey::from_jwk(key).ok().filter(|key| key.family() == header.alg.family());
    let mut candidates = keys.iter().filter(fits).filter_map(usable).peekable();
    if candidates.peek().is_none() {
        return Err(IdTokenError::UnknownKey);
    }
    let mut validation = Validation::new(header.alg);
    // The claims are checked here, where each failure has its own error.
    (validation.validate_exp, validation.validate_aud) = (false, false);
    validation.required_spec_claims.clear();
    let verified = candidates.find_map(|key| jsonwebtoken::decode::<Json>(token, &key, &validation).ok());
    match verified.map(|data| data.claims) {
        Some(Json::Object(members)) => Ok(members),
        Some(_) => Err(IdTokenError::Malformed),
        None => Err(IdTokenError::Signature),
    }
}

/// Checks the claims and returns the subject.
fn check_claims(members: &Members, algorithm: Algorithm, expected: &Expected<'_>) -> Result<String, IdTokenError> {
    let text = |name: &str| members.get(name).and_then(Json::as_text);
    let number = |name: &str| match members.get(name) {
        Some(Json::Number(number)) => Some(*number),
        _ => None,
    };
    if text("iss") != Some(expected.issuer) {
        return Err(IdTokenError::Issuer);
    }
    let audiences: Vec<Option<&str>> = match members.get("aud") {
        Some(Json::List(audiences)) => audiences.iter().map(Json::as_text).collect(),
        audience => vec![audience.and_then(Json::as_text)],
    };
    if !audiences.contains(&Some(expected.client_id)) {
        return Err(IdTokenError::Audience);
    }
    let party = members.contains_key("azp").then(|| text("azp"));
    if party.map_or(audiences.len() > 1, |party| party != Some(expected.client_id)) {
        return Err(IdTokenError::AuthorizedParty);
    }
    let now = expected.now.as_secs_f64();
    if number("exp").is_none_or(|exp| now >= exp + CLOCK_SKEW_S) {
        return Err(IdTokenError::Expired);
    }
    let is_future = |at: f64| at > now + CLOCK_SKEW_S;
    if number("iat").is_none_or(is_future) || number("nbf").is_some_and(is_future) {
        return Err(IdTokenError::IssuedAt);
    }
    if text("nonce") != Some(expected.nonce) {
        return Err(IdTokenError::Nonce);
    }
    let own_hash = expected.access_token.map(|access_token| at_hash(access_token, algorithm));
    if members.contains_key("at_hash") && (own_hash.is_none() || text("at_hash") != own_hash.as_deref()) {
        return Err(IdTokenError::AccessToken);
    }
    let subject = text("sub").filter(|subject| (1..=SUBJECT_CHARS_MAX).contains(&subject.chars().count()));
    subject.map(str::to_owned).ok_or(IdTokenError::Subject)
}

/// OpenID Connect Core §3.1.3.6: the left half of the hash that the signature uses.
fn at_hash(access_token: &str, algorithm: Algorithm) -> String {
    use Algorithm::{ES384, EdDSA, PS384, PS512, RS384, RS512};
    let hash = match algorithm {
        RS384 | PS384 | ES384 => &digest::SHA384,
        RS512 | PS512 | EdDSA => &digest::SHA512,
        _ => &digest::SHA256,
    };
    let hash = digest::digest(hash, access_token.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(&hash.as_ref()[..hash.as_ref().len() / 2])
}

#[cfg(test)]
mod tests;
