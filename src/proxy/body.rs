//! Bodies on their way through: streamed, watched for silence, and kept for a replay while small.
//!
//! Invariant: at most `limits.replay_body` bytes of a request body are kept; an exchange is silent when neither body moves; a
//! body that was cut off is never passed on as complete.

mod inflate;
mod progress;
mod received;
mod request;
mod response;
mod upstream;

pub use progress::{Progress, Silent};
pub use received::Received;
pub use request::{RequestBody, RequestSource};
pub use response::{Companion, Ending, ResponseBody};
pub use upstream::{UpstreamBody, is_rejection};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
