//! Fetches a logo over https from a public address.
//!
//! Invariants: no connection, not even a file's, opens an address here; redirects are dialled under the same policy;
//! no credential, cookie or Referer is sent; size and time are bounded. Behind an egress proxy, which resolves names
//! itself, literal addresses are checked here and names there.
//! Not here: reading the image (`decode`), remembering it (`cache`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::{Position, Url};

use crate::dial::{DialError, Dialer};
use crate::gate::Turn;
use crate::model::origin::{Authority, Host, Origin, Scheme};

/// Timeout of a whole fetch, redirects included.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
const RESPONSE_BYTES_MAX: usize = 256 * 1024;
const REDIRECTS_MAX: usize = 3;
const USER_AGENT: &str = concat!("keybearer/", env!("CARGO_PKG_VERSION"));
const ACCEPT: &str = "image/png, image/webp, image/jpeg, image/gif";

/// Why a logo could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(
        "{0} has an address that is private, reserved or Keybearer's own; a logo is fetched from public addresses, and \
         from those that `hosts` or `egress.allow_private` permits"
    )]
    NotPublic(Host),
    #[error(transparent)]
    Dial(DialError),
    #[error("the TLS handshake with {host} failed: {source}")]
    Tls { host: Host, source: io::Error },
    #[error("{0} sent no complete response in HTTP/1.1")]
    Http(Host),
    #[error("{host} responded with status {status}")]
    Status { host: Host, status: StatusCode },
    #[error("it is larger than {} KiB", RESPONSE_BYTES_MAX / 1024)]
    TooLarge,
    #[error("{0} redirects to a URL that is not https")]
    Redirect(Host),
    #[error("it is behind more than {REDIRECTS_MAX} redirects")]
    Redirects,
    #[error("it did not arrive within {} seconds", FETCH_TIMEOUT.as_secs())]
    Timeout,
    #[error("the URL cannot be requested; write https://HOST/PATH")]
    Url,
}

impl From<DialError> for FetchError {
    fn from(error: DialError) -> FetchError {
        match error {
            DialError::Denied { host, .. } => FetchError::NotPublic(host),
            other => FetchError::Dial(other),
        }
    }
}

/// Fetches the body at `url`. `tls` offers HTTP/1.1 only.
pub async fn fetch(dialer: &Dialer, tls: Arc<ClientConfig>, url: &Url) -> Result<Bytes, FetchError> {
    let fetcher = Fetcher { dialer: dialer.without_connections(), tls };
    let following = async {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            match fetcher.request(&url).await? {
                Fetched::Body(body) => return Ok(body),
                Fetched::Redirect(next) => url = next,
            }
        }
        Err(FetchError::Redirects)
    };
    timeout(FETCH_TIMEOUT, following).await.unwrap_or(Err(FetchError::Timeout))
}

struct Fetcher {
    /// Permits no address that a connection opens.
    dialer: Dialer,
    tls: Arc<ClientConfig>,
}

enum Fetched {
    Body(Bytes),
    Redirect(Url),
}

impl Fetcher {
    /// Sends one request, on a connection of its own.
    async fn request(&self, url: &Url) -> Result<Fetched, FetchError> {
        let origin = origin(url).ok_or(FetchError::Url)?;
        let host = &origin.host;
        let request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
            .header(header::HOST, origin.authority())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, ACCEPT)
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|_| FetchError::Url)?;
        let name = match host {
            Host::Ip(address) => ServerName::from(*address),
            Host::Name(name) => ServerName::try_from(name.to_string()).map_err(|_| FetchError::Url)?,
        };
        let stream = self.dialer.connect(&origin, &Turn::Own).await?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await;
        let stream = stream.map_err(|source| FetchError::Tls { host: host.clone(), source })?;
        let not_http = |_: hyper::Error| FetchError::Http(host.clone());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(not_http)?;
        let exchange = async { read(url, host, sender.send_request(request).await.map_err(not_http)?).await };
        tokio::pin!(exchange, connection);
        tokio::select! {
            biased;
            fetched = &mut exchange => fetched,
            // One poll may both read the rest of the response and end the connection.
            _ = &mut connection => exchange.await,
        }
    }
}

async fn read(url: &Url, host: &Host, response: Response<Incoming>) -> Result<Fetched, FetchError> {
    let status = response.status();
    if status.is_redirection()
        && let Some(target) = redirect_target(url, response.headers())
    {
        return match target.scheme() {
            "https" => Ok(Fetched::Redirect(target)),
            _ => Err(FetchError::Redirect(host.clone())),
        };
    }
    if status != StatusCode::OK {
        return Err(FetchError::Status { host: host.clone(), status });
    }
    match Limited::new(response.into_body(), RESPONSE_BYTES_MAX).collect().await {
        Ok(body) => Ok(Fetched::Body(body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLarge),
        Err(_) => Err(FetchError::Http(host.clone())),
    }
}

fn redirect_target(url: &Url, headers: &HeaderMap) -> Option<Url> {
    url.join(headers.get(header::LOCATION)?.to_str().ok()?).ok()
}

/// The origin of the URL, whose user name and password are ignored.
fn origin(url: &Url) -> Option<Origin> {
    let authority = Authority { host: Host::parse(url.host_str()?).ok()?, port: url.port() };
    (url.scheme() == "https").then(|| Origin::new(Scheme::Https, authority))
}
