//! An HTTP client inside a CONNECT tunnel.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::interception::interception_ca;
use super::raw::Conn;

/// An HTTP connection inside an open tunnel.
pub enum TunnelClient {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl TunnelClient {
    /// Opens a tunnel to api.test with these CONNECT header lines. `secure`: TLS inside, verified with the interception
    /// CA.
    pub async fn open(proxy: SocketAddr, lines: &str, secure: bool, version: Version) -> TunnelClient {
        let authority = if secure { "api.test:443" } else { "api.test:80" };
        let mut conn = Conn::open(proxy).await;
        conn.write(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{lines}\r\n").as_bytes()).await;
        assert!(read_connect_head(&mut conn).await.starts_with("HTTP/1.1 200"), "{lines}");
        if !secure {
            return TunnelClient::on(conn.stream, version).await;
        }
        let protocols: &[&[u8]] = if version == Version::HTTP_2 { &[b"h2"] } else { &[] };
        let connector = connector(&interception_ca().0, protocols);
        let name = ServerName::try_from("api.test").expect("a name");
        let stream = connector.connect(name, conn.stream).await.expect("a handshake");
        TunnelClient::on(stream, version).await
    }

    async fn on<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T, version: Version) -> TunnelClient {
        let io = TokioIo::new(stream);
        match version {
            Version::HTTP_2 => {
                let (sender, driver) = http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
                tokio::spawn(driver);
                TunnelClient::Http2(sender)
            }
            _ => {
                let (sender, driver) = http1::handshake(io).await.expect("HTTP/1.1");
                tokio::spawn(driver);
                TunnelClient::Http1(sender)
            }
        }
    }

    /// Sends a GET and returns the response with its body as a stream.
    pub async fn get(&mut self, secure: bool, path: &str) -> Response<Incoming> {
        self.get_with(secure, path, &[]).await
    }

    /// Like `get`, with further header fields.
    pub async fn get_with(&mut self, secure: bool, path: &str, fields: &[(&str, &str)]) -> Response<Incoming> {
        let scheme = if secure { "https" } else { "http" };
        let request = Request::get(format!("{scheme}://api.test{path}")).header("host", "api.test");
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(Empty::new()).expect("a request");
        let response = match self {
            TunnelClient::Http1(sender) => sender.send_request(request).await,
            TunnelClient::Http2(sender) => sender.send_request(request).await,
        };
        response.expect("a response")
    }

    /// Sends a GET and returns the status and text of the response.
    pub async fn get_text(&mut self, secure: bool, path: &str) -> (u16, String) {
        let (head, body) = self.get(secure, path).await.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        (head.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    }

    /// Waits until the proxy has ended the connection.
    pub async fn ends(&mut self) {
        let end = async {
            while !match self {
                TunnelClient::Http1(sender) => sender.is_closed(),
                TunnelClient::Http2(sender) => sender.is_closed(),
            } {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), end).await.expect("the tunnel ends");
    }
}

/// A TLS client that trusts only the CA in this file and offers these ALPN protocols.
pub fn connector(ca: &Path, protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::pem_file_iter(ca).expect("PEM");
    roots.add_parsable_certificates(ca.map(Result::unwrap));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Reads the head of the response to CONNECT, and no byte beyond.
pub async fn read_connect_head(conn: &mut Conn) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read =
            tokio::time::timeout(Duration::from_secs(10), conn.stream.read_u8()).await.expect("a response in time");
        let Ok(byte) = read else { break };
        head.push(byte);
    }
    String::from_utf8_lossy(&head).into_owned()
}
