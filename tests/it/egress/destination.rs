//! One destination: no request can send a token anywhere but to the origin of its route.
//!
//! Row names refer to the catalogue of hostile peers (TC, HP-15, HP-16); after each row, the invariants of `rig::stage`
//! hold.

use crate::rig::arrival::Arrival::*;
use crate::rig::arrival::{check, get};
use crate::rig::raw;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::{Stage, TOKEN};

#[tokio::test]
async fn the_request_target_alone_determines_the_destination() {
    let stage = Stage::start("").await;
    let plain = |target| get(target, "good.test", "");
    for (row, bytes, status, code, arrival) in [
        ("TC-01", plain("http://good.test/x"), 200, "", Good),
        ("TC-02 other host", plain("http://evil.test/"), 200, "", Evil),
        ("TC-02 other port", plain("http://good.test:81/"), 200, "", GoodWithoutToken),
        ("TC-02 http to 443 of an http rule", plain("http://good.test:443/"), 200, "", GoodWithoutToken),
        ("HP-16 TC-04 Host evil", get("http://good.test/x", "evil.test", ""), 200, "", Good),
        ("TC-03 target evil", get("http://evil.test/x", "good.test", ""), 200, "", Evil),
        ("TC-05 good@evil", plain("http://good.test@evil.test/"), 400, "bad_request_target", Nowhere),
        ("TC-05 evil@good", plain("http://evil.test@good.test/"), 400, "bad_request_target", Nowhere),
        ("TC-05 user:pw@good", plain("http://u:p@good.test/"), 400, "bad_request_target", Nowhere),
        ("TC-07 suffix", plain("http://good.test.evil.test/"), 200, "", Evil),
        ("TC-07 prefix", plain("http://notgood.test/"), 200, "", Evil),
        ("TC-07 substring", plain("http://goo.test/"), 200, "", Evil),
        ("TC-07 one label", plain("http://a.wild.test/"), 200, "", Good),
        ("TC-07 two labels", plain("http://a.b.wild.test/"), 200, "", Good),
        ("TC-07 apex", plain("http://wild.test/"), 200, "", Evil),
        ("TC-07 no label boundary", plain("http://evilwild.test/"), 200, "", Evil),
        ("TC-08 upper case", plain("http://GOOD.TeST/"), 200, "", Good),
        ("TC-08 trailing dot", plain("http://good.test./"), 200, "", Good),
        ("TC-08 explicit port", plain("http://good.test:80/"), 200, "", Good),
        ("TC-08 scheme in capitals", plain("HTTP://good.test/"), 200, "", Good),
        ("a query and no path", plain("http://good.test?x=1"), 200, "", Good),
        ("a query and no path, evil", plain("http://evil.test?x=/v1@good.test"), 200, "", Evil),
        ("TC-11 //evil", plain("//evil.test/"), 404, "no_mount", Nowhere),
        (
            "TC-15 X-Forwarded-Host",
            get("http://evil.test/", "evil.test", "X-Forwarded-Host: good.test\r\n"),
            200,
            "",
            Evil,
        ),
        ("TC-15 Forwarded", get("http://evil.test/", "evil.test", "Forwarded: host=good.test\r\n"), 200, "", Evil),
        (
            "TC-15 X-Original-URL",
            get("http://evil.test/", "evil.test", "X-Original-URL: http://good.test/\r\n"),
            200,
            "",
            Evil,
        ),
        (
            "TC-15 X-Rewrite-URL",
            get("http://good.test/", "good.test", "X-Rewrite-URL: http://evil.test/\r\n"),
            200,
            "",
            Good,
        ),
        ("TC-15 X-Host", get("http://good.test/", "good.test", "X-Host: evil.test\r\n"), 200, "", Good),
        (
            "TC-20 TRACE",
            "TRACE http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n".to_owned(),
            405,
            "method_refused",
            Nowhere,
        ),
        (
            "TC-20 TRACE on a mount",
            "TRACE /api/x HTTP/1.1\r\nHost: kb\r\n\r\n".to_owned(),
            405,
            "method_refused",
            Nowhere,
        ),
        (
            "HP-16 Keybearer headers",
            get("http://evil.test/", "evil.test", "Keybearer-Connection: good\r\n"),
            200,
            "",
            Evil,
        ),
    ] {
        check(&stage, row, &bytes, status, code, arrival).await;
    }
}

/// Bytes that are not HTTP get a bare 400 from the parser, all others a 400 of the proxy.
#[tokio::test]
async fn an_ambiguous_destination_is_refused() {
    let stage = Stage::start("").await;
    let mut rows: Vec<(String, String)> = Vec::new();
    for target in [
        "http://good.test%40evil.test/",
        "http://good.test%2f@evil.test/",
        "http://x@good.test@evil.test/",
        "http://good.test\\@evil.test/",
        "http:///evil.test/",
        "http:/evil.test",
        "http://good.test:0/",
        "http://good.test:65536/",
        "http://good.test:/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "http://[fe80::1%25lo]/",
        "http://good..test/",
        "http://good.test,evil.test/",
        "ftp://good.test/",
        "file:///etc/passwd",
        "gopher://good.test/",
        "ws://good.test/",
        "good.test:80",
        "good.test/x",
    ] {
        rows.push((format!("target {target}"), get(target, "good.test", "")));
    }
    for (row, hosts) in [
        ("HP-15 no Host", ""),
        ("HP-15 two Hosts", "Host: good.test\r\nHost: evil.test\r\n"),
        ("HP-15 two equal Hosts", "Host: good.test\r\nHost: good.test\r\n"),
        ("HP-15 Host with a space", "Host: good.test evil.test\r\n"),
        ("HP-15 Host with userinfo", "Host: u@good.test\r\n"),
        ("HP-15 Host with a slash", "Host: good.test/evil\r\n"),
        ("HP-15 Host with a comma", "Host: good.test,evil.test\r\n"),
        ("HP-15 Host with a bad port", "Host: good.test:99999\r\n"),
    ] {
        rows.push((row.to_owned(), format!("GET http://good.test/ HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n")));
    }
    for (row, bytes) in rows {
        let before = (stage.good.count(), stage.evil.count());
        let transcript = stage.exchange(&bytes).await;
        assert_eq!(transcript.status(), 400, "{row}: {}", transcript.text());
        assert_eq!((stage.good.count(), stage.evil.count()), before, "{row}");
        stage.assert_invariants(&row, &transcript).await;
    }
}

#[tokio::test]
async fn a_path_rule_cannot_be_bypassed() {
    let stage = Stage::start("").await;
    for path in [
        "/v1/../x",
        "/v1/..",
        "/v1/%2e%2e/x",
        "/v1/%2E./x",
        "/v1%2fx",
        "/v1%2F..%2fx",
        "/v1%5cx",
        "/v1/..;/x",
        "/v1;a/x",
        "/v1/%252e%252e/x",
        "//v1/x",
        "/x/..%2fv1/",
        "/v1/a%2f..%2f..%2fx",
        "/v1/..%00/x",
        "/%761/../x",
        // Some servers trim white space, some decode overlong UTF-8.
        "/v1/..%20/x",
        "/v1/%20..%20/x",
        "/v1/..%0a/x",
        "/v1/..%2509/x",
        "/v1%20/x",
        "/v1%20",
        "/v1/%c0%ae%c0%ae/x",
        "/v1/.%C0%AE/x",
        "/v1/%e0%80%ae%f0%80%80%ae/x",
        "/v1/a%c0%af..%c0%af..%c0%afx",
        "/v1/%c1%9c..%c1%9cx",
    ] {
        check(
            &stage,
            &format!("TC-12 {path}"),
            &get(&format!("http://scoped.test{path}"), "x", ""),
            400,
            "bad_request_target",
            Nowhere,
        )
        .await;
    }
    let backslash = stage.exchange(get("http://scoped.test/v1\\..\\x", "x", "")).await;
    assert_eq!(backslash.status(), 400, "TC-12 backslash");
    for path in ["/v10", "/v1x", "/", "/V1/", "/v", "/x/v1/"] {
        check(
            &stage,
            &format!("TC-13 {path}"),
            &get(&format!("http://scoped.test{path}"), "x", ""),
            403,
            "no_route",
            Nowhere,
        )
        .await;
    }
    for path in [
        "/v1",
        "/v1/",
        "/v1/x?../y",
        "/v1?x=/v2",
        "/v1/a%20b",
        "/v1/a%20/%20b%0a",
        "/v1/%c3%ae/%e2%82%ac/%c0%ae/%c0",
        // A path that every server reads as below /v1 is forwarded as written.
        "/%761/x",
        "/v%31/%61",
        "/v1/projects/group%2Fproject/a%2eb",
        "/v1/o/a%2F..%2Fb%252F",
        "/v1/./x",
        "/v1/a/../x",
        "/v1//x",
        "/v1/%5c;a=b/%3b",
        "/v1/%00",
        "/v1/x%",
    ] {
        check(
            &stage,
            &format!("TC-12 plain {path}"),
            &get(&format!("http://scoped.test{path}"), "x", ""),
            200,
            "",
            Good,
        )
        .await;
        let received = stage.good.received();
        assert_eq!(received[received.len() - 2].request_line(), format!("GET {path} HTTP/1.1"), "TC-12");
    }
}

#[tokio::test]
async fn a_mount_reaches_only_paths_below_its_upstream_path() {
    let stage = Stage::start("").await;
    for (path, expected) in [
        ("/api/x?q=1", "/base/x?q=1"),
        ("/api/", "/base/"),
        ("/api/api/x", "/base/api/x"),
        ("/api//x", "/base//x"),
        ("/api?q", "/base?q"),
        ("/api/a%2Fb%5C;c", "/base/a%2Fb%5C;c"),
        ("/%61pi/%61", "/base/%61"),
        ("/api/a/../b", "/base/a/../b"),
    ] {
        check(&stage, &format!("TC-28 {path}"), &get(path, "keybearer", ""), 200, "", Good).await;
        let received = stage.good.received();
        let request = &received[received.len() - 2];
        assert_eq!(request.request_line(), format!("GET {expected} HTTP/1.1"), "TC-28 {path}");
        assert_eq!(request.values("host"), ["good.test"]);
    }
    for path in [
        "/api/../x",
        "/api/..",
        "/api%2f..%2fx",
        "/api/%2e%2e/x",
        "/api/..%2fx",
        "/api/..;/x",
        "/api/%252e%252e/x",
        "/%61pi/../x",
        // Resolves below the mount, but outside the upstream's path.
        "/api/../api/x",
        "/api/..%2Fapi/x",
    ] {
        let before = stage.good.count();
        let transcript = stage.exchange(get(path, "keybearer", "")).await;
        let expected = [(400, "bad_request_target"), (404, "no_mount")];
        assert!(
            expected.contains(&(transcript.status(), transcript.code().as_str())),
            "TC-28 {path}: {}",
            transcript.text()
        );
        assert_eq!(stage.good.count(), before, "TC-28 {path}");
    }
    for path in ["/apix", "/ap", "/", "/API/x", "/x/api/"] {
        check(&stage, &format!("TC-28 {path}"), &get(path, "good.test", ""), 404, "no_mount", Nowhere).await;
    }
}

#[tokio::test]
async fn exactly_one_token_arrives_whatever_the_caller_sends_at_its_injection_point() {
    let stage = Stage::start("").await;
    for (row, host, lines) in [
        ("TC-16 one", "good.test", "Authorization: Bearer mine\r\n"),
        ("TC-16 two", "good.test", "Authorization: Bearer mine\r\nauthorization: Basic eDp5\r\n"),
        ("TC-16 mixed case", "good.test", "aUtHoRiZaTiOn:Bearer mine\r\n"),
        ("TC-17 Connection: authorization", "good.test", "Connection: authorization, close\r\n"),
        ("TC-17 custom header", "key.test", "Connection: X-Api-Key\r\nX-Api-Key: mine\r\n"),
        ("TC-18 twin", "good.test", "Authorization_: Bearer mine\r\n"),
        ("TC-18 twin of a custom header", "key.test", "X_Api_Key: mine\r\nx-api_key: mine\r\nX-Api-Key_: mine\r\n"),
    ] {
        check(&stage, row, &get(&format!("http://{host}/"), host, lines), 200, "", Good).await;
        let received = stage.good.received();
        let request = &received[received.len() - 2];
        assert!(!request.head.contains("mine"), "{row}: {}", request.head);
        let (field, value) = match host {
            "key.test" => ("x-api-key", TOKEN.to_owned()),
            _ => ("authorization", format!("Bearer {TOKEN}")),
        };
        assert_eq!(request.values(field), [value], "{row}");
    }
    for (row, lines) in [
        ("TC-16 space before the colon", "Authorization : Bearer mine\r\n"),
        ("TC-16 folded", "Authorization:\r\n Bearer mine\r\n"),
    ] {
        check(&stage, row, &get("http://good.test/", "good.test", lines), 400, "bad_request_target", Nowhere).await;
    }
    check(&stage, "TC-19", &get("http://evil.test/", "evil.test", "Authorization: Bearer mine\r\n"), 200, "", Evil)
        .await;
    assert_eq!(stage.evil.received().last().expect("a request").values("authorization"), ["Bearer mine"], "TC-19");
}

#[tokio::test]
async fn redirects_are_forwarded_and_never_followed() {
    let stage = Stage::with_reply("", |request, _| {
        let Some(status) = request.request_line().split("/to/").nth(1).and_then(|rest| rest.get(..3)) else {
            return Reply::ok();
        };
        let location = if status == "308" { "http://good.test:81/" } else { "http://evil.test/stolen" };
        Reply::Bytes(
            format!("HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").into_bytes(),
        )
    })
    .await;
    for status in [301, 302, 303, 307, 308] {
        let bytes = get(&format!("http://good.test/to/{status}"), "good.test", "");
        check(&stage, &format!("TC-21 {status}"), &bytes, status, "", Good).await;
    }
}

#[tokio::test]
async fn a_route_with_upstream_tls_never_sends_cleartext() {
    let stage = Stage::start("").await;
    for target in ["http://secure.test/", "https://secure.test/"] {
        let transcript = stage.exchange(get(target, "secure.test", "")).await;
        assert_eq!(transcript.status(), 502, "TC-23: {}", transcript.text());
        assert_eq!(stage.good.received().iter().filter(|r| r.head.contains("secure.test")).count(), 0, "TC-23");
        stage.assert_invariants("TC-23", &transcript).await;
    }
}

#[tokio::test]
async fn a_request_that_returns_to_the_proxy_is_a_loop() {
    let stage = Stage::start("").await;
    let response = raw::get_through(stage.sidecar.proxy(), "http://good.test/", "").await;
    assert_eq!(response.status, 200);
    let via = stage.good.received()[0].values("via")[0].to_owned();
    for line in [format!("Via: {via}\r\n"), format!("Via: 1.0 fred, {via}\r\nVia: 1.1 x\r\n")] {
        check(&stage, "loop", &get("http://good.test/", "x", &line), 508, "loop_detected", Nowhere).await;
        check(&stage, "loop on a mount", &get("/api/", "x", &line), 508, "loop_detected", Nowhere).await;
    }
    check(&stage, "another's Via", &get("http://good.test/", "x", "Via: 1.1 keybearer-other\r\n"), 200, "", Good).await;
}

/// TC-26: two connections with the same origin may share pooled connections, but never tokens.
#[tokio::test]
async fn requests_on_one_upstream_connection_carry_their_own_tokens() {
    let tokens = Scripted::start(|request, _| {
        let who = if String::from_utf8_lossy(&request.body).contains("client-a") { "of-a" } else { "of-b" };
        Reply::token(&format!("token-{who}"), 3600)
    })
    .await;
    let upstream = Scripted::upstream().await;
    let connection = |name: &str| {
        format!(
            "- {{name: {name}, client_id: client-{name}, client_secret: s, token_url: \"http://{}/token\", \
             routes: [{{host: api.test, path: /{name}, upstream_tls: false}}]}}\n",
            tokens.address
        )
    };
    let config = format!(
        "hosts: {{api.test: \"{}\"}}\nworkers: 1\nconnections:\n{}{}",
        upstream.address,
        connection("a"),
        connection("b")
    );
    let sidecar = Sidecar::start(&config).await;
    for name in ["a", "b", "a", "b"] {
        let response = raw::get_through(sidecar.proxy(), &format!("http://api.test/{name}/x"), "").await;
        assert_eq!(response.status, 200);
        let received = upstream.received();
        let last = received.last().expect("a request");
        assert_eq!(last.values("authorization"), [format!("Bearer token-of-{name}")]);
        assert_eq!(last.from, received[0].from, "the connection is reused");
    }
}
