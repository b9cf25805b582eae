//! Caller authentication: a credential alone identifies its caller, and no caller gets another caller's token.

use base64::prelude::{BASE64_STANDARD, Engine};
use http::Version;
use serde_json::json;

use crate::rig::interception::interception;
use crate::rig::peers::{Http2Server, Peers};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};
use crate::rig::tunnel_client::TunnelClient;

/// `printf shared | sha256sum`
const SHA256_OF_SHARED: &str = "a4d26868017c0ccffe2efe50944ef4211834660cca834c6e9f86dec6a88246fa";

struct Scene {
    sidecar: Sidecar,
    upstream: Scripted,
    _tokens: Scripted,
}

impl Scene {
    /// Connections `a` (for billing) and `b` (for batch) on one host, `only-a`, `none`, and `mounted` on a mount.
    async fn start(callers: &str) -> Scene {
        let tokens = Scripted::start(|request, _| {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            let id =
                body.split("client_id=").nth(1).and_then(|rest| rest.split('&').next()).unwrap_or("none").to_owned();
            Reply::token(&format!("token-of-{id}"), 3600)
        })
        .await;
        let upstream = Scripted::upstream().await;
        let connection = |name: &str, from: &str, route: &str| {
            format!(
                "- {{name: {name}, client_id: {name}, client_secret: s, token_url: \"http://{}/token\", \
                 accessible_from: [{from}], routes: [{{{route}, upstream_tls: false}}]}}\n",
                tokens.address
            )
        };
        let by_application = connection("app", "X", "host: app.test")
            .replace("accessible_from: [X]", "application: erp, accessible_from: application");
        let config = format!(
            "hosts: {{app.test: \"{0}\", api.test: \"{0}\", only-a.test: \"{0}\", none.test: \"{0}\", other.test: \"{0}\"}}\ncallers:\n{callers}connections:\n{1}{2}{3}{4}{5}{by_application}",
            upstream.address,
            connection("a", "billing", "host: api.test"),
            connection("b", "batch", "host: api.test"),
            connection("only-a", "billing", "host: only-a.test"),
            connection("none", "", "host: none.test"),
            connection("mounted", "billing", "mount: /m, upstream: \"http://api.test\""),
        );
        Scene { sidecar: Sidecar::start(&config).await, upstream, _tokens: tokens }
    }

    /// Sends a request with these header lines. Returns status, code, and the Authorization that reached the upstream.
    async fn send(&self, url: &str, lines: &str) -> (u16, String, Option<String>) {
        let before = self.upstream.count();
        let response = match url.starts_with('/') {
            true => {
                raw::send(
                    self.sidecar.proxy(),
                    format!("GET {url} HTTP/1.1\r\nHost: kb\r\n{lines}Connection: close\r\n\r\n").as_bytes(),
                )
                .await
            }
            false => raw::get_through(self.sidecar.proxy(), url, lines).await,
        };
        let received = self.upstream.received();
        for request in &received {
            assert!(request.values("proxy-authorization").is_empty(), "{}", request.head);
            assert!(!request.head.to_ascii_lowercase().contains("keybearer-authorization"), "{}", request.head);
        }
        let arrived = received.get(before).map(|request| request.values("authorization").join(" + "));
        (response.status, response.code().to_owned(), arrived)
    }
}

const CALLERS: &str = "- {name: billing, secret: s3cret, application: erp}\n- {name: batch, secret: other}\n\
    - {name: hashed, secret: {sha256: HEX}}\n- {name: local, cidr: [127.0.0.0/8]}\n- {name: far, secret: far, cidr: [10.0.0.0/8]}\n\
    - {name: near, secret: near, cidr: [127.0.0.0/8]}\n";

fn basic(name: &str, secret: &str) -> String {
    format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("{name}:{secret}")))
}

#[tokio::test]
async fn each_caller_gets_its_own_token_for_the_same_host() {
    let scene = Scene::start(&CALLERS.replace("HEX", SHA256_OF_SHARED)).await;
    let url = "http://api.test/x";
    for (row, lines, status, code, token) in [
        ("TC-25 basic a", basic("billing", "s3cret"), 200, "", Some("Bearer token-of-a")),
        ("TC-25 basic b", basic("batch", "other"), 200, "", Some("Bearer token-of-b")),
        ("bearer a", "Proxy-Authorization: Bearer s3cret\r\n".to_owned(), 200, "", Some("Bearer token-of-a")),
        ("bearer b", "proxy-authorization: bearer other\r\n".to_owned(), 200, "", Some("Bearer token-of-b")),
        ("a's secret with b's name", basic("batch", "s3cret"), 407, "caller_unknown", None),
        ("wrong secret although the address matches", basic("local", "x"), 407, "caller_unknown", None),
        (
            "wrong bearer although the address matches",
            "Proxy-Authorization: Bearer x\r\n".to_owned(),
            407,
            "caller_unknown",
            None,
        ),
        ("empty credential", "Proxy-Authorization: \r\n".to_owned(), 407, "caller_unknown", None),
        ("unknown scheme", "Proxy-Authorization: Digest s3cret\r\n".to_owned(), 407, "caller_unknown", None),
        ("not base64", "Proxy-Authorization: Basic !!\r\n".to_owned(), 407, "caller_unknown", None),
        ("two credentials", basic("billing", "s3cret") + &basic("batch", "other"), 407, "caller_unknown", None),
        ("secret from a wrong address", basic("far", "far"), 407, "caller_unknown", None),
        ("no credential: by address, not allowed", String::new(), 403, "caller_not_allowed", None),
        ("known, but not allowed", basic("hashed", "shared"), 403, "caller_not_allowed", None),
        ("the hash is not a secret", basic("hashed", SHA256_OF_SHARED), 407, "caller_unknown", None),
        (
            "the mount's field is ignored here",
            "Keybearer-Authorization: Bearer s3cret\r\n".to_owned(),
            403,
            "caller_not_allowed",
            None,
        ),
    ] {
        let expected = (status, code.to_owned(), token.map(str::to_owned));
        assert_eq!(scene.send(url, &lines).await, expected, "{row}");
    }
    let (none, only) = ("http://none.test/", "http://only-a.test/");
    for (row, url, lines, status, token) in [
        ("accessible_from: []", none, basic("billing", "s3cret"), 403, None),
        ("accessible_from names it", only, basic("billing", "s3cret"), 200, Some("Bearer token-of-only-a")),
        ("accessible_from names another", only, basic("batch", "other"), 403, None),
        (
            "a caller of the application",
            "http://app.test/",
            basic("billing", "s3cret"),
            200,
            Some("Bearer token-of-app"),
        ),
        ("a caller without application", "http://app.test/", basic("batch", "other"), 403, None),
        ("both conditions hold", "http://other.test/", basic("near", "near"), 200, Some("")),
        ("by address, no route", "http://other.test/", String::new(), 200, Some("")),
        ("sha256", "http://other.test/", basic("hashed", "shared"), 200, Some("")),
    ] {
        let (got, _, arrived) = scene.send(url, &lines).await;
        assert_eq!((got, arrived.as_deref()), (status, token), "{row}");
    }
}

#[tokio::test]
async fn without_a_credential_or_a_matching_address_the_proxy_requests_one() {
    let scene = Scene::start("- {name: billing, secret: s3cret}\n- {name: batch, cidr: [10.0.0.0/8]}\n").await;
    let mut conn = Conn::open(scene.sidecar.proxy()).await;
    let request = |lines: &str| {
        format!("POST http://api.test/ HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\n{lines}\r\nbody")
    };
    conn.write(request("").as_bytes()).await;
    let response = conn.read_response().await;
    assert_eq!(
        (response.status, response.code(), response.header("proxy-authenticate")),
        (407, "caller_unknown", Some("Basic realm=\"keybearer\""))
    );
    assert_eq!(response.json()["action"], "authenticate");
    conn.write(request(&basic("billing", "s3cret")).as_bytes()).await;
    let response = conn.read_response().await;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"), "the connection stays usable after 407");
    conn.write(request("").as_bytes()).await;
    assert_eq!(conn.read_response().await.status, 407, "a credential holds for its request, not for the connection");
    assert_eq!(scene.upstream.count(), 1);
}

#[tokio::test]
async fn a_mount_requests_credentials_with_401_in_its_own_field() {
    let scene = Scene::start("- {name: billing, secret: s3cret}\n- {name: batch, secret: other}\n").await;
    let response = raw::get(scene.sidecar.proxy(), "/m/x").await;
    assert_eq!((response.status, response.code()), (401, "caller_unknown"));
    assert!(response.header("www-authenticate").is_some() && response.header("proxy-authenticate").is_none());
    let encoded = BASE64_STANDARD.encode("billing:s3cret");
    for (row, lines, status, token) in [
        ("basic", format!("Keybearer-Authorization: Basic {encoded}\r\n"), 200, Some("Bearer token-of-mounted")),
        ("bearer", "Keybearer-Authorization: Bearer s3cret\r\n".to_owned(), 200, Some("Bearer token-of-mounted")),
        ("wrong", "Keybearer-Authorization: Bearer nope\r\n".to_owned(), 401, None),
        ("another's", "Keybearer-Authorization: Bearer other\r\n".to_owned(), 403, None),
        ("the proxy's field is ignored here", basic("billing", "s3cret"), 401, None),
    ] {
        let (got, _, arrived) = scene.send("/m/x", &lines).await;
        assert_eq!((got, arrived.as_deref()), (status, token), "{row}");
    }
}

#[tokio::test]
async fn an_open_tunnel_never_passes_to_another_caller() {
    let tokens = Scripted::start(|request, _| {
        let of = if String::from_utf8_lossy(&request.body).contains("client_id=ca") { "alice" } else { "bob" };
        Reply::token(&format!("token-of-{of}"), 3600)
    })
    .await;
    let upstream = Http2Server::start(json!({})).await;
    let config = |callers: [&str; 2]| {
        let connection = |client: &str, caller: &str| {
            // The routes of a caller that is not configured are open to no caller.
            let from = if callers.iter().any(|own| own.contains(caller)) { caller } else { "" };
            format!(
                "- {{name: {client}, client_id: {client}, client_secret: s, token_url: \"http://{}/token\", accessible_from: [{from}], \
                 routes: [{{host: api.test}}]}}\n",
                tokens.address
            )
        };
        format!(
            "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}}\nhosts: {{api.test: \"127.0.0.1:{}\"}}\ntrust: [{}]\n{}callers: [{}]\n\
             connections:\n{}{}",
            upstream.port(),
            Peers::certs().ca.display(),
            interception(),
            callers.join(", "),
            connection("ca", "alice"),
            connection("cb", "bob"),
        )
    };
    const ALICE: &str = "{name: alice, secret: of-alice}";
    const BOB: &str = "{name: bob, secret: of-bob}";
    let first = config([ALICE, BOB]);
    let sidecar = Sidecar::start(&first).await;
    let mut applied = 0.0;
    let mut reload = async |text: &str| {
        std::fs::write(sidecar.dir.path().join("keybearer.yaml"), text).expect("a file");
        sidecar.signal("HUP");
        applied += 1.0;
        let series = "keybearer_config_reloads_total{outcome=\"applied\"}";
        sidecar.wait_for_metric(series, |value| value >= applied).await;
    };
    const KINDS: [(bool, Version); 4] =
        [(false, Version::HTTP_11), (true, Version::HTTP_11), (false, Version::HTTP_2), (true, Version::HTTP_2)];
    for (row, changed, keeps) in [
        ("swapped", config([BOB, ALICE]), true),
        ("removed", config([BOB, "{name: carol, secret: of-carol}"]), false),
        ("another secret", config(["{name: alice, secret: changed}", BOB]), false),
        ("another secret, and swapped", config([BOB, "{name: alice, secret: changed}"]), false),
        ("another network too", config(["{name: alice, secret: of-alice, cidr: [10.0.0.0/8]}", BOB]), false),
    ] {
        let mut tunnels = Vec::new();
        for (secure, version) in KINDS {
            let mut tunnel = TunnelClient::open(sidecar.proxy(), &basic("alice", "of-alice"), secure, version).await;
            let (status, text) = tunnel.get_text(secure, "/echo").await;
            assert!(status == 200 && text.contains("Bearer token-of-alice"), "{row} {version:?} {secure}: {text}");
            tunnels.push((secure, version, tunnel));
        }
        let mut kept = Conn::open(sidecar.proxy()).await;
        let plain =
            format!("GET http://api.test/echo HTTP/1.1\r\nHost: api.test\r\n{}\r\n", basic("alice", "of-alice"));
        kept.write(plain.as_bytes()).await;
        assert!(kept.read_response().await.text().contains("Bearer token-of-alice"), "{row}");
        reload(&changed).await;
        for (secure, version, tunnel) in &mut tunnels {
            let (status, text) = tunnel.get_text(*secure, "/echo").await;
            if keeps {
                assert!(status == 200 && text.contains("Bearer token-of-alice"), "{row} {version:?} {secure}: {text}");
                continue;
            }
            assert!(status == 407 && text.contains("caller_unknown"), "{row} {version:?} {secure}: {status} {text}");
            tunnel.ends().await;
        }
        kept.write(plain.as_bytes()).await;
        assert_eq!(kept.read_response().await.status, if keeps { 200 } else { 407 }, "{row}: a keep-alive connection");
        reload(&first).await;
    }
    let injected = |connection: &str| {
        format!("keybearer_injections_total{{connection=\"{connection}\",profile=\"default\",outcome=\"injected\"}}")
    };
    assert_eq!((sidecar.metric(&injected("ca")).await, sidecar.metric(&injected("cb")).await), (30.0, 0.0));
}

/// `echo`, editors and `kubectl` leave a trailing newline.
#[tokio::test]
async fn one_trailing_newline_of_a_secret_from_the_environment_is_dropped() {
    let (tokens, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let config = format!(
        "hosts: {{api.test: \"{}\"}}\nadmin: {{users: [{{name: ops, role: viewer, token: {{env: OPS}}}}]}}\n\
         callers: [{{name: billing, secret: {{env: BILLING}}}}, {{name: batch, secret: \"${{env:BATCH}}\"}}]\nconnections:\n\
         - {{name: crm, client_id: \"id-${{env:NUMBER}}\", client_secret: {{env: CLIENT}}, token_url: \"http://{}/token\", \
         routes: [{{host: api.test, upstream_tls: false}}]}}\n",
        upstream.address, tokens.address
    );
    let set = ["BILLING=s3cret\n", "BATCH=other\r\n", "NUMBER=7\n", "CLIENT=two\n\n", "OPS=operator-token-0123\n"];
    let set: Vec<_> = set.map(|text| text.split_once('=').expect("a value")).to_vec();
    let environment: Vec<_> = set.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let sidecar = Sidecar::start_in(&config, &environment).await;
    for credential in [basic("billing", "s3cret"), basic("batch", "other")] {
        let response = raw::get_through(sidecar.proxy(), "http://api.test/x", &credential).await;
        assert_eq!((response.status, response.code()), (200, ""), "{credential}: {}", response.text());
    }
    let sent = String::from_utf8(tokens.received().remove(0).body).expect("a form");
    assert!(sent.contains("client_id=id-7&client_secret=two%0A"), "exactly one newline is removed: {sent}");
    let mut command = program();
    command.args(["connections", "--admin", &format!("http://{}", sidecar.admin())]);
    let output =
        command.env("KEYBEARER_ADMIN_TOKEN", "operator-token-0123\n").output().await.expect("the command starts");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
