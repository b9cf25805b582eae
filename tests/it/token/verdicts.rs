//! The effect of an authorization server's error responses on the refresh token, the next attempt, people and replicas.
//!
//! The servers are scripted with responses observed from real servers and from gateways in front of them.
//! Not here: the table itself (`src/oauth/verdict.rs`), real servers (`token::refresh`, `token::grants`).

mod in_doubt;
mod machine;
mod person;
mod replicas;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use url::form_urlencoded;

use crate::rig::config::{Config, Connection};
use crate::rig::manager::call;
use crate::rig::raw::{self, RawResponse};
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const TIMEOUT: Duration = Duration::from_secs(15);
const PASSWORD: &str = "grant: password, username: ann, password: pass";
const PERSON: &str = "grant: authorization_code, authorization_url: \"https://as.test/authorize\"";

/// A server's response to a refresh.
type Response = fn() -> Reply;

/// The connection `crm` for `api.test`; `top` are whole lines.
fn crm(server: &Scripted, upstream: &Scripted, top: &str, keys: &str) -> String {
    let of = [(String::from("crm"), keys.to_owned())];
    connections(server, upstream, top, &of)
}

/// Each connection has the token URL `/NAME`, and the host `NAME.test`; `crm` has `api.test`.
fn connections(server: &Scripted, upstream: &Scripted, top: &str, of: &[(String, String)]) -> String {
    let config = Config::new().top(top).manager();
    let with = |config: Config, (name, keys): &(String, String)| {
        let host = if name == "crm" { "api.test".to_owned() } else { format!("{name}.test") };
        let connection = Connection::new(name, format_args!("http://{}/{name}", server.address));
        let client = "client_id: the-client, client_secret: s3cret-of-the-client";
        config.host(&host, upstream.address).connection(connection.client(client).keys(keys).plain(&host))
    };
    of.iter().fold(config, with).to_string()
}

/// `c0`, `c1`, … with the same keys.
fn numbered(count: usize, keys: &str) -> Vec<(String, String)> {
    (0..count).map(|number| (format!("c{number}"), keys.to_owned())).collect()
}

/// The connection that sent the request, by its token URL's path.
fn name(request: &Received) -> &str {
    request.request_line().split(' ').nth(1).expect("a path").trim_start_matches('/')
}

fn number(request: &Received) -> usize {
    name(request)[1..].parse().expect("a connection of `numbered`")
}

fn field(request: &Received, name: &str) -> Option<String> {
    form_urlencoded::parse(&request.body).find(|(own, _)| own == name).map(|(_, value)| value.into_owned())
}

fn is_refresh(request: &Received) -> bool {
    field(request, "grant_type").as_deref() == Some("refresh_token")
}

/// Per token request of a connection: `password`, or the refresh token sent.
fn sent_grants(server: &Scripted, of: &str) -> Vec<String> {
    let received = server.received();
    let own = received.iter().filter(|request| name(request) == of);
    own.map(|request| field(request, "refresh_token").unwrap_or_else(|| field(request, "grant_type").unwrap()))
        .collect()
}

fn tokens(access: &str, refresh: &str, expires_in: u64) -> Reply {
    Reply::json(200, &json!({"access_token": access, "refresh_token": refresh, "expires_in": expires_in}))
}

fn refusal(status: u16, error: &str) -> Reply {
    Reply::json(status, &json!({"error": error}))
}

fn empty_response(status: u16) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").into_bytes())
}

fn html(status: u16) -> Reply {
    Reply::text(status, "text/html", "<html>nginx</html>")
}

async fn get(sidecar: &Sidecar, host: &str) -> RawResponse {
    raw::get_through(sidecar.proxy(), &format!("http://{host}/x"), "").await
}

/// Waits until a request through `host` is served.
async fn wait_until_served(sidecar: &Sidecar, host: &str) {
    let served = async {
        while get(sidecar, host).await.status != 200 {
            sleep(Duration::from_millis(30)).await;
        }
    };
    timeout(TIMEOUT, served).await.unwrap_or_else(|_| panic!("{host} is not served:\n{}", sidecar.log()));
}

async fn refresh(sidecar: &Sidecar, connection: &str) -> RawResponse {
    call(sidecar.admin(), "POST", &format!("/connections/{connection}/refresh"), &json!({})).await
}

async fn last_attempt(sidecar: &Sidecar, connection: &str) -> Value {
    let tokens = call(sidecar.admin(), "GET", &format!("/connections/{connection}/tokens"), &json!({})).await.json();
    tokens["items"][0]["last_attempt"].clone()
}

/// Seconds between two times in the API's format.
fn seconds_between(from: &Value, to: &Value) -> i64 {
    let seconds = |time: &Value| {
        let text = time.as_str().unwrap_or_else(|| panic!("not a time: {time}"));
        let date = std::process::Command::new("date").args(["-d", text, "+%s"]).output().expect("date is installed");
        String::from_utf8(date.stdout).expect("digits").trim().parse::<i64>().expect("a number")
    };
    seconds(to) - seconds(from)
}

/// Connections of a person, one per response to a refresh; returns the API's response to a forced refresh of each.
async fn refreshed(responses: &'static [Response], keys: &str) -> (Sidecar, Vec<RawResponse>, Scripted) {
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|request, _| match field(request, "refresh_token").as_deref() {
        Some("given") => tokens("a0", "r0-of-the-person", 3600),
        _ => responses[number(request)](),
    })
    .await;
    let of = numbered(responses.len(), &format!("{PERSON}, {keys}"));
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    let mut outcomes = Vec::new();
    for (name, _) in &of {
        let given = json!({"refresh_token": "given"});
        let response = call(sidecar.admin(), "PUT", &format!("/connections/{name}/tokens"), &given).await;
        assert_eq!(response.status, 200, "{name}: {}", response.text());
        outcomes.push(refresh(&sidecar, name).await);
    }
    (sidecar, outcomes, server)
}
