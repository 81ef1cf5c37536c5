//! The local store: plain files in plain folders, `ROOT/session_id/filename`. What an operator drops there is a
//! recording too. Links, pipes and devices are not: they are never followed nor opened.
//!
//! A put is: fsync the file, rename it into place without replacing, fsync the directory. An object is therefore
//! whole under its name or not there, also after a power cut.

mod files;

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use time::OffsetDateTime;

use self::files::Files;
use super::{Kind, ListScope, ObjectMeta, ObjectStore, OpenObject, Probe, StorageError};
use crate::domain::merge::StoredObject;
use crate::domain::{ObjectKey, SessionId, StoreKind};
use crate::spool::{Spool, SpoolReader, read_blocks};

/// The store below one directory. Clones share it.
#[derive(Clone)]
pub struct LocalStore {
    files: Arc<Files>,
    spool: Spool,
}

impl LocalStore {
    /// Uses `root`, which must exist; `spool` lies on the same file system. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::CrossesDevices`](std::io::ErrorKind::CrossesDevices) if it does not: no file could be moved from
    /// there into its place in one step.
    pub fn open(root: PathBuf, spool: Spool) -> std::io::Result<Self> {
        let device = |path: &Path| std::fs::metadata(path).map(|facts| facts.dev());
        if device(&root)? != device(spool.dir())? {
            let why =
                format!("{} must be on the same file system as {}", spool.dir().display(), root.display());
            return Err(std::io::Error::new(std::io::ErrorKind::CrossesDevices, why));
        }
        Ok(Self { files: Arc::new(Files::open(root)?), spool })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        self.files.root()
    }

    /// At once where that needs no waiting: passing it to another thread and back takes longer than the opening.
    async fn open_file(
        &self,
        doing: &'static str,
        key: &ObjectKey,
    ) -> Result<Option<(File, StoredObject)>, StorageError> {
        match self.files.open_cached(key) {
            Some(found) => Ok(found),
            None => {
                let key = key.clone();
                self.blocking(doing, move |files| files.open_file(&key)).await
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Files) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let files = self.files.clone();
        tokio::task::spawn_blocking(move || work(&files))
            .await
            .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
            .map_err(|error| StorageError::disk(error, doing))
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Local
    }

    async fn put(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        _known_size: Option<u64>,
        _meta: &ObjectMeta,
    ) -> Result<(), StorageError> {
        let size = source.completed().await.map_err(|error| {
            StorageError::certain(StoreKind::Local, Kind::SourceGone, "the upload was abandoned")
                .because(error)
        })?;
        let (key, source, spool) = (key.clone(), source.clone(), self.spool.clone());
        self.blocking("cannot store the file", move |files| files.store(&key, &source, size, &spool))
            .await
            .map_err(|mut error| {
                let taken = |e: &(dyn std::error::Error + Send + Sync + 'static)| {
                    e.downcast_ref::<std::io::Error>()
                        .is_some_and(|e| e.kind() == std::io::ErrorKind::AlreadyExists)
                };
                if error.source.as_deref().is_some_and(taken) {
                    error.kind = Kind::AlreadyExists;
                }
                error
            })
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<StoredObject>, StorageError> {
        let found = self.open_file("cannot look at the file", key).await?;
        Ok(found.map(|(_, object)| object))
    }

    async fn open(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<OpenObject>, StorageError> {
        let found = self.open_file("cannot open the file", key).await?;
        Ok(found.map(|(file, object)| {
            let range = range.unwrap_or(0..object.size_bytes);
            let bytes = read_blocks(
                Arc::new(file),
                range.start,
                range.end.min(object.size_bytes),
                self.spool.blocks().clone(),
            );
            OpenObject { object, bytes }
        }))
    }

    async fn list(&self, scope: &ListScope) -> Result<Vec<StoredObject>, StorageError> {
        let scope = scope.clone();
        self.blocking("cannot list the directory", move |files| match &scope {
            ListScope::Session(session) => files.list_session(session),
            ListScope::Everything => files.list_everything(),
        })
        .await
    }

    async fn names(&self, session: &SessionId) -> Result<Vec<ObjectKey>, StorageError> {
        let session = session.clone();
        self.blocking("cannot list the directory", move |files| files.names(&session)).await
    }

    async fn heads(&self, keys: &[ObjectKey]) -> Result<Vec<StoredObject>, StorageError> {
        let keys = keys.to_vec();
        self.blocking("cannot look at the files", move |files| files.heads(keys)).await
    }

    async fn sessions(&self) -> Result<BTreeSet<SessionId>, StorageError> {
        self.blocking("cannot list the directory", Files::sessions).await
    }

    async fn changed_at(&self, session: &SessionId) -> Result<Option<OffsetDateTime>, StorageError> {
        if let Some(changed_at) = self.files.changed_at_cached(session) {
            // Whoever asks about all sessions in a row has to let others have their turn.
            tokio::task::consume_budget().await;
            return Ok(changed_at);
        }
        let session = session.clone();
        self.blocking("cannot look at the directory", move |files| files.changed_at(&session)).await
    }

    async fn empty_session(
        &self,
        session: &SessionId,
        before: OffsetDateTime,
        remove: bool,
    ) -> Result<bool, StorageError> {
        let session = session.clone();
        self.blocking("cannot look into the directory", move |files| {
            files.empty_session(&session, before, remove)
        })
        .await
    }

    async fn set_aside(&self, key: &ObjectKey) -> Result<Option<String>, StorageError> {
        let key = key.clone();
        self.blocking("cannot set the file aside", move |files| files.set_aside(&key)).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<bool, StorageError> {
        let key = key.clone();
        self.blocking("cannot remove the file", move |files| files.remove(&key)).await
    }

    async fn rename(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), StorageError> {
        let (from, to) = (from.clone(), to.clone());
        let renamed =
            self.blocking("cannot rename the file", move |files| Ok(files.rename(&from, &to))).await?;
        renamed.map_err(|error| {
            let taken = error.kind() == std::io::ErrorKind::AlreadyExists;
            let mut error = StorageError::disk(error, "cannot rename the file");
            if taken {
                error.kind = Kind::AlreadyExists;
            }
            error
        })
    }

    async fn probe(&self) -> Result<Probe, StorageError> {
        let spool = self.spool.clone();
        self.blocking("the directory does not take files", move |_| spool.probe()).await?;
        Ok(Probe::default())
    }

    async fn source(&self, key: &ObjectKey) -> Result<Option<SpoolReader>, StorageError> {
        let (key, blocks) = (key.clone(), self.spool.blocks().clone());
        self.blocking("cannot open the file", move |files| {
            Ok(files
                .open_file(&key)?
                .map(|(file, object)| SpoolReader::of_file(file, object.size_bytes, blocks)))
        })
        .await
    }
}
