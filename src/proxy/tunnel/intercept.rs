//! TLS inside a tunnel, opened with a certificate for the tunnel's host.
//!
//! Not here: which tunnels (`tunnel`), what the certificate is (`tls::authority`). Holds: the certificate is for the host
//! that CONNECT named, whatever name TLS asks for; a handshake that fails is one line in the log, with its likely cause.

use std::io;

use rustls::AlertDescription;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::model::origin::Host;
use crate::proxy::io::{Stream, Watched};
use crate::proxy::worker::Worker;
use crate::tls::authority::Authority;

const NO_TRUST: &str = "the client does not trust the interception CA: give it the certificate (`keybearer ca export`)";

/// The stream inside; true: the client asked for another name than `host`. `None`: the client was told what failed, as far
/// as TLS has words for it.
pub async fn open(worker: &Worker, authority: &Authority, io: Watched, host: &Host) -> Option<(Watched, bool)> {
    let (shared, within) = (&worker.shared, worker.snapshot().timeouts.client_head);
    let config = match authority.server_config(&shared.tasks, host, shared.clock.now().wall).await {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%host, %error, "a tunnel was closed: no certificate could be made");
            return None;
        }
    };
    let cause = match timeout(within, TlsAcceptor::from(config).accept(io)).await {
        Ok(Ok(stream)) => {
            let asked = stream.get_ref().1.server_name();
            let misnamed = asked.is_some_and(|asked| Host::parse(asked).as_ref() != Ok(host));
            return Some((Watched::new(Stream::Tls(Box::new(stream))), misnamed));
        }
        Ok(Err(error)) => cause(&error),
        Err(_) => "it took longer than timeouts.client_head".to_owned(),
    };
    tracing::warn!(%host, cause, "a tunnel was closed: the TLS handshake failed");
    None
}

/// Clients have several ways to say that they do not trust a certificate.
fn cause(error: &io::Error) -> String {
    use AlertDescription::*;
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(UnknownCA | BadCertificate | CertificateUnknown | AccessDenied)) => {
            NO_TRUST.to_owned()
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            format!("the client went away in the middle of it; perhaps {NO_TRUST}")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_without_trust_is_told_from_others() {
        let told = |error: rustls::Error| cause(&io::Error::new(io::ErrorKind::InvalidData, error));
        for alert in [AlertDescription::UnknownCA, AlertDescription::CertificateUnknown] {
            assert_eq!(told(rustls::Error::AlertReceived(alert)), NO_TRUST);
        }
        assert!(!told(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)).contains(NO_TRUST));
        assert!(cause(&io::ErrorKind::UnexpectedEof.into()).contains(NO_TRUST));
    }
}
