//! Work in the background: bringing what only the local disk has to the cloud, and finishing deletions. Each call
//! tries one job once; when it is tried again is the runner's business.
//!
//! Invariant: the local copy goes only after the cloud copy was compared, and a recording that was deleted while it
//! was being sent is deleted from the cloud again.

use md5::{Digest as _, Md5};
use sha2::Sha256;

use super::delete::PrimaryOrService;
use super::{ServiceError, Services, Verify};
use crate::catalog::{CatalogError, Job, JobKind, QueueSyncs, Work};
use crate::domain::{ContentDigest, Durability, ObjectKey, Recording, StoreKind, StoreSet};
use crate::storage::tiered::{PrimaryError, Waiting};
use crate::storage::{Kind, ObjectMeta, StorageError, chain};
use futures_util::StreamExt;

/// How a try ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tried {
    /// The job is done and gone.
    Done,
    /// The cloud will not take it; the job is gone and the recording says why.
    Parked,
    /// It has to be tried again, for this reason.
    Again(String),
}

impl Services {
    /// Leaves a job for everything that should be in the cloud alone and is not. Safe to drop and to repeat.
    pub async fn queue_unsynced(&self) -> Result<(), ServiceError> {
        if self.stores.has_primary() {
            let in_both = !self.rules.keep_local;
            self.catalog.queue_syncs(QueueSyncs { in_both, ..QueueSyncs::default() }).await?;
        }
        Ok(())
    }

    /// Takes the next job that is due, also on a full disk: the work that waits is what makes room there.
    pub async fn claim_job(
        &self,
        now_us: i64,
        lease_us: i64,
        work: Work,
    ) -> Result<Option<Job>, CatalogError> {
        self.even_when_full(|| self.catalog.claim_job(now_us, lease_us, work)).await
    }

    /// Tries a job once. Safe to drop and to repeat.
    pub async fn try_job(&self, job: &Job) -> Tried {
        let done = match &job.kind {
            JobKind::Sync(key) => self.sync_recording(key).await,
            JobKind::Delete(key) => self.resume_deletion(key, StoreKind::Supabase).await,
            JobKind::DeleteLocal(key) => self.resume_deletion(key, StoreKind::Local).await,
            JobKind::DeleteSession(session) => {
                self.finish_session_deletion(session).await.map(|()| Tried::Done)
            }
            // Done by their children; nobody is given one.
            JobKind::SyncAll | JobKind::SyncSession(_) | JobKind::Migration => Ok(Tried::Done),
        };
        match done {
            Ok(tried) => tried,
            Err(error) => Tried::Again(chain(&error)),
        }
    }

    /// Each store has a job of its own.
    async fn resume_deletion(&self, key: &ObjectKey, store: StoreKind) -> Result<Tried, PrimaryOrService> {
        let deletion = self.finish_deletions(std::slice::from_ref(key)).await?;
        Ok(match deletion.pending.holds(store) {
            false => Tried::Done,
            true => Tried::Again(format!("{store} did not confirm the deletion")),
        })
    }

    /// Brings one recording to the cloud. If it is deleted meanwhile, whatever may have arrived is deleted too.
    async fn sync_recording(&self, key: &ObjectKey) -> Result<Tried, PrimaryOrService> {
        let Some(recording) = self.catalog.get(key).await.map_err(ServiceError::from)? else {
            return Ok(Tried::Done);
        };
        if recording.stores.supabase {
            return self.let_local_go(&recording).await;
        }
        let tried = self.send_recording(&recording).await;
        if self.catalog.get(key).await.map_err(ServiceError::from)?.is_none() {
            // The object may have come after the cloud confirmed that it has none: it has to be asked again, and by
            // a job of its own, for the one of this sync went with the recording.
            let cloud = StoreSet::only(StoreKind::Supabase);
            let entombed = self.catalog.entomb(std::slice::from_ref(key), cloud, &self.origin).await;
            entombed.map_err(ServiceError::from)?;
            return self.resume_deletion(key, StoreKind::Supabase).await;
        }
        tried
    }

    /// Sends a recording, compares it in the cloud, and lets the local copy go.
    async fn send_recording(&self, recording: &Recording) -> Result<Tried, PrimaryOrService> {
        let key = &recording.key;
        // Asked before the whole file is read, once for each try of each recording that waits.
        if !self.stores.primary_takes_writes() {
            return Ok(Tried::Again("the cloud is left alone for a while".into()));
        }
        let Some(source) = self.stores.fallback().source(key).await.map_err(ServiceError::from)? else {
            return Ok(Tried::Again("the local file is missing".into()));
        };
        let before = self.local_tag(key).await?;
        let local = Digests::of(&source, self.rules.verify == Verify::Etag).await?;
        if source.complete_size() != Some(recording.size_bytes)
            || recording.sha256.is_some_and(|digest| digest != local.sha256)
        {
            self.catalog
                .park(
                    key,
                    "the local file is not the recording that was stored; it was changed or damaged",
                    &self.origin,
                )
                .await
                .map_err(ServiceError::from)?;
            return Ok(Tried::Parked);
        }
        let meta = ObjectMeta {
            content_type: recording.content_type.clone(),
            upload_id: match recording.upload_id.as_str() {
                // A file that was dropped in has none yet; its digest names it as well.
                "" => format!("sha256:{}", local.sha256),
                id => id.to_owned(),
            },
            sha256: Some(local.sha256),
            original_filename: recording.original_filename.clone(),
        };
        let size = Some(recording.size_bytes);
        match self.stores.put_primary(key, &source, size, &meta, Waiting::Nobody(None)).await {
            Ok(()) => {}
            Err(error) if error.name_is_taken() => {
                // Other bytes of this name; the same bytes, sent by somebody else, will do.
                if !self.same_in_cloud(key, recording, &local).await? {
                    let reason = "the bucket has another object of this name";
                    self.catalog.park(key, reason, &self.origin).await.map_err(ServiceError::from)?;
                    return Ok(Tried::Parked);
                }
            }
            Err(error) => match error.parks() {
                Some(reason) => {
                    self.catalog.park(key, reason, &self.origin).await.map_err(ServiceError::from)?;
                    return Ok(Tried::Parked);
                }
                None => return Err(error.into()),
            },
        }
        let durability = self.compare_in_cloud(key, recording, &local).await?;
        if self.local_tag(key).await? != before {
            // Somebody writes to the file: what was sent is not all of it, and it must not go.
            return Ok(Tried::Again("the local file was changed while it was being sent".into()));
        }
        self.settle_synced(key, local.sha256, durability).await
    }

    /// What tells that the local file was written to: its size and time.
    async fn local_tag(&self, key: &ObjectKey) -> Result<Option<String>, ServiceError> {
        Ok(self.stores.fallback().head(key).await?.and_then(|object| object.etag))
    }

    /// Removes the local copy of a recording that the cloud has: the end of a sync that was interrupted.
    async fn let_local_go(&self, recording: &Recording) -> Result<Tried, PrimaryOrService> {
        if self.rules.keep_local || !recording.stores.local {
            return Ok(Tried::Done);
        }
        let source = self.stores.fallback().source(&recording.key).await.map_err(ServiceError::from)?;
        let Some(source) = source else { return Ok(Tried::Done) };
        let local = Digests::of(&source, self.rules.verify == Verify::Etag).await?;
        let durability = self.compare_in_cloud(&recording.key, recording, &local).await?;
        self.settle_synced(&recording.key, local.sha256, durability).await
    }

    async fn settle_synced(
        &self,
        key: &ObjectKey,
        sha256: ContentDigest,
        durability: Durability,
    ) -> Result<Tried, PrimaryOrService> {
        let both = StoreSet { supabase: true, local: true };
        // This is what makes room on a full disk.
        let mark = |stores| {
            self.even_when_full(move || {
                self.catalog.mark_stored(key, stores, durability, sha256, &self.origin)
            })
        };
        if !mark(both).await.map_err(ServiceError::from)? {
            return Ok(Tried::Done);
        }
        if !self.rules.keep_local {
            self.stores.fallback().delete(key).await.map_err(ServiceError::from)?;
            let cloud = StoreSet::only(StoreKind::Supabase);
            mark(cloud).await.map_err(ServiceError::from)?;
        }
        Ok(Tried::Done)
    }

    async fn same_in_cloud(
        &self,
        key: &ObjectKey,
        recording: &Recording,
        local: &Digests,
    ) -> Result<bool, PrimaryError> {
        let Some(object) = self.stores.head_primary(key).await? else { return Ok(false) };
        if object.size_bytes != recording.size_bytes {
            return Ok(false);
        }
        Ok(self.read_back(key).await? == local.sha256)
    }

    async fn compare_in_cloud(
        &self,
        key: &ObjectKey,
        recording: &Recording,
        local: &Digests,
    ) -> Result<Durability, PrimaryError> {
        let differs = |what: &str| {
            let detail = format!("the cloud copy has another {what} than the local one");
            PrimaryError::from(StorageError::certain(StoreKind::Supabase, Kind::Mismatch, detail))
        };
        let object = self.stores.head_primary(key).await?.ok_or_else(|| differs("place"))?;
        if object.size_bytes != recording.size_bytes {
            return Err(differs("size"));
        }
        match (self.rules.verify, &local.md5_etag) {
            (Verify::Size, _) => Ok(Durability::Cloud),
            (Verify::Etag, Some(md5)) if object.etag.as_deref().is_some_and(is_md5_etag) => {
                if object.etag.as_ref() == Some(md5) {
                    Ok(Durability::CloudVerified)
                } else {
                    Err(differs("digest"))
                }
            }
            // An entity tag that is no content hash proves nothing, so the bytes are read.
            (Verify::Etag | Verify::Read, _) => {
                if self.read_back(key).await? == local.sha256 {
                    Ok(Durability::CloudVerified)
                } else {
                    Err(differs("digest"))
                }
            }
        }
    }

    pub(super) async fn read_back(&self, key: &ObjectKey) -> Result<ContentDigest, PrimaryError> {
        let gone =
            |detail: &str| StorageError::certain(StoreKind::Supabase, Kind::Unavailable, detail.to_owned());
        let opened =
            self.stores.open_primary(key, None).await?.ok_or_else(|| gone("the object is not there"))?;
        let (mut hasher, mut bytes) = (Sha256::new(), opened.bytes);
        while let Some(chunk) = bytes.next().await {
            hasher.update(&chunk.map_err(|error| gone("reading it back broke off").because(error))?);
        }
        Ok(ContentDigest::from_bytes(hasher.finalize().into()))
    }
}

/// Digests of the local copy, made before it is sent: a file that rotted must not replace anything.
struct Digests {
    sha256: ContentDigest,
    /// As the file backend of Supabase Storage writes its entity tags.
    md5_etag: Option<String>,
}

impl Digests {
    async fn of(source: &crate::spool::SpoolReader, md5: bool) -> Result<Self, ServiceError> {
        let (mut sha256, mut md5) = (Sha256::new(), md5.then(Md5::new));
        let mut bytes = source.follow().bytes;
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk?;
            sha256.update(&chunk);
            if let Some(md5) = &mut md5 {
                md5.update(&chunk);
            }
        }
        Ok(Self {
            sha256: ContentDigest::from_bytes(sha256.finalize().into()),
            md5_etag: md5.map(|md5| format!("\"{}\"", hex::encode(md5.finalize()))),
        })
    }
}

/// 32 hex digits in quotes; multipart uploads to an S3 backend have `-N` behind them (contract, section 6).
fn is_md5_etag(etag: &str) -> bool {
    let inner = etag.trim_matches('"');
    inner.len() == 32 && inner.bytes().all(|b| b.is_ascii_hexdigit())
}
