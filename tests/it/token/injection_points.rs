//! Injection points other than `Authorization: Bearer`: other headers and schemes, the query; and `set_headers`.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::rig::config::{Config, Connection};
use crate::rig::manager::{MANAGER, call};
use crate::rig::raw;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

struct Stage {
    sidecar: Sidecar,
    upstream: Scripted,
    _tokens: Scripted,
}

impl Stage {
    /// Starts a sidecar with one route per host and keys.
    async fn start(routes: &[(&str, &str)]) -> Stage {
        let tokens = Scripted::start(|_, before| Reply::token(&format!("tok+en/{before}="), 3600)).await;
        let refused = AtomicBool::new(false);
        let upstream = Scripted::start(move |request, _| {
            let again = request.request_line().contains("refuse-once") && !refused.swap(true, Ordering::SeqCst);
            if again { Reply::text(401, "text/plain", "no") } else { Reply::ok() }
        })
        .await;
        let mut config = Config::new().manager().top("log: {level: trace, requests: all}\n");
        let mut crm = Connection::at("crm", &tokens);
        for (host, keys) in routes {
            config = config.host(host, upstream.address);
            crm = crm.route(format_args!("host: {host}, upstream_tls: false, {keys}"));
        }
        let config = config.connection(crm);
        Stage { sidecar: Sidecar::start(&config).await, upstream, _tokens: tokens }
    }

    /// Returns status and code of the response, and the request that the upstream received, if any.
    async fn send(&self, url: &str, lines: &str) -> (u16, String, Option<crate::rig::scripted::Received>) {
        let before = self.upstream.count();
        let response = raw::get_through(self.sidecar.proxy(), &format!("http://{url}"), lines).await;
        let arrived = self.upstream.received().into_iter().nth(before);
        (response.status, response.code().to_owned(), arrived)
    }
}

#[tokio::test]
async fn a_token_is_injected_into_the_header_and_with_the_scheme_of_the_route() {
    let stage = Stage::start(&[
        ("zoho.test", "inject: {scheme: Zoho-oauthtoken}"),
        ("shop.test", "inject: {header: X-Shopify-Access-Token, scheme: \"\"}"),
        ("notion.test", "set_headers: {Notion-Version: \"2022-06-28\", X-Own: \"${env:PATH}\"}"),
    ])
    .await;
    let (_, _, zoho) = stage.send("zoho.test/x", "Authorization: Basic x\r\n").await;
    assert_eq!(zoho.expect("a request").values("authorization"), ["Zoho-oauthtoken tok+en/0="]);
    let (_, _, shop) = stage.send("shop.test/x", "X_Shopify_Access_Token: mine\r\nAuthorization: kept\r\n").await;
    let shop = shop.expect("a request");
    assert_eq!(
        (shop.values("x-shopify-access-token"), shop.values("authorization")),
        (vec!["tok+en/0="], vec!["kept"])
    );
    assert!(shop.values("x_shopify_access_token").is_empty());
    let (_, _, notion) = stage.send("notion.test/x", "notion-version: 1\r\nNotion_Version: 2\r\n").await;
    let notion = notion.expect("a request");
    assert_eq!((notion.values("notion-version"), notion.values("notion_version").len()), (vec!["2022-06-28"], 0));
    assert_eq!(notion.values("authorization"), ["Bearer tok+en/0="]);
    let shown = call(stage.sidecar.admin(), "GET", "/connections/crm", &json!({})).await.json();
    assert_eq!(shown["routes"][2]["set_headers"], json!({ "Notion-Version": { "set": true }, "X-Own": "${env:PATH}" }));
}

#[tokio::test]
async fn a_token_in_the_query_is_sent_once_and_never_logged() {
    let stage = Stage::start(&[
        ("plain.test", "inject: {query: access_token}"),
        ("keep.test", "inject: {query: access_token}, existing: keep"),
        ("refuse.test", "inject: {query: access_token}, existing: refuse"),
    ])
    .await;
    let line = |arrived: Option<crate::rig::scripted::Received>| arrived.expect("a request").request_line().to_owned();
    for (path, expected) in [
        ("/x", "/x?access_token=tok%2Ben%2F0%3D"),
        ("/x?a=%20b&access_token=mine&c", "/x?a=%20b&c&access_token=tok%2Ben%2F0%3D"),
        ("/x?acc%65ss_token=mine", "/x?access_token=tok%2Ben%2F0%3D"),
    ] {
        let (status, _, arrived) = stage.send(&format!("plain.test{path}"), "Authorization: own\r\n").await;
        assert_eq!((status, line(arrived)), (200, format!("GET {expected} HTTP/1.1")), "{path}");
    }
    let (_, _, kept) = stage.send("keep.test/x?access_token=mine", "").await;
    assert_eq!(line(kept), "GET /x?access_token=mine HTTP/1.1");
    let (status, code, arrived) = stage.send("refuse.test/x?access_token=mine", "").await;
    assert_eq!((status, code.as_str(), arrived.is_none()), (400, "bad_request_target", true));
    // A rejected token is replaced in the query.
    let before = stage.upstream.count();
    let (status, ..) = stage.send("plain.test/refuse-once?a=1", "").await;
    let sent: Vec<_> =
        stage.upstream.received()[before..].iter().map(|request| request.request_line().to_owned()).collect();
    assert_eq!(status, 200);
    assert_eq!(sent, ["0", "1"].map(|n| format!("GET /refuse-once?a=1&access_token=tok%2Ben%2F{n}%3D HTTP/1.1")));
    let tried =
        call(stage.sidecar.admin(), "POST", "/connections/crm/test", &json!({ "url": "http://plain.test/x?b=2" }))
            .await;
    assert_eq!(tried.status, 200, "{}", tried.text());
    let last = stage.upstream.received().pop().expect("a request");
    assert_eq!(last.request_line(), "GET /x?b=2&access_token=tok%2Ben%2F1%3D HTTP/1.1");
    stage.sidecar.wait_for_log("/refuse-once").await;
    let log = stage.sidecar.log();
    assert!(tried.text().contains("plain.test"), "{}", tried.text());
    for secret in ["tok+en", "tok%2Ben"] {
        assert!(!log.contains(secret) && !tried.text().contains(secret), "{log}");
    }
}

/// `crm` with a route that also carries the token of `maps`, in another header.
async fn start_with_two(more: &str, maps: &str) -> (Sidecar, Scripted, Scripted) {
    let tokens = Scripted::start(|request, before| {
        let client = if String::from_utf8_lossy(&request.body).contains("client_id=maps") { "maps" } else { "crm" };
        Reply::token(&format!("{client}-{before}"), 3600)
    })
    .await;
    let refused = AtomicBool::new(false);
    let upstream = Scripted::start(move |request, _| {
        let again = request.request_line().contains("refuse-once") && !refused.swap(true, Ordering::SeqCst);
        if again { Reply::text(401, "text/plain", "no") } else { Reply::ok() }
    })
    .await;
    let url = format!("http://{}/token", tokens.address);
    let config = format!(
        "admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nhosts: {{api.test: \"{}\"}}\ncallers: [{{name: both, \
         secret: both}}, {{name: one, secret: one}}]\nconnections:\n- {{name: crm, client_id: crm, client_secret: s, send_credentials: \
         body, token_url: \"{url}\", routes: [{{host: api.test, upstream_tls: false, inject: [{{}}, {{header: X-Maps-Token, \
         scheme: \"\", connection: maps}}], {more}}}]}}\n- {{name: maps, accessible_from: [both], client_id: maps, client_secret: s, \
         send_credentials: body, token_url: \"{url}\"{maps}}}\n",
        upstream.address
    );
    (Sidecar::start(&config).await, upstream, tokens)
}

const BOTH: &str = "Proxy-Authorization: Bearer both\r\n";

#[tokio::test]
async fn one_request_carries_the_tokens_of_two_connections() {
    let (sidecar, upstream, tokens) = start_with_two("existing: overwrite", "").await;
    let send = |path: &str, lines: String| {
        let (at, url) = (sidecar.proxy(), format!("http://api.test/{path}"));
        async move { raw::get_through(at, &url, &lines).await }
    };
    let response = send("x", format!("{BOTH}X-Maps-Token: mine\r\n")).await;
    assert_eq!(response.status, 200, "{}\n{}", response.text(), sidecar.log());
    let arrived = upstream.received().remove(0);
    let sent = |name: &str| arrived.values(name).join(" + ");
    assert!(sent("authorization").starts_with("Bearer crm-"), "{}", arrived.head);
    assert!(sent("x-maps-token").starts_with("maps-"), "{}", arrived.head);
    // A caller that may not use one of the connections may not use the route.
    let response = send("x", "Proxy-Authorization: Bearer one\r\n".to_owned()).await;
    assert_eq!((response.status, response.code()), (403, "caller_not_allowed"));
    // A rejection does not name the rejected token, so both are refreshed and the request is replayed once.
    assert_eq!(send("refuse-once", BOTH.to_owned()).await.status, 200);
    assert_eq!((upstream.count(), tokens.count()), (3, 4));
    let again = upstream.received().remove(2);
    assert_ne!(again.values("authorization"), arrived.values("authorization"));
    assert_ne!(again.values("x-maps-token"), arrived.values("x-maps-token"));
    for name in ["crm", "maps"] {
        let counted =
            format!("keybearer_injections_total{{connection=\"{name}\",outcome=\"injected\",profile=\"default\"}}");
        sidecar.wait_for_metric(&counted, |count| count == 2.0).await;
    }
    let shown = call(sidecar.admin(), "GET", "/connections/crm", &json!({})).await.json();
    assert_eq!(
        shown["routes"][0]["inject"],
        json!([{}, { "header": "X-Maps-Token", "scheme": "", "connection": "maps" }])
    );
    // An operator's test request carries both tokens as well.
    let tested = call(sidecar.admin(), "POST", "/connections/crm/test", &json!({})).await.json();
    assert_eq!(tested["status"], 200, "{tested}");
    let tested = upstream.received().remove(3);
    assert!(tested.values("x-maps-token").concat().starts_with("maps-"), "{}", tested.head);
}

#[tokio::test]
async fn a_route_is_inactive_while_one_of_its_connections_is() {
    let (sidecar, upstream, _tokens) = start_with_two("existing: refuse", ", active: false").await;
    let response = raw::get_through(sidecar.proxy(), "http://api.test/x", BOTH).await;
    assert_eq!((response.status, response.code()), (403, "connection_inactive"));
    assert_eq!((response.json()["connection"].as_str(), upstream.count()), (Some("maps"), 0));
}
