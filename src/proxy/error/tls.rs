//! TLS failures with an upstream, in the classes of RFC 9209.

use std::io;

/// Alert names by number (IANA TLS Alerts registry).
const ALERTS: [(u8, &str); 37] = [
    (0, "close_notify"),
    (10, "unexpected_message"),
    (20, "bad_record_mac"),
    (21, "decryption_failed"),
    (22, "record_overflow"),
    (30, "decompression_failure"),
    (40, "handshake_failure"),
    (41, "no_certificate"),
    (42, "bad_certificate"),
    (43, "unsupported_certificate"),
    (44, "certificate_revoked"),
    (45, "certificate_expired"),
    (46, "certificate_unknown"),
    (47, "illegal_parameter"),
    (48, "unknown_ca"),
    (49, "access_denied"),
    (50, "decode_error"),
    (51, "decrypt_error"),
    (52, "too_many_cids_requested"),
    (60, "export_restriction"),
    (70, "protocol_version"),
    (71, "insufficient_security"),
    (80, "internal_error"),
    (86, "inappropriate_fallback"),
    (90, "user_canceled"),
    (100, "no_renegotiation"),
    (109, "missing_extension"),
    (110, "unsupported_extension"),
    (111, "certificate_unobtainable"),
    (112, "unrecognized_name"),
    (113, "bad_certificate_status_response"),
    (114, "bad_certificate_hash_value"),
    (115, "unknown_psk_identity"),
    (116, "certificate_required"),
    (117, "general_error"),
    (120, "no_application_protocol"),
    (121, "ech_required"),
];

/// Why TLS with an upstream failed (RFC 9209 §2.3.10, §2.3.14, §2.3.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFault {
    /// We do not accept the upstream's certificate.
    Certificate,
    /// The upstream sent an alert with this number.
    Alert(u8),
    /// The upstream does not speak TLS, or no version or cipher that we accept.
    Protocol,
}

impl TlsFault {
    /// `None`: not a TLS error.
    pub fn of(error: &io::Error) -> Option<TlsFault> {
        Some(match error.get_ref()?.downcast_ref::<rustls::Error>()? {
            rustls::Error::AlertReceived(alert) => TlsFault::Alert((*alert).into()),
            rustls::Error::InvalidCertificate(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::UnsupportedNameType => TlsFault::Certificate,
            _ => TlsFault::Protocol,
        })
    }

    pub fn proxy_status(self) -> &'static str {
        match self {
            TlsFault::Certificate => "tls_certificate_error",
            TlsFault::Alert(_) => "tls_alert_received",
            TlsFault::Protocol => "tls_protocol_error",
        }
    }

    /// Parameters of the error in Proxy-Status, each preceded by a semicolon.
    pub fn proxy_status_parameters(self) -> String {
        let TlsFault::Alert(id) = self else { return String::new() };
        let name = alert_name(id).map(|name| format!("; alert-message=\"{name}\"")).unwrap_or_default();
        format!("; alert-id={id}{name}")
    }

    pub fn detail(self) -> String {
        let id = match self {
            TlsFault::Certificate => {
                let remedy = "add its CA, or the certificate itself, to `trust` or `upstream_tls.trust`";
                return format!("the upstream's TLS certificate is not valid for this host; {remedy}");
            }
            TlsFault::Protocol => {
                return "TLS with the upstream failed; correct the scheme or port, or enable TLS 1.2 or 1.3 on the upstream"
                    .to_owned();
            }
            TlsFault::Alert(id) => id,
        };
        let remedy = match alert_name(id) {
            Some("unrecognized_name") => {
                "it does not know the server name; set the name that it expects as upstream_tls.server_name"
            }
            Some("protocol_version" | "insufficient_security") => {
                "enable TLS 1.2 or 1.3 with current ciphers on the upstream"
            }
            Some("certificate_expired" | "certificate_revoked" | "unknown_ca") => {
                "it does not accept the mutual_tls certificate; replace it, or make the upstream trust its CA"
            }
            _ => {
                "it may require a client certificate (mutual_tls) or another name (upstream_tls.server_name); see its log"
            }
        };
        format!("the upstream aborted TLS with the alert {}; {remedy}", describe(id))
    }

    /// The cause for the log, with the TLS library's own message.
    pub fn cause(self, error: &str) -> String {
        match self {
            TlsFault::Alert(id) => format!("the upstream sent the TLS alert {} ({error})", describe(id)),
            TlsFault::Certificate | TlsFault::Protocol => error.to_owned(),
        }
    }
}

fn alert_name(id: u8) -> Option<&'static str> {
    ALERTS.iter().find(|(number, _)| *number == id).map(|(_, name)| *name)
}

/// Name and number; only the number if the alert is not registered.
fn describe(id: u8) -> String {
    alert_name(id).map_or_else(|| id.to_string(), |name| format!("{name} ({id})"))
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError, PeerIncompatible};

    use super::*;

    #[test]
    fn tls_errors_are_classified() {
        #[track_caller]
        fn check(error: rustls::Error, expected: TlsFault, status: &str) {
            let fault = TlsFault::of(&io::Error::new(io::ErrorKind::InvalidData, error));
            assert_eq!(fault, Some(expected));
            assert_eq!(format!("{}{}", expected.proxy_status(), expected.proxy_status_parameters()), status);
        }
        let alert = |alert| rustls::Error::AlertReceived(alert);
        check(
            alert(AlertDescription::HandshakeFailure),
            TlsFault::Alert(40),
            "tls_alert_received; alert-id=40; alert-message=\"handshake_failure\"",
        );
        check(
            alert(AlertDescription::UnrecognisedName),
            TlsFault::Alert(112),
            "tls_alert_received; alert-id=112; alert-message=\"unrecognized_name\"",
        );
        check(alert(AlertDescription::Unknown(200)), TlsFault::Alert(200), "tls_alert_received; alert-id=200");
        let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
        check(expired, TlsFault::Certificate, "tls_certificate_error");
        let incompatible = rustls::Error::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig);
        check(incompatible, TlsFault::Protocol, "tls_protocol_error");
        assert_eq!(TlsFault::of(&io::ErrorKind::ConnectionReset.into()), None);
    }

    #[test]
    fn a_detail_names_the_alert_and_the_remedy() {
        let detail = TlsFault::Alert(116).detail();
        assert!(detail.contains("certificate_required (116)") && detail.contains("mutual_tls"), "{detail}");
        assert!(TlsFault::Alert(112).detail().contains("upstream_tls.server_name"));
        assert!(TlsFault::Alert(200).detail().contains("the alert 200"));
    }
}
