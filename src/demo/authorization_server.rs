//! The demo's authorization server: client credentials (RFC 6749 §4.4) and introspection (RFC 7662), in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::rand::fill;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use url::form_urlencoded;

use crate::model::secret::Secret;
use crate::sync::lock;

/// Lifetime of access tokens in seconds.
pub const LIFETIME_S: u64 = 10;

/// A token has been issued.
pub struct Issued {
    /// First characters of the token.
    pub start: String,
    pub lifetime_s: u64,
}

struct Server {
    secret: Secret,
    expires: Mutex<HashMap<String, Instant>>,
    issues: mpsc::Sender<Issued>,
}

pub fn router(secret: String, issues: mpsc::Sender<Issued>) -> Router {
    let server = Server { secret: Secret::new(secret), expires: Mutex::default(), issues };
    Router::new().route("/token", post(token)).route("/introspect", post(introspect)).with_state(Arc::new(server))
}

async fn token(State(server): State<Arc<Server>>, body: String) -> (StatusCode, Json<Value>) {
    let fields: HashMap<String, String> = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    if field("grant_type") != "client_credentials" {
        return (StatusCode::BAD_REQUEST, Json(json!({"error": "unsupported_grant_type"})));
    }
    if field("client_id") != "demo-service" || Secret::new(field("client_secret")) != server.secret {
        return (StatusCode::UNAUTHORIZED, Json(json!({"error": "invalid_client"})));
    }
    let token = random_text();
    let start = token.chars().take(6).collect();
    let now = Instant::now();
    let mut expires = lock(&server.expires);
    expires.retain(|_, end| *end > now);
    expires.insert(token.clone(), now + Duration::from_secs(LIFETIME_S));
    // The demo may not be listening.
    let _ = server.issues.try_send(Issued { start, lifetime_s: LIFETIME_S });
    (StatusCode::OK, Json(json!({"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME_S})))
}

async fn introspect(State(server): State<Arc<Server>>, body: String) -> Json<Value> {
    let token = form_urlencoded::parse(body.as_bytes()).find(|(name, _)| name == "token").map(|(_, token)| token);
    let expires = lock(&server.expires);
    let end = token.and_then(|token| expires.get(&*token).copied());
    let left = end.and_then(|end| end.checked_duration_since(Instant::now()));
    Json(match left {
        Some(left) => json!({"active": true, "client_id": "demo-service", "seconds_left": left.as_secs()}),
        None => json!({"active": false}),
    })
}

/// 128 random bits in hexadecimal.
pub fn random_text() -> String {
    let mut bytes = [0; 16];
    fill(&mut bytes).expect("the system has a random number generator");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
