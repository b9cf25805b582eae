//! Reads one item of `connections` into a checked [`Connection`].
//!
//! `about` reads what describes the connection; `grant`, `client`, `consent`, `params`, `token_format`, `script` and
//! `profile` read the settings of its tokens; `route`, `header`, `inject` and `strip` those of the requests that get
//! them. `conflict`, `precedence`, `tunnel` and `extra_origins` work across connections.

mod about;
mod client;
mod conflict;
mod consent;
mod draft;
mod extra_origins;
mod file;
mod grant;
mod header;
mod inject;
mod keywords;
mod params;
mod precedence;
mod profile;
mod route;
mod script;
mod strip;
mod token_format;
mod tunnel;

use std::sync::Arc;

use http::StatusCode;

pub use self::conflict::{Registry, Surroundings};
pub use self::draft::Draft;
pub use self::extra_origins::{check_injected, collect_extra_origins};
pub use self::file::{ConnectionFile, MutualTlsFile};
pub use self::precedence::FileRoutes;

use self::about::About;
use self::client::{authorization_server, client_auth, mutual_tls};
use self::grant::grants;
use self::params::{TOKEN_REQUEST_OWN, params};
use super::caller::Callers;
use super::reading::{
    NodeRef, Section, Sink, SourceKind,
    endpoint::{self, EndpointUrl},
    published::Destinations,
    reference, value,
    written::Shapes,
};
use crate::model::Name;
use crate::model::connection::*;
use crate::model::origin::{Authority, Host};
use crate::model::token::default_profile;

/// What the connections of a configuration refer to.
pub struct Context {
    pub callers: Callers,
    /// The shapes of a connection's values.
    pub shapes: Shapes,
}

pub fn connection<'a>(node: &NodeRef<'a>, context: &Context, sink: &mut Sink) -> Option<Draft<'a>> {
    let section = node.section::<ConnectionFile>(sink)?;
    let keys = &section.keys;
    let named = section.require(keys.name, "name", "give the connection a name", sink);
    let name = named.and_then(|at| Some((at.parse(sink, value::name)?, at)));
    let allow_cleartext = section.get(keys.allow_cleartext).and_then(|node| node.boolean(sink)).unwrap_or(false);
    let (endpoints, endpoint_nodes) = endpoints(&section, allow_cleartext, sink);
    sink.destinations = endpoints.as_ref().map(destinations).unwrap_or_default();
    let about = about::about(&section, sink);
    let accessible_from = about::accessible_from(&section, about.application.as_deref(), &context.callers, sink);
    let certificate = section.get(keys.mutual_tls).map(|node| mutual_tls(&node, sink));
    let items = section.get(keys.routes).and_then(|node| node.items(sink)).unwrap_or_default();
    let client_certificate = certificate.as_ref().map(Option::as_ref);
    let profiles = profile::drafts(section.get(keys.profiles), sink);
    let names = profile::names(&profiles);
    let read = |item: &NodeRef<'a>| {
        Some((item.clone(), route::route(item, allow_cleartext, client_certificate, names.as_deref(), sink)?))
    };
    let routes: Vec<_> = items.iter().filter_map(read).collect();
    let parts = Parts {
        name: name.as_ref().map(|(name, _)| name.clone()),
        written: written(node, &context.shapes),
        about,
        endpoints,
        certificate,
        accessible_from: accessible_from.clone(),
        profiles,
        routes: &routes,
    };
    let connection = assemble(&section, parts, sink);
    let secret_hosts = std::mem::take(&mut sink.destinations).permitted.map(Into::into);
    if let (SourceKind::Api(_), Some(_), Some(at)) = (node.source.kind, &secret_hosts, section.get(keys.script)) {
        // What a script throws is shown.
        let hint = "remove the script, or use a secret of the definition's own";
        at.problem(sink, "a script could reveal the published secret", hint);
    }
    let connection = connection.map(|connection| connection.with_secret_hosts(secret_hosts));
    Some(Draft { name, endpoints: endpoint_nodes, callers: accessible_from, routes, connection, node: node.clone() })
}

/// The definition at `node` as its administrator wrote it.
pub fn written(node: &NodeRef<'_>, shapes: &Shapes) -> WrittenDefinition {
    let (json, lines) = shapes.definition(node);
    let defined_in = match node.source.kind {
        SourceKind::File => DefinedIn::File(node.source.path.as_path().into()),
        SourceKind::Api(revision) => DefinedIn::Api(revision),
    };
    WrittenDefinition { defined_in, json, lines }
}

/// Keys that are read before the others.
struct Parts<'a> {
    name: Option<Name>,
    written: WrittenDefinition,
    about: About,
    endpoints: Option<Endpoints>,
    /// `Some(None)`: present, but invalid.
    certificate: Option<Option<ClientCertificate>>,
    accessible_from: Option<Vec<Name>>,
    profiles: Vec<profile::ProfileDraft<'a>>,
    routes: &'a [(NodeRef<'a>, Route)],
}

/// Reads all other keys before giving up, so that no problem hides another.
fn assemble(section: &Section<'_, ConnectionFile>, parts: Parts<'_>, sink: &mut Sink) -> Option<Connection> {
    let keys = &section.keys;
    let has_issuer = section.get(keys.issuer).is_some();
    let profiles = parts.profiles;
    let (grant, grants) = grants(section, profiles.iter().map(|profile| profile.grant()), has_issuer, sink);
    let authorization = consent::authorization(section, grants.iter().chain([&grant]).flatten(), sink);
    let grant_type = section.get(keys.grant_type).and_then(|node| node.line(sink));
    let client_id = section.require(keys.client_id, "client_id", "write the client's identifier", sink);
    let client_id = client_id.and_then(|node| node.line(sink));
    let client_auth = client_auth(section, parts.certificate.is_some(), has_issuer, sink);
    let active = section.get(keys.active).map_or(Some(true), |node| node.boolean(sink));
    let authorization_server = authorization_server(section.get(keys.authorization_server), sink);
    let available_scopes = section.get(keys.available_scopes).map(|node| profile::available_scopes(&node, sink));
    let available = available_scopes.as_deref();
    let scopes = section.get(keys.scopes).map(|node| profile::scopes(&node, available, sink)).unwrap_or_default();
    let overrides: Vec<_> = profiles.iter().map(|profile| profile.read(available, sink)).collect();
    let audience = section.get(keys.audience).and_then(|node| node.line_without_placeholders(sink));
    let resource = section.get(keys.resource).and_then(|node| node.line_without_placeholders(sink));
    let token_params =
        section.get(keys.token_params).map(|node| params(&node, &TOKEN_REQUEST_OWN, sink)).unwrap_or_default();
    let token_request = section.get(keys.token_request);
    let token_request =
        token_request.map_or_else(|| Some(TokenRequestFormat::default()), |s| token_format::token_request(&s, sink));
    let token_response = section.get(keys.token_response);
    let token_response =
        token_response.map_or_else(|| Some(TokenResponseFormat::default()), |s| token_format::token_response(&s, sink));
    if let (Some(true), Some(request)) = (client_auth.as_ref().map(ClientAuth::is_in_header), &token_request) {
        refuse_second_authorization(section, request, sink);
    }
    let variables = script::variables(section, sink);
    let script = section.get(keys.script).map(|node| script::script(&node, sink));
    let lifetimes = lifetimes(section, sink);
    let tokens = section.get(keys.tokens).map_or(Some(Tokens::Shared), |node| node.choice(sink));
    let rejected = section.get(keys.token_rejected);
    let unauthorized = || vec![RejectionSign::of_status(StatusCode::UNAUTHORIZED)];
    let token_rejected = rejected.map_or_else(unauthorized, |node| token_format::token_rejected(&node, sink));
    let names = profile::names(&profiles).unwrap_or_default().into_iter();
    let named = names.zip(&grants).filter_map(|(name, grant)| Some((name, grant.as_ref()?)));
    let definitions: Vec<_> = grant.iter().map(|grant| (default_profile(), grant)).chain(named).collect();
    check_caller_tokens(section, &definitions, tokens, parts.routes, sink);
    let connection = Connection {
        name: parts.name?,
        written: Arc::new(parts.written),
        profile: default_profile(),
        profiles: Vec::new(),
        active: active?,
        comments: parts.about.comments,
        logo_url: parts.about.logo_url,
        application: parts.about.application,
        client_secret_expires_at: parts.about.client_secret_expires_at,
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
        secret_hosts: None,
        extra_origins: Vec::new(),
    };
    profile::with_profiles(connection, overrides.into_iter().zip(grants))
}

/// Rejects keys that contradict a grant that exchanges the caller's token.
fn check_caller_tokens(
    section: &Section<'_, ConnectionFile>,
    grants: &[(Name, &Grant)],
    tokens: Option<Tokens>,
    routes: &[(NodeRef<'_>, Route)],
    sink: &mut Sink,
) {
    let exchanged: Vec<_> = grants.iter().filter(|(_, grant)| grant.exchanges_caller_token()).collect();
    let refused = |(_, route): &&(NodeRef<'_>, Route)| {
        route.existing != Existing::Overwrite && exchanged.iter().any(|(profile, _)| route.carries(profile))
    };
    for (node, _) in routes.iter().filter(refused) {
        let hint = "remove `existing`: the caller's token is exchanged and never forwarded";
        node.problem(sink, "`existing` contradicts `subject_token: {from: caller}`", hint);
    }
    if exchanged.is_empty() || exchanged.len() < grants.len() {
        return;
    }
    if let Some(node) = section.get(section.keys.tokens).filter(|_| tokens == Some(Tokens::PerSubject)) {
        node.problem(
            sink,
            "`subject_token: {from: caller}` already means a token for each caller token",
            "remove `tokens`",
        );
    }
    if let Some(node) = section.get(section.keys.keep_warm) {
        let hint = "remove `keep_warm`: only a caller's request brings the token to exchange";
        node.problem(sink, "`keep_warm` contradicts `subject_token: {from: caller}`", hint);
    }
}

/// Rejects an Authorization header in `token_request` if `send_credentials: basic` sets it.
fn refuse_second_authorization(section: &Section<'_, ConnectionFile>, request: &TokenRequestFormat, sink: &mut Sink) {
    let is_set = request.headers.iter().any(|(name, _)| *name == http::header::AUTHORIZATION);
    if let Some(node) = section.get(section.keys.token_request).filter(|_| is_set) {
        let hint = "remove the header, or choose another `send_credentials`";
        node.problem(sink, "`send_credentials: basic` sets Authorization itself", hint);
    }
}

/// Reads the endpoints; the list has the authority and the node of each.
fn endpoints<'a>(
    section: &Section<'a, ConnectionFile>,
    allow_cleartext: bool,
    sink: &mut Sink,
) -> (Option<Endpoints>, Vec<(Authority, NodeRef<'a>)>) {
    let keys = &section.keys;
    let mut nodes = Vec::new();
    let mut read = |at: NodeRef<'a>, sink: &mut Sink| {
        let endpoint: EndpointUrl = at.parse_url(sink, endpoint::token_url)?;
        if endpoint.is_cleartext() && !allow_cleartext {
            at.problem(sink, "would send the client secret in the clear", "use https, or set `allow_cleartext: true`");
        }
        nodes.push((endpoint.authority, at));
        Some(endpoint.url)
    };
    let token = match section.get(keys.issuer) {
        None => {
            let hint = "write the URL of the authorization server's token endpoint";
            section.require(keys.token_url, "token_url", hint, sink)
        }
        Some(_) => section.get(keys.token_url),
    };
    let token = token.map(|at| read(at, sink));
    let revocation = section.get(keys.revocation_url).map(|at| read(at, sink));
    let authorization = section.get(keys.authorization_url).map(|at| read(at, sink));
    let device = section.get(keys.device_authorization_url).map(|at| read(at, sink));
    if let (Some(at), Some(Some(url))) = (section.get(keys.authorization_url), &authorization) {
        consent::check_query(&at, url, sink);
    }
    let issuer = section.get(keys.issuer).map(|at| {
        let url = at.parse_url(sink, endpoint::issuer).and_then(|_| read(at.clone(), sink))?;
        Some((reference::text(&at, sink)?.value, url))
    });
    let (token, revocation, issuer) = (token.unwrap_or_default(), revocation.flatten(), issuer.flatten());
    let server = token.clone().or_else(|| issuer.as_ref().map(|(_, url)| url.clone()));
    let issuer = issuer.map(|(text, _)| text);
    let (authorization, device_authorization) = (authorization.flatten(), device.flatten());
    let with_server =
        |server| Endpoints { server, token, revocation, authorization, device_authorization, issuer, allow_cleartext };
    (server.map(with_server), nodes)
}

/// The hosts that receive the secrets of the connection; a browser never carries one to the authorization URL.
fn destinations(endpoints: &Endpoints) -> Destinations {
    let issuer = endpoints.issuer.as_ref().and_then(|issuer| issuer.parse().ok());
    let urls = [
        ("token_url", endpoints.token.clone()),
        ("revocation_url", endpoints.revocation.clone()),
        ("device_authorization_url", endpoints.device_authorization.clone()),
        ("issuer", issuer),
    ];
    let host = |url: url::Url| Host::parse(url.host_str()?).ok();
    let hosts = urls.into_iter().filter_map(|(key, url)| Some((key, host(url?)?))).collect();
    let cleartext = endpoints.allow_cleartext.then_some(("allow_cleartext", "remove `allow_cleartext`"));
    Destinations { hosts, cleartext, permitted: None }
}

fn lifetimes(section: &Section<'_, ConnectionFile>, sink: &mut Sink) -> Lifetimes {
    let mut lifetimes = Lifetimes::default();
    if let Some(node) = section.get(section.keys.default_token_lifetime) {
        lifetimes.default_token_lifetime = node.parse(sink, value::positive_duration).unwrap_or_default();
    }
    if let Some(node) = section.get(section.keys.refresh_ahead) {
        lifetimes.refresh_ahead = node.parse(sink, value::duration).unwrap_or_default();
    }
    if let Some(node) = section.get(section.keys.usable_margin) {
        lifetimes.usable_margin = node.parse(sink, value::duration).unwrap_or_default();
    }
    if let Some(node) = section.get(section.keys.refresh_token_lifespan) {
        lifetimes.refresh_token = node.parse(sink, value::positive_duration);
    }
    if let Some(node) = section.get(section.keys.keep_warm) {
        lifetimes.keep_warm = node.parse(sink, value::positive_duration);
    }
    lifetimes
}
