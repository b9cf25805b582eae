//! TLS interception: terminates the TLS inside a tunnel with a certificate for the tunnel's host.
//!
//! Invariants: the certificate is for the CONNECT host, whatever the SNI; a failed handshake is logged once, with its
//! likely cause.
//! Not here: which tunnels are intercepted (`tunnel`), issuing certificates (`tls::authority`).

use std::io;

use rustls::AlertDescription;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::model::origin::Host;
use crate::proxy::io::{Stream, Watched};
use crate::proxy::worker::Worker;
use crate::tls::authority::Authority;

const NO_TRUST: &str =
    "the caller does not trust the interception CA; install the certificate there (`keybearer ca export`)";

/// Accepts TLS for `host`. Returns the stream inside, and whether the SNI differs from `host`. `None`: the handshake
/// failed and was logged.
pub async fn accept(worker: &Worker, authority: &Authority, io: Watched, host: &Host) -> Option<(Watched, bool)> {
    let (state, within) = (&worker.state, worker.snapshot().timeouts.client_head);
    let config = match authority.server_config(&state.tasks, host, state.clock.now().wall).await {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%host, %error, "tunnel closed: interception certificate could not be issued");
            return None;
        }
    };
    let cause = match timeout(within, TlsAcceptor::from(config).accept(io)).await {
        Ok(Ok(stream)) => {
            let server_name = stream.get_ref().1.server_name();
            let sni_mismatch = server_name.is_some_and(|name| Host::parse(name).as_ref() != Ok(host));
            return Some((Watched::new(Stream::Tls(Box::new(stream))), sni_mismatch));
        }
        Ok(Err(error)) => cause(&error),
        Err(_) => "timeouts.client_head exceeded".to_owned(),
    };
    tracing::warn!(%host, cause, "tunnel closed: TLS handshake failed");
    None
}

/// The likely cause. TLS stacks use several alerts for an untrusted certificate.
fn cause(error: &io::Error) -> String {
    use AlertDescription::*;
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(UnknownCA | BadCertificate | CertificateUnknown | AccessDenied)) => {
            NO_TRUST.to_owned()
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            format!("the caller closed the connection during the handshake; perhaps {NO_TRUST}")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_that_does_not_trust_the_ca_is_recognized() {
        let cause_of = |error: rustls::Error| cause(&io::Error::new(io::ErrorKind::InvalidData, error));
        for alert in [AlertDescription::UnknownCA, AlertDescription::CertificateUnknown] {
            assert_eq!(cause_of(rustls::Error::AlertReceived(alert)), NO_TRUST);
        }
        assert!(!cause_of(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)).contains(NO_TRUST));
        assert!(cause(&io::ErrorKind::UnexpectedEof.into()).contains(NO_TRUST));
    }
}
