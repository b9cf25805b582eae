//! The claims of the JWTs that we send: client assertions (RFC 7523 §2.2) and assertion grants (RFC 7523 §2.1).
//!
//! Not here: signing (`jwt`).
//! Invariants: a `jti` is never used twice; a client assertion is valid for a minute.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::failure::{Failure, Refusal};
use crate::jwt::{self, KeyHint, SigningKey};
use crate::model::connection::{Algorithm, AssertionKey, Audience, JwtAssertion};
use crate::model::secret::Secret;
use crate::model::time::WallTime;

/// Long enough for a clock that is a little wrong, far below the five minutes that servers allow at least.
const CLIENT_ASSERTION_LIFETIME: Duration = Duration::from_secs(60);

/// The token request that an assertion is made for.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    pub token_url: &'a str,
    pub issuer: Option<&'a str>,
    pub now: WallTime,
}

/// A key, with what all JWTs signed by it have in common.
#[derive(Debug)]
pub struct Signer {
    /// `None`: the key does not fit, which the checked configuration rules out.
    key: Option<SigningKey>,
    hint: KeyHint,
    audience: Audience,
}

impl Signer {
    pub fn of_key(key: &AssertionKey, audience: &Audience) -> Signer {
        let hint = KeyHint { key_id: key.key_id.clone(), thumbprint: key.thumbprint.clone() };
        Signer { key: SigningKey::from_pem(&key.pem, key.algorithm).ok(), hint, audience: audience.clone() }
    }

    pub fn of_secret(secret: &Secret, algorithm: Algorithm, audience: &Audience) -> Signer {
        let key = SigningKey::from_secret(secret, algorithm).ok();
        Signer { key, hint: KeyHint::default(), audience: audience.clone() }
    }

    /// Proves that we are `client_id`.
    pub fn client_assertion(&self, client_id: &str, moment: &Moment<'_>) -> Result<Secret, Failure> {
        self.sign(client_id, Some(client_id), moment, CLIENT_ASSERTION_LIFETIME, &Map::new())
    }

    /// Requests a token for `subject`, or for the one that the configuration names.
    pub fn grant_assertion(
        &self,
        assertion: &JwtAssertion,
        (client_id, subject): (&str, Option<&str>),
        moment: &Moment<'_>,
    ) -> Result<Secret, Failure> {
        let issuer = assertion.issuer.as_deref().unwrap_or(client_id);
        let subject = assertion.subject.as_deref().or(subject).unwrap_or(issuer);
        self.sign(issuer, Some(subject), moment, assertion.lifetime, &assertion.claims)
    }

    fn sign(
        &self,
        issuer: &str,
        subject: Option<&str>,
        moment: &Moment<'_>,
        lifetime: Duration,
        more: &Map<String, Value>,
    ) -> Result<Secret, Failure> {
        let audience = match &self.audience {
            Audience::TokenUrl => moment.token_url,
            Audience::Issuer => moment.issuer.unwrap_or(moment.token_url),
            Audience::Text(text) => text,
        };
        let now = moment.now.as_secs();
        let mut claims = more.clone();
        claims.insert("iss".to_owned(), json!(issuer));
        claims.extend(subject.map(|subject| ("sub".to_owned(), json!(subject))));
        claims.insert("aud".to_owned(), json!(audience));
        claims.insert("iat".to_owned(), json!(now));
        claims.insert("exp".to_owned(), json!(now + lifetime.as_secs()));
        claims.insert("jti".to_owned(), json!(jwt::unique_id()));
        let signed = self.key.as_ref().and_then(|key| key.sign(&self.hint, &claims).ok());
        signed.ok_or_else(|| Failure::Permanent(Refusal::of_code("assertion_not_signed")))
    }
}
