//! Decodes content codings (RFC 9110 §8.4.1) of a body that is inspected. Pure.
//!
//! Invariant: at most `bytes_max` bytes of content are decoded, whatever the input.

use std::io::{self, Read};

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// Maximum number of nested codings; servers send at most two.
const CODINGS_MAX: usize = 4;
/// Read buffer of the brotli decoder.
const BROTLI_BUFFER_BYTES: usize = 4096;
/// The largest window of a zstd frame that is meant for HTTP (RFC 9659 §3).
const ZSTD_WINDOW_MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Decodes the body of a message with these fields. `None`: a coding is unknown, the body is not valid in it, there are
/// too many codings, or the content is longer than `bytes_max`.
pub fn content(headers: &HeaderMap, mut body: Vec<u8>, bytes_max: usize) -> Option<Vec<u8>> {
    let mut codings = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        codings.extend(value.to_str().ok()?.split(',').map(str::trim).filter(|coding| !coding.is_empty()));
    }
    if codings.len() > CODINGS_MAX {
        return None;
    }
    // Codings are listed in the order in which they were applied.
    for coding in codings.iter().rev().filter(|coding| !coding.eq_ignore_ascii_case("identity")) {
        body = inflate(coding, &body, bytes_max).ok().filter(|content| content.len() <= bytes_max)?;
    }
    Some(body)
}

/// Decodes at most `bytes_max + 1` bytes.
fn inflate(coding: &str, body: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let is = |name: &str| coding.eq_ignore_ascii_case(name);
    let read = |decoder: &mut dyn Read| {
        let mut content = Vec::new();
        decoder.take(bytes_max as u64 + 1).read_to_end(&mut content).map(|_| content)
    };
    match () {
        () if is("gzip") || is("x-gzip") => read(&mut MultiGzDecoder::new(body)),
        // Some servers send the deflate format without its zlib wrapper.
        () if is("deflate") => read(&mut ZlibDecoder::new(body)).or_else(|_| read(&mut DeflateDecoder::new(body))),
        () if is("br") => read(&mut brotli_decompressor::Decompressor::new(body, BROTLI_BUFFER_BYTES)),
        () if is("zstd") => inflate_zstd(body, bytes_max),
        () => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Decodes concatenated zstd frames (RFC 8878 §3).
fn inflate_zstd(mut body: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let (mut content, mut decoder) = (Vec::new(), FrameDecoder::new());
    decoder.set_max_window_size(ZSTD_WINDOW_MAX_BYTES);
    while !body.is_empty() && content.len() <= bytes_max {
        let mut frame = StreamingDecoder::new_with_decoder(body, &mut decoder).map_err(io::Error::other)?;
        let rest = bytes_max + 1 - content.len();
        frame.by_ref().take(rest as u64).read_to_end(&mut content)?;
        body = frame.into_inner();
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, Engine};
    use http::HeaderValue;

    use super::*;

    const TEXT: &str = r#"{"error":"token_expired"}"#;
    /// [`TEXT`] as encoded by gzip 1.12, Node's zlib and zstd 1.5.
    const GZIP: &str = "H4sIAAAAAAACA6tWSi0qyi9SslIqyc9OzYtPrSjILEpNUaoFAPXkYisZAAAA";
    const ZLIB: &str = "eJyrVkotKsovUrJSKsnPTs2LT60oyCxKTVGqBQB3DAlW";
    const RAW_DEFLATE: &str = "q1ZKLSrKL1KyUirJz07Ni0+tKMgsSk1RqgUA";
    const BROTLI: &str = "CwyAeyJlcnJvciI6InRva2VuX2V4cGlyZWQifQM=";
    const ZSTD: &str = "KLUv/SQZyQAAeyJlcnJvciI6InRva2VuX2V4cGlyZWQiffYOhIM=";
    /// [`TEXT`] followed by at least a million spaces.
    const BROTLI_BOMB: &str = "y///P/iN0w31YxjqqUqRr70G0SHr041MsslpGoEZYAmJM+q0AIPe/2Xg//8f/BIAcVgEoHv/x///P/glAOKwAED3/o///3/wSwDEYQGA7v0f////4JcAiMMCAN37P/7//8EvARCHBQC693/8//+DXwIgDgsAdO//8v//D78EQBwWAOje/wE=";
    const ZSTD_BOMB: &str =
        "KLUv/QRYFAEA0HsiZXJyb3IiOiJ0b2tlbl9leHBpcmVkIn0gAQCO/+dgDAIAECACABAgAgAQIAIAECACABAgAgAQIAIAECDLAAAgzGDzhw==";

    fn fields(codings: &[&'static str]) -> HeaderMap {
        codings.iter().map(|coding| (CONTENT_ENCODING, HeaderValue::from_static(coding))).collect()
    }

    fn bytes(base64: &str) -> Vec<u8> {
        BASE64_STANDARD.decode(base64).unwrap()
    }

    #[track_caller]
    fn check(codings: &[&'static str], body: Vec<u8>, expected: Option<&str>) {
        let content = content(&fields(codings), body, 100);
        assert_eq!(content.as_deref(), expected.map(str::as_bytes), "{codings:?}");
    }

    #[test]
    fn every_coding_is_decoded() {
        check(&[], TEXT.into(), Some(TEXT));
        check(&["identity"], TEXT.into(), Some(TEXT));
        check(&["gzip"], bytes(GZIP), Some(TEXT));
        check(&["X-GZip"], bytes(GZIP), Some(TEXT));
        check(&["deflate"], bytes(ZLIB), Some(TEXT));
        check(&["deflate"], bytes(RAW_DEFLATE), Some(TEXT));
        check(&["br"], bytes(BROTLI), Some(TEXT));
        check(&["zstd"], bytes(ZSTD), Some(TEXT));
        check(&["zstd"], [bytes(ZSTD), bytes(ZSTD)].concat(), Some(&[TEXT, TEXT].concat()));
        check(&["gzip"], [bytes(GZIP), bytes(GZIP)].concat(), Some(&[TEXT, TEXT].concat()));
    }

    #[test]
    fn codings_are_decoded_from_the_last_to_the_first() {
        let mut twice = Vec::new();
        flate2::read::GzEncoder::new(&bytes(BROTLI)[..], flate2::Compression::fast()).read_to_end(&mut twice).unwrap();
        check(&["br, gzip"], twice.clone(), Some(TEXT));
        check(&["br", "gzip"], twice.clone(), Some(TEXT));
        check(&["gzip, br"], twice, None);
    }

    #[test]
    fn a_body_that_is_not_valid_in_its_coding_has_no_content() {
        for (coding, body) in [("gzip", GZIP), ("deflate", ZLIB), ("br", BROTLI), ("zstd", ZSTD)] {
            let body = bytes(body);
            check(&[coding], body[..body.len() / 2].to_vec(), None);
            check(&[coding], TEXT.into(), None);
            for at in 0..body.len() {
                let mut damaged = body.clone();
                damaged[at] ^= 0x55;
                content(&fields(&[coding]), damaged, 100);
            }
        }
        check(&["identity, identity, identity, identity, identity"], TEXT.into(), None);
        check(&["aes128gcm"], TEXT.into(), None);
        check(&["gzip, aes128gcm"], bytes(GZIP), None);
    }

    #[test]
    fn the_decoded_size_is_bounded() {
        let spaces = [TEXT.as_bytes(), &vec![b' '; 1 << 20]].concat();
        let mut gzip_bomb = Vec::new();
        flate2::read::GzEncoder::new(&spaces[..], flate2::Compression::best()).read_to_end(&mut gzip_bomb).unwrap();
        for (coding, bomb) in [("gzip", gzip_bomb), ("br", bytes(BROTLI_BOMB)), ("zstd", bytes(ZSTD_BOMB))] {
            assert_eq!(inflate(coding, &bomb, 1000).unwrap().len(), 1001, "{coding}");
            assert_eq!(content(&fields(&[coding]), bomb, 64 * 1024), None, "{coding}");
        }
        let length = content(&fields(&["zstd"]), bytes(ZSTD_BOMB), 2 << 20).unwrap().len();
        assert_eq!(length, TEXT.len() + (1 << 20));
        assert_eq!(content(&fields(&["gzip"]), bytes(GZIP), TEXT.len() - 1), None);
        assert!(content(&fields(&["gzip"]), bytes(GZIP), TEXT.len()).is_some());
    }
}
