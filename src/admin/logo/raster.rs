//! Pixels of a logo: scales them down and encodes them as PNG.
//!
//! Invariant: the PNG is encoded from pixels alone; no metadata, palette or byte of the original reaches a browser.

use std::fmt;
use std::ops::Range;

/// Maximum width and height of the PNG: twice what a page shows, for displays of high density.
const SIDE_PIXELS_MAX: u32 = 128;

/// Pixels in RGBA with 8 bits each, row by row.
#[derive(PartialEq, Eq)]
pub struct Raster {
    width: u32,
    height: u32,
    pixels: Vec<[u8; 4]>,
}

/// Shows the dimensions alone: there are up to a million pixels.
impl fmt::Debug for Raster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Raster({} × {})", self.width, self.height)
    }
}

impl Raster {
    /// `samples` has, for each pixel, gray and alpha (2 `channels`), RGB (3) or RGBA (4). `None`: any other number of
    /// channels or pixels, or no pixel.
    pub fn new(width: u32, height: u32, samples: Vec<u8>, channels: usize) -> Option<Raster> {
        let rgba = |pixel: &[u8]| match *pixel {
            [gray, alpha] => Some([gray, gray, gray, alpha]),
            [red, green, blue] => Some([red, green, blue, u8::MAX]),
            [red, green, blue, alpha] => Some([red, green, blue, alpha]),
            _ => None,
        };
        let pixels = samples.chunks(channels.max(1)).map(rgba).collect::<Option<Vec<_>>>()?;
        let is_complete = !pixels.is_empty() && pixels.len() == width as usize * height as usize;
        is_complete.then_some(Raster { width, height, pixels })
    }

    /// Encodes the pixels as PNG, scaled down to at most 128 × 128 with the aspect ratio kept.
    pub fn to_png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let longer = self.width.max(self.height);
        let scaled = |side: u32| match longer > SIDE_PIXELS_MAX {
            true => ((side * SIDE_PIXELS_MAX + longer / 2) / longer).max(1),
            false => side,
        };
        let (width, height) = (scaled(self.width), scaled(self.height));
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgba);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.scaled(width, height).as_flattened())?;
        writer.finish()?;
        Ok(bytes)
    }

    /// Averages the source pixels that each target pixel covers, weighted by area and by opacity: the colour of a
    /// transparent pixel is invisible, and may be any.
    fn scaled(&self, width: u32, height: u32) -> Vec<[u8; 4]> {
        let area = u64::from(self.width) * u64::from(self.height);
        let mut scaled = Vec::with_capacity(width as usize * height as usize);
        for y in 0..height {
            for x in 0..width {
                let (mut opacity, mut colours) = (0, [0; 3]);
                for (row, row_weight) in covered(y, height, self.height) {
                    for (column, column_weight) in covered(x, width, self.width) {
                        let [red, green, blue, alpha] =
                            self.pixels[row as usize * self.width as usize + column as usize];
                        let weight = row_weight * column_weight * u64::from(alpha);
                        opacity += weight;
                        for (sum, colour) in colours.iter_mut().zip([red, green, blue]) {
                            *sum += weight * u64::from(colour);
                        }
                    }
                }
                let [red, green, blue] = colours.map(|sum| rounded(sum, opacity.max(1)));
                scaled.push([red, green, blue, rounded(opacity, area)]);
            }
        }
        scaled
    }
}

/// The source pixels that pixel `at` of `count` covers in one dimension of `source_count` pixels, each with the length
/// covered. The unit is one `count`th of a source pixel, so that the lengths sum up to `source_count`.
fn covered(at: u32, count: u32, source_count: u32) -> impl Iterator<Item = (u32, u64)> {
    let Range { start, end } = at * source_count..(at + 1) * source_count;
    (start / count..end.div_ceil(count)).map(move |source| {
        let length = end.min((source + 1) * count) - start.max(source * count);
        (source, u64::from(length))
    })
}

/// The quotient to the nearest integer, which is at most 255: a weighted average of 8-bit values.
fn rounded(sum: u64, weights: u64) -> u8 {
    u8::try_from((sum + weights / 2) / weights).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes a PNG; returns width, height and pixels.
    fn decoded(png: &[u8]) -> (u32, u32, Vec<[u8; 4]>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((frame.color_type, frame.bit_depth), (png::ColorType::Rgba, png::BitDepth::Eight));
        (frame.width, frame.height, pixels.as_chunks().0.to_vec())
    }

    fn raster(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 4]) -> Raster {
        let at = |index| pixel(index % width, index / width);
        Raster { width, height, pixels: (0..width * height).map(at).collect() }
    }

    #[test]
    fn a_small_image_keeps_its_size_and_its_visible_pixels() {
        let image = raster(3, 2, |x, y| [x as u8 * 100, y as u8 * 200, 7, if x == 2 { 0 } else { 90 }]);
        let (width, height, pixels) = decoded(&image.to_png().unwrap());
        assert_eq!((width, height), (3, 2));
        let shown = |pixel: [u8; 4]| if pixel[3] == 0 { [0; 4] } else { pixel };
        assert_eq!(pixels, image.pixels.into_iter().map(shown).collect::<Vec<_>>());
    }

    #[test]
    fn a_large_image_is_scaled_down_with_its_aspect_ratio() {
        for ((width, height), expected) in [
            ((1024, 1024), (128, 128)),
            ((1000, 500), (128, 64)),
            ((129, 128), (128, 127)),
            ((1024, 1), (128, 1)),
            ((1, 1024), (1, 128)),
            ((128, 128), (128, 128)),
        ] {
            let image = raster(width, height, |_, _| [200, 100, 50, 255]);
            let (scaled_width, scaled_height, pixels) = decoded(&image.to_png().unwrap());
            assert_eq!((scaled_width, scaled_height), expected, "{width} × {height}");
            assert!(pixels.iter().all(|pixel| *pixel == [200, 100, 50, 255]), "{width} × {height}");
        }
    }

    #[test]
    fn transparent_pixels_do_not_colour_their_neighbours() {
        // Columns alternate between opaque white and transparent black.
        let image = raster(256, 256, |x, _| if x % 2 == 0 { [255; 4] } else { [0; 4] });
        let (_, _, pixels) = decoded(&image.to_png().unwrap());
        assert!(pixels.iter().all(|pixel| *pixel == [255, 255, 255, 128]), "{:?}", pixels[0]);
    }

    #[test]
    fn samples_that_do_not_fit_the_dimensions_are_refused() {
        assert_eq!(Raster::new(1, 1, vec![9, 200], 2).unwrap().pixels, [[9, 9, 9, 200]]);
        assert_eq!(Raster::new(1, 1, vec![1, 2, 3], 3).unwrap().pixels, [[1, 2, 3, 255]]);
        for (width, height, samples, channels) in
            [(1, 2, 4, 4), (1, 1, 8, 4), (1, 1, 5, 4), (1, 1, 1, 1), (0, 0, 0, 4), (1, 1, 1, 0)]
        {
            assert_eq!(Raster::new(width, height, vec![0; samples], channels), None, "{width} {height} {samples}");
        }
    }
}
