//! An HTTP/2 caller that reports how each response ended.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::sidecar::Sidecar;

const TIMEOUT: Duration = Duration::from_secs(20);

/// One HTTP/2 response as the caller receives it.
#[derive(Debug)]
pub struct Read {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// The reason of a stream reset; `None`: the response is complete.
    pub reset: Option<Reason>,
}

impl Read {
    pub fn code(&self) -> &str {
        self.headers.get("keybearer-error").map_or("", |code| code.to_str().expect("ASCII"))
    }
}

/// An HTTP/2 connection to the proxy.
pub struct Http2(pub h2::client::SendRequest<Bytes>);

impl Http2 {
    pub async fn open(sidecar: &Sidecar) -> Http2 {
        Http2::on(TcpStream::connect(sidecar.proxy()).await.expect("a connection")).await
    }

    /// Like `open`, on an existing stream.
    pub async fn on<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T) -> Http2 {
        let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        Http2(sender)
    }

    /// Sends a request without a body: END_STREAM is on its head.
    pub async fn send(&mut self, request: Request<()>) -> Read {
        self.send_with(request, None).await
    }

    /// Sends a request; END_STREAM is on its body, if it has one.
    pub async fn send_with(&mut self, request: Request<()>, body: Option<&'static [u8]>) -> Read {
        timeout(TIMEOUT, async {
            let mut sender = self.0.clone().ready().await.expect("a stream");
            let (response, mut upload) = sender.send_request(request, body.is_none()).expect("sent");
            if let Some(body) = body {
                upload.send_data(Bytes::from_static(body), true).expect("sent");
            }
            let (head, mut incoming) = response.await.expect("a response").into_parts();
            let mut read = Read { status: head.status.as_u16(), headers: head.headers, body: Vec::new(), reset: None };
            while let Some(part) = incoming.data().await {
                match part {
                    Ok(part) => {
                        let _ = incoming.flow_control().release_capacity(part.len());
                        read.body.extend_from_slice(&part);
                    }
                    Err(error) => {
                        read.reset = Some(error.reason().expect("a reset"));
                        break;
                    }
                }
            }
            read
        })
        .await
        .expect("a response in time")
    }
}
