//! A file seen through glass: what is written over it stays in memory.
//!
//! Opening a database writes to it, even if it turns out to be damaged or sealed under another key. It is opened here
//! first, and for itself only when that went well. Locks are the file's own.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use crate::sync::lock;

const PAGE: usize = 4096;

#[derive(Debug)]
pub struct Probe {
    file: FileBackend,
    over: Mutex<Over>,
}

#[derive(Debug)]
struct Over {
    length: u64,
    /// Of the file, as much as may still be seen of it: it may have been cut and made longer.
    seen: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Probe {
    pub fn new(file: FileBackend) -> io::Result<Probe> {
        let length = file.len()?;
        Ok(Probe { file, over: Mutex::new(Over { length, seen: length, pages: BTreeMap::new() }) })
    }

    fn over(&self) -> MutexGuard<'_, Over> {
        lock(&self.over)
    }

    /// The page as it lies in the file, with zeroes behind its end.
    fn below(&self, page: u64, seen: u64) -> io::Result<Box<[u8; PAGE]>> {
        let mut bytes = Box::new([0; PAGE]);
        let start = page * PAGE as u64;
        let length = usize::try_from(seen.saturating_sub(start)).unwrap_or(PAGE).min(PAGE);
        self.file.read(start, &mut bytes[..length])?;
        Ok(bytes)
    }
}

/// The parts of `length` bytes at `offset`: which page, where in it, and which of the bytes.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = usize::try_from(at % PAGE as u64).unwrap_or(0);
        let part = (PAGE - within).min(length - done);
        let bytes = done..done + part;
        done += part;
        (part > 0).then(|| (at / PAGE as u64, within..within + part, bytes))
    })
}

impl StorageBackend for Probe {
    fn len(&self) -> io::Result<u64> {
        Ok(self.over().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let over = self.over();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > over.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, within, bytes) in parts(offset, out.len()) {
            match over.pages.get(&page) {
                Some(kept) => out[bytes].copy_from_slice(&kept[within]),
                None => out[bytes].copy_from_slice(&self.below(page, over.seen)?[within]),
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut over = self.over();
        if length < over.length {
            over.seen = over.seen.min(length);
            over.pages.retain(|page, _| page * (PAGE as u64) < length);
            if let Some(last) = over.pages.get_mut(&(length / PAGE as u64)) {
                last[usize::try_from(length % PAGE as u64).unwrap_or(0)..].fill(0);
            }
        }
        over.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut over = self.over();
        let seen = over.seen;
        for (page, within, bytes) in parts(offset, data.len()) {
            let kept = match over.pages.entry(page) {
                std::collections::btree_map::Entry::Occupied(kept) => kept.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => place.insert(self.below(page, seen)?),
            };
            kept[within].copy_from_slice(&data[bytes]);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
