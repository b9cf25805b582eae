//! Tokens: how they are asked for, kept, refreshed, refused, injected and revoked.

mod credentials;
mod endpoint;
mod fairness;
mod former;
mod grants;
mod injection_points;
mod lifecycle;
mod profiles;
mod refresh;
mod shapes;
mod signs;
mod verdicts;
