//! `token_rejected` by a sign in a body that comes in a content coding.

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

/// All of it together is a sign of an expired token.
const SIGN: &str = "token_rejected: [{status: 200, pointer: /error, equals: token_expired}]";

/// Answers the first token with `coded`, later ones with `fine` unless `always`.
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

async fn before(upstream: &Scripted) -> (Sidecar, Scripted) {
    let tokens = Scripted::tokens(3600).await;
    let crm = Connection::at("crm", &tokens).keys(SIGN).plain("api.test");
    (Sidecar::start(Config::new().host("api.test", upstream.address).connection(crm)).await, tokens)
}

#[tokio::test]
async fn a_sign_is_read_in_every_content_coding() {
    for (coding, coded) in CODED {
        let coded = BASE64_STANDARD.decode(coded).expect("base64");
        let server = upstream(coding, coded.clone(), false).await;
        let (sidecar, _tokens) = before(&server).await;
        let answer = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
        assert_eq!((answer.text().as_str(), server.count()), ("fine", 2), "{coding}: {answer:?}");

        // Where another token does not help either, the caller reads what the upstream said, byte for byte.
        let server = upstream(coding, coded.clone(), true).await;
        let (sidecar, _tokens) = before(&server).await;
        let answer = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
        assert_eq!((answer.status, server.count()), (200, 2), "{coding}: {answer:?}");
        assert_eq!((answer.header("content-encoding"), &answer.body), (Some(coding), &coded), "{coding}");
    }
}

#[tokio::test]
async fn no_more_than_the_bound_is_inflated_and_what_came_passes_as_it_is() {
    let gzip = |text: &[u8]| {
        let mut coded = Vec::new();
        GzEncoder::new(text, Compression::best()).read_to_end(&mut coded).expect("gzip");
        coded
    };
    let sign = br#"{"error":"token_expired"}"#;
    let padded = |bytes: usize| [&sign[..], &vec![b' '; bytes - sign.len()]].concat();
    for (row, coded, requests) in [
        ("at the bound", gzip(&padded(64 * 1024)), 2),
        ("one byte above", gzip(&padded(64 * 1024 + 1)), 1),
        ("a bomb", gzip(&padded(16 << 20)), 1),
        ("not what it is called", sign.to_vec(), 1),
    ] {
        let server = upstream("gzip", coded.clone(), true).await;
        let (sidecar, _tokens) = before(&server).await;
        let answer = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
        assert_eq!((answer.status, server.count()), (200, requests), "{row}");
        assert!(answer.body == coded && answer.complete, "{row}: {} bytes passed", answer.body.len());
    }
}
