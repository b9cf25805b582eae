//! A flow starts only after a person confirms on our page, in the browser that shows it.

use serde_json::json;

use super::{Fixture, OFFLINE, param, sign_in, text};
use crate::rig::manager::MANAGER;
use crate::rig::pages::{self, confirmation, cookie, origin, redirect_target};
use crate::rig::peers::AuthorizationServer;
use crate::rig::raw::RawResponse;
use crate::rig::scripted::{Reply, Scripted};

/// A connection with an account for each subject.
async fn per_subject(client: &'static str, grant: &str) -> Fixture {
    let server = AuthorizationServer::op(json!({"lifetime": 600})).await;
    let keys = format!("issuer: \"{}\", grant: {grant}, scopes: [{OFFLINE}], tokens: per_subject", server.issuer());
    Fixture::with(server, client, &keys, "callers: [{name: web, secret: web-secret, subjects: [\"*\"]}]\n").await
}

fn subject(name: &str) -> String {
    format!("Proxy-Authorization: Basic d2ViOndlYi1zZWNyZXQ=\r\nKeybearer-Subject: {name}\r\n")
}

#[tokio::test]
async fn a_link_shows_its_subject_and_starts_nothing_however_often_it_is_opened() {
    let fixture = per_subject("p-web", "authorization_code").await;
    let sealed = fixture.link(&subject("mallory")).await;
    let flow = fixture.call("POST", "/connections/crm/authorize", json!({"subject": "ann"})).await.json();
    let own = format!("{}/connect/crm?subject=bob", fixture.public());
    let session = fixture.session(&own).await;
    for (link, name) in [(sealed.as_str(), "mallory"), (text(&flow["authorization_url"]), "ann"), (&own, "bob")] {
        for (method, lines) in [
            ("GET", ""),
            ("HEAD", ""),
            ("GET", "Sec-Purpose: prefetch;prerender\r\n"),
            ("GET", "User-Agent: Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)\r\n"),
        ] {
            let response = fixture.visit(method, link, &format!("{session}{lines}")).await;
            assert_eq!(
                (response.status, response.header("location")),
                (200, None),
                "{method} {lines}: {}",
                response.text()
            );
            assert_eq!(response.header("referrer-policy"), Some("same-origin"));
            let cookie = response.header("set-cookie").expect("a cookie");
            for part in ["keybearer_browser=", "; HttpOnly", "; SameSite=Lax", "; Max-Age=600"] {
                assert!(cookie.contains(part), "{cookie}");
            }
            let page = response.text();
            assert!(!page.contains("http-equiv"), "the page has no redirect: {page}");
            assert!(method == "HEAD" || page.contains(&format!("<dd>{name}</dd>")), "{page}");
            assert!(method == "HEAD" || page.contains("<dd>crm</dd>") && page.contains("<dd>default</dd>"), "{page}");
        }
    }
    let claims = "X-Forwarded-Host: evil.test\r\nX-Forwarded-Proto: https\r\nForwarded: host=evil.test\r\n";
    let (sent, _) = pages::confirm(fixture.sidecar.admin(), &own, &session).await;
    assert!(redirect_target(&sent).starts_with(&fixture.server.issuer()), "{}", sent.text());
    let (sent, _) = pages::confirm(fixture.sidecar.admin(), &sealed, claims).await;
    assert!(
        !redirect_target(&sent).contains("evil"),
        "forwarding headers do not change the URL: {}",
        redirect_target(&sent)
    );
    let wrong = own.replace("localhost", "evil.test");
    assert_eq!(fixture.visit("GET", &wrong, &session).await.status, 421);
    let page = fixture.connect(fixture.browser.tab("a", "1"), text(&flow["authorization_url"]), "ann").await;
    fixture.check_pages(&page);
    assert_eq!(fixture.account(&subject("ann")).await, "ann");
}

#[tokio::test]
async fn a_device_code_is_requested_when_a_person_confirms_and_shown_only_in_that_browser() {
    let fixture = per_subject("p-device-web", "device_code").await;
    let link = fixture.link(&subject("ann")).await;
    let device_requests =
        async || fixture.server.stats().await["device_authorizations"]["p-device-web"].as_u64().unwrap_or(0);
    let admin = fixture.sidecar.admin();
    for _ in 0..3 {
        let shown = fixture.visit("GET", &link, "").await;
        assert_eq!(shown.status, 200, "{}", shown.text());
    }
    assert_eq!(device_requests().await, 0);
    let (sent, cookies) = pages::confirm(admin, &link, "").await;
    assert_eq!(device_requests().await, 1);
    let location = url::Url::parse(&link).and_then(|url| url.join(&redirect_target(&sent))).expect("a URL").to_string();
    for _ in 0..3 {
        let page = fixture.visit("GET", &location, &cookies).await;
        assert!(page.text().contains("<code>") && page.text().contains(&fixture.server.issuer()), "{}", page.text());
    }
    let other_browser = fixture.visit("GET", &location, "").await;
    assert_eq!(
        (other_browser.status, other_browser.text().contains("<code>")),
        (404, false),
        "{}",
        other_browser.text()
    );
    assert_eq!(device_requests().await, 1);
}

#[tokio::test]
async fn a_confirmation_is_valid_only_from_our_page_with_its_cookie_and_its_link() {
    let fixture = per_subject("p-web", "authorization_code").await;
    let admin = fixture.sidecar.admin();
    let link = fixture.link(&subject("ann")).await;
    let shown = async |link: &str| {
        let response = fixture.visit("GET", link, "").await;
        (cookie(&response), confirmation(&response.text()))
    };
    let (own, token) = shown(&link).await;
    let (strange, other_token) = shown(&link).await;
    let post = async |link: &str, lines: &str, token: &str| {
        pages::visit(admin, "POST", link, lines, &format!("confirmation={token}")).await
    };
    let here = origin(&link);
    let port = fixture.sidecar.admin().port();
    for origins in [
        String::new(),
        "Origin: null\r\n".to_owned(),
        "Origin: \r\n".to_owned(),
        "Origin: http://evil.test\r\n".to_owned(),
        "Origin: http://localhost\r\n".to_owned(),
        format!("Origin: https://localhost:{port}\r\n"),
        format!("Origin: http://localhost:{}\r\n", port ^ 1),
        format!("Origin: http://127.0.0.1:{port}\r\n"),
        format!("{here}{here}"),
        format!("Referer: {link}\r\nSec-Fetch-Site: same-origin\r\n"),
    ] {
        let response = post(&link, &format!("{own}{origins}"), &token).await;
        assert_eq!(response.status, 403, "{origins}: {}", response.text());
        assert!(response.text().contains("Not from another site"), "{origins}: {}", response.text());
    }
    let (other_link, mallory) = (fixture.link(&subject("ann")).await, fixture.link(&subject("mallory")).await);
    let tampered = format!("{}{}", &token[..token.len() - 2], if token.ends_with("AA") { "BB" } else { "AA" });
    for (link, cookies, token) in [
        (&link, "", &token),
        (&link, &strange, &token),
        (&link, &own, &other_token),
        (&link, &own, &tampered),
        (&link, &own, &String::new()),
        (&link, "Cookie: keybearer_browser=x\r\n", &token),
        (&mallory, &own, &token),
        (&other_link, &own, &token),
    ] {
        let response = post(link, &format!("{cookies}{here}"), token).await;
        assert_eq!(response.status, 403, "{cookies}: {}", response.text());
        assert!(response.text().contains("confirm again"), "{cookies}: {}", response.text());
    }
    assert!(fixture.server.authorizations("p-web").await.is_empty());
    let sent = post(&link, &format!("{own}{here}"), &token).await;
    assert!(param(&redirect_target(&sent), "state").len() > 80, "{}", sent.text());
    for secret in [&token, own.split('=').nth(1).expect("a cookie").trim()] {
        assert!(!fixture.sidecar.log().contains(secret));
    }
}

#[tokio::test]
async fn a_one_time_link_is_bound_to_the_first_browser_that_confirms_it() {
    let fixture = Fixture::op("p-web").await;
    let flow = fixture.call("POST", "/connections/crm/authorize", json!({})).await.json();
    let (link, admin) = (text(&flow["authorization_url"]), fixture.sidecar.admin());
    let late = fixture.visit("GET", link, "").await;
    let (first, own) = pages::confirm(admin, link, "").await;
    let refused = [
        fixture.visit("GET", link, "").await,
        pages::visit(
            admin,
            "POST",
            link,
            &format!("{}{}", cookie(&late), origin(link)),
            &format!("confirmation={}", confirmation(&late.text())),
        )
        .await,
    ];
    for response in refused {
        assert_eq!((response.status, response.text().contains("already used")), (400, true), "{}", response.text());
    }
    // The same browser may go back and confirm again; then only the last attempt is valid.
    let (second, _) = pages::confirm(admin, link, &own).await;
    let back = async |page: &RawResponse| {
        let location = format!(
            "{}/oauth/callback?state={}&error=access_denied",
            fixture.public(),
            param(&redirect_target(page), "state")
        );
        let issuer = url::form_urlencoded::byte_serialize(fixture.server.issuer().as_bytes()).collect::<String>();
        fixture.visit("GET", &format!("{location}&iss={issuer}"), &own).await
    };
    let response = back(&first).await;
    assert_eq!((response.status, response.text().contains("is unknown")), (400, true), "{}", response.text());
    assert!(back(&second).await.text().contains("declined"));
    let authorization = fixture.call("GET", &format!("/authorizations/{}", text(&flow["id"])), json!({})).await.json();
    assert_eq!(authorization["status"], "denied", "{authorization}");
}

/// A hostile site with one attack for each path; at worst it has the confirmation from the person's own page.
async fn foreign_site(link: String, confirmation: String, api: String) -> Scripted {
    Scripted::start(move |request, _| {
        let form = format!(
            "<!doctype html><body><form method=post action=\"{link}\"><input name=confirmation value=\"{confirmation}\">\
             <input name=x value=1></form><script>document.forms[0].submit()</script>"
        );
        let with = |field: &str, body: &str| {
            let length = body.len();
            let head = format!("HTTP/1.1 200 X\r\nContent-Type: text/html\r\n{field}Content-Length: {length}\r\n\r\n");
            Reply::Bytes(format!("{head}{body}").into_bytes())
        };
        let path = request.request_line().split(' ').nth(1).unwrap_or_default();
        match path {
            "/form" => with("", &form),
            "/no-referrer" => with("Referrer-Policy: no-referrer\r\n", &form),
            "/sandbox" => with("Content-Security-Policy: sandbox allow-scripts allow-forms\r\n", &form),
            "/go" => with("", &format!("<script>location.href = {:?}</script>", link)),
            "/frame" => with("", &format!("<title>frame</title><iframe src=\"{link}\"></iframe>")),
            "/session" => with(
                "",
                &format!(
                    "<body><script>(async () => {{ const body = JSON.stringify({{token: {:?}}}); const at = {api:?};\
                     for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'application/json'])\
                     await fetch(at, {{method: 'POST', body, headers: {{'Content-Type': type}}, credentials: 'include', \
                     mode: type === 'application/json' ? 'cors' : 'no-cors'}}).catch(() => {{}});\
                     document.body.append('done') }})()</script>",
                    MANAGER
                ),
            ),
            _ => Reply::text(404, "text/plain", "no"),
        }
    })
    .await
}

#[tokio::test]
async fn another_site_cannot_start_a_flow_in_a_signed_in_browser() {
    let fixture = Fixture::op("p-web").await;
    let (link, tab) = (fixture.link("").await, fixture.browser.tab("a", "1"));
    tab.open(&link).await;
    sign_in(tab).await;
    let page = tab.wait_until("/connect/crm", "Connect an account?").await;
    let token = confirmation(page.html());
    let api = format!("{}/api/v1/session", fixture.public());
    let site = foreign_site(link.clone(), token, api).await;
    let evil = fixture.browser.tab("a", "2");
    // Another site, and another origin of the same site, to which browsers send our cookies.
    for host in ["evil.test", "localhost"] {
        let at = |path: &str| format!("http://{host}:{}/{path}", site.address.port());
        for path in ["form", "no-referrer", "sandbox"] {
            evil.open(&at(path)).await;
            let page = evil.wait_until("/connect/crm", "Not from another site").await;
            assert_eq!(page.status(), 403, "{host} {path}: {}", page.text());
        }
        evil.open(&at("go")).await;
        evil.wait_until("/connect/crm", "Connect an account?").await;
        evil.open(&at("frame")).await;
        let page = evil.wait_until("/frame", "").await;
        let blocked = format!("not loaded: {link}: net::ERR_BLOCKED_BY_RESPONSE");
        assert!(page.problems().iter().any(|one| one.starts_with(&blocked)), "{host}: {:?}", page.problems());
        evil.open(&at("session")).await;
        evil.wait_until("/session", "done").await;
    }
    assert_eq!(
        fixture.sidecar.log().matches("\"signed in\"").count(),
        1,
        "no other sign-in: {}",
        fixture.sidecar.log()
    );
    assert!(fixture.server.authorizations("p-web").await.is_empty(), "no browser reached the authorization server");
    assert!(!evil.page().await.requests().iter().any(|url| url.starts_with(&fixture.server.issuer())));

    // The person's own page is still valid.
    tab.confirm().await;
    fixture.approve(tab, "ann").await;
    tab.wait_until("/result", "Connected").await;
    assert_eq!(fixture.account("").await, "ann");
}
