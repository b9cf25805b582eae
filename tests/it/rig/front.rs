//! A TLS terminator in front of a plain server, with certificates from `openssl req -x509`: self-signed, with CA:TRUE.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A certificate and its key, in PEM.
pub struct SelfSigned {
    pub certificate: String,
    pub key: String,
}

impl SelfSigned {
    /// `names` in openssl's notation: `DNS:own.test,IP:127.0.0.1`.
    pub fn for_names(names: &str) -> SelfSigned {
        let dir = tempfile::tempdir().expect("a directory");
        let (certificate, key) = (dir.path().join("own.pem"), dir.path().join("own.key"));
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "30",
        ]);
        openssl.args(["-subj", "/CN=own", "-addext", &format!("subjectAltName={names}"), "-keyout"]).arg(&key);
        let made = openssl.arg("-out").arg(&certificate).output().expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let read = |path| std::fs::read_to_string(path).expect("a file");
        SelfSigned { certificate: read(certificate), key: read(key) }
    }
}

/// A TLS terminator, stopped on drop.
pub struct Front {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Front {
    /// Presents `own` and forwards the decrypted bytes to `behind`.
    pub async fn start(own: &SelfSigned, behind: SocketAddr) -> Front {
        Front::start_with_alpn(&[], own, behind).await
    }

    /// Like `start`, and negotiates HTTP/2.
    pub async fn start_http2(own: &SelfSigned, behind: SocketAddr) -> Front {
        Front::start_with_alpn(&[b"h2"], own, behind).await
    }

    async fn start_with_alpn(protocols: &[&[u8]], own: &SelfSigned, behind: SocketAddr) -> Front {
        let chain = CertificateDer::pem_slice_iter(own.certificate.as_bytes()).map(|item| item.expect("PEM")).collect();
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
        let mut config = config.with_no_client_auth().with_single_cert(chain, key).expect("a pair");
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound listener");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut near) = acceptor.accept(stream).await else { return };
                    let Ok(mut far) = TcpStream::connect(behind).await else { return };
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Front { address, task }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}
