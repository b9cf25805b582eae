//! The documentation agrees with the code: the key tables are current, the paths it names exist.

mod keys;
mod paths;
mod types;
