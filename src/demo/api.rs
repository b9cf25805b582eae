//! The demo's API: echoes the request if the authorization server reports the token as active.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use url::form_urlencoded;

struct Api {
    introspection: String,
    client: reqwest::Client,
}

pub fn router(server: SocketAddr) -> Result<Router, String> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).tls_certs_only([]);
    let client = client.build().map_err(|error| error.to_string())?;
    let api = Api { introspection: format!("http://{server}/introspect"), client };
    Ok(Router::new().fallback(receive).with_state(Arc::new(api)))
}

async fn receive(State(api): State<Arc<Api>>, request: Request) -> (StatusCode, String) {
    let fields = request.headers().get_all(header::AUTHORIZATION).iter().count();
    let Some(token) = bearer(request.headers()).filter(|_| fields == 1) else {
        return (
            StatusCode::UNAUTHORIZED,
            format!("{fields} Authorization headers; exactly one with a bearer token is required\n"),
        );
    };
    let Some(left) = api.seconds_left(token).await else {
        return (StatusCode::UNAUTHORIZED, "the authorization server does not know this token\n".to_owned());
    };
    let start: String = token.chars().take(6).collect();
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let lines = format!(
        "{} {} HTTP/1.1\nHost: {host}\nAuthorization: Bearer {start}… ({left} s left)\n",
        request.method(),
        request.uri()
    );
    (StatusCode::OK, lines)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

impl Api {
    /// Introspects the token; `None` if it is not active.
    async fn seconds_left(&self, token: &str) -> Option<u64> {
        let body: String = form_urlencoded::Serializer::new(String::new()).append_pair("token", token).finish();
        let request =
            self.client.post(&self.introspection).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let response = request.body(body).send().await.ok()?.bytes().await.ok()?;
        let response: serde_json::Value = serde_json::from_slice(&response).ok()?;
        response["active"].as_bool().filter(|active| *active).and(response["seconds_left"].as_u64())
    }
}
