//! `admin.sign_in`: people sign in to the admin API at an OpenID provider.
//!
//! Not here: the sign-in itself (`crate::admin`), the requests to the provider (`crate::oauth`).

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use crate::config::reading::{Fault, Field, Keys, NodeRef, Sink, endpoint, reference, secret, shape, value};
use crate::model::connection::Pointer;
use crate::model::{Listener, Role, SignIn};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "sign_in", deny_unknown_fields)]
pub struct SignInFile {
    /// The provider's issuer; its metadata names the endpoints and the keys (OpenID Connect Discovery).
    #[schemars(required, extend("examples" = ["https://login.example.com"]))]
    pub issuer: Field<shape::Url>,
    /// Identifier of Keybearer as a client of the provider.
    #[schemars(required, extend("examples" = ["keybearer-admin"]))]
    pub client_id: Field<shape::Text>,
    /// Secret of that client. Absent: a public client.
    #[schemars(extend("examples" = [{"file": "/run/secrets/sign-in"}]))]
    pub client_secret: Field<shape::Secret>,
    /// Scopes to request; `openid` is always among them.
    #[schemars(extend("default" = "openid", "examples" = ["openid groups"]))]
    pub scopes: Field<shape::Either<shape::Text, shape::List<shape::Text>>>,
    /// Claim of the ID token with the person's groups, a text or a list: its name, or a JSON pointer (RFC 6901).
    #[schemars(extend("default" = "groups", "examples" = ["/realm_access/roles"]))]
    pub claim: Field<shape::Text>,
    /// Role of each group. A person in several groups gets the highest role, a person in none of them cannot sign in.
    #[schemars(required, extend("minProperties" = 1, "examples" = [{"platform": "manager", "support": "operator"}]))]
    pub roles: Field<shape::Map<shape::OneOf<Role>>>,
    /// Where the provider returns the browser: the admin listener's own address, with the path /sign-in/callback.
    /// Absent: derived from that listener, if it is on loopback.
    #[schemars(extend("examples" = ["https://keys.example.com/sign-in/callback"]))]
    pub redirect_url: Field<shape::Url>,
    /// How long a person stays signed in.
    #[schemars(extend("default" = "8h"))]
    pub session: Field<shape::Duration>,
}

impl Keys for SignInFile {}

const SESSION: Duration = Duration::from_secs(8 * 3600);
const OPENID: &str = "openid";
/// Path of the callback on the admin listener.
const CALLBACK: &str = "/sign-in/callback";

pub fn sign_in(node: &NodeRef<'_>, sink: &mut Sink) -> Option<SignIn> {
    let section = node.section::<SignInFile>(sink)?;
    let keys = &section.keys;
    let issuer = section.require(keys.issuer, "issuer", "write the provider's issuer, as in its metadata", sink);
    let issuer = issuer.and_then(|node| {
        node.parse_url(sink, issuer_url)?;
        Some(reference::text(&node, sink)?.value)
    });
    let client_id = section.require(keys.client_id, "client_id", "write the client's identifier", sink);
    let client_id = client_id.and_then(|node| node.line(sink));
    let client_secret = section.get(keys.client_secret).map(|node| secret::secret(&node, sink));
    let mut scopes = section.get(keys.scopes).map(|node| scopes(&node, sink)).unwrap_or_default();
    if !scopes.iter().any(|scope| scope == OPENID) {
        scopes.insert(0, OPENID.to_owned());
    }
    let claim = match section.get(keys.claim) {
        None => Some(Pointer::member("groups")),
        Some(node) => node.parse(sink, claim),
    };
    let roles =
        section.require(keys.roles, "roles", "map the provider's groups to roles, such as {ops: operator}", sink);
    let roles = roles.map(|node| roles_of_groups(&node, sink));
    let redirect_url = section.get(keys.redirect_url).map(|node| node.parse_url(sink, redirect_url));
    let session = section.get(keys.session).map(|node| node.parse(sink, value::positive_duration));
    Some(SignIn {
        issuer: issuer?,
        client_id: client_id?,
        client_secret: client_secret.map_or(Some(None), |secret| secret.map(Some))?,
        scopes,
        claim: claim?,
        roles: roles?,
        redirect_url: redirect_url.map_or(Some(None), |url| url.map(Some))?,
        session: session.unwrap_or(Some(SESSION))?,
    })
}

/// Checks that the provider can return the browser to the admin listener.
pub fn check_redirect(settings: Option<&SignIn>, admin: &Listener, node: &NodeRef<'_>, sink: &mut Sink) {
    let derived = settings.is_some_and(|settings| settings.redirect_url.is_none());
    if derived && !admin.address.ip().to_canonical().is_loopback() {
        let hint = format!("write `redirect_url: https://HOST{CALLBACK}`, where browsers reach the admin listener");
        node.problem(sink, "has no `redirect_url`, and the admin listener is not on loopback", hint);
    }
}

fn issuer_url(text: &str) -> Result<(), Fault> {
    endpoint::issuer(text)?;
    match endpoint::token_url(text)?.is_cleartext() {
        true => Err(Fault::new("would be requested in the clear", "use https; http is only for loopback")),
        false => Ok(()),
    }
}

fn redirect_url(text: &str) -> Result<Url, Fault> {
    let endpoint = endpoint::token_url(text)?;
    if endpoint.is_cleartext() {
        return Err(Fault::new(
            "would receive the authorization code in the clear",
            "use https; http is only for loopback",
        ));
    }
    if !endpoint.url.path().ends_with(CALLBACK) || endpoint.url.query().is_some() {
        return Err(Fault::new(format!("does not end in {CALLBACK}"), format!("write https://HOST{CALLBACK}")));
    }
    Ok(endpoint.url)
}

fn scopes(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<String> {
    if node.is_list() {
        let items = node.items(sink).unwrap_or_default();
        return items.iter().filter_map(|item| item.line(sink)).collect();
    }
    let text = node.line(sink).unwrap_or_default();
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn claim(text: &str) -> Result<Pointer, Fault> {
    match text {
        "" | "/" => Err(Fault::new("names no claim", "write the claim's name, such as groups, or a JSON pointer")),
        _ if text.starts_with('/') => Ok(Pointer::parse(text).unwrap_or_else(|| Pointer::member(text))),
        _ => Ok(Pointer::member(text)),
    }
}

fn roles_of_groups(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<(String, Role)> {
    let pairs = node.pairs(sink);
    if pairs.is_empty() {
        node.problem(sink, "maps no group, so no person could sign in", "map the provider's groups to roles");
    }
    let role =
        |(group, _, value): (&str, NodeRef<'_>, Option<NodeRef<'_>>)| Some((group.to_owned(), value?.choice(sink)?));
    pairs.into_iter().filter_map(role).collect()
}
