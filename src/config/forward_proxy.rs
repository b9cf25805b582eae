//! Egress proxies: `egress.proxy`, and `proxy` of an authorization server.

use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::reading::published::Destinations;
use super::reading::{Fault, Field, Keys, NodeRef, Sink, SourceKind, endpoint, pem, secret, shape};
use crate::model::connection::ForwardProxy;
use crate::model::origin::Host;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "forward_proxy", deny_unknown_fields)]
pub struct ForwardProxyFile {
    /// URL of the proxy: http or https, host and port.
    #[schemars(required, extend("examples" = ["http://proxy.acme.test:3128"]))]
    pub url: Field<shape::Url>,
    /// User name for the proxy.
    #[schemars(extend("examples" = ["keybearer"]))]
    pub username: Field<shape::Text>,
    /// Password for the proxy.
    #[schemars(extend("examples" = [{"file": "/run/secrets/proxy"}]))]
    pub password: Field<shape::Secret>,
    /// PEM files of the CAs that sign an https proxy's certificate, or of that certificate itself.
    #[schemars(extend("examples" = [["corp.pem"]]))]
    pub trust: Field<shape::NonemptyList<shape::FilePath>>,
}

impl Keys for ForwardProxyFile {}

/// Reads a URL, or a map with one.
pub fn forward_proxy(node: &NodeRef<'_>, sink: &mut Sink) -> Option<ForwardProxy> {
    let may_be_private = node.source.kind == SourceKind::File;
    if !node.is_map() {
        let url = node.parse_url(sink, endpoint::proxy)?;
        return Some(ForwardProxy { url, credentials: None, trust: None, may_be_private });
    }
    let section = node.section::<ForwardProxyFile>(sink)?;
    let keys = &section.keys;
    let url = section.require(keys.url, "url", "write the proxy's URL, such as http://proxy:3128", sink);
    let url = url.and_then(|node| node.parse_url(sink, endpoint::proxy));
    let trust = section.get(keys.trust).and_then(|node| pem::replacement_roots(&node, sink));
    let credentials = match (section.get(keys.username), section.get(keys.password)) {
        (None, None) => None,
        (Some(username), Some(password)) => {
            let username = username.parse(sink, |text| match text.contains(':') {
                true => Err(Fault::new(
                    "contains a colon, which HTTP Basic cannot encode",
                    "use a user name without a colon",
                )),
                false => Ok(text.to_owned()),
            });
            // The proxy alone receives this secret.
            let host = url.as_ref().and_then(|url| Host::parse(url.host_str()?).ok());
            let is_cleartext =
                |url: &Url| url.scheme() == "http" && host.as_ref().is_none_or(|host| !host.is_loopback());
            let cleartext = url.as_ref().filter(|url| is_cleartext(url)).map(|_| ("proxy.url", "use https"));
            let hosts = host.map(|host| ("proxy.url", host)).into_iter().collect();
            let of_proxy = Destinations { hosts, cleartext, permitted: None };
            let others = std::mem::replace(&mut sink.destinations, of_proxy);
            let password = secret::secret(&password, sink);
            sink.destinations = others;
            username.zip(password)
        }
        (Some(one), None) | (None, Some(one)) => {
            one.problem(sink, "`username` and `password` must be set together", "write both, or neither");
            None
        }
    };
    Some(ForwardProxy { url: url?, credentials, trust, may_be_private })
}
