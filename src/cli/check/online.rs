//! `check --online`: a preflight of every connection of a configuration, without a running instance.
//!
//! Invariant: the servers are reached under the address policy of the configuration, our own listeners excluded.
//! Not here: the checks themselves (`oauth`).

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::cli::run::control_runtime;
use crate::cli::table;
use crate::dial::{AddressPolicy, Dialer, EgressProxy, NetworkSettings};
use crate::model::connection::Connection;
use crate::model::{ListenAt, Listener, Model, Name};
use crate::oauth::{Check, CheckOutcome, HttpClients, TokenEndpoint};
use crate::tasks::Tasks;
use crate::tls::Trust;

/// Connections that are checked at once.
const PREFLIGHTS_MAX: usize = 8;

/// The checks of one connection.
pub struct Checked {
    connection: Name,
    checks: Vec<Check>,
}

/// Checks every connection, in configuration order.
///
/// # Errors
/// Nothing was checked, for the reason given.
pub fn checks(model: &Model) -> Result<Vec<Checked>, String> {
    let runtime = control_runtime().map_err(|error| format!("cannot start threads ({error})"))?;
    let _in_runtime = runtime.enter();
    let clients = clients(model);
    let callback = model.public_url.as_ref().and_then(|base| base.join("oauth/callback").ok()).map(String::from);
    let mut planned = Vec::new();
    for connection in &model.connections {
        let endpoint = connection.active.then(|| TokenEndpoint::new(connection.clone(), &clients)).transpose();
        planned.push((connection, endpoint.map_err(|error| format!("connection {}: {error}", connection.name))?));
    }
    let callback = callback.as_deref();
    let checked =
        stream::iter(planned).map(async |(connection, endpoint): (&Arc<Connection>, Option<TokenEndpoint>)| {
            let checks = match &endpoint {
                Some(endpoint) => endpoint.preflight(callback).await,
                None => vec![Check::skipped("connection", "the connection has `active: false`")],
            };
            Checked { connection: connection.name.clone(), checks }
        });
    Ok(runtime.block_on(checked.buffered(PREFLIGHTS_MAX).collect()))
}

/// HTTP clients for authorization servers, as a running instance would build them.
fn clients(model: &Model) -> HttpClients {
    let trust = Trust::new(&model.trust);
    let listeners = &model.listeners;
    let of_proxy = listeners.proxy.iter().filter_map(|listener| match listener.at {
        ListenAt::Address(address) => Some(Listener { name: listener.name.clone(), address, secure: listener.secure }),
        ListenAt::Unix { .. } => None,
    });
    let others = [Some(&listeners.admin), listeners.telemetry.as_ref(), listeners.public.as_ref()];
    let own: Vec<_> = of_proxy.chain(others.into_iter().flatten().cloned()).collect();
    let egress = &model.egress;
    let egress_proxy = egress.proxy.as_ref();
    let egress_proxy = egress_proxy.and_then(|proxy| EgressProxy::new(proxy, &egress.no_proxy, &trust, &model.trust));
    let settings = NetworkSettings { hosts: &model.hosts, policy: AddressPolicy::new(model, &own), egress_proxy };
    HttpClients::new(trust, Dialer::new(settings, &Tasks::default(), None))
}

pub fn has_failure(checked: &[Checked]) -> bool {
    checked.iter().flat_map(|own| &own.checks).any(|check| check.outcome == CheckOutcome::Failed)
}

pub fn json(checked: &[Checked]) -> Value {
    checked.iter().map(|own| json!({ "name": own.connection.as_str(), "checks": own.checks })).collect()
}

/// One line for each check, and the remedies below the checks that have one.
pub fn table(checked: &[Checked]) -> String {
    let mut rows = vec![["CONNECTION", "CHECK", "OUTCOME", "DETAIL"].map(str::to_owned).to_vec()];
    for Checked { connection, checks } in checked {
        for check in checks {
            let (name, outcome) = (check.name.to_owned(), check.outcome.as_str().to_owned());
            rows.push(vec![connection.to_string(), name, outcome, table::clean(&check.detail)]);
            if let Some(remedy) = &check.remedy {
                let empty = String::new;
                rows.push(vec![empty(), empty(), empty(), format!("to fix it: {}", table::clean(remedy))]);
            }
        }
    }
    table::aligned(&rows)
}
