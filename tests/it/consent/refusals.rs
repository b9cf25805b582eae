//! What a callback must not do: end a flow twice, in another browser, from another server, or with anything changed in it.

use super::{House, cookies, param, text};

/// A token requests' count, and a page: 400 that says why.
macro_rules! refused {
    ($page:expr, $words:expr) => {{
        let page = $page;
        assert_eq!(page.status(), 400, "{}", page.text());
        assert!(page.text().contains($words), "{:?} is not in {}", $words, page.text());
        page
    }};
}

#[tokio::test]
async fn a_code_is_exchanged_once_however_often_the_browser_comes_back() {
    let house = House::op("p-web").await;
    let (tab, link) = (house.browser.tab("a", "1"), house.link("").await);
    let page = house.connect(tab, &link, "ann").await;
    let at = |one: &serde_json::Value| text(&one["url"]).contains("/oauth/callback?");
    let callback = text(&page.documents().into_iter().find(at).expect("a callback")["url"]).to_owned();

    refused!(tab.open(&callback).await, "already used");
    refused!(tab.reload().await, "already used");
    refused!(house.browser.tab("a", "2").open(&callback).await, "already used");
    let result = tab.back().await;
    assert!(result.url().contains("/result") && result.text().contains("Connected"), "{}", result.url());
    let page = tab.reload().await;
    assert_eq!((page.status(), page.text().contains("Connected")), (200, true), "{}", page.text());
    // All the way back: no page on it has the code in its address, and none has another token asked for.
    for _ in 0..6 {
        let page = tab.back().await;
        assert!(!page.url().contains("code="), "{}", page.url());
    }
    assert_eq!(house.exchanges().await, 1);
    assert_eq!(house.server.stats().await["second_uses"], serde_json::json!({}));
    assert_eq!(house.accepted("").await, "ann");
    house.tells_no_secret(&tab.page().await).await;
}

#[tokio::test]
async fn the_first_of_two_tabs_ends_both_and_so_does_the_first_of_many_at_once() {
    let house = House::op("p-web").await;
    let link = house.link("").await;
    let tab = |name| house.browser.tab("a", name);
    let first = house.until_callback(tab("1"), &link, "ann").await;
    let second = house.until_callback(tab("2"), &link, "ann").await;
    assert_ne!(param(&first, "state"), param(&second, "state"));
    let page = tab("3").open(&second).await;
    assert_eq!((page.status(), page.text().contains("Connected")), (200, true), "{}", page.text());
    let page = refused!(tab("4").open(&first).await, "already used");
    assert_eq!(house.exchanges().await, 1);
    assert_eq!(house.accepted("").await, "ann");
    house.pages_hold(&page);

    // The same link begins another flow now. Its callbacks arrive at the same moment, one of them twice.
    let third = house.until_callback(tab("5"), &link, "ann").await;
    let fourth = house.until_callback(tab("6"), &link, "ann").await;
    let own = cookies(&tab("6").page().await);
    let send = async |url: &str| house.visit("GET", url, &own).await;
    let answers = tokio::join!(send(&third), send(&third), send(&fourth), send(&fourth));
    let mut statuses = [answers.0.status, answers.1.status, answers.2.status, answers.3.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [303, 400, 400, 400]);
    assert_eq!(house.exchanges().await, 2);
    assert_eq!(house.accepted("").await, "ann");
    house.tells_no_secret(&tab("6").page().await).await;
}

#[tokio::test]
async fn a_callback_that_does_not_fit_is_refused_and_spoils_nothing() {
    let house = House::op("p-web").await;
    let link = house.link("").await;
    let (tab, other) = (house.browser.tab("a", "1"), house.browser.tab("a", "2"));
    let callback = house.until_callback(tab, &link, "ann").await;
    let own = cookies(&tab.page().await);
    assert!(own.contains("keybearer_flow_"), "{own}");
    let (state, code, iss) = (param(&callback, "state"), param(&callback, "code"), param(&callback, "iss"));
    let last = if state.ends_with('A') { 'B' } else { 'A' };
    let tampered = format!("{}{last}", &state[..state.len() - 1]);
    let base = format!("{}/oauth/callback", house.public());
    let with = |query: String| format!("{base}?{query}");

    let cases = [
        (with(format!("code={code}&state={tampered}&iss={iss}")), "not known"),
        (with(format!("code={code}&iss={iss}")), "not known"),
        (with(format!("code={code}&state=&iss={iss}")), "not known"),
        (with(format!("code={code}&state=unknown&iss={iss}")), "not known"),
        (base.clone(), "not known"),
        (with(format!("code={code}&state={state}&iss=https%3A%2F%2Fevil.test")), "elsewhere"),
        (with(format!("error=access_denied&state={state}&iss=https%3A%2F%2Fevil.test")), "elsewhere"),
        // The server announces that it names itself.
        (with(format!("code={code}&state={state}")), "elsewhere"),
        (with(format!("code={code}&error=access_denied&state={state}&iss={iss}")), "not readable"),
        (with(format!("state={state}&iss={iss}")), "not readable"),
        (with(format!("code=&state={state}&iss={iss}")), "not readable"),
        (with(format!("code={code}&code=x&state={state}&iss={iss}")), "not readable"),
        (with(format!("code={code}&state={state}&state=x&iss={iss}")), "not readable"),
        (with(format!("code={code}&state={state}&iss={iss}&iss=x")), "not readable"),
    ];
    for (url, words) in &cases {
        let page = other.open(url).await;
        assert_eq!(page.status(), 400, "{url}: {}", page.text());
        assert!(page.text().contains(words), "{url}: {words:?} is not in {}", page.text());
        assert_eq!(house.exchanges().await, 0, "{url}");
    }
    house.pages_hold(&other.page().await);
    // Another browser, with cookies of its own or none.
    let stranger = house.browser.tab("b", "1");
    house.arrive(stranger, &link).await;
    refused!(stranger.open(&callback).await, "nother browser");
    assert_eq!(house.visit("GET", &callback, "").await.status, 400);
    // Neither a look ahead nor another method is the person.
    for (method, lines) in [
        ("HEAD", ""),
        ("GET", "Sec-Purpose: prefetch;prerender\r\n"),
        ("GET", "Purpose: prefetch\r\n"),
        ("POST", ""),
        ("PUT", ""),
    ] {
        let answer = house.visit(method, &callback, &format!("{own}{lines}")).await;
        let expected = if method.starts_with('P') { 405 } else { 200 };
        assert_eq!((answer.status, answer.header("location")), (expected, None), "{method} {lines}");
    }
    assert_eq!((house.exchanges().await, house.ask("").await.code()), (0, "consent_required"));

    // All of it was refused for what it was: the true one is good.
    let page = other.open(&callback).await;
    assert_eq!((page.status(), page.text().contains("Connected")), (200, true), "{}", page.text());
    assert_eq!((house.exchanges().await, house.accepted("").await.as_str()), (1, "ann"));
    house.tells_no_secret(&tab.page().await).await;
}

#[tokio::test]
async fn what_only_looks_at_a_link_begins_nothing() {
    let house = House::op("p-web").await;
    let link = house.link("").await;
    let session = house.session(&link).await;
    let begun = house.visit("GET", &link, &session).await;
    assert_eq!(begun.status, 303, "the control: a visit begins");
    assert!(begun.header("set-cookie").is_some_and(|cookie| cookie.starts_with("keybearer_flow_")));
    for (method, lines) in [
        ("HEAD", ""),
        ("GET", "Sec-Purpose: prefetch\r\n"),
        ("GET", "Sec-Purpose: prefetch;prerender\r\n"),
        ("GET", "Purpose: prefetch\r\n"),
        ("GET", "X-Moz: prefetch\r\n"),
        ("GET", "User-Agent: Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)\r\n"),
    ] {
        let answer = house.visit(method, &link, &format!("{session}{lines}")).await;
        assert_eq!(answer.status, 200, "{method} {lines}: {}", answer.text());
        for name in ["location", "set-cookie"] {
            assert_eq!(answer.header(name), None, "{method} {lines}");
        }
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    // A form of another site signs nobody in.
    let foreign = "Origin: https://evil.test\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let body = format!("token={}", crate::renewal::MANAGER);
    let answer = super::visit(house.sidecar.admin(), "POST", &link, foreign, &body).await;
    assert_eq!((answer.status, answer.header("set-cookie")), (403, None), "{}", answer.text());
    // The redirect goes where the configuration says, whatever the request claims.
    let claims = "X-Forwarded-Host: evil.test\r\nX-Forwarded-Proto: https\r\nForwarded: host=evil.test\r\n";
    let answer = house.visit("GET", &link, &format!("{session}{claims}")).await;
    let place = answer.header("location").expect("a redirect");
    assert!(place.contains("localhost") && !place.contains("evil"), "{place}");
    let wrong = link.replace("localhost", "evil.test");
    assert_eq!(house.visit("GET", &wrong, &session).await.status, 421);
    assert!(house.server.authorizations("p-web").await.is_empty(), "no browser has come to the server");
}

#[tokio::test]
async fn what_a_server_says_of_an_error_is_text_and_nothing_more() {
    let house = House::op("p-web").await;
    let (tab, link) = (house.browser.tab("a", "1"), house.link("").await);
    house.arrive(tab, &link).await;
    let asked = house.server.authorizations("p-web").await.pop().expect("a request");
    let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let said = "<img src=x onerror=alert(1)><script>alert(2)</script>\r\nSet-Cookie: planted=1";
    let url = format!(
        "{}/oauth/callback?state={}&iss={}&error=server_error&error_description={}&error_uri={}",
        house.public(),
        encoded(text(&asked["state"])),
        encoded(&house.server.issuer()),
        encoded(said),
        encoded("https://evil.test/more"),
    );
    let page = refused!(tab.open(&url).await, "server_error");
    assert!(page.text().contains("alert(1)"), "the words are shown: {}", page.text());
    assert!(!page.html().contains("<img") && !page.html().contains("<script"), "{}", page.html());
    assert!(!page.html().contains("evil.test"), "{}", page.html());
    assert!(page.cookies().iter().all(|cookie| cookie["name"] != "planted"));
    house.pages_hold(&page);
    assert!(!house.sidecar.log().contains("\nSet-Cookie"), "nothing breaks a line of the log");
    // That flow has failed; the next link is another one.
    let page = house.connect(house.browser.tab("a", "2"), &link, "ann").await;
    assert_eq!((page.status(), house.exchanges().await), (200, 1));
}
