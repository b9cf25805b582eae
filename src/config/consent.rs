//! What a grant that needs a person needs beside it: where the browser goes, and where it comes back.

use url::Url;

use super::endpoint;
use super::file::{ConnectionFile, PkceFile};
use super::params::{AUTHORIZATION_OWN, params};
use super::problem::Sink;
use super::spot::{Spot, Unit};
use super::value::Fault;
use crate::model::connection::{Authorization, Grant, Pkce};

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
    let params =
        unit.get(keys.authorize_params).map(|spot| params(&spot, &AUTHORIZATION_OWN, sink)).unwrap_or_default();
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
