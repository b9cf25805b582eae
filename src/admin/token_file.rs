//! The manager's token in the state directory, for an instance without listed users.
//!
//! Holds: the file is nobody else's to read, no link is followed to it, and its value is in no log.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustix::fs::OFlags;

use crate::model::secret::Secret;

const TOKEN_BYTES: usize = 32;
/// A token that somebody put there is at least and at most so long.
const LENGTH: std::ops::RangeInclusive<usize> = 32..=512;

/// The token in `path`; made, with its directory, where there is none.
pub fn read_or_make(path: &Path) -> io::Result<Secret> {
    match read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match make(path) {
        // Another instance was quicker.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(path),
        other => other,
    }
}

fn read(path: &Path) -> io::Result<Secret> {
    let file = open(OpenOptions::new().read(true), path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others could read the admin token; delete the file for a new one");
        // A mounted file may refuse it; the warning stands.
        let _ = file.set_permissions(std::fs::Permissions::from_mode(0o600));
    }
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(*LENGTH.end() as u64 + 2).read_to_string(&mut text)?;
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
    let mut file = open(OpenOptions::new().write(true).create_new(true).mode(0o600), path)?;
    let written = writeln!(file, "{}", token.expose()).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a token would stand in the way of every later start.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(token)
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Opening a pipe would wait for its other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.custom_flags(flags.bits().cast_signed()).open(path)
}

#[cfg(test)]
mod tests {
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
