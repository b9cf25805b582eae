//! A scripted raw HTTP/1.1 server that records the requests it receives.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use url::form_urlencoded;

pub enum Reply {
    Text(String),
    /// The head, then a byte every 100 ms.
    Trickle,
    /// An endless chunked body.
    Endless,
    Reset,
}

pub fn reply(status: &str, body: &str) -> Reply {
    Reply::Text(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()))
}

pub struct Server {
    pub port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// One connection for each reply, in order.
    pub async fn start(replies: Vec<Reply>, tls: Option<tokio_rustls::TlsAcceptor>) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let serve = async move {
            for reply in replies {
                let (tcp, _) = listener.accept().await.unwrap();
                if matches!(reply, Reply::Reset) {
                    tcp.set_zero_linger().unwrap();
                }
                match &tls {
                    None => serve(tcp, reply, &seen).await,
                    Some(tls) => match tls.accept(tcp).await {
                        Ok(io) => serve(io, reply, &seen).await,
                        Err(_) => continue,
                    },
                }
            }
        };
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(serve);
        Server { port, requests }
    }

    pub fn request(&self, index: usize) -> Request {
        Request::parse(&self.requests.lock().unwrap()[index])
    }

    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

async fn serve(mut io: impl AsyncRead + AsyncWrite + Unpin, reply: Reply, seen: &Mutex<Vec<String>>) {
    let mut bytes = Vec::new();
    let whole = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        (body.len() >= length.unwrap_or(0)).then(|| text.clone())
    };
    let request = loop {
        if let Some(request) = whole(&bytes) {
            break request;
        }
        if io.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    seen.lock().unwrap().push(request);
    match reply {
        Reply::Text(text) => {
            let _ = io.write_all(text.as_bytes()).await;
            let _ = io.shutdown().await;
        }
        Reply::Trickle => {
            let _ = io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
            while io.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Reply::Endless => {
            let _ = io.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(65536));
            while io.write_all(chunk.as_bytes()).await.is_ok() {}
        }
        Reply::Reset => {}
    }
}

pub struct Request {
    pub line: String,
    pub headers: BTreeMap<String, String>,
    pub fields: Vec<(String, String)>,
}

impl Request {
    fn parse(text: &str) -> Request {
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let (line, rest) = head.split_once("\r\n").unwrap();
        let header = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_lowercase(), v.to_owned())).unwrap();
        let headers: BTreeMap<_, _> = rest.split("\r\n").map(header).collect();
        assert_eq!(headers.len(), rest.split("\r\n").count(), "no header twice");
        let fields = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
        Request { line: line.to_owned(), headers, fields }
    }

    pub fn fields(&self) -> Vec<(&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}
