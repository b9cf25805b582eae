//! `secrets` and `mutual_tls_profiles`: what the operator publishes by name, for `{use: NAME}` and `mutual_tls: NAME`.
//!
//! Not here: where a connection may send a published secret (`reading::published`).

use schemars::JsonSchema;
use serde::Deserialize;

use super::connection::MutualTlsFile;
use super::reading::published::{Published, PublishedSecret};
use super::reading::{Fault, Field, Keys, NodeRef, Sink, pem, secret, shape, value};
use crate::model::Name;
use crate::model::origin::{Host, HostError};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "published_secret", deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["file"]}, {"required": ["env"]}, {"required": ["store"]}]))]
pub struct PublishedSecretFile {
    /// File that contains the secret; one trailing line break is dropped.
    #[schemars(extend("examples" = ["/run/secrets/crm"]))]
    pub file: Field<shape::Text>,
    /// Environment variable that contains the secret; one trailing line break is dropped.
    #[schemars(extend("examples" = ["CRM_SECRET"]))]
    pub env: Field<shape::Text>,
    /// Name of the secret in the sealed store.
    #[schemars(extend("examples" = ["crm-secret"]))]
    pub store: Field<shape::Text>,
    /// The only hosts that the secret may be sent to, at any port and over TLS: names or addresses.
    #[schemars(required, extend("examples" = [["login.acme.test"]]))]
    pub hosts: Field<shape::NonemptyList<shape::Text>>,
}

impl Keys for PublishedSecretFile {
    const SECRET: bool = true;
}

/// Reads both keys. An invalid entry stays in the result without its value.
pub fn published(secrets: Option<NodeRef<'_>>, profiles: Option<NodeRef<'_>>, sink: &mut Sink) -> Published {
    let mut published = Published::default();
    for (name, value) in entries(secrets, sink) {
        let secret = value.and_then(|node| published_secret(&node, sink));
        published.secrets.insert(name, secret);
    }
    for (name, value) in entries(profiles, sink) {
        let certificate = value.and_then(|node| {
            let section = node.section::<MutualTlsFile>(sink)?;
            pem::certificate(&section, (section.keys.certificate, section.keys.key), sink)
        });
        published.mutual_tls.insert(name, certificate);
    }
    published
}

/// The entries with a valid name; one without a value is a problem.
fn entries<'a>(map: Option<NodeRef<'a>>, sink: &mut Sink) -> Vec<(Name, Option<NodeRef<'a>>)> {
    let mut entries = Vec::new();
    for (key, key_node, value) in map.map(|map| map.pairs(sink)).unwrap_or_default() {
        if value.is_none() {
            key_node.problem(sink, "the entry is empty", "write a value or remove the entry");
        }
        match value::name(key) {
            Ok(name) => entries.push((name, value)),
            Err(fault) => key_node.problem(sink, format!("the name {}", fault.message), fault.hint),
        }
    }
    entries
}

fn published_secret(node: &NodeRef<'_>, sink: &mut Sink) -> Option<PublishedSecret> {
    let section = node.section::<PublishedSecretFile>(sink)?;
    let keys = &section.keys;
    let sources = secret::Sources {
        file: section.get(keys.file),
        env: section.get(keys.env),
        store: section.get(keys.store),
        ..secret::Sources::default()
    };
    let secret = sources.read(node, sink);
    let hint = "write `hosts: [HOST]` with the authorization server's host";
    let at = section.require(keys.hosts, "hosts", hint, sink)?;
    let items = at.items(sink)?;
    if items.is_empty() {
        at.problem(sink, "is an empty list", hint);
    }
    let hosts: Option<Vec<_>> = items.iter().map(|item| item.parse(sink, host)).collect();
    Some(PublishedSecret { secret: secret?, hosts: hosts.filter(|hosts| !hosts.is_empty())? })
}

fn host(text: &str) -> Result<Host, Fault> {
    let invalid = |error: HostError| {
        Fault::new(format!("is invalid: {error}"), "write a host name or an address, without scheme, port and path")
    };
    Host::parse(text).map_err(invalid)
}
