//! Keybearer: a proxy that injects fresh OAuth tokens, so that services hold no secret.
//!
//! `ARCHITECTURE.md` tells the house rules; the modules below stand in reading order, ground last.
#![forbid(unsafe_code)]

pub mod clock;
pub mod dial;
pub mod model;
pub mod router;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod tls;
