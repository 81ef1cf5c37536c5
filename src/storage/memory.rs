//! A store in memory: the simplest thing that keeps the store's promise, against which the others are held.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use time::OffsetDateTime;

use super::{Kind, ListScope, ObjectMeta, ObjectStore, OpenObject, Probe, StorageError};
use crate::domain::merge::StoredObject;
use crate::domain::{ObjectKey, StoreKind};
use crate::spool::SpoolReader;

/// Objects in a map. It plays the role of the store whose kind it is given.
pub struct MemoryStore {
    kind: StoreKind,
    objects: Mutex<BTreeMap<ObjectKey, (StoredObject, Bytes)>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(kind: StoreKind) -> Self {
        Self { kind, objects: Mutex::default() }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, (StoredObject, Bytes)>> {
        self.objects.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn taken(&self) -> StorageError {
        StorageError::certain(self.kind, Kind::AlreadyExists, "the name is taken")
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    fn kind(&self) -> StoreKind {
        self.kind
    }

    async fn put(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        _known_size: Option<u64>,
        meta: &ObjectMeta,
    ) -> Result<(), StorageError> {
        let mut bytes = Vec::new();
        let mut stream = source.follow().bytes;
        while let Some(chunk) = stream.next().await {
            let gone = |error| {
                StorageError::certain(self.kind, Kind::SourceGone, "the source ended early").because(error)
            };
            bytes.extend_from_slice(&chunk.map_err(gone)?);
        }
        let object = StoredObject {
            key: key.clone(),
            size_bytes: bytes.len() as u64,
            modified_at: OffsetDateTime::now_utc(),
            content_type: Some(meta.content_type.clone()),
            etag: None,
            sha256: meta.sha256,
            original_filename: meta.original_filename.clone(),
            upload_id: Some(meta.upload_id.clone()),
        };
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Err(self.taken());
        }
        objects.insert(key.clone(), (object, bytes.into()));
        Ok(())
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<StoredObject>, StorageError> {
        Ok(self.objects().get(key).map(|(object, _)| object.clone()))
    }

    async fn open(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<OpenObject>, StorageError> {
        Ok(self.objects().get(key).map(|(object, bytes)| {
            let range = range.unwrap_or(0..object.size_bytes);
            let part = bytes.slice(range.start as usize..range.end as usize);
            OpenObject { object: object.clone(), bytes: futures_util::stream::iter([Ok(part)]).boxed() }
        }))
    }

    async fn list(&self, scope: &ListScope) -> Result<Vec<StoredObject>, StorageError> {
        let wanted = |key: &ObjectKey| match scope {
            ListScope::Everything => true,
            ListScope::Session(session) => key.session == *session,
        };
        Ok(self.objects().values().map(|(object, _)| object).filter(|o| wanted(&o.key)).cloned().collect())
    }

    async fn delete(&self, key: &ObjectKey) -> Result<bool, StorageError> {
        Ok(self.objects().remove(key).is_some())
    }

    async fn rename(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), StorageError> {
        let mut objects = self.objects();
        if objects.contains_key(to) {
            return Err(self.taken());
        }
        let found = objects.remove(from);
        let missing = || StorageError::certain(self.kind, Kind::NotFound, "there is no such object");
        let (mut object, bytes) = found.ok_or_else(missing)?;
        object.key = to.clone();
        objects.insert(to.clone(), (object, bytes));
        Ok(())
    }

    async fn probe(&self) -> Result<Probe, StorageError> {
        Ok(Probe::default())
    }
}
