//! Files as blocks, for whoever sends them over a network.
//!
//! What the page cache has is read at once, by the task that sends it: handing a read to another thread and its bytes back
//! costs several times the copy. What must come from the disk is read by a thread that may wait.
//!
//! Invariants: no task waits for the disk; what [`read_blocks`] gives has one block on its way at a time, so a thousand
//! slow readers hold a thousand small blocks; a file that ends before the bytes asked for is an error, never an end.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::block::{Block, BlockPool, Entered};

/// Streams the bytes `start..end`, which must have been written, in blocks. A block comes when the one before it was
/// dropped: whoever keeps them all waits for ever.
pub fn read_blocks(
    file: Arc<File>,
    start: u64,
    end: u64,
    blocks: BlockPool,
) -> BoxStream<'static, io::Result<Bytes>> {
    let reading = Reading {
        at: start,
        end,
        _reader: blocks.enter_reader(),
        file: BlockReader::new(file, blocks),
        turn: Arc::new(Semaphore::new(1)),
    };
    unfold(reading, Reading::next).boxed()
}

/// Whether the file system reads what the page cache has without waiting, and says so where it would have to wait
/// (preadv2(2), `RWF_NOWAIT`). Those that ask another machine or process do not.
pub(crate) fn tells_what_is_cached(file: impl AsFd) -> bool {
    read_cached(file, &mut [0], 0).is_ok()
}

fn read_cached(file: impl AsFd, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], at, ReadWriteFlags::NOWAIT)
}

/// Reads a file block by block.
pub(super) struct BlockReader {
    file: Arc<File>,
    blocks: BlockPool,
    /// Until the file system says that it does not tell.
    asks_cache: bool,
}

impl BlockReader {
    pub(super) fn new(file: Arc<File>, blocks: BlockPool) -> Self {
        Self { file, blocks, asks_cache: true }
    }

    /// Some bytes from `at` on, none from `end` on.
    ///
    /// # Errors
    /// If the file ends at `at` or before, too.
    pub(super) async fn read(&mut self, at: u64, end: u64) -> io::Result<Block> {
        let mut block = self.blocks.take_for_reading(end - at);
        if self.read_at_once(&mut block, at, end) {
            return Ok(block);
        }
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || block.read(&file, at, end).map(|()| block));
        read.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }

    /// Whether there was something.
    fn read_at_once(&mut self, block: &mut Block, at: u64, end: u64) -> bool {
        if !self.asks_cache {
            return false;
        }
        match block.fill_with(end - at, |buffer| read_cached(&self.file, buffer, at)) {
            // At the end of a file that is too short, the other way says so.
            Ok(read) => read > 0,
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => {
                self.asks_cache = false;
                false
            }
        }
    }
}

struct Reading {
    file: BlockReader,
    at: u64,
    end: u64,
    _reader: Entered,
    /// Of the block that is on its way.
    turn: Arc<Semaphore>,
}

/// A block on its way.
struct Sent {
    block: Block,
    _turn: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        self.block.as_ref()
    }
}

impl Reading {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        if self.at >= self.end {
            return None;
        }
        let turn = self.turn.clone().acquire_owned().await.expect("the semaphore is never closed");
        let read = self.file.read(self.at, self.end).await;
        let read = read.map(|block| Bytes::from_owner(Sent { block, _turn: turn }));
        self.at = read.as_ref().map_or(self.end, |bytes| self.at + bytes.len() as u64);
        Some((read, self))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures_util::FutureExt;
    use rustix::fs::Advice;

    use super::*;

    const SIZE: usize = 700_001;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.sync_all().unwrap();
        file
    }

    fn pattern() -> Vec<u8> {
        (0..SIZE).map(|i| (i * 31 + i / 251) as u8).collect()
    }

    async fn read(file: File, start: u64, end: u64) -> (Vec<u8>, io::Result<()>) {
        let (mut all, mut stream) =
            (Vec::new(), read_blocks(Arc::new(file), start, end, BlockPool::default()));
        while let Some(block) = stream.next().await {
            match block {
                Ok(block) => all.extend_from_slice(&block),
                Err(error) => {
                    assert!(stream.next().await.is_none(), "an error is the last that comes");
                    return (all, Err(error));
                }
            }
        }
        (all, Ok(()))
    }

    #[tokio::test]
    async fn cached_or_not_the_bytes_are_those_that_were_asked_for() {
        let (bytes, size) = (pattern(), SIZE as u64);
        let block = 256 << 10;
        let parts = [
            (0, size),
            (0, 1),
            (0, 0),
            (size - 1, size),
            (size, size),
            (5, 5),
            (block - 1, block + 1),
            (1, block + 1),
        ];
        for (start, end) in parts {
            for cold in [false, true] {
                let file = file_of(&bytes);
                if cold {
                    // Where these tests keep their files, there may be no other place than the cache.
                    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
                }
                let (got, end_of_it) = read(file, start, end).await;
                end_of_it.unwrap();
                assert!(got == bytes[start as usize..end as usize], "{start}..{end}, cold: {cold}");
            }
        }
    }

    #[tokio::test]
    async fn a_file_system_that_does_not_tell_is_read_all_the_same() {
        // Files of procfs are made when they are read.
        let path = "/proc/version";
        assert!(!tells_what_is_cached(File::open(path).unwrap()));
        let whole = std::fs::read(path).unwrap();
        let (got, end) = read(File::open(path).unwrap(), 0, whole.len() as u64).await;
        end.unwrap();
        assert_eq!(got, whole);
    }

    #[tokio::test]
    async fn a_file_that_ends_early_is_an_error_after_what_it_has() {
        for (has, start, asked) in [(SIZE, 0, SIZE + 1), (SIZE, SIZE, SIZE + 1), (0, 0, 1)] {
            let bytes = &pattern()[..has];
            let (got, end) = read(file_of(bytes), start as u64, asked as u64).await;
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert!(got == bytes[start..], "{has} of {asked}");
        }
    }

    #[tokio::test]
    async fn a_block_comes_when_the_one_before_it_has_gone() {
        let mut stream = read_blocks(Arc::new(file_of(&pattern())), 0, SIZE as u64, BlockPool::default());
        let first = stream.next().await.unwrap().unwrap();
        assert!(stream.next().now_or_never().is_none(), "two are on their way");
        let rest = first.slice(10..);
        drop(first);
        assert!(stream.next().now_or_never().is_none(), "a part of it still is");
        drop(rest);
        stream.next().await.unwrap().unwrap();
    }

    #[test]
    fn a_thousand_readers_hold_little_together() {
        let pool = BlockPool::default();
        let blocks: Vec<_> =
            (0..1000).map(|_| (pool.enter_reader(), pool.take_for_reading(u64::MAX))).collect();
        let held: usize = blocks.iter().map(|(_, block)| block.room()).sum();
        assert!(held < 80 << 20, "{held} bytes");
        drop(blocks);
        assert_eq!(pool.take_for_reading(u64::MAX).room(), 256 << 10);
        assert_eq!(pool.take_for_reading(64 << 10).room(), 64 << 10, "no more than is needed");
        assert_eq!(pool.take_for_reading((64 << 10) + 1).room(), 128 << 10);
    }
}
