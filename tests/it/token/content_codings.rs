//! `token_rejected` matches on bodies with a content coding (RFC 9110 §8.4.1).

use std::io::Read;

use base64::prelude::{BASE64_STANDARD, Engine};
use flate2::Compression;
use flate2::read::GzEncoder;

use crate::rig::config::{Config, Connection};
use crate::rig::raw;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

/// `{"error":"token_expired"}` as gzip 1.12, Node's zlib and zstd 1.5 encode it.
const CODED: [(&str, &str); 5] = [
    ("gzip", "H4sIAAAAAAACA6tWSi0qyi9SslIqyc9OzYtPrSjILEpNUaoFAPXkYisZAAAA"),
    ("deflate", "eJyrVkotKsovUrJSKsnPTs2LT60oyCxKTVGqBQB3DAlW"),
    ("deflate", "q1ZKLSrKL1KyUirJz07Ni0+tKMgsSk1RqgUA"),
    ("br", "CwyAeyJlcnJvciI6InRva2VuX2V4cGlyZWQifQM="),
    ("zstd", "KLUv/SQZyQAAeyJlcnJvciI6InRva2VuX2V4cGlyZWQiffYOhIM="),
];

/// Matches the decoded body.
const REJECTED: &str = "token_rejected: [{status: 200, pointer: /error, equals: token_expired}]";

/// Responds to the first token with `coded`, and to later ones with `fine` unless `always`.
async fn upstream(coding: &'static str, coded: Vec<u8>, always: bool) -> Scripted {
    Scripted::start(move |request, _| {
        if !always && request.values("authorization") != ["Bearer token-1"] {
            return Reply::text(200, "text/plain", "fine");
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n", coded.len());
        Reply::Bytes([head.as_bytes(), &coded].concat())
    })
    .await
}

async fn start_before(upstream: &Scripted) -> (Sidecar, Scripted) {
    let tokens = Scripted::tokens(3600).await;
    let crm = Connection::at("crm", &tokens).keys(REJECTED).plain("api.test");
    (Sidecar::start(Config::new().host("api.test", upstream.address).connection(crm)).await, tokens)
}

#[tokio::test]
async fn a_rejection_is_recognized_in_every_content_coding() {
    for (coding, coded) in CODED {
        let coded = BASE64_STANDARD.decode(coded).expect("base64");
        let server = upstream(coding, coded.clone(), false).await;
        let (sidecar, _tokens) = start_before(&server).await;
        let response = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
        assert_eq!((response.text().as_str(), server.count()), ("fine", 2), "{coding}: {response:?}");

        // If the new token is rejected as well, the caller gets the upstream's response byte for byte.
        let server = upstream(coding, coded.clone(), true).await;
        let (sidecar, _tokens) = start_before(&server).await;
        let response = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
        assert_eq!((response.status, server.count()), (200, 2), "{coding}: {response:?}");
        assert_eq!((response.header("content-encoding"), &response.body), (Some(coding), &coded), "{coding}");
    }
}

#[tokio::test]
async fn a_body_beyond_the_inflate_limit_passes_unchanged() {
    let gzip = |text: &[u8]| {
        let mut coded = Vec::new();
        GzEncoder::new(text, Compression::best()).read_to_end(&mut coded).expect("gzip");
        coded
    };
    let sign = br#"{"error":"token_expired"}"#;
    let padded = |bytes: usize| [&sign[..], &vec![b' '; bytes - sign.len()]].concat();
    for (row, coded, requests) in [
        ("at the limit", gzip(&padded(64 * 1024)), 2),
        ("one byte above", gzip(&padded(64 * 1024 + 1)), 1),
        ("a bomb", gzip(&padded(16 << 20)), 1),
        ("wrongly labelled", sign.to_vec(), 1),
    ] {
        let server = upstream("gzip", coded.clone(), true).await;
        let (sidecar, _tokens) = start_before(&server).await;
        let response = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
        assert_eq!((response.status, server.count()), (200, requests), "{row}");
        assert!(response.body == coded && response.complete, "{row}: {} bytes passed", response.body.len());
    }
}
