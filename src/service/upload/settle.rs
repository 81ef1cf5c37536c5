//! The end of an upload: checks on the bytes, then the cloud or the disk, then the catalogue, then the answer.

use time::OffsetDateTime;

use super::cloud::CloudLeg;
use super::{Incoming, Landed, Leftovers, Receipt, expiry};
use crate::catalog::Answered;
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
    fingerprint: String,
    leftovers: Leftovers,
}

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
        return serde_json::from_str(&earlier.answer).map_err(|_| ServiceError::Unexpected);
    }
    let leg = file.leg.take();
    let complete = Complete {
        stem: incoming.stem(&media.ext),
        session: incoming.session.clone(),
        size_bytes: spooled.size_bytes,
        meta: ObjectMeta {
            upload_id: leg
                .as_ref()
                .map_or_else(|| uuid::Uuid::now_v7().to_string(), |leg| leg.meta.upload_id.clone()),
            content_type: media.content_type,
            sha256: Some(spooled.sha256),
            original_filename: file.head.client_filename.clone(),
        },
        leg,
        respond_async: incoming.options.respond_async,
        fingerprint,
        leftovers: std::mem::replace(&mut incoming.leftovers, Leftovers::none(&incoming.services)),
        // From here on the cloud may have the last block.
        source: spooled.publish(),
        services: incoming.services.clone(),
    };
    let tasks = incoming.services.tasks.clone();
    // The client may go away now; the recording is complete and will be kept.
    tasks.spawn(complete.keep()).await.unwrap_or(Err(ServiceError::Unexpected))
}

impl Complete {
    async fn keep(mut self) -> Result<Receipt, ServiceError> {
        let (key, landed) = match self.try_cloud().await? {
            (Some(key), Ok(())) => (key, Landed::Cloud),
            (key, Err(error)) => self.keep_here(key, error).await?,
            (None, Ok(())) => return Err(ServiceError::Unexpected),
        };
        let stored_in = if landed == Landed::Cloud { StoreKind::Supabase } else { StoreKind::Local };
        let recording = Recording {
            key: key.clone(),
            size_bytes: self.size_bytes,
            sha256: self.meta.sha256,
            content_type: self.meta.content_type.clone(),
            original_filename: self.meta.original_filename.clone(),
            durability: if landed == Landed::Cloud { Durability::Cloud } else { Durability::Local },
            stores: StoreSet::only(stored_in),
            uploaded_at: to_microseconds(OffsetDateTime::now_utc()),
            parked_reason: if let Landed::Parked(reason) = &landed { Some(reason.clone()) } else { None },
            upload_id: self.meta.upload_id.clone(),
        };
        let public_url = (landed == Landed::Cloud).then(|| self.services.stores.public_url(&key)).flatten();
        let receipt = receipt_of(&recording, landed, public_url);
        self.remember(&recording, &receipt).await?;
        Ok(receipt)
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
        let mut next = 1;
        loop {
            let (to, n) = self.take_name(next).await?;
            match self.services.stores.rename_primary(&from, &to).await {
                Ok(()) => {
                    self.leftovers.object = Some(to.clone());
                    return Ok((Some(to), Ok(())));
                }
                Err(error) if error.name_is_taken() => next = n + 1,
                // The object under the likely name is removed as a leftover when the disk has the recording. That it may
                // not be renamed says nothing of sending it under the right name, so this must not park it.
                Err(error) => return Ok((Some(to), Err(PrimaryError::LeftAlone { cause: chain(&error) }))),
            }
        }
    }

    async fn take_name(&mut self, first: u32) -> Result<(ObjectKey, u32), ServiceError> {
        let (filename, n) = self.services.catalog.reserve(&self.session, &self.stem, first).await?;
        let key = ObjectKey::new(self.session.clone(), filename);
        self.leftovers.names.push(key.clone());
        Ok((key, n))
    }

    /// Keeps the recording here. `name` is reserved already if there is one.
    async fn keep_here(
        &mut self,
        name: Option<ObjectKey>,
        why: PrimaryError,
    ) -> Result<(ObjectKey, Landed), ServiceError> {
        let landed = match &why {
            PrimaryError::NotConfigured => Landed::Local,
            PrimaryError::LeftAlone { .. } if self.respond_async => Landed::Early,
            error => match error.parks() {
                Some(reason) => Landed::Parked(reason.to_owned()),
                None => Landed::CloudUnavailable,
            },
        };
        if !matches!(landed, Landed::Local | Landed::Early) {
            tracing::warn!(
                session.id = %self.session, error = %chain(&why),
                outcome_unknown = why.outcome() == Outcome::Unknown,
                "the cloud did not take a recording; it is kept here"
            );
        }
        let (mut key, mut next) = match name {
            Some(key) => (key, 1),
            None => {
                let (key, n) = self.take_name(1).await?;
                (key, n + 1)
            }
        };
        loop {
            match self.services.stores.put_fallback(&key, &self.source, &self.meta).await {
                Ok(()) => return Ok((key, landed)),
                // A file that somebody dropped there has this name.
                Err(error) if error.kind == Kind::AlreadyExists => {
                    let (other, n) = self.take_name(next).await?;
                    (key, next) = (other, n + 1);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn remember(mut self, recording: &Recording, receipt: &Receipt) -> Result<(), ServiceError> {
        let answered = Answered {
            fingerprint: std::mem::take(&mut self.fingerprint),
            answer: serde_json::to_string(receipt).map_err(|_| ServiceError::Unexpected)?,
        };
        let request = self.leftovers.request.clone();
        let sync = matches!(receipt.landed, Landed::CloudUnavailable | Landed::Early);
        let kept =
            self.services.catalog.commit(recording, sync, request.as_ref().map(|r| (r, &answered))).await;
        if let Err(error) = kept {
            // Not promised: the bytes go again, as if the upload had never been.
            if recording.stores.local
                && let Err(error) = self.services.stores.fallback().delete(&recording.key).await
            {
                tracing::error!(object.key = %recording.key, error = %chain(&error), "a file without a row stays on the disk");
            }
            return Err(error.into());
        }
        self.leftovers.names.retain(|name| *name != recording.key);
        self.leftovers.request = None;
        if self.leftovers.object.as_ref() == Some(&recording.key) {
            self.leftovers.object = None;
        }
        if request.is_some() {
            let older = expiry(OffsetDateTime::now_utc(), self.services.rules.idempotency_ttl);
            if let Err(error) = self.services.catalog.expire_requests(older).await {
                tracing::warn!(error = %chain(&error), "old answers stay in the catalogue");
            }
        }
        Ok(())
    }
}

impl Leftovers {
    fn none(services: &Services) -> Self {
        Self { services: services.clone(), request: None, names: Vec::new(), object: None }
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
