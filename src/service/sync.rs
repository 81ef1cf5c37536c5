//! One sync: bringing a recording that only the local disk has to the cloud. Each call is one try, which asks before it
//! changes anything, so that a repeat after a crash anywhere does no harm.
//!
//! Invariant: the local copy goes only after the cloud copy was compared, and a recording that was deleted while it
//! was being sent is deleted from the cloud again.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use md5::{Digest as _, Md5};
use sha2::Sha256;
use time::OffsetDateTime;

use super::delete::PrimaryOrService;
use super::rebuild::has_settled;
use super::work::{Setback, Tried};
use super::{ServiceError, Services, Verify};
use crate::catalog::{Job, Mend};
use crate::domain::{ContentDigest, Durability, ObjectKey, Recording, StoreKind, StoreSet};
use crate::storage::tiered::{PrimaryError, Waiting};
use crate::storage::{Kind, ObjectMeta, ResumePoint, StorageError, chain};

/// A recording whose file is missing may be one whose file is just being put in its place; after this long it is not.
const PLACED_AFTER: Duration = Duration::from_secs(60);
/// A recording that the cloud damaged so often waits until somebody looks at it.
const REPLACED_AT_MOST: i64 = 5;

const FOREIGN: &str = "the bucket has another object of this name";
const HIDDEN: &str =
    "the bucket says that this name is taken and shows no object; the key may lack the right to read";

impl Services {
    /// Brings one recording to the cloud. If it is deleted meanwhile, whatever may have arrived is deleted too.
    pub(super) async fn sync_recording(&self, job: &Job, key: &ObjectKey) -> Result<Tried, PrimaryOrService> {
        let Some(recording) = self.catalog.get(key).await.map_err(ServiceError::from)? else {
            return Ok(Tried::Done);
        };
        let point = JobPoint::of(self, job);
        if recording.stores.supabase {
            return self.let_local_go(&recording, &point).await;
        }
        let tried = self.send_recording(&recording, &point).await;
        if self.catalog.get(key).await.map_err(ServiceError::from)?.is_none() {
            return self.delete_what_arrived(key).await;
        }
        tried
    }

    /// The recording was deleted while it was being sent. The object may have come after the cloud confirmed that it has
    /// none: it has to be asked again, and by a job of its own, for the one of this sync went with the recording.
    pub(super) async fn delete_what_arrived(&self, key: &ObjectKey) -> Result<Tried, PrimaryOrService> {
        let cloud = StoreSet::only(StoreKind::Supabase);
        let entombed = self.catalog.entomb(std::slice::from_ref(key), cloud, &self.origin).await;
        entombed.map_err(ServiceError::from)?;
        self.resume_deletion(key, StoreKind::Supabase).await
    }

    /// Sends a recording, compares it in the cloud, and lets the local copy go.
    async fn send_recording(
        &self,
        recording: &Recording,
        point: &JobPoint<'_>,
    ) -> Result<Tried, PrimaryOrService> {
        let key = &recording.key;
        // Asked before the whole file is read, once for each try of each recording that waits.
        if !self.stores.primary_takes_writes() {
            return Ok(Tried::NotNow);
        }
        // Looked at before it is opened: what is written to it from here on is noticed in the end.
        let file = self.stores.fallback().head(key).await.map_err(ServiceError::from)?;
        let (mut recording, follows) = (recording.clone(), recording.follows_its_file());
        if let Some(file) = &file {
            if follows && !has_settled(file.modified_at, OffsetDateTime::now_utc()) {
                return Ok(Setback::here("the local file is still being written"));
            }
            self.follow_file(&mut recording, file).await?;
        }
        let recording = &recording;
        let Some(source) = self.stores.fallback().source(key).await.map_err(ServiceError::from)? else {
            return self.settle_missing(recording).await;
        };
        let before = file.and_then(|file| file.etag);
        let local = Digests::of(&source, self.rules.verify == Verify::Etag).await?;
        if follows && self.local_tag(key).await? != before {
            return Ok(changed());
        }
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
                // A file that was dropped in has none yet. The job is named so that its own object is known among others,
                // also one with an earlier state of the file.
                "" => format!("{}{}", sent_by(point.job), local.sha256),
                id => id.to_owned(),
            },
            sha256: Some(local.sha256),
            original_filename: recording.original_filename.clone(),
        };
        let size = Some(recording.size_bytes);
        match self.stores.put_primary(key, &source, size, &meta, Waiting::Nobody(Some(point))).await {
            Ok(()) => {}
            Err(error) if error.name_is_taken() => {
                if follows && self.take_back(key, point.job).await? {
                    return Ok(changed());
                }
                // Other bytes of this name; the same bytes, sent by somebody else, will do.
                let same = self.same_in_cloud(key, recording, &local).await?;
                if same != Some(true) {
                    let parked = match same {
                        None => self.catalog.park_for_now(key, HIDDEN, &self.origin).await,
                        Some(_) => self.catalog.park(key, FOREIGN, &self.origin).await,
                    };
                    parked.map_err(ServiceError::from)?;
                    return Ok(Tried::Parked);
                }
            }
            // Somebody else is finding out whether it is back: nothing was sent.
            Err(PrimaryError::LeftAlone { .. } | PrimaryError::NotConfigured) => return Ok(Tried::NotNow),
            Err(error) => match error.parks() {
                Some(reason) => {
                    self.catalog.park_for_now(key, reason, &self.origin).await.map_err(ServiceError::from)?;
                    return Ok(Tried::Parked);
                }
                None => return Err(error.into()),
            },
        }
        if follows && self.local_tag(key).await? != before {
            // Not all of it, and nobody was promised these bytes: they would only be in the way of the next try.
            self.take_back(key, point.job).await?;
            return Ok(changed());
        }
        let durability = match self.compare_in_cloud(key, recording, &local).await {
            Err(error) if error.is_mismatch() => {
                return self.replace_damaged(key, point.job.attempt, error).await;
            }
            compared => compared?,
        };
        if self.local_tag(key).await? != before {
            // Somebody writes to the file: what was sent is not all of it, and it must not go.
            if follows {
                self.take_back(key, point.job).await?;
            }
            return Ok(changed());
        }
        self.settle_synced(key, local.sha256, durability).await
    }

    /// Removes what this very job sent of an earlier state of a file that is followed. `false` if what is there came
    /// another way.
    async fn take_back(&self, key: &ObjectKey, job: &Job) -> Result<bool, PrimaryError> {
        let object = self.stores.head_primary(key).await?;
        let ours = object.and_then(|o| o.upload_id).is_some_and(|id| id.starts_with(&sent_by(job)));
        if ours {
            self.stores.delete_primary(key).await?;
        }
        Ok(ours)
    }

    /// The local file is not there. Parked only once both places were asked: a loss is told, not guessed.
    async fn settle_missing(&self, recording: &Recording) -> Result<Tried, PrimaryOrService> {
        let key = &recording.key;
        if OffsetDateTime::now_utc() - recording.uploaded_at < PLACED_AFTER {
            return Ok(Setback::here("the local file is not in its place yet"));
        }
        let listing = self.stores.look(key).await;
        let there = listing.primary?.into_iter().next();
        if !listing.fallback.map_err(ServiceError::from)?.is_empty() {
            return Ok(Setback::here("the local file was away for a moment"));
        }
        if let (Some(object), Some(sha256)) = (there, recording.sha256)
            && object.size_bytes == recording.size_bytes
            && self.read_back(key).await? == sha256
        {
            // Somebody moved it there.
            let cloud = StoreSet::only(StoreKind::Supabase);
            let marked =
                self.catalog.mark_stored(key, cloud, Durability::CloudVerified, sha256, &self.origin).await;
            marked.map_err(ServiceError::from)?;
            return Ok(Tried::Done);
        }
        let reason =
            "its file is missing on this disk and the cloud does not have it; put the file back and retry";
        self.catalog.park_for_now(key, reason, &self.origin).await.map_err(ServiceError::from)?;
        Ok(Tried::Parked)
    }

    /// What tells that the local file was written to: its size and time.
    async fn local_tag(&self, key: &ObjectKey) -> Result<Option<String>, ServiceError> {
        Ok(self.stores.fallback().head(key).await?.and_then(|object| object.etag))
    }

    /// Removes the local copy of a recording that the cloud has: the end of a sync that was interrupted.
    async fn let_local_go(
        &self,
        recording: &Recording,
        point: &JobPoint<'_>,
    ) -> Result<Tried, PrimaryOrService> {
        if self.rules.keep_local || !recording.stores.local {
            return Ok(Tried::Done);
        }
        let source = self.stores.fallback().source(&recording.key).await.map_err(ServiceError::from)?;
        let Some(source) = source else { return self.note_that_local_went(recording).await };
        let local = Digests::of(&source, self.rules.verify == Verify::Etag).await?;
        if let Some(sha256) = recording.sha256.filter(|sha256| *sha256 != local.sha256) {
            return self.set_damaged_aside(recording, sha256).await;
        }
        let durability = match self.compare_in_cloud(&recording.key, recording, &local).await {
            Err(error) if error.is_mismatch() => {
                let whole = source.complete_size() == Some(recording.size_bytes);
                return self.send_again(recording, whole, point, error).await;
            }
            compared => compared?,
        };
        self.settle_synced(&recording.key, local.sha256, durability).await
    }

    /// The cloud copy went, or is another, and the local one is what was stored: the row says so, and it is sent again.
    /// Where the row has no digest nobody knows which of two different copies is right; then nothing is changed.
    async fn send_again(
        &self,
        recording: &Recording,
        whole: bool,
        point: &JobPoint<'_>,
        error: PrimaryError,
    ) -> Result<Tried, PrimaryOrService> {
        let known = recording.sha256.is_some() || self.stores.head_primary(&recording.key).await?.is_none();
        if !whole || !known {
            return Ok(Setback::here(&chain(&error)));
        }
        let (stores, durability) = (StoreSet::only(StoreKind::Local), Durability::Local);
        let detail = "the cloud had no good copy; it is sent again";
        let mend = Mend { before: recording, stores, durability, sync: true, found: None, detail };
        let mended = self.even_when_full(|| self.catalog.mend(mend, &self.origin)).await;
        if !mended.map_err(ServiceError::from)? {
            return Ok(Setback::here("its row was changed meanwhile"));
        }
        tracing::warn!(object.key = %recording.key, error = %chain(&error), "{detail}");
        let recording = Recording { stores, durability, ..recording.clone() };
        self.send_recording(&recording, point).await
    }

    /// A crash came between the removal of the local copy and its note.
    async fn note_that_local_went(&self, recording: &Recording) -> Result<Tried, PrimaryOrService> {
        let there = self.stores.head_primary(&recording.key).await?;
        if let (Some(object), Some(sha256)) = (there, recording.sha256)
            && object.size_bytes == recording.size_bytes
        {
            let (key, cloud) = (&recording.key, StoreSet::only(StoreKind::Supabase));
            let marked =
                self.catalog.mark_stored(key, cloud, recording.durability, sha256, &self.origin).await;
            marked.map_err(ServiceError::from)?;
        }
        Ok(Tried::Done)
    }

    /// The local copy is not the recording any more. If the cloud's is, that one is kept, and the file is put aside for
    /// somebody to look at.
    async fn set_damaged_aside(
        &self,
        recording: &Recording,
        sha256: ContentDigest,
    ) -> Result<Tried, PrimaryOrService> {
        let (key, cloud) = (&recording.key, StoreSet::only(StoreKind::Supabase));
        if self.read_back(key).await? != sha256 {
            return Ok(Setback::here("neither the local file nor the cloud copy is what was stored"));
        }
        let verified = Durability::CloudVerified;
        let marked = self.catalog.mark_stored(key, cloud, verified, sha256, &self.origin).await;
        marked.map_err(ServiceError::from)?;
        let place = self.stores.fallback().set_aside(key).await.map_err(ServiceError::from)?;
        tracing::error!(object.key = %key, place, "the local copy is damaged and was put aside; the cloud's is good");
        Ok(Tried::Done)
    }

    /// What the cloud confirmed as this recording has other bytes. It is removed and sent again, which helps unless the
    /// cloud damages everything.
    async fn replace_damaged(
        &self,
        key: &ObjectKey,
        attempts: i64,
        error: PrimaryError,
    ) -> Result<Tried, PrimaryOrService> {
        self.stores.delete_primary(key).await?;
        if attempts >= REPLACED_AT_MOST {
            let reason = "the cloud keeps other bytes than were sent";
            self.catalog.park_for_now(key, reason, &self.origin).await.map_err(ServiceError::from)?;
            return Ok(Tried::Parked);
        }
        Ok(Setback::here(&chain(&error)))
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

    /// Whether the cloud has these bytes under this name; `None` if it shows nothing there.
    async fn same_in_cloud(
        &self,
        key: &ObjectKey,
        recording: &Recording,
        local: &Digests,
    ) -> Result<Option<bool>, PrimaryError> {
        let Some(object) = self.stores.head_primary(key).await? else { return Ok(None) };
        let same_size = object.size_bytes == recording.size_bytes;
        Ok(Some(same_size && self.read_back(key).await? == local.sha256))
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

/// How the upload ids of files begin that came in past the gateway and that this job sends.
fn sent_by(job: &Job) -> String {
    format!("{}:", job.id)
}

fn changed() -> Tried {
    Setback::here("the local file was changed while it was being sent")
}

/// The resume point of a transfer is kept in the row of its job, so that it outlives the process.
struct JobPoint<'a> {
    services: &'a Services,
    job: &'a Job,
    at: Mutex<Option<String>>,
}

impl<'a> JobPoint<'a> {
    fn of(services: &'a Services, job: &'a Job) -> Self {
        Self { services, job, at: Mutex::new(job.resume_point.clone()) }
    }
}

#[async_trait]
impl ResumePoint for JobPoint<'_> {
    async fn load(&self) -> Option<String> {
        self.at.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    async fn save(&self, at: Option<&str>) {
        *self.at.lock().unwrap_or_else(|e| e.into_inner()) = at.map(str::to_owned);
        if let Err(error) = self.services.catalog.keep_resume_point(self.job, at).await {
            tracing::warn!(job.id = %self.job.id, error = %chain(&error), "where a transfer can go on could not be noted");
        }
    }
}

/// Digests of the local copy, made before it is sent: a file that rotted must not replace anything.
pub(super) struct Digests {
    pub(super) sha256: ContentDigest,
    /// As the file backend of Supabase Storage writes its entity tags.
    md5_etag: Option<String>,
}

impl Digests {
    pub(super) async fn of(source: &crate::spool::SpoolReader, md5: bool) -> Result<Self, ServiceError> {
        let (mut sha256, mut md5) = (Sha256::new(), md5.then(Md5::new));
        let mut bytes = source.follow().bytes;
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk?;
            sha256.update(&chunk);
            if let Some(md5) = &mut md5 {
                md5.update(&chunk);
            }
            // What the kernel has at hand comes without a wait: others are to have their turn.
            tokio::task::yield_now().await;
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
