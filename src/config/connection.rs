//! The connection wing: one item of `connections` from marks to the checked [`Connection`].
//!
//! `grant`, `client`, `consent`, `params`, `token_format`, `script` and `profile` are about its tokens; `route`, `header`, `inject`
//! and `strip` about the requests that get them. Then, across connections: `conflict`, `tunnel`, `lend`.

mod token_format;
mod client;
mod conflict;
mod consent;
mod draft;
mod file;
mod grant;
mod header;
mod inject;
mod lend;
mod params;
mod profile;
mod route;
mod script;
mod strip;
mod tunnel;
mod words;

use std::collections::HashSet;

use http::StatusCode;

pub use self::conflict::{check as check_conflicts, redirects as check_redirects};
pub use self::draft::Draft;
pub use self::file::ConnectionFile;
pub use self::lend::lend;
pub use self::tunnel::check as check_tunnels;

use self::client::{authorization_server, client_auth, mutual_tls};
use self::grant::grants;
use self::params::{TOKEN_REQUEST_OWN, params};
use super::reading::{
    Sink, Spot, Unit,
    endpoint::{self, Endpoint},
    reference, suggest, value,
};
use crate::model::Name;
use crate::model::connection::*;
use crate::model::origin::Authority;
use crate::model::token::default_profile;

pub fn connection<'a>(spot: &Spot<'a>, callers: &HashSet<Name>, sink: &mut Sink) -> Option<Draft<'a>> {
    let unit = spot.unit::<ConnectionFile>(sink)?;
    let keys = &unit.keys;
    let named = unit.require(keys.name, "name", "give the connection a name", sink);
    let name = named.and_then(|at| Some((at.parse(sink, value::name)?, at)));
    let allow_cleartext = unit.get(keys.allow_cleartext).and_then(|spot| spot.boolean(sink)).unwrap_or(false);
    let (endpoints, places) = endpoints(&unit, allow_cleartext, sink);
    let accessible_from = unit.get(keys.accessible_from).map(|spot| accessible_from(&spot, callers, sink));
    let certificate = unit.get(keys.mutual_tls).map(|spot| mutual_tls(&spot, sink));
    let items = unit.get(keys.routes).and_then(|spot| spot.items(sink)).unwrap_or_default();
    let shown = certificate.as_ref().map(Option::as_ref);
    let profiles = profile::units(unit.get(keys.profiles), sink);
    let names = profile::names(&profiles);
    let read =
        |item: &Spot<'a>| Some((item.clone(), route::route(item, allow_cleartext, shown, names.as_deref(), sink)?));
    let routes: Vec<_> = items.iter().filter_map(read).collect();
    let parts = Parts {
        name: name.as_ref().map(|(name, _)| name.clone()),
        endpoints,
        certificate,
        accessible_from: accessible_from.clone(),
        profiles,
        routes: &routes,
    };
    let connection = assemble(&unit, parts, sink);
    Some(Draft { name, endpoints: places, callers: accessible_from, routes, connection, spot: spot.clone() })
}

/// What has been read before the rest.
struct Parts<'a> {
    name: Option<Name>,
    endpoints: Option<Endpoints>,
    /// `Some(None)`: one is given and no good.
    certificate: Option<Option<ClientCertificate>>,
    accessible_from: Option<Vec<Name>>,
    profiles: Vec<profile::Written<'a>>,
    routes: &'a [(Spot<'a>, Route)],
}

/// Reads every other key before it gives up, so that no problem hides another.
fn assemble(unit: &Unit<'_, ConnectionFile>, parts: Parts<'_>, sink: &mut Sink) -> Option<Connection> {
    let keys = &unit.keys;
    let has_issuer = unit.get(keys.issuer).is_some();
    let profiles = parts.profiles;
    let (grant, grants) = grants(unit, profiles.iter().map(|profile| profile.grant()), has_issuer, sink);
    let authorization = consent::authorization(unit, grants.iter().chain([&grant]).flatten(), sink);
    let grant_type = unit.get(keys.grant_type).and_then(|spot| spot.line(sink));
    let client_id = unit.require(keys.client_id, "client_id", "write the client's identifier", sink);
    let client_id = client_id.and_then(|spot| spot.line(sink));
    let client_auth = client_auth(unit, parts.certificate.is_some(), has_issuer, sink);
    let active = unit.get(keys.active).map_or(Some(true), |spot| spot.boolean(sink));
    let comments = unit.get(keys.comments).and_then(|spot| Some(reference::text(&spot, sink)?.value));
    let authorization_server = authorization_server(unit.get(keys.authorization_server), sink);
    let available_scopes = unit.get(keys.available_scopes).map(|spot| profile::available_scopes(&spot, sink));
    let available = available_scopes.as_deref();
    let scopes = unit.get(keys.scopes).map(|spot| profile::scopes(&spot, available, sink)).unwrap_or_default();
    let stated: Vec<_> = profiles.iter().map(|profile| profile.read(available, sink)).collect();
    let audience = unit.get(keys.audience).and_then(|spot| spot.filled_line(sink));
    let resource = unit.get(keys.resource).and_then(|spot| spot.filled_line(sink));
    let token_params =
        unit.get(keys.token_params).map(|spot| params(&spot, &TOKEN_REQUEST_OWN, sink)).unwrap_or_default();
    let token_request = unit.get(keys.token_request);
    let token_request =
        token_request.map_or_else(|| Some(TokenRequestFormat::default()), |s| token_format::token_request(&s, sink));
    let token_response = unit.get(keys.token_response);
    let token_response =
        token_response.map_or_else(|| Some(TokenResponseFormat::default()), |s| token_format::token_response(&s, sink));
    if let (Some(true), Some(request)) = (client_auth.as_ref().map(ClientAuth::is_in_header), &token_request) {
        one_authorization(unit, request, sink);
    }
    let variables = script::variables(unit, sink);
    let script = unit.get(keys.script).map(|spot| script::script(&spot, sink));
    let lifetimes = lifetimes(unit, sink);
    let tokens = unit.get(keys.tokens).map_or(Some(Tokens::Shared), |spot| spot.choice(sink));
    let rejected = unit.get(keys.token_rejected);
    let unauthorized = || vec![RejectionSign::of_status(StatusCode::UNAUTHORIZED)];
    let token_rejected = rejected.map_or_else(unauthorized, |spot| token_format::token_rejected(&spot, sink));
    let names = profile::names(&profiles).unwrap_or_default().into_iter();
    let named = names.zip(&grants).filter_map(|(name, grant)| Some((name, grant.as_ref()?)));
    let definitions: Vec<_> = grant.iter().map(|grant| (default_profile(), grant)).chain(named).collect();
    of_callers(unit, &definitions, tokens, parts.routes, sink);
    let connection = Connection {
        name: parts.name?,
        profile: default_profile(),
        profiles: Vec::new(),
        active: active?,
        comments,
        variables,
        grant: grant?,
        grant_type,
        client_id: client_id?,
        client_auth: client_auth?,
        mutual_tls: parts.certificate.flatten(),
        endpoints: parts.endpoints?,
        authorization: authorization?,
        authorization_server,
        scopes,
        available_scopes: available_scopes.unwrap_or_default(),
        audience,
        resource,
        token_params,
        token_request: token_request?,
        token_response: token_response?,
        script: script.flatten(),
        lifetimes,
        tokens: tokens?,
        token_rejected,
        accessible_from: parts.accessible_from,
        routes: parts.routes.iter().map(|(_, route)| route.clone()).collect(),
        lent: Vec::new(),
    };
    profile::with_profiles(connection, stated.into_iter().zip(grants))
}

/// Refuses keys that contradict a grant which exchanges the caller's own token.
fn of_callers(
    unit: &Unit<'_, ConnectionFile>,
    grants: &[(Name, &Grant)],
    tokens: Option<Tokens>,
    routes: &[(Spot<'_>, Route)],
    sink: &mut Sink,
) {
    let exchanged: Vec<_> = grants.iter().filter(|(_, grant)| grant.takes_callers_token()).collect();
    let refused = |(_, route): &&(Spot<'_>, Route)| {
        route.existing != Existing::Overwrite && exchanged.iter().any(|(profile, _)| route.carries(profile))
    };
    for (spot, _) in routes.iter().filter(refused) {
        let hint = "remove `existing`: the caller's token is exchanged, and never sent on";
        spot.problem(sink, "`existing` stands against `subject_token: {from: caller}`", hint);
    }
    if exchanged.is_empty() || exchanged.len() < grants.len() {
        return;
    }
    if let Some(spot) = unit.get(unit.keys.tokens).filter(|_| tokens == Some(Tokens::PerSubject)) {
        spot.problem(sink, "each caller's own token makes one of its own already", "remove the key");
    }
    if let Some(spot) = unit.get(unit.keys.keep_warm) {
        let hint = "remove the key: only a caller that asks again has the token to exchange";
        spot.problem(sink, "`keep_warm` stands against `subject_token: {from: caller}`", hint);
    }
}

/// `send_credentials: basic` has the one place in which another Authorization would stand.
fn one_authorization(unit: &Unit<'_, ConnectionFile>, request: &TokenRequestFormat, sink: &mut Sink) {
    let is_set = request.headers.iter().any(|(name, _)| *name == http::header::AUTHORIZATION);
    if let Some(spot) = unit.get(unit.keys.token_request).filter(|_| is_set) {
        let hint = "remove the header, or choose another `send_credentials`";
        spot.problem(sink, "`send_credentials: basic` sets Authorization itself", hint);
    }
}

/// The endpoints, and the place of each that states an authority.
fn endpoints<'a>(
    unit: &Unit<'a, ConnectionFile>,
    allow_cleartext: bool,
    sink: &mut Sink,
) -> (Option<Endpoints>, Vec<(Authority, Spot<'a>)>) {
    let keys = &unit.keys;
    let mut places = Vec::new();
    let mut read = |at: Spot<'a>, sink: &mut Sink| {
        let endpoint: Endpoint = at.secretive(sink, endpoint::token_url)?;
        if endpoint.is_cleartext() && !allow_cleartext {
            at.problem(sink, "sends the client's secret in the clear", "write https, or `allow_cleartext: true`");
        }
        places.push((endpoint.authority, at));
        Some(endpoint.url)
    };
    let token = match unit.get(keys.issuer) {
        None => {
            let hint = "write the URL of the authorization server's token endpoint";
            unit.require(keys.token_url, "token_url", hint, sink)
        }
        Some(_) => unit.get(keys.token_url),
    };
    let token = token.map(|at| read(at, sink));
    let others = [keys.revocation_url, keys.authorization_url, keys.device_authorization_url];
    let [revocation, authorization, device] = others.map(|key| unit.get(key).map(|at| read(at, sink)));
    if let (Some(at), Some(Some(url))) = (unit.get(keys.authorization_url), &authorization) {
        consent::check_query(&at, url, sink);
    }
    let issuer = unit.get(keys.issuer).map(|at| {
        let url = at.secretive(sink, endpoint::issuer).and_then(|_| read(at.clone(), sink))?;
        Some((reference::text(&at, sink)?.value, url))
    });
    let (token, revocation, issuer) = (token.unwrap_or_default(), revocation.flatten(), issuer.flatten());
    let server = token.clone().or_else(|| issuer.as_ref().map(|(_, url)| url.clone()));
    let issuer = issuer.map(|(text, _)| text);
    let (authorization, device_authorization) = (authorization.flatten(), device.flatten());
    let of =
        |server| Endpoints { server, token, revocation, authorization, device_authorization, issuer, allow_cleartext };
    (server.map(of), places)
}

fn lifetimes(unit: &Unit<'_, ConnectionFile>, sink: &mut Sink) -> Lifetimes {
    let mut lifetimes = Lifetimes::default();
    if let Some(spot) = unit.get(unit.keys.default_token_lifetime) {
        lifetimes.default_token_lifetime = spot.parse(sink, value::wait).unwrap_or_default();
    }
    if let Some(spot) = unit.get(unit.keys.refresh_ahead) {
        lifetimes.refresh_ahead = spot.parse(sink, value::duration).unwrap_or_default();
    }
    if let Some(spot) = unit.get(unit.keys.usable_margin) {
        lifetimes.usable_margin = spot.parse(sink, value::duration).unwrap_or_default();
    }
    if let Some(spot) = unit.get(unit.keys.refresh_token_lifespan) {
        lifetimes.refresh_token = spot.parse(sink, value::wait);
    }
    if let Some(spot) = unit.get(unit.keys.keep_warm) {
        lifetimes.keep_warm = spot.parse(sink, value::wait);
    }
    lifetimes
}

fn accessible_from(spot: &Spot<'_>, callers: &HashSet<Name>, sink: &mut Sink) -> Vec<Name> {
    let mut names = Vec::new();
    for item in spot.items(sink).unwrap_or_default() {
        let Some(name) = item.parse(sink, value::name) else { continue };
        if !callers.contains(&name) {
            let hint = suggest(name.as_str(), callers.iter().map(Name::as_str), "add it under `callers` or remove it");
            item.problem(sink, format!("no caller is named `{name}`"), hint);
        } else if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
