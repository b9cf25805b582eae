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
        log, audit, tracing, public_url, interception, connections
    } not ["providers", "require_header"];

    InterceptionFile { ca_certificate, ca_key } not [];

    ListenersFile { proxy, admin, telemetry, public } not [];

    ListenerFile { name, address, open, mode, tls } not [];

    ListenerTlsFile { certificate, key, client_ca } not [];

    ReadinessFile { wait_for_tokens } not [];

    EgressFile { unmatched, allow_private, connect_ports, proxy, no_proxy } not [];

    CallerFile { name, secret, cidr, listener, unix_user, certificate, subjects } not [];

    CallerCertificateFile { san } not [];

    StoreFile { embedded, memory, redis, seal_key } not [];

    RedisFile { url, username, password, trust, key_prefix, sentinel_primary, cluster } not [];

    EmbeddedFile { path } not [];

    MemoryFile {} not [];

    AdminFile { users, hosts, editing } not [];

    UserFile { name, role, token } not [];

    TimeoutsFile { client_head, token_wait, connect, response_head, idle, keep_alive, drain } not [];

    LimitsFile {
        downstream_connections, per_upstream, queued_per_upstream, head, replay_body, tunnels
    } not [];

    LogFile { level, format, requests } not [];

    TracingFile { otlp, sample } not [];
    AuditFile { to } not [];

    AuditToFile { file } not [];

    ConnectionFile {
        name, active, comments, variables, grant, grant_type, client_id, client_secret, send_credentials,
        basic_encoding, client_assertion, mutual_tls, token_url, revocation_url, authorization_url,
        device_authorization_url, redirect_url, authorize_params, pkce, issuer, allow_cleartext, authorization_server,
        scopes, audience, resource, token_params, token_request, token_response, script,
        refresh_token_lifespan, default_token_lifetime, refresh_ahead, usable_margin, keep_warm, tokens, username,
        password, assertion, subject_token, subject_token_type, requested_token_type, actor_token, token_rejected,
        accessible_from, available_scopes, profiles, routes
    } not [
        "provider", "logo_url", "application"
    ];

    ProfileFile { name, grant, scopes, audience, resource, authorize_params, token_params } not [];

    ClientAssertionFile { key, algorithm, key_id, certificate, thumbprint, audience } not [];

    MutualTlsFile { certificate, key } not [];

    PkceFile { required, method } not [];

    AssertionFile { key, algorithm, key_id, issuer, subject, audience, lifetime, claims } not [];

    SubjectTokenFile { from } not [];

    ActorTokenFile { token, token_type } not [];

    AuthorizationServerFile { trust, proxy, timeout } not [];

    ForwardProxyFile { url, username, password, trust } not [];

    TokenRequestFile { encoding, headers } not [];

    TokenResponseFile {
        encoding, access_token, refresh_token, token_type, scope, expires_in, expires_in_unit, expires_at,
        refresh_token_expires_in, error, error_description, failure, refresh_refused
    } not [];

    RefreshRefusedFile { status, error, description_contains } not [];

    FailureFile { pointer, equals } not [];

    ScriptFile { file, source } not [];

    TokenRejectedFile { status, header, contains, pointer, equals } not [];

    RouteFile {
        host, mount, upstream, path, methods, profile, upstream_tls, inject, set_headers, existing, strip, without_token,
        only_when_named, intercept
    } not [];

    UpstreamTlsFile { trust, server_name, mutual_tls } not [];

    InjectFile { header, scheme, query, connection } not [];
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
