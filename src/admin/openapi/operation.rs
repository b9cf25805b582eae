//! Types of the table of operations.

use axum::routing::MethodRouter;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use crate::admin::problem::ProblemBody;
use crate::admin::{Admin, auth};
use crate::model::Role;

pub const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";

/// Generates the schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// Operations under one tag.
pub struct Topic {
    pub tag: &'static str,
    pub description: &'static str,
    pub operations: &'static [Operation],
}

/// One method of one path.
pub struct Operation {
    /// The operation ID: a verb and its object.
    pub id: &'static str,
    pub method: &'static str,
    /// Relative to [`super::BASE`].
    pub path: &'static str,
    /// The lowest role that may use it.
    pub role: Role,
    pub summary: &'static str,
    /// In addition to the parameters in the path.
    pub inputs: &'static [Input],
    /// Responses in addition to those that its role, its path and its inputs imply.
    pub responses: &'static [Response],
    pub handler: fn() -> MethodRouter<Admin>,
}

impl Operation {
    pub fn is_sign_in(&self) -> bool {
        (self.method, self.path) == ("post", auth::SESSION_PATH)
    }
}

pub enum Input {
    /// Parameters in the query: the members of this object.
    Query(SchemaOf),
    Header(RequestHeader),
    /// A JSON body, required if one of its members is.
    Body {
        object: SchemaOf,
        reference: SchemaOf,
    },
    /// A required body in one of these media types.
    Content(&'static [Content]),
}

impl Input {
    pub const fn query<T: JsonSchema>() -> Input {
        Input::Query(T::json_schema)
    }

    pub const fn body<T: JsonSchema>() -> Input {
        Input::Body { object: T::json_schema, reference: SchemaGenerator::subschema_for::<T> }
    }
}

/// A header of a request.
pub struct RequestHeader {
    pub name: &'static str,
    pub description: &'static str,
    /// A regular expression for all values.
    pub pattern: &'static str,
    pub example: &'static str,
    pub is_required: bool,
}

/// A representation of a request's body.
pub struct Content {
    pub media_type: &'static str,
    pub schema: SchemaOf,
    pub example: fn() -> Value,
}

/// A header of a response.
pub struct Header {
    pub name: &'static str,
    /// The type in its schema.
    pub kind: &'static str,
    pub description: &'static str,
}

pub struct Response {
    pub status: u16,
    pub description: &'static str,
    /// Media types and schemas.
    pub content: [Option<(&'static str, SchemaOf)>; 2],
    pub headers: &'static [Header],
}

impl Response {
    pub const fn json<T: JsonSchema>(status: u16, description: &'static str) -> Response {
        Response::json_of(status, description, SchemaGenerator::subschema_for::<T>)
    }

    pub const fn problem(status: u16, description: &'static str) -> Response {
        Response::of(status, description, (PROBLEM, SchemaGenerator::subschema_for::<ProblemBody>))
    }

    /// For a schema that is not that of one type.
    pub const fn json_of(status: u16, description: &'static str, schema: SchemaOf) -> Response {
        Response::of(status, description, (JSON, schema))
    }

    /// For a media type other than JSON.
    pub const fn of(status: u16, description: &'static str, content: (&'static str, SchemaOf)) -> Response {
        Response { content: [Some(content), None], ..Response::empty(status, description) }
    }

    /// For a response that may also have another media type.
    pub const fn or(self, media_type: &'static str, schema: SchemaOf) -> Response {
        Response { content: [self.content[0], Some((media_type, schema))], ..self }
    }

    pub const fn empty(status: u16, description: &'static str) -> Response {
        Response { status, description, content: [None, None], headers: &[] }
    }

    pub const fn with_headers(self, headers: &'static [Header]) -> Response {
        Response { headers, ..self }
    }
}
