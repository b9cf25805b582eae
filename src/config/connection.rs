//! One item of `connections:` from marks to the checked [`Connection`].
//!
//! Not here: its routes (`route`), what two connections must not share (`conflict`).

use std::collections::HashSet;

use http::StatusCode;

use super::endpoint::{self, Endpoint};
use super::file::{AuthorizationServerFile, ConnectionFile, TokenRejectedFile};
use super::problem::{Sink, suggest};
use super::route;
use super::spot::{Spot, Unit};
use super::{reference, value};
use crate::model::Name;
use crate::model::connection::*;
use crate::model::origin::Authority;
use crate::model::secret::Secret;

const ENDPOINT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Grants of the contract that are refused by name.
const GRANTS_NOT_BUILT: [&str; 4] = ["jwt_bearer", "saml2_bearer", "device_code", "token_exchange"];
/// The same for ways to authenticate.
const METHODS_NOT_BUILT: [&str; 3] = ["private_key_jwt", "client_secret_jwt", "tls"];
/// Form fields that the grant sets, each with the way to set it.
const OWN_FIELDS: [(&str, &str); 9] = [
    ("grant_type", "`grant` sets it"),
    ("client_id", "use the key `client_id` of the connection"),
    ("client_secret", "use the key `client_secret` of the connection"),
    ("scope", "use the key `scopes` of the connection"),
    ("audience", "use the key `audience` of the connection"),
    ("resource", "use the key `resource` of the connection"),
    ("username", "use the key `username` of the connection"),
    ("password", "use the key `password` of the connection"),
    ("refresh_token", "import it: `keybearer connect NAME --import -`"),
];

/// A connection with what the checks across connections need, even where `connection` itself failed.
pub struct Draft<'a> {
    pub name: Option<(Name, Spot<'a>)>,
    pub token_url: Option<(Authority, Spot<'a>)>,
    /// `None`: all callers.
    pub callers: Option<Vec<Name>>,
    pub routes: Vec<(Spot<'a>, Route)>,
    pub connection: Option<Connection>,
}

pub fn connection<'a>(spot: &Spot<'a>, callers: &HashSet<Name>, sink: &mut Sink) -> Option<Draft<'a>> {
    let unit = spot.unit::<ConnectionFile>(sink)?;
    let keys = &unit.keys;
    let named = unit.require(keys.name, "name", "give the connection a name", sink);
    let name = named.and_then(|at| Some((at.parse(sink, value::name)?, at)));
    let allow_cleartext = unit.get(keys.allow_cleartext).and_then(|spot| spot.boolean(sink)).unwrap_or(false);
    let endpoint = token_url(&unit, allow_cleartext, sink);
    let accessible_from = unit.get(keys.accessible_from).map(|spot| accessible_from(&spot, callers, sink));
    let items = unit.get(keys.routes).and_then(|spot| spot.items(sink)).unwrap_or_default();
    let read = |item: &Spot<'a>| Some((item.clone(), route::route(item, allow_cleartext, sink)?));
    let routes: Vec<_> = items.iter().filter_map(read).collect();
    let model_routes = routes.iter().map(|(_, route)| route.clone()).collect();
    let token_url = endpoint.as_ref().map(|(endpoint, at)| (endpoint.authority.clone(), at.clone()));
    let parts = (name.as_ref().map(|(name, _)| name.clone()), endpoint.map(|(endpoint, _)| endpoint));
    let connection = assemble(&unit, parts, accessible_from.clone(), model_routes, sink);
    Some(Draft { name, token_url, callers: accessible_from, routes, connection })
}

/// Reads every other key before it gives up, so that no problem hides another.
fn assemble(
    unit: &Unit<'_, ConnectionFile>,
    (name, endpoint): (Option<Name>, Option<Endpoint>),
    accessible_from: Option<Vec<Name>>,
    routes: Vec<Route>,
    sink: &mut Sink,
) -> Option<Connection> {
    let keys = &unit.keys;
    let grant = grant(unit, sink);
    let client_id = unit.require(keys.client_id, "client_id", "write the client's identifier", sink);
    let client_id = client_id.and_then(|spot| spot.line(sink));
    let client_auth = client_auth(unit, sink);
    let active = unit.get(keys.active).map_or(Some(true), |spot| spot.boolean(sink));
    let comments = unit.get(keys.comments).and_then(|spot| Some(reference::text(&spot, sink)?.value));
    let authorization_server = authorization_server(unit.get(keys.authorization_server), sink);
    let scopes = unit.get(keys.scopes).map(|spot| scopes(&spot, sink)).unwrap_or_default();
    let audience = unit.get(keys.audience).and_then(|spot| spot.line(sink));
    let resource = unit.get(keys.resource).and_then(|spot| spot.line(sink));
    let token_params = unit.get(keys.token_params).map(|spot| token_params(&spot, sink)).unwrap_or_default();
    let lifetimes = lifetimes(unit, sink);
    let words = [("shared", Tokens::Shared), ("per_subject", Tokens::PerSubject)];
    let tokens = unit.get(keys.tokens).map_or(Some(Tokens::Shared), |spot| spot.choice(sink, &words));
    let rejected = unit.get(keys.token_rejected);
    let token_rejected = rejected.map_or_else(|| vec![StatusCode::UNAUTHORIZED], |spot| statuses(&spot, sink));
    Some(Connection {
        name: name?,
        active: active?,
        comments,
        grant: grant?,
        client_id: client_id?,
        client_auth: client_auth?,
        token_url: endpoint?.url,
        authorization_server,
        scopes,
        audience,
        resource,
        token_params,
        lifetimes,
        tokens: tokens?,
        token_rejected,
        accessible_from,
        routes,
    })
}

fn token_url<'a>(
    unit: &Unit<'a, ConnectionFile>,
    allow_cleartext: bool,
    sink: &mut Sink,
) -> Option<(Endpoint, Spot<'a>)> {
    let hint = "write the URL of the authorization server's token endpoint";
    let at = unit.require(unit.keys.token_url, "token_url", hint, sink)?;
    let endpoint = at.secretive(sink, endpoint::token_url)?;
    if endpoint.is_cleartext() && !allow_cleartext {
        at.problem(sink, "sends the client's secret in the clear", "write https, or `allow_cleartext: true`");
    }
    Some((endpoint, at))
}

#[derive(Clone, Copy, PartialEq)]
enum GrantName {
    ClientCredentials,
    Password,
    AuthorizationCode,
}

fn grant(unit: &Unit<'_, ConnectionFile>, sink: &mut Sink) -> Option<Grant> {
    const NAMES: [(&str, GrantName); 3] = [
        ("client_credentials", GrantName::ClientCredentials),
        ("password", GrantName::Password),
        ("authorization_code", GrantName::AuthorizationCode),
    ];
    let keys = &unit.keys;
    let built = "client_credentials, password and authorization_code are";
    let name = match unit.get(keys.grant) {
        None => Some(GrantName::ClientCredentials),
        Some(spot) if refuse_unbuilt(&spot, &GRANTS_NOT_BUILT, built, sink) => None,
        Some(spot) => spot.choice(sink, &NAMES),
    };
    let (username, password) = (unit.get(keys.username), unit.get(keys.password));
    if name.is_some_and(|name| name != GrantName::Password) {
        for spot in [&username, &password].into_iter().flatten() {
            spot.problem(sink, "goes with `grant: password` alone", "set that grant, or remove the key");
        }
    }
    match name? {
        GrantName::ClientCredentials => Some(Grant::ClientCredentials),
        GrantName::AuthorizationCode => Some(Grant::AuthorizationCode),
        GrantName::Password => {
            let hint = "write the resource owner's name";
            let username = unit.require(keys.username, "username", hint, sink).and_then(|spot| spot.line(sink));
            let hint = "give it as {file: PATH} or {env: NAME}";
            let password = unit.require(keys.password, "password", hint, sink);
            let password = password.and_then(|spot| reference::secret(&spot, sink));
            Some(Grant::Password { username: username?, password: password? })
        }
    }
}

fn refuse_unbuilt(spot: &Spot<'_>, names: &[&str], built: &str, sink: &mut Sink) -> bool {
    let Some(name) = spot.written().and_then(|text| names.iter().find(|name| **name == text)) else { return false };
    spot.problem(sink, format!("`{name}` is not built yet"), format!("{built} what this version has"));
    true
}

#[derive(Clone, Copy, PartialEq)]
enum Send {
    Body,
    Basic,
    None,
}

fn client_auth(unit: &Unit<'_, ConnectionFile>, sink: &mut Sink) -> Option<ClientAuth> {
    let keys = &unit.keys;
    let at = unit.get(keys.client_secret);
    let secrets = at.as_ref().map(|spot| secrets(spot, sink));
    let words = [("body", Send::Body), ("basic", Send::Basic), ("none", Send::None)];
    let send = match unit.get(keys.send_credentials) {
        None if at.is_some() => Some(Send::Body),
        None => Some(Send::None),
        Some(spot) if refuse_unbuilt(&spot, &METHODS_NOT_BUILT, "body, basic and none are", sink) => None,
        Some(spot) => spot.choice(sink, &words),
    };
    let encodings = [("form", BasicEncoding::Form), ("raw", BasicEncoding::Raw)];
    let encoding = unit.get(keys.basic_encoding).and_then(|spot| {
        if matches!(send, Some(Send::Body | Send::None)) {
            spot.problem(sink, "`basic_encoding` goes with `send_credentials: basic` alone", "remove one of the two");
        }
        spot.choice(sink, &encodings)
    });
    match (send?, at) {
        (Send::None, Some(at)) => {
            at.problem(sink, "a secret is given, but `send_credentials` is none", "remove one of the two");
            None
        }
        (Send::None, None) => Some(ClientAuth::None),
        (_, None) => {
            let hint = "give the secret as {file: PATH} or {env: NAME}";
            unit.at("client_secret").problem(sink, "`client_secret` is missing for this `send_credentials`", hint);
            None
        }
        (Send::Body, Some(_)) => Some(ClientAuth::Body(secrets??)),
        (Send::Basic, Some(_)) => Some(ClientAuth::Basic(secrets??, encoding.unwrap_or_default())),
    }
}

/// One secret, or a list while one is being rotated.
fn secrets(spot: &Spot<'_>, sink: &mut Sink) -> Option<Vec<Secret>> {
    if !spot.is_list() {
        return reference::secret(spot, sink).map(|secret| vec![secret]);
    }
    let items = spot.items(sink)?;
    if items.is_empty() {
        spot.problem(sink, "the list holds no secret", "write {file: PATH} or {env: NAME}");
    }
    let secrets: Vec<_> = items.iter().map(|item| reference::secret(item, sink)).collect();
    secrets.into_iter().collect::<Option<Vec<_>>>().filter(|secrets| !secrets.is_empty())
}

fn authorization_server(spot: Option<Spot<'_>>, sink: &mut Sink) -> AuthorizationServer {
    let mut server = AuthorizationServer { trust: None, timeout: ENDPOINT_TIMEOUT };
    let Some(unit) = spot.and_then(|spot| spot.unit::<AuthorizationServerFile>(sink)) else { return server };
    server.trust = unit.get(unit.keys.trust).and_then(|spot| reference::own_roots(&spot, sink));
    if let Some(timeout) = unit.get(unit.keys.timeout).and_then(|spot| spot.parse(sink, value::wait)) {
        server.timeout = timeout;
    }
    server
}

/// Text is split at commas and white space; items of a list are taken whole.
fn scopes(spot: &Spot<'_>, sink: &mut Sink) -> Vec<String> {
    let mut scopes: Vec<String> = Vec::new();
    if spot.is_list() {
        let items = spot.items(sink).unwrap_or_default();
        scopes.extend(items.iter().filter_map(|item| item.line(sink)));
    } else if let Some(text) = reference::text(spot, sink) {
        let parts = text.value.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
        scopes.extend(parts.filter_map(|part| spot.without_controls(part.to_owned(), sink)));
    }
    let mut seen = HashSet::new();
    scopes.retain(|scope| seen.insert(scope.clone()));
    scopes
}

fn token_params(spot: &Spot<'_>, sink: &mut Sink) -> Vec<(String, String)> {
    let mut params = Vec::new();
    for (key, place, value) in spot.pairs(sink) {
        if let Some((_, hint)) = OWN_FIELDS.iter().find(|(own, _)| *own == key) {
            place.problem(sink, format!("the grant sets `{key}` itself"), *hint);
            continue;
        }
        if key.is_empty() || key.chars().any(char::is_control) {
            place.problem(sink, "the name is empty or holds a control character", "write the parameter's name");
            continue;
        }
        let value = value.and_then(|value| {
            let text = reference::text(&value, sink)?.value;
            value.without_controls(text, sink)
        });
        params.extend(value.map(|value| (key.to_owned(), value)));
    }
    params
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
    if let Some(spot) = unit.get(unit.keys.keep_warm) {
        lifetimes.keep_warm = spot.parse(sink, value::wait);
    }
    lifetimes
}

fn statuses(spot: &Spot<'_>, sink: &mut Sink) -> Vec<StatusCode> {
    let mut statuses = Vec::new();
    for item in spot.items(sink).unwrap_or_default() {
        let Some(unit) = item.unit::<TokenRejectedFile>(sink) else { continue };
        let at = unit.require(unit.keys.status, "status", "write a status such as 401", sink);
        let status = at.and_then(|at| at.parse(sink, |text| value::integer(text, 400..=599)));
        let code = status.and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
        statuses.extend(code.filter(|code| !statuses.contains(code)));
    }
    statuses
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
