//! A caller's connection as a stream: the socket, what is watched on it, what is written to it beside hyper.
//!
//! Not here: HTTP (`downstream`).

mod frames;
mod gone;
mod head_budget;
mod interim;
mod presence;
mod socket;
mod stream;
mod watch;
mod watched;

pub use gone::caller_gone;
pub use head_budget::HeadBudget;
pub use interim::Heads;
pub use presence::Presence;
pub use socket::Socket;
pub use stream::Stream;
pub use watch::{Activity, Overdue, Serving, Upload, Watch};
pub use watched::Watched;
