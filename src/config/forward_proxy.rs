//! A proxy for outgoing connections: `egress.proxy`, and `proxy` of an authorization server.

use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Fault, Field, Keys, Sink, Spot, endpoint, pem, secret, shape};
use crate::model::connection::ForwardProxy;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "forward_proxy", deny_unknown_fields)]
pub struct ForwardProxyFile {
    /// URL of the proxy: http or https, host and port.
    #[schemars(required, extend("examples" = ["http://proxy.acme.test:3128"]))]
    pub url: Field<shape::Url>,
    /// User name at the proxy.
    #[schemars(extend("examples" = ["keybearer"]))]
    pub username: Field<shape::Text>,
    /// Password at the proxy.
    #[schemars(extend("examples" = [{"file": "/run/secrets/proxy"}]))]
    pub password: Field<shape::Secret>,
    /// PEM files of the CAs that sign an https proxy's certificate, or of that certificate itself.
    #[schemars(extend("examples" = [["corp.pem"]]))]
    pub trust: Field<shape::NonemptyList<shape::Text>>,
}

impl Keys for ForwardProxyFile {}

/// A URL, or a map with one.
pub fn forward_proxy(spot: &Spot<'_>, sink: &mut Sink) -> Option<ForwardProxy> {
    if !spot.is_map() {
        let url = spot.secretive(sink, endpoint::proxy)?;
        return Some(ForwardProxy { url, credentials: None, trust: None });
    }
    let unit = spot.unit::<ForwardProxyFile>(sink)?;
    let keys = &unit.keys;
    let url = unit.require(keys.url, "url", "write the proxy's URL, such as http://proxy:3128", sink);
    let url = url.and_then(|spot| spot.secretive(sink, endpoint::proxy));
    let trust = unit.get(keys.trust).and_then(|spot| pem::own_roots(&spot, sink));
    let credentials = match (unit.get(keys.username), unit.get(keys.password)) {
        (None, None) => None,
        (Some(username), Some(password)) => {
            let username = username.parse(sink, |text| match text.contains(':') {
                true => Err(Fault::new("holds a colon, which Basic cannot carry", "write another user name")),
                false => Ok(text.to_owned()),
            });
            username.zip(secret::secret(&password, sink))
        }
        (Some(one), None) | (None, Some(one)) => {
            one.problem(sink, "`username` and `password` go together", "write both, or neither");
            None
        }
    };
    Some(ForwardProxy { url: url?, credentials, trust })
}
