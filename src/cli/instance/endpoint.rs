//! The listener of a running instance: its URL, how to verify its certificate, and one request to it.
//!
//! Invariants: no redirect is followed and no proxy is used; a response has a size limit, a request a timeout.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, header};
use reqwest::Request;
use url::Url;

use super::CallError;
use crate::config::ListenerLocation;
use crate::model::Roots;
use crate::tls::{self, Trust};

/// Size limit of a response; the largest is an export of every definition.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;

pub struct Response {
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
}

pub struct Endpoint {
    base: Url,
    /// The name in `base`, for the certificate alone, and the address to dial for it.
    dial: Option<(String, SocketAddr)>,
    trust: Roots,
}

impl Endpoint {
    /// The listener at the URL that a person gave.
    pub fn given(text: &str, trust: Roots) -> Result<Endpoint, CallError> {
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let base = url.filter(|url| url.username().is_empty() && url.password().is_none());
        let base = base.ok_or_else(|| {
            CallError::Local("--admin is not the URL of a listener; use one such as http://127.0.0.1:8081".to_owned())
        })?;
        Ok(Endpoint { base, dial: None, trust })
    }

    /// The listener of a configuration.
    pub fn configured(found: ListenerLocation, trust: Roots) -> Result<Endpoint, CallError> {
        let ListenerLocation { address, secure, server_name } = found;
        if address.port() == 0 {
            let text = "the configuration leaves the port to the system; set --admin to the URL in the log";
            return Err(CallError::Local(text.to_owned()));
        }
        let scheme = if secure { "https" } else { "http" };
        let authority =
            server_name.as_ref().map_or_else(|| address.to_string(), |name| format!("{name}:{}", address.port()));
        let base = Url::parse(&format!("{scheme}://{authority}"));
        let base = base.map_err(|error| CallError::Local(format!("{authority}: {error}")))?;
        Ok(Endpoint { base, dial: server_name.map(|name| (name, address)), trust })
    }

    pub fn base(&self) -> &Url {
        &self.base
    }

    pub fn url(&self, path: &[&str]) -> Result<Url, CallError> {
        let mut url = self.base.clone();
        let no_base = || CallError::Local("--admin is not the URL of a listener".to_owned());
        url.path_segments_mut().map_err(|()| no_base())?.pop_if_empty().extend(path);
        Ok(url)
    }

    /// Sends a request and reads the complete response.
    pub fn send(&self, mut request: Request, limit: Duration) -> Result<Response, CallError> {
        let failed = |error: &dyn std::fmt::Display| CallError::Local(format!("cannot send the request: {error}"));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
        let no_redirects = reqwest::redirect::Policy::none();
        let mut builder = reqwest::Client::builder().no_proxy().redirect(no_redirects).timeout(limit);
        if self.base.scheme() == "https" {
            let tls = Trust::new(&self.trust).client_config(None, None);
            builder = builder.tls_backend_preconfigured(Arc::unwrap_or_clone(tls));
        }
        if let Some((name, address)) = &self.dial {
            builder = builder.resolve(name, *address);
            // The instance may not serve the name in its certificate, but it serves its own address.
            let host = HeaderValue::try_from(address.to_string()).map_err(|error| failed(&error))?;
            request.headers_mut().insert(header::HOST, host);
        }
        let client = builder.build().map_err(|error| failed(&error))?;
        let response = runtime.block_on(async {
            let mut response = client.execute(request).await?;
            let content_type = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::to_str);
            let content_type = content_type.and_then(Result::ok).unwrap_or_default().to_owned();
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                body.extend_from_slice(&chunk);
                if body.len() > RESPONSE_BYTES_MAX {
                    break;
                }
            }
            Ok::<_, reqwest::Error>(Response { status: response.status().as_u16(), content_type, body })
        });
        let response = response.map_err(|error| self.no_response(&error))?;
        if response.body.len() > RESPONSE_BYTES_MAX {
            let mib = RESPONSE_BYTES_MAX / 1024 / 1024;
            return Err(CallError::Local(format!("the response of {} is larger than {mib} MiB", self.base)));
        }
        Ok(response)
    }

    fn no_response(&self, error: &reqwest::Error) -> CallError {
        let base = &self.base;
        let cause = tls::cause(error).filter(|cause| matches!(cause, rustls::Error::InvalidCertificate(_)));
        if let Some(tls) = cause {
            let remedy = "add the CA of its certificate to `trust` in the configuration, or correct the URL";
            return CallError::Local(format!("the certificate at {base} was not accepted ({tls}); {remedy}"));
        }
        let why = if error.is_timeout() { " in time" } else { "" };
        let remedy = "start one with `keybearer run`, or set its address with --admin or KEYBEARER_ADMIN_URL";
        CallError::Local(format!("no instance responds{why} at {base}; {remedy}"))
    }
}
