//! Schemas of the OpenAPI description, under its `components`.
//!
//! Requests and responses have a generator each: an optional member may be absent from a request, and is null in a
//! response. The definition of a connection has the schema of the configuration, plus what the API adds.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema as _, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::operation::SchemaOf;
use crate::admin::view::{ConnectionState, SetAsideState};
use crate::config;
use crate::model::Name;

const PATH: &str = "/components/schemas";
/// The component of a definition, as the configuration names it.
const DEFINITION: &str = "connection";
const RESOLVED: &str = "ResolvedConnection";
const PATCH: &str = "ConnectionPatch";
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
            // The path names the connection of a request, too.
            definition.as_object_mut().and_then(|definition| definition.remove("required"));
            let name = &mut definition["properties"]["name"];
            (name["type"], name["pattern"]) = ("string".into(), Name::PATTERN.into());
            let patch = patch(definition);
            schemas.extend([(RESOLVED.to_owned(), resolved), (PATCH.to_owned(), patch)]);
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

/// The schema of a connection as a whole, with each key as `{value, source}`, and of one whose definition is set aside.
pub fn connection(generator: &mut SchemaGenerator) -> Schema {
    let shown = connection_in_force(generator);
    json_schema!({ "anyOf": [shown, reference(RESOLVED), generator.subschema_for::<SetAsideState>()] })
}

/// The schema of a connection whose definition is in force.
pub fn connection_in_force(generator: &mut SchemaGenerator) -> Schema {
    let state = ConnectionState::json_schema(generator);
    let mut required = state.get("required").cloned().unwrap_or_else(|| json!([]));
    required.as_array_mut().into_iter().for_each(|names| names.push("name".into()));
    json_schema!({ "allOf": [reference(DEFINITION), { "required": required }] })
}

/// The schema of the definition of the connection that the path names.
pub fn definition(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "$ref": format!("#{PATH}/{DEFINITION}") })
}

pub fn definition_or_null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [reference(DEFINITION), { "type": "null" }] })
}

/// The schema of a merge patch (RFC 7396) of a definition.
pub fn definition_patch(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "$ref": format!("#{PATH}/{PATCH}") })
}

pub fn named_definitions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "allOf": [reference(DEFINITION), { "required": ["name"] }] } })
}

/// The schema of a definition as a file has it; null for one that cannot be read.
pub fn exported_definition(_: &mut SchemaGenerator) -> Schema {
    let aside = json!({ "description": "One that is set aside: as written.", "type": ["object", "null"] });
    json_schema!({ "anyOf": [reference(DEFINITION), aside] })
}

pub fn exported_definitions(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": exported_definition(generator) })
}

/// The schema of an image.
pub fn png(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "contentMediaType": "image/png" })
}

/// Adds the members that the API adds to a definition.
fn add_state(definition: &mut Value, state: &Value) {
    for (name, schema) in state["properties"].as_object().into_iter().flatten() {
        let mut schema = schema.clone();
        schema["readOnly"] = true.into();
        definition["properties"][name] = schema;
    }
}

/// The schema of a merge patch: a value of a key replaces the present one, or is merged into it; null removes it.
fn patch(definition: &Value) -> Value {
    let mut properties = Map::new();
    for (name, schema) in definition["properties"].as_object().into_iter().flatten() {
        let description = schema.get("description").map(|text| ("description".to_owned(), text.clone()));
        properties.insert(name.clone(), Map::from_iter(description).into());
    }
    properties["active"]["type"] = json!(["boolean", "null"]);
    json!({
        "description": "A merge patch (RFC 7396): a value replaces that of the definition, an object is merged into it, \
                        null removes it.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
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
