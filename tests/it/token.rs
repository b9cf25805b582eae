//! Tokens: acquired, stored, refreshed, refused, injected and revoked.

mod credentials;
mod endpoint;
mod fairness;
mod superseded;
mod grants;
mod injection_points;
mod lifecycle;
mod profiles;
mod refresh;
mod token_formats;
mod content_codings;
mod verdicts;
