//! Reads the keys of the authorization code grant: the authorization request, PKCE and the redirect URL.

use std::collections::HashSet;

use url::Url;

use super::file::{ConnectionFile, PkceFile};
use super::params::{AUTHORIZATION_OWN, params};
use crate::config::reading::{Fault, NodeRef, Section, Sink, endpoint, reference};
use crate::model::connection::{Authorization, ConsentFlow, Grant, Pkce};

/// OAuth 2.0 Multiple Response Type Encoding Practices §2.1.
const RESPONSE_MODE: &str = "response_mode";
/// Standard modes whose response is not in the query of a GET. Only these are quoted; any other value may be a secret.
const OTHER_RESPONSE_MODES: [&str; 7] =
    ["form_post", "fragment", "web_message", "jwt", "query.jwt", "fragment.jwt", "form_post.jwt"];

/// Reads the authorization request. `grants`: the grants of the connection and its profiles.
pub fn authorization<'g>(
    section: &Section<'_, ConnectionFile>,
    grants: impl Iterator<Item = &'g Grant>,
    sink: &mut Sink,
) -> Option<Authorization> {
    let keys = &section.keys;
    let mut grants = grants.peekable();
    if grants.peek().is_some() && grants.all(|grant| grant.consent_flow() != Some(ConsentFlow::AuthorizationCode)) {
        for node in [section.get(keys.pkce), section.get(keys.authorize_params)].into_iter().flatten() {
            let hint = "set that grant, or remove the key";
            node.problem(sink, "applies only to `grant: authorization_code`", hint);
        }
    }
    let redirect_url = section.get(keys.redirect_url).map(|node| {
        let text = reference::text(&node, sink)?.value;
        node.check_placeholders(&text, sink).then(|| node.parse(sink, redirect_url))?
    });
    let params = section.get(keys.authorize_params).map(|node| authorize_params(&node, sink)).unwrap_or_default();
    let pkce = section.get(keys.pkce).map_or(Some(Pkce::S256), |node| pkce(&node, sink));
    Some(Authorization { redirect_url: redirect_url.map_or(Some(None), |url| url.map(Some))?, pkce: pkce?, params })
}

fn pkce(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Pkce> {
    let section = node.section::<PkceFile>(sink)?;
    let required = section.get(section.keys.required).map(|at| (at.boolean(sink), at));
    let Some(at) = section.get(section.keys.method) else {
        if let Some((Some(false), at)) = required {
            at.warning(sink, "does not turn PKCE off", "write `method: none` as well");
        }
        return Some(Pkce::S256);
    };
    let method = at.choice(sink)?;
    match method {
        Pkce::None if required.is_some_and(|(required, _)| required == Some(true)) => {
            at.problem(sink, "contradicts `required: true`", "write S256, or `required: false`");
            return None;
        }
        Pkce::Plain => at.warning(
            sink,
            "an attacker who sees the authorization request can redeem its code",
            "write S256 if the server supports it",
        ),
        Pkce::None => at.warning(
            sink,
            "a stolen authorization code can be redeemed elsewhere",
            "write S256 if the server supports it",
        ),
        Pkce::S256 => {}
    }
    Some(method)
}

pub fn authorize_params(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<(String, String)> {
    let params = params(node, &AUTHORIZATION_OWN, sink);
    if let Some((_, mode)) = params.iter().find(|(name, _)| name == RESPONSE_MODE) {
        let at = node.value_of(RESPONSE_MODE).unwrap_or_else(|| node.clone());
        check_response_mode(&at, mode, sink);
    }
    params
}

/// Checks the query of the authorization URL, and warns of parameters that are not sent.
pub fn check_query(node: &NodeRef<'_>, url: &Url, sink: &mut Sink) {
    let mut seen = HashSet::new();
    for (name, value) in url.query_pairs() {
        let name = name.as_ref();
        let is_repeated = !seen.insert(name.to_owned());
        if name == RESPONSE_MODE {
            check_response_mode(node, &value, sink);
        }
        match AUTHORIZATION_OWN.iter().find(|(own, _)| *own == name) {
            _ if is_repeated && name != "resource" => {
                let hint = "keep one of them: only the last is sent";
                node.warning(sink, "the URL's query repeats a parameter", hint);
            }
            // Sent as in the URL, unless a key of the connection overrides them.
            Some(("scope" | "audience" | "resource", _)) | None => {}
            Some((own, hint)) => {
                let message = format!("`{own}` in the URL's query is not sent: the request sets it itself");
                node.warning(sink, message, format!("remove it from the URL; {hint}"));
            }
        }
    }
}

/// Rejects response modes other than `query`. The callback reads only the query: a cross-site POST would lack the
/// browser's cookie, and a fragment never leaves the browser.
fn check_response_mode(node: &NodeRef<'_>, mode: &str, sink: &mut Sink) {
    if mode == "query" {
        return;
    }
    let quoted = OTHER_RESPONSE_MODES.iter().find(|known| **known == mode);
    let quoted = quoted.map_or_else(|| "another value".to_owned(), |known| format!("`{known}`"));
    let message = format!("`response_mode` is {quoted}, but the callback accepts only a GET with a query");
    node.problem(sink, message, "remove `response_mode`, or write `query`");
}

/// Kept as written, since servers compare it as text.
fn redirect_url(text: &str) -> Result<String, Fault> {
    let endpoint = endpoint::token_url(text)?;
    match endpoint.is_cleartext() {
        true => Err(Fault::new("would receive the authorization code in the clear", "use https, as servers require")),
        false => Ok(text.to_owned()),
    }
}
