//! The main job in one process: an authorization server, an API, and the proxy in front, all on loopback.
//!
//! Not here: anything that a real installation needs. Holds: the authorization server checks the secret, its tokens are
//! random and live ten seconds, and the API asks it about every single one; what is shown is what really travelled.

mod api;
mod authorization_server;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::app::App;
use crate::clock::Clock;
use crate::config;
use crate::store::StoreOpener;
use crate::tasks::Tasks;
use crate::telemetry::system::ADMIN_MAX;
use authorization_server::Issued;

/// The name that services call; it exists in the demo's `hosts` alone.
const API: &str = "api.demo.test";
/// How long one of the demo's requests may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The demo beside its proxy.
pub struct Demo {
    tasks: Tasks,
    server: SocketAddr,
    api: SocketAddr,
    proxy: SocketAddr,
    admin: SocketAddr,
    issued: mpsc::Receiver<Issued>,
}

impl Demo {
    /// Starts server and API on the current runtime and builds the proxy, ready to serve. `presented` stands in for the
    /// right client secret.
    pub fn build(presented: Option<&str>) -> Result<(Demo, App), String> {
        let tasks = Tasks::default();
        let secret = authorization_server::random_text();
        let (issues, issued) = mpsc::channel(64);
        let bind = |address: &str| TcpListener::bind(address).map_err(|error| format!("{address}: {error}"));
        let (server_socket, api_socket) = (bind("127.0.0.1:0")?, bind("127.0.0.1:0")?);
        let address = |socket: &TcpListener| socket.local_addr().map_err(|error| error.to_string());
        let (server, api) = (address(&server_socket)?, address(&api_socket)?);
        let router = authorization_server::router(secret.clone(), issues);
        crate::admin::serve(&tasks, server_socket, router, ADMIN_MAX).map_err(|error| error.to_string())?;
        crate::admin::serve(&tasks, api_socket, api::router(server)?, ADMIN_MAX).map_err(|error| error.to_string())?;
        // Of nobody: without listed users the admin side would keep a token on the disk.
        let nobody = authorization_server::random_text();
        let presented = serde_json::to_string(presented.unwrap_or(&secret)).map_err(|error| error.to_string())?;
        let build = |proxy: &str, admin: &str| {
            let text = format!(
                "listeners: {{proxy: \"{proxy}\", admin: \"{admin}\"}}\n\
                 admin: {{users: [{{name: demo, role: viewer, token: \"{nobody}\"}}]}}\n\
                 log: {{level: warn, format: text}}\n\
                 audit: {{to: off}}\n\
                 store: {{memory: {{}}}}\n\
                 hosts: {{{API}: \"{api}\"}}\n\
                 connections:\n\
                 - name: demo\n  \
                   client_id: demo-service\n  \
                   client_secret: {presented}\n  \
                   token_url: http://{server}/token\n  \
                   scopes: hello\n  \
                   routes:\n  \
                   - {{host: {API}, upstream_tls: false}}\n  \
                   - {{mount: /demo, upstream: \"http://{api}\"}}\n"
            );
            let loaded = config::load_text(&text, Path::new("demo.yaml")).map_err(|problems| problems.to_string())?;
            let opener = Arc::new(StoreOpener::new(Clock::system(), tasks.clone()));
            App::build(loaded, opener, None, tasks.clone()).map_err(|error| error.to_string())
        };
        // The usual addresses where they are free, else whatever the system gives.
        let usual = build("127.0.0.1:8080", "127.0.0.1:8081");
        let app = usual.or_else(|_| build("127.0.0.1:0", "127.0.0.1:0"))?;
        let [proxy, admin] = ["proxy", "admin"].map(|name| {
            let listener = app.listeners.iter().find(|listener| listener.name.as_str() == name);
            listener.map_or(server, |listener| listener.address)
        });
        Ok((Demo { tasks, server, api, proxy, admin, issued }, app))
    }

    /// One request through the proxy, shown from both ends. True: the API accepted its token.
    pub async fn one_request(mut self) -> bool {
        self.introduce();
        self.request().await
    }

    /// The same, then what to try next, then every refresh as it happens.
    pub fn keep_showing(mut self) {
        let tasks = self.tasks.clone();
        tasks.spawn("demo", async move {
            self.introduce();
            self.request().await;
            self.suggest();
            while let Some(issued) = self.issued.recv().await {
                say(&format!(
                    "  refreshed: the proxy now holds token {}…, good for {} s",
                    issued.start, issued.lifetime_s
                ));
            }
        });
    }

    fn introduce(&self) {
        say(&format!(
            "Keybearer demo: everything runs in this process, on loopback.\n\n  \
             authorization server  http://{}  checks the client's secret; its tokens live {} s\n  \
             API                   http://{}  asks it about every token that it receives\n  \
             proxy                 http://{}  holds the secret, so that services need not\n  \
             health and metrics    http://{}\n",
            self.server,
            authorization_server::LIFETIME_S,
            self.api,
            self.proxy,
            self.admin
        ));
    }

    async fn request(&mut self) -> bool {
        let head = format!(
            "GET http://{API}/hello HTTP/1.1\r\nHost: {API}\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        );
        let answer = match tokio::time::timeout(PATIENCE, exchange(self.proxy, &head)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => format!("no answer: {error}"),
            Err(_) => "no answer in time".to_owned(),
        };
        while let Ok(issued) = self.issued.try_recv() {
            tracing::debug!(start = issued.start, "issued");
        }
        say("The service sent this, to the proxy (no token, no secret):");
        say(&indented(&head));
        let accepted = answer.starts_with("HTTP/1.1 200 ");
        let body = answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_, body)| body);
        say(if accepted {
            "The API received this, and accepted it:"
        } else {
            "The API never got it; the proxy answered:"
        });
        say(&indented(body));
        accepted
    }

    fn suggest(&self) {
        say(&format!(
            "Try it yourself:\n  \
             curl -x http://{proxy} http://{API}/hello\n  \
             http_proxy=http://{proxy} curl http://{API}/anything\n  \
             curl http://{proxy}/demo/hello\n  \
             curl http://{admin}/metrics\n\nCtrl-C ends. Tokens are renewed in the background:",
            proxy = self.proxy,
            admin = self.admin
        ));
    }
}

async fn exchange(proxy: SocketAddr, head: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn indented(text: &str) -> String {
    text.trim().lines().map(|line| format!("    {line}\n")).collect()
}

/// Prints a line; a closed pipe is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
