//! End to end: one request, one token.

use crate::rig::config::{Config, Connection};
use crate::rig::raw;
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn a_request_without_a_secret_arrives_with_a_token() {
    let (server, upstream) = (Scripted::tokens(60).await, Scripted::upstream().await);
    let crm = Connection::at("crm", &server).plain("api.test");
    let sidecar = Sidecar::start(Config::new().host("api.test", upstream.address).connection(crm)).await;
    let response = raw::get_through(sidecar.proxy(), "http://api.test/x", "").await;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    let received = upstream.received();
    assert_eq!(received[0].values("authorization"), ["Bearer token-1"]);
    assert_eq!(received[0].values("host"), ["api.test"]);
    assert_eq!(
        sidecar.metric("keybearer_injections_total{connection=\"crm\",profile=\"default\",outcome=\"injected\"}").await,
        1.0
    );
}
