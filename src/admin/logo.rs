//! `GET connections/{name}/logo`: the logo of a connection, as a PNG that Keybearer encoded itself.
//!
//! Invariants: a browser never requests `logo_url`, and receives none of the bytes that its server sent; one image at a
//! time is decoded, on a thread that may block; a decoder that panics refuses the image.
//! Not here: fetching (`fetch`), decoding (`decode`), scaling (`raster`), the logos in memory (`cache`).

mod cache;
mod decode;
mod fetch;
mod raster;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use rustls::ClientConfig;
use url::Url;

use super::Admin;
use super::auth::BROWSER_CACHE;
use super::problem::{Problem, bound};
use crate::dial::Dialer;
use cache::{Logo, Overloaded};
use decode::ImageError;
use fetch::FetchError;

pub use cache::Logos;

const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Maximum length of a reason in memory; it may quote a certificate.
const REASON_CHARS_MAX: usize = 400;

/// Why there is no logo.
#[derive(Debug, thiserror::Error)]
enum LogoError {
    #[error("the logo could not be fetched: {0}")]
    Fetch(#[from] FetchError),
    #[error("the logo was refused: {0}")]
    Image(#[from] ImageError),
    #[error("the logo was refused: decoding or encoding it failed")]
    Raster,
}

pub async fn get(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Response, Problem> {
    let snapshot = admin.snapshot.load_full();
    let connection = &bound(&snapshot, &name)?.connection;
    let url = connection.logo_url.as_ref().ok_or_else(|| no_logo("the connection has no `logo_url`"))?;
    let network = (snapshot.dialer.clone(), snapshot.plain.http1.clone());
    let load = load(admin.clone(), network, url.clone());
    let logo = admin.logos.get(&admin.tasks, url, load).await.map_err(|Overloaded| {
        let detail = "the logo is still being fetched, or too many others are; retry in a moment";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(RETRY_AFTER)
    })?;
    let png = logo.map_err(|reason| no_logo(&reason))?;
    Ok(([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, BROWSER_CACHE)], png).into_response())
}

fn no_logo(detail: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_logo", detail)
}

/// Fetches the logo and encodes it as PNG.
async fn load(admin: Admin, (dialer, tls): (Dialer, Arc<ClientConfig>), url: Url) -> Logo {
    let png = async {
        let bytes = fetch::fetch(&dialer, tls, &url).await?;
        let _turn = admin.logos.decoder.acquire().await;
        admin.tasks.blocking(move || to_png(&bytes)).await.unwrap_or(Err(LogoError::Raster))
    };
    png.await.map_err(|error| {
        let reason: String = error.to_string().chars().take(REASON_CHARS_MAX).collect();
        // The query may hold a key.
        tracing::info!(host = url.host_str(), path = url.path(), reason, "no logo");
        reason.into()
    })
}

fn to_png(bytes: &[u8]) -> Result<Bytes, LogoError> {
    let png = decode::decode(bytes)?.to_png().map_err(|_| LogoError::Raster)?;
    Ok(png.into())
}
