//! Detects changes of the configuration files: watches their directories, because editors and Kubernetes replace files,
//! and polls, because network file systems send no notifications.
//!
//! Invariant: other writes in those directories (logs, the store) are not changes: a notification only triggers a
//! comparison of the files with their state when they were last read.

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

/// Debounce: a change is reported after this much silence, so that no half-written file is read.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Maximum debounce delay, if changes keep coming.
const DEBOUNCE_MAX: Duration = Duration::from_secs(2);
/// Poll interval of the files, in case notifications are lost or not supported.
const POLL_INTERVAL: Duration = Duration::from_secs(30);
/// Two changes within the resolution of a file system's timestamps may be indistinguishable.
const CLOCK_RESOLUTION_MAX: Duration = Duration::from_millis(100);

/// State of a path; equal if it has not changed.
#[derive(PartialEq, Eq)]
enum Stamp {
    Missing,
    /// A regular file; symbolic links are followed.
    File {
        device_and_inode: (u64, u64),
        bytes: u64,
        /// Seconds and nanoseconds since the Unix epoch.
        modified: (i64, i64),
        changed: (i64, i64),
    },
    /// A directory, by the files that a configuration includes from it.
    Directory(Vec<PathBuf>),
}

impl Stamp {
    fn at(path: &Path) -> Stamp {
        let Ok(metadata) = std::fs::metadata(path) else { return Stamp::Missing };
        if metadata.is_dir() {
            return config::included_files(path).map_or(Stamp::Missing, Stamp::Directory);
        }
        Stamp::File {
            device_and_inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// True if a change just after this stamp, taken at `wall`, could go unnoticed.
    fn is_recent(&self, wall: WallTime) -> bool {
        let Stamp::File { changed: (seconds, nanoseconds), .. } = *self else { return false };
        let seconds = WallTime::from_secs(seconds.try_into().unwrap_or(0));
        let changed = seconds + Duration::from_nanos(nanoseconds.try_into().unwrap_or(0));
        changed + CLOCK_RESOLUTION_MAX >= wall
    }
}

pub struct Watch {
    files: Vec<PathBuf>,
    /// Stamps from when the files were last read. Files read for the first time have none yet.
    stamps: HashMap<PathBuf, Stamp>,
    /// One of the files had changed within the clock resolution.
    recent: bool,
    watcher: Option<RecommendedWatcher>,
    directories: BTreeSet<PathBuf>,
    notifications: mpsc::Receiver<()>,
}

impl Watch {
    pub fn new(files: Vec<PathBuf>) -> Watch {
        // One pending notification is enough. Reading a file is not a change.
        let (notification, notifications) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = notification.try_send(());
            }
        });
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(%error, "configuration files cannot be watched; polling instead");
        });
        let mut watch = Watch {
            files: Vec::new(),
            stamps: HashMap::new(),
            recent: false,
            watcher: watcher.ok(),
            directories: BTreeSet::new(),
            notifications,
        };
        watch.follow(files);
        watch.record_stamps();
        watch
    }

    /// Watches these files and directories from now on.
    pub fn follow(&mut self, files: Vec<PathBuf>) {
        self.files = files;
        let directories: BTreeSet<PathBuf> = self.files.iter().map(|file| directory(file)).collect();
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.directories.difference(&directories) {
            // Fails if the directory was deleted, and its watch with it.
            let _ = watcher.unwatch(gone);
        }
        for new in directories.difference(&self.directories) {
            if let Err(error) = watcher.watch(new, RecursiveMode::NonRecursive) {
                tracing::warn!(directory = %new.display(), %error, "directory cannot be watched; polling");
            }
        }
        self.directories = directories;
    }

    /// Called before the files are read: records their stamps.
    pub fn record_stamps(&mut self) {
        let wall = Clock::system().now().wall;
        self.stamps = self.files.iter().map(|file| (file.clone(), Stamp::at(file))).collect();
        self.recent = self.stamps.values().any(|stamp| stamp.is_recent(wall));
    }

    /// Returns once the files may have changed and the changes have settled.
    pub async fn changed(&mut self) {
        loop {
            match timeout(POLL_INTERVAL, self.notifications.recv()).await {
                Ok(Some(())) => {
                    let rest = async { while let Ok(Some(())) = timeout(DEBOUNCE, self.notifications.recv()).await {} };
                    let _ = timeout(DEBOUNCE_MAX, rest).await;
                }
                // Without a watcher, only polling is left.
                Ok(None) => tokio::time::sleep(POLL_INTERVAL).await,
                Err(_) => {}
            }
            if self.differs() {
                return;
            }
        }
    }

    fn differs(&self) -> bool {
        self.recent || self.files.iter().any(|file| self.stamps.get(file) != Some(&Stamp::at(file)))
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
        // Independent of the clock, treat the files as not recently changed.
        watch.recent = false;
        watch
    }

    #[test]
    fn only_changes_of_the_configuration_files_are_detected() {
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
        check("a removed file", &|| fs::remove_file(at("gone")).unwrap(), true);
        check("an included file", &|| write("included/crm.yaml", "x"), true);
        check("a removed included file", &|| fs::remove_file(at("included/crm.yaml")).unwrap(), true);
        let replaced = || {
            write("next", "cd");
            fs::rename(at("next"), at("main.yaml")).unwrap();
        };
        check("a replaced file", &replaced, true);
        let swapped = || {
            fs::create_dir(at("..v2")).unwrap();
            write("..v2/secret", "two");
            symlink("..v2", at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        check("another target of a link", &swapped, true);
    }

    #[test]
    fn a_recently_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("main.yaml"), "a").unwrap();
        let mut watch = Watch::new(vec![dir.path().join("main.yaml")]);
        assert!(watch.differs(), "another change within the same tick would go unnoticed");
        let stamp = watch.stamps.values().next().unwrap();
        let wall = Clock::system().now().wall;
        assert!(stamp.is_recent(wall) && !stamp.is_recent(wall + CLOCK_RESOLUTION_MAX * 100));
        watch.recent = false;
        watch.follow(vec![dir.path().join("main.yaml"), dir.path().join("other")]);
        assert!(watch.differs(), "a newly watched file has no stamp from before it was read");
        watch.record_stamps();
        watch.recent = false;
        assert!(!watch.differs());
    }
}
