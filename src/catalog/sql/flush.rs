//! Group commit of the embedded catalogue. SQLite writes a commit to its write-ahead log and does not wait for the
//! disk (`synchronous=NORMAL`); whoever made it waits here, and all that wait at one moment are served by one flush.
//!
//! Invariant: what was waited for outlives a power cut. The log is one file that only grows until it was copied into
//! the database, which SQLite flushes itself (sqlite.org/wal.html), so a flush of the log that began after a commit
//! covers it and everything before it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::{AnyPool, Row};
use tokio::sync::Mutex;

use super::{Result, sql};
use crate::catalog::CatalogError;

/// The log of one catalogue.
pub(super) struct LogFlush {
    write: AnyPool,
    /// Commits that were ever waited for.
    asked: AtomicU64,
    state: Arc<Mutex<State>>,
}

struct State {
    path: PathBuf,
    /// Held open from flush to flush: the system tells each descriptor once of a write that failed, and one that is opened
    /// later not at all if SQLite was told already, which does not pass it on.
    log: Option<File>,
    /// As many commits are on the disk.
    flushed: u64,
    /// A flush failed: the system may have forgotten what it did not write, so another one proves nothing.
    failed: bool,
}

impl LogFlush {
    /// Of a database file that is there.
    pub(super) fn new(file: &Path, write: AnyPool) -> io::Result<Self> {
        // Where SQLite follows a link, the log is beside what it leads to.
        let mut path = file.canonicalize()?.into_os_string();
        path.push("-wal");
        let state = State { path: path.into(), log: None, flushed: 0, failed: false };
        Ok(Self { write, asked: AtomicU64::new(0), state: Arc::new(Mutex::new(state)) })
    }

    /// Returns when every commit made before is on the disk. Safe to drop.
    ///
    /// # Errors
    /// The disk's. It is not known then whether the commits will outlive a power cut; they can be read until one.
    pub(super) async fn wait(&self) -> Result<()> {
        let mine = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut state = self.state.clone().lock_owned().await;
        if state.flushed >= mine {
            return Ok(());
        }
        let all = self.asked.load(Ordering::SeqCst);
        if !state.failed {
            // It holds the lock to its end, so that whoever comes next knows how it ended, also if nobody waits for this one
            // any more.
            let flush = move || {
                match state.flush() {
                    Ok(()) => state.flushed = all,
                    Err(error) => {
                        state.failed = true;
                        tracing::warn!(%error, "the catalogue's log could not be flushed; it is copied into the database instead");
                    }
                }
                state
            };
            state =
                tokio::task::spawn_blocking(flush).await.map_err(|error| lost(io::Error::other(error)))?;
        }
        if state.failed {
            start_anew(&self.write).await?;
            (state.failed, state.flushed) = (false, all);
        }
        Ok(())
    }
}

impl State {
    fn flush(&mut self) -> io::Result<()> {
        // While the catalogue is open nobody removes its log; if it is not there, what was written is somewhere else.
        let there = self.path.metadata()?;
        let same =
            |log: &File| log.metadata().is_ok_and(|log| (log.dev(), log.ino()) == (there.dev(), there.ino()));
        let log = match self.log.take().filter(same) {
            Some(log) => log,
            None => File::open(&self.path)?,
        };
        self.log.insert(log).sync_data()
    }
}

fn lost(error: io::Error) -> CatalogError {
    CatalogError::Database(sqlx::Error::Io(error))
}

/// Copies the log into the database, flushes that, and has the log begin anew: nothing depends any more on what the
/// disk made of it.
async fn start_anew(write: &AnyPool) -> Result<()> {
    let row = sql("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(write).await?;
    match row.try_get::<i64, _>(0)? {
        0 => Ok(()),
        _ => Err(lost(io::Error::other("its log cannot be flushed now"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn of(dir: &Path) -> LogFlush {
        sqlx::any::install_default_drivers();
        let file = dir.join("db");
        std::fs::write(&file, "").unwrap();
        let url = format!("sqlite://{}", file.display());
        LogFlush::new(&file, AnyPool::connect(&url).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_flush_that_failed_is_remembered_though_nobody_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        // The system refuses to flush this device.
        std::os::unix::fs::symlink("/dev/null", dir.path().join("db-wal")).unwrap();
        let flush = of(dir.path()).await;
        {
            let mut waiting = std::pin::pin!(flush.wait());
            assert!(futures_util::poll!(&mut waiting).is_pending(), "the flush is under way");
        }
        assert!(flush.state.lock().await.failed);
        flush.wait().await.unwrap();
        assert!(!flush.state.lock().await.failed, "nothing depends on the log any more");
    }

    #[tokio::test]
    async fn a_log_that_is_not_where_it_was_is_no_flushed_log() {
        let dir = tempfile::tempdir().unwrap();
        let flush = of(dir.path()).await;
        let log = dir.path().join("db-wal");
        assert!(flush.state.lock().await.flush().is_err(), "there is none");
        std::fs::write(&log, "1").unwrap();
        flush.state.lock().await.flush().unwrap();
        let ino = |state: &State| state.log.as_ref().unwrap().metadata().unwrap().ino();
        let first = ino(&*flush.state.lock().await);
        flush.state.lock().await.flush().unwrap();
        assert_eq!(ino(&*flush.state.lock().await), first);
        std::fs::write(dir.path().join("new"), "2").unwrap();
        std::fs::rename(dir.path().join("new"), &log).unwrap();
        flush.state.lock().await.flush().unwrap();
        assert_ne!(ino(&*flush.state.lock().await), first);
    }

    #[tokio::test]
    async fn the_log_is_beside_what_a_link_leads_to() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(other.path().join("db"), "").unwrap();
        std::os::unix::fs::symlink(other.path().join("db"), dir.path().join("link")).unwrap();
        sqlx::any::install_default_drivers();
        let pool = AnyPool::connect("sqlite::memory:").await.unwrap();
        let flush = LogFlush::new(&dir.path().join("link"), pool).unwrap();
        assert_eq!(flush.state.lock().await.path, other.path().canonicalize().unwrap().join("db-wal"));
    }
}
