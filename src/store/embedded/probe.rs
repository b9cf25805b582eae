//! A copy-on-write view of a file: writes stay in memory.
//!
//! Opening a database writes to it, even if it is damaged or sealed under another key. So the file is opened through
//! this view first, and directly only if that succeeds. Locks apply to the file itself.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use crate::sync::lock;

const PAGE: usize = 4096;

#[derive(Debug)]
pub struct Probe {
    file: FileBackend,
    overlay: Mutex<Overlay>,
}

#[derive(Debug)]
struct Overlay {
    length: u64,
    /// Length of the file that is still visible: it may have been truncated and extended since.
    visible: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Probe {
    pub fn new(file: FileBackend) -> io::Result<Probe> {
        let length = file.len()?;
        Ok(Probe { file, overlay: Mutex::new(Overlay { length, visible: length, pages: BTreeMap::new() }) })
    }

    fn overlay(&self) -> MutexGuard<'_, Overlay> {
        lock(&self.overlay)
    }

    /// The page as it is in the file, zero-filled beyond the end.
    fn file_page(&self, page: u64, visible: u64) -> io::Result<Box<[u8; PAGE]>> {
        let mut bytes = Box::new([0; PAGE]);
        let start = page * PAGE as u64;
        let length = usize::try_from(visible.saturating_sub(start)).unwrap_or(PAGE).min(PAGE);
        self.file.read(start, &mut bytes[..length])?;
        Ok(bytes)
    }
}

/// Splits `length` bytes at `offset` by page: the page, the range within it, and the range within the bytes.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
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
        Ok(self.overlay().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let overlay = self.overlay();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > overlay.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, within, bytes) in parts(offset, out.len()) {
            match overlay.pages.get(&page) {
                Some(kept) => out[bytes].copy_from_slice(&kept[within]),
                None => out[bytes].copy_from_slice(&self.file_page(page, overlay.visible)?[within]),
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut overlay = self.overlay();
        if length < overlay.length {
            overlay.visible = overlay.visible.min(length);
            overlay.pages.retain(|page, _| page * (PAGE as u64) < length);
            if let Some(last) = overlay.pages.get_mut(&(length / PAGE as u64)) {
                last[usize::try_from(length % PAGE as u64).unwrap_or(0)..].fill(0);
            }
        }
        overlay.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut overlay = self.overlay();
        let visible = overlay.visible;
        for (page, within, bytes) in parts(offset, data.len()) {
            let kept = match overlay.pages.entry(page) {
                Entry::Occupied(kept) => kept.into_mut(),
                Entry::Vacant(page_slot) => page_slot.insert(self.file_page(page, visible)?),
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
