//! Shapes of values: the types of the twins' fields, which only define their JSON Schema.
//!
//! No value of these types exists: a field holds the index of an entry. Not here: reading values (`value`, `reference`,
//! `secret`), which decides what is valid.
//! Invariants: a shape accepts everything that reading accepts, including `${env:NAME}` and `${file:PATH}` in any text;
//! text that may hold a secret is `writeOnly`, and `written` never shows it.

use std::borrow::Cow;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use super::node::{Field, Keys};

/// A value that is one of a fixed set of keywords.
pub trait Keyword: Clone + Sized {
    /// Each keyword with its value.
    fn keywords() -> Vec<(&'static str, Self)>;
}

/// Defines shapes whose schema is inlined where they are used.
macro_rules! shapes {
    ($($(#[$doc:meta])* $name:ident [$($of:ident: $bound:ident),*] |$generator:pat_param| $schema:tt;)*) => {$(
        $(#[$doc])*
        pub struct $name<$($of),*>(PhantomData<($($of,)*)>);

        impl<$($of: $bound),*> JsonSchema for $name<$($of),*> {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

shapes! {
    Any [] |_| true;
    Text [] |_| {"type": ["string", "number", "boolean"]};
    /// The path of a file.
    FilePath [] |_| {"type": ["string", "number", "boolean"], "x-path": true};
    /// Text that may hold a secret, and is never shown.
    Confidential [] |_| {"type": ["string", "number", "boolean"], "writeOnly": true};
    Boolean [] |generator| {
        "anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}, generator.subschema_for::<Filled>()]
    };
    Integer [] |_| {"type": ["integer", "string"], "pattern": r"^[0-9]+$|\$\{"};
    /// From 0 to 1.
    Fraction [] |_| {"type": ["number", "string"], "minimum": 0, "maximum": 1, "pattern": r"^[0-9.]+$|\$\{"};
    Port [] |_| {"type": ["integer", "string"], "minimum": 1, "maximum": 65535, "pattern": r"^[0-9]+$|\$\{"};
    Duration [] |_| {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h|d))+$|\$\{"};
    /// A duration above zero.
    Wait [] |_| {"type": "string", "pattern": r"^(?=.*[1-9])([0-9]+(ms|s|m|h|d))+$|\$\{"};
    /// RFC 3339.
    Timestamp [] |_| {"type": "string", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]|\$\{"};
    Size [] |_| {"type": "string", "pattern": r"^[0-9]+ *(B|KiB|MiB|GiB)$|\$\{"};
    Name [] |_| {"type": ["string", "integer"], "pattern": r"^[a-z0-9][a-z0-9_-]{0,62}$|\$\{"};
    UrlPath [] |_| {"type": "string", "pattern": r"^/|\$\{"};
    Url [] |_| {"type": "string", "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://|\$\{"};
    /// A URL that only programs use, so that its query may hold a secret.
    EndpointUrl [] |_| {
        "type": "string", "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://|\$\{", "x-secret": "query"
    };
    Address [] |_| {"type": "string", "pattern": r":[0-9]+$|^unix:|\$\{"};
    Network [] |_| {"type": "string", "pattern": r"^[0-9A-Fa-f:.]+/[0-9]+$|\$\{"};
    Method [] |_| {"type": "string", "pattern": r"^[^a-z ]+$|\$\{", "not": {"enum": ["TRACE", "CONNECT"]}};
    HeaderName [] |_| {"type": "string", "pattern": r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$|\$\{"};
    /// An HTTP token, or empty.
    Word [] |_| {"type": ["string", "integer"], "pattern": r"^[A-Za-z0-9!#$%&'*+.^_`|~-]*$|\$\{"};
    OneOf [W: Keyword] |generator| {
        "anyOf": [
            {"enum": W::keywords().into_iter().map(|(word, _)| word).collect::<Vec<_>>()},
            generator.subschema_for::<Filled>()
        ]
    };
    Either [A: JsonSchema, B: JsonSchema] |generator| {
        "anyOf": [generator.subschema_for::<A>(), generator.subschema_for::<B>()]
    };
    List [T: JsonSchema] |generator| {"type": "array", "items": generator.subschema_for::<T>()};
    NonemptyList [T: JsonSchema] |generator| {
        "type": "array", "minItems": 1, "items": generator.subschema_for::<T>()
    };
    OneOrMany [T: JsonSchema] |generator| {
        "anyOf": [generator.subschema_for::<T>(), generator.subschema_for::<NonemptyList<T>>()]
    };
    /// A map with free keys.
    Map [T: JsonSchema] |generator| {
        "type": "object", "additionalProperties": generator.subschema_for::<Option<T>>()
    };
}

/// A reference in place of a keyword.
pub enum Filled {}

impl JsonSchema for Filled {
    fn schema_name() -> Cow<'static, str> {
        "filled".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Text taken from elsewhere: `${env:NAME}` or `${file:PATH}`.",
            "type": "string",
            "pattern": r"\$\{"
        })
    }
}

/// A secret that is sent.
pub enum Secret {}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "secret".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A secret that is sent: from a file, an environment variable, the sealed store or the published \
                            secrets, or (with a warning) as text.",
            "anyOf": [
                {"type": ["string", "number", "boolean"], "minLength": 1, "writeOnly": true},
                generator.subschema_for::<SecretFile>()
            ]
        })
    }
}

/// A secret that is only compared.
pub enum ComparedSecret {}

impl JsonSchema for ComparedSecret {
    fn schema_name() -> Cow<'static, str> {
        "compared_secret".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let secret = generator.subschema_for::<Secret>();
        json_schema!({
            "description": "A secret that is only compared: as a secret that is sent, or its SHA-256 digest.",
            "anyOf": [
                secret,
                {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["sha256"],
                    "properties": {
                        "sha256": {
                            "description": "64 hexadecimal digits, as `sha256sum` prints them.",
                            "type": ["string", "integer"],
                            "pattern": r"^[0-9A-Fa-f]{64}$|\$\{",
                            "examples": ["2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"]
                        }
                    }
                }
            ]
        })
    }
}

/// A secret that is not written out.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline, extend("minProperties" = 1, "maxProperties" = 1))]
pub struct SecretFile {
    /// File that contains the secret; one trailing line break is dropped.
    #[schemars(extend("examples" = ["/run/secrets/crm"]))]
    pub file: Field<FilePath>,
    /// Environment variable that contains the secret; one trailing line break is dropped.
    #[schemars(extend("examples" = ["CRM_SECRET"]))]
    pub env: Field<Text>,
    /// Name of the secret in the sealed store, as `keybearer secret set NAME` stored it.
    #[schemars(extend("examples" = ["crm-secret"]))]
    pub store: Field<Text>,
    /// In a connection: name of a secret under `secrets`, which is sent to its `hosts` alone.
    #[serde(rename = "use")]
    #[schemars(extend("examples" = ["crm"]))]
    pub published: Field<Name>,
    // Only of a secret that is compared: `ComparedSecret` describes it.
    #[schemars(skip)]
    pub sha256: Field<Text>,
}

impl Keys for SecretFile {
    const SECRET: bool = true;
}
