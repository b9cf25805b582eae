//! A downstream connection as a byte stream: its socket, the activity tracked on it, and what is written to it besides
//! hyper.
//!
//! Not here: HTTP (`downstream`).

mod disconnect;
mod frames;
mod head_budget;
mod interim;
mod presence;
mod socket;
mod stream;
mod watch;
mod watched;

pub use disconnect::caller_disconnected;
pub use head_budget::HeadBudget;
pub use interim::InterimHeads;
pub use presence::Presence;
pub use socket::Socket;
pub use stream::Stream;
pub use watch::{Activity, Serving, TimeoutKind, Upload, Watch};
pub use watched::Watched;
