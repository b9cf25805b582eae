//! A scripted HTTP/1.1 server, for cases that real servers cannot produce: reads requests and responds with given
//! bytes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// First byte of a TLS connection, which these servers close.
const TLS_HANDSHAKE: u8 = 0x16;

/// A request as received.
#[derive(Debug, Clone)]
pub struct Received {
    /// The head, as sent.
    pub head: String,
    pub body: Vec<u8>,
    /// The peer's port, which is the same for all requests on one connection.
    pub from: u16,
}

impl Received {
    /// All values of a field, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    pub fn request_line(&self) -> &str {
        self.head.split("\r\n").next().unwrap_or_default()
    }
}

/// The server's reaction to a request.
pub enum Reply {
    /// Sends the bytes and keeps the connection open.
    Bytes(Vec<u8>),
    /// Sends the bytes and closes the connection.
    BytesThenClose(Vec<u8>),
    /// Closes the connection without a response.
    Close,
    /// Sends the bytes after a delay and keeps the connection open.
    Delayed(Duration, Vec<u8>),
    /// Sends nothing and keeps the connection open.
    Silence,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Reply {
        Reply::text(status, "application/json", &body.to_string())
    }

    pub fn text(status: u16, content_type: &str, body: &str) -> Reply {
        let head =
            format!("HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n", body.len());
        Reply::Bytes((head + body).into_bytes())
    }

    /// A successful token response.
    pub fn token(token: &str, expires_in: u64) -> Reply {
        Reply::json(200, &json!({"access_token": token, "token_type": "Bearer", "expires_in": expires_in}))
    }

    /// The same bytes, sent after `delay`.
    pub fn delayed(self, delay: Duration) -> Reply {
        match self {
            Reply::Bytes(bytes) => Reply::Delayed(delay, bytes),
            other => other,
        }
    }

    pub fn ok() -> Reply {
        Reply::text(200, "text/plain", "ok")
    }
}

pub struct Scripted {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Scripted {
    /// `reply` gets the request and the number of requests before it.
    pub async fn start<F>(reply: F) -> Scripted
    where
        F: Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound listener");
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let (log, reply) = (received.clone(), Arc::new(reply));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                connections.spawn(serve(stream, peer.port(), log.clone(), reply.clone()));
            }
        });
        Scripted { address, received, task }
    }

    /// A token endpoint that issues `token-1`, `token-2`, … with this lifetime in seconds.
    pub async fn tokens(lifetime_s: u64) -> Scripted {
        Scripted::start(move |_, before| Reply::token(&format!("token-{}", before + 1), lifetime_s)).await
    }

    /// An upstream that responds 200 to every request.
    pub async fn upstream() -> Scripted {
        Scripted::start(|_, _| Reply::ok()).await
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.received.lock().unwrap().len()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<F>(mut stream: TcpStream, from: u16, log: Arc<Mutex<Vec<Received>>>, reply: Arc<F>)
where
    F: Fn(&Received, usize) -> Reply,
{
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer, from).await {
        let before = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let (bytes, close) = match reply(&request, before) {
            Reply::Bytes(bytes) => (bytes, false),
            Reply::BytesThenClose(bytes) => (bytes, true),
            Reply::Delayed(wait, bytes) => {
                tokio::time::sleep(wait).await;
                (bytes, false)
            }
            Reply::Close => (Vec::new(), true),
            Reply::Silence => (Vec::new(), false),
        };
        if stream.write_all(&bytes).await.is_err() || close {
            return;
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>, from: u16) -> Option<Received> {
    let end = loop {
        if buffer.first() == Some(&TLS_HANDSHAKE) {
            return None;
        }
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        read_more(stream, buffer).await?;
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let mut request = Received { head, body: Vec::new(), from };
    if let Some(length) = request.values("content-length").first().and_then(|value| value.parse::<usize>().ok()) {
        while buffer.len() < length {
            read_more(stream, buffer).await?;
        }
        request.body = buffer.drain(..length).collect();
    } else if !request.values("transfer-encoding").is_empty() {
        while !buffer.windows(5).any(|window| window == b"0\r\n\r\n") {
            read_more(stream, buffer).await?;
        }
        request.body = std::mem::take(buffer);
    }
    Some(request)
}

async fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut bytes = [0; 16 * 1024];
    match stream.read(&mut bytes).await {
        Ok(count) if count > 0 => buffer.extend_from_slice(&bytes[..count]),
        _ => return None,
    }
    Some(())
}
