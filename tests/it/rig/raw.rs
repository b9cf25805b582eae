//! An HTTP/1.1 client that sends exactly the bytes it is given.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Timeout of one exchange.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A response with parsed head and dechunked body.
#[derive(Debug, Clone)]
pub struct RawResponse {
    /// 0: the connection was closed without a response.
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body ended according to its framing, not by truncation.
    pub complete: bool,
}

impl RawResponse {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All values of a field, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let matching = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        matching.map(|(_, value)| value.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    /// The proxy's error code; empty for an upstream's response.
    pub fn code(&self) -> &str {
        self.header("keybearer-error").unwrap_or("")
    }
}

/// Sends `GET path` to the server at `address`, on a new connection.
pub async fn get(address: SocketAddr, path: &str) -> RawResponse {
    send(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await
}

/// Sends `GET url` through the proxy at `address`, with further header lines (each ending in CRLF).
pub async fn get_through(address: SocketAddr, url: &str, lines: &str) -> RawResponse {
    let host = url.split("://").nth(1).unwrap_or(url).split('/').next().unwrap_or_default();
    send(address, format!("GET {url} HTTP/1.1\r\nHost: {host}\r\n{lines}Connection: close\r\n\r\n").as_bytes()).await
}

/// Sends the bytes and reads one response.
pub async fn send(address: SocketAddr, bytes: &[u8]) -> RawResponse {
    let mut conn = Conn::open(address).await;
    conn.write(bytes).await;
    conn.read_response().await
}

/// A connection, plain TCP or a stream inside one, for any number of requests.
pub struct Conn<S = TcpStream> {
    pub stream: S,
    read: Vec<u8>,
}

impl Conn {
    pub async fn open(address: SocketAddr) -> Conn {
        let stream = timeout(TIMEOUT, TcpStream::connect(address)).await.expect("no timeout").expect("a connection");
        Conn::on(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    pub fn on(stream: S) -> Conn<S> {
        Conn { stream, read: Vec::new() }
    }

    /// Writes the bytes. Ignores a peer that has closed, because its response may still be readable.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = timeout(TIMEOUT, self.stream.write_all(bytes)).await.expect("write succeeds");
    }

    /// Reads one response; its status is 0 if the connection ends first. Assumes that the request was not HEAD.
    pub async fn read_response(&mut self) -> RawResponse {
        timeout(TIMEOUT, self.parse_response()).await.expect("a response in time")
    }

    /// Waits for data or the end of the connection; true if the peer has closed it.
    pub async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(timeout(TIMEOUT, self.stream.read(&mut byte)).await.expect("no timeout"), Ok(0) | Err(_))
    }

    async fn parse_response(&mut self) -> RawResponse {
        let none = RawResponse { status: 0, headers: Vec::new(), body: Vec::new(), complete: false };
        let end = loop {
            if let Some(at) = find(&self.read, b"\r\n\r\n") {
                break at;
            }
            if !self.read_more().await {
                return none;
            }
        };
        let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
        self.read.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut response = RawResponse { status, headers, body: Vec::new(), complete: false };
        if (100..200).contains(&status) && status != 101 {
            return Box::pin(self.parse_response()).await;
        }
        if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            response.complete = self.read_chunks(&mut response.body).await;
        } else if let Some(length) = response.header("content-length").and_then(|value| value.parse::<usize>().ok()) {
            while self.read.len() < length && self.read_more().await {}
            response.complete = self.read.len() >= length;
            response.body = self.read.drain(..length.min(self.read.len())).collect();
        } else if status == 204 || status == 304 || status == 101 {
            response.complete = true;
        } else {
            while self.read_more().await {}
            response.body = std::mem::take(&mut self.read);
            response.complete = true;
        }
        response
    }

    async fn read_chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let Some(line) = self.line().await else { return false };
            let Ok(size) = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16) else {
                return false;
            };
            if size == 0 {
                // Trailers, up to an empty line.
                while self.line().await.is_some_and(|line| !line.is_empty()) {}
                return true;
            }
            while self.read.len() < size + 2 {
                if !self.read_more().await {
                    body.append(&mut self.read);
                    return false;
                }
            }
            body.extend(self.read.drain(..size));
            self.read.drain(..2);
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = find(&self.read, b"\r\n") {
                let line = String::from_utf8_lossy(&self.read[..at]).into_owned();
                self.read.drain(..at + 2);
                return Some(line);
            }
            if !self.read_more().await {
                return None;
            }
        }
    }

    async fn read_more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer).await {
            Ok(count) if count > 0 => {
                self.read.extend_from_slice(&buffer[..count]);
                true
            }
            _ => false,
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
