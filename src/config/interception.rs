//! `interception`: the CA with which TLS inside tunnels is terminated.
//!
//! Not here: the certificates that are made with it (`tls::authority`), `intercept` of a route (`connection/tunnel`).

use std::path::Path;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::reading::{Field, Keys, Sink, Spot, pem, shape};
use crate::clock::Clock;
use crate::model::Interception;
use crate::model::time::WallTime;
use crate::tls::{self, authority};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "interception", deny_unknown_fields)]
pub struct InterceptionFile {
    /// PEM file of the CA certificate, as `keybearer ca init` creates it; its issuers may follow.
    #[schemars(required, extend("examples" = ["ca.pem"]))]
    pub ca_certificate: Field<shape::Text>,
    /// Private key of the CA in PEM. Certificate and key are read again when they change.
    #[schemars(required, extend("examples" = [{"file": "ca-key.pem"}]))]
    pub ca_key: Field<shape::Secret>,
}

impl Keys for InterceptionFile {}

/// A CA that ends sooner is warned of.
const LEFT_MIN: Duration = Duration::from_secs(30 * 24 * 3600);

pub fn interception(spot: &Spot<'_>, sink: &mut Sink) -> Option<Interception> {
    let unit = spot.unit::<InterceptionFile>(sink)?;
    let hint = "name the PEM file of a CA's certificate; `keybearer ca init` makes one";
    let at = unit.require(unit.keys.ca_certificate, "ca_certificate", hint, sink);
    let pem = at.as_ref().and_then(|at| {
        let path = at.file(sink)?;
        Some((pem::file(at, &path, sink)?, path))
    });
    let hint = "write ca_key: {file: PATH} of the CA's private key in PEM";
    let key_at = unit.require(unit.keys.ca_key, "ca_key", hint, sink);
    let key = key_at.as_ref().and_then(|spot| pem::key(spot, sink));
    let ((pem, path), at, key) = (pem?, at?, key?);
    use authority::CaError::*;
    match authority::read_ca(&pem, key) {
        Ok(read) => {
            let end = read.chain.first().and_then(tls::expiry)?;
            check_end(end, &at, &path, sink).then_some(read)
        }
        Err(error @ (Certificate | NotCa)) => {
            at.problem(sink, format!("{} {error}", path.display()), "make a CA: `keybearer ca init`");
            None
        }
        Err(error @ (Key | Pair)) => {
            key_at?.problem(sink, format!("the key {error}"), "give the CA's own private key in PEM");
            None
        }
    }
}

fn check_end(end: WallTime, at: &Spot<'_>, path: &Path, sink: &mut Sink) -> bool {
    let (now, date) = (Clock::system().now().wall, httpdate::fmt_http_date(end.to_system()));
    let hint = "make another with `keybearer ca init`, and let clients trust it";
    if end <= now {
        at.problem(sink, format!("{} ended on {date}", path.display()), hint);
    } else if end <= now + LEFT_MIN {
        at.warning(sink, format!("{} ends on {date}", path.display()), hint);
    }
    end > now
}
