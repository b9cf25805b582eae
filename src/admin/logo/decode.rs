//! Decodes an image that any server may have sent: PNG, JPEG, GIF (its first frame) or WebP.
//!
//! Invariants: the first bytes decide the format, whatever Content-Type the response had; the dimensions are checked
//! before pixels are decoded and before memory for them is allocated. The decoders contain no `unsafe`.
//! Not here: scaling and encoding (`raster`). Refused: SVG, which can hold scripts, and ICO, for which no decoder bounds
//! its memory.

use std::io::Cursor;
use std::num::NonZeroU64;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::raster::Raster;

/// Maximum width and height.
const SIDE_PIXELS_MAX: u32 = 1024;
/// Memory limit of the decoders that have one: the largest image with 16 bits in each of four channels.
const DECODER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Maximum number of scans of a progressive JPEG; encoders write about ten.
const JPEG_SCANS_MAX: usize = 32;
/// How far a text is searched for the element that tells SVG from HTML.
const TEXT_BYTES_SEARCHED: usize = 1024;

/// Why bytes are not used as an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("SVG is not supported, since it can hold scripts; name an image in PNG, JPEG, GIF or WebP")]
    Svg,
    #[error("ICO is not supported; name an image in PNG, JPEG, GIF or WebP")]
    Icon,
    #[error("it is a web page; name the image itself")]
    WebPage,
    #[error("it is not an image in PNG, JPEG, GIF or WebP")]
    Unknown,
    #[error("it has {width} × {height} pixels, more than {SIDE_PIXELS_MAX} × {SIDE_PIXELS_MAX}")]
    TooLarge { width: u32, height: u32 },
    #[error("the {0} image is damaged, or uses a feature that is not supported")]
    Damaged(&'static str),
}

pub fn decode(bytes: &[u8]) -> Result<Raster, ImageError> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => png(bytes),
        [0xff, 0xd8, 0xff, ..] => jpeg(bytes),
        [b'G', b'I', b'F', b'8', ..] => gif(bytes),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp(bytes),
        [0, 0, 1, 0, ..] => Err(ImageError::Icon),
        _ => Err(text(bytes)),
    }
}

/// Distinguishes the texts that servers send in place of an image.
fn text(bytes: &[u8]) -> ImageError {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_BYTES_SEARCHED)]).to_ascii_lowercase();
    match start.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).starts_with('<') {
        true if start.contains("<svg") && !start.contains("<html") => ImageError::Svg,
        true => ImageError::WebPage,
        false => ImageError::Unknown,
    }
}

/// The number of pixels.
fn checked(width: u32, height: u32, damaged: ImageError) -> Result<usize, ImageError> {
    match (width, height) {
        (0, _) | (_, 0) => Err(damaged),
        (1..=SIDE_PIXELS_MAX, 1..=SIDE_PIXELS_MAX) => Ok(width as usize * height as usize),
        _ => Err(ImageError::TooLarge { width, height }),
    }
}

fn png(bytes: &[u8]) -> Result<Raster, ImageError> {
    const DAMAGED: ImageError = ImageError::Damaged("PNG");
    let limits = png::Limits { bytes: DECODER_BYTES_MAX };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::normalize_to_color8() | png::Transformations::ALPHA);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(|_| DAMAGED)?;
    let (width, height) = (header.width, header.height);
    checked(width, height, DAMAGED)?;
    let mut reader = decoder.read_info().map_err(|_| DAMAGED)?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or(DAMAGED)?];
    let frame = reader.next_frame(&mut pixels).map_err(|_| DAMAGED)?;
    if (frame.width, frame.height) != (width, height) {
        return Err(DAMAGED);
    }
    Raster::new(width, height, pixels, frame.color_type.samples()).ok_or(DAMAGED)
}

fn jpeg(bytes: &[u8]) -> Result<Raster, ImageError> {
    const DAMAGED: ImageError = ImageError::Damaged("JPEG");
    let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB).jpeg_set_max_scans(JPEG_SCANS_MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|_| DAMAGED)?;
    let info = decoder.info().ok_or(DAMAGED)?;
    let (width, height) = (info.width.into(), info.height.into());
    checked(width, height, DAMAGED)?;
    let pixels = decoder.decode().map_err(|_| DAMAGED)?;
    Raster::new(width, height, pixels, ColorSpace::RGB.num_components()).ok_or(DAMAGED)
}

fn gif(bytes: &[u8]) -> Result<Raster, ImageError> {
    const DAMAGED: ImageError = ImageError::Damaged("GIF");
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    options.check_frame_consistency(true);
    options.set_memory_limit(gif::MemoryLimit::Bytes(NonZeroU64::new(DECODER_BYTES_MAX as u64).ok_or(DAMAGED)?));
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(|_| DAMAGED)?;
    let (width, height) = (decoder.width().into(), decoder.height().into());
    let count = checked(width, height, DAMAGED)?;
    let frame = decoder.read_next_frame().map_err(|_| DAMAGED)?.ok_or(DAMAGED)?;
    // The frame may cover a part of the screen; the rest is transparent.
    let mut pixels = vec![0; count * 4];
    let (left, row_bytes) = (usize::from(frame.left) * 4, usize::from(frame.width) * 4);
    let rows = pixels.chunks_exact_mut(width as usize * 4).skip(frame.top.into());
    for (row, frame_row) in rows.zip(frame.buffer.chunks_exact(row_bytes.max(1))) {
        row.get_mut(left..left + row_bytes).ok_or(DAMAGED)?.copy_from_slice(frame_row);
    }
    Raster::new(width, height, pixels, 4).ok_or(DAMAGED)
}

fn webp(bytes: &[u8]) -> Result<Raster, ImageError> {
    const DAMAGED: ImageError = ImageError::Damaged("WebP");
    check_lossy_frames(bytes)?;
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(|_| DAMAGED)?;
    decoder.set_memory_limit(DECODER_BYTES_MAX);
    let (width, height) = decoder.dimensions();
    let count = checked(width, height, DAMAGED)?;
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut pixels = vec![0; count * channels];
    decoder.read_image(&mut pixels).map_err(|_| DAMAGED)?;
    Raster::new(width, height, pixels, channels).ok_or(DAMAGED)
}

/// Checks the dimensions in the header of every lossy frame, wherever it is in the file: the decoder decodes the frame
/// before it compares them with those of the image. A chunk header of 8 bytes precedes the frame header, which has
/// the start code at 3 and the dimensions at 6 (RFC 6386 §9.1).
fn check_lossy_frames(bytes: &[u8]) -> Result<(), ImageError> {
    for chunk in bytes.windows(18) {
        if chunk.starts_with(b"VP8 ") && chunk[11..14] == [0x9d, 0x01, 0x2a] {
            let side = |at: usize| u32::from(u16::from_le_bytes([chunk[at], chunk[at + 1]]) & 0x3fff);
            checked(side(14), side(16), ImageError::Damaged("WebP"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
