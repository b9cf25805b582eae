//! `interception`: the CA for intercepting TLS inside tunnels.
//!
//! Not here: issuing certificates (`tls::authority`), `intercept` of a route (`connection/tunnel`).

use std::path::Path;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Field, Keys, NodeRef, Sink, pem, shape};
use crate::clock::Clock;
use crate::model::Interception;
use crate::model::time::WallTime;
use crate::tls::{self, authority};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "interception", deny_unknown_fields)]
pub struct InterceptionFile {
    /// A PEM file of the CA's certificate, as `keybearer ca init` makes it; its issuers may follow.
    #[schemars(required, extend("examples" = ["ca.pem"]))]
    pub ca_certificate: Field<shape::Text>,
    /// Its private key in PEM. Both are read again when they change.
    #[schemars(required, extend("examples" = [{"file": "ca-key.pem"}]))]
    pub ca_key: Field<shape::Secret>,
}

impl Keys for InterceptionFile {}

/// A CA that expires sooner is a warning.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);

pub fn interception(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Interception> {
    let section = node.section::<InterceptionFile>(sink)?;
    let hint = "write the path of a CA certificate in PEM; `keybearer ca init` creates one";
    let at = section.require(section.keys.ca_certificate, "ca_certificate", hint, sink);
    let pem = at.as_ref().and_then(|at| {
        let path = at.file(sink)?;
        Some((pem::file(at, &path, sink)?, path))
    });
    let hint = "write `ca_key: {file: PATH}` with the CA's private key in PEM";
    let key_at = section.require(section.keys.ca_key, "ca_key", hint, sink);
    let key = key_at.as_ref().and_then(|node| pem::key(node, sink));
    let ((pem, path), at, key) = (pem?, at?, key?);
    use authority::CaError::*;
    match authority::read_ca(&pem, key) {
        Ok(read) => {
            let expiry = read.chain.first().and_then(tls::expiry)?;
            check_expiry(expiry, &at, &path, sink).then_some(read)
        }
        Err(error @ (Certificate | NotCa)) => {
            at.problem(sink, format!("{} {error}", path.display()), "create a CA with `keybearer ca init`");
            None
        }
        Err(error @ (Key | Pair)) => {
            key_at?.problem(sink, format!("the key {error}"), "use the private key of this CA certificate, in PEM");
            None
        }
    }
}

fn check_expiry(expiry: WallTime, at: &NodeRef<'_>, path: &Path, sink: &mut Sink) -> bool {
    let (now, date) = (Clock::system().now().wall, httpdate::fmt_http_date(expiry.to_system()));
    let hint = "create a new CA with `keybearer ca init`, and make the callers trust it";
    if expiry <= now {
        at.problem(sink, format!("{} expired on {date}", path.display()), hint);
    } else if expiry <= now + EXPIRY_WARNING {
        at.warning(sink, format!("{} expires on {date}", path.display()), hint);
    }
    expiry > now
}
