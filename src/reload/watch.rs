//! Notices that files of the configuration have changed: by their directories, because editors and Kubernetes replace
//! files, and by a look now and then where no notice comes (network file systems).
//!
//! Invariant: whatever else is written in those directories (logs, the store) is no change: a notice only makes the files be
//! looked at, and what differs from when they were last read is a change.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::config;
use crate::model::time::WallTime;

/// A change is acted on when nothing has happened for this long, so that a half-written file is not read.
const QUIET: Duration = Duration::from_millis(200);
/// … or when it has gone on for this long.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often the files are looked at without a notice.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Two changes within the resolution of a file system's clock may look the same.
const CLOCK_RESOLUTION_MAX: Duration = Duration::from_millis(100);

/// How a path looks; equal for what has not changed.
#[derive(PartialEq, Eq)]
enum Look {
    Nothing,
    /// What a symbolic link leads to, in the end.
    File {
        device_and_inode: (u64, u64),
        bytes: u64,
        /// Seconds and nanoseconds since the Unix epoch.
        modified: (i64, i64),
        changed: (i64, i64),
    },
    /// The files that a configuration includes from it.
    Directory(Vec<PathBuf>),
}

impl Look {
    fn at(path: &Path) -> Look {
        let Ok(metadata) = std::fs::metadata(path) else { return Look::Nothing };
        if metadata.is_dir() {
            return config::included_files(path).map_or(Look::Nothing, Look::Directory);
        }
        Look::File {
            device_and_inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Could a change just after this look go unseen? `wall`: when it was taken.
    fn is_recent(&self, wall: WallTime) -> bool {
        let Look::File { changed: (seconds, nanoseconds), .. } = *self else { return false };
        let seconds = WallTime::from_secs(seconds.try_into().unwrap_or(0));
        let changed = seconds + Duration::from_nanos(nanoseconds.try_into().unwrap_or(0));
        changed + CLOCK_RESOLUTION_MAX >= wall
    }
}

pub struct Watch {
    files: Vec<PathBuf>,
    /// How they looked when they were last read; what has been read for the first time was not looked at before.
    seen: HashMap<PathBuf, Look>,
    /// One of them had changed only just.
    recent: bool,
    watcher: Option<RecommendedWatcher>,
    directories: BTreeSet<PathBuf>,
    notices: mpsc::Receiver<()>,
}

impl Watch {
    pub fn new(files: Vec<PathBuf>) -> Watch {
        // One waiting notice is as good as many. Reading the files is no change of them.
        let (notice, notices) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = notice.try_send(());
            }
        });
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(%error, "files cannot be watched; changes are noticed within half a minute");
        });
        let mut watch = Watch {
            files: Vec::new(),
            seen: HashMap::new(),
            recent: false,
            watcher: watcher.ok(),
            directories: BTreeSet::new(),
            notices,
        };
        watch.follow(files);
        watch.look_again();
        watch
    }

    /// Watches these files and directories from now on.
    pub fn follow(&mut self, files: Vec<PathBuf>) {
        self.files = files;
        let directories: BTreeSet<PathBuf> = self.files.iter().map(|file| directory(file)).collect();
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.directories.difference(&directories) {
            // It may have been deleted, and its watch with it.
            let _ = watcher.unwatch(gone);
        }
        for new in directories.difference(&self.directories) {
            if let Err(error) = watcher.watch(new, RecursiveMode::NonRecursive) {
                tracing::warn!(directory = %new.display(), %error, "a directory cannot be watched");
            }
        }
        self.directories = directories;
    }

    /// What the files hold now is about to be read.
    pub fn look_again(&mut self) {
        let wall = Clock::system().now().wall;
        self.seen = self.files.iter().map(|file| (file.clone(), Look::at(file))).collect();
        self.recent = self.seen.values().any(|look| look.is_recent(wall));
    }

    /// Returns when the files may have changed and have come to rest.
    pub async fn changed(&mut self) {
        loop {
            match timeout(LOOK_EVERY, self.notices.recv()).await {
                Ok(Some(())) => {
                    let rest = async { while let Ok(Some(())) = timeout(QUIET, self.notices.recv()).await {} };
                    let _ = timeout(QUIET_WAIT_MAX, rest).await;
                }
                // Without a watcher only the looks are left.
                Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
                Err(_) => {}
            }
            if self.differs() {
                return;
            }
        }
    }

    fn differs(&self) -> bool {
        self.recent || self.files.iter().any(|file| self.seen.get(file) != Some(&Look::at(file)))
    }
}

/// The directory itself, or the one that a file is in.
fn directory(file: &Path) -> PathBuf {
    if file.is_dir() {
        return file.to_owned();
    }
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn watch(dir: &Path, names: &[&str]) -> Watch {
        let mut watch = Watch::new(names.iter().map(|name| dir.join(name)).collect());
        // Whatever the clock says, nothing was changed just now.
        watch.recent = false;
        watch
    }

    #[test]
    fn what_the_configuration_was_read_from_is_a_change_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (at, write) = (
            |name: &str| dir.path().join(name),
            |name: &str, text: &str| {
                fs::write(dir.path().join(name), text).unwrap();
            },
        );
        fs::create_dir(at("included")).unwrap();
        fs::create_dir(at("..v1")).unwrap();
        write("main.yaml", "a");
        write("..v1/secret", "one");
        symlink("..v1", at("..data")).unwrap();
        symlink("..data/secret", at("secret")).unwrap();
        let names = ["main.yaml", "secret", "gone", "included"];
        let check = |what: &str, change: &dyn Fn(), expected: bool| {
            let watch = watch(dir.path(), &names);
            assert!(!watch.differs(), "{what}");
            change();
            assert_eq!(watch.differs(), expected, "{what}");
        };
        check("a log", &|| write("keybearer.log", "x"), false);
        check("a log in an included directory", &|| write("included/keybearer.log", "x"), false);
        check("an editor's copy", &|| write("included/.crm.yaml.swp", "x"), false);
        check("a read", &|| drop(fs::read(at("main.yaml"))), false);
        check("another length", &|| write("main.yaml", "ab"), true);
        check("a file that was missing", &|| write("gone", "x"), true);
        check("a file that goes", &|| fs::remove_file(at("gone")).unwrap(), true);
        check("an included file", &|| write("included/crm.yaml", "x"), true);
        check("an included file that goes", &|| fs::remove_file(at("included/crm.yaml")).unwrap(), true);
        let replaced = || {
            write("next", "cd");
            fs::rename(at("next"), at("main.yaml")).unwrap();
        };
        check("a file in its place", &replaced, true);
        let swapped = || {
            fs::create_dir(at("..v2")).unwrap();
            write("..v2/secret", "two");
            symlink("..v2", at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        check("what a link leads to", &swapped, true);
    }

    #[test]
    fn a_file_that_had_just_changed_is_looked_at_once_more() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("main.yaml"), "a").unwrap();
        let mut watch = Watch::new(vec![dir.path().join("main.yaml")]);
        assert!(watch.differs(), "another change within the same tick would look the same");
        let look = watch.seen.values().next().unwrap();
        let wall = Clock::system().now().wall;
        assert!(look.is_recent(wall) && !look.is_recent(wall + CLOCK_RESOLUTION_MAX * 100));
        watch.recent = false;
        watch.follow(vec![dir.path().join("main.yaml"), dir.path().join("other")]);
        assert!(watch.differs(), "what is followed anew was not looked at before it was read");
        watch.look_again();
        watch.recent = false;
        assert!(!watch.differs());
    }
}
