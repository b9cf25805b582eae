//! Reads the grant of a connection, and the keys that each grant needs.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Map, Value};

use super::client::{self, KeyParts};
use super::file::{ActorTokenFile, AssertionFile, ConnectionFile, OWN_CLAIMS, SubjectTokenFile};
use super::keywords::FromCaller;
use crate::config::reading::{Fault, Kind, NodeRef, Section, Sink, reference, secret, value};
use crate::model::connection::*;

const ASSERTION_LIFETIME: Duration = Duration::from_secs(3 * 60);
const ASSERTION_LIFETIME_MAX: Duration = Duration::from_secs(3600);
/// RFC 8693 §3.
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// Reads the grant of the connection, and the grant of each profile, which may have its own. The keys that a grant
/// needs are keys of the connection, even for the grant of a profile.
pub fn grants<'a>(
    section: &Section<'a, ConnectionFile>,
    profiles: impl Iterator<Item = Option<NodeRef<'a>>>,
    has_issuer: bool,
    sink: &mut Sink,
) -> (Option<Grant>, Vec<Option<Grant>>) {
    let mut kind = |node: Option<NodeRef<'_>>, default: Option<GrantKind>| match node {
        None => default,
        Some(node) => node.choice(sink),
    };
    // An authorization URL implies that a person connects.
    let has_authorization_url = section.get(section.keys.authorization_url).is_some();
    let default = if has_authorization_url { GrantKind::AuthorizationCode } else { GrantKind::ClientCredentials };
    let own = kind(section.get(section.keys.grant), Some(default));
    let profiles: Vec<_> = profiles.map(|node| kind(node, own)).collect();
    let used: HashSet<_> = profiles.iter().chain([&own]).copied().collect();
    if !used.contains(&None) {
        refuse_unused(section, &used, sink);
    }
    let mut read: HashMap<GrantKind, Option<Grant>> = HashMap::new();
    let mut grant = |kind: Option<GrantKind>| {
        let kind = kind?;
        read.entry(kind).or_insert_with(|| grant(section, kind, has_issuer, sink)).clone()
    };
    (grant(own), profiles.into_iter().map(grant).collect())
}

/// Rejects the keys of grants that neither the connection nor a profile uses.
fn refuse_unused(section: &Section<'_, ConnectionFile>, used: &HashSet<Option<GrantKind>>, sink: &mut Sink) {
    let keys = &section.keys;
    let check = |grant: &str, nodes: &[Option<NodeRef<'_>>], kinds: &[GrantKind], sink: &mut Sink| {
        let is_used = kinds.iter().any(|kind| used.contains(&Some(*kind)));
        for node in nodes.iter().filter(|_| !is_used).flatten() {
            node.problem(sink, format!("applies only to `grant: {grant}`"), "set that grant, or remove the key");
        }
    };
    check("password", &[section.get(keys.username), section.get(keys.password)], &[GrantKind::Password], sink);
    check(
        "jwt_bearer` or `saml2_bearer",
        &[section.get(keys.assertion)],
        &[GrantKind::JwtBearer, GrantKind::Saml2Bearer],
        sink,
    );
    let exchange = [
        section.get(keys.subject_token),
        section.get(keys.subject_token_type),
        section.get(keys.requested_token_type),
        section.get(keys.actor_token),
    ];
    check("token_exchange", &exchange, &[GrantKind::TokenExchange], sink);
}

fn grant(section: &Section<'_, ConnectionFile>, kind: GrantKind, has_issuer: bool, sink: &mut Sink) -> Option<Grant> {
    let keys = &section.keys;
    match kind {
        GrantKind::ClientCredentials => Some(Grant::ClientCredentials),
        GrantKind::AuthorizationCode => {
            if !has_issuer && section.get(keys.authorization_url).is_none() {
                let hint =
                    "write `authorization_url`, or an `issuer` with metadata; `connect NAME --import -` works without";
                section.at("grant").warning(sink, "the connection cannot be authorized in a browser", hint);
            }
            Some(Grant::AuthorizationCode)
        }
        GrantKind::DeviceCode => {
            if !has_issuer {
                let hint = "write the URL, or an `issuer` with metadata";
                section.require(keys.device_authorization_url, "device_authorization_url", hint, sink)?;
            }
            Some(Grant::DeviceCode)
        }
        GrantKind::Password => {
            let hint = "write the resource owner's name";
            let username = section.require(keys.username, "username", hint, sink).and_then(|node| node.line(sink));
            let hint = "give it as {file: PATH} or {env: NAME}";
            let password = section.require(keys.password, "password", hint, sink);
            let password = password.and_then(|node| secret::secret(&node, sink));
            Some(Grant::Password { username: username?, password: password? })
        }
        GrantKind::JwtBearer => {
            let hint = "write `assertion: {key: {file: PATH}, subject: NAME}`";
            let node = section.require(keys.assertion, "assertion", hint, sink)?;
            jwt_assertion(&node, has_issuer, sink).map(Grant::JwtBearer)
        }
        GrantKind::Saml2Bearer => {
            let hint = "write `assertion: {file: PATH}` with the signed assertion";
            let node = section.require(keys.assertion, "assertion", hint, sink)?;
            Some(Grant::Saml2Bearer { assertion: secret::secret(&node, sink)? })
        }
        GrantKind::TokenExchange => token_exchange(section, sink).map(Grant::TokenExchange),
    }
}

fn jwt_assertion(node: &NodeRef<'_>, has_issuer: bool, sink: &mut Sink) -> Option<JwtAssertion> {
    let section = node.section::<AssertionFile>(sink)?;
    let keys = &section.keys;
    let issuer = section.get(keys.issuer).map(|node| node.line(sink));
    let subject = section.get(keys.subject).map(|node| node.line(sink));
    let audience = client::audience(section.get(keys.audience), has_issuer, sink);
    let lifetime = section.get(keys.lifetime).map_or(Some(ASSERTION_LIFETIME), |node| node.parse(sink, lifetime));
    let claims = section.get(keys.claims).map_or_else(|| Some(Map::new()), |node| claims(&node, sink));
    let (algorithm, key_id) = (section.get(keys.algorithm), section.get(keys.key_id));
    let parts = KeyParts { algorithm, key_id, certificate: None, thumbprint: None };
    Some(JwtAssertion {
        key: client::assertion_key(&section, keys.key, parts, sink)?,
        issuer: issuer.flatten(),
        subject: subject.flatten(),
        audience: audience?,
        lifetime: lifetime?,
        claims: claims?,
    })
}

fn lifetime(text: &str) -> Result<Duration, Fault> {
    let lifetime = value::positive_duration(text)?;
    if lifetime.subsec_nanos() != 0 {
        return Err(Fault::new("is not a whole number of seconds", "write a duration such as 3m"));
    }
    match lifetime > ASSERTION_LIFETIME_MAX {
        true => {
            Err(Fault::new("is longer than an hour", "write a duration such as 3m: each attempt signs a new assertion"))
        }
        false => Ok(lifetime),
    }
}

fn claims(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Map<String, Value>> {
    let (mut claims, mut valid) = (Map::new(), true);
    for (key, key_node, value) in node.pairs(sink) {
        if OWN_CLAIMS.contains(&key) {
            let hint = "use `issuer`, `subject`, `audience` or `lifetime`; `iat` and `jti` are generated each time";
            key_node.problem(sink, format!("the claim `{key}` cannot be set here"), hint);
            continue;
        }
        match value.map_or(Some(Value::Null), |value| json(&value, sink)) {
            Some(value) => drop(claims.insert(key.to_owned(), value)),
            None => valid = false,
        }
    }
    valid.then_some(claims)
}

/// Reads a value as JSON: plain numbers and booleans keep their type; quoted text and references become strings.
fn json(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Value> {
    match node.kind() {
        Kind::List(_) => {
            node.items(sink)?.iter().map(|item| json(item, sink)).collect::<Option<Vec<_>>>().map(Value::from)
        }
        Kind::Map(_) => {
            let pairs = node.pairs(sink).into_iter();
            let member = |(key, _, value): (&str, NodeRef<'_>, Option<NodeRef<'_>>)| {
                Some((key.to_owned(), value.map_or(Some(Value::Null), |value| json(&value, sink))?))
            };
            pairs.map(member).collect::<Option<Map<_, _>>>().map(Value::from)
        }
        Kind::Scalar { plain, .. } => {
            let text = reference::text(node, sink)?;
            let typed =
                serde_json::from_str(&text.value).ok().filter(|value: &Value| value.is_number() || value.is_boolean());
            Some(typed.filter(|_| *plain && !text.has_reference).unwrap_or(Value::String(text.value)))
        }
    }
}

fn token_exchange(section: &Section<'_, ConnectionFile>, sink: &mut Sink) -> Option<TokenExchange> {
    let keys = &section.keys;
    let hint = "write `subject_token: {from: caller}`, or {file: PATH}";
    let subject_token = section.require(keys.subject_token, "subject_token", hint, sink);
    let subject_token = subject_token.and_then(|node| read_subject_token(&node, sink));
    let subject_token_type = section.get(keys.subject_token_type).map(|node| node.parse(sink, token_type));
    let requested = section.get(keys.requested_token_type).map(|node| node.parse(sink, token_type));
    let actor = section.get(keys.actor_token).map(|node| actor(&node, sink));
    let subject_token = subject_token?;
    let default = if subject_token == SubjectToken::FromCaller { ACCESS_TOKEN } else { JWT };
    Some(TokenExchange {
        subject_token,
        subject_token_type: subject_token_type.unwrap_or_else(|| Some(default.to_owned()))?,
        requested_token_type: requested.flatten(),
        actor: actor.flatten(),
    })
}

fn read_subject_token(node: &NodeRef<'_>, sink: &mut Sink) -> Option<SubjectToken> {
    if node.is_map() && node.pairs(sink).iter().any(|(key, ..)| *key == "from") {
        let section = node.section::<SubjectTokenFile>(sink)?;
        let from = section.require(section.keys.from, "from", "write {from: caller}", sink)?;
        return from.choice(sink).map(|FromCaller| SubjectToken::FromCaller);
    }
    secret::secret(node, sink).map(SubjectToken::Given)
}

/// Reads a token, or `{token: …, token_type: …}`.
fn actor(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Actor> {
    if node.is_map() && node.pairs(sink).iter().any(|(key, ..)| *key == "token") {
        let section = node.section::<ActorTokenFile>(sink)?;
        let token = section.require(section.keys.token, "token", "write `token: {file: PATH}`", sink);
        let token = token.and_then(|node| secret::secret(&node, sink));
        let token_type =
            section.get(section.keys.token_type).map_or(Some(JWT.to_owned()), |node| node.parse(sink, token_type));
        return Some(Actor { token: token?, token_type: token_type? });
    }
    Some(Actor { token: secret::secret(node, sink)?, token_type: JWT.to_owned() })
}

/// A URN of RFC 8693 §3, its last component, or another URI.
fn token_type(text: &str) -> Result<String, Fault> {
    const NAMES: [&str; 6] = ["access_token", "refresh_token", "id_token", "saml1", "saml2", "jwt"];
    if NAMES.contains(&text) {
        return Ok(format!("urn:ietf:params:oauth:token-type:{text}"));
    }
    let plain = text.contains(':') && text.bytes().all(|b| b.is_ascii_graphic());
    let hint = format!("write one of {}, or a URI", NAMES.join(", "));
    plain.then(|| text.to_owned()).ok_or_else(|| Fault::new("is not a token type", hint))
}
