//! The program as its users meet it: the built binary, real servers, real clients.
#![allow(clippy::disallowed_methods, reason = "tests have no phases to obey")]

mod rig {
    //! Peers on port 0: authorization servers, upstreams, clients, and the sidecar itself.
    pub mod peers;
    pub mod raw;
    pub mod scripted;
    pub mod sidecar;
}

mod admin;
mod commands;
mod examples;
mod layers;
mod smoke;
mod supply;
