//! The writing end of a spool file. Frames of any size are gathered into blocks; each full block is hashed and
//! written while the next block fills: by two jobs at the same time, or by one where it is small. Work per frame is one
//! copy.

use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::block::{Block, Entered};
use super::past_cache::PastCache;
use super::reader::SpoolReader;
use super::room::Reserved;
use super::{End, Progress, Shared, SpoolError};
use crate::domain::ContentDigest;

/// Page-cache writes larger than this are slower on common file systems.
const WRITE_BYTES: usize = 128 << 10;
/// A block of so much or less is hashed and written by one job: another would cost more in changes of threads than it
/// saves.
const TOGETHER_BYTES: usize = 128 << 10;
/// Write-back is started each time this much was written, so that the final fsync is short.
const WRITE_BACK_BYTES: u64 = 8 << 20;

/// Receives one upload's bytes. Dropping it before [`Spooled::publish`] abandons the upload: followers are told,
/// the file is removed.
pub struct SpoolWriter {
    shared: Arc<Shared>,
    gate: Arc<Semaphore>,
    block: Option<Block>,
    /// Bytes handed to the lanes so far.
    dispatched: u64,
    hash: Lane<Sha256>,
    write: Lane<WriteState>,
    /// Set by `publish`; otherwise the drop abandons.
    finished: bool,
    _entered: Entered,
}

/// An upload whose bytes are all in the file (not yet synced), with their digest. Followers still wait for the end,
/// so that the bytes can be judged before anybody stores them; dropping it abandons the upload.
pub struct Spooled {
    /// Length in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the bytes.
    pub sha256: ContentDigest,
    writer: SpoolWriter,
}

impl Spooled {
    /// Tells the followers that this is the end.
    pub fn publish(mut self) -> SpoolReader {
        self.writer.finished = true;
        self.writer.shared.progress.send_replace(Progress { written: self.size_bytes, end: End::Complete });
        self.writer.reader()
    }
}

struct WriteState {
    shared: Arc<Shared>,
    offset: u64,
    written_back: u64,
    /// Room on the disk that was promised for these bytes.
    room: Option<Reserved>,
    past_cache: PastCache,
    /// Whether the page cache would be for nobody.
    unfollowed: bool,
    /// Here, and not in its own lane, while one job does both.
    hasher: Option<Sha256>,
}

impl SpoolWriter {
    pub(super) fn new(shared: Arc<Shared>, gate: Arc<Semaphore>, past_cache: PastCache) -> Self {
        let state = WriteState {
            shared: shared.clone(),
            offset: 0,
            written_back: 0,
            room: None,
            past_cache,
            unfollowed: false,
            hasher: None,
        };
        Self {
            gate,
            block: None,
            dispatched: 0,
            hash: Lane::new(Sha256::new()),
            write: Lane::new(state),
            finished: false,
            _entered: shared.blocks.enter(),
            shared,
        }
    }

    /// Writes within the room that was promised, and beyond it only down to the mark. Called before the first byte.
    pub fn within(mut self, room: Reserved) -> Self {
        if let At::Idle(state) = &mut self.write.at {
            state.room = Some(room);
        }
        self
    }

    /// Nobody follows while it is written: it goes past the page cache as far as the file system lets it. Called
    /// before the first byte. Followers may come all the same; they read from the disk.
    pub fn unfollowed(mut self) -> Self {
        if let At::Idle(state) = &mut self.write.at {
            state.unfollowed = true;
        }
        self
    }

    /// Takes the next bytes. Safe to drop at any await: the upload is then over, since bytes may be missing.
    ///
    /// # Errors
    /// A failed write of an earlier block shows here or in `finish`; the upload cannot go on.
    pub async fn push(&mut self, mut bytes: &[u8]) -> Result<(), SpoolError> {
        while !bytes.is_empty() {
            let block = self.block.get_or_insert_with(|| self.shared.blocks.take(self.dispatched));
            bytes = &bytes[block.fill(bytes)..];
            if block.is_full() {
                self.dispatch().await?;
            }
        }
        Ok(())
    }

    /// The reading end; may be taken at any time.
    pub fn reader(&self) -> SpoolReader {
        SpoolReader::new(self.shared.clone())
    }

    /// Bytes that followers can have already or very soon.
    pub fn dispatched_bytes(&self) -> u64 {
        self.dispatched
    }

    /// The clean end. Returns when every byte is written and hashed. Followers do not know yet: see
    /// [`Spooled::publish`].
    pub async fn finish(mut self) -> Result<Spooled, SpoolError> {
        if self.block.is_some() {
            self.dispatch().await?;
        }
        self.part().await?;
        let size_bytes = self.write.idle().await?.offset;
        let digest: [u8; 32] = self.hash.take().await?.finalize().into();
        Ok(Spooled { size_bytes, sha256: ContentDigest::from_bytes(digest), writer: self })
    }

    async fn dispatch(&mut self) -> Result<(), SpoolError> {
        let Some(block) = self.block.take() else { return Ok(()) };
        self.dispatched += block.as_ref().len() as u64;
        if block.as_ref().len() <= TOGETHER_BYTES {
            return self.dispatch_together(block).await;
        }
        self.part().await?;
        let block = Arc::new(block);
        let to_write = block.clone();
        self.write.run(&self.gate, move |state| state.write(to_write.as_ref().as_ref())).await?;
        self.hash
            .run(&self.gate, move |hasher| {
                hasher.update(block.as_ref().as_ref());
                Ok(())
            })
            .await
    }

    async fn dispatch_together(&mut self, block: Block) -> Result<(), SpoolError> {
        if self.write.idle().await?.hasher.is_none() {
            let hasher = self.hash.take().await?;
            self.write.idle().await?.hasher = Some(hasher);
        }
        let both = move |state: &mut WriteState| {
            state.write(block.as_ref())?;
            if let Some(hasher) = &mut state.hasher {
                hasher.update(block.as_ref());
            }
            Ok(())
        };
        self.write.run(&self.gate, both).await
    }

    /// Gives the hasher its own lane back.
    async fn part(&mut self) -> Result<(), SpoolError> {
        if let Some(hasher) = self.write.idle().await?.hasher.take() {
            self.hash = Lane::new(hasher);
        }
        Ok(())
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.progress.send_modify(|progress| progress.end = End::Abandoned);
        }
    }
}

impl WriteState {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(room) = &mut self.room {
            room.claim(bytes.len() as u64)?;
        }
        let mut rest = bytes;
        if self.unfollowed {
            let past = self.past_cache.write(bytes, self.offset)?;
            rest = &bytes[past..];
            if self.written_back == self.offset {
                self.written_back += past as u64;
            }
            self.offset += past as u64;
        }
        for piece in rest.chunks(WRITE_BYTES) {
            self.shared.file.write_all_at(piece, self.offset)?;
            self.offset += piece.len() as u64;
        }
        if let Some(room) = &mut self.room {
            room.written(bytes.len() as u64);
        }
        self.shared.progress.send_modify(|progress| progress.written = self.offset);
        if self.offset - self.written_back >= WRITE_BACK_BYTES {
            // Linux starts writing the range's dirty pages at this advice and drops only pages that are clean, which
            // these are not yet. It is a hint: what it answers changes nothing.
            let length = std::num::NonZeroU64::new(self.offset - self.written_back);
            let _ = fadvise(&self.shared.file, self.written_back, length, Advice::DontNeed);
            self.written_back = self.offset;
        }
        Ok(())
    }
}

/// A state that jobs on the blocking pool change one after the other.
struct Lane<T> {
    at: At<T>,
}

enum At<T> {
    Idle(T),
    Busy(JoinHandle<io::Result<T>>),
    /// A job failed or panicked: the state is gone.
    Lost,
}

impl<T: Send + 'static> Lane<T> {
    fn new(state: T) -> Self {
        Self { at: At::Idle(state) }
    }

    /// Waits until the running job, if any, is done.
    async fn idle(&mut self) -> Result<&mut T, SpoolError> {
        if let At::Busy(job) = &mut self.at {
            let done = poll_job(Pin::new(job)).await;
            self.at = At::Lost;
            self.at = At::Idle(done?);
        }
        match &mut self.at {
            At::Idle(state) => Ok(state),
            _ => Err(SpoolError::Abandoned),
        }
    }

    async fn take(&mut self) -> Result<T, SpoolError> {
        self.idle().await?;
        match std::mem::replace(&mut self.at, At::Lost) {
            At::Idle(state) => Ok(state),
            _ => Err(SpoolError::Abandoned),
        }
    }

    /// Starts `job` as soon as the one before it is done and the gate lets it in.
    async fn run(
        &mut self,
        gate: &Arc<Semaphore>,
        job: impl FnOnce(&mut T) -> io::Result<()> + Send + 'static,
    ) -> Result<(), SpoolError> {
        self.idle().await?;
        let permit = gate.clone().acquire_owned().await.expect("the gate is never closed");
        let mut state = self.take().await?;
        self.at = At::Busy(tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job(&mut state)?;
            Ok(state)
        }));
        Ok(())
    }
}

async fn poll_job<T>(job: Pin<&mut JoinHandle<io::Result<T>>>) -> Result<T, SpoolError>
where
    JoinHandle<io::Result<T>>: Future<Output = Result<io::Result<T>, tokio::task::JoinError>>,
{
    match job.await {
        Ok(done) => done.map_err(SpoolError::from),
        Err(_) => Err(SpoolError::Abandoned),
    }
}
