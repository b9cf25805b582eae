//! `timeouts` and `limits` of the proxy.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Field, Keys, NodeRef, Sink, shape, value};
use crate::model::{Limits, Timeouts};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "timeouts", deny_unknown_fields)]
pub struct TimeoutsFile {
    /// Deadline for a request head, from its first byte to its last.
    #[schemars(extend("default" = "30s"))]
    pub client_head: Field<shape::Wait>,
    /// How long a request waits for a token.
    #[schemars(extend("default" = "10s"))]
    pub token_wait: Field<shape::Wait>,
    /// Timeout for name resolution, TCP connect and TLS handshake together.
    #[schemars(extend("default" = "5s"))]
    pub connect: Field<shape::Wait>,
    /// Timeout from the end of the request to the response head.
    #[schemars(extend("default" = "60s"))]
    pub response_head: Field<shape::Wait>,
    /// Idle timeout of a body or a tunnel.
    #[schemars(extend("default" = "5m"))]
    pub idle: Field<shape::Wait>,
    /// Idle timeout of a keep-alive connection between requests, downstream and upstream.
    #[schemars(extend("default" = "50s"))]
    pub keep_alive: Field<shape::Wait>,
    /// Grace period for requests in flight after SIGTERM.
    #[schemars(extend("default" = "25s"))]
    pub drain: Field<shape::Wait>,
}

impl Keys for TimeoutsFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "limits", deny_unknown_fields)]
pub struct LimitsFile {
    /// Open downstream connections; fewer if the open-file limit is low.
    #[schemars(range(min = 1, max = COUNT_MAX), extend("default" = 10000))]
    pub downstream_connections: Field<shape::Integer>,
    /// Requests in flight to one upstream.
    #[schemars(range(min = 1, max = COUNT_MAX), extend("default" = 1024))]
    pub per_upstream: Field<shape::Integer>,
    /// Requests queued for one upstream while `per_upstream` are in flight.
    #[schemars(range(min = 1, max = COUNT_MAX), extend("default" = 256))]
    pub queued_per_upstream: Field<shape::Integer>,
    /// Size of a message head, including the first line; 8KiB to 1MiB.
    #[schemars(extend("default" = "64KiB"))]
    pub head: Field<shape::Size>,
    /// Largest request body that is kept for a replay after a rejected token; at most 64MiB.
    #[schemars(extend("default" = "64KiB"))]
    pub replay_body: Field<shape::Size>,
    /// Open CONNECT tunnels and WebSockets.
    #[schemars(range(min = 1, max = COUNT_MAX), extend("default" = 4096))]
    pub tunnels: Field<shape::Integer>,
}

impl Keys for LimitsFile {}

/// Upper limit of counts: more connections or requests than any machine serves.
const COUNT_MAX: usize = 10_000_000;

pub fn timeouts(node: Option<NodeRef<'_>>, sink: &mut Sink) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let Some(section) = node.and_then(|node| node.section::<TimeoutsFile>(sink)) else { return timeouts };
    let keys = &section.keys;
    let all: [(Field<shape::Wait>, &mut Duration); 7] = [
        (keys.client_head, &mut timeouts.client_head),
        (keys.token_wait, &mut timeouts.token_wait),
        (keys.connect, &mut timeouts.connect),
        (keys.response_head, &mut timeouts.response_head),
        (keys.idle, &mut timeouts.idle),
        (keys.keep_alive, &mut timeouts.keep_alive),
        (keys.drain, &mut timeouts.drain),
    ];
    for (field, timeout) in all {
        if let Some(written) = section.get(field).and_then(|node| node.parse(sink, value::positive_duration)) {
            *timeout = written;
        }
    }
    timeouts
}

pub fn limits(node: Option<NodeRef<'_>>, sink: &mut Sink) -> Limits {
    let mut limits = Limits::default();
    let Some(section) = node.and_then(|node| node.section::<LimitsFile>(sink)) else { return limits };
    let keys = &section.keys;
    let counts: [(Field<shape::Integer>, &mut usize); 4] = [
        (keys.downstream_connections, &mut limits.downstream_connections),
        (keys.per_upstream, &mut limits.per_upstream),
        (keys.queued_per_upstream, &mut limits.queued_per_upstream),
        (keys.tunnels, &mut limits.tunnels),
    ];
    for (field, limit) in counts {
        let parse = |text: &str| value::integer(text, 1..=COUNT_MAX);
        if let Some(written) = section.get(field).and_then(|node| node.parse(sink, parse)) {
            *limit = written;
        }
    }
    let sizes = [
        (keys.head, &mut limits.head_bytes, 8 << 10..=1 << 20),
        (keys.replay_body, &mut limits.replay_body_bytes, 1..=64 << 20),
    ];
    for (field, limit, range) in sizes {
        if let Some(written) = section.get(field).and_then(|node| node.parse(sink, |text| value::size(text, range))) {
            *limit = written;
        }
    }
    limits
}
