//! Upstream connections, TLS with upstreams, and forwarding of their responses.

mod connections;
mod responses;
mod tls;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Reads the head of the next message; `None` if the connection ends before it is complete.
async fn next_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.ok()?;
        head.push(byte);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}
