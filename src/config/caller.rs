//! `callers`: the programs that may use the proxy, and how each is recognized.
//!
//! Holds: each caller has a condition; a name that means a listener or a user is one that there is.

use std::collections::{HashMap, HashSet};

use nix::unistd::User;
use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Fault, Field, Keys, Sink, Spot, Unit, secret, shape, value};
use crate::model::san::San;
use crate::model::secret::Secret;
use crate::model::{Caller, Listeners, Name};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "caller", deny_unknown_fields)]
#[schemars(extend(
    "anyOf" = [
        {"required": ["secret"]},
        {"required": ["cidr"]},
        {"required": ["listener"]},
        {"required": ["unix_user"]},
        {"required": ["certificate"]}
    ]
))]
pub struct CallerFile {
    /// Unique name, referenced by `accessible_from`.
    #[schemars(required, extend("examples" = ["billing"]))]
    pub name: Field<shape::Name>,
    /// Secret that the caller sends: `HTTP_PROXY=http://NAME:SECRET@HOST:PORT`.
    #[schemars(extend("examples" = [{"file": "/run/secrets/billing"}]))]
    pub secret: Field<shape::ComparedSecret>,
    /// Networks that the caller connects from. With `secret`, both must match.
    #[schemars(extend("examples" = [["10.1.0.0/16"]]))]
    pub cidr: Field<shape::NonemptyList<shape::Network>>,
    /// Names of the proxy listeners that the caller connects to.
    #[schemars(extend("examples" = ["jobs"]))]
    pub listener: Field<shape::OneOrMany<shape::Name>>,
    /// Unix users, by name or number, that the caller runs as when it connects to a Unix socket.
    #[schemars(extend("examples" = ["jobs"]))]
    pub unix_user: Field<shape::OneOrMany<shape::Text>>,
    /// Client certificate that the caller presents at a listener with `client_ca`.
    #[schemars(extend("examples" = [{"san": ["billing.svc"]}]))]
    pub certificate: Field<CallerCertificateFile>,
    /// Subjects that the caller may act for, on connections with a token for each subject; `team-*` matches a prefix.
    /// Absent: only the caller's own name.
    #[schemars(extend("examples" = [["alice", "team-*"]]))]
    pub subjects: Field<shape::List<shape::Text>>,
}

impl Keys for CallerFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "caller_certificate", deny_unknown_fields)]
pub struct CallerCertificateFile {
    /// One or more names (DNS, URI, email or IP address), one of which must be in the certificate's subjectAltName.
    /// Names match by type: an IP address never matches a DNS name.
    #[schemars(required, extend("examples" = [["billing.svc"]]))]
    pub san: Field<shape::OneOrMany<shape::Text>>,
}

impl Keys for CallerCertificateFile {}

/// The callers, and the names of all, those with problems included.
pub fn callers(spot: Option<Spot<'_>>, listeners: Option<&Listeners>, sink: &mut Sink) -> (Vec<Caller>, HashSet<Name>) {
    let mut places: HashMap<Name, usize> = HashMap::new();
    let mut callers = Vec::new();
    for item in spot.and_then(|spot| spot.items(sink)).unwrap_or_default() {
        let Some(unit) = item.unit::<CallerFile>(sink) else { continue };
        let at = unit.require(unit.keys.name, "name", "give the caller a name", sink);
        let name = at.as_ref().and_then(|spot| spot.parse(sink, value::name));
        if let (Some(at), Some(name)) = (at, &name) {
            match places.get(name) {
                Some(line) => at.problem(
                    sink,
                    format!("another caller is named `{name}` (line {line})"),
                    "give each its own name",
                ),
                None => drop(places.insert(name.clone(), at.line)),
            }
        }
        callers.extend(caller(&unit, name, listeners, sink));
    }
    (callers, places.into_keys().collect())
}

/// The secret of the caller `name`, where it has one.
pub fn secret_to_send(callers: Option<Spot<'_>>, name: &Name, sink: &mut Sink) -> Option<Secret> {
    for item in callers.and_then(|spot| spot.items(sink)).unwrap_or_default() {
        let own = item.value_of("name").and_then(|spot| spot.parse(sink, value::name));
        let Some(spot) = item.value_of("secret").filter(|_| own.as_ref() == Some(name)) else { continue };
        let secret = secret::secret(&spot, sink)?;
        if secret::is_unknown(&secret) {
            let hint = "give the caller's secret as {file: PATH} or {env: NAME}";
            spot.problem(sink, "cannot be looked up while an instance uses the store", hint);
        }
        return Some(secret);
    }
    None
}

fn caller(
    unit: &Unit<'_, CallerFile>,
    name: Option<Name>,
    listeners: Option<&Listeners>,
    sink: &mut Sink,
) -> Option<Caller> {
    let keys = &unit.keys;
    let conditions = [
        unit.get(keys.secret),
        unit.get(keys.cidr),
        unit.get(keys.listener),
        unit.get(keys.unix_user),
        unit.get(keys.certificate),
    ];
    if conditions.iter().all(Option::is_none) {
        let hint = "give it a `secret`, `cidr`, `listener`, `unix_user` or `certificate`";
        unit.spot.problem(sink, "the caller has no condition", hint);
    }
    let secret = unit.get(keys.secret).map(|spot| secret::compared(&spot, sink));
    let cidr = unit.get(keys.cidr).map(|spot| {
        let networks = value::networks(&spot, sink);
        if spot.is_list() && !spot.has_items() {
            spot.problem(sink, "names no network", "write one such as 10.0.0.0/8, or remove the key");
        }
        networks
    });
    let listeners = alternatives(unit.get(keys.listener), sink, |spot, sink| listener(spot, listeners, sink));
    let unix_users = alternatives(unit.get(keys.unix_user), sink, |spot, sink| spot.parse(sink, unix_user));
    let certificate = unit.get(keys.certificate).and_then(|spot| spot.unit::<CallerCertificateFile>(sink));
    let certificate_names = certificate.map(|unit| {
        let hint = "write san: [NAME], as it stands in the certificate's subjectAltName";
        let san = unit.require(unit.keys.san, "san", hint, sink);
        alternatives(san, sink, |spot, sink| spot.parse(sink, |text| Ok(San::parse(text))))
    });
    let subjects = unit.get(keys.subjects).map(|spot| {
        let items = spot.items(sink).unwrap_or_default();
        items.iter().filter_map(|item| item.parse(sink, value::subjects)).collect()
    });
    Some(Caller {
        name: name?,
        secret: secret.flatten(),
        cidr: cidr.unwrap_or_default(),
        listeners,
        unix_users,
        certificate_names: certificate_names.unwrap_or_default(),
        subjects,
    })
}

/// The name of a listener of the proxy.
fn listener(spot: &Spot<'_>, listeners: Option<&Listeners>, sink: &mut Sink) -> Option<Name> {
    let name = spot.parse(sink, value::name)?;
    if let Some(listeners) = listeners
        && listeners.proxy.iter().all(|listener| listener.name != name)
    {
        let known: Vec<_> = listeners.proxy.iter().map(|listener| format!("`{}`", listener.name)).collect();
        let hint = format!("write one of {}", known.join(", "));
        spot.problem(sink, format!("no listener of the proxy is named `{name}`"), hint);
        return None;
    }
    Some(name)
}

/// One value, or a list of alternatives: at least one.
fn alternatives<T>(
    spot: Option<Spot<'_>>,
    sink: &mut Sink,
    read: impl Fn(&Spot<'_>, &mut Sink) -> Option<T>,
) -> Vec<T> {
    let Some(spot) = spot else { return Vec::new() };
    let items = if spot.is_list() { spot.items(sink).unwrap_or_default() } else { vec![spot.clone()] };
    if items.is_empty() {
        spot.problem(sink, "names none", "write one, or remove the key");
    }
    items.iter().filter_map(|item| read(item, sink)).collect()
}

/// A user's number, by the name or the number itself.
fn unix_user(text: &str) -> Result<u32, Fault> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(Fault::new("is no user of this machine", "write a user's name, or the number")),
        Err(error) => Err(Fault::new(format!("cannot be looked up: {error}"), "write the user's number")),
    }
}
