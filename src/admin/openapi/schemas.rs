//! Schemas of the OpenAPI description, under its `components`.
//!
//! Requests and responses have a generator each: an optional member may be absent from a request, and is null in a
//! response. The definition of a connection has the schema of the configuration, plus what the API adds.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema as _, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::operation::SchemaOf;
use crate::admin::view::ConnectionState;
use crate::config;

const PATH: &str = "/components/schemas";
/// The component of a definition, as the configuration names it.
const DEFINITION: &str = "connection";
const RESOLVED: &str = "ResolvedConnection";
const MASKED: &str = "Masked";

pub struct Schemas {
    requests: SchemaGenerator,
    responses: SchemaGenerator,
}

impl Schemas {
    pub fn new() -> Schemas {
        let settings = || SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = PATH.into());
        Schemas { requests: settings().into_generator(), responses: settings().for_serialize().into_generator() }
    }

    pub fn of_request(&mut self, schema: SchemaOf) -> Schema {
        tidied(schema(&mut self.requests))
    }

    pub fn of_response(&mut self, schema: SchemaOf) -> Schema {
        tidied(schema(&mut self.responses))
    }

    /// Every schema that another one refers to.
    pub fn finish(mut self) -> Map<String, Value> {
        let state = ConnectionState::json_schema(&mut self.responses);
        let mut schemas = config::definition_schemas(PATH);
        for schema in schemas.values_mut().filter_map(|schema| <&mut Schema>::try_from(schema).ok()) {
            Mask.transform(schema);
        }
        schemas.insert(MASKED.to_owned(), masked().to_value());
        if let Some(definition) = schemas.get_mut(DEFINITION) {
            let resolved = resolved(definition, state.as_value());
            add_state(definition, state.as_value());
            schemas.insert(RESOLVED.to_owned(), resolved);
        }
        for (name, schema) in [self.requests, self.responses].iter_mut().flat_map(|own| own.take_definitions(true)) {
            schemas.insert(name, Schema::try_from(schema).map(|schema| tidied(schema).to_value()).unwrap_or_default());
        }
        schemas
    }
}

/// Puts each description on one line.
fn tidied(mut schema: Schema) -> Schema {
    config::tidy_schema(&mut schema);
    schema
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#{PATH}/{name}") })
}

/// The schema of a connection as a whole, and with each key as `{value, source}`.
pub fn connection(generator: &mut SchemaGenerator) -> Schema {
    let state = ConnectionState::json_schema(generator);
    json_schema!({
        "anyOf": [
            { "allOf": [reference(DEFINITION), { "required": state.get("required") }] },
            reference(RESOLVED),
        ]
    })
}

/// Adds the members that the API adds to a definition.
fn add_state(definition: &mut Value, state: &Value) {
    for (name, schema) in state["properties"].as_object().into_iter().flatten() {
        let mut schema = schema.clone();
        schema["readOnly"] = true.into();
        definition["properties"][name] = schema;
    }
}

/// The schema of a definition with each key as `{value, source}`, and of the state.
fn resolved(definition: &Value, state: &Value) -> Value {
    let mut properties = Map::new();
    for (name, schema) in definition["properties"].as_object().into_iter().flatten() {
        let pair = json!({ "value": schema, "source": { "type": "string" } });
        let pair = json!({ "type": "object", "properties": pair, "required": ["value", "source"] });
        properties.insert(name.clone(), pair);
    }
    properties.extend(state["properties"].as_object().cloned().unwrap_or_default());
    json!({
        "description": "A connection with each key as value and source: `FILE:LINE`, `api`, or `default` for an absent key.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "required": state["required"],
    })
}

fn masked() -> Schema {
    json_schema!({
        "description": "Text that is set and never shown, because it may be a secret.",
        "type": "object",
        "additionalProperties": false,
        "properties": { "set": { "const": true } },
        "required": ["set"],
    })
}

/// Permits [`masked`] wherever text may be a secret.
struct Mask;

impl Transform for Mask {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        if schema.get("writeOnly").is_none() && schema.get("x-secret").is_none() {
            return;
        }
        let mut outer = Map::new();
        for annotation in ["description", "default", "examples"] {
            outer.extend(schema.remove(annotation).map(|value| (annotation.to_owned(), value)));
        }
        outer.insert("anyOf".to_owned(), json!([schema.as_value(), reference(MASKED)]));
        *schema = outer.into();
    }
}
