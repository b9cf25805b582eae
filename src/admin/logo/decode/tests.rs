//! Images of every format, and bytes that are none: bombs, huge dimensions, damage, texts.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::*;

/// 16 × 8 pixels: the left half is red, the right half blue.
const JPEG: &str = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hn\
    Pk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCAAI\
    ABADASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAAUG/8QAFBABAAAAAAAAAAAAAAAAAAAAAP/EABUBAQEAAAAAAAAAAAAAAAAAAAQF/8QAGBEAAgMA\
    AAAAAAAAAAAAAAAAAAVCgcH/2gAMAwEAAhEDEQA/AM2nAelnWlNvC8P/2Q==";
/// The same, lossy.
const WEBP: &str = "UklGRkwAAABXRUJQVlA4WAoAAAAAAAAADwAABwAAVlA4IC4AAABwAQCdASoQAAgAAsBMJaACdAFAAAD+8n//V+Xuh//ibPKr6qX/0mw7\
    f/0mLIAA";
/// The same, lossy, with a transparent right half.
const WEBP_WITH_ALPHA: &str = "UklGRmAAAABXRUJQVlA4WAoAAAAQAAAADwAABwAAQUxQSBIAAAABDzD/ERFCLJjMX7ozhYj+Rw5WUDggKAAAAHABAJ0B\
    KhAACAACwEwloAJ0AUAAAP70nP/8/d/zm+D//0kL//D0AAA=";
const RED: [u8; 4] = [0xc0, 0, 0, 0xff];
const BLUE: [u8; 4] = [0, 0, 0xc0, 0xff];
const TRANSPARENT: [u8; 4] = [0; 4];

fn bytes(base64: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(base64).unwrap()
}

/// 16 × 8 pixels; the halves have these samples.
fn halves<const N: usize>(left: [u8; N], right: [u8; N]) -> Vec<u8> {
    (0..8).flat_map(|_| [[left; 8], [right; 8]].concat().concat()).collect()
}

fn png(color: png::ColorType, depth: png::BitDepth, palette: &[u8], samples: &[u8]) -> Vec<u8> {
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, 16, 8);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if !palette.is_empty() {
        encoder.set_palette(palette.to_vec());
    }
    encoder.write_header().unwrap().write_image_data(samples).unwrap();
    png
}

/// A GIF with a screen of 16 × 8, and a frame of these dimensions whose pixels have the colours `indices`.
fn gif_frame(left: u16, width: u16, indices: Vec<u8>) -> Vec<u8> {
    let mut gif = Vec::new();
    let palette = [0xc0, 0, 0, 0, 0, 0xc0];
    let mut encoder = gif::Encoder::new(&mut gif, 16, 8, &palette).unwrap();
    let frame = gif::Frame { left, width, height: 8, buffer: indices.into(), ..gif::Frame::default() };
    encoder.write_frame(&frame).unwrap();
    // A second frame, which is not shown.
    let blue = gif::Frame { width: 16, height: 8, buffer: vec![1; 128].into(), ..gif::Frame::default() };
    encoder.write_frame(&blue).unwrap();
    drop(encoder);
    gif
}

fn gif() -> Vec<u8> {
    gif_frame(0, 16, halves([0], [1]))
}

fn lossless_webp(samples: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut webp = Vec::new();
    image_webp::WebPEncoder::new(&mut webp).encode(samples, width, height, image_webp::ColorType::Rgba8).unwrap();
    webp
}

/// Checks the left and the right half of an image, up to the losses of JPEG and WebP.
#[track_caller]
fn check(image: &[u8], left: [u8; 4], right: [u8; 4]) {
    let png = decode(image).unwrap().to_png().unwrap();
    let mut reader = png::Decoder::new(Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((frame.width, frame.height), (16, 8));
    for (index, pixel) in pixels.as_chunks::<4>().0.iter().enumerate() {
        let expected = if index % 16 < 8 { left } else { right };
        // Chroma is halved, so it blurs at the border between the halves.
        if !(6..10).contains(&(index % 16)) {
            let is_close = pixel.iter().zip(expected).all(|(got, expected)| got.abs_diff(expected) <= 24);
            assert!(is_close, "pixel {index}: {pixel:?} instead of {expected:?}");
        }
    }
}

#[test]
fn every_format_is_decoded() {
    use png::{BitDepth, ColorType};
    let [eight, sixteen] = [BitDepth::Eight, BitDepth::Sixteen];
    check(&png(ColorType::Rgba, eight, &[], &halves(RED, TRANSPARENT)), RED, TRANSPARENT);
    check(&png(ColorType::Rgb, eight, &[], &halves([0xc0, 0, 0], [0, 0, 0xc0])), RED, BLUE);
    check(&png(ColorType::Rgb, sixteen, &[], &halves([0xc0, 9, 0, 9, 0, 9], [0, 9, 0, 9, 0xc0, 9])), RED, BLUE);
    check(&png(ColorType::Indexed, eight, &[0xc0, 0, 0, 0, 0, 0xc0], &halves([0], [1])), RED, BLUE);
    check(&png(ColorType::Grayscale, eight, &[], &halves([9], [200])), [9, 9, 9, 255], [200, 200, 200, 255]);
    check(&png(ColorType::GrayscaleAlpha, eight, &[], &halves([9, 99], [0, 0])), [9, 9, 9, 99], TRANSPARENT);
    check(&png(ColorType::Grayscale, BitDepth::One, &[], &[0, 255].repeat(8)), [0, 0, 0, 255], [255; 4]);
    check(&bytes(JPEG), RED, BLUE);
    check(&gif(), RED, BLUE);
    check(&gif_frame(8, 8, vec![1; 64]), TRANSPARENT, BLUE);
    check(&bytes(WEBP), RED, BLUE);
    check(&bytes(WEBP_WITH_ALPHA), RED, TRANSPARENT);
    check(&lossless_webp(&halves(RED, BLUE), 16, 8), RED, BLUE);
    check(&lossless_webp(&halves(RED, TRANSPARENT), 16, 8), RED, TRANSPARENT);
}

#[test]
fn the_largest_dimensions_are_decoded_and_larger_ones_are_not() {
    let flat = |width: u32, height: u32| lossless_webp(&vec![9; (width * height * 4) as usize], width, height);
    assert!(decode(&flat(SIDE_PIXELS_MAX, 1)).is_ok());
    assert!(decode(&flat(1, SIDE_PIXELS_MAX)).is_ok());
    for (width, height) in [(SIDE_PIXELS_MAX + 1, 1), (1, SIDE_PIXELS_MAX + 1)] {
        assert_eq!(decode(&flat(width, height)), Err(ImageError::TooLarge { width, height }));
    }
}

/// Replaces the bytes at `at`.
fn patched(mut image: Vec<u8>, at: usize, with: &[u8]) -> Vec<u8> {
    image[at..at + with.len()].copy_from_slice(with);
    image
}

/// The position of `part`, which the image contains once.
fn position(image: &[u8], part: &[u8]) -> usize {
    image.windows(part.len()).position(|window| window == part).unwrap()
}

#[test]
fn dimensions_are_checked_before_anything_is_decoded() {
    let huge = ImageError::TooLarge { width: 4_000, height: 4_001 };
    // A real bomb: 64 MB of pixels.
    let mut bomb = Vec::new();
    let mut encoder = png::Encoder::new(&mut bomb, 4_000, 4_001);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header().unwrap();
    let mut stream = writer.stream_writer().unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 4_000 * 4_001 * 4), &mut stream).unwrap();
    stream.finish().unwrap();
    drop(writer);
    assert!(bomb.len() < 256 * 1024, "{}", bomb.len());
    assert_eq!(decode(&bomb), Err(huge));
    let jpeg = bytes(JPEG);
    let start_of_frame = position(&jpeg, &[0xff, 0xc0]);
    let [width, height] = [4_000_u16, 4_001].map(u16::to_be_bytes);
    assert_eq!(decode(&patched(jpeg, start_of_frame + 5, &[height, width].concat())), Err(huge));
    let [width, height] = [4_000_u16, 4_001].map(u16::to_le_bytes);
    assert_eq!(decode(&patched(gif(), 6, &[width, height].concat())), Err(huge));
    // The frame header, not that of the image.
    for webp in [bytes(WEBP), bytes(WEBP_WITH_ALPHA)] {
        let start_code = position(&webp, &[0x9d, 0x01, 0x2a]);
        let bomb = patched(webp.clone(), start_code + 3, &[width, height].concat());
        assert_eq!(decode(&bomb), Err(huge));
        let canvas = [&(4_000_u32 - 1).to_le_bytes()[..3], &(4_001_u32 - 1).to_le_bytes()[..3]].concat();
        assert_eq!(decode(&patched(webp, 24, &canvas)), Err(huge));
    }
}

#[test]
fn a_frame_that_does_not_fit_its_image_is_refused() {
    let left = position(&gif(), &[0x2c, 0, 0]) + 1;
    assert_eq!(decode(&patched(gif(), left, &[1])), Err(ImageError::Damaged("GIF")));
    assert_eq!(decode(&patched(gif(), 6, &[8])), Err(ImageError::Damaged("GIF")));
    let start_code = position(&bytes(WEBP), &[0x9d, 0x01, 0x2a]);
    assert_eq!(decode(&patched(bytes(WEBP), start_code + 3, &[17])), Err(ImageError::Damaged("WebP")));
}

#[test]
fn a_truncated_image_never_panics_and_loses_its_end_at_most() {
    let png = png(png::ColorType::Rgba, png::BitDepth::Eight, &[], &halves(RED, BLUE));
    let images =
        [png, bytes(JPEG), gif(), bytes(WEBP), bytes(WEBP_WITH_ALPHA), lossless_webp(&halves(RED, BLUE), 16, 8)];
    for image in images {
        for length in 0..image.len() {
            if let Ok(decoded) = decode(&image[..length]) {
                decoded.to_png().unwrap();
            }
        }
        for length in [12, image.len() / 2] {
            let refused = decode(&image[..length]);
            assert!(matches!(refused, Err(ImageError::Damaged(_))), "{:?} {length}: {refused:?}", &image[..4]);
        }
    }
}

#[test]
fn a_damaged_image_never_panics() {
    let png = png(png::ColorType::Rgba, png::BitDepth::Eight, &[], &halves(RED, BLUE));
    let images =
        [png, bytes(JPEG), gif(), bytes(WEBP), bytes(WEBP_WITH_ALPHA), lossless_webp(&halves(RED, BLUE), 16, 8)];
    for image in images {
        for at in 0..image.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, image[at] ^ 0x10] {
                let _ = decode(&patched(image.clone(), at, &[value]));
            }
        }
    }
}

#[test]
fn a_text_or_an_unknown_format_is_refused_with_the_reason() {
    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"><script>alert(1)</script></svg>";
    for (text, expected) in [
        (svg.to_owned(), ImageError::Svg),
        (format!("\u{feff}\n <?xml version=\"1.0\"?>\n<!-- a logo -->\n{svg}"), ImageError::Svg),
        (svg.to_uppercase(), ImageError::Svg),
        (format!("<!doctype html><html><body>{svg}</body></html>"), ImageError::WebPage),
        ("<!DOCTYPE html><p>Sign in".to_owned(), ImageError::WebPage),
        ("{\"error\": \"not found\"}".to_owned(), ImageError::Unknown),
        ("\0\0\u{1}\0\u{1}\0".to_owned(), ImageError::Icon),
        ("BM6".to_owned(), ImageError::Unknown),
        (String::new(), ImageError::Unknown),
    ] {
        assert_eq!(decode(text.as_bytes()), Err(expected), "{text}");
    }
}
