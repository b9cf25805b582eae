//! One request of a person's browser.

use std::net::SocketAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, Method, Uri};
use url::form_urlencoded;

use super::pages::Page;
use crate::admin::ConnAddrs;

pub struct Visit {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub addrs: ConnAddrs,
}

impl Visit {
    pub fn of(request: &Request) -> Visit {
        let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
        Visit { method, uri, headers, addrs: ConnAddrs::of(request) }
    }

    pub fn from(&self) -> SocketAddr {
        self.addrs.peer
    }

    /// The value of a query parameter; `Err`: the query repeats it.
    pub fn query(&self, name: &str) -> Result<Option<String>, Page> {
        let query = self.uri.query().unwrap_or_default();
        let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(|(_, value)| value.into_owned())),
            _ => Err(Page::refused("This address is invalid")
                .text("It has a parameter twice, so it was rejected.")
                .note("Nothing was connected. Start again with a new link.")),
        }
    }

    /// The relative URL of this page.
    pub fn here(&self) -> String {
        let name = self.uri.path().rsplit('/').next().unwrap_or_default();
        let query = self.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        // Relative, since a reverse proxy may serve the page under another path.
        format!("./{name}{query}")
    }
}
