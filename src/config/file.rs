//! The serde twins of the configuration: which keys each map has, and which of the contract are not built yet.
//!
//! Not here: what the values may be (`resolve`, `connection`, `route`). A twin holds marks, not values, so that every
//! value keeps its place and may have any of its shapes without `untagged`.

use serde::Deserialize;

use super::spot::{Field, Keys};

/// A twin: its keys, then those that are refused by name.
macro_rules! twins {
    ($($(#[$doc:meta])* $name:ident { $($key:ident),* } not [$($refused:literal),*];)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $(pub $key: Field,)*
        }

        impl Keys for $name {
            const NOT_BUILT: &'static [&'static str] = &[$($refused),*];
        }
    )*

    /// Every twin with its keys.
    pub const TWINS: &[(&str, &[&str])] =
        &[$((stringify!($name), &[$(stringify!($key)),*]),)* ("SecretFile", &["file", "env", "store", "sha256"])];
    };
}

twins! {
    TopFile {
        listeners, workers, readiness, include, hosts, trust, state_dir, egress, callers, store, admin, timeouts, limits,
        log, connections
    } not ["public_url", "providers", "require_header", "interception", "audit", "tracing"];

    ListenersFile { proxy, admin, telemetry } not ["public"];

    ListenerFile { name, address, open } not ["mode", "tls"];

    ReadinessFile { wait_for_tokens } not [];

    EgressFile { unmatched, allow_private } not ["connect_ports", "proxy", "no_proxy"];

    CallerFile { name, secret, cidr, subjects } not ["listener", "unix_user", "certificate"];

    StoreFile { embedded, memory, seal_key } not ["redis"];

    EmbeddedFile { path } not [];

    MemoryFile {} not [];

    AdminFile { users, hosts } not ["editing"];

    UserFile { name, role, token } not [];

    TimeoutsFile { client_head, token_wait, connect, response_head, idle, keep_alive, drain } not [];

    LimitsFile {
        downstream_connections, per_upstream, queued_per_upstream, head, replay_body, tunnels
    } not [];

    LogFile { level, format, requests } not [];

    ConnectionFile {
        name, active, comments, grant, client_id, client_secret, send_credentials, basic_encoding, token_url,
        allow_cleartext, authorization_server, scopes, audience, resource, token_params, default_token_lifetime,
        refresh_ahead, usable_margin, keep_warm, tokens, username, password, token_rejected, accessible_from, routes
    } not [
        "provider", "variables", "logo_url", "application", "grant_type", "client_assertion", "authorization_url",
        "revocation_url", "device_authorization_url", "issuer", "mutual_tls", "redirect_url", "available_scopes",
        "authorize_params", "pkce", "assertion", "subject_token", "subject_token_type",
        "requested_token_type", "actor_token", "refresh_token_lifespan", "token_request",
        "token_response", "script", "profiles"
    ];

    AuthorizationServerFile { trust, timeout } not ["proxy"];

    TokenRejectedFile { status } not [];

    RouteFile {
        host, mount, upstream, path, methods, upstream_tls, inject, existing, without_token
    } not ["profile", "intercept", "set_headers", "only_when_named"];

    UpstreamTlsFile { trust, server_name } not ["mutual_tls"];

    InjectFile { header, scheme } not ["query", "connection"];
}

/// A secret that is not written out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretFile {
    pub file: Field,
    pub env: Field,
    /// A name in the sealed store.
    pub store: Field,
    /// Only for a secret that is compared and never sent.
    pub sha256: Field,
}

impl Keys for SecretFile {
    const NOT_BUILT: &'static [&'static str] = &[];
    const SECRET: bool = true;
}
