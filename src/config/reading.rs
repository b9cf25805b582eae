//! Reads configuration files: YAML text into nodes with positions, and nodes into typed values, collecting problems.
//!
//! Bottom up: `problem`, `document` (YAML with positions) and `source`, `node` (a value with its position, and sections: maps
//! with known keys), `shape` (the schema of values), `reference` (`${env:NAME}`, `${file:PATH}`), `value`,
//! `placeholder` and `endpoint` (text to values), `published`, `secret`, `pem`, `written` (values as JSON, masked or not). On top: `excerpt`, the source line of a problem. Not
//! here: the meaning of any key.
//!
//! Invariants: no message contains a secret; each value knows its position.

mod document;
pub mod endpoint;
mod excerpt;
mod node;
pub mod pem;
mod placeholder;
mod problem;
pub mod published;
pub mod reference;
pub mod secret;
pub mod shape;
mod source;
pub mod value;
pub mod written;

pub use document::{Kind, Limits, empty, join};
pub use excerpt::Excerpts;
pub use node::{Field, Keys, NodeRef, Section};
pub use problem::{Problem, Problems, Sink, suggest};
pub use shape::Keyword;
pub use source::{Source, SourceKind};
pub use value::Fault;
