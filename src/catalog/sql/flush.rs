//! Group commit of the embedded catalogue. SQLite writes a commit to its write-ahead log and does not wait for the
//! disk (`synchronous=NORMAL`); whoever made it waits here, and all that wait at one moment are served by one flush.
//!
//! Invariant: what was waited for outlives a power cut. The log is one file that only grows until it was copied into
//! the database, which SQLite flushes itself (sqlite.org/wal.html), so a flush of the log that began after a commit
//! covers it and everything before it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::{AnyPool, Row};
use tokio::sync::Mutex;

use super::{Result, sql};
use crate::catalog::CatalogError;

/// The log of one catalogue.
pub(super) struct LogFlush {
    log: PathBuf,
    write: AnyPool,
    /// Commits that were ever waited for.
    asked: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// As many of them are on the disk.
    flushed: u64,
    /// A flush failed: the system may have forgotten what it did not write, so another one proves nothing.
    failed: bool,
}

impl LogFlush {
    /// Of a database file.
    pub(super) fn new(file: &Path, write: AnyPool) -> Self {
        let mut log = file.as_os_str().to_owned();
        log.push("-wal");
        Self { log: log.into(), write, asked: AtomicU64::new(0), state: Mutex::default() }
    }

    /// Returns when every commit made before is on the disk. Safe to drop.
    ///
    /// # Errors
    /// The disk's. It is not known then whether the commits will outlive a power cut; they can be read until one.
    pub(super) async fn wait(&self) -> Result<()> {
        let mine = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut state = self.state.lock().await;
        if state.flushed >= mine {
            return Ok(());
        }
        let all = self.asked.load(Ordering::SeqCst);
        if !state.failed {
            let log = self.log.clone();
            let flushed = tokio::task::spawn_blocking(move || flush(&log)).await;
            if let Err(error) = flushed.unwrap_or_else(|error| Err(io::Error::other(error))) {
                state.failed = true;
                tracing::warn!(%error, "the catalogue's log could not be flushed; it is copied into the database instead");
            }
        }
        if state.failed {
            start_anew(&self.write).await?;
            state.failed = false;
        }
        state.flushed = all;
        Ok(())
    }
}

fn flush(log: &Path) -> io::Result<()> {
    match File::open(log) {
        Ok(file) => file.sync_data(),
        // SQLite removes it when everything was copied into the database and flushed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Copies the log into the database, flushes that, and has the log begin anew: nothing depends any more on what the
/// disk made of it.
async fn start_anew(write: &AnyPool) -> Result<()> {
    let row = sql("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(write).await?;
    match row.try_get::<i64, _>(0)? {
        0 => Ok(()),
        _ => Err(CatalogError::Database(sqlx::Error::Io(io::Error::other("its log cannot be flushed now")))),
    }
}
