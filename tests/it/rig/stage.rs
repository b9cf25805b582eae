//! One proxy between a caller and two upstreams, *good* with a connection and *evil* without, and the invariants to
//! check after every case.
//!
//! Not here: what is sent. Invariants: the token reaches *good* only, and no caller ever reads it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::tunnel_client::read_connect_head;

/// The access token of the connection `good`.
pub const TOKEN: &str = "kb-secret-token-of-good";
const TIMEOUT: Duration = Duration::from_secs(15);

/// Host names that resolve to *good*, and those that resolve to *evil*.
const GOOD: [&str; 6] = ["good.test", "scoped.test", "key.test", "secure.test", "a.wild.test", "a.b.wild.test"];
const EVIL: [&str; 6] = ["evil.test", "good.test.evil.test", "notgood.test", "wild.test", "evilwild.test", "goo.test"];

/// Routes of the connection `good`.
pub const ROUTES: &str = "{host: good.test, upstream_tls: false}, {host: \"*.wild.test\", upstream_tls: false}, \
    {host: scoped.test, path: /v1/, upstream_tls: false}, {host: secure.test}, \
    {host: key.test, upstream_tls: false, inject: {header: X-Api-Key, scheme: \"\"}}, \
    {mount: /api, upstream: \"http://good.test/base\", upstream_tls: false}";

/// A plain request to *good* that keeps the connection open.
pub const GET: &[u8] = b"GET http://good.test/ HTTP/1.1\r\nHost: x\r\n\r\n";

pub struct Stage {
    pub sidecar: Sidecar,
    pub good: Scripted,
    pub evil: Scripted,
    _tokens: Scripted,
}

impl Stage {
    /// `top`: further top-level keys, as whole lines. `PORTS` in it is replaced by the ports 80, 81, 443 and evil's,
    /// which are the default `connect_ports` unless `top` has an `egress`.
    pub async fn start(top: &str) -> Stage {
        Self::with_reply(top, |_, _| Reply::ok()).await
    }

    /// Like `start`, with `reply` as *good*'s script.
    pub async fn with_reply<F>(top: &str, reply: F) -> Stage
    where
        F: Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    {
        let good = Scripted::start(reply).await;
        let address = good.address;
        Self::build(top, good, address).await
    }

    /// Like `start`, but the test itself serves *good* on the returned listener. Not for use with `assert_invariants`.
    pub async fn with_raw_good(top: &str) -> (Stage, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound listener");
        (Self::build(top, Scripted::upstream().await, address).await, listener)
    }

    async fn build(top: &str, good: Scripted, good_address: SocketAddr) -> Stage {
        let tokens = Scripted::start(|_, _| Reply::token(TOKEN, 3600)).await;
        let evil = Scripted::upstream().await;
        let host = |names: &[&str], address: SocketAddr| {
            names.iter().map(|name| format!("{name}: \"{address}\", ")).collect::<String>()
        };
        let (goods, evils) = (host(&GOOD, good_address), host(&EVIL, evil.address));
        let egress = if top.contains("egress:") { "" } else { "egress: {connect_ports: [PORTS]}\n" };
        let top = format!("{egress}{top}").replace("PORTS", &format!("80, 81, 443, {}", evil.address.port()));
        let config = format!(
            "hosts: {{{goods}{evils}here.test: 127.0.0.1, idp.test: \"{}\"}}\n{top}connections:\n- {{name: good, client_id: a, \
             client_secret: b, token_url: \"http://idp.test/token\", allow_cleartext: true, routes: [{ROUTES}]}}\n",
            tokens.address
        );
        Stage { sidecar: Sidecar::start(&config).await, good, evil, _tokens: tokens }
    }

    /// Opens a tunnel to `authority`; `lines` are further header lines.
    pub async fn open_tunnel(&self, authority: &str, lines: &str) -> Conn {
        let mut conn = Conn::open(self.sidecar.proxy()).await;
        conn.write(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{lines}\r\n").as_bytes()).await;
        assert!(read_connect_head(&mut conn).await.starts_with("HTTP/1.1 200"), "{authority}");
        conn
    }

    /// [`exchange`] with the proxy.
    pub async fn exchange(&self, bytes: impl AsRef<[u8]>) -> Transcript {
        exchange(self.sidecar.proxy(), bytes.as_ref()).await
    }

    /// Checks the invariants that hold after every case.
    pub async fn assert_invariants(&self, row: &str, transcript: &Transcript) {
        assert!(!transcript.text().contains(TOKEN), "{row}: the caller reads the token: {}", transcript.text());
        let evil = self.evil.received();
        for request in &evil {
            let body = String::from_utf8_lossy(&request.body);
            assert!(!request.head.contains(TOKEN) && !body.contains(TOKEN), "{row}: evil reads {}", request.head);
        }
        for request in evil.iter().chain(&self.good.received()) {
            assert_eq!(request.values("host").len(), 1, "{row}: {}", request.head);
            assert!(request.values("authorization").len() <= 1, "{row}: {}", request.head);
        }
        let response = raw::get_through(self.sidecar.proxy(), "http://good.test/afterwards", "").await;
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{row}: the next request is affected");
        let received = self.good.received();
        let last = received.iter().rfind(|request| request.request_line().contains("/afterwards"));
        let last = last.unwrap_or_else(|| panic!("{row}: good never received the next request"));
        assert_eq!(last.values("authorization"), [format!("Bearer {TOKEN}")], "{row}");
        assert_eq!(last.values("host"), ["good.test"], "{row}");
    }
}

/// A stage whose *good* responds to everything except paths with `/silent`.
pub async fn stage_with_silent_path(top: &str) -> Stage {
    Stage::with_reply(top, |request, _| match request.request_line().contains("/silent") {
        true => Reply::Silence,
        false => Reply::ok(),
    })
    .await
}

pub fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Everything that a caller read.
#[derive(Debug, Clone)]
pub struct Transcript(pub Vec<u8>);

impl Transcript {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// The statuses of all responses, in order.
    pub fn statuses(&self) -> Vec<u16> {
        let text = self.text();
        let lines = text.split("HTTP/1.").skip(1);
        lines.filter_map(|line| line.get(2..5)?.parse().ok()).collect()
    }

    /// The first response's status; 0 if there is none.
    pub fn status(&self) -> u16 {
        self.statuses().first().copied().unwrap_or(0)
    }

    /// The proxy's error code; empty for an upstream's response.
    pub fn code(&self) -> String {
        self.header("keybearer-error").unwrap_or_default()
    }

    /// A field of the first response.
    pub fn header(&self, name: &str) -> Option<String> {
        let text = self.text();
        let head = text.split("\r\n\r\n").next()?.to_owned();
        let mut fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    }

    /// Everything after the first response's head.
    pub fn body(&self) -> String {
        self.text().split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }
}

/// Sends the bytes, half-closes, and reads until the proxy closes.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Transcript {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let mut received = Vec::new();
    let talk = async {
        let (mut reader, mut writer) = stream.split();
        let write = async {
            let _ = writer.write_all(bytes).await;
            let _ = writer.shutdown().await;
        };
        let read = async {
            let _ = reader.read_to_end(&mut received).await;
        };
        tokio::join!(write, read);
    };
    if timeout(TIMEOUT, talk).await.is_err() {
        panic!("the proxy neither responds nor closes: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]));
    }
    Transcript(received)
}

/// Waits until `is` returns true; `what` describes it in the panic.
#[track_caller]
pub fn wait_until<'a>(what: &'a str, is: impl Fn() -> bool + 'a) -> impl Future<Output = ()> + 'a {
    let location = std::panic::Location::caller();
    async move {
        let reached = async {
            while !is() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(TIMEOUT, reached).await.unwrap_or_else(|_| panic!("{location}: timed out waiting: {what}"));
    }
}
