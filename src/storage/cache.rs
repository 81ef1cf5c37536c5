//! Files of the read-through cache: `DIR/DIGEST`, whole and named by the SHA-256 of their bytes. How much they may take
//! together, and which goes first, is decided here; what is worth keeping is not.
//!
//! Nothing in here is needed: every file is a copy of what the cloud has, so none is flushed, and one that is not what its
//! name says is removed. Apart from the local store, whose files are the only copy.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use tempfile::TempPath;
use tokio::sync::OnceCell;

use crate::domain::ContentDigest;

/// The directory and what is known of it.
#[derive(Debug)]
pub struct CacheDir {
    dir: PathBuf,
    limit_bytes: u64,
    index: Mutex<Index>,
}

#[derive(Default, Debug)]
struct Index {
    entries: HashMap<ContentDigest, Entry>,
    bytes: u64,
    /// Counts uses.
    turn: u64,
}

#[derive(Debug)]
struct Entry {
    size_bytes: u64,
    /// The turn of its last use.
    used: u64,
    /// Set once this process has seen that the file has the digest that it is named by.
    compared: Arc<OnceCell<()>>,
}

impl Index {
    fn insert(&mut self, digest: ContentDigest, size_bytes: u64, compared: OnceCell<()>) {
        self.remove(digest);
        self.turn += 1;
        self.bytes += size_bytes;
        let entry = Entry { size_bytes, used: self.turn, compared: Arc::new(compared) };
        self.entries.insert(digest, entry);
    }

    fn remove(&mut self, digest: ContentDigest) -> Option<u64> {
        let entry = self.entries.remove(&digest)?;
        self.bytes -= entry.size_bytes;
        Some(entry.size_bytes)
    }

    /// Takes out the least recently used one.
    fn pop(&mut self) -> Option<(ContentDigest, u64)> {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(digest, _)| *digest)?;
        self.remove(oldest).map(|size| (oldest, size))
    }
}

impl CacheDir {
    /// Opens the directory, makes it if anything may be kept, and takes in what an earlier process left, the last
    /// used first, up to `limit_bytes`; with a limit of 0 nothing stays. Blocking.
    pub fn open(dir: PathBuf, limit_bytes: u64) -> io::Result<Self> {
        if limit_bytes > 0 {
            std::fs::create_dir_all(&dir)?;
        }
        let mut found: Vec<(SystemTime, ContentDigest, u64)> = Vec::new();
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        for entry in entries.into_iter().flatten() {
            let entry = entry?;
            let facts = entry.metadata()?;
            match entry.file_name().to_str().and_then(ContentDigest::from_hex) {
                Some(digest) if facts.is_file() => found.push((facts.modified()?, digest, facts.len())),
                _ => tracing::warn!(name = ?entry.file_name(), "nothing of the cache; it is left alone"),
            }
        }
        found.sort_by_key(|(used, ..)| *used);
        let mut index = Index::default();
        for (_, digest, size) in found {
            index.insert(digest, size, OnceCell::new());
        }
        let cache = Self { dir, limit_bytes, index: Mutex::new(index) };
        cache.shrink_to(limit_bytes);
        if limit_bytes == 0 {
            // It stays if somebody put something of their own into it.
            let _ = std::fs::remove_dir(&cache.dir);
        }
        Ok(cache)
    }

    /// One that keeps nothing.
    pub fn off() -> Self {
        Self { dir: PathBuf::new(), limit_bytes: 0, index: Mutex::default() }
    }

    /// Whether it is kept, as far as is known without a look.
    pub fn has(&self, digest: ContentDigest) -> bool {
        self.index().entries.contains_key(&digest)
    }

    /// Bytes that the files may have together; 0 if nothing is kept.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Bytes of the files.
    pub fn bytes(&self) -> u64 {
        self.index().bytes
    }

    /// The file with these bytes; `None` if there is none. One that is shorter or longer than it should be is
    /// removed. The first time in a process its digest is compared too, which takes as long as reading it; those who
    /// ask meanwhile wait for the same reading. Safe to drop.
    pub async fn open_file(&self, digest: ContentDigest, size_bytes: u64) -> Option<File> {
        let compared = {
            let mut index = self.index();
            index.turn += 1;
            let turn = index.turn;
            let entry = index.entries.get_mut(&digest)?;
            entry.used = turn;
            entry.compared.clone()
        };
        let path = self.path(digest);
        let opened = blocking(move || open_whole(&path, size_bytes)).await;
        let file = match opened {
            Ok(file) => Arc::new(file),
            Err(error) => return self.drop_damaged(digest, &error).await,
        };
        let same = compared.get_or_try_init(|| {
            let file = file.clone();
            blocking(move || compare(&file, digest))
        });
        if let Err(error) = same.await {
            return self.drop_damaged(digest, &error).await;
        }
        Arc::into_inner(file)
    }

    async fn drop_damaged(&self, digest: ContentDigest, error: &io::Error) -> Option<File> {
        tracing::warn!(%digest, %error, "a file of the cache is not what it should be; it is removed");
        self.forget(digest).await;
        None
    }

    /// Keeps a complete file whose bytes have this digest; others go if it does not fit beside them. Blocking.
    ///
    /// # Errors
    /// Nothing was kept, and `path` is removed.
    pub fn keep(&self, path: TempPath, digest: ContentDigest, size_bytes: u64) -> io::Result<()> {
        let Some(beside) = self.limit_bytes.checked_sub(size_bytes) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.shrink_to(beside);
        path.persist(self.path(digest)).map_err(|error| error.error)?;
        self.index().insert(digest, size_bytes, OnceCell::new_with(Some(())));
        Ok(())
    }

    /// Removes a file, if it is there. Whoever reads it reads on.
    pub async fn forget(&self, digest: ContentDigest) {
        if self.index().remove(digest).is_some() {
            let path = self.path(digest);
            let removed = blocking(move || std::fs::remove_file(path)).await;
            tell(removed);
        }
    }

    /// Removes files, the least recently used first, until `bytes` are freed or none is left. Blocking.
    pub fn free(&self, bytes: u64) {
        let keep = self.index().bytes.saturating_sub(bytes);
        self.shrink_to(keep);
    }

    fn shrink_to(&self, bytes: u64) {
        let mut gone = Vec::new();
        {
            let mut index = self.index();
            while index.bytes > bytes
                && let Some((digest, _)) = index.pop()
            {
                gone.push(digest);
            }
        }
        for digest in gone {
            tell(std::fs::remove_file(self.path(digest)));
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn path(&self, digest: ContentDigest) -> PathBuf {
        self.dir.join(digest.to_string())
    }
}

fn tell(removed: io::Result<()>) {
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "a file of the cache could not be removed");
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

fn open_whole(path: &Path, size_bytes: u64) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = File::options().read(true).custom_flags(flags.cast_signed()).open(path)?;
    let facts = file.metadata()?;
    if !facts.is_file() || facts.len() != size_bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has another size"));
    }
    // Tells the next process when it was used last; nothing depends on it.
    let _ = file.set_modified(SystemTime::now());
    Ok(file)
}

fn compare(file: &File, digest: ContentDigest) -> io::Result<()> {
    let (mut hasher, mut at, mut buffer) = (Sha256::new(), 0, vec![0; 256 << 10]);
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                at += n as u64;
            }
        }
    }
    if ContentDigest::from_bytes(hasher.finalize().into()) == digest {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it has another digest"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> ContentDigest {
        ContentDigest::from_bytes(Sha256::digest(bytes).into())
    }

    fn keep(cache: &CacheDir, dir: &Path, bytes: &[u8]) {
        let staged = tempfile::NamedTempFile::new_in(dir).unwrap();
        std::fs::write(staged.path(), bytes).unwrap();
        cache.keep(staged.into_temp_path(), digest(bytes), bytes.len() as u64).unwrap();
    }

    async fn has(cache: &CacheDir, bytes: &[u8]) -> bool {
        match cache.open_file(digest(bytes), bytes.len() as u64).await {
            Some(file) => {
                let mut all = vec![0; bytes.len()];
                file.read_exact_at(&mut all, 0).unwrap();
                assert_eq!(all, bytes);
                true
            }
            None => false,
        }
    }

    fn names(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[tokio::test]
    async fn the_least_recently_used_go_first_and_a_restart_remembers_which() {
        let dir = tempfile::tempdir().unwrap();
        let (files, staging) = (dir.path().join("cache"), dir.path());
        let all: Vec<Vec<u8>> = (0..4u8).map(|n| vec![n; 100]).collect();
        let cache = CacheDir::open(files.clone(), 300).unwrap();
        for bytes in &all[..3] {
            keep(&cache, staging, bytes);
        }
        assert!(has(&cache, &all[0]).await);
        keep(&cache, staging, &all[3]);
        assert_eq!((cache.bytes(), names(&files)), (300, 3));
        assert!(!has(&cache, &all[1]).await, "used longest ago");
        for bytes in [&all[3], &all[0], &all[2]] {
            assert!(has(&cache, bytes).await);
            // File systems tell times apart by a few milliseconds.
            let past = std::time::Duration::from_secs(10);
            for entry in std::fs::read_dir(&files).unwrap() {
                let file = File::options().write(true).open(entry.unwrap().path()).unwrap();
                file.set_modified(file.metadata().unwrap().modified().unwrap() - past).unwrap();
            }
        }
        drop(cache);
        let cache = CacheDir::open(files.clone(), 250).unwrap();
        assert_eq!((cache.bytes(), names(&files)), (200, 2));
        assert!(!has(&cache, &all[3]).await);
        assert!(has(&cache, &all[0]).await && has(&cache, &all[2]).await);
        cache.free(1);
        assert!(!has(&cache, &all[0]).await && has(&cache, &all[2]).await);
        assert!(CacheDir::open(files.clone(), 0).unwrap().bytes() == 0 && !files.exists());
    }

    #[tokio::test]
    async fn what_was_damaged_is_never_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("cache");
        let (cut, changed) = (vec![1; 100], vec![2; 100]);
        let cache = CacheDir::open(files.clone(), 1000).unwrap();
        keep(&cache, dir.path(), &cut);
        keep(&cache, dir.path(), &changed);
        // A size is looked at each time.
        std::fs::write(files.join(digest(&cut).to_string()), [1; 99]).unwrap();
        assert!(!has(&cache, &cut).await);
        assert_eq!(cache.bytes(), 100);
        // A digest when a process meets the file for the first time.
        drop(cache);
        std::fs::write(files.join(digest(&changed).to_string()), [3; 100]).unwrap();
        let cache = CacheDir::open(files.clone(), 1000).unwrap();
        assert!(!has(&cache, &changed).await);
        assert_eq!((cache.bytes(), names(&files)), (0, 0));
    }

    #[tokio::test]
    async fn what_is_forgotten_is_gone_and_what_is_too_large_never_comes() {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("cache");
        let cache = CacheDir::open(files.clone(), 100).unwrap();
        keep(&cache, dir.path(), &[7; 60]);
        cache.forget(digest(&[7; 60])).await;
        assert_eq!((cache.bytes(), names(&files)), (0, 0));
        let staged = tempfile::NamedTempFile::new_in(dir.path()).unwrap();
        assert!(cache.keep(staged.into_temp_path(), digest(&[8; 101]), 101).is_err());
        assert_eq!(names(dir.path()), 1, "the staged file is gone");
    }
}
