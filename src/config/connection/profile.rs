//! Reads the profiles of a connection, and the scopes of both.
//!
//! Not here: grants (`grant`), whose keys belong to the connection; routes (`route`).

use std::collections::HashSet;
use std::sync::Arc;

use super::consent;
use super::file::ProfileFile;
use super::params::{TOKEN_REQUEST_OWN, params};
use crate::config::reading::{Fault, NodeRef, Section, Sink, reference, suggest, value};
use crate::model::Name;
use crate::model::connection::*;

/// A profile of which only the name has been read.
pub struct ProfileDraft<'a> {
    section: Section<'a, ProfileFile>,
    /// `None`: absent or invalid.
    name: Option<Name>,
}

/// The keys of a profile that override the connection's.
pub struct ProfileOverrides {
    name: Option<Name>,
    scopes: Option<Vec<String>>,
    audience: Option<Option<String>>,
    resource: Option<Option<String>>,
    authorize_params: Option<Vec<(String, String)>>,
    token_params: Option<Vec<(String, String)>>,
}

pub fn drafts<'a>(list: Option<NodeRef<'a>>, sink: &mut Sink) -> Vec<ProfileDraft<'a>> {
    let items = list.and_then(|list| list.items(sink)).unwrap_or_default();
    let mut drafts: Vec<(ProfileDraft<'a>, NodeRef<'a>)> = Vec::new();
    for section in items.iter().filter_map(|item| item.section::<ProfileFile>(sink)).collect::<Vec<_>>() {
        let at = section.require(section.keys.name, "name", "give the profile a name", sink);
        let name = at.as_ref().and_then(|at| at.parse(sink, name));
        let node = at.unwrap_or_else(|| section.at("name"));
        let same = drafts.iter().find(|(other, _)| name.is_some() && other.name == name);
        if let (Some(name), Some((_, other))) = (&name, same) {
            let message = format!("another profile is named `{name}` ({})", other.location());
            node.problem(sink, message, "give each profile its own name");
        }
        drafts.push((ProfileDraft { section, name }, node));
    }
    drafts.into_iter().map(|(draft, _)| draft).collect()
}

fn name(text: &str) -> Result<Name, Fault> {
    match text {
        "default" => Err(Fault::new("is reserved for the connection itself", "give the profile another name")),
        _ => value::name(text),
    }
}

/// The names of the profiles; `None` if one is absent or invalid.
pub fn names(profiles: &[ProfileDraft<'_>]) -> Option<Vec<Name>> {
    profiles.iter().map(|profile| profile.name.clone()).collect()
}

impl<'a> ProfileDraft<'a> {
    pub fn grant(&self) -> Option<NodeRef<'a>> {
        self.section.get(self.section.keys.grant)
    }

    /// Reads the keys. `available`: the names that scopes may have, with the scopes they stand for.
    pub fn read(&self, available: Option<&[(String, Vec<String>)]>, sink: &mut Sink) -> ProfileOverrides {
        let (section, keys) = (&self.section, &self.section.keys);
        ProfileOverrides {
            name: self.name.clone(),
            scopes: section.get(keys.scopes).map(|node| scopes(&node, available, sink)),
            audience: section.get(keys.audience).map(|node| node.line_without_placeholders(sink)),
            resource: section.get(keys.resource).map(|node| node.line_without_placeholders(sink)),
            authorize_params: section.get(keys.authorize_params).map(|node| consent::authorize_params(&node, sink)),
            token_params: section.get(keys.token_params).map(|node| params(&node, &TOKEN_REQUEST_OWN, sink)),
        }
    }
}

/// Adds the profiles, each with its grant. Keys that a profile does not override are the connection's.
pub fn with_profiles(
    own: Connection,
    profiles: impl Iterator<Item = (ProfileOverrides, Option<Grant>)>,
) -> Option<Connection> {
    let profile = |(overrides, grant): (ProfileOverrides, Option<Grant>)| {
        let (ProfileOverrides { name, scopes, audience, resource, authorize_params, token_params }, grant) =
            (overrides, grant?);
        let Authorization { params, .. } = &own.authorization;
        let params = authorize_params.unwrap_or_else(|| params.clone());
        Some(Arc::new(Connection {
            profile: name?,
            // `grant_type` renames the connection's own grant only.
            grant_type: own.grant_type.clone().filter(|_| grant.kind() == own.grant.kind()),
            grant,
            scopes: scopes.unwrap_or_else(|| own.scopes.clone()),
            audience: audience.unwrap_or_else(|| own.audience.clone()),
            resource: resource.unwrap_or_else(|| own.resource.clone()),
            token_params: token_params.unwrap_or_else(|| own.token_params.clone()),
            authorization: Authorization { params, ..own.authorization.clone() },
            ..own.clone()
        }))
    };
    let profiles = profiles.map(profile).collect::<Option<Vec<_>>>()?;
    Some(Connection { profiles, ..own })
}

/// Reads the names that scopes may have, each with the scopes that it stands for.
pub fn available_scopes(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<(String, Vec<String>)> {
    let mut available = Vec::new();
    for (name, key_node, value) in node.pairs(sink) {
        let expansion = value.as_ref().map(|value| scopes(value, None, sink)).unwrap_or_default();
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            key_node.problem(sink, "the name is empty or contains a control character", "write the name of a scope");
        } else if expansion.is_empty() {
            key_node.problem(sink, "stands for no scope", "write the scope to request, such as `Read: api.read`");
        }
        available.push((name.to_owned(), expansion));
    }
    available
}

/// Reads scopes: text is split at commas and white space; items of a list are kept whole. With `available`, each must
/// be one of its names, and is expanded.
pub fn scopes(node: &NodeRef<'_>, available: Option<&[(String, Vec<String>)]>, sink: &mut Sink) -> Vec<String> {
    let mut written: Vec<(String, NodeRef<'_>)> = Vec::new();
    // A scope with a placeholder is a problem, and is kept, so that no second problem reports a missing scope.
    if node.is_list() {
        for item in node.items(sink).unwrap_or_default() {
            let Some(text) = item.line(sink) else { continue };
            item.check_placeholders(&text, sink);
            written.push((text, item));
        }
    } else if let Some(text) = reference::text(node, sink) {
        node.check_placeholders(&text.value, sink);
        let parts = text.value.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
        let parts = parts.filter_map(|part| node.without_controls(part.to_owned(), sink));
        written.extend(parts.map(|part| (part, node.clone())));
    }
    let mut scopes: Vec<String> = match available {
        None => written.into_iter().map(|(scope, _)| scope).collect(),
        Some(available) => written.iter().flat_map(|(name, at)| expand(name, at, available, sink)).collect(),
    };
    let mut seen = HashSet::new();
    scopes.retain(|scope| seen.insert(scope.clone()));
    scopes
}

fn expand(name: &str, at: &NodeRef<'_>, available: &[(String, Vec<String>)], sink: &mut Sink) -> Vec<String> {
    if let Some((_, scopes)) = available.iter().find(|(known, _)| known == name) {
        return scopes.clone();
    }
    let known = available.iter().map(|(known, _)| known.as_str());
    let hint = match available.iter().find(|(_, scopes)| scopes.iter().any(|scope| scope == name)) {
        Some((known, _)) => format!("use its name: {known}"),
        None => suggest(name, known, "add it under `available_scopes`, or remove it"),
    };
    at.problem(sink, format!("`{name}` is not in `available_scopes`"), hint);
    Vec::new()
}
