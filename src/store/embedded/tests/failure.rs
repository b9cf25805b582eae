//! Tests with a disk that fails and recovers.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use redb::StorageBackend;

use super::*;

/// An in-memory disk that outlives the stores opened on it.
#[derive(Debug, Default)]
pub struct Disk {
    bytes: Mutex<Vec<u8>>,
    /// Writes and syncs left before all of them fail.
    pub good_writes: AtomicUsize,
    panics: AtomicBool,
    opened: AtomicUsize,
    commits: AtomicUsize,
}

#[derive(Debug)]
struct Opened(Arc<Disk>);

impl Opened {
    fn spend(&self) -> io::Result<()> {
        assert!(!self.0.panics.load(Ordering::SeqCst), "a fault that panics");
        let left = self.0.good_writes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(|_| ()).map_err(|_| io::Error::new(io::ErrorKind::StorageFull, "no space left on device"))
    }
}

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.bytes.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let found = bytes.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.spend()?;
        self.0.bytes.lock().unwrap().resize(usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.commits.fetch_add(1, Ordering::SeqCst);
        self.spend()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?;
        let start = usize::try_from(offset).unwrap();
        self.0.bytes.lock().unwrap()[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

pub fn open_on(disk: &Arc<Disk>) -> EmbeddedStore {
    disk.good_writes.store(usize::MAX, Ordering::SeqCst);
    let keyring = Arc::new(ring(1, &[]));
    let path = Path::new("disk");
    let (again, keys) = (disk.clone(), keyring.clone());
    let open = move |missing| {
        again.opened.fetch_add(1, Ordering::SeqCst);
        file::open_backend(Path::new("disk"), Opened(again.clone()), &keys, missing)
    };
    let database = open(IfMissing::Create).unwrap();
    let reopen = Box::new(move || open(IfMissing::Fail)) as Reopen;
    EmbeddedStore::with_engine(path, Engine::new(database, reopen), keyring, Clock::system(), &Tasks::default())
        .unwrap()
}

/// Loads the record once the file has been reopened.
async fn load_after_reopen(store: &EmbeddedStore) -> StoredToken {
    let end = Instant::now() + 5 * SECOND;
    loop {
        match store.load(&key("crm", "a")).await {
            Ok(found) => return found.unwrap(),
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(SECOND / 50).await;
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_recovers() {
    let disk = Arc::new(Disk::default());
    let store = open_on(&disk);
    save(&store, &key("crm", "a"), token("first")).await.unwrap();
    let mut failed = 0;
    for good in 0..40 {
        let before = store.load(&key("crm", "a")).await.unwrap().unwrap().access_token;
        disk.good_writes.store(good, Ordering::SeqCst);
        let saved = save(&store, &key("crm", "a"), token(&good.to_string())).await;
        disk.good_writes.store(usize::MAX, Ordering::SeqCst);
        failed += usize::from(saved.is_err());
        let after = load_after_reopen(&store).await.access_token;
        let new = token(&good.to_string()).access_token;
        match saved {
            Ok(()) => assert_eq!(after, new),
            Err(_) => assert!(after == before || after == new, "old or new, after {good} writes"),
        }
    }
    assert!(failed > 3, "{failed}");
    assert!(disk.opened.load(Ordering::SeqCst) > 3);
}

#[tokio::test]
async fn a_panic_of_the_database_is_an_error() {
    let disk = Arc::new(Disk::default());
    let store = open_on(&disk);
    save(&store, &key("crm", "a"), token("a")).await.unwrap();
    disk.panics.store(true, Ordering::SeqCst);
    let failed = save(&store, &key("crm", "a"), token("b")).await;
    assert!(matches!(failed, Err(StoreError::Damaged { .. })), "{failed:?}");
    disk.panics.store(false, Ordering::SeqCst);
    load_after_reopen(&store).await;
    save(&store, &key("crm", "a"), token("b")).await.unwrap();
}

#[tokio::test]
async fn queued_writes_are_committed_together() {
    let disk = Arc::new(Disk::default());
    let store = open_on(&disk);
    let before = disk.commits.load(Ordering::SeqCst);
    save(&store, &key("crm", "a"), token("a")).await.unwrap();
    let alone = disk.commits.load(Ordering::SeqCst) - before;
    // The first is being committed while the others queue.
    let keys: Vec<_> = (0..64).map(|number| key("crm", &number.to_string())).collect();
    for saved in futures_util::future::join_all(keys.iter().map(|key| save(&store, key, token("a")))).await {
        saved.unwrap();
    }
    let together = disk.commits.load(Ordering::SeqCst) - before - alone;
    assert!(together <= 16 * alone, "{together} syncs for 64, {alone} for one");
}
