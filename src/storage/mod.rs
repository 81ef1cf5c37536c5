//! Stores: places for objects under `session_id/filename`. The trait says what every store promises; each adapter
//! keeps that promise with its own means, and one conformance suite asks all of them the same questions.
//!
//! Which store is tried first and what happens when it fails is decided in [`tiered`] alone.

pub mod breaker;
pub mod cache;
mod error;
pub use error::{LONGEST_RETRY_AFTER, chain};
mod exact;
pub mod local;
pub mod memory;
pub mod pace;
pub mod peer;
mod push;
mod resume;
pub mod supabase;
pub mod tiered;

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use time::OffsetDateTime;

pub use error::{Kind, Outcome, Retry, StorageError};
pub use resume::{Background, ForThisCall, ResumePoint};

use crate::domain::merge::StoredObject;
use crate::domain::{ContentDigest, ObjectKey, SessionId, StoreKind};
use crate::spool::SpoolReader;

/// What travels with an object's bytes.
#[derive(Clone, Debug)]
pub struct ObjectMeta {
    /// Media type without parameters.
    pub content_type: String,
    /// By which the gateway recognises its own object when it does not know how a `put` ended. Unique per upload.
    pub upload_id: String,
    /// SHA-256 of the bytes, where it is known before they are sent.
    pub sha256: Option<ContentDigest>,
    /// The client's file name.
    pub original_filename: Option<String>,
}

/// What to list.
#[derive(Clone, Debug)]
pub enum ListScope {
    /// Every recording in the store.
    Everything,
    /// One session's.
    Session(SessionId),
}

/// A part of a listing.
#[derive(Debug)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// With which the next is asked for; `None` on the last page.
    pub next: Option<String>,
}

/// An object opened for reading.
pub struct OpenObject {
    /// What it is. `size_bytes` is of the whole object, whatever part was asked for.
    pub object: StoredObject,
    /// The bytes asked for. An error item ends it: what came before is a prefix.
    pub bytes: BoxStream<'static, std::io::Result<Bytes>>,
}

/// What a probe found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Probe {
    /// Whether anybody may read by URL.
    pub public: bool,
    /// Largest object it takes, in bytes.
    pub max_object_bytes: Option<u64>,
    /// Media types it takes (`type/subtype` or `type/*`); `None` for all.
    pub allowed_types: Option<Vec<String>>,
}

/// A place for objects.
///
/// Every method may be dropped at any await; what then happened is unknown, as after [`Outcome::Unknown`].
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// The make of the store.
    fn kind(&self) -> StoreKind;

    /// Stores the bytes of `source` under `key`, following it while it grows. `known_size` is the length if it is
    /// known before the end; the source wins if they differ.
    ///
    /// The object appears whole or not at all. A key that is taken is not overwritten ([`Kind::AlreadyExists`]),
    /// but a store may decide that by checking first and acting later: it is no lock.
    ///
    /// # Errors
    /// [`StorageError::outcome`] says whether the object may be there nevertheless.
    async fn put(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        known_size: Option<u64>,
        meta: &ObjectMeta,
    ) -> Result<(), StorageError>;

    /// As [`put`](Self::put), for a source that is complete and that nobody waits for. A store that can take an object
    /// piece by piece continues where an earlier try, of this process or one before it, was broken off.
    async fn put_in_background(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        meta: &ObjectMeta,
        _background: Background<'_>,
    ) -> Result<(), StorageError> {
        self.put(key, source, source.complete_size(), meta).await
    }

    /// What is stored under `key`; `None` if nothing is.
    async fn head(&self, key: &ObjectKey) -> Result<Option<StoredObject>, StorageError>;

    /// Opens an object, whole or the bytes of `range` (which must lie within it); `None` if it is not there.
    async fn open(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<OpenObject>, StorageError>;

    /// All objects of the scope whose keys are recordings, in no particular order, to the last page.
    async fn list(&self, scope: &ListScope) -> Result<Vec<StoredObject>, StorageError>;

    /// The keys that objects of a session may have, each object's among them: a store that need not look at what lies
    /// under a name does not.
    async fn names(&self, session: &SessionId) -> Result<Vec<ObjectKey>, StorageError> {
        let objects = self.list(&ListScope::Session(session.clone())).await?;
        Ok(objects.into_iter().map(|object| object.key).collect())
    }

    /// As [`head`](Self::head), for some keys: those that are there.
    async fn heads(&self, keys: &[ObjectKey]) -> Result<Vec<StoredObject>, StorageError> {
        let mut found = Vec::new();
        for key in keys {
            found.extend(self.head(key).await?);
        }
        Ok(found)
    }

    /// Every session that may have objects here, also one whose place is empty.
    async fn sessions(&self) -> Result<BTreeSet<SessionId>, StorageError> {
        let objects = self.list(&ListScope::Everything).await?;
        Ok(objects.into_iter().map(|object| object.key.session).collect())
    }

    /// As [`list`](Self::list), a bounded part at a time. A page may be empty and not the last; what changes meanwhile may
    /// be told twice or not at all, what does not change is told once.
    async fn list_page(
        &self,
        scope: &ListScope,
        _after: Option<&str>,
    ) -> Result<Page<StoredObject>, StorageError> {
        Ok(Page { items: self.list(scope).await?, next: None })
    }

    /// As [`sessions`](Self::sessions), a bounded part at a time.
    async fn session_page(&self, _after: Option<&str>) -> Result<Page<SessionId>, StorageError> {
        Ok(Page { items: self.sessions().await?.into_iter().collect(), next: None })
    }

    /// When objects last came to or went from a session; nobody can set this time. `None` if the store cannot tell.
    async fn changed_at(&self, _session: &SessionId) -> Result<Option<OffsetDateTime>, StorageError> {
        Ok(None)
    }

    /// Whether a session has a place here that holds nothing at all and has been so since `before`. With `remove` the
    /// place goes. A store without places of sessions has no empty ones.
    async fn empty_session(
        &self,
        _session: &SessionId,
        _before: OffsetDateTime,
        _remove: bool,
    ) -> Result<bool, StorageError> {
        Ok(false)
    }

    /// Takes an object out of the recordings without destroying it, for somebody to look at, and says where it went.
    /// `None` if it is not there, or the store has no such place.
    async fn set_aside(&self, _key: &ObjectKey) -> Result<Option<String>, StorageError> {
        Ok(None)
    }

    /// Removes an object. `false` if there was none. On success it is gone for every later question.
    async fn delete(&self, key: &ObjectKey) -> Result<bool, StorageError>;

    /// Gives an object another name in its store. [`Kind::NotFound`] if there is none, [`Kind::AlreadyExists`] if
    /// the new name is taken; the object then keeps the old one.
    async fn rename(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), StorageError>;

    /// Asks whether the store can be used and what it takes.
    async fn probe(&self) -> Result<Probe, StorageError>;

    /// The object as a source that can be read again and again, to send it elsewhere; `None` if it is not there or
    /// the store cannot offer that.
    async fn source(&self, _key: &ObjectKey) -> Result<Option<SpoolReader>, StorageError> {
        Ok(None)
    }

    /// Where anybody can read the object if the store is public; `None` if the store has no addresses.
    fn public_url(&self, _key: &ObjectKey) -> Option<String> {
        None
    }

    /// An address that works for `ttl` without credentials; `None` if the store has no addresses.
    async fn signed_url(&self, _key: &ObjectKey, _ttl: Duration) -> Result<Option<String>, StorageError> {
        Ok(None)
    }
}
