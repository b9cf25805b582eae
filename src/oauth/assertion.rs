//! Claims of the JWTs that we send: client assertions (RFC 7523 §2.2) and assertion grants (RFC 7523 §2.1).
//!
//! Invariants: a `jti` is never used twice; a client assertion is valid for a minute.
//! Not here: signing (`jwt`).

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::failure::{Failure, Refusal};
use crate::jwt::{self, KeyHint, SigningKey};
use crate::model::connection::{Algorithm, AssertionKey, Audience, JwtAssertion};
use crate::model::secret::Secret;
use crate::model::time::WallTime;

/// Tolerates some clock skew; far below five minutes, the strictest limit among servers.
const CLIENT_ASSERTION_LIFETIME: Duration = Duration::from_secs(60);

/// Values of the token request that the claims use.
#[derive(Debug, Clone, Copy)]
pub struct AssertionContext<'a> {
    pub token_url: &'a str,
    pub issuer: Option<&'a str>,
    pub now: WallTime,
}

/// A signing key, and the header and audience that all its JWTs share.
#[derive(Debug)]
pub struct Signer {
    /// `None`: the key does not fit the algorithm, which configuration validation rules out.
    key: Option<SigningKey>,
    hint: KeyHint,
    audience: Audience,
}

impl Signer {
    pub fn from_key(key: &AssertionKey, audience: &Audience) -> Signer {
        let hint = KeyHint { key_id: key.key_id.clone(), thumbprint: key.thumbprint.clone() };
        Signer { key: SigningKey::from_pem(&key.pem, key.algorithm).ok(), hint, audience: audience.clone() }
    }

    pub fn from_secret(secret: &Secret, algorithm: Algorithm, audience: &Audience) -> Signer {
        let key = SigningKey::from_secret(secret, algorithm).ok();
        Signer { key, hint: KeyHint::default(), audience: audience.clone() }
    }

    /// A client assertion that authenticates us as `client_id`.
    pub fn client_assertion(&self, client_id: &str, context: &AssertionContext<'_>) -> Result<Secret, Failure> {
        self.sign(client_id, Some(client_id), context, CLIENT_ASSERTION_LIFETIME, &Map::new())
    }

    /// The assertion of the `jwt_bearer` grant, for the subject in the configuration, else for `subject`.
    pub fn grant_assertion(
        &self,
        assertion: &JwtAssertion,
        (client_id, subject): (&str, Option<&str>),
        context: &AssertionContext<'_>,
    ) -> Result<Secret, Failure> {
        let issuer = assertion.issuer.as_deref().unwrap_or(client_id);
        let subject = assertion.subject.as_deref().or(subject).unwrap_or(issuer);
        self.sign(issuer, Some(subject), context, assertion.lifetime, &assertion.claims)
    }

    fn sign(
        &self,
        issuer: &str,
        subject: Option<&str>,
        context: &AssertionContext<'_>,
        lifetime: Duration,
        more: &Map<String, Value>,
    ) -> Result<Secret, Failure> {
        let audience = match &self.audience {
            Audience::TokenUrl => context.token_url,
            Audience::Issuer => context.issuer.unwrap_or(context.token_url),
            Audience::Text(text) => text,
        };
        let now = context.now.as_secs();
        let mut claims = more.clone();
        claims.insert("iss".to_owned(), json!(issuer));
        claims.extend(subject.map(|subject| ("sub".to_owned(), json!(subject))));
        claims.insert("aud".to_owned(), json!(audience));
        claims.insert("iat".to_owned(), json!(now));
        claims.insert("exp".to_owned(), json!(now + lifetime.as_secs()));
        claims.insert("jti".to_owned(), json!(jwt::unique_id()));
        let signed = self.key.as_ref().and_then(|key| key.sign(&self.hint, &claims).ok());
        signed.ok_or_else(|| Failure::Permanent(Refusal::from_code("assertion_not_signed")))
    }
}
