//! Blocks of memory that bytes are gathered in, drawn from one pool for the whole program and given back when the
//! last holder drops them. Blocks grow with their upload, and are small while many uploads run, so that the sum stays
//! bounded; memory is touched once and then reused, never allocated per chunk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::past_cache::{ALIGN, LEAST_BYTES};

/// A size of blocks, and up to how many uploads and up to how many readers it is used.
struct Class {
    bytes: usize,
    uploads: usize,
    readers: usize,
}

/// A large block costs fewer writes and changes of threads for the same bytes, a small one less memory.
const CLASSES: [Class; 6] = [
    Class { bytes: 1 << 20, uploads: 2, readers: 0 },
    Class { bytes: 512 << 10, uploads: 80, readers: 0 },
    Class { bytes: 256 << 10, uploads: 80, readers: 16 },
    Class { bytes: 128 << 10, uploads: 80, readers: 80 },
    // Readers may stand still for long: others are not to pay for many of them with the smallest.
    Class { bytes: 64 << 10, uploads: 200, readers: usize::MAX },
    Class { bytes: 16 << 10, uploads: usize::MAX, readers: usize::MAX },
];
/// What an upload begins with: one that has hardly begun, and may be slow, is not to hold a large block.
const FIRST_BYTES: u64 = 128 << 10;
/// Room in front of each block for its first byte to lie at a multiple of [`ALIGN`]; small blocks are written through
/// the page cache, which needs no such thing.
const fn slack(size: usize) -> usize {
    if size < LEAST_BYTES { 0 } else { ALIGN }
}
/// Free memory the pool keeps at most per class, in bytes.
const KEEP_BYTES: usize = 4 << 20;

/// The pool; clones share it.
#[derive(Clone, Default)]
pub struct BlockPool {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    free: [Mutex<Vec<Box<[u8]>>>; CLASSES.len()],
    uploads: Arc<AtomicUsize>,
    readers: Arc<AtomicUsize>,
}

impl BlockPool {
    /// A block for an upload of which `before` bytes have come: about as large as those together, 128 KiB at first, and no
    /// larger than suits the number of uploads under way.
    pub fn take(&self, before: u64) -> Block {
        self.take_class(self.class_for_uploads().max(fitting(before.max(FIRST_BYTES))))
    }

    /// A block for reading up to `bytes` from disk into a network: 256 KiB at most, less while many upload or read, and
    /// no more than is needed.
    pub fn take_for_reading(&self, bytes: u64) -> Block {
        let readers = self.inner.readers.load(Ordering::Relaxed).max(1);
        let for_readers = first(|class| readers <= class.readers);
        self.take_class(self.class_for_uploads().max(for_readers).max(fitting(bytes)))
    }

    fn class_for_uploads(&self) -> usize {
        let uploads = self.uploads();
        first(|class| uploads <= class.uploads)
    }

    /// Uploads that are being received.
    pub fn uploads(&self) -> usize {
        self.inner.uploads.load(Ordering::Relaxed)
    }

    fn take_class(&self, class: usize) -> Block {
        let free = self.inner.free[class].lock().unwrap_or_else(|e| e.into_inner()).pop();
        let size = CLASSES[class].bytes;
        let memory = free.unwrap_or_else(|| vec![0; size + slack(size)].into_boxed_slice());
        let start = memory.as_ptr().align_offset(ALIGN).min(slack(size));
        Block { memory, start, size, filled: 0, class, pool: self.inner.clone() }
    }

    /// Counts an upload for as long as the returned value lives.
    pub(crate) fn enter(&self) -> Entered {
        Entered::among(&self.inner.uploads)
    }

    /// Counts a reader for as long as the returned value lives.
    pub(super) fn enter_reader(&self) -> Entered {
        Entered::among(&self.inner.readers)
    }
}

fn first(suits: impl FnMut(&Class) -> bool) -> usize {
    CLASSES.iter().position(suits).unwrap_or(CLASSES.len() - 1)
}

/// The smallest that holds so many bytes, or else the largest.
fn fitting(bytes: u64) -> usize {
    CLASSES.iter().rposition(|class| class.bytes as u64 >= bytes).unwrap_or(0)
}

/// One upload or reader that counts.
pub(crate) struct Entered(Arc<AtomicUsize>);

impl Entered {
    fn among(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A fixed piece of memory, filled from its start.
pub struct Block {
    memory: Box<[u8]>,
    /// Where in the memory the block begins.
    start: usize,
    size: usize,
    filled: usize,
    class: usize,
    pool: Arc<Inner>,
}

impl Block {
    /// Copies as much of `bytes` as there is room for and returns how much that was.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.size - self.filled);
        let end = self.start + self.filled;
        self.memory[end..end + n].copy_from_slice(&bytes[..n]);
        self.filled += n;
        n
    }

    /// Fills it from its start by `read`, at most `limit` bytes; keeps what `read` says it got.
    pub fn fill_with<E>(
        &mut self,
        limit: u64,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let room = usize::try_from(limit).unwrap_or(usize::MAX).min(self.size);
        self.filled = read(&mut self.memory[self.start..self.start + room])?;
        Ok(self.filled)
    }

    /// Fills it with bytes of the file from `at` on, none from `end` on. Blocking.
    ///
    /// # Errors
    /// If the file ends at `at` or before, too.
    pub(super) fn read(&mut self, file: &File, at: u64, end: u64) -> io::Result<()> {
        match self.fill_with(end - at, |buffer| file.read_at(buffer, at))? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was")),
            _ => Ok(()),
        }
    }

    /// Bytes it can take.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.size
    }

    /// Whether there is no room left.
    pub fn is_full(&self) -> bool {
        self.filled == self.size
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.filled]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut free = self.pool.free[self.class].lock().unwrap_or_else(|e| e.into_inner());
        if (free.len() + 1) * CLASSES[self.class].bytes <= KEEP_BYTES {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}
