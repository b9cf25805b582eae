//! Client authentication: headers and form fields of one request to the authorization server (RFC 6749 §2.3).
//!
//! Invariants: one method per request; with `Basic` the body does not name the client; a header with a secret is marked
//! sensitive; every request gets a new assertion.
//! Not here: which of several secrets to try (`call`), the claims of an assertion (`assertion`).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, header};
use url::form_urlencoded;

use super::assertion::{AssertionContext, Signer};
use super::failure::Failure;
use super::form::Fields;
use crate::model::connection::{BasicEncoding, ClientAuth, Connection};
use crate::model::query::percent_encoded;
use crate::model::secret::Secret;

/// RFC 7523 §2.2
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// One client authentication method with one secret.
#[derive(Debug)]
pub enum ClientCredential {
    Body(Secret),
    Basic(Secret, BasicEncoding),
    /// A JWT, and the shared secret that signs it if the algorithm is symmetric.
    Assertion(Signer, Option<Secret>),
    /// Only the client ID: a public client, or one that TLS authenticates.
    ClientId,
}

/// The credentials of the connection, in the order of its secrets.
pub fn credentials(connection: &Connection) -> Vec<ClientCredential> {
    let secrets = connection.client_auth.secrets().iter().cloned();
    match &connection.client_auth {
        ClientAuth::Body(_) => secrets.map(ClientCredential::Body).collect(),
        ClientAuth::Basic(_, encoding) => secrets.map(|secret| ClientCredential::Basic(secret, *encoding)).collect(),
        ClientAuth::PrivateKeyJwt(key, audience) => {
            vec![ClientCredential::Assertion(Signer::from_key(key, audience), None)]
        }
        ClientAuth::ClientSecretJwt(_, algorithm, audience) => {
            let signer = |secret: Secret| (Signer::from_secret(&secret, *algorithm, audience), secret);
            secrets.map(signer).map(|(signer, secret)| ClientCredential::Assertion(signer, Some(secret))).collect()
        }
        ClientAuth::Tls | ClientAuth::None => vec![ClientCredential::ClientId],
    }
}

impl ClientCredential {
    /// Adds the credential to the request.
    pub fn apply(
        &self,
        client_id: &str,
        context: &AssertionContext<'_>,
        fields: &mut Fields,
        headers: &mut HeaderMap,
    ) -> Result<(), Failure> {
        let mut field = |name: &str, value: &str| fields.push((name.to_owned(), value.to_owned()));
        match self {
            ClientCredential::Body(secret) => {
                field("client_id", client_id);
                field("client_secret", secret.expose());
            }
            ClientCredential::Basic(secret, encoding) => {
                let credentials = basic(client_id, secret, *encoding);
                let value = HeaderValue::try_from(format!("Basic {credentials}"));
                let mut value = value.expect("base64 is visible ASCII");
                value.set_sensitive(true);
                headers.insert(header::AUTHORIZATION, value);
            }
            ClientCredential::Assertion(signer, _) => {
                let assertion = signer.client_assertion(client_id, context)?;
                field("client_id", client_id);
                field("client_assertion_type", ASSERTION_TYPE);
                field("client_assertion", assertion.expose());
            }
            ClientCredential::ClientId => field("client_id", client_id),
        }
        Ok(())
    }

    /// The secret in every encoding that is on the wire or that a response could echo.
    pub fn encodings(&self, client_id: &str) -> Vec<Secret> {
        match self {
            ClientCredential::Body(secret) | ClientCredential::Assertion(_, Some(secret)) => encodings(secret.expose()),
            ClientCredential::Basic(secret, encoding) => {
                let mut encodings = encodings(secret.expose());
                encodings.push(Secret::new(basic(client_id, secret, *encoding)));
                encodings
            }
            ClientCredential::Assertion(_, None) | ClientCredential::ClientId => Vec::new(),
        }
    }
}

/// A secret as is, percent-encoded and form-encoded.
pub fn encodings(text: &str) -> Vec<Secret> {
    let form = form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    vec![Secret::new(text), Secret::new(encode(text)), Secret::new(form)]
}

/// The credentials of RFC 7617 §2. Form encoding (RFC 6749 §2.3.1) comes first unless the server does not decode it.
fn basic(client_id: &str, secret: &Secret, encoding: BasicEncoding) -> String {
    BASE64_STANDARD.encode(match encoding {
        BasicEncoding::Form => format!("{}:{}", encode(client_id), encode(secret.expose())),
        BasicEncoding::Raw => format!("{client_id}:{}", secret.expose()),
    })
}

/// Form encoding with a space as `%20`: every server decodes `%20`, not every server decodes `+`.
fn encode(text: &str) -> String {
    percent_encoded(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::connection::{Algorithm, Audience};

    const CONTEXT: AssertionContext<'_> = AssertionContext {
        token_url: "https://as.test/t",
        issuer: None,
        now: crate::model::time::WallTime::from_secs(1_700_000_000),
    };

    /// The fields that were added, and the decoded `Basic` credentials.
    #[track_caller]
    fn applied(credential: &ClientCredential, client_id: &str) -> (Vec<(String, String)>, Option<String>) {
        let (mut sent, mut headers) = (vec![("grant_type".to_owned(), "x".to_owned())], HeaderMap::new());
        credential.apply(client_id, &CONTEXT, &mut sent, &mut headers).unwrap();
        let header = headers.get(header::AUTHORIZATION).map(|value| {
            assert!(value.is_sensitive());
            let text = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
            String::from_utf8(BASE64_STANDARD.decode(text).unwrap()).unwrap()
        });
        assert_eq!(headers.len(), usize::from(header.is_some()));
        (sent.split_off(1), header)
    }

    #[track_caller]
    fn check(credential: &ClientCredential, client_id: &str, fields: &[(&str, &str)], basic: Option<&str>) {
        let (sent, header) = applied(credential, client_id);
        let sent: Vec<_> = sent.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!((&*sent, header.as_deref()), (fields, basic));
    }

    #[test]
    fn each_method_authenticates_once() {
        let secret = || Secret::new("a+/:%$ é\"\\");
        let coded = "a%2B%2F%3A%25%24%20%C3%A9%22%5C";
        check(&ClientCredential::ClientId, "id", &[("client_id", "id")], None);
        check(
            &ClientCredential::Body(secret()),
            "i d",
            &[("client_id", "i d"), ("client_secret", "a+/:%$ é\"\\")],
            None,
        );
        let form = ClientCredential::Basic(secret(), BasicEncoding::Form);
        check(&form, "i:d +", &[], Some(&format!("i%3Ad%20%2B:{coded}")));
        check(&ClientCredential::Basic(secret(), BasicEncoding::Raw), "id", &[], Some("id:a+/:%$ é\"\\"));
        let plain = Secret::new("AZaz09-_.~");
        check(&ClientCredential::Basic(plain, BasicEncoding::Form), "id", &[], Some("id:AZaz09-_.~"));
    }

    #[test]
    fn each_request_gets_a_new_assertion_and_no_secret() {
        let secret = Secret::new("0123456789abcdef0123456789abcdef");
        let signer = Signer::from_secret(&secret, Algorithm::HS256, &Audience::TokenUrl);
        let credential = ClientCredential::Assertion(signer, Some(secret));
        let (first, header) = applied(&credential, "id");
        let names: Vec<_> = first.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((&*names, header), (&["client_id", "client_assertion_type", "client_assertion"][..], None));
        assert_ne!(first, applied(&credential, "id").0);
        assert!(!format!("{credential:?}{first:?}").contains("0123456789"));
    }

    #[test]
    fn each_secret_makes_one_credential() {
        let secrets = || vec![Secret::new("first"), Secret::new("second")];
        for (auth, count) in [
            (ClientAuth::Body(secrets()), 2),
            (ClientAuth::Basic(secrets(), BasicEncoding::Raw), 2),
            (ClientAuth::ClientSecretJwt(secrets(), Algorithm::HS256, Audience::TokenUrl), 2),
            (ClientAuth::Tls, 1),
            (ClientAuth::None, 1),
        ] {
            let credentials = credentials(&Connection { client_auth: auth, ..Connection::sample("crm") });
            assert_eq!(credentials.len(), count);
            assert!(!format!("{credentials:?}").contains("first"));
        }
    }
}
