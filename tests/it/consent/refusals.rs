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
async fn a_later_tab_replaces_an_earlier_one_and_the_first_of_many_at_once_ends_all() {
    let house = House::op("p-web").await;
    let link = house.link("").await;
    let tab = |name| house.browser.tab("a", name);
    let first = house.until_callback(tab("1"), &link, "ann").await;
    let second = house.until_callback(tab("2"), &link, "ann").await;
    assert_ne!(param(&first, "state"), param(&second, "state"));
    let page = refused!(tab("4").open(&first).await, "newer link has replaced");
    assert_eq!(house.exchanges().await, 0);
    let done = tab("3").open(&second).await;
    assert_eq!((done.status(), done.text().contains("Connected")), (200, true), "{}", done.text());
    assert_eq!(house.exchanges().await, 1);
    assert_eq!(house.accepted("").await, "ann");
    house.pages_hold(&page);

    // The same link begins another flow now. Its callbacks arrive at the same moment, one of them twice.
    let third = house.until_callback(tab("5"), &link, "ann").await;
    let own = cookies(&tab("5").page().await);
    let send = async || house.visit("GET", &third, &own).await;
    let answers = tokio::join!(send(), send(), send(), send());
    let mut statuses = [answers.0.status, answers.1.status, answers.2.status, answers.3.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [303, 400, 400, 400]);
    assert_eq!(house.exchanges().await, 2);
    assert_eq!(house.accepted("").await, "ann");
    house.tells_no_secret(&tab("5").page().await).await;
}

#[tokio::test]
async fn a_callback_that_does_not_fit_is_refused_and_spoils_nothing() {
    let house = House::op("p-web").await;
    let link = house.link("").await;
    let (tab, other) = (house.browser.tab("a", "1"), house.browser.tab("a", "2"));
    let callback = house.until_callback(tab, &link, "ann").await;
    let own = cookies(&tab.page().await);
    assert!(own.contains("keybearer_browser="), "{own}");
    let (state, code, iss) = (param(&callback, "state"), param(&callback, "code"), param(&callback, "iss"));
    let last = if state.ends_with('A') { 'B' } else { 'A' };
    let tampered = format!("{}{last}", &state[..state.len() - 1]);
    let base = format!("{}/oauth/callback", house.public());
    let with = |query: String| format!("{base}?{query}");

    let cases = [
        (with(format!("code={code}&state={tampered}&iss={iss}")), "is unknown"),
        (with(format!("code={code}&iss={iss}")), "is unknown"),
        (with(format!("code={code}&state=&iss={iss}")), "is unknown"),
        (with(format!("code={code}&state=unknown&iss={iss}")), "is unknown"),
        (base.clone(), "is unknown"),
        (with(format!("code={code}&state={state}&iss=https%3A%2F%2Fevil.test")), "another server"),
        (with(format!("error=access_denied&state={state}&iss=https%3A%2F%2Fevil.test")), "another server"),
        // The server announces that it names itself.
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
        assert_eq!(house.exchanges().await, 0, "{url}");
    }
    house.pages_hold(&other.page().await);
    // Another browser, with cookies of its own or none.
    let stranger = house.browser.tab("b", "1");
    stranger.open(&link).await;
    super::sign_in(stranger).await;
    let page = stranger.until("/connect/crm", "Connect an account?").await;
    assert!(cookies(&page).contains("keybearer_browser="), "{}", cookies(&page));
    refused!(stranger.open(&callback).await, "nother browser");
    assert_eq!(house.visit("GET", &callback, "").await.status, 400);
    for method in ["HEAD", "POST", "PUT"] {
        let answer = house.visit(method, &callback, &own).await;
        assert_eq!((answer.status, answer.header("location")), (405, None), "{method}");
    }
    assert_eq!((house.exchanges().await, house.ask("").await.code()), (0, "consent_required"));

    // All of it was refused for what it was: the true one is good.
    let page = other.open(&callback).await;
    assert_eq!((page.status(), page.text().contains("Connected")), (200, true), "{}", page.text());
    assert_eq!((house.exchanges().await, house.accepted("").await.as_str()), (1, "ann"));
    house.tells_no_secret(&tab.page().await).await;
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
