//! The configuration as a JSON Schema (draft 2020-12), for editors; `schema.json` is the text.
//!
//! Not here: what `check` does; it never reads the schema, and finds more than a schema can say.
//! Holds: each serde twin has its entry in `$defs`, with exactly its keys; defaults are the model's.

/// The schema as JSON text.
pub const SCHEMA: &str = include_str!("schema.json");

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Map, Value, json};

    use super::SCHEMA;
    use crate::config::{file::TWINS, load_text};

    fn definitions() -> Map<String, Value> {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        schema["$defs"].as_object().unwrap().clone()
    }

    /// `ListenerFile` is `listener`.
    fn entry(twin: &str) -> String {
        let words = twin.trim_end_matches("File").chars();
        let text: String =
            words.map(|c| if c.is_uppercase() { format!("_{}", c.to_lowercase()) } else { c.into() }).collect();
        text.trim_start_matches('_').to_owned()
    }

    /// The definition itself, or that one of its shapes that is a map.
    fn map(definition: &Value) -> Option<&Value> {
        let shapes = definition["anyOf"].as_array().into_iter().flatten();
        shapes.chain([definition]).find(|shape| shape["properties"].is_object())
    }

    #[test]
    fn every_key_of_every_twin_is_in_the_schema_and_no_other() {
        let definitions = definitions();
        for (twin, keys) in TWINS {
            let map = map(&definitions[&entry(twin)]).unwrap_or_else(|| panic!("{twin} has no map in the schema"));
            let mut known: Vec<_> = map["properties"].as_object().unwrap().keys().map(String::as_str).collect();
            if *twin == "SecretFile" {
                known.push("sha256");
            }
            let mut keys = keys.to_vec();
            keys.sort_unstable();
            known.sort_unstable();
            assert_eq!(known, keys, "{twin} and its entry in src/config/schema.json differ");
            assert_eq!(map["additionalProperties"], false, "{twin}");
        }
        let twins: Vec<_> = TWINS.iter().map(|(twin, _)| entry(twin)).chain(["compared_secret".to_owned()]).collect();
        for (name, definition) in &definitions {
            assert!(map(definition).is_none() || twins.contains(name), "`{name}` is no twin's");
        }
    }

    #[test]
    fn every_key_has_a_description_and_a_value_to_copy() {
        for (name, definition) in &definitions() {
            let properties = map(definition).and_then(|map| map["properties"].as_object());
            for (key, schema) in properties.into_iter().flatten() {
                assert!(schema["description"].as_str().is_some_and(|text| text.ends_with('.')), "{name}.{key}");
                let shown = schema.get("default").or(schema.get("examples"));
                assert!(shown.is_some(), "{name}.{key} has neither a default nor examples");
            }
        }
    }

    /// All the defaults of one part.
    fn defaults(part: &str) -> Value {
        let definitions = definitions();
        let properties = definitions[part]["properties"].as_object().unwrap();
        properties.iter().filter_map(|(key, schema)| Some((key.clone(), schema.get("default")?.clone()))).collect()
    }

    /// `target` with the keys of `defaults` written out.
    fn written(mut target: Value, defaults: &Value) -> Value {
        target.as_object_mut().unwrap().extend(defaults.as_object().unwrap().clone());
        target
    }

    #[test]
    fn the_defaults_of_the_schema_are_what_absence_means() {
        let connection =
            json!({ "name": "a", "client_id": "b", "client_secret": "s", "token_url": "https://a.test/token" });
        let route = json!({ "host": "a.test" });
        let mut absent = connection.clone();
        absent["routes"] = json!([route]);
        let mut whole = written(connection, &defaults("connection"));
        // It goes with `basic` alone.
        assert_eq!(whole.as_object_mut().unwrap().remove("basic_encoding"), Some("form".into()));
        for part in ["authorization_server", "token_request", "token_response"] {
            whole[part] = defaults(part);
        }
        whole["routes"] = json!([written(route, &defaults("route"))]);
        let mut top = json!({ "connections": [whole] });
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
