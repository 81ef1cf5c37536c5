//! The end of an upload: checks on the bytes, then the cloud or the disk, then the catalogue, then the answer.

mod whole;

use time::OffsetDateTime;

use super::cloud::{CloudLeg, MOST_NAMES};
use super::unsure::Unsure;
use super::{Incoming, Landed, Leftovers, Receipt, expiry};
use crate::catalog::{Arrival, CatalogError, RequestKey};
use crate::domain::recording::{micros, to_microseconds};
use crate::domain::{Durability, NameStem, ObjectKey, Recording, SessionId, StoreKind, StoreSet};
use crate::service::{ServiceError, Services};
use crate::spool::SpoolReader;
use crate::storage::tiered::PrimaryError;
use crate::storage::{Kind, ObjectMeta, Outcome, chain};

/// A complete upload whose bytes passed every check.
struct Complete {
    services: Services,
    session: SessionId,
    stem: NameStem,
    source: SpoolReader,
    size_bytes: u64,
    meta: ObjectMeta,
    leg: Option<CloudLeg>,
    respond_async: bool,
    parent_job: Option<String>,
    fingerprint: String,
    leftovers: Leftovers,
    /// The keyed request, while its answer may still have to be taken back.
    request: Option<RequestKey>,
}

/// Not to be dropped: from the published end on the recording is kept, whether its client waits or not.
pub(super) async fn settle(mut incoming: Incoming) -> Result<Receipt, ServiceError> {
    let Some(mut file) = incoming.file.take() else { return Err(ServiceError::Unexpected) };
    let Some(media) = file.media.take() else { return Err(ServiceError::Unexpected) };
    let spooled = file.writer.finish().await?;
    let expected = [incoming.options.expected_digest, file.head.expected_digest];
    if expected.into_iter().flatten().any(|digest| digest != spooled.sha256) {
        return Err(ServiceError::DigestMismatch);
    }
    let kind = incoming.kind.clone().unwrap_or_default();
    let fingerprint = format!("{} {}", spooled.sha256, kind);
    if let Some(earlier) = &incoming.earlier {
        if earlier.fingerprint != fingerprint {
            return Err(ServiceError::RequestDiffers);
        }
        let receipt = serde_json::from_str(&earlier.answer).map_err(|_| ServiceError::Unexpected);
        if let Some(events) = incoming.events.take() {
            events.ended(&receipt);
        }
        return receipt;
    }
    let leg = file.leg.take();
    let complete = Complete {
        stem: incoming.stem(&media.ext),
        session: incoming.session.clone(),
        size_bytes: spooled.size_bytes,
        meta: ObjectMeta {
            upload_id: incoming.upload_id.clone(),
            content_type: media.content_type,
            sha256: Some(spooled.sha256),
            original_filename: file.head.client_filename.clone(),
        },
        leg,
        respond_async: incoming.options.respond_async,
        parent_job: incoming.options.parent_job.take(),
        fingerprint,
        request: None,
        leftovers: std::mem::replace(&mut incoming.leftovers, Leftovers::none(&incoming.services)),
        // From here on the cloud may have the last block.
        source: spooled.publish(),
        services: incoming.services.clone(),
    };
    let receipt = complete.keep().await;
    if let Some(events) = incoming.events.take() {
        events.ended(&receipt);
    }
    receipt
}

impl Complete {
    async fn keep(mut self) -> Result<Receipt, ServiceError> {
        let note = self.waits_for_the_cloud().then(|| self.note()).flatten();
        let tried = self.try_cloud().await;
        drop(note);
        match tried? {
            (Some(key), Ok(())) => {
                let public_url = self.services.stores.public_url(&key);
                let recording = self.recording(key, StoreKind::Supabase, None);
                let stored = self.commit(&recording, None, &Landed::Cloud, public_url).await?;
                Ok(stored)
            }
            (key, Err(error)) => self.keep_here(key, error).await,
            (None, Ok(())) => Err(ServiceError::Unexpected),
        }
    }

    fn recording(&self, key: ObjectKey, store: StoreKind, parked_reason: Option<String>) -> Recording {
        let in_cloud = store == StoreKind::Supabase;
        Recording {
            key,
            size_bytes: self.size_bytes,
            sha256: self.meta.sha256,
            content_type: self.meta.content_type.clone(),
            original_filename: self.meta.original_filename.clone(),
            durability: if in_cloud { Durability::Cloud } else { Durability::Local },
            stores: StoreSet::only(store),
            held_by: None,
            uploaded_at: to_microseconds(OffsetDateTime::now_utc()),
            parked_reason,
            upload_id: self.meta.upload_id.clone(),
        }
    }

    fn waits_for_the_cloud(&self) -> bool {
        self.services.stores.has_primary() && !self.respond_async
    }

    /// Tries the cloud. The name, if one was taken, is in the leftovers.
    async fn try_cloud(&mut self) -> Result<(Option<ObjectKey>, Result<(), PrimaryError>), ServiceError> {
        if self.respond_async && self.services.stores.has_primary() {
            return Ok((
                None,
                Err(PrimaryError::LeftAlone { cause: "the client asked for an early answer".into() }),
            ));
        }
        let leg = match self.leg.take() {
            Some(leg) => leg,
            None if !self.services.stores.has_primary() => {
                return Ok((None, Err(PrimaryError::NotConfigured)));
            }
            None => CloudLeg::start(
                &self.services,
                self.session.clone(),
                self.stem.clone(),
                self.source.clone(),
                Some(self.size_bytes),
                self.meta.clone(),
                self.leftovers.request.clone(),
            ),
        };
        let likely = leg.stem.clone();
        let arrived = leg.arrived().await;
        let (key, _) = arrived.name?;
        self.leftovers.names.push(key.clone());
        // Also what may have arrived: if the recording gets another name or none, it belongs to nobody.
        if arrived.result.as_ref().err().is_none_or(|error| error.outcome() == Outcome::Unknown) {
            self.leftovers.object = Some(key.clone());
        }
        if likely == self.stem {
            return Ok((Some(key), arrived.result));
        }
        // The recording type came after the file and is another: the name changes.
        match arrived.result {
            Ok(()) => self.rename_in_cloud(key).await,
            Err(error) => Ok((None, Err(error))),
        }
    }

    async fn rename_in_cloud(
        &mut self,
        from: ObjectKey,
    ) -> Result<(Option<ObjectKey>, Result<(), PrimaryError>), ServiceError> {
        let (mut next, mut names) = (1, 0);
        loop {
            names += 1;
            let (to, n) = self.take_name(next).await?;
            match self.services.stores.rename_primary(&from, &to).await {
                Ok(()) => {
                    self.leftovers.object = Some(to.clone());
                    // A try that was lost on its way may land there later: the tombstone hides it, and it is deleted.
                    let left = std::slice::from_ref(&from);
                    self.services.catalog.entomb(left, StoreSet::default(), &self.services.origin).await?;
                    return Ok((Some(to), Ok(())));
                }
                Err(error) if error.name_is_taken() && names < MOST_NAMES => next = n + 1,
                // The object under the likely name is removed as a leftover when the disk has the recording. That it may
                // not be renamed says nothing of sending it under the right name, so this must not park it.
                Err(error) => return Ok((Some(to), Err(PrimaryError::LeftAlone { cause: chain(&error) }))),
            }
        }
    }

    async fn take_name(&mut self, first: u32) -> Result<(ObjectKey, u32), ServiceError> {
        let (id, request) = (&self.meta.upload_id, self.leftovers.request.as_ref());
        let (filename, n) =
            self.services.catalog.reserve(&self.session, &self.stem, first, id, request).await?;
        let key = ObjectKey::new(self.session.clone(), filename);
        self.leftovers.names.push(key.clone());
        Ok((key, n))
    }

    /// Keeps the recording here. `name` is reserved already if there is one.
    ///
    /// First the bytes are safe in the spool, then the row promises them, then the file goes to its place: a crash
    /// between the steps leaves a spool file without a row, which is nothing, or one with a row, which the next start
    /// puts in its place.
    async fn keep_here(
        &mut self,
        name: Option<ObjectKey>,
        why: PrimaryError,
    ) -> Result<Receipt, ServiceError> {
        let landed = match &why {
            PrimaryError::NotConfigured => Landed::Local,
            PrimaryError::LeftAlone { .. } if self.respond_async => Landed::Early,
            error => match error.parks() {
                Some(reason) if !self.may_go_in_pieces(error) => Landed::Parked(reason.to_owned()),
                _ => Landed::CloudUnavailable,
            },
        };
        if !matches!(landed, Landed::Local | Landed::Early) {
            tracing::warn!(
                session.id = %self.session, error = %chain(&why),
                outcome_unknown = why.outcome() == Outcome::Unknown,
                "the cloud did not take a recording; it is kept here"
            );
        }
        let parked = if let Landed::Parked(reason) = &landed { Some(reason.clone()) } else { None };
        self.source.make_safe().await?;
        let (mut reserved, mut first) = (name, 1);
        loop {
            let place = match &reserved {
                Some(key) => key.clone(),
                None => ObjectKey::new(self.session.clone(), self.stem.nth(first)),
            };
            // A file that somebody dropped there has this name.
            if self.services.stores.fallback().head(&place).await?.is_some() {
                reserved = None;
                first += u32::from(place.filename == self.stem.nth(first));
                continue;
            }
            let from = if reserved.is_some() { None } else { Some(first) };
            let recording = self.recording(place, StoreKind::Local, parked.clone());
            let object = self.leftovers.object.clone();
            // From here on it may be promised, however this ends: only a certain no lets the bytes go.
            self.source.leave();
            let receipt = self.commit(&recording, from, &landed, None).await?;
            let key = ObjectKey::parse(&receipt.file_path).ok_or(ServiceError::Unexpected)?;
            match self.services.stores.put_fallback(&key, &self.source, &self.meta).await {
                Ok(()) => {
                    self.services.unless_deleted(&key).await;
                    return Ok(receipt);
                }
                Err(error) => {
                    let (id, request) = (&self.meta.upload_id, self.request.as_ref());
                    let retracted = match self.services.catalog.retract(&key, id, request).await {
                        Ok(retracted) => retracted,
                        Err(error) => {
                            // Promised after all, perhaps.
                            self.leave_unsure();
                            return Err(error.into());
                        }
                    };
                    self.source.reclaim();
                    if !retracted {
                        // Deleted meanwhile, which was the later word: it gets no other name, and its bytes go.
                        return Ok(receipt);
                    }
                    // What stands in its place is not known by this name any more.
                    self.services.known_files.forget(&key.session);
                    (self.leftovers.request, self.leftovers.object) = (self.request.take(), object);
                    self.leftovers.names.push(key);
                    if error.kind != Kind::AlreadyExists {
                        return Err(error.into());
                    }
                    (reserved, first) = (None, first + 1);
                }
            }
        }
    }

    /// Whether it was too large for one request only: the background has another way, and parks it if that is refused too.
    fn may_go_in_pieces(&self, error: &PrimaryError) -> bool {
        let probed = self.services.stores.primary_status().and_then(|status| status.probed);
        let limit = probed.and_then(|probe| probe.max_object_bytes);
        error.is_too_large() && limit.is_none_or(|limit| self.size_bytes <= limit)
    }

    /// The bytes stay in the spool until the catalogue says what they are.
    fn leave_unsure(&self) {
        self.source.leave();
        let upload = Some((self.session.clone(), self.meta.upload_id.clone()));
        self.services.unsure.add(Unsure { upload, request: None, names: Vec::new(), object: None });
    }

    /// Writes the row, which is the promise. `from` is where the name is counted from if it was not reserved.
    async fn commit(
        &mut self,
        recording: &Recording,
        from: Option<u32>,
        landed: &Landed,
        public_url: Option<String>,
    ) -> Result<Receipt, ServiceError> {
        self.request = self.leftovers.request.clone();
        let receipt = |recording: &Recording| receipt_of(recording, landed.clone(), public_url.clone());
        let answer =
            |recording: &Recording| serde_json::to_string(&receipt(recording)).expect("a receipt is JSON");
        let arrival = Arrival {
            recording,
            name_from: from.map(|from| (&self.stem, from)),
            sync: matches!(landed, Landed::CloudUnavailable | Landed::Early),
            parent: self.parent_job.as_deref(),
            request: self.request.as_ref().map(|request| (request, self.fingerprint.as_str())),
            answer: &answer,
        };
        let kept = match self.services.catalog.commit(arrival, &self.services.origin).await {
            Ok(kept) => kept,
            // A connection that broke at the last moment does not tell whether it was written.
            Err(error) => match self.services.catalog.committed(&self.session, &recording.upload_id).await {
                Ok(Some(kept)) => kept,
                Ok(None) => {
                    // These failed before anything was flushed.
                    let was_flushed = !matches!(
                        error,
                        CatalogError::Taken(_) | CatalogError::Full(_) | CatalogError::RequestLost
                    );
                    if was_flushed && self.services.make_sure_of_nothing(&self.session).await.is_err() {
                        self.leave_unsure();
                    } else {
                        self.source.reclaim();
                    }
                    return Err(error.into());
                }
                Err(_) => {
                    // Nothing is given back or removed before it is known what was promised.
                    self.source.leave();
                    let mut leftovers =
                        std::mem::replace(&mut self.leftovers, Leftovers::none(&self.services));
                    self.services.unsure.add(Unsure {
                        upload: Some((self.session.clone(), recording.upload_id.clone())),
                        request: leftovers.request.take(),
                        names: std::mem::take(&mut leftovers.names),
                        object: leftovers.object.take(),
                    });
                    return Err(error.into());
                }
            },
        };
        self.leftovers.belong_to(&kept.key);
        if self.request.is_some() {
            let older = expiry(OffsetDateTime::now_utc(), self.services.rules.idempotency_ttl);
            if let Err(error) = self.services.catalog.expire_requests(older).await {
                tracing::warn!(error = %chain(&error), "old answers stay in the catalogue");
            }
        }
        Ok(receipt(&kept))
    }
}

impl Leftovers {
    /// A row keeps the name, the answer, and what may have arrived in the bucket under the name.
    pub(super) fn belong_to(&mut self, key: &ObjectKey) {
        self.names.retain(|name| name != key);
        self.request = None;
        if self.object.as_ref() == Some(key) {
            self.object = None;
        }
    }
}

fn receipt_of(recording: &Recording, landed: Landed, public_url: Option<String>) -> Receipt {
    let storage = if recording.stores.supabase { StoreKind::Supabase } else { StoreKind::Local };
    Receipt {
        file_path: recording.key.to_string(),
        session_id: recording.key.session.to_string(),
        filename: recording.key.filename.to_string(),
        file_size: recording.size_bytes,
        sha256: recording.sha256.map(|digest| digest.to_string()).unwrap_or_default(),
        content_type: recording.content_type.clone(),
        original_filename: recording.original_filename.clone(),
        durability: recording.durability.as_str().to_owned(),
        storage_type: storage.as_str().to_owned(),
        public_url,
        uploaded_at_us: micros(recording.uploaded_at),
        landed,
    }
}
