//! People: their requests ignore backoffs and refusals, and only a refused refresh token makes them connect again.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::{
    PERSON, Response, crm, empty_response, field, get, html, refresh, refreshed, refusal, sent_grants, tokens,
    wait_until_served,
};
use crate::rig::manager::{call, import_refresh_token};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::wait_until;

#[tokio::test]
async fn a_persons_refresh_ignores_refusals_and_backoffs() {
    let upstream = Scripted::upstream().await;
    let response = Arc::new(Mutex::new(None::<Response>));
    let now = response.clone();
    let server = Scripted::start(move |_, before| match &*now.lock().unwrap() {
        Some(response) => response(),
        None => Reply::token(&format!("t{before}"), 3600),
    })
    .await;
    const BUSY: Response = || Reply::Bytes(b"HTTP/1.1 503 X\r\nRetry-After: 300\r\nContent-Length: 0\r\n\r\n".to_vec());
    for (failure, status) in [((|| refusal(401, "invalid_client")) as Response, 424), (BUSY, 503)] {
        *response.lock().unwrap() = Some(failure);
        let sidecar = Sidecar::start(&crm(&server, &upstream, "", "comments: none")).await;
        assert_eq!(get(&sidecar, "api.test").await.status, status);
        for _ in 0..3 {
            // Each refresh sends a token request, although nothing has changed.
            let before = server.count();
            assert_eq!(refresh(&sidecar, "crm").await.status, status);
            assert_eq!(server.count(), before + 1, "{}", sidecar.log());
        }
        let before = server.count();
        assert_eq!(get(&sidecar, "api.test").await.status, status);
        assert_eq!(server.count(), before, "a request causes no token request");
        let reloaded = call(sidecar.admin(), "POST", "/reload", &json!({})).await;
        assert_eq!((reloaded.status, &reloaded.json()["outcome"]), (200, &json!("unchanged")));
        wait_until("the reload sends a token request", || server.count() == before + 1).await;
        *response.lock().unwrap() = None;
        sidecar.signal("HUP");
        wait_until_served(&sidecar, "api.test").await;
    }
}

#[tokio::test]
async fn a_refused_refresh_token_makes_a_person_connect_again() {
    const REFUSALS: [Response; 5] = [
        || refusal(400, "invalid_grant"),
        || refusal(400, "interaction_required"),
        || refusal(400, "login_required"),
        || refusal(400, "consent_required"),
        || refusal(400, "bad_refresh_token"),
    ];
    let (sidecar, outcomes, server) = refreshed(&REFUSALS, "comments: none").await;
    for (number, response) in outcomes.iter().enumerate() {
        assert_eq!(
            (response.status, &response.json()["code"]),
            (424, &json!("refresh_token_expired")),
            "{}",
            response.text()
        );
        assert_eq!(refresh(&sidecar, &format!("c{number}")).await.status, 424);
        assert_eq!(
            sent_grants(&server, &format!("c{number}")),
            ["given", "r0-of-the-person"],
            "it is never sent again"
        );
    }
}

#[tokio::test]
async fn other_refusals_keep_a_persons_refresh_token() {
    const OTHERS: [(Response, u16, &str); 5] = [
        (|| refusal(403, "unauthorized_client"), 424, "token_refused"),
        (|| refusal(400, "invalid_scope"), 424, "token_refused"),
        (|| refusal(401, "invalid_client"), 424, "token_refused"),
        (|| empty_response(401), 503, "token_unavailable"),
        (|| html(400), 503, "token_unavailable"),
    ];
    const RESPONSES: [Response; 5] = [OTHERS[0].0, OTHERS[1].0, OTHERS[2].0, OTHERS[3].0, OTHERS[4].0];
    let (sidecar, outcomes, server) = refreshed(&RESPONSES, "comments: none").await;
    for (number, (response, (_, status, code))) in outcomes.iter().zip(OTHERS).enumerate() {
        let name = format!("c{number}");
        assert_eq!((response.status, &response.json()["code"]), (status, &json!(code)), "{name}: {}", response.text());
        assert_eq!(refresh(&sidecar, &name).await.json()["code"], code, "{name}");
        assert_eq!(sent_grants(&server, &name), ["given", "r0-of-the-person", "r0-of-the-person"], "{name}");
    }
}

#[tokio::test]
async fn refresh_refused_matches_the_response_before_masking() {
    const REFUSALS: [Response; 5] = [
        // Atlassian's response. The refresh token in it removes the description from every message.
        || {
            let description = "Refresh_Token is invalid: r0-of-the-person";
            Reply::json(403, &json!({"error": "unauthorized_client", "error_description": description}))
        },
        // The code repeats the client ID, so no message shows it.
        || refusal(400, "dead_for_the-client"),
        || html(418),
        || Reply::json(200, &json!({"error": 190})),
        // No match: another description.
        || Reply::json(403, &json!({"error": "unauthorized_client", "error_description": "not for you"})),
    ];
    let keys = "token_response: {refresh_refused: [\
                {status: 403, error: unauthorized_client, description_contains: refresh_token}, \
                {error: dead_for_the-client}, {status: 418}, {error: 190}]}";
    let (sidecar, outcomes, _server) = refreshed(&REFUSALS, keys).await;
    let codes: Vec<_> = outcomes.iter().map(|response| response.json()["code"].clone()).collect();
    let again = "refresh_token_expired";
    assert_eq!(codes, [again, again, again, again, "token_refused"], "{}", sidecar.log());
    assert!(!sidecar.log().contains("r0-of-the-person"));
}

#[tokio::test]
async fn a_second_consecutive_empty_400_makes_a_person_connect_again() {
    let upstream = Scripted::upstream().await;
    let responses: Arc<Mutex<Vec<Response>>> = Arc::default();
    let next = responses.clone();
    let server = Scripted::start(move |request, _| match field(request, "refresh_token").as_deref() {
        Some("given") => tokens("a0", "r0", 3600),
        _ => next.lock().unwrap().pop().map_or_else(|| empty_response(400), |response| response()),
    })
    .await;
    let sidecar = Sidecar::start(&crm(&server, &upstream, "", PERSON)).await;
    assert_eq!(import_refresh_token(&sidecar, "given", None).await.status, 200);
    // A gateway's page in between resets the count.
    responses.lock().unwrap().extend([(|| empty_response(400)) as Response, || html(404), || empty_response(400)]);
    for _ in 0..3 {
        assert_eq!(refresh(&sidecar, "crm").await.status, 503, "{}", sidecar.log());
    }
    let response = refresh(&sidecar, "crm").await;
    assert_eq!(
        (response.status, &response.json()["code"]),
        (424, &json!("refresh_token_expired")),
        "{}",
        response.text()
    );
    assert_eq!(sent_grants(&server, "crm").len(), 5);
}
