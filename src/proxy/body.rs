//! Request and response bodies: streamed, with an idle timeout; small request bodies are buffered for a replay.
//!
//! Invariants: at most `limits.replay_body` bytes of a request body are buffered; an exchange is idle only while
//! neither body moves; a truncated body is never forwarded as complete.

mod inflate;
mod progress;
mod received;
mod request;
mod response;
mod upstream;

pub use progress::{Progress, SilentPeer};
pub use received::Received;
pub use request::{RequestBody, RequestSource};
pub use response::{EndObserver, Ending, ResponseBody};
pub use upstream::{UpstreamBody, is_rejection};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
