//! The program as its users meet it: the built binary, real servers, real clients.
#![allow(clippy::disallowed_methods, reason = "tests have no phases to obey")]

mod rig {
    //! Peers on port 0: authorization servers, upstreams, clients, a browser, and the sidecar itself.
    pub mod browser;
    pub mod frames;
    pub mod front;
    pub mod inside;
    pub mod pages;
    pub mod peers;
    pub mod raw;
    pub mod redis;
    pub mod scripted;
    pub mod sidecar;
    pub mod wire;
}

mod admin;
mod answers;
mod audit;
mod authority;
mod callers;
mod clients;
mod cluster;
mod commands;
mod consent;
mod consent_again;
mod crash;
mod credentials;
mod deadlines;
mod departures;
mod descriptors;
mod destination;
mod drain;
mod egress;
mod egress_proxy;
mod environment;
mod examples;
mod fairness;
mod fleet;
mod fleet_trouble;
mod framing;
mod grants;
mod grpc;
mod http2;
mod http2_forward;
mod intercept;
mod layers;
mod lifecycle;
mod limits;
mod matrix;
mod listeners;
mod people;
mod places;
mod problems;
mod profiles;
mod prometheus;
mod read_only;
mod relay;
mod reload;
mod renewal;
mod requests;
mod revocation;
mod schema;
mod service;
mod signs;
mod smoke;
mod stage;
mod store;
mod supply;
mod token_client;
mod token_shapes;
mod traces;
mod tunnel;
mod verdicts;
mod upstream_tls;
mod websocket;
