//! The form of a request to an authorization server.

use url::form_urlencoded;

/// Names and values of a form, in order.
pub type Fields = Vec<(String, String)>;

pub fn field(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Parses an encoded form and drops the fields that `client_auth` adds.
pub fn without_client(form: &[u8]) -> Fields {
    form_urlencoded::parse(form)
        .filter(|(name, _)| name != "client_id" && name != "client_secret")
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect()
}
