//! `{set: true}` in a body: the secret of the present definition at the same path.
//!
//! Not here: whether the secret may be kept (`travel`).

use serde_json::{Map, Value, json};
use zeroize::Zeroize as _;

use crate::config::reading::join;
use crate::config::reading::written::ShapeRef;

/// The keys of a definition, with its secrets; they are wiped on drop.
pub struct Definition(pub Map<String, Value>);

impl Definition {
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.0).expect("JSON can be written as JSON")
    }
}

impl Drop for Definition {
    fn drop(&mut self) {
        self.0.values_mut().for_each(wipe);
    }
}

/// Wipes every text of a value.
pub fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A value of the present definition, and how it is shown.
#[derive(Clone, Copy)]
pub struct Shown<'v> {
    pub plain: &'v Value,
    pub masked: &'v Value,
}

impl<'v> Shown<'v> {
    pub fn key(self, key: &str) -> Option<Shown<'v>> {
        Some(Shown { plain: self.plain.get(key)?, masked: self.masked.get(key)? })
    }

    /// An item of a list; a single secret is a list of one.
    fn item(self, index: usize) -> Option<Shown<'v>> {
        match (self.plain, self.masked) {
            (Value::Array(plain), Value::Array(masked)) => {
                Some(Shown { plain: plain.get(index)?, masked: masked.get(index)? })
            }
            _ => Some(self).filter(|shown| index == 0 && shown.is_secret()),
        }
    }

    /// True if the mask is shown for a secret; a map such as `claims: {set: true}` merely looks like the mask.
    pub fn is_secret(self) -> bool {
        is_mask(self.masked) && !self.plain.is_object()
    }
}

fn is_mask(value: &Value) -> bool {
    *value == json!({ "set": true })
}

/// A secret that a body keeps.
#[derive(Debug)]
pub struct Kept {
    pub path: String,
    /// The top-level key, and the index in its list.
    pub key: String,
    pub item: Option<usize>,
}

/// The masks of a body.
#[derive(Debug, Default)]
pub struct Masks {
    pub kept: Vec<Kept>,
    /// The paths where there is no secret to keep.
    pub missing: Vec<String>,
}

/// The value that is being filled.
struct At<'a> {
    path: String,
    present: Option<Shown<'a>>,
    shape: Option<ShapeRef<'a>>,
    key: &'a str,
    item: Option<usize>,
}

/// Replaces each mask in `members` by the secret that is kept there. `present`: the value of a top-level key at present.
pub fn fill<'p>(
    members: &mut Map<String, Value>,
    present: impl Fn(&str) -> Option<Shown<'p>>,
    shape: ShapeRef<'_>,
) -> Masks {
    let mut masks = Masks::default();
    for (key, value) in members {
        let at = At { path: join("", key), present: present(key), shape: shape.key(key), key, item: None };
        fill_value(value, at, &mut masks);
    }
    masks
}

fn fill_value(value: &mut Value, at: At<'_>, masks: &mut Masks) {
    if is_mask(value) {
        if let Some(present) = at.present.filter(|present| present.is_secret()) {
            *value = present.plain.clone();
            masks.kept.push(Kept { path: at.path, key: at.key.to_owned(), item: at.item });
            return;
        }
        if at.shape.is_some_and(ShapeRef::holds_secret) {
            return masks.missing.push(at.path);
        }
    }
    match value {
        Value::Array(items) => {
            let is_top = at.path == join("", at.key);
            for (index, value) in items.iter_mut().enumerate() {
                let below = At {
                    path: format!("{}[{index}]", at.path),
                    present: at.present.and_then(|present| present.item(index)),
                    shape: at.shape.and_then(ShapeRef::item),
                    key: at.key,
                    item: if is_top { Some(index) } else { at.item },
                };
                fill_value(value, below, masks);
            }
        }
        Value::Object(members) => {
            for (key, value) in members {
                let below = At {
                    path: join(&at.path, key),
                    present: at.present.and_then(|present| present.key(key)),
                    shape: at.shape.and_then(|shape| shape.key(key)),
                    ..at
                };
                fill_value(value, below, masks);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
