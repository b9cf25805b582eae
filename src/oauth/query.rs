//! Merges our parameters into the query of an endpoint's URL. Pure.
//!
//! Invariants: each parameter name is sent once (RFC 6749 §3.1, §3.2), except `resource`, which may repeat (RFC 8707
//! §2); what remains of the URL's own query keeps its spelling.

use std::collections::HashMap;

use url::{Url, form_urlencoded};

use super::form::Fields;

const REPEATABLE: &str = "resource";
/// Parameters of the authorization request that the URL's own query cannot set.
const PROTOCOL_PARAMS: [&str; 8] = [
    "response_type",
    "client_id",
    "client_secret",
    "redirect_uri",
    "state",
    "code_challenge",
    "code_challenge_method",
    "code_verifier",
];

/// The URL of an authorization request: `fields` override the URL's own query.
pub fn authorization_request(url: &Url, fields: &Fields) -> Url {
    merged(url, fields, |name| !PROTOCOL_PARAMS.contains(&name))
}

/// The URL of a token request with its parameters in the query: `fields` override the URL's own query.
pub fn token_request(url: &Url, fields: &Fields) -> Url {
    merged(url, fields, |_| true)
}

fn merged(url: &Url, fields: &Fields, may_stay: impl Fn(&str) -> bool) -> Url {
    let url_query = url.query().unwrap_or_default();
    let mut pairs: Vec<(&str, String, String)> = Vec::new();
    for text in url_query.split('&').filter(|text| !text.is_empty()) {
        let pair = form_urlencoded::parse(text.as_bytes()).next();
        pairs.extend(pair.map(|(name, value)| (text, name.into_owned(), value.into_owned())));
    }
    // If the URL itself repeats a name, the last one wins.
    let last: HashMap<&str, usize> = pairs.iter().enumerate().map(|(at, (_, name, _))| (name.as_str(), at)).collect();
    let stays = |(at, (_, name, value)): (usize, &(&str, String, String))| match name.as_str() {
        REPEATABLE => !fields.iter().any(|(field, same)| field == name && same == value),
        name => may_stay(name) && last[name] == at && !fields.iter().any(|(field, _)| field == name),
    };
    let kept = pairs.iter().enumerate().filter(|(at, pair)| stays((*at, pair))).map(|(_, (text, ..))| *text);
    let mut query = kept.collect::<Vec<_>>().join("&");
    let ours = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    if !query.is_empty() && !ours.is_empty() {
        query += "&";
    }
    query += &ours;
    let mut merged = url.clone();
    merged.set_query(Some(query.as_str()).filter(|query| !query.is_empty()));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(merge: fn(&Url, &Fields) -> Url, url_query: &str, fields: &[(&str, &str)], expected: &str) {
        let fields: Fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let url = Url::parse("https://as.test/a").map(|mut url| {
            url.set_query(Some(url_query).filter(|url_query| !url_query.is_empty()));
            url
        });
        assert_eq!(merge(&url.unwrap(), &fields).query().unwrap_or_default(), expected, "{url_query}");
    }

    #[test]
    fn an_authorization_request_has_each_parameter_once() {
        let ask = authorization_request;
        check(ask, "", &[], "");
        check(ask, "", &[("a", "1 2")], "a=1+2");
        check(ask, "x=a%20b&flag&y", &[("a", "1")], "x=a%20b&flag&y&a=1");
        check(ask, "prompt=login&access_type=offline", &[("prompt", "consent")], "access_type=offline&prompt=consent");
        check(ask, "pr%6Fmpt=login", &[("prompt", "consent")], "prompt=consent");
        check(ask, "Prompt=login", &[("prompt", "consent")], "Prompt=login&prompt=consent");
        check(ask, "prompt=a&x=1&prompt=b&&", &[], "x=1&prompt=b");
        check(ask, "scope=own&audience=own", &[("scope", "a b")], "audience=own&scope=a+b");
        let protocol =
            "response_type=token&client_id=x&redirect_uri=x&state=x&code_challenge=x&code_challenge_method=x";
        check(ask, &format!("{protocol}&client_secret=x&code_verifier=x&z=1"), &[("state", "s")], "z=1&state=s");
        let resources = "resource=https%3A%2F%2Fa.test&resource=https%3A%2F%2Fb.test";
        check(ask, resources, &[], resources);
        check(
            ask,
            resources,
            &[("resource", "https://b.test"), ("resource", "https://c.test")],
            "resource=https%3A%2F%2Fa.test&resource=https%3A%2F%2Fb.test&resource=https%3A%2F%2Fc.test",
        );
    }

    #[test]
    fn a_token_request_has_each_parameter_once() {
        let url_query = "grant_type=account_credentials&account_id=7";
        check(
            token_request,
            url_query,
            &[("grant_type", "client_credentials")],
            "account_id=7&grant_type=client_credentials",
        );
        check(token_request, "client_id=x", &[], "client_id=x");
    }
}
