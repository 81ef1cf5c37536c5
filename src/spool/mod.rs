//! The spool: where bytes live while they are being received. A client's bytes are written here once, in large
//! blocks, hashed on the way; whoever sends them to the cloud *follows* the growing file and may start again from its
//! beginning. A finished spool file becomes a local recording by a rename, so it shares the local store's file system.
//!
//! Nothing here knows sessions, stores or HTTP.
//!
//! Invariants: a spool file that is not handed over is removed when its last holder goes; a follower never sees a
//! byte that was not written, and never mistakes an abandoned file for a finished one.

mod block;
mod cached;
mod past_cache;
mod reader;
mod reserve;
mod room;
mod writer;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempPath;
use tokio::sync::{Semaphore, watch};

use past_cache::PastCache;

pub use block::{Block, BlockPool};
pub use cached::read_blocks;
pub(crate) use cached::tells_what_is_cached;
pub use reader::{Follower, FollowerWatch, SpoolReader};
pub use reserve::{RESERVE_BYTES, Reserve};
pub use room::{Reserved, Room, RoomFigures};
pub use writer::{SpoolWriter, Spooled};

/// What went wrong with the spool. The upload it belonged to is over; its file is removed with its last holder.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The disk has no room (ENOSPC, EDQUOT) or the file may not grow further (EFBIG).
    #[error("the disk that holds the spool is full")]
    Full(#[source] io::Error),
    /// Any other failure of the file system.
    #[error("the spool cannot be used")]
    Io(#[source] io::Error),
    /// The writer went away before the clean end.
    #[error("the upload was abandoned before its end")]
    Abandoned,
}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::Full(error),
            _ => Self::Io(error),
        }
    }
}

/// A file that an earlier process left in the spool.
pub struct Leftover {
    /// The upload it belonged to; `None` if it is no upload's.
    pub upload_id: Option<String>,
    /// Its length.
    pub size_bytes: u64,
    path: PathBuf,
}

impl Leftover {
    /// Its name in the spool.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The file as a complete source. Unlike other spool files it stays if it is not taken.
    pub fn open(&self, blocks: BlockPool) -> Result<SpoolReader, SpoolError> {
        let mut path = TempPath::try_from_path(&self.path)?;
        path.disable_cleanup(true);
        let reader = SpoolReader::of_file(File::open(&self.path)?, self.size_bytes, blocks);
        reader.return_path(path);
        Ok(reader)
    }

    /// What was noted of it. Blocking.
    pub fn note(&self) -> Result<Option<Vec<u8>>, SpoolError> {
        let Some(path) = self.note_path() else { return Ok(None) };
        match std::fs::read(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what was noted of it. Blocking.
    pub fn remove_note(&self) -> Result<(), SpoolError> {
        Ok(self.note_path().map_or(Ok(()), std::fs::remove_file)?)
    }

    fn note_path(&self) -> Option<PathBuf> {
        Some(self.path.with_file_name(format!("{NOTE}{}", self.upload_id.as_ref()?)))
    }

    /// Removes it, unless a source of it was dropped, which did. Blocking.
    pub fn remove(&self) -> Result<(), SpoolError> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Begins the names of files of form uploads; the upload's id follows.
const FORM: &str = "form-";
/// Begins the names of notes; the id of the upload they tell of follows.
const NOTE: &str = "note-";

/// How far a spool file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    /// Bytes that can be read.
    pub(crate) written: u64,
    pub(crate) end: End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// More bytes may come.
    Growing,
    /// The clean end: `written` is the size.
    Complete,
    /// There will be no more, and what is there is no recording.
    Abandoned,
}

/// One spool file, shared by its writer and its followers.
pub(crate) struct Shared {
    pub(crate) file: Arc<File>,
    /// Removes the file when the last holder goes, unless it was taken for the hand-over.
    pub(crate) path: Mutex<Option<TempPath>>,
    /// Bytes and name outlive a power cut.
    pub(crate) safe: AtomicBool,
    pub(crate) progress: watch::Sender<Progress>,
    /// When a follower was last given bytes.
    pub(crate) followed_at: Mutex<Option<Instant>>,
    pub(crate) blocks: BlockPool,
}

/// Hash and write jobs at once, however many cores there are: each holds a block.
const MOST_JOBS: usize = 32;

/// The spool directory with its shared budget of blocks and disk work.
#[derive(Clone)]
pub struct Spool {
    dir: PathBuf,
    blocks: BlockPool,
    /// How many hash and write jobs run at once in the whole program: with a thread per upload, sixty-four uploads
    /// are slower than with a few.
    gate: Arc<Semaphore>,
    /// Whether the file system takes writes past the page cache; found out by the first one.
    past_cache: Arc<AtomicBool>,
    /// The files of this process, by their upload.
    held: Arc<Mutex<HashMap<String, Weak<Shared>>>>,
}

impl Spool {
    /// Opens the directory, making it if needed. What a crash left there stays: see [`Self::leftovers`]. Blocking.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let jobs =
            std::thread::available_parallelism().map_or(2, usize::from).saturating_mul(8).min(MOST_JOBS);
        Ok(Self {
            dir,
            blocks: BlockPool::default(),
            gate: Arc::new(Semaphore::new(jobs)),
            past_cache: Arc::new(AtomicBool::new(true)),
            held: Arc::default(),
        })
    }

    /// Files in the spool; before the first upload those are what an earlier process left. Blocking for one listing.
    pub fn leftovers(&self) -> Result<Vec<Leftover>, SpoolError> {
        let mut leftovers = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Gone while we look.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if metadata.is_file() && !name.starts_with(NOTE) {
                let upload_id = name.strip_prefix(FORM).map(str::to_owned);
                leftovers.push(Leftover { upload_id, size_bytes: metadata.len(), path: entry.path() });
            }
        }
        Ok(leftovers)
    }

    /// Lays a note beside the file of an upload, for a start to find if the process is killed before the returned path
    /// is dropped. It may not outlive a power cut. Blocking for a small write.
    pub fn note(&self, upload_id: &str, text: &[u8]) -> Result<TempPath, SpoolError> {
        let (file, path) = self.new_file(&format!("{NOTE}{upload_id}"))?;
        file.write_all_at(text, 0)?;
        Ok(path)
    }

    /// Removes notes whose file has gone. Blocking for one listing.
    pub fn remove_lone_notes(&self) -> Result<(), SpoolError> {
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let upload_id = name.to_str().and_then(|name| name.strip_prefix(NOTE));
            if upload_id.is_some_and(|id| !self.dir.join(format!("{FORM}{id}")).exists()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Starts the spool file of an upload; the id is part of its name, by which it is found after a crash. Blocking
    /// only for the creation of an empty file.
    pub fn create(&self, upload_id: &str) -> Result<SpoolWriter, SpoolError> {
        let (file, path) = self.new_file(&format!("{FORM}{upload_id}"))?;
        let progress = watch::Sender::new(Progress { written: 0, end: End::Growing });
        let past_cache = PastCache::new(path.to_path_buf(), self.past_cache.clone());
        let shared = Shared {
            file: Arc::new(file),
            path: Mutex::new(Some(path)),
            safe: AtomicBool::new(false),
            progress,
            followed_at: Mutex::default(),
            blocks: self.blocks.clone(),
        };
        let shared = Arc::new(shared);
        self.held().insert(upload_id.to_owned(), Arc::downgrade(&shared));
        Ok(SpoolWriter::new(shared, self.gate.clone(), past_cache))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Weak<Shared>>> {
        let mut held = self.held.lock().unwrap_or_else(|e| e.into_inner());
        held.retain(|_, file| file.strong_count() > 0);
        held
    }

    /// Whether the upload's file is here, in somebody's hands or left for the next start.
    pub fn has(&self, upload_id: &str) -> bool {
        !upload_id.is_empty()
            && (self.held().contains_key(upload_id) || self.dir.join(format!("{FORM}{upload_id}")).exists())
    }

    /// Files that nobody in this process holds and that were not written to for `quiet`. Blocking for one listing.
    pub fn forsaken(&self, quiet: Duration) -> Result<Vec<Leftover>, SpoolError> {
        let mut leftovers = self.leftovers()?;
        // Asked after the listing: a file that is listed and held by nobody now is held by nobody later.
        let held = self.held();
        let long_ago = SystemTime::now() - quiet;
        leftovers.retain(|leftover| {
            let is_held = leftover.upload_id.as_ref().is_some_and(|id| held.contains_key(id));
            let modified = std::fs::metadata(&leftover.path).and_then(|file| file.modified());
            !is_held && modified.is_ok_and(|at| at <= long_ago)
        });
        Ok(leftovers)
    }

    fn new_file(&self, name: &str) -> io::Result<(File, TempPath)> {
        let named = tempfile::Builder::new()
            .prefix(name)
            .rand_bytes(0)
            .permissions(std::fs::Permissions::from_mode(0o644))
            .tempfile_in(&self.dir)?;
        Ok(named.into_parts())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The budget of blocks, for others that move bytes between disk and network.
    pub fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    /// Writes and syncs a small file, to know that the directory takes bytes. Blocking.
    pub fn probe(&self) -> io::Result<()> {
        let (file, path) = self.new_file(&format!("probe-{}", uuid::Uuid::now_v7()))?;
        file.write_all_at(b"probe", 0)?;
        file.sync_all()?;
        path.close()
    }
}

/// Makes a directory's entries (new, renamed, removed names) durable. Blocking.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
