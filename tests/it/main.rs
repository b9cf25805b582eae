//! Integration tests: the built binary with real servers and real clients.
#![allow(clippy::disallowed_methods, reason = "tests do not follow the process's phases")]

mod rig {
    //! Test harness, all on port 0: authorization servers, upstreams, clients, a browser, and the sidecar itself.
    pub mod arrival;
    pub mod browser;
    pub mod command;
    pub mod config;
    pub mod crm;
    pub mod fleet;
    pub mod frames;
    pub mod front;
    pub mod http2;
    pub mod tunnel_client;
    pub mod interception;
    pub mod manager;
    pub mod pages;
    pub mod peers;
    pub mod raw;
    pub mod redis;
    pub mod scripted;
    pub mod sidecar;
    pub mod stage;
    pub mod wall_clock;
    pub mod wire;
}

mod admin;
mod apply;
mod audit;
mod authority;
mod callers;
mod clients;
mod commands;
mod config;
mod definitions;
mod consent;
mod docs;
mod drain;
mod egress;
mod fleet;
mod http2;
mod layers;
mod limits;
mod listeners;
mod preflight;
mod prometheus;
mod requests;
mod service;
mod sign_in;
mod smoke;
mod store;
mod supply;
mod token;
mod traces;
mod tunnel;
mod upstream;
