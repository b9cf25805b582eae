//! Notices that files have changed: by their directories, because editors and Kubernetes replace files, and by a look
//! now and then where no notice comes (network file systems).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::telemetry::audit::Audit;

/// A change is acted on when nothing has happened for this long, so that a half-written file is not read.
const QUIET: Duration = Duration::from_millis(200);
/// … or when it has gone on for this long.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often the files are looked at without a notice.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What changes when a file does.
type Look = Option<(SystemTime, u64)>;

pub struct Watch {
    files: Vec<PathBuf>,
    /// How the files looked when they were last read.
    seen: Vec<Look>,
    watcher: Option<RecommendedWatcher>,
    directories: BTreeSet<PathBuf>,
    notices: mpsc::Receiver<()>,
}

impl Watch {
    /// What is written to the file of `audit` is no change of the configuration, wherever that file lies.
    pub fn new(files: Vec<PathBuf>, audit: Audit) -> Watch {
        // One waiting notice is as good as many. Reading the files is no change of them.
        let (notice, notices) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let nothing = |event: notify::Event| event.kind.is_access() || is_only(&event.paths, audit.path());
            if !event.is_ok_and(nothing) {
                let _ = notice.try_send(());
            }
        });
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(%error, "files cannot be watched; changes are noticed within half a minute");
        });
        let directories = BTreeSet::new();
        let mut watch = Watch { files: Vec::new(), seen: Vec::new(), watcher: watcher.ok(), directories, notices };
        watch.follow(files);
        watch.look_again();
        watch
    }

    /// Watches these files and directories from now on.
    pub fn follow(&mut self, files: Vec<PathBuf>) {
        if files != self.files {
            self.seen = files.iter().map(|file| look(file)).collect();
            self.files = files;
        }
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
        self.seen = self.files.iter().map(|file| look(file)).collect();
    }

    /// Returns when the files may have changed and have come to rest.
    pub async fn changed(&mut self) {
        loop {
            match timeout(LOOK_EVERY, self.notices.recv()).await {
                Ok(Some(())) => break,
                // Without a watcher only the looks are left.
                Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
                Err(_) => {}
            }
            if self.files.iter().map(|file| look(file)).ne(self.seen.iter().copied()) {
                break;
            }
        }
        let rest = async { while let Ok(Some(())) = timeout(QUIET, self.notices.recv()).await {} };
        let _ = timeout(QUIET_WAIT_MAX, rest).await;
    }
}

/// Notices have absolute paths.
fn is_only(paths: &[PathBuf], file: Option<PathBuf>) -> bool {
    let file = file.and_then(|file| std::path::absolute(file).ok());
    file.is_some_and(|file| !paths.is_empty() && paths.iter().all(|path| *path == file))
}

fn look(file: &Path) -> Look {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The directory itself, or the one that a file stands in.
fn directory(file: &Path) -> PathBuf {
    if file.is_dir() {
        return file.to_owned();
    }
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
