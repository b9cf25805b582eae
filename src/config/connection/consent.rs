//! Keys of a grant that needs a person: the authorization request, PKCE and the redirect URL.

use std::collections::HashSet;

use url::Url;

use super::file::{ConnectionFile, PkceFile};
use super::params::{AUTHORIZATION_OWN, params};
use crate::config::reading::{Fault, Sink, Spot, Unit, endpoint, reference};
use crate::model::connection::{Authorization, ConsentFlow, Grant, Pkce};

/// OAuth 2.0 Multiple Response Type Encoding Practices §2.1
const RESPONSE_MODE: &str = "response_mode";
/// Values by which the answer does not come in the query of a GET; other texts might be anything, and are not repeated.
const OTHER_RESPONSE_MODES: [&str; 7] =
    ["form_post", "fragment", "web_message", "jwt", "query.jwt", "fragment.jwt", "form_post.jwt"];

/// `grants`: those of all definitions.
pub fn authorization<'g>(
    unit: &Unit<'_, ConnectionFile>,
    grants: impl Iterator<Item = &'g Grant>,
    sink: &mut Sink,
) -> Option<Authorization> {
    let keys = &unit.keys;
    let mut grants = grants.peekable();
    if grants.peek().is_some() && grants.all(|grant| grant.consent_flow() != Some(ConsentFlow::AuthorizationCode)) {
        for spot in [unit.get(keys.pkce), unit.get(keys.authorize_params)].into_iter().flatten() {
            let hint = "set that grant, or remove the key";
            spot.problem(sink, "goes with `grant: authorization_code` alone", hint);
        }
    }
    let redirect_url = unit.get(keys.redirect_url).map(|spot| {
        let text = reference::text(&spot, sink)?.value;
        spot.is_filled_in(&text, sink).then(|| spot.parse(sink, redirect_url))?
    });
    let params = unit.get(keys.authorize_params).map(|spot| authorize_params(&spot, sink)).unwrap_or_default();
    let pkce = unit.get(keys.pkce).map_or(Some(Pkce::S256), |spot| pkce(&spot, sink));
    Some(Authorization { redirect_url: redirect_url.map_or(Some(None), |url| url.map(Some))?, pkce: pkce?, params })
}

fn pkce(spot: &Spot<'_>, sink: &mut Sink) -> Option<Pkce> {
    let unit = spot.unit::<PkceFile>(sink)?;
    let required = unit.get(unit.keys.required).map(|at| (at.boolean(sink), at));
    let Some(at) = unit.get(unit.keys.method) else {
        if let Some((Some(false), at)) = required {
            at.warning(sink, "PKCE is used all the same", "write `method: none` to leave it out");
        }
        return Some(Pkce::S256);
    };
    let method = at.choice(sink)?;
    match method {
        Pkce::None if required.is_some_and(|(required, _)| required == Some(true)) => {
            at.problem(sink, "`required: true` stands against it", "write S256, or `required: false`");
            return None;
        }
        Pkce::Plain => at.warning(sink, "whoever sees the request can redeem its code", "write S256 if the server can"),
        Pkce::None => at.warning(sink, "nothing binds the code to us", "write S256 if the server can"),
        Pkce::S256 => {}
    }
    Some(method)
}

pub fn authorize_params(spot: &Spot<'_>, sink: &mut Sink) -> Vec<(String, String)> {
    let params = params(spot, &AUTHORIZATION_OWN, sink);
    if let Some((_, mode)) = params.iter().find(|(name, _)| name == RESPONSE_MODE) {
        let at = spot.value_of(RESPONSE_MODE).unwrap_or_else(|| spot.clone());
        check_response_mode(&at, mode, sink);
    }
    params
}

/// What the query of the authorization URL must not say, and what of it is not sent.
pub fn check_query(spot: &Spot<'_>, url: &Url, sink: &mut Sink) {
    let mut seen = HashSet::new();
    for (name, value) in url.query_pairs() {
        let name = name.as_ref();
        let again = !seen.insert(name.to_owned());
        if name == RESPONSE_MODE {
            check_response_mode(spot, &value, sink);
        }
        match AUTHORIZATION_OWN.iter().find(|(own, _)| *own == name) {
            _ if again && name != "resource" => {
                let hint = "keep one of them: the last one is sent";
                spot.warning(sink, "a parameter is twice in the URL's query", hint);
            }
            // These are sent as in the URL unless a key of the connection overrides them.
            Some(("scope" | "audience" | "resource", _)) | None => {}
            Some((own, hint)) => {
                let message = format!("`{own}` in the URL's query is not sent: the request sets it itself");
                spot.warning(sink, message, format!("remove it from the URL; {hint}"));
            }
        }
    }
}

/// The callback reads a query alone: a POST from another site would come without the browser's cookie, and a fragment never
/// leaves the browser.
fn check_response_mode(spot: &Spot<'_>, mode: &str, sink: &mut Sink) {
    if mode == "query" {
        return;
    }
    let shown = OTHER_RESPONSE_MODES.iter().find(|known| **known == mode);
    let shown = shown.map_or_else(|| "another value".to_owned(), |known| format!("`{known}`"));
    let message =
        format!("`response_mode` is {shown}, but the callback takes the answer from the query of a GET alone");
    spot.problem(sink, message, "remove `response_mode`, or write `query`");
}

/// Kept as it is written: servers compare it as a text.
fn redirect_url(text: &str) -> Result<String, Fault> {
    let endpoint = endpoint::token_url(text)?;
    match endpoint.is_cleartext() {
        true => Err(Fault::new("would bring the code in the clear", "write https, as servers demand")),
        false => Ok(text.to_owned()),
    }
}
