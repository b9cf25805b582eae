//! Whether a kept secret is sent to the same servers in the same way as before.
//!
//! Invariants: what is not known to be harmless prevents keeping the secret; only paths leave this file, no values.
//! Not here: the effect of each key (`effect`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::effect::{Effect, HARMLESS_IN_PROFILES};
use super::kept::Kept;
use crate::config::reading::join;
use crate::config::reading::written::ShapeRef;
use crate::model::connection::GrantKind;

const ROUTES: &str = "routes";
const PROFILES: &str = "profiles";

/// A definition before and after a change.
pub struct Change<'c> {
    pub before: &'c Map<String, Value>,
    pub after: &'c Map<String, Value>,
    /// Defaults of absent keys.
    pub defaults: &'c Map<String, Value>,
    pub shape: ShapeRef<'c>,
}

/// What a comparison leaves out.
#[derive(Clone, Copy, Default)]
struct Except<'s> {
    /// New values of secrets; with the shape of the values that are compared.
    secrets: Option<ShapeRef<'s>>,
    /// Keys of the outermost map.
    keys: &'static [&'static str],
}

impl Change<'_> {
    /// The paths whose change forbids keeping each of the secrets.
    pub fn conflicts<'k>(&self, kept: &'k [Kept]) -> Vec<(&'k Kept, Vec<String>)> {
        // Secrets may be many: each comparison is made once.
        let (mut elsewhere, mut beside) = (BTreeMap::new(), BTreeMap::new());
        let conflicts = kept.iter().map(|kept| {
            let (key, item) = (kept.key.as_str(), own_item(kept));
            let elsewhere: &Vec<String> = elsewhere.entry(key).or_insert_with(|| self.elsewhere(key));
            let beside: &Option<String> = beside.entry((key, item)).or_insert_with(|| self.beside(key, item));
            (kept, beside.iter().chain(elsewhere).cloned().collect())
        });
        conflicts.collect()
    }

    /// The changed paths outside the top-level key `secret` that may redirect its secrets.
    fn elsewhere(&self, secret: &str) -> Vec<String> {
        let (defaults_before, defaults_after) = (self.defaults(self.before), self.defaults(self.after));
        let keys: BTreeSet<&String> =
            [self.before, self.after, self.defaults].into_iter().flat_map(Map::keys).collect();
        // The validator rejects unknown keys, with a better hint.
        let known = keys.into_iter().filter(|key| *key != secret && self.shape.key(key).is_some());
        let changed = known.filter_map(|key| {
            let (before, after) = (value(self.before, &defaults_before, key), value(self.after, &defaults_after, key));
            let path = join("", key);
            match Effect::of(key, secret) {
                Effect::None => None,
                Effect::AllRequests | Effect::TokenRequests => difference(before, after, path, Except::default()),
                Effect::TokenRequestsUnlessSecret => {
                    difference(before, after, path, Except { secrets: self.shape.key(key), ..Except::default() })
                }
                Effect::Profiles => difference_of_profiles(before, after, path),
            }
        });
        changed.collect()
    }

    /// The path of a change below the top-level key of the secret; with `item`, in that item of its list.
    fn beside(&self, key: &str, item: Option<usize>) -> Option<String> {
        let (before, after, path) = (self.before.get(key)?, self.after.get(key)?, join("", key));
        let Value::Array(items) = after else {
            return difference(Some(before), Some(after), path, Except::default());
        };
        // A single secret is a list of one.
        let before = before.as_array().map_or(std::slice::from_ref(before), Vec::as_slice);
        let compare = |index: usize| {
            let keys: &[&str] = if key == PROFILES { &HARMLESS_IN_PROFILES } else { &[] };
            let (before, after) = (before.get(index), items.get(index));
            difference(before, after, format!("{path}[{index}]"), Except { keys, secrets: None })
        };
        match item {
            Some(index) => compare(index),
            // A secret is added at the end; elsewhere it would be unclear which ones are kept.
            None if items.len() < before.len() => Some(path),
            None => (0..before.len()).find_map(compare),
        }
    }

    /// The defaults for a definition: those of some keys depend on others.
    fn defaults(&self, definition: &Map<String, Value>) -> Map<String, Value> {
        let mut defaults = self.defaults.clone();
        let is_written = |key: &str| definition.get(key).is_some_and(|value| !value.is_null());
        if is_written("authorization_url") {
            defaults.insert("grant".to_owned(), GrantKind::AuthorizationCode.as_str().into());
        }
        if !is_written("client_secret") {
            defaults.insert("send_credentials".to_owned(), "none".into());
        }
        defaults
    }
}

/// The route or the profile of a secret, on whose neighbours it does not depend.
fn own_item(kept: &Kept) -> Option<usize> {
    kept.item.filter(|_| [ROUTES, PROFILES].contains(&kept.key.as_str()))
}

/// The value of a key, or its default.
fn value<'v>(definition: &'v Map<String, Value>, defaults: &'v Map<String, Value>, key: &str) -> Option<&'v Value> {
    definition.get(key).filter(|value| !value.is_null()).or_else(|| defaults.get(key))
}

/// The path of the first difference between two values; null is an absent value.
fn difference(before: Option<&Value>, after: Option<&Value>, path: String, except: Except<'_>) -> Option<String> {
    let is_written = |value: &&Value| !value.is_null();
    match (before.filter(is_written), after.filter(is_written)) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            keys.into_iter().filter(|key| !except.keys.contains(&key.as_str())).find_map(|key| {
                let secrets = except.secrets.and_then(|shape| shape.key(key));
                difference(before.get(key), after.get(key), join(&path, key), Except { secrets, keys: &[] })
            })
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) if before.len() == after.len() => {
            let except = Except { secrets: except.secrets.and_then(ShapeRef::item), keys: &[] };
            let mut pairs = before.iter().zip(after).enumerate();
            pairs.find_map(|(index, (before, after))| {
                difference(Some(before), Some(after), format!("{path}[{index}]"), except)
            })
        }
        (before, after) if before == after => None,
        (Some(Value::String(_)), Some(Value::String(_))) if except.secrets.is_some_and(ShapeRef::holds_secret) => None,
        _ => Some(path),
    }
}

/// Compares the profiles with keys other than their name and [`HARMLESS_IN_PROFILES`].
fn difference_of_profiles(before: Option<&Value>, after: Option<&Value>, path: String) -> Option<String> {
    let (before, after) = match (before, after) {
        (Some(Value::Array(_)) | None, Some(Value::Array(_)) | None) => (redirecting(before), redirecting(after)),
        _ => return difference(before, after, path, Except::default()),
    };
    if before.len() != after.len() {
        return Some(path);
    }
    let except = Except { keys: &HARMLESS_IN_PROFILES, ..Except::default() };
    before.iter().zip(&after).find_map(|((_, before), (index, after))| {
        difference(Some(before), Some(after), format!("{path}[{index}]"), except)
    })
}

/// The profiles with keys other than their name and harmless ones, each with its index.
fn redirecting(profiles: Option<&Value>) -> Vec<(usize, &Value)> {
    let redirects = |profile: &Value| match profile {
        Value::Object(members) => members
            .iter()
            .any(|(key, value)| key != "name" && !HARMLESS_IN_PROFILES.contains(&key.as_str()) && !value.is_null()),
        // Not a profile: the validator rejects it.
        _ => true,
    };
    let all = profiles.and_then(Value::as_array).into_iter().flatten().enumerate();
    all.filter(|(_, profile)| redirects(profile)).collect()
}
