//! What a grant that needs a person needs beside it: where the browser goes, and where it comes back.

use url::Url;

use super::connection::{Draft, params};
use super::endpoint;
use super::file::{ConnectionFile, PkceFile};
use super::problem::Sink;
use super::spot::{Spot, Unit};
use super::value::Fault;
use crate::model::Listeners;
use crate::model::connection::{Authorization, Grant, Pkce};

/// Parameters of the authorization request that it sets itself, each with the way to set it.
pub const OWN_PARAMS: [(&str, &str); 10] = [
    ("response_type", "it is always `code`"),
    ("client_id", "use the key `client_id` of the connection"),
    ("redirect_uri", "use the key `redirect_url` of the connection"),
    ("scope", "use the key `scopes` of the connection"),
    ("state", "it is made anew for each authorization"),
    ("code_challenge", "use the key `pkce` of the connection"),
    ("code_challenge_method", "use the key `pkce` of the connection"),
    ("audience", "use the key `audience` of the connection"),
    ("resource", "use the key `resource` of the connection"),
    ("client_secret", "a browser must never see it"),
];

/// `grants`: those of all definitions.
pub fn authorization<'g>(
    unit: &Unit<'_, ConnectionFile>,
    grants: impl Iterator<Item = &'g Grant>,
    sink: &mut Sink,
) -> Option<Authorization> {
    let keys = &unit.keys;
    let mut grants = grants.peekable();
    if grants.peek().is_some() && grants.all(|grant| *grant != Grant::AuthorizationCode) {
        for spot in [keys.pkce, keys.authorize_params].into_iter().filter_map(|key| unit.get(key)) {
            let hint = "set that grant, or remove the key";
            spot.problem(sink, "goes with `grant: authorization_code` alone", hint);
        }
    }
    let redirect_url = unit.get(keys.redirect_url).map(|spot| spot.parse(sink, redirect_url));
    let params = unit.get(keys.authorize_params).map(|spot| params(&spot, &OWN_PARAMS, sink)).unwrap_or_default();
    let pkce = unit.get(keys.pkce).map_or(Some(Pkce::S256), |spot| pkce(&spot, sink));
    Some(Authorization { redirect_url: redirect_url.map_or(Some(None), |url| url.map(Some))?, pkce: pkce?, params })
}

fn pkce(spot: &Spot<'_>, sink: &mut Sink) -> Option<Pkce> {
    let unit = spot.unit::<PkceFile>(sink)?;
    let required = unit.get(unit.keys.required).map(|at| (at.boolean(sink), at));
    let words = [("S256", Pkce::S256), ("plain", Pkce::Plain), ("none", Pkce::None)];
    let Some(at) = unit.get(unit.keys.method) else {
        if let Some((Some(false), at)) = required {
            at.warning(sink, "PKCE is used all the same", "write `method: none` to leave it out");
        }
        return Some(Pkce::S256);
    };
    let method = at.choice(sink, &words)?;
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

/// Kept as it is written: servers compare it as a text.
fn redirect_url(text: &str) -> Result<String, Fault> {
    let endpoint = endpoint::token_url(text)?;
    match endpoint.is_cleartext() {
        true => Err(Fault::new("would bring the code in the clear", "write https, as servers demand")),
        false => Ok(text.to_owned()),
    }
}

/// `https://HOST[/BASE]`, as browsers reach us.
pub fn public_url(text: &str) -> Result<Url, Fault> {
    let endpoint = endpoint::token_url(text)?;
    if endpoint.url.query().is_some() {
        return Err(Fault::new("has a query", "write https://HOST with a path at most"));
    }
    match endpoint.is_cleartext() {
        true => Err(Fault::new("would carry codes and sign-ins in the clear", "write https, loopback apart")),
        false => Ok(endpoint.url),
    }
}

/// A blank redirect URL comes from `public_url`, which has a default on loopback alone.
pub fn check_redirects(drafts: &[Draft<'_>], listeners: &Listeners, sink: &mut Sink) {
    let address = listeners.public.as_ref().unwrap_or(&listeners.admin).address;
    if address.ip().to_canonical().is_loopback() {
        return;
    }
    let blank = |draft: &&Draft<'_>| {
        let connection = draft.connection.as_ref();
        connection.is_some_and(|own| {
            own.grants().any(|grant| *grant == Grant::AuthorizationCode) && own.authorization.redirect_url.is_none()
        })
    };
    for draft in drafts.iter().filter(blank) {
        let hint =
            "write `public_url: https://…`, where browsers reach the listener, or the connection's `redirect_url`";
        draft.spot.problem(sink, "its redirect URL comes from `public_url`, which is missing", hint);
    }
}
