//! Refreshes without a usable response: the refresh token may be spent, or is certainly not.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::{
    PERSON, Response, connections, crm, empty_response, field, get, html, last_attempt, number, numbered, refresh,
    refusal, seconds_between, tokens,
};
use crate::rig::manager::{call, import_refresh_token};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn a_gateways_5xx_leaves_the_refresh_token_in_doubt_and_other_statuses_do_not() {
    const FAILURES: [(bool, Response); 10] = [
        (true, || html(500)),
        (true, || html(502)),
        (true, || html(504)),
        (true, || html(524)),
        (true, || refusal(500, "server_error")),
        (true, || Reply::Close),
        (false, || html(503)),
        (false, || empty_response(429)),
        (false, || html(404)),
        (false, || refusal(503, "temporarily_unavailable")),
    ];
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|request, _| match field(request, "refresh_token").as_deref() {
        Some("given") => tokens("a0", "r0", 3600),
        _ => FAILURES[number(request)].1(),
    })
    .await;
    let of = numbered(FAILURES.len(), PERSON);
    let sidecar = Sidecar::start(&connections(&server, &upstream, "", &of)).await;
    for ((name, _), (in_doubt, _)) in of.iter().zip(FAILURES) {
        let given = json!({"refresh_token": "given"});
        let response = call(sidecar.admin(), "PUT", &format!("/connections/{name}/tokens"), &given).await;
        assert_eq!(response.status, 200, "{name}: {}", response.text());
        let response = refresh(&sidecar, name).await;
        assert_eq!(response.status, 503, "{name}: {}", response.text());
        let attempt = last_attempt(&sidecar, name).await;
        let backoff = seconds_between(&attempt["at"], &attempt["next_at"]);
        let expected = if in_doubt { 3500..=3600 } else { 2..=4 };
        assert!(expected.contains(&backoff), "{name}: {attempt}");
        assert_eq!(get(&sidecar, &format!("{name}.test")).await.status, 200, "the token is still usable");
    }
}

#[tokio::test]
async fn a_failed_discovery_does_not_put_the_refresh_token_in_doubt() {
    let upstream = Scripted::upstream().await;
    let address = Arc::new(Mutex::new(String::new()));
    let own = address.clone();
    let server = Scripted::start(move |request, _| match request.request_line().contains(".well-known") {
        true if own.lock().unwrap().is_empty() => html(502),
        true => {
            let issuer = own.lock().unwrap().clone();
            Reply::json(200, &json!({"issuer": issuer, "token_endpoint": format!("{issuer}/token")}))
        }
        false => tokens("a0", "r0", 3600),
    })
    .await;
    let issuer = format!("http://{}", server.address);
    *address.lock().unwrap() = issuer.clone();
    let config = crm(&server, &upstream, "", PERSON);
    let config = config.replace(&format!("token_url: \"{issuer}/crm\""), &format!("issuer: \"{issuer}\""));
    let sidecar = Sidecar::start(&config).await;
    assert_eq!(import_refresh_token(&sidecar, "given", None).await.status, 200, "{}", sidecar.log());
    // A restart discards the discovered metadata.
    address.lock().unwrap().clear();
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    let response = refresh(&sidecar, "crm").await;
    assert_eq!((response.status, &response.json()["error"]), (503, &json!("discovery_failed")), "{}", response.text());
    let attempt = last_attempt(&sidecar, "crm").await;
    assert!((2..=4).contains(&seconds_between(&attempt["at"], &attempt["next_at"])), "{attempt}");
    assert!(attempt["description"].as_str().is_some_and(|text| text.contains("http_502")), "{attempt}");
}
