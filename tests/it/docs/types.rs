//! Words for the types of values in the schema, and values as YAML in one line.

use std::collections::HashMap;

use serde_json::Value;

/// Strings of a certain form, by the start of the pattern that `config::reading::shape` gives them.
const FORMS: [(&str, &str); 14] = [
    (r"^([0-9]+(ms|s|m|h|d))+$", "duration"),
    (r"^(?=.*[1-9])([0-9]+(ms|s|m|h|d))+$", "duration"),
    (r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]", "timestamp"),
    (r"^[0-9]+ *(B|KiB|MiB|GiB)$", "size"),
    (r"^[a-z0-9][a-z0-9_-]{0,62}$", "name"),
    (r"^/", "path"),
    (r"^[Hh][Tt][Tt][Pp][Ss]?://", "URL"),
    (r":[0-9]+$|^unix:", "address"),
    (r"^[0-9A-Fa-f:.]+/[0-9]+$", "network"),
    (r"^[^a-z ]+$", "method"),
    (r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", "header name"),
    (r"^[A-Za-z0-9!#$%&'*+.^_`|~-]*$", "word"),
    (r"^[0-9A-Fa-f]{64}$", "string"),
    (r"^[0-9.]+$", "number"),
];

/// Every string may contain references such as `${env:NAME}`, so every pattern ends in this alternative.
const FILLED: &str = r"|\$\{";

/// Names the types of values, with links to the sections of those that are maps.
pub struct Types {
    /// The anchor of each definition.
    pub anchors: HashMap<String, String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Number {
    Singular,
    Plural,
}

impl Types {
    pub fn name(&self, schema: &Value) -> String {
        self.phrase(schema, Number::Singular)
    }

    /// Whether the name of the type shows what to write, so that an example would add nothing.
    pub fn is_self_evident(&self, schema: &Value) -> bool {
        let name = self.name(schema);
        name.starts_with('`') || name.contains("boolean") || name.contains("[object")
    }

    fn phrase(&self, schema: &Value, number: Number) -> String {
        let Some(alternatives) = schema["anyOf"].as_array() else {
            return self.one(schema, number).unwrap_or_default();
        };
        let plain: Vec<_> = alternatives.iter().filter(|one| !one["items"].is_object()).collect();
        let mut names = Vec::new();
        for one in alternatives {
            // This alternative is a list of the plain ones, as in a key that takes one item or several.
            let repeats =
                one["items"]["anyOf"].as_array().is_some_and(|items| items.iter().all(|item| plain.contains(&item)));
            match one["enum"].as_array() {
                _ if repeats => names.push("list of these".to_owned()),
                Some(words) if *words == ["true", "false"] => {}
                Some(words) => names.extend(words.iter().map(|word| format!("`{}`", word.as_str().expect("a word")))),
                None => names.extend(self.one(one, number)),
            }
        }
        joined(&names, "or")
    }

    /// `None` for null and for a string with references, which are allowed everywhere.
    fn one(&self, schema: &Value, number: Number) -> Option<String> {
        let counted = |noun: &str| match number {
            Number::Singular => noun.to_owned(),
            Number::Plural => format!("{noun}{}", if noun.ends_with('s') { "es" } else { "s" }),
        };
        if let Some(target) = schema["$ref"].as_str() {
            let name = target.trim_start_matches("#/$defs/");
            let noun = match name {
                "filled" => return None,
                "secret" | "compared_secret" => name.replace('_', " "),
                _ => "object".to_owned(),
            };
            let anchor = self.anchors.get(name).unwrap_or_else(|| panic!("no section for {name}"));
            return Some(format!("[{}](#{anchor})", counted(&noun)));
        }
        if schema["items"].is_object() {
            return Some(format!("{} of {}", counted("list"), self.phrase(&schema["items"], Number::Plural)));
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds[0].as_str(),
            kind => kind.as_str(),
        };
        let noun = match (kind, schema["pattern"].as_str()) {
            (Some("null"), _) => return None,
            (Some("integer"), _) => "integer",
            (Some("object"), _) => {
                let of = &schema["additionalProperties"];
                let of =
                    if of.is_object() { format!(" of {}", self.phrase(of, Number::Plural)) } else { String::new() };
                return Some(counted("map") + &of);
            }
            (_, Some(pattern)) => {
                let form = pattern.strip_suffix(FILLED).unwrap_or(pattern);
                FORMS.iter().find(|(of, _)| *of == form).unwrap_or_else(|| panic!("name the form {form} in FORMS")).1
            }
            (Some(kind), None) => kind,
            (None, None) => panic!("a type without a name: {schema}"),
        };
        let range = match (schema["minimum"].as_u64(), schema["maximum"].as_u64()) {
            (Some(least), Some(most)) => format!(", {least} to {most}"),
            _ => String::new(),
        };
        Some(counted(noun) + &range)
    }
}

/// `a, b and c`.
pub fn joined(items: &[String], word: &str) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} {word} {last}", first.join(", ")),
    }
}

/// The value as YAML in one line.
pub fn flow(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect();
            format!("{{{}}}", members.join(", "))
        }
        other => other.to_string(),
    }
}

/// Whether YAML reads the text as it is, within brackets too.
fn is_plain(text: &str) -> bool {
    let starts_plainly = text.starts_with(|c: char| c.is_ascii_alphanumeric() || "/$.".contains(c));
    let is_other_type =
        matches!(serde_yaml::from_str(text), Ok(serde_yaml::Value::Bool(_) | serde_yaml::Value::Number(_)));
    starts_plainly && !is_other_type && !text.contains([',', '[', ']', '{', '}', '#']) && !text.contains(": ")
}
