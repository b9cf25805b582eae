//! Reads the certificate that a server presents, to name its issuer in a message.
//!
//! Invariant: the handshake always fails, at the certificate; nothing is ever sent over the connection.

use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::sync::lock;

/// The issuer's distinguished name in the certificate that the server presents; `None` if there is no readable one.
pub async fn presented_issuer(conn: impl AsyncRead + AsyncWrite + Unpin, host: &str) -> Option<String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let recorder = Arc::new(Recorder { provider: provider.clone(), issuer: Mutex::default() });
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let config = builder.dangerous().with_custom_certificate_verifier(recorder.clone()).with_no_client_auth();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()?;
    // The recorder refuses every certificate.
    let _ = TlsConnector::from(Arc::new(config)).connect(name, conn).await;
    lock(&recorder.issuer).take()
}

/// Records the issuer of a certificate and refuses it.
#[derive(Debug)]
struct Recorder {
    provider: Arc<CryptoProvider>,
    issuer: Mutex<Option<String>>,
}

fn refuse<T>() -> Result<T, Error> {
    Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Ok((_, certificate)) = x509_parser::parse_x509_certificate(end_entity) {
            *lock(&self.issuer) = Some(certificate.issuer().to_string());
        }
        refuse()
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse()
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse()
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
