//! The profiles of a connection, and the scopes that it and they ask for: from marks to the checked model.
//!
//! Not here: their grants (`grant`), whose keys belong to the connection; which routes carry their tokens (`route`).

use std::collections::HashSet;
use std::sync::Arc;

use super::consent;
use super::file::ProfileFile;
use super::params::{TOKEN_REQUEST_OWN, params};
use crate::config::reading::{Fault, Sink, Spot, Unit, reference, suggest, value};
use crate::model::Name;
use crate::model::connection::*;

/// A profile of which the name alone has been read.
pub struct Written<'a> {
    unit: Unit<'a, ProfileFile>,
    /// `None`: it has none that is good.
    name: Option<Name>,
}

/// What a profile states in the connection's place.
pub struct Stated {
    name: Option<Name>,
    scopes: Option<Vec<String>>,
    audience: Option<Option<String>>,
    resource: Option<Option<String>>,
    authorize_params: Option<Vec<(String, String)>>,
    token_params: Option<Vec<(String, String)>>,
}

pub fn units<'a>(list: Option<Spot<'a>>, sink: &mut Sink) -> Vec<Written<'a>> {
    let items = list.and_then(|list| list.items(sink)).unwrap_or_default();
    let mut written: Vec<(Written<'a>, Spot<'a>)> = Vec::new();
    for unit in items.iter().filter_map(|item| item.unit::<ProfileFile>(sink)).collect::<Vec<_>>() {
        let at = unit.require(unit.keys.name, "name", "give the profile a name", sink);
        let name = at.as_ref().and_then(|at| at.parse(sink, name));
        let spot = at.unwrap_or_else(|| unit.at("name"));
        let same = written.iter().find(|(other, _)| name.is_some() && other.name == name);
        if let (Some(name), Some((_, other))) = (&name, same) {
            let message = format!("another profile is named `{name}` ({})", other.place());
            spot.problem(sink, message, "give each its own name");
        }
        written.push((Written { unit, name }, spot));
    }
    written.into_iter().map(|(written, _)| written).collect()
}

fn name(text: &str) -> Result<Name, Fault> {
    match text {
        "default" => Err(Fault::new("is the connection itself", "give the profile another name")),
        _ => value::name(text),
    }
}

/// `None` where one is not known.
pub fn names(profiles: &[Written<'_>]) -> Option<Vec<Name>> {
    profiles.iter().map(|profile| profile.name.clone()).collect()
}

impl<'a> Written<'a> {
    pub fn grant(&self) -> Option<Spot<'a>> {
        self.unit.get(self.unit.keys.grant)
    }

    /// `available`: the names that scopes may have.
    pub fn read(&self, available: Option<&[(String, Vec<String>)]>, sink: &mut Sink) -> Stated {
        let (unit, keys) = (&self.unit, &self.unit.keys);
        Stated {
            name: self.name.clone(),
            scopes: unit.get(keys.scopes).map(|spot| scopes(&spot, available, sink)),
            audience: unit.get(keys.audience).map(|spot| spot.filled_line(sink)),
            resource: unit.get(keys.resource).map(|spot| spot.filled_line(sink)),
            authorize_params: unit.get(keys.authorize_params).map(|spot| consent::authorize_params(&spot, sink)),
            token_params: unit.get(keys.token_params).map(|spot| params(&spot, &TOKEN_REQUEST_OWN, sink)),
        }
    }
}

/// The connection with its profiles, each with its grant: what a profile does not state is the connection's.
pub fn with_profiles(own: Connection, profiles: impl Iterator<Item = (Stated, Option<Grant>)>) -> Option<Connection> {
    let profile = |(stated, grant): (Stated, Option<Grant>)| {
        let (Stated { name, scopes, audience, resource, authorize_params, token_params }, grant) = (stated, grant?);
        let Authorization { params, .. } = &own.authorization;
        let params = authorize_params.unwrap_or_else(|| params.clone());
        Some(Arc::new(Connection {
            profile: name?,
            // The wire's name is that of the connection's own grant.
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

/// Each name with the scopes that it expands to.
pub fn available_scopes(spot: &Spot<'_>, sink: &mut Sink) -> Vec<(String, Vec<String>)> {
    let mut available = Vec::new();
    for (name, place, value) in spot.pairs(sink) {
        let asked = value.as_ref().map(|value| scopes(value, None, sink)).unwrap_or_default();
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            place.problem(sink, "the name is empty or holds a control character", "write the name of a scope");
        } else if asked.is_empty() {
            place.problem(sink, "stands for no scope", "write the scope that is asked for, such as `Read: api.read`");
        }
        available.push((name.to_owned(), asked));
    }
    available
}

/// Text is split at commas and white space; items of a list are taken whole. Where names are `available`, each is one.
pub fn scopes(spot: &Spot<'_>, available: Option<&[(String, Vec<String>)]>, sink: &mut Sink) -> Vec<String> {
    let mut written: Vec<(String, Spot<'_>)> = Vec::new();
    // A placeholder is a problem, and still counts as a scope, so that no second problem reports a missing one.
    if spot.is_list() {
        for item in spot.items(sink).unwrap_or_default() {
            let Some(text) = item.line(sink) else { continue };
            item.is_filled_in(&text, sink);
            written.push((text, item));
        }
    } else if let Some(text) = reference::text(spot, sink) {
        spot.is_filled_in(&text.value, sink);
        let parts = text.value.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
        let parts = parts.filter_map(|part| spot.without_controls(part.to_owned(), sink));
        written.extend(parts.map(|part| (part, spot.clone())));
    }
    let mut scopes: Vec<String> = match available {
        None => written.into_iter().map(|(scope, _)| scope).collect(),
        Some(available) => written.iter().flat_map(|(name, at)| named(name, at, available, sink)).collect(),
    };
    let mut seen = HashSet::new();
    scopes.retain(|scope| seen.insert(scope.clone()));
    scopes
}

fn named(name: &str, at: &Spot<'_>, available: &[(String, Vec<String>)], sink: &mut Sink) -> Vec<String> {
    if let Some((_, scopes)) = available.iter().find(|(known, _)| known == name) {
        return scopes.clone();
    }
    let known = available.iter().map(|(known, _)| known.as_str());
    let hint = match available.iter().find(|(_, scopes)| scopes.iter().any(|scope| scope == name)) {
        Some((known, _)) => format!("write its name there: {known}"),
        None => suggest(name, known, "add it under `available_scopes`, or remove it"),
    };
    at.problem(sink, format!("`{name}` is not among `available_scopes`"), hint);
    Vec::new()
}
