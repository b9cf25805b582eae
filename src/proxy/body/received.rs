//! A received body, complete only if its sender ended it.
//!
//! hyper treats RST_STREAM with NO_ERROR as the end of an HTTP/2 body, but only END_STREAM ends one (RFC 9113 §8.1).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Version;
use hyper::body::{Body, Frame, Incoming, SizeHint};

pub struct Received {
    incoming: Incoming,
    is_http2: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Hyper(hyper::Error),
    #[error("the stream was reset before its end")]
    CutOff,
}

impl Received {
    /// `version` is that of the message.
    pub fn new(incoming: Incoming, version: Version) -> Received {
        Received { incoming, is_http2: version == Version::HTTP_2 }
    }

    pub fn is_http2(&self) -> bool {
        self.is_http2
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(Pin::new(&mut this.incoming).poll_frame(cx)) {
            None if this.is_http2 && !this.incoming.is_end_stream() => Some(Err(ReceiveError::CutOff)),
            frame => frame.map(|frame| frame.map_err(ReceiveError::Hyper)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
