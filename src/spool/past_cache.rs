//! Writing past the page cache (`O_DIRECT`): the bytes go from their block to the disk without being copied, and
//! nothing is left for the final fsync to write. For bytes that nobody reads soon; a reader gets them from the disk.
//!
//! Apart because the kernel takes such a write only in whole pages, from an aligned place to an aligned place, and not
//! on every file system (open(2)). Whatever does not fit is left to the caller, so nothing here can lose a byte.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What place, length and memory must be multiples of: the largest logical block of common disks, and a page.
pub(super) const ALIGN: usize = 4 << 10;
/// Shorter writes gain nothing: each waits for the disk.
pub(super) const LEAST_BYTES: usize = 128 << 10;

/// A second handle of a spool file, for writes past the page cache.
pub(super) struct PastCache {
    handle: Handle,
    /// Whether the spool's file system takes such writes, as far as is known.
    taken: Arc<AtomicBool>,
}

enum Handle {
    /// Of the file at this path.
    Unopened(PathBuf),
    Open(File),
    /// It cannot be had; everything goes through the page cache.
    None,
}

impl PastCache {
    /// For the file at `path`, opened with the first bytes that fit. The files of a spool share `taken`, which begins
    /// as `true`.
    pub(super) fn new(path: PathBuf, taken: Arc<AtomicBool>) -> Self {
        Self { handle: Handle::Unopened(path), taken }
    }

    /// Writes as much of `bytes` from their start as can go past the page cache and returns how much that was: the
    /// rest is the caller's to write. Blocking.
    ///
    /// # Errors
    /// What the disk says (it is full, it is broken), never that it does not take such writes.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        loop {
            let rest = &bytes[done..];
            let whole = rest.len() - rest.len() % ALIGN;
            let at = offset + done as u64;
            let fits = rest.as_ptr().align_offset(ALIGN) == 0 && at.is_multiple_of(ALIGN as u64);
            if whole < LEAST_BYTES || !fits {
                return Ok(done);
            }
            let Some(file) = self.file() else { return Ok(done) };
            match file.write_at(&rest[..whole], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_refusal(&error) => {
                    self.refused();
                    return Ok(done);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn file(&mut self) -> Option<&File> {
        if let Handle::Unopened(path) = &self.handle {
            let flags = OFlags::DIRECT.bits().cast_signed();
            let opened = match self.taken.load(Ordering::Relaxed) {
                true => OpenOptions::new().write(true).custom_flags(flags).open(path),
                false => Err(Errno::INVAL.into()),
            };
            match opened {
                Ok(file) => self.handle = Handle::Open(file),
                Err(error) if is_refusal(&error) => self.refused(),
                // Too many are open, perhaps. The first handle does as well.
                Err(_) => self.handle = Handle::None,
            }
        }
        match &self.handle {
            Handle::Open(file) => Some(file),
            _ => None,
        }
    }

    fn refused(&mut self) {
        self.handle = Handle::None;
        self.taken.store(false, Ordering::Relaxed);
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::BlockPool;

    fn new(path: &str) -> PastCache {
        PastCache::new(path.into(), Arc::new(AtomicBool::new(true)))
    }

    /// A block with `len` bytes in it.
    fn block(len: usize) -> crate::spool::Block {
        let mut block = BlockPool::default().take(u64::MAX);
        assert_eq!(block.fill(&vec![7; len]), len);
        block
    }

    fn with_handle(path: &str) -> PastCache {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        PastCache { handle: Handle::Open(file), taken: Arc::new(AtomicBool::new(true)) }
    }

    #[test]
    fn whole_pages_are_taken_and_the_rest_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let mut past = new(path.to_str().unwrap());
        assert_eq!(past.write(block(LEAST_BYTES - 1).as_ref(), 0).unwrap(), 0, "too short");
        assert_eq!(past.write(block(LEAST_BYTES).as_ref(), 1).unwrap(), 0, "to an odd place");
        assert_eq!(past.write(&block(LEAST_BYTES + 1).as_ref()[1..], 0).unwrap(), 0, "from one");
        assert_eq!(file.metadata().unwrap().len(), 0);
        let bytes = block(LEAST_BYTES + ALIGN + 1);
        let taken = past.write(bytes.as_ref(), 0).unwrap();
        // Where these tests keep their files, such writes may not be had.
        let expected = if past.taken.load(Ordering::Relaxed) { LEAST_BYTES + ALIGN } else { 0 };
        assert_eq!(taken, expected);
        assert_eq!(std::fs::read(&path).unwrap(), bytes.as_ref()[..expected]);
    }

    #[test]
    fn a_file_system_that_refuses_is_asked_once() {
        // Files of procfs cannot be opened that way.
        let mut past = new("/proc/self/comm");
        assert_eq!(past.write(block(LEAST_BYTES).as_ref(), 0).unwrap(), 0);
        assert!(!past.taken.load(Ordering::Relaxed));
        // And the next file of the spool does not try.
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut next = PastCache::new(file.path().into(), past.taken.clone());
        assert_eq!(next.write(block(LEAST_BYTES).as_ref(), 0).unwrap(), 0);
        assert_eq!(file.as_file().metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_refused_write_is_left_to_the_page_cache_and_a_failed_one_is_told() {
        // This one takes numbers only: EINVAL.
        let mut past = with_handle("/proc/self/oom_score_adj");
        for _ in 0..2 {
            assert_eq!(past.write(block(LEAST_BYTES).as_ref(), 0).unwrap(), 0);
            assert!(!past.taken.load(Ordering::Relaxed));
        }
        let mut past = with_handle("/dev/full");
        let error = past.write(block(LEAST_BYTES).as_ref(), 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(past.taken.load(Ordering::Relaxed));
    }
}
