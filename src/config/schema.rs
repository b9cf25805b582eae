//! The JSON Schema (draft 2020-12) of the configuration, for editors and for documentation.
//!
//! It is generated from the serde twins, the only place where keys, descriptions, defaults, examples and bounds are
//! written. Not here: validation (`check`), which never reads the schema and finds more than a schema can express.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use serde_json::{Map, Value};

use super::connection::ConnectionFile;
use super::top::TopFile;

/// The schema: one definition in `$defs` for each twin, with a description for each key.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12();
    let meta_schema = settings.meta_schema.clone();
    let mut generator = settings.into_generator();
    let mut schema = generator.subschema_for::<TopFile>();
    schema.insert("$schema".to_owned(), meta_schema.into());
    schema.insert("title".to_owned(), "Keybearer's configuration".into());
    schema.insert("$defs".to_owned(), generator.take_definitions(true).into());
    tidy_schema(&mut schema);
    schema.to_value()
}

/// The schemas of a connection's definition, by name; they refer to each other below `path`, a JSON pointer.
pub fn definition_schemas(path: &'static str) -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = path.into());
    let mut generator = settings.into_generator();
    generator.subschema_for::<ConnectionFile>();
    let mut schemas = generator.take_definitions(true);
    schemas.values_mut().filter_map(|schema| schema.try_into().ok()).for_each(tidy_schema);
    schemas
}

/// The keys of a connection that have a default, with it.
pub fn connection_defaults() -> Map<String, Value> {
    static DEFAULTS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
        let schema = schema();
        let keys = schema["$defs"]["connection"]["properties"].as_object().into_iter().flatten();
        keys.filter_map(|(key, schema)| Some((key.clone(), schema.get("default")?.clone()))).collect()
    });
    DEFAULTS.clone()
}

/// Every key of the configuration, at any depth.
pub fn keys() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut pending = vec![schema()];
    while let Some(value) = pending.pop() {
        match value {
            Value::Object(members) => {
                let properties = members.get("properties").and_then(Value::as_object);
                keys.extend(properties.into_iter().flat_map(|properties| properties.keys().cloned()));
                pending.extend(members.into_iter().map(|(_, value)| value));
            }
            Value::Array(items) => pending.extend(items),
            _ => {}
        }
    }
    keys
}

/// Puts each description on one line, and flattens nested `anyOf`s.
pub fn tidy_schema(schema: &mut Schema) {
    RecursiveTransform(tidy).transform(schema);
}

fn tidy(schema: &mut Schema) {
    if let Some(Value::String(description)) = schema.get_mut("description") {
        *description = description.replace('\n', " ");
    }
    if let Some(Value::Array(nested)) = schema.get_mut("anyOf") {
        *nested = nested.drain(..).flat_map(alternatives).collect();
    }
}

/// The alternatives of a bare `anyOf`, or the schema itself.
fn alternatives(schema: Value) -> Vec<Value> {
    match schema.as_object().filter(|members| members.len() == 1).and_then(|members| members.get("anyOf")) {
        Some(Value::Array(nested)) => nested.iter().cloned().flat_map(alternatives).collect(),
        _ => vec![schema],
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Map, Value, json};

    use super::{keys, schema};
    use crate::config::load_text;

    fn definitions() -> Map<String, Value> {
        schema()["$defs"].as_object().unwrap().clone()
    }

    /// The definition itself, or the one of its alternatives that is a map.
    fn map(definition: &Value) -> Option<&Value> {
        let alternatives = definition["anyOf"].as_array().into_iter().flatten();
        alternatives.chain([definition]).find(|schema| schema["properties"].is_object())
    }

    #[test]
    fn every_map_with_fixed_keys_rejects_others() {
        let mut maps = 0;
        for (name, definition) in &definitions() {
            let Some(map) = map(definition) else { continue };
            assert_eq!(map["additionalProperties"], false, "{name}");
            maps += 1;
        }
        assert!(maps >= 40, "{maps}");
    }

    #[test]
    fn keys_at_every_depth_are_known() {
        let keys = keys();
        for key in ["connections", "send_credentials", "from", "env", "sha256"] {
            assert!(keys.contains(key), "{key}");
        }
    }

    #[test]
    fn every_key_has_a_description_and_a_default_or_examples() {
        for (name, definition) in &definitions() {
            let properties = map(definition).and_then(|map| map["properties"].as_object());
            for (key, schema) in properties.into_iter().flatten() {
                assert!(schema["description"].as_str().is_some_and(|text| text.ends_with('.')), "{name}.{key}");
                let sample = schema.get("default").or(schema.get("examples"));
                assert!(sample.is_some(), "{name}.{key} has neither a default nor examples");
            }
        }
    }

    /// All the defaults of one definition.
    fn defaults(part: &str) -> Value {
        let definitions = definitions();
        let properties = definitions[part]["properties"].as_object().unwrap();
        properties.iter().filter_map(|(key, schema)| Some((key.clone(), schema.get("default")?.clone()))).collect()
    }

    /// `target` with the keys of `defaults` added.
    fn with_defaults(mut target: Value, defaults: &Value) -> Value {
        target.as_object_mut().unwrap().extend(defaults.as_object().unwrap().clone());
        target
    }

    #[test]
    fn an_absent_key_means_the_default_in_the_schema() {
        let connection =
            json!({ "name": "a", "client_id": "b", "client_secret": "s", "token_url": "https://a.test/token" });
        let route = json!({ "host": "a.test" });
        let mut absent = connection.clone();
        absent["routes"] = json!([route]);
        let mut explicit = with_defaults(connection, &defaults("connection"));
        // The key applies only to `send_credentials: basic`.
        assert_eq!(explicit.as_object_mut().unwrap().remove("basic_encoding"), Some("form".into()));
        for part in ["authorization_server", "token_request", "token_response"] {
            explicit[part] = defaults(part);
        }
        explicit["routes"] = json!([with_defaults(route, &defaults("route"))]);
        let mut top = json!({ "connections": [explicit] });
        for part in ["listeners", "readiness", "egress", "store", "timeouts", "limits", "log", "audit"] {
            top[part] = defaults(part);
        }
        // JSON is YAML.
        let model = |value: &Value| {
            let loaded = load_text(&value.to_string(), Path::new("a.yaml"));
            format!("{:#?}", loaded.unwrap_or_else(|problems| panic!("{problems}\n{value}")).model)
        };
        assert_eq!(model(&json!({ "connections": [absent] })), model(&top));
    }
}
