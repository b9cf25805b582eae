//! Values as written, in JSON: scalars typed as their reader understands them, references unfilled, secrets masked.
//!
//! The JSON Schema decides which scalars are secrets: those with `writeOnly`, and URLs with a query if they have
//! `x-secret`. Read again as YAML, the JSON means the same, except for what is masked.
//! Invariant: a scalar that no shape describes is masked.

use std::collections::HashMap;

use serde_json::Value;
use zeroize::Zeroizing;

use super::document::{Document, Kind, Node};
use super::node::NodeRef;

/// Replaces a secret that is written out.
const MASK: &str = r#"{"set":true}"#;

/// Renders the text of a scalar, which may be written plain, without quotes.
type ScalarText = fn(Scalar, &str, bool) -> String;

/// The shapes of all values below one definition of the schema.
pub struct Shapes(Vec<Shape>);

/// The shape of one value.
#[derive(Clone, Copy)]
pub struct ShapeRef<'s> {
    shapes: &'s Shapes,
    index: usize,
}

#[derive(Default)]
struct Shape {
    scalar: Scalar,
    /// The shape of each known key.
    keys: HashMap<String, usize>,
    /// The shape of the values of a map with free keys.
    values: Option<usize>,
    items: Option<usize>,
    /// The path of a file.
    is_path: bool,
}

/// From the weakest to the strongest: the strongest of several alternatives wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Scalar {
    #[default]
    Unknown,
    Text,
    Number,
    Boolean,
    /// Typed as in JSON if it is plain.
    Any,
    /// A URL whose query may be a secret.
    Endpoint,
    Secret,
}

impl Shapes {
    /// `definition`: the name in the schema's `$defs`.
    pub fn new(schema: &Value, definition: &str) -> Shapes {
        let mut shapes = Shapes(Vec::new());
        shapes.compile(&schema["$defs"][definition], schema);
        shapes
    }

    /// Adds the shape of a schema; returns its index.
    fn compile(&mut self, schema: &Value, root: &Value) -> usize {
        let index = self.0.len();
        self.0.push(Shape::default());
        let mut alternatives = Vec::new();
        flatten(schema, root, &mut alternatives);
        for alternative in alternatives {
            self.0[index].scalar = self.0[index].scalar.max(Scalar::of(alternative));
            self.0[index].is_path |= alternative["x-path"] == true;
            if alternative == &Value::Bool(true) {
                (self.0[index].values, self.0[index].items) = (Some(index), Some(index));
            }
            for (key, value) in alternative["properties"].as_object().into_iter().flatten() {
                let below = self.compile(value, root);
                self.0[index].keys.insert(key.clone(), below);
            }
            if alternative["additionalProperties"].is_object() || alternative["additionalProperties"] == true {
                self.0[index].values = Some(self.compile(&alternative["additionalProperties"], root));
            }
            if alternative["items"].is_object() {
                self.0[index].items = Some(self.compile(&alternative["items"], root));
            }
        }
        index
    }

    /// The shape of the definition itself.
    pub fn root(&self) -> ShapeRef<'_> {
        ShapeRef { shapes: self, index: 0 }
    }

    /// The JSON of a value with its secrets in it.
    pub fn unmasked(&self, node: &NodeRef<'_>) -> Zeroizing<String> {
        self.text(node, Scalar::unmasked)
    }

    /// The JSON of a map, and the line of each of its keys.
    pub fn definition(&self, node: &NodeRef<'_>) -> (String, Vec<(String, usize)>) {
        let json = std::mem::take(&mut *self.text(node, Scalar::masked));
        let (document, Kind::Map(range)) = (&node.source.document, node.kind()) else { return (json, Vec::new()) };
        let entries = range.clone().map(|entry| document.entry(entry));
        (json, entries.map(|entry| (entry.key.clone(), entry.line)).collect())
    }

    fn text(&self, node: &NodeRef<'_>, scalar: ScalarText) -> Zeroizing<String> {
        let (document, mut json) = (&node.source.document, Zeroizing::default());
        write((document, scalar), document.node(node.number), Some(self.root()), &mut json);
        json
    }
}

impl<'s> ShapeRef<'s> {
    fn shape(self) -> &'s Shape {
        &self.shapes.0[self.index]
    }

    /// The shape of the value of a key.
    pub fn key(self, key: &str) -> Option<ShapeRef<'s>> {
        let index = self.shape().keys.get(key).copied().or(self.shape().values)?;
        Some(ShapeRef { index, ..self })
    }

    /// The shape of the items of a list.
    pub fn item(self) -> Option<ShapeRef<'s>> {
        Some(ShapeRef { index: self.shape().items?, ..self })
    }

    /// True for a value that may be a secret in a single text.
    pub fn holds_secret(self) -> bool {
        matches!(self.shape().scalar, Scalar::Secret | Scalar::Endpoint)
    }

    /// True for the path of a file.
    pub fn is_path(self) -> bool {
        self.shape().is_path
    }

    /// True for a secret that may be written as `{file: PATH}`.
    pub fn may_refer_to_secret(self) -> bool {
        self.shape().scalar == Scalar::Secret && self.shape().keys.contains_key("file")
    }

    /// True for a script: `{file: PATH}`, or its text as `{source: TEXT}`.
    pub fn is_script(self) -> bool {
        self.shape().keys.contains_key("source") && self.key("file").is_some_and(ShapeRef::is_path)
    }
}

fn write((document, scalar): (&Document, ScalarText), node: &Node, shape: Option<ShapeRef<'_>>, json: &mut String) {
    match &node.kind {
        _ if node.is_null() => *json += "null",
        Kind::Scalar { text, plain, .. } => {
            *json += &scalar(shape.map_or(Scalar::Unknown, |shape| shape.shape().scalar), text, *plain);
        }
        Kind::List(items) => {
            json.push('[');
            for (index, item) in items.iter().enumerate() {
                *json += if index == 0 { "" } else { "," };
                write((document, scalar), document.node(*item), shape.and_then(ShapeRef::item), json);
            }
            json.push(']');
        }
        Kind::Map(range) => {
            json.push('{');
            for (index, entry) in range.clone().map(|entry| document.entry(entry)).enumerate() {
                *json += if index == 0 { "" } else { "," };
                *json += &Value::from(entry.key.as_str()).to_string();
                json.push(':');
                let below = shape.and_then(|shape| shape.key(&entry.key));
                write((document, scalar), document.node(entry.value), below, json);
            }
            json.push('}');
        }
    }
}

/// The JSON of a scalar; `plain`: written without quotes.
pub fn scalar(shape: Option<ShapeRef<'_>>, text: &str, plain: bool) -> String {
    shape.map_or(Scalar::Unknown, |shape| shape.shape().scalar).unmasked(text, plain)
}

/// Adds a schema and its alternatives, with `$ref` resolved.
fn flatten<'s>(schema: &'s Value, root: &'s Value, alternatives: &mut Vec<&'s Value>) {
    alternatives.push(schema);
    if let Some(name) = schema["$ref"].as_str().and_then(|target| target.strip_prefix("#/$defs/")) {
        flatten(&root["$defs"][name], root, alternatives);
    }
    for alternative in schema["anyOf"].as_array().into_iter().flatten() {
        flatten(alternative, root, alternatives);
    }
}

impl Scalar {
    fn of(schema: &Value) -> Scalar {
        if schema["writeOnly"] == true {
            return Scalar::Secret;
        }
        if schema["x-secret"] == "query" {
            return Scalar::Endpoint;
        }
        if schema == &Value::Bool(true) {
            return Scalar::Any;
        }
        // The first type is the one that the reader looks for.
        let kind = if schema["type"].is_array() { &schema["type"][0] } else { &schema["type"] };
        match kind.as_str() {
            Some("boolean") => Scalar::Boolean,
            Some("integer" | "number") => Scalar::Number,
            Some("string") => Scalar::Text,
            _ if schema["enum"].is_array() => Scalar::Text,
            _ => Scalar::Unknown,
        }
    }

    fn masked(self, text: &str, plain: bool) -> String {
        let is_secret = match self {
            Scalar::Secret | Scalar::Unknown => !is_reference(text),
            Scalar::Endpoint => has_secret_query(text),
            Scalar::Text | Scalar::Number | Scalar::Boolean | Scalar::Any => false,
        };
        if is_secret { MASK.to_owned() } else { self.unmasked(text, plain) }
    }

    fn unmasked(self, text: &str, plain: bool) -> String {
        let typed = || serde_json::from_str::<Value>(text).ok();
        let typed = match self {
            Scalar::Text | Scalar::Endpoint | Scalar::Secret => None,
            Scalar::Boolean => typed().filter(Value::is_boolean),
            Scalar::Number => typed().filter(Value::is_number),
            Scalar::Any | Scalar::Unknown => typed().filter(|value| plain && (value.is_boolean() || value.is_number())),
        };
        typed.map_or_else(|| quoted(text), |value| value.to_string())
    }
}

/// The JSON string of a text.
pub fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is valid JSON")
}

/// True if a parameter of the URL's query has a value that is written out.
fn has_secret_query(url: &str) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let values = query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
    values.into_iter().any(|value| !value.is_empty() && !is_reference(value))
}

/// True for references without text of their own: `${env:NAME}`, `${file:PATH}`.
fn is_reference(text: &str) -> bool {
    let mut rest = text;
    while let Some((_, tail)) = rest.strip_prefix("${").and_then(|rest| rest.split_once('}')) {
        rest = tail;
    }
    rest.is_empty() && !text.is_empty()
}
