//! The upstream side: connections, TLS, and what becomes of responses.

mod connections;
mod responses;
mod tls;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The head of the next request, read to its end; `None` if the connection ends before.
async fn next_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.ok()?;
        head.push(byte);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}
