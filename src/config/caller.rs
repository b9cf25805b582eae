//! `callers`: the programs that may use the proxy, and how each is identified.
//!
//! Invariants: each caller has a condition; a condition names only listeners and Unix users that exist.

use std::collections::HashMap;

use nix::unistd::User;
use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Fault, Field, Keys, NodeRef, Section, Sink, secret, shape, value};
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
    /// Application that the caller belongs to: it may use connections with `accessible_from: application` and the same
    /// `application`.
    #[schemars(extend("examples" = ["billing"]))]
    pub application: Field<shape::Text>,
    /// Subjects that the caller may act for, on connections with `tokens: per_subject`; `team-*` matches a prefix.
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

/// The name of each caller and its application, including callers with other problems.
pub type Callers = HashMap<Name, Option<String>>;

/// Reads the callers.
pub fn callers(node: Option<NodeRef<'_>>, listeners: Option<&Listeners>, sink: &mut Sink) -> (Vec<Caller>, Callers) {
    let mut known = Callers::new();
    let mut lines: HashMap<Name, usize> = HashMap::new();
    let mut callers = Vec::new();
    for item in node.and_then(|node| node.items(sink)).unwrap_or_default() {
        let Some(section) = item.section::<CallerFile>(sink) else { continue };
        let at = section.require(section.keys.name, "name", "give the caller a name", sink);
        let name = at.as_ref().and_then(|node| node.parse(sink, value::name));
        let application = section.get(section.keys.application).and_then(|node| node.line(sink));
        known.extend(name.clone().map(|name| (name, application)));
        if let (Some(at), Some(name)) = (at, &name) {
            match lines.get(name) {
                Some(line) => at.problem(
                    sink,
                    format!("another caller is named `{name}` (line {line})"),
                    "give each caller its own name",
                ),
                None => drop(lines.insert(name.clone(), at.line)),
            }
        }
        callers.extend(caller(&section, name, listeners, sink));
    }
    (callers, known)
}

/// The secret of the caller `name`, if it has one.
pub fn secret_to_send(callers: Option<NodeRef<'_>>, name: &Name, sink: &mut Sink) -> Option<Secret> {
    for item in callers.and_then(|node| node.items(sink)).unwrap_or_default() {
        let own = item.value_of("name").and_then(|node| node.parse(sink, value::name));
        let Some(node) = item.value_of("secret").filter(|_| own.as_ref() == Some(name)) else { continue };
        let secret = secret::secret(&node, sink)?;
        if secret::is_unresolved(&secret) {
            let hint = "give the caller's secret as {file: PATH} or {env: NAME}";
            node.problem(sink, "cannot be read from the store while a running instance uses it", hint);
        }
        return Some(secret);
    }
    None
}

fn caller(
    section: &Section<'_, CallerFile>,
    name: Option<Name>,
    listeners: Option<&Listeners>,
    sink: &mut Sink,
) -> Option<Caller> {
    let keys = &section.keys;
    let conditions = [
        section.get(keys.secret),
        section.get(keys.cidr),
        section.get(keys.listener),
        section.get(keys.unix_user),
        section.get(keys.certificate),
    ];
    if conditions.iter().all(Option::is_none) {
        let hint = "add a `secret`, `cidr`, `listener`, `unix_user` or `certificate`";
        section.node.problem(sink, "the caller has no condition", hint);
    }
    let secret = section.get(keys.secret).map(|node| secret::compared(&node, sink));
    let cidr = section.get(keys.cidr).map(|node| {
        let networks = value::networks(&node, sink);
        if node.is_list() && !node.has_items() {
            node.problem(sink, "is an empty list", "add a network such as 10.0.0.0/8, or remove the key");
        }
        networks
    });
    let listeners = alternatives(section.get(keys.listener), sink, |node, sink| listener(node, listeners, sink));
    let unix_users = alternatives(section.get(keys.unix_user), sink, |node, sink| node.parse(sink, unix_user));
    let certificate = section.get(keys.certificate).and_then(|node| node.section::<CallerCertificateFile>(sink));
    let certificate_names = certificate.map(|section| {
        let hint = "write `san: [NAME]` with a name from the certificate's subjectAltName";
        let san = section.require(section.keys.san, "san", hint, sink);
        alternatives(san, sink, |node, sink| node.parse(sink, |text| Ok(San::parse(text))))
    });
    let subjects = section.get(keys.subjects).map(|node| {
        let items = node.items(sink).unwrap_or_default();
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

/// Reads the name of a proxy listener, which must exist.
fn listener(node: &NodeRef<'_>, listeners: Option<&Listeners>, sink: &mut Sink) -> Option<Name> {
    let name = node.parse(sink, value::name)?;
    if let Some(listeners) = listeners
        && listeners.proxy.iter().all(|listener| listener.name != name)
    {
        let known: Vec<_> = listeners.proxy.iter().map(|listener| format!("`{}`", listener.name)).collect();
        let hint = format!("use one of {}", known.join(", "));
        node.problem(sink, format!("no proxy listener is named `{name}`"), hint);
        return None;
    }
    Some(name)
}

/// Reads one value, or a list of at least one alternative.
fn alternatives<T>(
    node: Option<NodeRef<'_>>,
    sink: &mut Sink,
    read: impl Fn(&NodeRef<'_>, &mut Sink) -> Option<T>,
) -> Vec<T> {
    let Some(node) = node else { return Vec::new() };
    let items = if node.is_list() { node.items(sink).unwrap_or_default() } else { vec![node.clone()] };
    if items.is_empty() {
        node.problem(sink, "is an empty list", "add a value, or remove the key");
    }
    items.iter().filter_map(|item| read(item, sink)).collect()
}

/// The numeric ID of a user, from its name or the ID itself.
fn unix_user(text: &str) -> Result<u32, Fault> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(Fault::new("is not a user on this machine", "write a user name or a numeric user ID")),
        Err(error) => Err(Fault::new(format!("cannot be looked up: {error}"), "write the numeric user ID")),
    }
}
