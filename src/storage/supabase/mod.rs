//! The Supabase Storage bucket as a store. Built from the recorded contract of the real server (1.11.2); section
//! numbers in comments refer to it.

mod client;
mod resumable;
mod tus;
mod upload;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;

pub use self::client::Access;
use self::client::Client;
use super::exact::exactly;
use super::{Background, Kind, ListScope, ObjectMeta, ObjectStore, OpenObject, Page, Probe, StorageError};
use crate::domain::merge::StoredObject;
use crate::domain::{ObjectKey, SessionId, StoreKind};
use crate::spool::SpoolReader;

/// Longest key every backend takes, in bytes (section 4).
const MAX_KEY_BYTES: usize = 900;

/// Most bytes of one request to the resumable endpoint. What a broken one has brought is kept, so its length costs
/// nothing but with proxies that pass on whole bodies only; at 256 MiB a round trip between two of them is below one
/// part in a hundred of the time up to 2 GB/s on a near line and 200 MB/s on a far one.
pub const PATCH_BYTES: u64 = 256 << 20;

/// Between the server's cursor and the last name of the page that it came with.
const SEEN: char = '\0';

/// One bucket.
pub struct SupabaseStore {
    client: Client,
    /// What the bucket said it takes, once it could be asked.
    probed: Mutex<Option<Probe>>,
    /// Whether it is believed to be readable by anybody until then.
    assume_public: bool,
    create: Option<CreateBucket>,
}

/// Make the bucket if it is missing.
#[derive(Clone, Copy, Debug)]
pub struct CreateBucket {
    /// Readable by anybody.
    pub public: bool,
}

impl SupabaseStore {
    /// Prepares the client; asks nothing yet. `assume_public` counts until the bucket could be asked.
    ///
    /// # Errors
    /// If the TLS stack cannot be set up.
    pub fn new(
        access: Access,
        assume_public: bool,
        create: Option<CreateBucket>,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self { client: Client::new(access)?, probed: Mutex::default(), assume_public, create })
    }

    fn probed(&self) -> MutexGuard<'_, Option<Probe>> {
        self.probed.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn is_public(&self) -> bool {
        self.probed().as_ref().map_or(self.assume_public, |probe| probe.public)
    }

    /// What the bucket will say, without asking it: a body of unknown length it would not even limit.
    fn check(&self, key: &ObjectKey, meta: &ObjectMeta) -> Result<(), StorageError> {
        let refused = |kind, detail: String| Err(StorageError::certain(StoreKind::Supabase, kind, detail));
        if !key.filename.is_portable() || key.to_string().len() > MAX_KEY_BYTES {
            let detail = "the name has characters or a length that not every Supabase backend takes";
            return refused(Kind::InvalidKey, detail.into());
        }
        match self.probed().as_ref().and_then(|probe| probe.allowed_types.as_ref()) {
            Some(types) if !types.iter().any(|allowed| covers(allowed, &meta.content_type)) => {
                refused(Kind::TypeRefused, format!("the bucket takes only {}", types.join(", ")))
            }
            _ => Ok(()),
        }
    }

    /// Lists to the last page.
    async fn all_pages(
        &self,
        prefix: &str,
        with_delimiter: bool,
        mut each: impl FnMut(wire::ListBody) + Send,
    ) -> Result<(), StorageError> {
        let mut cursor = None::<String>;
        loop {
            let (page, next) = self.page(prefix, cursor.as_deref(), with_delimiter).await?;
            each(page);
            if next.is_none() {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// One page, and where the next begins.
    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        with_delimiter: bool,
    ) -> Result<(wire::ListBody, Option<String>), StorageError> {
        let (cursor, seen) = after.and_then(|after| after.split_once(SEEN)).unzip();
        let mut page = self.client.list_page(prefix, cursor, with_delimiter).await?;
        if !page.has_next {
            return Ok((page, None));
        }
        // Names come in their order (section 8). A list that does not get on, or goes in a circle, would be asked for ever.
        let last = page.last_name().filter(|last| seen.is_none_or(|seen| *last > seen)).map(str::to_owned);
        match (page.next_cursor.take(), last) {
            (Some(next), Some(last)) => Ok((page, Some(format!("{next}{SEEN}{last}")))),
            _ => Err(StorageError::certain(
                StoreKind::Supabase,
                Kind::Nonsense,
                "its list says that there is more and does not get on",
            )),
        }
    }
}

/// The start of the keys of a scope.
fn prefix(scope: &ListScope) -> String {
    match scope {
        ListScope::Everything => String::new(),
        ListScope::Session(session) => format!("{session}/"),
    }
}

#[async_trait]
impl ObjectStore for SupabaseStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Supabase
    }

    async fn put(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        known_size: Option<u64>,
        meta: &ObjectMeta,
    ) -> Result<(), StorageError> {
        self.check(key, meta)?;
        let probed = self.probed().clone();
        // The server limits only bodies whose length it is told (section 5). Where its limit is not known here, the
        // length has to be.
        let known_size = match (known_size, &probed) {
            (None, None) => Some(source.completed().await.map_err(upload::source_gone)?),
            (known_size, _) => known_size,
        };
        let max_bytes = probed.and_then(|probe| probe.max_object_bytes);
        upload::put(&self.client, key, source, known_size, max_bytes, meta, None).await
    }

    async fn put_in_background(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        meta: &ObjectMeta,
        background: Background<'_>,
    ) -> Result<(), StorageError> {
        self.check(key, meta)?;
        let size = source.completed().await.map_err(upload::source_gone)?;
        let max_bytes = self.probed().as_ref().and_then(|probe| probe.max_object_bytes);
        upload::fits(size, max_bytes)?;
        let pacer = Some(background.pacer);
        let in_one = || upload::put(&self.client, key, source, Some(size), max_bytes, meta, pacer);
        let mut refused = None;
        if size < self.client.access.resumable_from {
            match in_one().await {
                // Single requests may have a lower limit than the bucket (section 5).
                Err(error) if error.kind == Kind::TooLarge => refused = Some(error),
                done => return done,
            }
        }
        match (resumable::put(&self.client, key, source, size, meta, background).await, refused) {
            // A server without this route.
            (Err(error), Some(refused)) if error.kind == Kind::NotFound => Err(refused),
            (Err(error), None) if error.kind == Kind::NotFound => in_one().await,
            (done, _) => done,
        }
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<StoredObject>, StorageError> {
        let mut found = self.client.info("authenticated/", key).await;
        // A key without the right to read hears "not found" of what is there; the public route needs no right.
        if self.is_public() && matches!(&found, Err(e) if e.kind == Kind::NotFound) {
            found = self.client.info("public/", key).await;
        }
        match found {
            Ok(info) => Ok(Some(info.into_object(key.clone()))),
            // What cannot be named there is not there.
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::InvalidKey) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn open(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<OpenObject>, StorageError> {
        let Some(object) = self.head(key).await? else { return Ok(None) };
        let wanted = range.clone().unwrap_or(0..object.size_bytes);
        if wanted.is_empty() {
            return Ok(Some(OpenObject { object, bytes: futures_util::stream::empty().boxed() }));
        }
        let header = range.map(|r| format!("bytes={}-{}", r.start, r.end - 1));
        let response = match self.client.download(key, header.as_deref()).await {
            Ok(response) => response,
            Err(error) if error.kind == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let expected_status = if header.is_some() { 206 } else { 200 };
        let length = wanted.end - wanted.start;
        if response.status().as_u16() != expected_status
            || response.content_length().is_some_and(|l| l != length)
        {
            return Err(StorageError::certain(
                StoreKind::Supabase,
                Kind::Mismatch,
                "sent other bytes than were asked for",
            ));
        }
        let idle = self.client.access.idle_timeout;
        let bytes = exactly(response.bytes_stream().map(|r| r.map_err(std::io::Error::other)), length, idle);
        Ok(Some(OpenObject { object, bytes }))
    }

    async fn list(&self, scope: &ListScope) -> Result<Vec<StoredObject>, StorageError> {
        let mut objects = BTreeMap::new();
        let collect = |page: wire::ListBody| {
            let found = page.objects.into_iter().filter_map(wire::ListedObject::into_object);
            objects.extend(found.map(|object| (object.key.clone(), object)));
        };
        self.all_pages(&prefix(scope), false, collect).await?;
        Ok(objects.into_values().collect())
    }

    async fn sessions(&self) -> Result<BTreeSet<SessionId>, StorageError> {
        let mut sessions = BTreeSet::new();
        self.all_pages("", true, |page| sessions.extend(page.sessions())).await?;
        Ok(sessions)
    }

    async fn list_page(
        &self,
        scope: &ListScope,
        after: Option<&str>,
    ) -> Result<Page<StoredObject>, StorageError> {
        let (page, next) = self.page(&prefix(scope), after, false).await?;
        let items = page.objects.into_iter().filter_map(wire::ListedObject::into_object).collect();
        Ok(Page { items, next })
    }

    async fn session_page(&self, after: Option<&str>) -> Result<Page<SessionId>, StorageError> {
        let (page, next) = self.page("", after, true).await?;
        Ok(Page { items: page.sessions().collect(), next })
    }

    async fn delete(&self, key: &ObjectKey) -> Result<bool, StorageError> {
        let existed = match self.client.delete(key).await {
            Ok(()) => true,
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::InvalidKey) => false,
            Err(error) => return Err(error),
        };
        // Deletion is what a later question says, not what the answer says: policies can hide an object from a
        // delete that then answers as if all were well.
        if self.head(key).await?.is_some() {
            return Err(StorageError::certain(
                StoreKind::Supabase,
                Kind::Forbidden,
                "said it was deleted and still has it; the key may lack the right to delete",
            ));
        }
        Ok(existed)
    }

    async fn rename(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), StorageError> {
        self.client.rename(from, to).await
    }

    async fn probe(&self) -> Result<Probe, StorageError> {
        let bucket = match (self.client.bucket().await, self.create) {
            (Err(error), Some(create)) if error.kind == Kind::BucketMissing => {
                match self.client.create_bucket(create.public).await {
                    // Another gateway may have been faster.
                    Err(error) if error.kind != Kind::AlreadyExists => return Err(error),
                    _ => self.client.bucket().await?,
                }
            }
            (bucket, _) => bucket?,
        };
        let probe = Probe {
            public: bucket.public,
            max_object_bytes: bucket.file_size_limit,
            allowed_types: bucket.allowed_mime_types.filter(|types| !types.is_empty()),
        };
        *self.probed() = Some(probe.clone());
        Ok(probe)
    }

    fn public_url(&self, key: &ObjectKey) -> Option<String> {
        self.is_public().then(|| self.client.object_url("public/", key))
    }

    async fn signed_url(&self, key: &ObjectKey, ttl: Duration) -> Result<Option<String>, StorageError> {
        self.client.sign(key, ttl).await.map(Some)
    }
}

/// `type/*` or an exact type; the server compares the text as it is (section 5).
fn covers(allowed: &str, content_type: &str) -> bool {
    match allowed.strip_suffix("/*") {
        Some(kind) => content_type.split_once('/').is_some_and(|(have, _)| have == kind),
        None => allowed == content_type,
    }
}
