//! Files readable only by their owner: mode 0600, in a directory created with 0700; symbolic links are not followed.
//!
//! Not here: their contents (the manager's token, the seal key, the store).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// Creates the parent directories of `path` that are missing.
pub fn make_directory_of(path: &Path) -> io::Result<()> {
    let Some(directory) = path.parent() else { return Ok(()) };
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Opens a regular file. If others can read it, restricts its mode and logs a warning that names `what` the file is.
pub fn open(options: &mut OpenOptions, path: &Path, what: &str) -> io::Result<File> {
    // NONBLOCK: opening a FIFO would block until its other end is opened.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.mode(0o600).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "{what} was readable by others; if leaked, delete it to get a new one");
        // Fails on a read-only mount; the warning is enough.
        let _ = file.set_permissions(std::fs::Permissions::from_mode(0o600));
    }
    Ok(file)
}

/// Reads the text of a file of at most `length_max` bytes.
pub fn read(path: &Path, length_max: usize, what: &str) -> io::Result<Zeroizing<String>> {
    let file = open(OpenOptions::new().read(true), path, what)?;
    let mut text = Zeroizing::new(String::with_capacity(length_max + 1));
    file.take(length_max as u64 + 1).read_to_string(&mut text)?;
    if text.len() > length_max {
        return Err(io::Error::new(ErrorKind::InvalidData, "the file is too long"));
    }
    Ok(text)
}

/// Creates a new file with one line of text, durably.
pub fn create(path: &Path, line: &str) -> io::Result<()> {
    let mut file = create_empty(path)?;
    let written = writeln!(file, "{line}").and_then(|()| file.sync_all()).and_then(|()| sync_directory_of(path));
    if written.is_err() {
        // A partial secret would break every later start.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Creates a new, empty file for writing.
pub fn create_empty(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().write(true).create_new(true), path, "file")
}

/// Syncs the directory of `path`, so that a created or renamed file survives a crash.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_created_once_and_read_up_to_its_maximum_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        make_directory_of(&path).unwrap();
        create(&path, "text").unwrap();
        assert_eq!(create(&path, "other").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(*read(&path, 5, "test").unwrap(), "text\n");
        assert_eq!(read(&path, 4, "test").unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn links_and_directories_are_rejected_and_the_mode_is_restricted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        create(&at("file"), "text").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
        for name in ["link", "dangling", "", "file/below"] {
            assert!(read(&at(name), 100, "test").is_err(), "{name}");
            assert!(open(OpenOptions::new().write(true).create(true), &at(name), "test").is_err(), "{name}");
            assert!(create(&at(name), "text").is_err(), "{name}");
        }
        assert!(!at("nowhere").exists());
        std::fs::set_permissions(at("file"), std::fs::Permissions::from_mode(0o644)).unwrap();
        read(&at("file"), 100, "test").unwrap();
        assert_eq!(at("file").metadata().unwrap().mode() & 0o777, 0o600);
    }
}
