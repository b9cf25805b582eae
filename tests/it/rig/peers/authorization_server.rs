//! Two real authorization servers over HTTPS: oidc-provider (`op.mjs`) and Authlib (`al.py`).

use serde_json::{Value, json};

use super::{Peer, with_tls};

/// A running authorization server over HTTPS on 127.0.0.1.
pub struct AuthorizationServer {
    peer: Peer,
    script: &'static str,
    options: Value,
    paths: &'static Paths,
}

/// Endpoint paths of a server; the token endpoint is /token at both.
struct Paths {
    introspection: &'static str,
    revocation: &'static str,
    authorization: &'static str,
}

const OP_PATHS: Paths =
    Paths { introspection: "/token/introspection", revocation: "/token/revocation", authorization: "/auth" };

const AL_PATHS: Paths = Paths { introspection: "/introspect", revocation: "/revoke", authorization: "/authorize" };

impl AuthorizationServer {
    /// oidc-provider. Options, all optional: `lifetime` (seconds, 3), `leaf`, `port`, `issuer`, `clients`,
    /// `pushed_only`.
    pub async fn op(options: Value) -> Self {
        Self::start("op.mjs", &OP_PATHS, options).await
    }

    /// Authlib. Options, all optional: `lifetime` (seconds, 3), `leaf`, `port`, `issuer`.
    pub async fn al(options: Value) -> Self {
        Self::start("al.py", &AL_PATHS, options).await
    }

    async fn start(script: &'static str, paths: &'static Paths, options: Value) -> Self {
        let options = with_tls(options);
        Self { peer: Peer::start(script, &options).await, script, options, paths }
    }

    pub fn port(&self) -> u16 {
        self.peer.port("port")
    }

    /// The port that requests a client certificate; it serves the same paths as the usual port.
    pub fn mtls_port(&self) -> u16 {
        self.peer.port("mtls")
    }

    pub fn mtls_token_url(&self) -> String {
        format!("https://127.0.0.1:{}/token", self.mtls_port())
    }

    pub fn mtls_revocation_url(&self) -> String {
        format!("https://127.0.0.1:{}{}", self.mtls_port(), self.paths.revocation)
    }

    /// The issuer URL, covered by the certificate `server`; the certificate's other names reach the same port.
    pub fn issuer(&self) -> String {
        format!("https://127.0.0.1:{}", self.port())
    }

    pub fn token_url(&self) -> String {
        format!("{}/token", self.issuer())
    }

    pub fn introspection_url(&self) -> String {
        format!("{}{}", self.issuer(), self.paths.introspection)
    }

    pub fn revocation_url(&self) -> String {
        format!("{}{}", self.issuer(), self.paths.revocation)
    }

    pub fn authorization_url(&self) -> String {
        format!("{}{}", self.issuer(), self.paths.authorization)
    }

    pub fn device_authorization_url(&self) -> String {
        format!("{}/device/auth", self.issuer())
    }

    /// Counters: `token_requests` by client, `tokens_issued`, `introspections`, `token_requests_at_once` (peak),
    /// `grants` (client, grant type), `revocations`, `revoked` (client, `access_token` or `refresh_token`),
    /// `jti_reused`; for clients that act for people, also those in `tests/peers/op_people.mjs`.
    pub async fn stats(&self) -> Value {
        self.peer.get("/__stats").await
    }

    /// Token requests of one client, refused ones included.
    pub async fn token_requests(&self, client_id: &str) -> u64 {
        self.stats().await["token_requests"][client_id].as_u64().unwrap_or(0)
    }

    /// Token requests of one client by one grant type, refused ones included.
    pub async fn token_requests_by_grant(&self, client_id: &str, grant_type: &str) -> u64 {
        self.stats().await["requests_by_grant"][client_id][grant_type].as_u64().unwrap_or(0)
    }

    /// The parameters of each authorization request of a client that came through a browser.
    pub async fn authorizations(&self, client_id: &str) -> Vec<Value> {
        self.stats().await["authorizations"][client_id].as_array().cloned().unwrap_or_default()
    }

    /// The fields of each token request of a client that acts for people.
    pub async fn forms(&self, client_id: &str) -> Vec<Value> {
        self.stats().await["forms"][client_id].as_array().cloned().unwrap_or_default()
    }

    /// Withdraws the account's consent to every client; returns the number of grants (or refresh tokens) that this
    /// ends.
    pub async fn end_grants(&self, account: &str) -> u64 {
        let response = self.peer.post("/__end_grants", json!({ "account": account })).await;
        response["ended"].as_u64().expect("a count")
    }

    /// Lets `ann` approve or deny a user code without a browser (Authlib only).
    pub async fn decide(&self, user_code: &str, approve: bool) {
        self.peer.post("/__device", json!({ "user_code": user_code, "approve": approve })).await;
    }

    /// A refresh token of the client `person`, as if issued after consent (oidc-provider only).
    pub async fn refresh_token(&self, account: &str) -> String {
        let response = self.peer.post("/__refresh_token", json!({ "account": account })).await;
        response["refresh_token"].as_str().expect("a refresh token").to_owned()
    }

    /// Changes its responses: `lifetime`, `delay_ms`, `status`, `retry_after`, `times`, `revoke_all`,
    /// `device_lifetime`, `hold` (oidc-provider only: withholds the last byte of a token response),
    /// `announce_lifetime`, `interval` (Authlib only: poll interval in seconds) and `slow_downs` (Authlib only: number
    /// of polls refused as too early). Absent fields keep their values.
    pub async fn control(&self, change: Value) -> Value {
        self.peer.post("/__control", change).await
    }

    /// Suspends the process: connections open but get no response, `stats` and `control` included.
    pub fn pause(&self) {
        self.peer.pause();
    }

    pub fn resume(&self) {
        self.peer.resume();
    }

    /// Kills the process: its port refuses connections, its tokens are lost.
    pub async fn stop(&mut self) {
        self.peer.stop().await;
    }

    /// Starts a new process on the same port, with no state, counters or faults.
    pub async fn start_again_on_same_port(&mut self) {
        self.stop().await;
        self.options["port"] = json!(self.port());
        self.options["mtls_port"] = json!(self.mtls_port());
        self.peer = Peer::start(self.script, &self.options).await;
    }
}
