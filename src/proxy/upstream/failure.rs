//! Why a request got no response, and whether it may be retried.

use std::error::Error;

use rustix::io::Errno;

use super::super::error::{Fault, ProxyError, TlsFault, Unreachable};
use crate::dial::{Denied, DialError};

/// Why a request got no response.
#[derive(Debug)]
pub struct SendError {
    pub error: hyper::Error,
    /// No byte of the request was written.
    pub unsent: bool,
    /// The connection has delivered bytes since the request was sent.
    pub received_bytes: bool,
}

impl SendError {
    /// The connection was lost before any byte of a response arrived.
    pub fn is_lost(&self) -> bool {
        self.is_closed() && !self.received_bytes
    }

    /// The upstream guarantees that it has not processed the request (RFC 9113 §8.7): REFUSED_STREAM, or a GOAWAY whose
    /// last stream ID is lower; h2 reports GOAWAY to no other stream.
    pub fn is_refused(&self) -> bool {
        http2_error(&self.error).is_some_and(|error| {
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            error.is_remote() && (refused || error.is_go_away())
        })
    }

    fn is_closed(&self) -> bool {
        let error = &self.error;
        error.is_incomplete_message() || error.is_closed() || error.is_canceled() || io_error(error).is_some()
    }

    fn is_reset(&self) -> bool {
        http2_error(&self.error).is_some_and(|error| error.is_remote() && error.is_reset())
    }

    pub fn fault(&self) -> Fault {
        let error = &self.error;
        if let Some(fault) = io_error(error).and_then(tls_fault) {
            return fault;
        }
        match () {
            () if self.is_closed() && self.unsent => {
                ProxyError::UpstreamUnreachable(Unreachable::ClosedUnsent).because(describe(error))
            }
            () if self.is_closed() || self.is_reset() => {
                ProxyError::UpstreamUnreachable(Unreachable::Closed).because(describe(error))
            }
            () => ProxyError::UpstreamProtocol.because(describe(error)),
        }
    }
}

pub fn dial_fault(error: DialError) -> Fault {
    let why = match &error {
        DialError::Denied { denied: Denied::Private, .. } => {
            "the address is private; name the host in a route or under hosts, or add its network to egress.allow_private"
        }
        DialError::Denied { denied: Denied::Special, .. } => {
            "the address is link-local, metadata, multicast or reserved; only a route that names the address permits it"
        }
        DialError::Denied { denied: Denied::OwnListener, .. } => "the host is this proxy itself",
        DialError::Resolve { .. } => {
            return ProxyError::UpstreamUnreachable(Unreachable::Name).because(describe(&error));
        }
        DialError::Connect { source, .. } if is_out_of_descriptors(source) => {
            return ProxyError::Overloaded.because(describe(&error));
        }
        DialError::Connect { .. } | DialError::Proxy { .. } | DialError::ProxyRefused { .. } => {
            return ProxyError::UpstreamUnreachable(Unreachable::Connect).because(describe(&error));
        }
    };
    ProxyError::EgressDenied(why).because(error)
}

fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// `None` if it is not a TLS error.
pub fn tls_fault(error: &std::io::Error) -> Option<Fault> {
    let fault = TlsFault::of(error)?;
    Some(ProxyError::UpstreamTls(fault).because(fault.cause(&error.to_string())))
}

/// The upstream supports none of the offered ALPN protocols (RFC 7301 §3.2).
pub fn is_other_protocol(error: &std::io::Error) -> bool {
    let refused = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some_and(|error| *error == refused)
}

fn io_error(error: &hyper::Error) -> Option<&std::io::Error> {
    error.source()?.downcast_ref().or_else(|| http2_error(error)?.get_io())
}

fn http2_error(error: &hyper::Error) -> Option<&h2::Error> {
    error.source()?.downcast_ref()
}

/// Formats an error with its causes, for the log.
fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
