//! Signatures are verified with public keys that OpenSSL derived; mismatched keys and certificates are reported.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::certificate::CertificateError;
use super::*;

// Generated with OpenSSL 3 for these tests only, including the public keys and certificates.
const RSA_PKCS8: &str = include_str!("tests/rsa-pkcs8.pem");
const RSA_PKCS1: &str = include_str!("tests/rsa-pkcs1.pem");
const RSA_PUBLIC: &str = include_str!("tests/rsa-public.pem");
const RSA_1024: &str = include_str!("tests/rsa-1024.pem");
const P256_PKCS8: &str = include_str!("tests/p256-pkcs8.pem");
const P256_SEC1: &str = include_str!("tests/p256-sec1.pem");
const P256_PUBLIC: &str = include_str!("tests/p256-public.pem");
const P384_PKCS8: &str = include_str!("tests/p384-pkcs8.pem");
const P384_SEC1: &str = include_str!("tests/p384-sec1.pem");
const P384_PUBLIC: &str = include_str!("tests/p384-public.pem");
const ED25519: &str = include_str!("tests/ed25519.pem");
const ED25519_PUBLIC: &str = include_str!("tests/ed25519-public.pem");
const ENCRYPTED_PKCS8: &str = include_str!("tests/encrypted-pkcs8.pem");
const ENCRYPTED_PKCS1: &str = include_str!("tests/encrypted-pkcs1.pem");
const RSA_CERTIFICATE: &str = include_str!("tests/rsa-certificate.pem");
const P256_CERTIFICATE: &str = include_str!("tests/p256-certificate.pem");
const ED25519_CERTIFICATE: &str = include_str!("tests/ed25519-certificate.pem");

const SHARED: &str = "a shared secret of this test";

fn from_pem(pem: &str, algorithm: Algorithm) -> Result<SigningKey, KeyError> {
    SigningKey::from_pem(&Secret::new(pem), algorithm)
}

fn object(json: &str) -> Map<String, Value> {
    serde_json::from_str(json).unwrap()
}

fn signed(key: &SigningKey) -> Secret {
    let hint = KeyHint { key_id: Some("k1".to_owned()), thumbprint: None };
    key.sign(&hint, &object(r#"{"iss":"us","exp":7}"#)).unwrap()
}

/// The parts of a JWT: signing input, header, claims, signature.
fn parts(token: &Secret) -> (String, Value, Value, Vec<u8>) {
    let (message, signature) = token.expose().rsplit_once('.').unwrap();
    let (header, claims) = message.split_once('.').unwrap();
    let bytes = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).unwrap();
    let json = |part: &str| serde_json::from_slice(&bytes(part)).unwrap();
    (message.into(), json(header), json(claims), bytes(signature))
}

fn public_bits(pem: &str) -> Vec<u8> {
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, info) = SubjectPublicKeyInfo::from_der(&der).unwrap();
    info.subject_public_key.data.to_vec()
}

#[track_caller]
fn check_signed(pem: &str, algorithm: Algorithm, public: &str, verification: &'static dyn VerificationAlgorithm) {
    let token = signed(&from_pem(pem, algorithm).unwrap());
    let (message, header, claims, signature) = parts(&token);
    let expected = format!(r#"{{"alg":"{}","kid":"k1","typ":"JWT"}}"#, algorithm.as_str());
    assert_eq!(header, serde_json::from_str::<Value>(&expected).unwrap());
    assert_eq!(claims, serde_json::json!({"iss": "us", "exp": 7}));
    let key = UnparsedPublicKey::new(verification, public_bits(public));
    key.verify(message.as_bytes(), &signature).expect("the signature verifies with the public key");
    key.verify(b"another message", &signature).expect_err("the signature covers the message");
}

#[test]
fn signatures_of_every_algorithm_verify_with_openssls_public_key() {
    for pem in [RSA_PKCS8, RSA_PKCS1] {
        check_signed(pem, Algorithm::RS256, RSA_PUBLIC, &signature::RSA_PKCS1_2048_8192_SHA256);
        check_signed(pem, Algorithm::RS384, RSA_PUBLIC, &signature::RSA_PKCS1_2048_8192_SHA384);
        check_signed(pem, Algorithm::RS512, RSA_PUBLIC, &signature::RSA_PKCS1_2048_8192_SHA512);
        check_signed(pem, Algorithm::PS256, RSA_PUBLIC, &signature::RSA_PSS_2048_8192_SHA256);
        check_signed(pem, Algorithm::PS384, RSA_PUBLIC, &signature::RSA_PSS_2048_8192_SHA384);
        check_signed(pem, Algorithm::PS512, RSA_PUBLIC, &signature::RSA_PSS_2048_8192_SHA512);
    }
    for pem in [P256_PKCS8, P256_SEC1] {
        check_signed(pem, Algorithm::ES256, P256_PUBLIC, &signature::ECDSA_P256_SHA256_FIXED);
    }
    for pem in [P384_PKCS8, P384_SEC1] {
        check_signed(pem, Algorithm::ES384, P384_PUBLIC, &signature::ECDSA_P384_SHA384_FIXED);
    }
    check_signed(ED25519, Algorithm::EdDSA, ED25519_PUBLIC, &signature::ED25519);
}

#[test]
fn shared_secrets_sign_with_hmac() {
    let methods = [
        (Algorithm::HS256, hmac::HMAC_SHA256),
        (Algorithm::HS384, hmac::HMAC_SHA384),
        (Algorithm::HS512, hmac::HMAC_SHA512),
    ];
    for (algorithm, method) in methods {
        let token = signed(&SigningKey::from_secret(&Secret::new(SHARED), algorithm).unwrap());
        let (message, header, _, signature) = parts(&token);
        assert_eq!(header["alg"], algorithm.as_str());
        hmac::verify(&hmac::Key::new(method, SHARED.as_bytes()), message.as_bytes(), &signature).unwrap();
    }
}

#[test]
fn ecdsa_signatures_have_fixed_length() {
    // RFC 7518 §3.4: 32 bytes each for P-256, 48 for P-384.
    for (pem, algorithm, bytes) in [(P256_SEC1, Algorithm::ES256, 64), (P384_SEC1, Algorithm::ES384, 96)] {
        assert_eq!(parts(&signed(&from_pem(pem, algorithm).unwrap())).3.len(), bytes);
    }
}

#[test]
fn the_header_names_key_and_certificate() {
    let key = from_pem(P256_PKCS8, Algorithm::ES256).unwrap();
    let header = |key_id: Option<&str>, thumbprint| {
        let hint = KeyHint { key_id: key_id.map(str::to_owned), thumbprint };
        parts(&key.sign(&hint, &Map::new()).unwrap()).1
    };
    assert_eq!(header(None, None), serde_json::json!({"alg": "ES256", "typ": "JWT"}));
    let sha1 = Some((Thumbprint::Sha1, "one".to_owned()));
    assert_eq!(header(Some("k"), sha1), serde_json::json!({"alg": "ES256", "typ": "JWT", "kid": "k", "x5t": "one"}));
    let sha256 = Some((Thumbprint::Sha256, "two".to_owned()));
    assert_eq!(header(None, sha256), serde_json::json!({"alg": "ES256", "typ": "JWT", "x5t#S256": "two"}));
}

#[test]
fn the_first_private_key_of_a_pem_file_is_used() {
    let text = format!("{RSA_CERTIFICATE}{RSA_PKCS8}{P256_PKCS8}");
    signed(&from_pem(&text, Algorithm::RS256).unwrap());
}

#[test]
fn a_key_that_does_not_fit_its_algorithm_is_reported() {
    #[track_caller]
    fn check(pem: &str, algorithm: Algorithm, expected: &str) {
        assert_eq!(from_pem(pem, algorithm).unwrap_err().to_string(), expected);
    }
    check("", Algorithm::RS256, "holds no private key in PEM");
    check(RSA_PUBLIC, Algorithm::RS256, "holds no private key in PEM");
    check(RSA_CERTIFICATE, Algorithm::RS256, "holds no private key in PEM");
    check(ENCRYPTED_PKCS8, Algorithm::ES256, "is encrypted");
    check(ENCRYPTED_PKCS1, Algorithm::RS256, "is encrypted");
    check(P256_PKCS8, Algorithm::RS256, "is not the RSA key that RS256 needs");
    check(P256_SEC1, Algorithm::PS512, "is not the RSA key that PS512 needs");
    check(ED25519, Algorithm::RS384, "is not the RSA key that RS384 needs");
    check(RSA_1024, Algorithm::RS256, "is an RSA key shorter than 2048 bits");
    check(RSA_PKCS8, Algorithm::ES256, "is not the P-256 key that ES256 needs");
    check(RSA_PKCS1, Algorithm::ES256, "is not the P-256 key that ES256 needs");
    check(P384_PKCS8, Algorithm::ES256, "is not the P-256 key that ES256 needs");
    check(P384_SEC1, Algorithm::ES256, "is not the P-256 key that ES256 needs");
    check(P256_SEC1, Algorithm::ES384, "is not the P-384 key that ES384 needs");
    check(RSA_PKCS8, Algorithm::EdDSA, "is not the Ed25519 key that EdDSA needs");
    check(P256_SEC1, Algorithm::EdDSA, "is not the Ed25519 key that EdDSA needs");
    check(RSA_PKCS8, Algorithm::HS256, "is a private key, and HS256 needs a shared secret");
    let from_secret = |text: &str, algorithm| SigningKey::from_secret(&Secret::new(text), algorithm).unwrap_err();
    assert_eq!(from_secret("", Algorithm::HS256).to_string(), "is empty");
    let expected = "is a shared secret, and RS256 needs a private key";
    assert_eq!(from_secret(SHARED, Algorithm::RS256).to_string(), expected);
}

#[test]
fn debug_output_redacts_the_key() {
    assert_eq!(format!("{:?}", from_pem(RSA_PKCS8, Algorithm::RS256).unwrap()), "***");
}

#[test]
fn thumbprints_equal_openssls() {
    let of = |thumbprint: Thumbprint| thumbprint.of(P256_CERTIFICATE.as_bytes()).unwrap();
    assert_eq!(of(Thumbprint::Sha1), (Thumbprint::Sha1, "VNaLwqwHW5lLEODDNLoq7MVghi4".into()));
    assert_eq!(of(Thumbprint::Sha256), (Thumbprint::Sha256, "kilGO9Nioeu_ejePwKUUYAmJCo5DyU3tYQ9oJjQk7EY".into()));
    let none = Thumbprint::Sha1.of(P256_PUBLIC.as_bytes()).unwrap_err();
    assert_eq!(none.to_string(), "holds no certificate in PEM");
}

#[test]
fn a_certificate_of_another_key_does_not_match() {
    let keys = [
        (RSA_PKCS1, Algorithm::RS256, RSA_CERTIFICATE),
        (P256_SEC1, Algorithm::ES256, P256_CERTIFICATE),
        (ED25519, Algorithm::EdDSA, ED25519_CERTIFICATE),
    ];
    for (pem, algorithm, matching) in keys {
        let key = from_pem(pem, algorithm).unwrap();
        for (_, _, certificate) in keys {
            assert_eq!(certificate_matches(&key, certificate.as_bytes()), Ok(certificate == matching));
        }
    }
    let shared = SigningKey::from_secret(&Secret::new(SHARED), Algorithm::HS256).unwrap();
    assert_eq!(certificate_matches(&shared, RSA_CERTIFICATE.as_bytes()), Ok(false));
    let nonsense = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(certificate_matches(&shared, nonsense), Err(CertificateError::Unreadable));
}
