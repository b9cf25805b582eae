//! `GET connections/{name}/logo`, with an https server behind `hosts`: re-encoded, fetched once, refused with a reason.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use futures_util::future::join_all;
use serde_json::json;

use super::{MANAGER, VIEWER, call};
use crate::rig::front::{Front, SelfSigned};
use crate::rig::raw::RawResponse;
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const COMMENT: &str = "a comment in the original image";

/// An https server of logos for `logo.test`, `localhost` and 127.0.0.1, and a sidecar that trusts its certificate.
struct Stage {
    sidecar: Sidecar,
    server: Scripted,
    front: Front,
}

impl Stage {
    /// `connections`: name and logo URL of each; `PORT` is the server's. `more`: further keys of each connection.
    async fn start(connections: &[(&str, &str)], more: &str) -> Stage {
        let own = SelfSigned::for_names("DNS:logo.test,DNS:localhost,IP:127.0.0.1");
        let server = Scripted::start(reply).await;
        let front = Front::start(&own, server.address).await;
        let text = config(front.address, connections, more);
        let sidecar = Sidecar::start_with(&text, &[("own.pem", own.certificate.as_str())]).await;
        Stage { sidecar, server, front }
    }

    async fn logo(&self, name: &str) -> RawResponse {
        call(self.sidecar.admin(), "get", &format!("/api/v1/connections/{name}/logo"), VIEWER, None).await
    }

    /// Applies a configuration with these connections.
    async fn reload(&self, connections: &[(&str, &str)]) {
        let dir = self.sidecar.dir.path();
        replace(&dir.join("keybearer.yaml"), &config(self.front.address, connections, ""));
        let reloaded = call(self.sidecar.admin(), "post", "/api/v1/reload", MANAGER, Some(&json!({}))).await;
        assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    }

    /// Checks that there is no logo, for this reason.
    async fn check_refused(&self, name: &str, reason: &str) {
        let response = self.logo(name).await;
        assert_eq!((response.status, response.header("cache-control")), (404, Some("no-store")), "{name}");
        let problem = response.json();
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert_eq!(problem["code"], "no_logo", "{name}");
        assert!(detail.contains(reason), "{name}: {detail}");
    }
}

/// Replaces a file atomically, as careful editors do.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).expect("a file");
    std::fs::rename(next, path).expect("a file");
}

fn config(server: SocketAddr, connections: &[(&str, &str)], more: &str) -> String {
    let mut text = format!(
        "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}}\nhosts: {{logo.test: \"{server}\"}}\n\
         trust: [own.pem]\nadmin: {{users: [{{name: v, role: viewer, token: {VIEWER}}}, \
         {{name: m, role: manager, token: {MANAGER}}}]}}\nconnections:\n"
    );
    for (name, url) in connections {
        let url = url.replace("PORT", &server.port().to_string());
        let logo = if url.is_empty() { String::new() } else { format!(", logo_url: \"{url}\"") };
        let _ = writeln!(
            text,
            "- {{name: {name}, active: false, client_id: a, token_url: \"https://as.test/t\"{logo}{more}}}"
        );
    }
    text
}

fn reply(request: &Received, _: usize) -> Reply {
    let path = request.request_line().split(' ').nth(1).unwrap_or_default();
    let redirect = |to: String| Reply::Bytes(format!("HTTP/1.1 302 X\r\nLocation: {to}\r\n\r\n").into_bytes());
    match path.split('?').next().unwrap_or_default() {
        "/logo.png" => image(&png(300, 150)),
        "/moved" => redirect("/moved-again".into()),
        "/moved-again" => redirect("https://user:secret@logo.test/logo.png#top".into()),
        "/loop" => redirect("/loop".into()),
        "/to-http" => redirect("http://logo.test/logo.png".into()),
        // The path of the redirect is that of the address, to which it leads.
        path if path.starts_with("/to/") => redirect(format!("https://{}/logo.png", &path["/to/".len()..])),
        "/large.png" => image(&[png(300, 150), vec![0; 256 * 1024]].concat()),
        "/huge.png" => image(&png(1025, 1)),
        "/half.png" => Reply::BytesThenClose(b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\n\x89PNG".to_vec()),
        "/logo.svg" => Reply::text(200, "image/svg+xml", "<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>"),
        "/page" => Reply::text(200, "image/png", "<!doctype html><title>Sign in</title>"),
        "/slow" => Reply::Silence,
        _ => Reply::text(404, "text/plain", "absent"),
    }
}

fn image(bytes: &[u8]) -> Reply {
    // The type is wrong; the bytes decide.
    let head = format!("HTTP/1.1 200 X\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n", bytes.len());
    Reply::Bytes([head.as_bytes(), bytes].concat())
}

/// A red PNG with a comment.
fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.add_text_chunk("Comment".into(), COMMENT.into()).expect("a chunk");
    let pixels = [200, 0, 0].repeat((width * height) as usize);
    encoder.write_header().expect("a header").write_image_data(&pixels).expect("pixels");
    bytes
}

/// Checks that the response is a PNG of 128 × 64 red pixels that Keybearer encoded.
#[track_caller]
fn check_png(response: &RawResponse) {
    assert_eq!(response.status, 200, "{}", response.text());
    for (name, value) in [
        ("content-type", "image/png"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "private, max-age=600"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ] {
        assert_eq!(response.values(name), [value], "{name}");
    }
    let mut reader = png::Decoder::new(std::io::Cursor::new(&response.body)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let frame = reader.next_frame(&mut pixels).expect("pixels");
    assert_eq!((frame.width, frame.height, frame.color_type), (128, 64, png::ColorType::Rgba));
    assert!(pixels.chunks(4).all(|pixel| pixel == [200, 0, 0, 255]));
    let contains = |part: &[u8]| response.body.windows(part.len()).any(|window| window == part);
    assert!(!contains(COMMENT.as_bytes()) && !contains(b"tEXt"));
}

#[tokio::test]
async fn a_logo_is_fetched_once_and_encoded_again() {
    let url = "https://logo.test/logo.png?v=2";
    let stage = Stage::start(&[("crm", url), ("other", url), ("moved", "https://logo.test/moved")], "").await;
    for response in join_all(["crm", "other"].repeat(8).iter().map(|name| stage.logo(name))).await {
        check_png(&response);
    }
    assert_eq!(stage.server.count(), 1);
    check_png(&stage.logo("moved").await);
    let received = stage.server.received();
    let lines: Vec<_> = received.iter().map(Received::request_line).collect();
    let expected = ["/logo.png?v=2", "/moved", "/moved-again", "/logo.png"];
    assert_eq!(lines, expected.map(|path| format!("GET {path} HTTP/1.1")));
    for request in received {
        assert_eq!(request.values("host"), ["logo.test"]);
        for credential in ["authorization", "cookie", "referer", "proxy-authorization", "origin"] {
            assert!(request.values(credential).is_empty(), "{}", request.head);
        }
    }
}

#[tokio::test]
async fn a_logo_that_is_refused_says_why_and_a_slow_one_delays_no_other() {
    let refused = [
        ("none", "", "has no `logo_url`"),
        ("svg", "https://logo.test/logo.svg", "SVG is not supported, since it can hold scripts"),
        ("page", "https://logo.test/page", "it is a web page"),
        ("large", "https://logo.test/large.png", "larger than 256 KiB"),
        ("huge", "https://logo.test/huge.png", "1025 × 1 pixels, more than 1024 × 1024"),
        ("half", "https://logo.test/half.png", "no complete response"),
        ("absent", "https://logo.test/absent", "responded with status 404"),
        ("loop", "https://logo.test/loop", "more than 3 redirects"),
        ("to-http", "https://logo.test/to-http", "not https"),
        ("unknown", "https://absent.invalid/logo.png", "cannot be resolved"),
    ];
    let slow = ("slow", "https://logo.test/slow", "did not arrive within 10 seconds");
    let connections: Vec<_> = refused.iter().chain([&slow]).map(|(name, url, _)| (*name, *url)).collect();
    let stage = Stage::start(&connections, "").await;
    let all = async {
        for (name, _, reason) in refused {
            stage.check_refused(name, reason).await;
        }
        let before = stage.server.count();
        stage.check_refused("absent", "404").await;
        assert_eq!(stage.server.count(), before, "a failure is remembered");
    };
    tokio::join!(stage.check_refused(slow.0, slow.2), all);
    stage.sidecar.wait_for_log("\"message\":\"no logo\"").await;
}

#[tokio::test]
async fn no_definition_opens_a_private_address_for_a_logo() {
    let hosts = ["127.0.0.1:PORT", "localhost:PORT", "[::ffff:127.0.0.1]:PORT", "169.254.169.254"];
    let urls = hosts.map(|host| [format!("https://{host}/logo.png"), format!("https://logo.test/to/{host}")]);
    let names: Vec<_> = (0..2 * urls.len()).map(|number| format!("private-{number}")).collect();
    let connections: Vec<_> =
        names.iter().map(String::as_str).zip(urls.as_flattened().iter().map(String::as_str)).collect();
    // The routes of the file open these addresses for requests.
    let routes = hosts.map(|host| format!("{{host: \"{}:*\", only_when_named: true}}", host.trim_end_matches(":PORT")));
    let stage = Stage::start(&connections, &format!(", routes: [{}]", routes.join(", "))).await;
    for (name, _) in connections {
        stage.check_refused(name, "has an address that is private, reserved or Keybearer's own").await;
    }
    let received = stage.server.received();
    assert!(received.iter().all(|request| request.request_line().starts_with("GET /to/")), "{received:?}");
    assert_eq!(received.len(), hosts.len());
}

#[tokio::test]
async fn a_reload_keeps_the_logos_that_connections_name() {
    let crm = ("crm", "https://logo.test/logo.png");
    let stage = Stage::start(&[crm], "").await;
    check_png(&stage.logo("crm").await);
    stage.reload(&[crm, ("other", "https://logo.test/logo.svg")]).await;
    check_png(&stage.logo("crm").await);
    assert_eq!(stage.server.count(), 1);
    stage.reload(&[("crm", "")]).await;
    stage.check_refused("crm", "has no `logo_url`").await;
    stage.reload(&[crm]).await;
    check_png(&stage.logo("crm").await);
    assert_eq!(stage.server.count(), 2);
}
