//! The configuration as a file: what is refused and how, what the documentation shows, what a change does.

mod examples;
mod problems;
mod reload;
mod schema;
