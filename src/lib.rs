//! Keybearer: a proxy that injects fresh OAuth tokens, so that services hold no secret.
//!
//! `ARCHITECTURE.md` describes layout and rules; the modules below are in reading order, foundations last.
#![forbid(unsafe_code)]
// No input may cause a panic; tests may unwrap.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod cli;
pub mod demo;
pub mod app;
pub mod reload;
pub mod proxy;
pub mod admin;
pub mod snapshot;
pub mod token;
pub mod oauth;
pub mod config;
pub mod dial;
pub mod store;
pub mod router;
pub mod tls;
pub mod script;
pub mod jwt;
pub mod private_file;
pub mod gate;
pub mod clock;
pub mod tasks;
pub mod telemetry;
pub mod model;
pub mod sync;
