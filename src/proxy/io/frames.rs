//! Follows HTTP/2 frames as they are read (RFC 9113 §4.1), to estimate the memory of an unfinished frame or field
//! block.
//!
//! Not here: frame validation, which is h2's.

/// The connection preface (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;
const TYPE_DATA: u8 = 0x0;
const TYPE_HEADERS: u8 = 0x1;
const TYPE_CONTINUATION: u8 = 0x9;
const FLAG_END_HEADERS: u8 = 0x4;

/// An indexed field takes one byte of a field block and this many bytes of h2's memory.
const DECODED_BYTES_PER_BYTE: usize = 144;
/// h2 stores no more of a field block than SETTINGS_MAX_HEADER_LIST_SIZE allows; see `HEADER_LIST_BYTES_MIN`.
const DECODED_BYTES_MAX: usize = 1280 * 1024;

/// The current frame and field block of one connection.
#[derive(Debug, Default)]
pub struct Frames {
    preface_read: usize,
    header: [u8; HEADER_BYTES],
    header_read: usize,
    payload_read: usize,
    /// Payload bytes of the complete frames of a field block whose last frame has not arrived.
    block_bytes: usize,
}

impl Frames {
    /// Processes `bytes`, the next bytes of the connection.
    pub fn read(&mut self, mut bytes: &[u8]) {
        take(&mut bytes, PREFACE_BYTES, &mut self.preface_read);
        while !bytes.is_empty() {
            if self.header_read < HEADER_BYTES {
                let begin = self.header_read;
                let part = take(&mut bytes, HEADER_BYTES, &mut self.header_read);
                self.header[begin..self.header_read].copy_from_slice(part);
            }
            if self.header_read == HEADER_BYTES {
                let length = self.payload_length();
                take(&mut bytes, length, &mut self.payload_read);
                if self.payload_read == length {
                    self.end_frame(length);
                }
            }
        }
    }

    /// Estimated memory of the unfinished frame and field block, in bytes. A partial DATA frame counts only with
    /// `counts_data`.
    pub fn unfinished_bytes(&self, counts_data: bool) -> usize {
        let is_data = self.header_read == HEADER_BYTES && self.header[3] == TYPE_DATA;
        let frame = if is_data && !counts_data { 0 } else { self.header_read + self.payload_read };
        // Buffers grow by doubling.
        2 * frame + DECODED_BYTES_MAX.min(DECODED_BYTES_PER_BYTE * self.block_bytes)
    }

    fn payload_length(&self) -> usize {
        self.header[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
    }

    fn end_frame(&mut self, length: usize) {
        let (frame_type, flags) = (self.header[3], self.header[4]);
        if matches!(frame_type, TYPE_HEADERS | TYPE_CONTINUATION) {
            self.block_bytes = if flags & FLAG_END_HEADERS == 0 { self.block_bytes + length } else { 0 };
        }
        (self.header_read, self.payload_read) = (0, 0);
    }
}

/// Splits off from `bytes` what is missing of `length`, of which `read` bytes have been read.
fn take<'a>(bytes: &mut &'a [u8], length: usize, read: &mut usize) -> &'a [u8] {
    let (part, rest) = bytes.split_at(bytes.len().min(length - *read));
    *bytes = rest;
    *read += part.len();
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: u8 = 0x4;

    fn frame(frame_type: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut frame = u32::try_from(length).expect("a length").to_be_bytes()[1..].to_vec();
        frame.extend([frame_type, flags, 0, 0, 0, 1]);
        frame.resize(HEADER_BYTES + length, b'x');
        frame
    }

    #[track_caller]
    fn check(frames: &[Vec<u8>], expected: usize) {
        let bytes = [&[b'P'; PREFACE_BYTES], frames.concat().as_slice()].concat();
        for step in [1, 2, 7, bytes.len()] {
            let mut read = Frames::default();
            bytes.chunks(step).for_each(|part| read.read(part));
            assert_eq!(read.unfinished_bytes(false), expected, "{step} bytes at a time");
        }
    }

    #[test]
    fn only_unfinished_frames_and_blocks_count() {
        check(&[], 0);
        check(&[frame(SETTINGS, 0, 36), frame(SETTINGS, 1, 0)], 0);
        check(&[frame(SETTINGS, 0, 36)[..5].to_vec()], 2 * 5);
        check(&[frame(TYPE_HEADERS, FLAG_END_HEADERS, 300)], 0);
        check(&[frame(TYPE_HEADERS, FLAG_END_HEADERS, 300)[..200].to_vec()], 2 * 200);
        check(&[frame(TYPE_HEADERS, FLAG_END_HEADERS, 300), frame(TYPE_DATA, 0, 70_000)[..60_000].to_vec()], 0);
    }

    #[test]
    fn a_field_block_counts_as_decoded_until_its_last_frame() {
        let begun = frame(TYPE_HEADERS, 0, 300);
        check(std::slice::from_ref(&begun), 144 * 300);
        check(&[begun.clone(), frame(TYPE_CONTINUATION, 0, 50)], 144 * 350);
        check(&[begun.clone(), frame(TYPE_CONTINUATION, 0, 16_000)], DECODED_BYTES_MAX);
        check(&[begun, frame(TYPE_CONTINUATION, FLAG_END_HEADERS, 50)], 0);
    }

    #[test]
    fn a_partial_data_frame_counts_while_no_request_is_served() {
        let mut read = Frames::default();
        read.read(&[&[b'P'; PREFACE_BYTES][..], &frame(TYPE_DATA, 0, 1000)[..509]].concat());
        assert_eq!((read.unfinished_bytes(true), read.unfinished_bytes(false)), (2 * 509, 0));
    }
}
