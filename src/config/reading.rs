//! The reading wing: from the text of a file to places, texts and values, each with the problems that it has.
//!
//! From the ground up: `problem` and `document` (YAML with marks), `spot` (a place, and a map whose keys are known), `shape`
//! (what the schema shows of a value), `reference` (`${env:NAME}`, `${file:PATH}`), `value`, `placeholder` and `endpoint`
//! (texts that are values), `secret`, `pem`. Beside them: `excerpt`, the line that a problem points at. Not here: what any
//! key of the configuration means.
//! Holds: no message holds a secret; a text knows where it is written.

mod document;
pub mod endpoint;
mod excerpt;
pub mod pem;
mod placeholder;
mod problem;
pub mod reference;
pub mod secret;
pub mod shape;
mod spot;
pub mod value;

pub use document::{BYTES_MAX, Kind, empty};
pub use excerpt::Excerpts;
pub use problem::{Problem, Problems, Sink, suggest};
pub use shape::Words;
pub use spot::{Field, Keys, Source, Spot, Unit};
pub use value::Fault;
