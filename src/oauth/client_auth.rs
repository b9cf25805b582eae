//! Client authentication: headers and fields of one request to the authorization server (RFC 6749 §2.3).
//!
//! Not here: which secret of several to try (`call`), the claims of an assertion (`assertion`).
//! Invariants: one method per request; with `Basic` the body does not name the client; a header with a secret is marked
//! sensitive; every request gets a new assertion.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, header};
use url::form_urlencoded;

use super::assertion::{Moment, Signer};
use super::failure::Failure;
use super::form::Fields;
use crate::model::connection::{BasicEncoding, ClientAuth, Connection};
use crate::model::query::percent_encoded;
use crate::model::secret::Secret;

/// RFC 7523 §2.2
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// One method with one secret.
#[derive(Debug)]
pub enum Proof {
    Body(Secret),
    Basic(Secret, BasicEncoding),
    /// A JWT, and the secret that it is made with if both sides know it.
    Assertion(Signer, Option<Secret>),
    /// Nothing but the identifier: a public client, or one that TLS has proven.
    Name,
}

/// Every proof that the connection has, in the order of its secrets.
pub fn proofs(connection: &Connection) -> Vec<Proof> {
    let secrets = connection.client_auth.secrets().iter().cloned();
    match &connection.client_auth {
        ClientAuth::Body(_) => secrets.map(Proof::Body).collect(),
        ClientAuth::Basic(_, encoding) => secrets.map(|secret| Proof::Basic(secret, *encoding)).collect(),
        ClientAuth::PrivateKeyJwt(key, audience) => {
            vec![Proof::Assertion(Signer::of_key(key, audience), None)]
        }
        ClientAuth::ClientSecretJwt(_, algorithm, audience) => {
            let signer = |secret: Secret| (Signer::of_secret(&secret, *algorithm, audience), secret);
            secrets.map(signer).map(|(signer, secret)| Proof::Assertion(signer, Some(secret))).collect()
        }
        ClientAuth::Tls | ClientAuth::None => vec![Proof::Name],
    }
}

impl Proof {
    pub fn apply(
        &self,
        client_id: &str,
        moment: &Moment<'_>,
        fields: &mut Fields,
        headers: &mut HeaderMap,
    ) -> Result<(), Failure> {
        let mut field = |name: &str, value: &str| fields.push((name.to_owned(), value.to_owned()));
        match self {
            Proof::Body(secret) => {
                field("client_id", client_id);
                field("client_secret", secret.expose());
            }
            Proof::Basic(secret, encoding) => {
                let credentials = basic(client_id, secret, *encoding);
                let value = HeaderValue::try_from(format!("Basic {credentials}"));
                let mut value = value.expect("base64 is visible ASCII");
                value.set_sensitive(true);
                headers.insert(header::AUTHORIZATION, value);
            }
            Proof::Assertion(signer, _) => {
                let assertion = signer.client_assertion(client_id, moment)?;
                field("client_id", client_id);
                field("client_assertion_type", ASSERTION_TYPE);
                field("client_assertion", assertion.expose());
            }
            Proof::Name => field("client_id", client_id),
        }
        Ok(())
    }

    /// Every shape in which the secret is on the wire or could come back from there.
    pub fn forms(&self, client_id: &str) -> Vec<Secret> {
        match self {
            Proof::Body(secret) | Proof::Assertion(_, Some(secret)) => forms(secret.expose()),
            Proof::Basic(secret, encoding) => {
                let mut forms = forms(secret.expose());
                forms.push(Secret::new(basic(client_id, secret, *encoding)));
                forms
            }
            Proof::Assertion(_, None) | Proof::Name => Vec::new(),
        }
    }
}

/// A secret as it is and as forms write it.
pub fn forms(text: &str) -> Vec<Secret> {
    let form = form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    vec![Secret::new(text), Secret::new(encode(text)), Secret::new(form)]
}

/// The credentials of RFC 7617 §2, encoded first as RFC 6749 §2.3.1 says unless the server does not decode.
fn basic(client_id: &str, secret: &Secret, encoding: BasicEncoding) -> String {
    BASE64_STANDARD.encode(match encoding {
        BasicEncoding::Form => format!("{}:{}", encode(client_id), encode(secret.expose())),
        BasicEncoding::Raw => format!("{client_id}:{}", secret.expose()),
    })
}

/// Form encoding with a space as `%20`: servers that do not know `+` exist, servers that do not know `%20` do not.
fn encode(text: &str) -> String {
    percent_encoded(text).to_string()
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::model::connection::{Algorithm, Audience};

    const MOMENT: Moment<'_> = Moment {
        token_url: "https://as.test/t",
        issuer: None,
        now: crate::model::time::WallTime::from_secs(1_700_000_000),
    };

    /// The fields that were added, and the credentials.
    #[track_caller]
    fn applied(proof: &Proof, client_id: &str) -> (Vec<(String, String)>, Option<String>) {
        let (mut sent, mut headers) = (vec![("grant_type".to_owned(), "x".to_owned())], HeaderMap::new());
        proof.apply(client_id, &MOMENT, &mut sent, &mut headers).unwrap();
        let header = headers.get(header::AUTHORIZATION).map(|value| {
            assert!(value.is_sensitive());
            let text = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
            String::from_utf8(BASE64_STANDARD.decode(text).unwrap()).unwrap()
        });
        assert_eq!(headers.len(), usize::from(header.is_some()));
        (sent.split_off(1), header)
    }

    #[track_caller]
    fn check(proof: &Proof, client_id: &str, fields: &[(&str, &str)], basic: Option<&str>) {
        let (sent, header) = applied(proof, client_id);
        let sent: Vec<_> = sent.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!((&*sent, header.as_deref()), (fields, basic));
    }

    #[test]
    fn each_method_says_it_once() {
        let secret = || Secret::new("a+/:%$ é\"\\");
        let coded = "a%2B%2F%3A%25%24%20%C3%A9%22%5C";
        check(&Proof::Name, "id", &[("client_id", "id")], None);
        check(&Proof::Body(secret()), "i d", &[("client_id", "i d"), ("client_secret", "a+/:%$ é\"\\")], None);
        let form = Proof::Basic(secret(), BasicEncoding::Form);
        check(&form, "i:d +", &[], Some(&format!("i%3Ad%20%2B:{coded}")));
        check(&Proof::Basic(secret(), BasicEncoding::Raw), "id", &[], Some("id:a+/:%$ é\"\\"));
        let plain = Secret::new("AZaz09-_.~");
        check(&Proof::Basic(plain, BasicEncoding::Form), "id", &[], Some("id:AZaz09-_.~"));
    }

    #[test]
    fn each_assertion_is_another_one_and_no_secret_is_sent_with_it() {
        let secret = Secret::new("0123456789abcdef0123456789abcdef");
        let signer = Signer::of_secret(&secret, Algorithm::HS256, &Audience::TokenUrl);
        let proof = Proof::Assertion(signer, Some(secret));
        let (first, header) = applied(&proof, "id");
        let names: Vec<_> = first.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((&*names, header), (&["client_id", "client_assertion_type", "client_assertion"][..], None));
        assert_ne!(first, applied(&proof, "id").0);
        assert!(!format!("{proof:?}{first:?}").contains("0123456789"));
    }

    #[test]
    fn several_secrets_are_several_proofs() {
        let secrets = || vec![Secret::new("first"), Secret::new("second")];
        for (auth, count) in [
            (ClientAuth::Body(secrets()), 2),
            (ClientAuth::Basic(secrets(), BasicEncoding::Raw), 2),
            (ClientAuth::ClientSecretJwt(secrets(), Algorithm::HS256, Audience::TokenUrl), 2),
            (ClientAuth::Tls, 1),
            (ClientAuth::None, 1),
        ] {
            let proofs = proofs(&Connection { client_auth: auth, ..Connection::sample("crm") });
            assert_eq!(proofs.len(), count);
            assert!(!format!("{proofs:?}").contains("first"));
        }
    }
}
