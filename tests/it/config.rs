//! Configuration files: problems, examples of the documentation, the schema, reloads.

mod examples;
mod problems;
mod reload;
mod schema;
