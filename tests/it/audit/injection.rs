//! Untrusted input cannot forge a log line or a record, or move a terminal's cursor.

use super::*;

/// Inserted one at a time into each part of a request, and into the responses of the authorization server.
const PIECES: [&str; 12] = [
    "\r",
    "\u{1b}[2J\u{1b}]0;x\u{7}",
    "\0",
    "\u{2028}",
    "\u{202e}",
    "\u{85}",
    "\u{9b}31m",
    "\"",
    "\\\"},{\\\"",
    "\",\"caller\":\"forged\",\"x\":\"",
    "\u{2066}",
    "\u{7f}",
];
const FORGED: &str = "\r\n{\"time\":\"2026-01-01T00:00:00.000Z\",\"event\":\"use\",\"audit\":\"use\",\"caller\":\"forged\"}\n\u{1b}[31m\u{2028}\u{202e}\"\\";

fn is_deceptive(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

async fn attack(scene: &Scene) {
    let proxy = scene.sidecar.proxy();
    let mut attacks: Vec<Vec<u8>> = Vec::new();
    let mut add = |line: String, fields: String| {
        attacks.push(format!("{line}\r\n{fields}Connection: close\r\n\r\n").into_bytes());
    };
    for piece in PIECES {
        let host = "Host: api.test\r\n";
        add(format!("GET http://api.test/a{piece}b HTTP/1.1"), format!("{host}{}", billing()));
        add(format!("GET /a{piece}b HTTP/1.1"), host.to_owned());
        add(format!("GET http://api{piece}.test/ HTTP/1.1"), format!("{host}{}", billing()));
        add(format!("G{piece}T http://api.test/ HTTP/1.1"), format!("{host}{}", billing()));
        add("GET /x HTTP/1.1".to_owned(), format!("Host: a{piece}b\r\n"));
        for field in ["X-Request-Id", "User-Agent", "traceparent", "Keybearer-Subject"] {
            add("GET http://off.test/ HTTP/1.1".to_owned(), format!("{host}{}{field}: a{piece}b\r\n", billing()));
        }
        let name = BASE64_STANDARD.encode(format!("billing{piece}:s3cret"));
        add("GET http://api.test/ HTTP/1.1".to_owned(), format!("{host}Proxy-Authorization: Basic {name}\r\n"));
        add(format!("CONNECT api{piece}.test:80 HTTP/1.1"), host.to_owned());
    }
    let forged = BASE64_STANDARD.encode(format!("{FORGED}:s3cret"));
    add(
        "GET http://api.test/ HTTP/1.1".to_owned(),
        format!("Host: api.test\r\nProxy-Authorization: Basic {forged}\r\n"),
    );
    add(
        "GET http://off.test/%0d%0a%7b%22event%22%3a%22use%22%7d HTTP/1.1".to_owned(),
        format!("Host: off.test\r\n{}", billing()),
    );
    add("G!#$%&'*+-.^_`|~ET http://off.test/ HTTP/1.1".to_owned(), format!("Host: off.test\r\n{}", billing()));
    add("GET http://api.test/refused HTTP/1.1".to_owned(), format!("Host: api.test\r\n{}", billing()));
    for (before, after) in [("GET http://api.test/", " HTTP/1.1\r\n"), ("G", "T http://api.test/ HTTP/1.1\r\n")] {
        let fields = format!("{after}Host: api.test\r\n{}Connection: close\r\n\r\n", billing());
        attacks.push([before.as_bytes(), b"\xff\xfe\xc3(", fields.as_bytes()].concat());
    }
    let fields = format!("Host: off.test\r\n{}Connection: close\r\n\r\n", billing());
    attacks.push([b"GET http://off.test/ HTTP/1.1\r\nX-Request-Id: \xff\xfe\r\n", fields.as_bytes()].concat());
    for bytes in attacks {
        raw::send(proxy, &bytes).await;
    }
    for piece in PIECES {
        let head =
            format!("GET /api/v1/a{piece}b HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", scene.sidecar.admin());
        raw::send(scene.sidecar.admin(), head.as_bytes()).await;
    }
}

/// Starts a proxy whose authorization server sends the same strings.
async fn scene(top: &str) -> Scene {
    let refusing = |_: &Received, before: usize| match before % 3 {
        0 => Reply::json(400, &json!({"error": "invalid_grant", "error_description": FORGED})),
        1 => Reply::json(400, &json!({"error": FORGED, "error_description": PIECES.concat()})),
        _ => Reply::json(200, &json!({"access_token": "a\r\nb", "token_type": FORGED})),
    };
    Scene::with(top, refusing, |_, _| Reply::ok()).await
}

async fn check_lines(format: &str, audit: &str) {
    let top = |format: &str| format!("log: {{level: trace, format: {format}, requests: all}}\n{audit}");
    // The rig reads the listener addresses from JSON.
    let mut scene = scene(&top("json")).await;
    if format == "text" {
        scene.write(&top(format), "");
        scene
            .sidecar
            .wait_for_metric("keybearer_config_reloads_total{outcome=\"applied\"}", |value| value == 1.0)
            .await;
    }
    attack(&scene).await;
    scene.sidecar.signal("TERM");
    assert_eq!(scene.sidecar.exit().await.code(), Some(0));
    let log = scene.sidecar.log();
    assert!(log.lines().count() > 100 && log.contains("connection_inactive") && log.contains("invalid_grant"), "{log}");
    let text = log.split('\n').filter(|line| !line.starts_with('{')).count();
    assert!(if format == "text" { text > 100 } else { text == 0 }, "{text} lines of text in {log}");
    for line in log.split('\n') {
        assert!(!line.chars().any(is_deceptive) && !line.contains('\u{fffd}'), "{line:?}");
        if format == "text" && !line.starts_with('{') {
            let level = line.get(27..33).unwrap_or_default().trim();
            assert!(line.starts_with("20") && ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"].contains(&level), "{line}");
        } else {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
            assert!(event["timestamp"].is_string() && event["message"].is_string(), "{line}");
            assert_ne!(event["caller"], "forged");
        }
    }
    if !audit.is_empty() {
        let text = scene.lines_of_file().expect("the audit");
        assert!(!text.chars().any(|c| c != '\n' && is_deceptive(c)), "{text:?}");
        let (uses, denials) = (scene.of("use"), scene.of("denial"));
        assert!(!uses.is_empty() && denials.len() > 40, "{} {}", uses.len(), denials.len());
        for record in uses.iter().chain(&denials) {
            assert!(record["caller"] == "billing" || record["caller"].is_null(), "{record}");
        }
        let errors: BTreeSet<_> = scene.of("refresh").iter().map(|record| record["error"].to_string()).collect();
        assert!(errors.contains("\"invalid_grant\"") && errors.contains("\"http_400\""), "{errors:?}");
    }
}

#[tokio::test]
async fn a_line_of_text_stays_one_line() {
    check_lines("text", TO_FILE).await;
}

#[tokio::test]
async fn a_line_of_json_stays_one_object() {
    check_lines("json", "").await;
    check_lines("json", TO_FILE).await;
}
