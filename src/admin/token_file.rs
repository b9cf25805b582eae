//! The manager's token in the state directory, for an instance without configured users.
//!
//! Invariants: only the owner can read the file, no symbolic link is followed, and the token is in no log.

use std::io::{self, ErrorKind};
use std::path::Path;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::model::secret::Secret;
use crate::private_file;

const TOKEN_BYTES: usize = 32;
/// Accepted lengths of a token that an operator wrote to the file.
const TOKEN_CHARS: std::ops::RangeInclusive<usize> = 32..=512;

/// Reads the token in `path`, or creates it together with its directory.
pub fn read_or_create(path: &Path) -> io::Result<Secret> {
    match read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    private_file::make_directory_of(path)?;
    match create(path) {
        // Another instance created it first.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(path),
        other => other,
    }
}

fn read(path: &Path) -> io::Result<Secret> {
    let text = private_file::read(path, TOKEN_CHARS.end() + 2, "admin token")?;
    let token = text.trim_end();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    match TOKEN_CHARS.contains(&token.len()) && token.bytes().all(plain) {
        true => Ok(Secret::new(token)),
        false => Err(io::Error::new(ErrorKind::InvalidData, "does not hold a valid token; delete it to get a new one")),
    }
}

fn create(path: &Path) -> io::Result<Secret> {
    let mut bytes = [0; TOKEN_BYTES];
    rand::fill(&mut bytes).map_err(|_| io::Error::other("the system has no random bytes"))?;
    let token = Secret::new(BASE64_URL_SAFE_NO_PAD.encode(bytes));
    private_file::create(path, token.expose())?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn a_token_is_created_once_and_only_the_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/admin-token");
        let token = read_or_create(&path).unwrap();
        assert_eq!(token.expose().len(), 43);
        assert_eq!(read_or_create(&path).unwrap(), token);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read_or_create(&path).unwrap(), token);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_invalid_token_file_is_refused_and_unchanged() {
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
            assert!(read_or_create(&at(name)).is_err(), "{name}");
        }
        assert!(!at("nowhere").exists());
    }
}
