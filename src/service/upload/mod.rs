//! Uploads: from the first byte to the promise.
//!
//! Invariants
//! - What is answered with success is in the catalogue, and its bytes are confirmed by the cloud or fsynced here.
//! - Until [`Incoming::finish`] was called, dropping the upload leaves nothing: no file, no object, no name.
//! - No store sees the last block before the form ended cleanly and every check on the bytes passed.
//! - The client is never slowed by the cloud: its bytes go to the spool, the cloud follows the spool.

mod cloud;
mod settle;
mod unsure;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;

use self::cloud::CloudLeg;
use self::unsure::Unsure;
pub use self::unsure::UnsureUploads;
use super::events::UploadEvents;
use super::{ServiceError, Services};
use crate::catalog::{Answered, Begun, RequestKey};
use crate::domain::media::{MediaGuess, SNIFF_BYTES, decide, sniff};
use crate::domain::recording::micros;
use crate::domain::{ContentDigest, NameStem, ObjectKey, RecordingType, SessionId};
use crate::runtime::metrics;
use crate::spool::{SpoolError, SpoolWriter};
use crate::storage::{ObjectMeta, chain};

/// The cloud is sent an upload that is still coming once so many bytes are in the spool. What is shorter waits for its
/// end: then size and digest can go with it.
const AHEAD_BYTES: u64 = 512 << 10;

/// What a request says about its upload before the first byte.
#[derive(Clone, Debug, Default)]
pub struct UploadOptions {
    /// Length of the whole request body, if announced.
    pub request_bytes: Option<u64>,
    /// The client's idempotency key.
    pub idempotency_key: Option<String>,
    /// The digest the recording must have.
    pub expected_digest: Option<ContentDigest>,
    /// Answer as soon as the recording is safe here.
    pub respond_async: bool,
    /// The bulk load that its sync will be a part of.
    pub parent_job: Option<String>,
}

/// What is known of the file before its bytes.
#[derive(Clone, Debug, Default)]
pub struct FileHead {
    /// Media type the client declared.
    pub declared_type: Option<String>,
    /// The client's name for it.
    pub client_filename: Option<String>,
    /// Its length, if it is known for certain that nothing else follows; the cloud is told, and a wrong length costs
    /// a second transfer.
    pub expected_bytes: Option<u64>,
    /// The digest its own part header announces.
    pub expected_digest: Option<ContentDigest>,
}

/// Where the recording ended up, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Landed {
    /// In the bucket.
    Cloud,
    /// On the local disk: no cloud is configured.
    Local,
    /// On the local disk: the cloud failed; it follows later.
    CloudUnavailable,
    /// On the local disk: the cloud will not take it, for this reason.
    Parked(String),
    /// On the local disk because the client asked for an early answer; the cloud follows.
    Early,
}

impl Landed {
    fn metric(&self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Local => "local",
            Self::CloudUnavailable => "cloud_unavailable",
            Self::Parked(_) => "parked",
            Self::Early => "early",
        }
    }
}

/// The answer to an upload; kept for repeats of the request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// `session_id/filename`.
    pub file_path: String,
    /// The session.
    pub session_id: String,
    /// The name.
    pub filename: String,
    /// Length in bytes.
    pub file_size: u64,
    /// SHA-256 in hex.
    pub sha256: String,
    /// Media type.
    pub content_type: String,
    /// The client's name for it.
    pub original_filename: Option<String>,
    /// `local`, `cloud`.
    pub durability: String,
    /// Store that holds it: `supabase` or `local`.
    pub storage_type: String,
    /// Its public address, if it has one.
    pub public_url: Option<String>,
    /// When it was complete, microseconds since 1970 UTC.
    pub uploaded_at_us: i64,
    /// Where it ended up, and why.
    pub landed: Landed,
}

impl Services {
    /// Whether an upload would be let in: room on the disk, size, slots. Asked before the first byte of the body.
    /// Safe to drop.
    ///
    /// # Errors
    /// [`ServiceError::TooLarge`], [`ServiceError::StorageFull`], [`ServiceError::SpoolUnusable`],
    /// [`ServiceError::Busy`], [`ServiceError::NoSuchLoad`], or what [`ServiceError::RequestRunning`] says about the
    /// idempotency key.
    pub async fn begin_upload(
        &self,
        session: SessionId,
        options: UploadOptions,
    ) -> Result<Incoming, ServiceError> {
        let announced = options.request_bytes.unwrap_or(0);
        // A form has some bytes beside the file; the file itself is counted exactly as it comes.
        if announced > self.rules.max_bytes.saturating_add(FORM_OVERHEAD_BYTES) {
            return Err(ServiceError::TooLarge { limit_bytes: self.rules.max_bytes });
        }
        if let Some(load) = &options.parent_job {
            self.check_load(load).await?;
        }
        let room = self.room.reserve(options.request_bytes).await?;
        let slot = self.upload_slots.clone().try_acquire_owned().map_err(|_| ServiceError::Busy)?;
        let (mut leftovers, mut earlier) = (Leftovers::none(self), None);
        if let Some(key) = &options.idempotency_key {
            let request = RequestKey::new(format!("POST /recordings/upload/{session}"), key.clone());
            match self.take_key(request).await? {
                (Begun::First, taken) => leftovers = taken,
                (Begun::Running, _) => return Err(ServiceError::RequestRunning),
                (Begun::Answered(answered), _) => earlier = Some(answered),
            }
        }
        let upload_id = uuid::Uuid::now_v7().to_string();
        let writer = match self.spool.create(&upload_id) {
            Ok(writer) => writer.within(room),
            Err(SpoolError::Io(error)) => return Err(ServiceError::SpoolUnusable(error)),
            Err(error) => return Err(error.into()),
        };
        metrics::uploads_in_flight(1.0);
        let events = self.events.of_upload(&session, &upload_id);
        Ok(Incoming {
            services: self.clone(),
            session,
            options,
            earlier,
            kind: None,
            file: None,
            writer: Some(writer),
            started: Instant::now(),
            at: OffsetDateTime::now_utc(),
            upload_id,
            events: Some(events),
            leftovers,
            _slot: slot,
            _in_flight: InFlight,
        })
    }
}

impl Services {
    /// Marks a keyed request as running if it is the first. Safe to drop: it goes to its end all the same, and what it
    /// took is then given back, for otherwise a client that hung up while the key was being taken would never get it.
    async fn take_key(&self, request: RequestKey) -> Result<(Begun, Leftovers), ServiceError> {
        let services = self.clone();
        let take = async move {
            let begun = services.begin_request(&request).await?;
            let mut taken = Leftovers::none(&services);
            taken.request = (begun == Begun::First).then_some(request);
            Ok((begun, taken))
        };
        self.tasks.spawn(take).await.unwrap_or(Err(ServiceError::Unexpected))
    }

    /// Marks a keyed request as running. One whose process was killed before its answer is settled first: nobody else
    /// would answer the client that sends it again.
    async fn begin_request(&self, request: &RequestKey) -> Result<Begun, ServiceError> {
        let begun = self.catalog.begin_request(request).await?;
        if begun != Begun::Running {
            return Ok(begun);
        }
        let unseen_since = micros(OffsetDateTime::now_utc() - GONE_AFTER);
        if self.catalog.take_from_gone(request, unseen_since).await? {
            tracing::info!(request.scope, "a keyed request of a gateway that is gone is answered here");
            // What the other one may have sent belongs to nobody now.
            if let Err(error) = self.settle_abandoned().await {
                tracing::warn!(error = %chain(&error), "what a gateway that is gone had sent is looked for later");
            }
            return Ok(Begun::First);
        }
        self.settle_abandoned().await?;
        let begun = self.catalog.begin_request(request).await?;
        if begun == Begun::Running && self.disown_earlier(request).await? {
            return Ok(self.catalog.begin_request(request).await?);
        }
        Ok(begun)
    }

    /// Lets a repeat have the key although nobody can ask now whether the object of the earlier one arrived. It would be
    /// a second one, so it belongs to nobody from here on. `false` if the earlier request runs.
    async fn disown_earlier(&self, request: &RequestKey) -> Result<bool, ServiceError> {
        for abandoned in self.catalog.abandoned().await? {
            let is_earlier = abandoned.request.as_ref().is_some_and(|earlier| request.is_repeat_of(earlier));
            if is_earlier && self.remove_stray(&abandoned.key).await {
                self.catalog.take_over_request(request).await?;
                self.catalog.release(&abandoned.key).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// How long another gateway was not seen whose keyed requests may be answered here. It says that it is there several times
/// a minute; should it come back in the middle of one, its commit fails, and its client repeats the request.
const GONE_AFTER: Duration = Duration::from_secs(180);

/// What a form may have beside the file: delimiters, part headers, text fields.
const FORM_OVERHEAD_BYTES: u64 = 64 << 10;

/// An upload on its way in. Dropping it leaves nothing behind.
pub struct Incoming {
    services: Services,
    session: SessionId,
    options: UploadOptions,
    /// What a request with the same idempotency key was answered: then the bytes are only compared.
    earlier: Option<Answered>,
    kind: Option<RecordingType>,
    file: Option<IncomingFile>,
    /// Where the file will go, until it begins.
    writer: Option<SpoolWriter>,
    started: Instant,
    /// Goes into the name.
    at: OffsetDateTime,
    /// Names the spool file, the object's metadata and the row alike.
    upload_id: String,
    /// Until somebody else tells how it ended.
    events: Option<UploadEvents>,
    leftovers: Leftovers,
    _slot: OwnedSemaphorePermit,
    _in_flight: InFlight,
}

struct IncomingFile {
    head: FileHead,
    writer: SpoolWriter,
    received: u64,
    /// The first bytes, until they were looked at.
    first: Vec<u8>,
    media: Option<MediaGuess>,
    leg: Option<CloudLeg>,
}

struct InFlight;

impl Drop for InFlight {
    fn drop(&mut self) {
        metrics::uploads_in_flight(-1.0);
    }
}

/// What an upload took hold of that outlives it in the catalogue or the cloud, given back if the upload comes to
/// nothing.
struct Leftovers {
    services: Services,
    request: Option<RequestKey>,
    names: Vec<ObjectKey>,
    /// An object in the cloud that no row will ever name.
    object: Option<ObjectKey>,
}

impl Leftovers {
    fn none(services: &Services) -> Self {
        Self { services: services.clone(), request: None, names: Vec::new(), object: None }
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let (request, names, object) =
            (self.request.take(), std::mem::take(&mut self.names), self.object.take());
        if request.is_none() && names.is_empty() && object.is_none() {
            return;
        }
        let services = self.services.clone();
        self.services.tasks.spawn(async move {
            let (request, names, object) = services.give_back(request, names, object).await;
            if request.is_some() || !names.is_empty() || object.is_some() {
                tracing::warn!("the catalogue failed; what an upload took of it is given back later");
                services.unsure.add(Unsure { upload: None, request, names, object });
            }
        });
    }
}

impl Services {
    /// Returns what could not be given back now.
    async fn give_back(
        &self,
        mut request: Option<RequestKey>,
        mut names: Vec<ObjectKey>,
        mut object: Option<ObjectKey>,
    ) -> (Option<RequestKey>, Vec<ObjectKey>, Option<ObjectKey>) {
        if let Some(key) = &object
            && self.remove_stray(key).await
        {
            object = None;
        }
        // Its name stays taken until the object is sure to go.
        let mut kept: Vec<ObjectKey> = names.extract_if(.., |name| object.as_ref() == Some(name)).collect();
        for key in names {
            if self.catalog.release(&key).await.is_err() {
                kept.push(key);
            }
        }
        if let Some(key) = &request
            && self.catalog.forget_request(key).await.is_ok()
        {
            request = None;
        }
        (request, kept, object)
    }
}

impl Incoming {
    /// The recording type; may come before, after or between the file's bytes.
    pub fn recording_type(&mut self, kind: RecordingType) {
        self.kind = Some(kind);
    }

    /// Whether the recording type is known already.
    pub fn has_recording_type(&self) -> bool {
        self.kind.is_some()
    }

    /// Whether the file has begun.
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The file begins. Called once. Safe to drop.
    pub fn begin_file(&mut self, head: FileHead) -> Result<(), ServiceError> {
        let mut writer = self.writer.take().ok_or(ServiceError::Unexpected)?;
        if !self.goes_to_the_cloud() {
            writer = writer.unfollowed();
        }
        self.file = Some(IncomingFile {
            head,
            writer,
            received: 0,
            first: Vec::with_capacity(SNIFF_BYTES),
            media: None,
            leg: None,
        });
        Ok(())
    }

    /// The file's next bytes. Safe to drop, after which the upload must be dropped too.
    ///
    /// # Errors
    /// [`ServiceError::TooLarge`] at the first byte over the limit, [`ServiceError::TypeNotAllowed`] as soon as the
    /// bytes show it, [`ServiceError::StorageFull`].
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), ServiceError> {
        let Some(file) = &mut self.file else { return Err(ServiceError::Unexpected) };
        file.received += bytes.len() as u64;
        if file.received > self.services.rules.max_bytes {
            return Err(ServiceError::TooLarge { limit_bytes: self.services.rules.max_bytes });
        }
        if let Some(events) = &mut self.events {
            events.received(file.received);
        }
        if file.media.is_none() {
            let wanted = SNIFF_BYTES.saturating_sub(file.first.len()).min(bytes.len());
            file.first.extend_from_slice(&bytes[..wanted]);
            if file.first.len() >= SNIFF_BYTES {
                self.look_at_first_bytes()?;
            }
        }
        let Some(file) = &mut self.file else { return Err(ServiceError::Unexpected) };
        file.writer.push(bytes).await?;
        if file.leg.is_none() && file.media.is_some() && file.writer.dispatched_bytes() >= AHEAD_BYTES {
            self.start_cloud_leg();
        }
        Ok(())
    }

    fn look_at_first_bytes(&mut self) -> Result<(), ServiceError> {
        let Some(file) = &mut self.file else { return Err(ServiceError::Unexpected) };
        let media = decide(
            sniff(&file.first),
            file.head.declared_type.as_deref(),
            file.head.client_filename.as_deref(),
        );
        if !self.services.rules.types.allows(&media.content_type) {
            return Err(ServiceError::TypeNotAllowed { content_type: media.content_type });
        }
        file.first = Vec::new();
        file.media = Some(media);
        Ok(())
    }

    fn stem(&self, ext: &str) -> NameStem {
        let kind = self.kind.clone().unwrap_or_default();
        NameStem::new(&kind, &self.session, self.at, &self.services.rules.node, ext)
    }

    /// Whether the bytes are sent on while they come.
    fn goes_to_the_cloud(&self) -> bool {
        let only_local = self.options.respond_async || self.earlier.is_some();
        !only_local && self.services.stores.primary_takes_writes()
    }

    /// Sends what is there to the cloud while the rest still comes, under the name the recording will likely have.
    fn start_cloud_leg(&mut self) {
        if !self.goes_to_the_cloud() {
            return;
        }
        let Some((reader, expected_bytes, media, original_filename)) = self.file.as_ref().and_then(|file| {
            let media = file.media.clone()?;
            Some((file.writer.reader(), file.head.expected_bytes, media, file.head.client_filename.clone()))
        }) else {
            return;
        };
        let meta = ObjectMeta {
            content_type: media.content_type,
            upload_id: self.upload_id.clone(),
            sha256: None,
            original_filename,
        };
        let leg = CloudLeg::start(
            &self.services,
            self.session.clone(),
            self.stem(&media.ext),
            reader,
            expected_bytes,
            meta,
            self.leftovers.request.clone(),
        );
        if let Some(file) = &mut self.file {
            file.leg = Some(leg);
        }
    }

    /// The form ended cleanly: checks the bytes, gets them to safety and says where they are. Runs detached, and keeps its
    /// place among the uploads to the end.
    ///
    /// # Errors
    /// After an error nothing is stored.
    pub async fn finish(mut self) -> Result<Receipt, ServiceError> {
        let Some(file) = &mut self.file else { return Err(ServiceError::Unexpected) };
        if file.received == 0 {
            return Err(ServiceError::Empty);
        }
        if file.media.is_none() {
            self.look_at_first_bytes()?;
        }
        let (services, tasks) = (self.services.clone(), self.services.tasks.clone());
        let (started, size) = (self.started, self.file.as_ref().map_or(0, |file| file.received));
        let settle = async move {
            let receipt = settle::settle(self).await;
            let outcome = receipt.as_ref().map_or("failed", |receipt| receipt.landed.metric());
            metrics::upload_ended(outcome, if receipt.is_ok() { size } else { 0 }, started.elapsed());
            if receipt.as_ref().is_ok_and(|r| matches!(r.landed, Landed::CloudUnavailable | Landed::Early)) {
                services.bell.send_replace(());
            }
            if receipt.as_ref().is_ok_and(|receipt| receipt.landed == Landed::Cloud) {
                services.cloud_works();
            }
            receipt
        };
        tasks.spawn(settle).await.unwrap_or(Err(ServiceError::Unexpected))
    }
}

/// How long an answer may be repeated, as a time in the past.
pub(super) fn expiry(now: OffsetDateTime, ttl: Duration) -> i64 {
    micros(now - ttl)
}
