//! The demo: an authorization server, an API, and the proxy between them, in one process on loopback.
//!
//! Not here: anything that a real installation needs.
//! Invariants: the authorization server checks the secret and issues random tokens that live 10 seconds; the API
//! introspects every token; the output shows the actual traffic.

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

use crate::admin::BoundListener;
use crate::app::App;
use crate::clock::Clock;
use crate::config;
use crate::store::StoreOpener;
use crate::tasks::Tasks;
use crate::telemetry::system::ADMIN_MAX;
use authorization_server::Issued;

/// Host of the API; it exists only in the demo's `hosts`.
const API: &str = "api.demo.test";
/// Timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The demo, except for the proxy itself.
pub struct Demo {
    tasks: Tasks,
    server: SocketAddr,
    api: SocketAddr,
    proxy: SocketAddr,
    admin: SocketAddr,
    issued: mpsc::Receiver<Issued>,
}

impl Demo {
    /// Starts the authorization server and the API on the current runtime and builds the proxy. `presented` replaces
    /// the correct client secret.
    pub fn build(presented: Option<&str>) -> Result<(Demo, App), String> {
        let tasks = Tasks::default();
        let secret = authorization_server::random_text();
        let (issues, issued) = mpsc::channel(64);
        let bind = |address: &str| TcpListener::bind(address).map_err(|error| format!("{address}: {error}"));
        let (server_socket, api_socket) = (bind("127.0.0.1:0")?, bind("127.0.0.1:0")?);
        let address = |socket: &TcpListener| socket.local_addr().map_err(|error| error.to_string());
        let (server, api) = (address(&server_socket)?, address(&api_socket)?);
        let router = authorization_server::router(secret.clone(), issues);
        let serve = |socket, router| {
            let listener = BoundListener { socket, tls: None };
            crate::admin::serve(&tasks, listener, router, ADMIN_MAX).map_err(|error| error.to_string())
        };
        serve(server_socket, router)?;
        serve(api_socket, api::router(server)?)?;
        // Never used: without a configured user, the admin side would store a token on disk.
        let unused_token = authorization_server::random_text();
        let presented = serde_json::to_string(presented.unwrap_or(&secret)).map_err(|error| error.to_string())?;
        let build = |proxy: &str, admin: &str| {
            let text = format!(
                "listeners: {{proxy: \"{proxy}\", admin: \"{admin}\"}}\n\
                 admin: {{users: [{{name: demo, role: viewer, token: \"{unused_token}\"}}]}}\n\
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
        // The default addresses if they are free, else free ports.
        let default = build("127.0.0.1:8080", "127.0.0.1:8081");
        let app = default.or_else(|_| build("127.0.0.1:0", "127.0.0.1:0"))?;
        let [proxy, admin] = ["proxy", "admin"].map(|name| {
            let listener = app.listeners.iter().find(|listener| listener.name.as_str() == name);
            listener.map_or(server, |listener| listener.address)
        });
        Ok((Demo { tasks, server, api, proxy, admin, issued }, app))
    }

    /// Sends one request through the proxy and shows it at both ends. Returns true if the API accepted its token.
    pub async fn one_request(mut self) -> bool {
        self.introduce();
        self.request().await
    }

    /// Does the same, then suggests commands and reports every refresh.
    pub fn keep_showing(mut self) {
        let tasks = self.tasks.clone();
        tasks.spawn("demo", async move {
            self.introduce();
            self.request().await;
            self.suggest();
            while let Some(issued) = self.issued.recv().await {
                print_line(&format!("  token refreshed: {}…, expires in {} s", issued.start, issued.lifetime_s));
            }
        });
    }

    fn introduce(&self) {
        print_line(&format!(
            "Keybearer demo: everything runs in this process, on loopback.\n\n  \
             authorization server  http://{}  checks the client secret; its tokens live {} s\n  \
             API                   http://{}  introspects every token it receives\n  \
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
        let response = match tokio::time::timeout(REQUEST_TIMEOUT, exchange(self.proxy, &head)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => format!("no response: {error}"),
            Err(_) => "the request timed out".to_owned(),
        };
        while let Ok(issued) = self.issued.try_recv() {
            tracing::debug!(start = issued.start, "token issued");
        }
        print_line("The service sent this to the proxy (no token, no secret):");
        print_line(&indented(&head));
        let accepted = response.starts_with("HTTP/1.1 200 ");
        let body = response.split_once("\r\n\r\n").map_or(response.as_str(), |(_, body)| body);
        print_line(if accepted {
            "The API received this and accepted it:"
        } else {
            "The API never received it; the proxy responded:"
        });
        print_line(&indented(body));
        accepted
    }

    fn suggest(&self) {
        print_line(&format!(
            "Try it yourself:\n  \
             curl -x http://{proxy} http://{API}/hello\n  \
             http_proxy=http://{proxy} curl http://{API}/anything\n  \
             curl http://{proxy}/demo/hello\n  \
             curl http://{admin}/metrics\n\nPress Ctrl-C to stop. Tokens are refreshed in the background:",
            proxy = self.proxy,
            admin = self.admin
        ));
    }
}

async fn exchange(proxy: SocketAddr, head: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(head.as_bytes()).await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

fn indented(text: &str) -> String {
    text.trim().lines().map(|line| format!("    {line}\n")).collect()
}

/// Prints a line and ignores a closed pipe.
fn print_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
