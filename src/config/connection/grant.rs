//! The grant of a connection, and the keys that each grant needs.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Map, Value};

use super::client::{self, KeyParts};
use super::file::{ActorTokenFile, AssertionFile, ConnectionFile, OWN_CLAIMS, SubjectTokenFile};
use super::words::FromCaller;
use crate::config::reading::{Fault, Kind, Sink, Spot, Unit, reference, secret, value};
use crate::model::connection::*;

const ASSERTION_LIFETIME: Duration = Duration::from_secs(3 * 60);
const ASSERTION_LIFETIME_MAX: Duration = Duration::from_secs(3600);
/// RFC 8693 §3
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// The grant of the connection, and those of its `profiles`, some of which state their own. The keys that a grant
/// needs belong to the connection, whichever definition uses it.
pub fn grants<'a>(
    unit: &Unit<'a, ConnectionFile>,
    profiles: impl Iterator<Item = Option<Spot<'a>>>,
    has_issuer: bool,
    sink: &mut Sink,
) -> (Option<Grant>, Vec<Option<Grant>>) {
    let mut name = |spot: Option<Spot<'_>>, absent: Option<GrantKind>| match spot {
        None => absent,
        Some(spot) => spot.choice(sink),
    };
    // Where an authorization URL is known, a person is meant.
    let person = unit.get(unit.keys.authorization_url).is_some();
    let absent = if person { GrantKind::AuthorizationCode } else { GrantKind::ClientCredentials };
    let own = name(unit.get(unit.keys.grant), Some(absent));
    let profiles: Vec<_> = profiles.map(|spot| name(spot, own)).collect();
    let used: HashSet<_> = profiles.iter().chain([&own]).copied().collect();
    if !used.contains(&None) {
        refuse_unused(unit, &used, sink);
    }
    let mut read: HashMap<GrantKind, Option<Grant>> = HashMap::new();
    let mut grant = |name: Option<GrantKind>| {
        let name = name?;
        read.entry(name).or_insert_with(|| grant(unit, name, has_issuer, sink)).clone()
    };
    (grant(own), profiles.into_iter().map(grant).collect())
}

/// Keys of a grant that no definition has.
fn refuse_unused(unit: &Unit<'_, ConnectionFile>, used: &HashSet<Option<GrantKind>>, sink: &mut Sink) {
    let keys = &unit.keys;
    let with = |key: &str, spots: &[Option<Spot<'_>>], names: &[GrantKind], sink: &mut Sink| {
        let is_used = names.iter().any(|name| used.contains(&Some(*name)));
        for spot in spots.iter().filter(|_| !is_used).flatten() {
            spot.problem(sink, format!("goes with `grant: {key}` alone"), "set that grant, or remove the key");
        }
    };
    with("password", &[unit.get(keys.username), unit.get(keys.password)], &[GrantKind::Password], sink);
    with(
        "jwt_bearer` or `saml2_bearer",
        &[unit.get(keys.assertion)],
        &[GrantKind::JwtBearer, GrantKind::Saml2Bearer],
        sink,
    );
    let exchange = [
        unit.get(keys.subject_token),
        unit.get(keys.subject_token_type),
        unit.get(keys.requested_token_type),
        unit.get(keys.actor_token),
    ];
    with("token_exchange", &exchange, &[GrantKind::TokenExchange], sink);
}

fn grant(unit: &Unit<'_, ConnectionFile>, name: GrantKind, has_issuer: bool, sink: &mut Sink) -> Option<Grant> {
    let keys = &unit.keys;
    match name {
        GrantKind::ClientCredentials => Some(Grant::ClientCredentials),
        GrantKind::AuthorizationCode => {
            if !has_issuer && unit.get(keys.authorization_url).is_none() {
                let hint =
                    "write `authorization_url`, or an `issuer` that names it; `connect NAME --import -` works without";
                unit.at("grant").warning(sink, "nobody can connect it in a browser", hint);
            }
            Some(Grant::AuthorizationCode)
        }
        GrantKind::DeviceCode => {
            if !has_issuer {
                let hint = "write the URL, or an `issuer` that names it";
                unit.require(keys.device_authorization_url, "device_authorization_url", hint, sink)?;
            }
            Some(Grant::DeviceCode)
        }
        GrantKind::Password => {
            let hint = "write the resource owner's name";
            let username = unit.require(keys.username, "username", hint, sink).and_then(|spot| spot.line(sink));
            let hint = "give it as {file: PATH} or {env: NAME}";
            let password = unit.require(keys.password, "password", hint, sink);
            let password = password.and_then(|spot| secret::secret(&spot, sink));
            Some(Grant::Password { username: username?, password: password? })
        }
        GrantKind::JwtBearer => {
            let hint = "write assertion: {key: {file: PATH}, subject: NAME}";
            let spot = unit.require(keys.assertion, "assertion", hint, sink)?;
            jwt_assertion(&spot, has_issuer, sink).map(Grant::JwtBearer)
        }
        GrantKind::Saml2Bearer => {
            let hint = "write assertion: {file: PATH} of the signed assertion";
            let spot = unit.require(keys.assertion, "assertion", hint, sink)?;
            Some(Grant::Saml2Bearer { assertion: secret::secret(&spot, sink)? })
        }
        GrantKind::TokenExchange => token_exchange(unit, sink).map(Grant::TokenExchange),
    }
}

fn jwt_assertion(spot: &Spot<'_>, has_issuer: bool, sink: &mut Sink) -> Option<JwtAssertion> {
    let unit = spot.unit::<AssertionFile>(sink)?;
    let keys = &unit.keys;
    let issuer = unit.get(keys.issuer).map(|spot| spot.line(sink));
    let subject = unit.get(keys.subject).map(|spot| spot.line(sink));
    let audience = client::audience(unit.get(keys.audience), has_issuer, sink);
    let lifetime = unit.get(keys.lifetime).map_or(Some(ASSERTION_LIFETIME), |spot| spot.parse(sink, lifetime));
    let claims = unit.get(keys.claims).map_or_else(|| Some(Map::new()), |spot| claims(&spot, sink));
    let (algorithm, key_id) = (unit.get(keys.algorithm), unit.get(keys.key_id));
    let parts = KeyParts { algorithm, key_id, certificate: None, thumbprint: None };
    Some(JwtAssertion {
        key: client::assertion_key(&unit, keys.key, parts, sink)?,
        issuer: issuer.flatten(),
        subject: subject.flatten(),
        audience: audience?,
        lifetime: lifetime?,
        claims: claims?,
    })
}

fn lifetime(text: &str) -> Result<Duration, Fault> {
    let lifetime = value::wait(text)?;
    if lifetime.subsec_nanos() != 0 {
        return Err(Fault::new("is no number of whole seconds", "write a duration such as 3m"));
    }
    match lifetime > ASSERTION_LIFETIME_MAX {
        true => Err(Fault::new("is longer than an hour", "write a duration such as 3m: each attempt gets a new one")),
        false => Ok(lifetime),
    }
}

fn claims(spot: &Spot<'_>, sink: &mut Sink) -> Option<Map<String, Value>> {
    let (mut claims, mut whole) = (Map::new(), true);
    for (key, place, value) in spot.pairs(sink) {
        if OWN_CLAIMS.contains(&key) {
            let hint = "use `issuer`, `subject`, `audience` or `lifetime`; `iat` and `jti` are made anew each time";
            place.problem(sink, format!("the claim `{key}` is not set here"), hint);
            continue;
        }
        match value.map_or(Some(Value::Null), |value| json(&value, sink)) {
            Some(value) => drop(claims.insert(key.to_owned(), value)),
            None => whole = false,
        }
    }
    whole.then_some(claims)
}

/// A value as JSON: plain numbers and booleans as such, whatever is quoted or filled in as a text.
fn json(spot: &Spot<'_>, sink: &mut Sink) -> Option<Value> {
    match spot.kind() {
        Kind::List(_) => {
            spot.items(sink)?.iter().map(|item| json(item, sink)).collect::<Option<Vec<_>>>().map(Value::from)
        }
        Kind::Map(_) => {
            let pairs = spot.pairs(sink).into_iter();
            let member = |(key, _, value): (&str, Spot<'_>, Option<Spot<'_>>)| {
                Some((key.to_owned(), value.map_or(Some(Value::Null), |value| json(&value, sink))?))
            };
            pairs.map(member).collect::<Option<Map<_, _>>>().map(Value::from)
        }
        Kind::Scalar { plain, .. } => {
            let text = reference::text(spot, sink)?;
            let typed =
                serde_json::from_str(&text.value).ok().filter(|value: &Value| value.is_number() || value.is_boolean());
            Some(typed.filter(|_| *plain && !text.filled).unwrap_or(Value::String(text.value)))
        }
    }
}

fn token_exchange(unit: &Unit<'_, ConnectionFile>, sink: &mut Sink) -> Option<TokenExchange> {
    let keys = &unit.keys;
    let hint = "write subject_token: {from: caller} or {file: PATH}";
    let subject_token = unit.require(keys.subject_token, "subject_token", hint, sink);
    let subject_token = subject_token.and_then(|spot| subject_token_at(&spot, sink));
    let subject_token_type = unit.get(keys.subject_token_type).map(|spot| spot.parse(sink, token_type));
    let requested = unit.get(keys.requested_token_type).map(|spot| spot.parse(sink, token_type));
    let actor = unit.get(keys.actor_token).map(|spot| actor(&spot, sink));
    let subject_token = subject_token?;
    let default = if subject_token == SubjectToken::OfCaller { ACCESS_TOKEN } else { JWT };
    Some(TokenExchange {
        subject_token,
        subject_token_type: subject_token_type.unwrap_or_else(|| Some(default.to_owned()))?,
        requested_token_type: requested.flatten(),
        actor: actor.flatten(),
    })
}

fn subject_token_at(spot: &Spot<'_>, sink: &mut Sink) -> Option<SubjectToken> {
    if spot.is_map() && spot.pairs(sink).iter().any(|(key, ..)| *key == "from") {
        let unit = spot.unit::<SubjectTokenFile>(sink)?;
        let from = unit.require(unit.keys.from, "from", "write {from: caller}", sink)?;
        return from.choice(sink).map(|FromCaller| SubjectToken::OfCaller);
    }
    secret::secret(spot, sink).map(SubjectToken::Given)
}

/// A token, or `{token: …, token_type: …}`.
fn actor(spot: &Spot<'_>, sink: &mut Sink) -> Option<Actor> {
    if spot.is_map() && spot.pairs(sink).iter().any(|(key, ..)| *key == "token") {
        let unit = spot.unit::<ActorTokenFile>(sink)?;
        let token = unit.require(unit.keys.token, "token", "write token: {file: PATH}", sink);
        let token = token.and_then(|spot| secret::secret(&spot, sink));
        let token_type =
            unit.get(unit.keys.token_type).map_or(Some(JWT.to_owned()), |spot| spot.parse(sink, token_type));
        return Some(Actor { token: token?, token_type: token_type? });
    }
    Some(Actor { token: secret::secret(spot, sink)?, token_type: JWT.to_owned() })
}

/// A URN of RFC 8693 §3, its last word alone, or another URI.
fn token_type(text: &str) -> Result<String, Fault> {
    const WORDS: [&str; 6] = ["access_token", "refresh_token", "id_token", "saml1", "saml2", "jwt"];
    if WORDS.contains(&text) {
        return Ok(format!("urn:ietf:params:oauth:token-type:{text}"));
    }
    let plain = text.contains(':') && text.bytes().all(|b| b.is_ascii_graphic());
    let hint = format!("write one of {}, or a URI", WORDS.join(", "));
    plain.then(|| text.to_owned()).ok_or_else(|| Fault::new("is no token type", hint))
}
