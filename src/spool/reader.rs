//! The reading ends of a spool file: followers that wait for the writer and may start again from the beginning, and
//! the hand-over of a finished file to the local store.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use tempfile::TempPath;
use tokio::sync::{Semaphore, watch};

use super::cached::{BlockReader, read_blocks};
use super::{BlockPool, End, Progress, Shared, SpoolError};

/// Flushes at once in the whole program: enough for the disk to do many in one go, without a thread for each upload that
/// ends.
static FLUSHES: Semaphore = Semaphore::const_new(64);

/// Bytes on disk that are growing or finished. Clones share the file.
#[derive(Clone)]
pub struct SpoolReader {
    shared: Arc<Shared>,
}

impl SpoolReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A finished file of `size_bytes` that is not the spool's own: it is read, never removed.
    pub fn of_file(file: File, size_bytes: u64, blocks: BlockPool) -> Self {
        let progress = watch::Sender::new(Progress { written: size_bytes, end: End::Complete });
        let file = Arc::new(file);
        let (path, followed_at, safe) = (Mutex::new(None), Mutex::default(), AtomicBool::new(true));
        Self::new(Arc::new(Shared { file, path, safe, progress, followed_at, blocks }))
    }

    /// Bytes that can be read now.
    pub fn written_bytes(&self) -> u64 {
        self.shared.progress.borrow().written
    }

    /// The size, once the writer reached the clean end.
    pub fn complete_size(&self) -> Option<u64> {
        let progress = *self.shared.progress.borrow();
        (progress.end == End::Complete).then_some(progress.written)
    }

    /// Waits for the clean end and returns the size.
    ///
    /// # Errors
    /// [`SpoolError::Abandoned`] if the upload ended any other way.
    pub async fn completed(&self) -> Result<u64, SpoolError> {
        let mut progress = self.shared.progress.subscribe();
        let done = *progress.wait_for(|p| p.end != End::Growing).await.map_err(|_| SpoolError::Abandoned)?;
        if done.end == End::Complete { Ok(done.written) } else { Err(SpoolError::Abandoned) }
    }

    /// Whether the writer gave up.
    pub fn is_abandoned(&self) -> bool {
        self.shared.progress.borrow().end == End::Abandoned
    }

    /// Whether a follower was given bytes within the last `time`: then whoever it feeds is slow, not dead.
    pub fn is_followed(&self, time: Duration) -> bool {
        let followed_at = self.shared.followed_at.lock().unwrap_or_else(|e| e.into_inner());
        followed_at.is_some_and(|at| at.elapsed() <= time)
    }

    /// A stream of all bytes from the first one, waiting for the writer where it is ahead of it.
    pub fn follow(&self) -> Follower {
        let position = Arc::new(AtomicU64::new(0));
        let state = Following {
            file: BlockReader::new(self.shared.file.clone(), self.shared.blocks.clone()),
            shared: self.shared.clone(),
            progress: self.shared.progress.subscribe(),
            position: position.clone(),
        };
        Follower { bytes: unfold(state, Following::next).boxed(), position, reader: self.clone() }
    }

    /// The bytes `start..end`, which must have been written: see [`read_blocks`].
    pub fn part(&self, start: u64, end: u64) -> BoxStream<'static, io::Result<Bytes>> {
        read_blocks(self.shared.file.clone(), start, end, self.shared.blocks.clone())
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.shared.file
    }

    /// Takes the name of the spool file away, so that it can be renamed into place. `None` if it was taken before
    /// or the file is not the spool's own. Whoever takes it removes the file by dropping it, unless it was left.
    pub fn take_path(&self) -> Option<TempPath> {
        self.shared.path.lock().unwrap_or_else(|e| e.into_inner()).take()
    }

    /// Makes bytes and name outlive a power cut; the file is then found by its name whatever happens before it is
    /// handed over. After an error the file is not to be trusted: the kernel may have forgotten what it could not
    /// write.
    pub async fn make_safe(&self) -> Result<(), SpoolError> {
        let shared = self.shared.clone();
        let turn = FLUSHES.acquire().await.expect("the semaphore is never closed");
        let synced = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            shared.file.sync_all()?;
            let path = shared.path.lock().unwrap_or_else(|e| e.into_inner());
            if let Some(dir) = path.as_ref().and_then(|path| path.parent()) {
                super::sync_dir(dir)?;
            }
            shared.safe.store(true, Ordering::Release);
            Ok::<_, io::Error>(())
        });
        Ok(synced.await.map_err(|_| SpoolError::Abandoned)??)
    }

    /// Whether bytes and name outlive a power cut already.
    pub fn is_safe(&self) -> bool {
        self.shared.safe.load(Ordering::Acquire)
    }

    /// From now on the file stays when its last holder goes, for the next start to decide about.
    pub fn leave(&self) {
        self.set_left(true);
    }

    /// It is nobody's after all, and goes with its last holder again.
    pub fn reclaim(&self) {
        self.set_left(false);
    }

    fn set_left(&self, left: bool) {
        if let Some(path) = &mut *self.shared.path.lock().unwrap_or_else(|e| e.into_inner()) {
            path.disable_cleanup(left);
        }
    }

    /// Gives a name back that could not be used, so that the file is removed with its last holder, unless it was left.
    pub fn return_path(&self, path: TempPath) {
        *self.shared.path.lock().unwrap_or_else(|e| e.into_inner()) = Some(path);
    }
}

/// One pass over the bytes.
pub struct Follower {
    /// The bytes, in blocks. Ends after the clean end only; any other end is an error item.
    pub bytes: BoxStream<'static, Result<Bytes, SpoolError>>,
    position: Arc<AtomicU64>,
    reader: SpoolReader,
}

impl Follower {
    /// How far this pass is, for whoever watches whether it moves while the stream itself is given away.
    pub fn watch(&self) -> FollowerWatch {
        FollowerWatch { position: self.position.clone(), reader: self.reader.clone() }
    }
}

/// Tells how far a [`Follower`] is.
#[derive(Clone)]
pub struct FollowerWatch {
    position: Arc<AtomicU64>,
    reader: SpoolReader,
}

impl FollowerWatch {
    /// Bytes handed on so far.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Whether the follower has caught up with a writer that is still going: it waits for the client, not for the
    /// network.
    pub fn waits_for_writer(&self) -> bool {
        self.reader.complete_size().is_none() && self.position() == self.reader.written_bytes()
    }
}

struct Following {
    file: BlockReader,
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    position: Arc<AtomicU64>,
}

impl Following {
    async fn next(mut self) -> Option<(Result<Bytes, SpoolError>, Self)> {
        let at = self.position.load(Ordering::Relaxed);
        let seen = self.progress.wait_for(|p| p.written > at || p.end != End::Growing).await;
        let progress = seen.map_or(Progress { written: 0, end: End::Abandoned }, |p| *p);
        if progress.end == End::Abandoned {
            return Some((Err(SpoolError::Abandoned), self));
        }
        if progress.written == at {
            return None;
        }
        let read = self.file.read(at, progress.written).await.map(Bytes::from_owner);
        if let Ok(bytes) = &read {
            self.position.store(at + bytes.len() as u64, Ordering::Relaxed);
            *self.shared.followed_at.lock().unwrap_or_else(|e| e.into_inner()) = Some(Instant::now());
        }
        Some((read.map_err(SpoolError::from), self))
    }
}
