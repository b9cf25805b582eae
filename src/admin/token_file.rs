//! The manager's token in the state directory, for an instance without listed users.
//!
//! Holds: the file is nobody else's to read, no link is followed to it, and its value is in no log.

use std::io::{self, ErrorKind};
use std::path::Path;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::model::secret::Secret;
use crate::private_file;

const TOKEN_BYTES: usize = 32;
/// A token that somebody put there is at least and at most so long.
const LENGTH: std::ops::RangeInclusive<usize> = 32..=512;

/// The token in `path`; made, with its directory, where there is none.
pub fn read_or_make(path: &Path) -> io::Result<Secret> {
    match read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    private_file::make_directory_of(path)?;
    match make(path) {
        // Another instance was quicker.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(path),
        other => other,
    }
}

fn read(path: &Path) -> io::Result<Secret> {
    let text = private_file::read(path, LENGTH.end() + 2, "admin token")?;
    let token = text.trim_end();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    match LENGTH.contains(&token.len()) && token.bytes().all(plain) {
        true => Ok(Secret::new(token)),
        false => Err(io::Error::new(ErrorKind::InvalidData, "holds no token; delete it for a new one")),
    }
}

fn make(path: &Path) -> io::Result<Secret> {
    let mut bytes = [0; TOKEN_BYTES];
    rand::fill(&mut bytes).map_err(|_| io::Error::other("no random bytes"))?;
    let token = Secret::new(BASE64_URL_SAFE_NO_PAD.encode(bytes));
    private_file::create(path, token.expose())?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn a_token_is_made_once_and_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/admin-token");
        let token = read_or_make(&path).unwrap();
        assert_eq!(token.expose().len(), 43);
        assert_eq!(read_or_make(&path).unwrap(), token);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read_or_make(&path).unwrap(), token);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_token_of_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("target"), "x".repeat(43)).unwrap();
        std::os::unix::fs::symlink(at("target"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
        std::fs::write(at("empty"), "").unwrap();
        std::fs::write(at("long"), "x".repeat(513)).unwrap();
        std::fs::write(at("odd"), format!("{} x", "x".repeat(43))).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        for name in ["link", "dangling", "empty", "long", "odd", "directory", "target/below"] {
            assert!(read_or_make(&at(name)).is_err(), "{name}");
        }
        assert!(!at("nowhere").exists());
    }
}
