//! The writing end of a spool file. Frames of any size are gathered into blocks; full blocks are hashed and written
//! while the next ones fill: by two jobs at the same time, or by one where many uploads run. Work per frame is one copy.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use super::block::{Block, Entered};
use super::past_cache::PastCache;
use super::reader::SpoolReader;
use super::room::Reserved;
use super::{End, Progress, Shared, SpoolError};
use crate::domain::ContentDigest;

/// Page-cache writes larger than this are slower on common file systems.
const WRITE_BYTES: usize = 128 << 10;
/// With more uploads than this one job hashes and writes a block.
const APART_UPLOADS: usize = 16;
/// Blocks in a job, and as many that wait for the next one.
const APART_BLOCKS: usize = 2;
/// The same where one job does both.
const TOGETHER_BLOCKS: usize = 1;
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
    lanes: Lanes,
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
        };
        Self {
            gate,
            block: None,
            dispatched: 0,
            lanes: Lanes::Idle(Duties { write: state, hash: Sha256::new() }),
            finished: false,
            _entered: shared.blocks.enter(),
            shared,
        }
    }

    /// Writes within the room that was promised, and beyond it only down to the mark. Called before the first byte.
    pub fn within(mut self, room: Reserved) -> Self {
        if let Lanes::Idle(duties) = &mut self.lanes {
            duties.write.room = Some(room);
        }
        self
    }

    /// Nobody follows while it is written: it goes past the page cache as far as the file system lets it. Called
    /// before the first byte. Followers may come all the same; they read from the disk.
    pub fn unfollowed(mut self) -> Self {
        if let Lanes::Idle(duties) = &mut self.lanes {
            duties.write.unfollowed = true;
        }
        self
    }

    /// Takes the next bytes. Safe to drop at any await: the upload is then over, since bytes may be missing.
    ///
    /// # Errors
    /// A failed write of an earlier block shows here or in `finish`; the upload cannot go on.
    pub async fn push(&mut self, mut bytes: &[u8]) -> Result<(), SpoolError> {
        while !bytes.is_empty() {
            let block = self.block.get_or_insert_with(|| self.shared.blocks.take());
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
        if !matches!(self.lanes, Lanes::Idle(_)) {
            self.dispatch().await?;
        }
        let mut duties = std::mem::replace(&mut self.lanes, Lanes::Lost).end().await?;
        if let Some(only) = self.block.take() {
            self.dispatched = only.as_ref().len() as u64;
            let permit = self.gate.clone().acquire_owned().await.expect("the gate is never closed");
            let job = move || {
                let _permit = permit;
                duties.take(only.as_ref()).map(|()| duties)
            };
            duties = ran(tokio::task::spawn_blocking(job).await)?;
        }
        let size_bytes = duties.write.offset;
        let digest: [u8; 32] = std::mem::take(&mut duties.hash).finalize().into();
        // The room that was promised is held as long as the writer.
        self.lanes = Lanes::Idle(duties);
        Ok(Spooled { size_bytes, sha256: ContentDigest::from_bytes(digest), writer: self })
    }

    async fn dispatch(&mut self) -> Result<(), SpoolError> {
        let Some(block) = self.block.take() else { return Ok(()) };
        self.dispatched += block.as_ref().len() as u64;
        // Whoever stops waiting, or is told an error, leaves them lost.
        let lanes = std::mem::replace(&mut self.lanes, Lanes::Lost);
        let mut lanes = lanes.arranged(self.shared.blocks.uploads(), &self.gate).await?;
        lanes.give(block).await?;
        self.lanes = lanes;
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

/// What the blocks pass through on the blocking pool.
enum Lanes {
    /// No block was full yet.
    Idle(Duties),
    /// Two jobs at the same time.
    Apart { write: Lane<WriteState>, hash: Lane<Sha256> },
    /// One job that does both: with many uploads there is enough to do at the same time, and each job costs a change
    /// of threads.
    Together(Lane<Duties>),
    /// A job failed or panicked, or the upload was given up while it waited for one.
    Lost,
}

struct Duties {
    write: WriteState,
    hash: Sha256,
}

impl Duties {
    fn take(&mut self, block: &[u8]) -> io::Result<()> {
        self.write.write(block)?;
        self.hash.update(block);
        Ok(())
    }
}

impl Lanes {
    /// Starts them as suits the number of uploads, if they run otherwise or not at all.
    async fn arranged(self, uploads: usize, gate: &Arc<Semaphore>) -> Result<Self, SpoolError> {
        let apart = uploads <= APART_UPLOADS;
        match (&self, apart) {
            (Self::Apart { .. }, true) | (Self::Together(_), false) | (Self::Lost, _) => return Ok(self),
            _ => {}
        }
        let Duties { write, hash } = self.end().await?;
        if !apart {
            let lane = Lane::start(Duties { write, hash }, Duties::take, TOGETHER_BLOCKS, gate);
            return Ok(Self::Together(lane));
        }
        let hashing = |hash: &mut Sha256, block: &[u8]| {
            hash.update(block);
            Ok(())
        };
        Ok(Self::Apart {
            write: Lane::start(write, WriteState::write, APART_BLOCKS, gate),
            hash: Lane::start(hash, hashing, APART_BLOCKS, gate),
        })
    }

    async fn give(&mut self, block: Block) -> Result<(), SpoolError> {
        let block = Arc::new(block);
        match self {
            Self::Apart { write, hash } => {
                write.give(block.clone()).await?;
                hash.give(block).await
            }
            Self::Together(both) => both.give(block).await,
            Self::Idle(_) | Self::Lost => Err(SpoolError::Abandoned),
        }
    }

    /// Waits until every block went through.
    async fn end(self) -> Result<Duties, SpoolError> {
        match self {
            Self::Idle(duties) => Ok(duties),
            Self::Apart { write, hash } => Ok(Duties { write: write.end().await?, hash: hash.end().await? }),
            Self::Together(both) => both.end().await,
            Self::Lost => Err(SpoolError::Abandoned),
        }
    }
}

/// A state that jobs on the blocking pool change block by block, in the order they are given. Blocks that wait go
/// into one job together, so that neither a slow write nor the change of threads holds up what comes behind.
struct Lane<T> {
    blocks: mpsc::Sender<Arc<Block>>,
    /// Dropping it drops the blocks that no job has yet.
    done: AbortOnDropHandle<Result<T, SpoolError>>,
}

impl<T: Send + 'static> Lane<T> {
    /// At most `most` blocks are in a job, and as many wait.
    fn start(
        mut state: T,
        work: fn(&mut T, &[u8]) -> io::Result<()>,
        most: usize,
        gate: &Arc<Semaphore>,
    ) -> Self {
        let (blocks, mut waiting) = mpsc::channel::<Arc<Block>>(most);
        let gate = gate.clone();
        let done = tokio::spawn(async move {
            let mut batch = Vec::with_capacity(most);
            while waiting.recv_many(&mut batch, most).await > 0 {
                let permit = gate.clone().acquire_owned().await.expect("the gate is never closed");
                let job = move || -> io::Result<_> {
                    let _permit = permit;
                    for block in batch.drain(..) {
                        work(&mut state, block.as_ref().as_ref())?;
                    }
                    Ok((state, batch))
                };
                (state, batch) = ran(tokio::task::spawn_blocking(job).await)?;
            }
            Ok(state)
        });
        Self { blocks, done: AbortOnDropHandle::new(done) }
    }

    /// Waits for a place. After an error the lane is over.
    async fn give(&mut self, block: Arc<Block>) -> Result<(), SpoolError> {
        match self.blocks.send(block).await {
            Ok(()) => Ok(()),
            // It ended before its time, and says why.
            Err(_) => Err(ended((&mut self.done).await).err().unwrap_or(SpoolError::Abandoned)),
        }
    }

    async fn end(self) -> Result<T, SpoolError> {
        let Self { blocks, done } = self;
        drop(blocks);
        ended(done.await)
    }
}

/// What a job on the blocking pool answered; a panic there abandons the upload.
fn ran<T>(job: Result<io::Result<T>, JoinError>) -> Result<T, SpoolError> {
    job.map_err(|_| SpoolError::Abandoned)?.map_err(SpoolError::from)
}

fn ended<T>(lane: Result<Result<T, SpoolError>, JoinError>) -> Result<T, SpoolError> {
    lane.unwrap_or(Err(SpoolError::Abandoned))
}
