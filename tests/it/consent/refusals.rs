//! Callbacks that are refused: a second one, one in another browser, from another server, or with altered parameters.

use super::{Fixture, cookies, param, text};

/// Checks that a page has the status 400 and the reason.
macro_rules! refused {
    ($page:expr, $words:expr) => {{
        let page = $page;
        assert_eq!(page.status(), 400, "{}", page.text());
        assert!(page.text().contains($words), "{:?} is not in {}", $words, page.text());
        page
    }};
}

#[tokio::test]
async fn a_code_is_exchanged_once_however_often_the_browser_returns() {
    let fixture = Fixture::op("p-web").await;
    let (tab, link) = (fixture.browser.tab("a", "1"), fixture.link("").await);
    let page = fixture.connect(tab, &link, "ann").await;
    let at = |one: &serde_json::Value| text(&one["url"]).contains("/oauth/callback?");
    let callback = text(&page.documents().into_iter().find(at).expect("a callback")["url"]).to_owned();

    refused!(tab.open(&callback).await, "already used");
    refused!(tab.reload().await, "already used");
    refused!(fixture.browser.tab("a", "2").open(&callback).await, "already used");
    let result = tab.back().await;
    assert!(result.url().contains("/result") && result.text().contains("Connected"), "{}", result.url());
    let page = tab.reload().await;
    assert_eq!((page.status(), page.text().contains("Connected")), (200, true), "{}", page.text());
    // Back through the history: no page has the code in its URL, and none causes another token request.
    for _ in 0..6 {
        let page = tab.back().await;
        assert!(!page.url().contains("code="), "{}", page.url());
    }
    assert_eq!(fixture.exchanges().await, 1);
    assert_eq!(fixture.server.stats().await["second_uses"], serde_json::json!({}));
    assert_eq!(fixture.account("").await, "ann");
    fixture.check_no_secret_shown(&tab.page().await).await;
}

#[tokio::test]
async fn a_later_tab_replaces_an_earlier_one_and_one_of_many_concurrent_callbacks_wins() {
    let fixture = Fixture::op("p-web").await;
    let link = fixture.link("").await;
    let tab = |name| fixture.browser.tab("a", name);
    let first = fixture.wait_for_callback(tab("1"), &link, "ann").await;
    let second = fixture.wait_for_callback(tab("2"), &link, "ann").await;
    assert_ne!(param(&first, "state"), param(&second, "state"));
    let page = refused!(tab("4").open(&first).await, "newer link has replaced");
    assert_eq!(fixture.exchanges().await, 0);
    let done = tab("3").open(&second).await;
    assert_eq!((done.status(), done.text().contains("Connected")), (200, true), "{}", done.text());
    assert_eq!(fixture.exchanges().await, 1);
    assert_eq!(fixture.account("").await, "ann");
    fixture.check_pages(&page);

    // The same link begins another flow. Its callback arrives four times at once.
    let third = fixture.wait_for_callback(tab("5"), &link, "ann").await;
    let own = cookies(&tab("5").page().await);
    let send = async || fixture.visit("GET", &third, &own).await;
    let responses = tokio::join!(send(), send(), send(), send());
    let mut statuses = [responses.0.status, responses.1.status, responses.2.status, responses.3.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [303, 400, 400, 400]);
    assert_eq!(fixture.exchanges().await, 2);
    assert_eq!(fixture.account("").await, "ann");
    fixture.check_no_secret_shown(&tab("5").page().await).await;
}

#[tokio::test]
async fn an_invalid_callback_is_refused_and_leaves_the_flow_pending() {
    let fixture = Fixture::op("p-web").await;
    let link = fixture.link("").await;
    let (tab, other) = (fixture.browser.tab("a", "1"), fixture.browser.tab("a", "2"));
    let callback = fixture.wait_for_callback(tab, &link, "ann").await;
    let own = cookies(&tab.page().await);
    assert!(own.contains("keybearer_browser="), "{own}");
    let (state, code, iss) = (param(&callback, "state"), param(&callback, "code"), param(&callback, "iss"));
    let last = if state.ends_with('A') { 'B' } else { 'A' };
    let tampered = format!("{}{last}", &state[..state.len() - 1]);
    let base = format!("{}/oauth/callback", fixture.public());
    let with = |query: String| format!("{base}?{query}");

    let cases = [
        (with(format!("code={code}&state={tampered}&iss={iss}")), "is unknown"),
        (with(format!("code={code}&iss={iss}")), "is unknown"),
        (with(format!("code={code}&state=&iss={iss}")), "is unknown"),
        (with(format!("code={code}&state=unknown&iss={iss}")), "is unknown"),
        (base.clone(), "is unknown"),
        (with(format!("code={code}&state={state}&iss=https%3A%2F%2Fevil.test")), "another server"),
        (with(format!("error=access_denied&state={state}&iss=https%3A%2F%2Fevil.test")), "another server"),
        // The server's metadata announces the `iss` parameter.
        (with(format!("code={code}&state={state}")), "another server"),
        (with(format!("code={code}&error=access_denied&state={state}&iss={iss}")), "is invalid"),
        (with(format!("state={state}&iss={iss}")), "is invalid"),
        (with(format!("code=&state={state}&iss={iss}")), "is invalid"),
        (with(format!("code={code}&code=x&state={state}&iss={iss}")), "is invalid"),
        (with(format!("code={code}&state={state}&state=x&iss={iss}")), "is invalid"),
        (with(format!("code={code}&state={state}&iss={iss}&iss=x")), "is invalid"),
    ];
    for (url, words) in &cases {
        let page = other.open(url).await;
        assert_eq!(page.status(), 400, "{url}: {}", page.text());
        assert!(page.text().contains(words), "{url}: {words:?} is not in {}", page.text());
        assert_eq!(fixture.exchanges().await, 0, "{url}");
    }
    fixture.check_pages(&other.page().await);
    // Another browser, with its own cookies or with none.
    let other_browser = fixture.browser.tab("b", "1");
    other_browser.open(&link).await;
    super::sign_in(other_browser).await;
    let page = other_browser.wait_until("/connect/crm", "Connect an account?").await;
    assert!(cookies(&page).contains("keybearer_browser="), "{}", cookies(&page));
    refused!(other_browser.open(&callback).await, "nother browser");
    assert_eq!(fixture.visit("GET", &callback, "").await.status, 400);
    for method in ["HEAD", "POST", "PUT"] {
        let response = fixture.visit(method, &callback, &own).await;
        assert_eq!((response.status, response.header("location")), (405, None), "{method}");
    }
    assert_eq!((fixture.exchanges().await, fixture.get("").await.code()), (0, "consent_required"));

    // The valid callback is still accepted.
    let page = other.open(&callback).await;
    assert_eq!((page.status(), page.text().contains("Connected")), (200, true), "{}", page.text());
    assert_eq!((fixture.exchanges().await, fixture.account("").await.as_str()), (1, "ann"));
    fixture.check_no_secret_shown(&tab.page().await).await;
}

#[tokio::test]
async fn a_servers_error_description_is_shown_as_escaped_text() {
    let fixture = Fixture::op("p-web").await;
    let (tab, link) = (fixture.browser.tab("a", "1"), fixture.link("").await);
    fixture.arrive(tab, &link).await;
    let request = fixture.server.authorizations("p-web").await.pop().expect("a request");
    let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let description = "<img src=x onerror=alert(1)><script>alert(2)</script>\r\nSet-Cookie: planted=1";
    let url = format!(
        "{}/oauth/callback?state={}&iss={}&error=server_error&error_description={}&error_uri={}",
        fixture.public(),
        encoded(text(&request["state"])),
        encoded(&fixture.server.issuer()),
        encoded(description),
        encoded("https://evil.test/more"),
    );
    let page = refused!(tab.open(&url).await, "server_error");
    assert!(page.text().contains("alert(1)"), "the text is shown: {}", page.text());
    assert!(!page.html().contains("<img") && !page.html().contains("<script"), "{}", page.html());
    assert!(!page.html().contains("evil.test"), "{}", page.html());
    assert!(page.cookies().iter().all(|cookie| cookie["name"] != "planted"));
    fixture.check_pages(&page);
    assert!(!fixture.sidecar.log().contains("\nSet-Cookie"), "it does not add lines to the log");
    // That flow has failed; the link begins a new one.
    let page = fixture.connect(fixture.browser.tab("a", "2"), &link, "ann").await;
    assert_eq!((page.status(), fixture.exchanges().await), (200, 1));
}
