//! Paths that two readers could read in two ways.

/// Would some server take this path for another one? True for everything by which a prefix rule can be slipped past:
/// dot segments, doubled slashes, backslashes, parameters, and their escapes (`%2e %2f %5c %25 %00 %3b`).
pub fn is_ambiguous(path: &str) -> bool {
    let bytes = path.as_bytes();
    let raw = |b: &u8| matches!(b, b'\\' | b';' | 0x80..);
    let escape = |at: usize| match bytes.get(at + 1..at + 3) {
        Some(hex) => [*b"2e", *b"2f", *b"5c", *b"25", *b"00", *b"3b"].contains(&[lower(hex[0]), lower(hex[1])]),
        None => true,
    };
    bytes.iter().any(raw)
        || path.contains("//")
        || path.split('/').any(|segment| segment == "." || segment == "..")
        || bytes.iter().enumerate().any(|(at, b)| *b == b'%' && escape(at))
}

/// Does some reading of this path hold a dot segment, so that it could climb out of the prefix it begins with?
pub fn climbs(path: &str) -> bool {
    // Without these bytes no reading differs from the path itself, and no segment is a dot.
    if !path.bytes().any(|b| matches!(b, b'.' | b'%' | 0)) {
        return false;
    }
    let mut reading = path.as_bytes().to_vec();
    for _ in 0..3 {
        let dots = |segment: &[u8]| {
            let name = segment.split(|b| *b == b';').next().unwrap_or_default();
            name == b"." || name == b".."
        };
        if reading.contains(&0) || reading.split(|b| matches!(b, b'/' | b'\\')).any(dots) {
            return true;
        }
        reading = decoded(&reading);
    }
    false
}

fn decoded(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                bytes.push(nibble(*high) << 4 | nibble(*low));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

fn lower(b: u8) -> u8 {
    b.to_ascii_lowercase()
}

fn nibble(hex: u8) -> u8 {
    char::from(hex).to_digit(16).map_or(0, |digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_slips_past_a_prefix_is_ambiguous() {
        let slips = [
            "/v1/../x",
            "/v1/..",
            "/./v1",
            "/v1/%2e%2e/x",
            "/v1%2fx",
            "/v1%2F..",
            "/v1%5cx",
            "/v1\\..\\x",
            "/v1/..;/x",
            "/v1;a/x",
            "/v1/%252e%252e/x",
            "//v1",
            "/v1//x",
            "/v1/%00",
            "/v1/x%",
            "/v1/x%2",
            "/v1/%3b",
        ];
        for path in slips {
            assert!(is_ambiguous(path), "{path}");
        }
        for path in ["/", "/v1", "/v1/a.b..c", "/v1/a%20b", "/v1/...", "/v1/%C3%A4", "/v1/a:b@c,d"] {
            assert!(!is_ambiguous(path), "{path}");
        }
    }

    #[test]
    fn what_climbs_out_of_a_mount_is_seen_in_every_reading() {
        for path in [
            "/a/../x",
            "/a/%2e%2e/x",
            "/a%2f../x",
            "/a%2f..%2fx",
            "/a/..;/x",
            "/a\\..",
            "/a/%252e%252e/x",
            "/a/%00",
            "/.",
        ] {
            assert!(climbs(path), "{path}");
        }
        for path in ["/a/b%2Fc", "/a//b", "/a;x/b", "/a/100%25", "/a/..b", "/a/%"] {
            assert!(!climbs(path), "{path}");
        }
    }
}
