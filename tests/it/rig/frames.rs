//! An HTTP/2 upstream that responds with given frames (RFC 9113 §4.1), including ones that no library sends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::peers::Peers;
use super::scripted::Reply;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
/// Flag of SETTINGS and PING.
const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PREFACE_BYTES: usize = 24;
const FRAME_BYTES_MAX: usize = 16_384;

/// `:status: 200`, indexed (RFC 7541, appendix A).
pub const STATUS_200: &[u8] = &[0x88];

pub const NO_ERROR: u32 = 0;
pub const CANCEL: u32 = 8;

pub struct FrameServer {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl FrameServer {
    /// Serves TLS as `api.test`. When a request's head arrives, `reply` gets its stream and the number of requests
    /// before.
    pub async fn start<F>(reply: F) -> FrameServer
    where
        F: Fn(u32, usize) -> Reply + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound listener");
        let requests = Arc::<AtomicUsize>::default();
        let (count, reply, acceptor) = (requests.clone(), Arc::new(reply), acceptor());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, acceptor.clone(), count.clone(), reply.clone()));
            }
        });
        FrameServer { address, requests, task }
    }

    pub fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for FrameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn acceptor() -> TlsAcceptor {
    let (chain, key) = Peers::certs().leaf("server");
    let chain = CertificateDer::pem_file_iter(chain).expect("a chain").map(|cert| cert.expect("a certificate"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let config = builder.expect("versions").with_no_client_auth().with_single_cert(chain.collect(), key);
    let mut config = config.expect("a certificate and its key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// Serves one connection until it ends.
async fn serve<F>(stream: TcpStream, acceptor: TlsAcceptor, count: Arc<AtomicUsize>, reply: Arc<F>) -> Option<()>
where
    F: Fn(u32, usize) -> Reply,
{
    let mut stream = acceptor.accept(stream).await.ok()?;
    stream.read_exact(&mut [0; PREFACE_BYTES]).await.ok()?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])).await.ok()?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.ok()?;
        let frames = match (head[3], head[4]) {
            (SETTINGS, flags) if flags & ACK == 0 => frame(SETTINGS, ACK, 0, &[]),
            (PING, flags) if flags & ACK == 0 => frame(PING, ACK, 0, &payload),
            (HEADERS, _) => match reply(number, count.fetch_add(1, Ordering::SeqCst)) {
                Reply::Bytes(frames) => frames,
                Reply::BytesThenClose(frames) => {
                    stream.write_all(&frames).await.ok()?;
                    return stream.shutdown().await.ok();
                }
                _ => return None,
            },
            _ => continue,
        };
        stream.write_all(&frames).await.ok()?;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block, in as many frames as it needs.
pub fn head(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = block.chunks(FRAME_BYTES_MAX).collect();
    let last = parts.pop().unwrap_or_default();
    if parts.is_empty() {
        return frame(HEADERS, flags | END_HEADERS, stream, last);
    }
    let mut frames = frame(HEADERS, flags, stream, parts[0]);
    for part in &parts[1..] {
        frames.extend(frame(CONTINUATION, 0, stream, part));
    }
    frames.extend(frame(CONTINUATION, END_HEADERS, stream, last));
    frames
}

pub fn data(stream: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, stream, bytes)
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// GOAWAY with `stream` as the last processed stream.
pub fn goaway(stream: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[stream.to_be_bytes(), code.to_be_bytes()].concat())
}

/// A literal field without indexing (RFC 7541 §6.2.2).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0], &length(name.len())[..], name.as_bytes(), &length(value.len()), value.as_bytes()].concat()
}

/// An integer with a 7-bit prefix (RFC 7541 §5.1).
fn length(bytes: usize) -> Vec<u8> {
    if bytes < 127 {
        return vec![bytes as u8];
    }
    let (mut coded, mut rest) = (vec![127], bytes - 127);
    while rest >= 128 {
        coded.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    coded.push(rest as u8);
    coded
}
