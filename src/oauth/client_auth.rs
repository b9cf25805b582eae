//! How the client proves who it is: headers and fields of one token request (RFC 6749 §2.3).
//!
//! Not here: which secret of several to try (`oauth`).
//! Holds: one method per request; with `Basic` the body says nothing of the client; a header with a secret is sensitive.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, header};
use url::form_urlencoded;

use crate::model::connection::{BasicEncoding, ClientAuth};
use crate::model::secret::Secret;

use super::grant::Fields;

/// One method with one secret.
#[derive(Debug, Clone, Copy)]
pub enum Proof<'a> {
    Body(&'a Secret),
    Basic(&'a Secret, BasicEncoding),
    None,
}

/// Every proof that the connection has, in the order of its secrets.
pub fn proofs(auth: &ClientAuth) -> Vec<Proof<'_>> {
    match auth {
        ClientAuth::Body(secrets) => secrets.iter().map(Proof::Body).collect(),
        ClientAuth::Basic(secrets, encoding) => secrets.iter().map(|secret| Proof::Basic(secret, *encoding)).collect(),
        ClientAuth::None => vec![Proof::None],
    }
}

impl Proof<'_> {
    pub fn apply(&self, client_id: &str, fields: &mut Fields, headers: &mut HeaderMap) {
        match self {
            Proof::Body(secret) => {
                fields.push(("client_id".to_owned(), client_id.to_owned()));
                fields.push(("client_secret".to_owned(), secret.expose().to_owned()));
            }
            Proof::Basic(secret, encoding) => {
                let credentials = basic(client_id, secret, *encoding);
                let value = HeaderValue::try_from(format!("Basic {credentials}"));
                let mut value = value.expect("base64 is visible ASCII");
                value.set_sensitive(true);
                headers.insert(header::AUTHORIZATION, value);
            }
            Proof::None => fields.push(("client_id".to_owned(), client_id.to_owned())),
        }
    }

    /// Every shape in which the secret is on the wire or could come back from there.
    pub fn forms(&self, client_id: &str) -> Vec<Secret> {
        let (Proof::Body(secret) | Proof::Basic(secret, _)) = self else { return Vec::new() };
        let mut forms = forms(secret.expose());
        if let Proof::Basic(secret, encoding) = self {
            forms.push(Secret::new(basic(client_id, secret, *encoding)));
        }
        forms
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
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(proof: Proof<'_>, client_id: &str, fields: &[(&str, &str)], basic: Option<&str>) {
        let (mut sent, mut headers) = (vec![("grant_type".to_owned(), "x".to_owned())], HeaderMap::new());
        proof.apply(client_id, &mut sent, &mut headers);
        let sent: Vec<_> = sent.iter().skip(1).map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(sent, fields);
        let header = headers.get(header::AUTHORIZATION).map(|value| {
            assert!(value.is_sensitive());
            let text = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
            String::from_utf8(BASE64_STANDARD.decode(text).unwrap()).unwrap()
        });
        assert_eq!(header.as_deref(), basic);
        assert_eq!(headers.len(), usize::from(basic.is_some()));
    }

    #[test]
    fn each_method_says_it_once() {
        let secret = Secret::new("a+/:%$ é\"\\");
        let coded = "a%2B%2F%3A%25%24%20%C3%A9%22%5C";
        check(Proof::None, "id", &[("client_id", "id")], None);
        check(Proof::Body(&secret), "i d", &[("client_id", "i d"), ("client_secret", "a+/:%$ é\"\\")], None);
        let form = Proof::Basic(&secret, BasicEncoding::Form);
        check(form, "i:d +", &[], Some(&format!("i%3Ad%20%2B:{coded}")));
        check(Proof::Basic(&secret, BasicEncoding::Raw), "id", &[], Some("id:a+/:%$ é\"\\"));
        let plain = Secret::new("AZaz09-_.~");
        check(Proof::Basic(&plain, BasicEncoding::Form), "id", &[], Some("id:AZaz09-_.~"));
    }

    #[test]
    fn several_secrets_are_several_proofs() {
        let secrets = || vec![Secret::new("first"), Secret::new("second")];
        for (auth, count) in [
            (ClientAuth::Body(secrets()), 2),
            (ClientAuth::Basic(secrets(), BasicEncoding::Raw), 2),
            (ClientAuth::None, 1),
        ] {
            let proofs = proofs(&auth);
            assert_eq!(proofs.len(), count);
            assert!(!format!("{proofs:?}").contains("first"));
        }
    }
}
