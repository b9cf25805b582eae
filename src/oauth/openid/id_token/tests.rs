//! ID tokens that a provider could send, and those that only an attacker or a broken provider sends.

use jsonwebtoken::EncodingKey;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000;
const RSA: &str = include_str!("../../../jwt/tests/rsa-pkcs1.pem");
const RSA_PUBLIC: &str = include_str!("../../../jwt/tests/rsa-public.pem");
const P256: &str = include_str!("../../../jwt/tests/p256-pkcs8.pem");
const P384: &str = include_str!("../../../jwt/tests/p384-pkcs8.pem");
const ED25519: &str = include_str!("../../../jwt/tests/ed25519.pem");

fn signing_key(algorithm: Algorithm) -> EncodingKey {
    let der = |pem: &str| PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap().secret_der().to_vec();
    match algorithm {
        Algorithm::ES256 => EncodingKey::from_ec_der(&der(P256)),
        Algorithm::ES384 => EncodingKey::from_ec_der(&der(P384)),
        Algorithm::EdDSA => EncodingKey::from_ed_der(&der(ED25519)),
        _ => EncodingKey::from_rsa_der(&der(RSA)),
    }
}

/// The provider's key set, with a key ID that is the algorithm's name.
fn keys(algorithms: &[Algorithm]) -> Vec<Jwk> {
    let jwk = |algorithm: &Algorithm| {
        let mut jwk = Jwk::from_encoding_key(&signing_key(*algorithm), *algorithm).unwrap();
        jwk.common.key_id = Some(format!("{algorithm:?}"));
        jwk
    };
    algorithms.iter().map(jwk).collect()
}

fn claims() -> Value {
    json!({"iss": "https://op.test", "aud": "kb", "sub": "ann", "nonce": "n", "exp": NOW + 300, "iat": NOW})
}

fn sign(claims: &Value, algorithm: Algorithm) -> String {
    let mut header = Header::new(algorithm);
    header.kid = Some(format!("{algorithm:?}"));
    jsonwebtoken::encode(&header, claims, &signing_key(algorithm)).unwrap()
}

fn judge(token: &str, keys: &[Jwk]) -> Result<String, IdTokenError> {
    let now = WallTime::from_secs(NOW);
    let expected =
        Expected { issuer: "https://op.test", client_id: "kb", nonce: "n", access_token: Some("the-token"), now };
    verify(token, keys, &expected).map(|claims| claims.subject)
}

#[test]
fn every_asymmetric_algorithm_is_accepted_with_a_key_of_its_type() {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    for algorithm in [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA] {
        let mut claims = claims();
        claims["at_hash"] = at_hash("the-token", algorithm).into();
        let token = sign(&claims, algorithm);
        assert_eq!(judge(&token, &keys(&[ES256, algorithm])), Ok("ann".to_owned()), "{algorithm:?}");
        let other = if algorithm == ES256 { EdDSA } else { ES256 };
        assert_eq!(judge(&token, &keys(&[other])), Err(IdTokenError::UnknownKey), "{algorithm:?}");
        let (message, _) = token.rsplit_once('.').unwrap();
        let (_, foreign) =
            sign(&json!({}), algorithm).rsplit_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let forged = format!("{message}.{foreign}");
        assert_eq!(judge(&forged, &keys(&[algorithm])), Err(IdTokenError::Signature), "{algorithm:?}");
    }
    // An example of OpenID Connect Core: the access token of appendix A.3 and its at_hash.
    assert_eq!(at_hash("jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y", Algorithm::RS256), "77QmUPtjPfzWtF2AnpK9RQ");
}

#[test]
fn a_token_without_an_asymmetric_signature_is_refused() {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let rsa = keys(&[Algorithm::RS256]);
    for alg in ["none", "None", "", "ES512", "XX"] {
        let token = format!("{}.{}.", part(&json!({ "alg": alg, "kid": "RS256" })), part(&claims()));
        assert_eq!(judge(&token, &rsa), Err(IdTokenError::Algorithm), "{alg}");
    }
    // Signed with the public key as a shared secret.
    for secret in [RSA_PUBLIC.as_bytes(), RSA_PUBLIC.trim().as_bytes()] {
        let header = Header { kid: Some("RS256".to_owned()), ..Header::new(Algorithm::HS256) };
        let token = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(secret).unwrap()).unwrap();
        assert_eq!(judge(&token, &rsa), Err(IdTokenError::Algorithm));
    }
    let header = Header { crit: Some(vec!["x".to_owned()]), ..Header::new(Algorithm::RS256) };
    let token = jsonwebtoken::encode(&header, &claims(), &signing_key(Algorithm::RS256)).unwrap();
    assert_eq!(judge(&token, &rsa), Err(IdTokenError::Algorithm));
    for malformed in ["", "a", "a.b", "a.b.c", "e30.e30.", "e30.e30.e30.e30.e30"] {
        assert_eq!(judge(malformed, &rsa), Err(IdTokenError::Malformed), "{malformed}");
    }
}

#[track_caller]
fn check(change: Value, expected: Result<&str, IdTokenError>) {
    let mut claims = claims();
    for (name, value) in change.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    let judged = judge(&sign(&claims, Algorithm::ES256), &keys(&[Algorithm::ES256]));
    assert_eq!(judged.as_deref().map_err(|error| *error), expected, "{change}");
}

#[test]
fn each_claim_is_checked() {
    use IdTokenError::{AccessToken, Audience, AuthorizedParty, Expired, IssuedAt, Issuer, Nonce, Subject};
    for issuer in [json!("https://op.test/"), json!("https://evil.test"), json!(1), Value::Null] {
        check(json!({ "iss": issuer }), Err(Issuer));
    }
    for audience in [json!("other"), json!(["other"]), json!([]), json!(1), Value::Null] {
        check(json!({ "aud": audience }), Err(Audience));
    }
    check(json!({"aud": ["kb"]}), Ok("ann"));
    check(json!({"aud": ["kb", "other"]}), Err(AuthorizedParty));
    check(json!({"aud": ["kb", 1]}), Err(AuthorizedParty));
    check(json!({"aud": ["kb", "other"], "azp": "kb"}), Ok("ann"));
    check(json!({"aud": ["kb", "other"], "azp": "other"}), Err(AuthorizedParty));
    check(json!({"azp": "other"}), Err(AuthorizedParty));
    check(json!({"exp": NOW - 59}), Ok("ann"));
    check(json!({"exp": NOW - 60}), Err(Expired));
    check(json!({ "exp": "soon" }), Err(Expired));
    check(json!({ "exp": null }), Err(Expired));
    check(json!({"iat": NOW + 60}), Ok("ann"));
    check(json!({"iat": NOW + 61}), Err(IssuedAt));
    check(json!({ "iat": null }), Err(IssuedAt));
    check(json!({"nbf": NOW + 61}), Err(IssuedAt));
    for nonce in [json!("other"), json!(""), json!(1), Value::Null] {
        check(json!({ "nonce": nonce }), Err(Nonce));
    }
    check(json!({"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"}), Err(AccessToken));
    check(json!({"at_hash": 1}), Err(AccessToken));
    for subject in [json!(""), json!("a".repeat(256)), json!(1), Value::Null] {
        check(json!({ "sub": subject }), Err(Subject));
    }
}

#[test]
fn without_a_key_id_any_fitting_key_may_have_signed() {
    let token =
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims(), &signing_key(Algorithm::ES256)).unwrap();
    assert_eq!(judge(&token, &keys(&[Algorithm::RS256, Algorithm::ES256])), Ok("ann".to_owned()));
    assert_eq!(judge(&token, &keys(&[Algorithm::RS256])), Err(IdTokenError::UnknownKey));
    let mut foreign = keys(&[Algorithm::ES256]);
    foreign[0].common.key_id = Some("rotated".to_owned());
    assert_eq!(judge(&sign(&claims(), Algorithm::ES256), &foreign), Err(IdTokenError::UnknownKey));
}
