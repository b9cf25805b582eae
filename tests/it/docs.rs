//! The papers beside the code: the reference of the configuration's keys, the paths that they name.

mod keys;
mod types;
