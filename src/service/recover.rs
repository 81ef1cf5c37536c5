//! What an earlier process left in the middle: uploads that were promised and whose file had not found its place, and
//! names reserved for objects of which nobody knows whether they arrived.
//!
//! Invariant: an upload is promised when its row is written. Its bytes are then in the spool under its upload id or in
//! their place, never elsewhere; so a spool file with a row is a recording, and one without is nothing.

use crate::catalog::{Abandoned, Arrival, CatalogError};
use crate::domain::merge::StoredObject;
use crate::domain::recording::to_microseconds;
use crate::domain::{Durability, Recording, StoreKind, StoreSet};
use crate::service::upload::{Landed, receipt_of};
use crate::service::{ServiceError, Services};
use crate::spool::{Leftover, SpoolReader};
use crate::storage::{Kind, ObjectMeta, chain};

impl Services {
    /// Puts promised recordings that a crash kept from their place there, and removes the rest of the spool. Called
    /// before the first request. Returns how many were put in place and how many removed.
    pub async fn recover_spool(&self) -> Result<(usize, usize), ServiceError> {
        let (mut placed, mut removed) = (0, 0);
        for leftover in self.spool.leftovers()? {
            let row = match &leftover.upload_id {
                Some(id) => self.catalog.get_by_upload(id).await?,
                None => None,
            };
            if self.take_up(leftover, row).await? {
                placed += 1;
            } else {
                removed += 1;
            }
        }
        Ok((placed, removed))
    }

    /// Puts a file left in the spool in its place if its row wants it there, else removes it. Returns whether it did.
    pub(super) async fn take_up(
        &self,
        leftover: Leftover,
        row: Option<Recording>,
    ) -> Result<bool, ServiceError> {
        let row = row.filter(|row| row.stores.local && row.held_by.is_none());
        let wanted = match row {
            // A file that is shorter than the row says was never synced, so never promised.
            Some(row) if row.size_bytes == leftover.size_bytes => {
                match self.stores.fallback().head(&row.key).await? {
                    None => Some(row),
                    // It has its place already, under both names where renaming takes two steps.
                    Some(file) if file.size_bytes == row.size_bytes => None,
                    Some(_) => {
                        tracing::error!(
                            object.key = %row.key,
                            "another file has the place of a recording that was promised; move it away and start again"
                        );
                        return Ok(false);
                    }
                }
            }
            _ => None,
        };
        match wanted {
            Some(row) => {
                let source = leftover.open(self.spool.blocks().clone())?;
                if let Err(error) = self.place(&row, &source).await {
                    // It was promised: whatever stands in the way, it stays for the next start.
                    source.leave();
                    return Err(error);
                }
                self.unless_deleted(&row.key).await;
                Ok(true)
            }
            None => {
                leftover.remove()?;
                Ok(false)
            }
        }
    }

    async fn place(&self, row: &Recording, source: &SpoolReader) -> Result<(), ServiceError> {
        let meta = ObjectMeta {
            content_type: row.content_type.clone(),
            upload_id: row.upload_id.clone(),
            sha256: row.sha256,
            original_filename: row.original_filename.clone(),
        };
        match self.stores.put_fallback(&row.key, source, &meta).await {
            Err(error) if error.kind != Kind::AlreadyExists => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Looks for the objects of uploads that a crash ended before their answer: one that is there becomes a recording
    /// and the answer to its keyed request; the name of one that is not is given back. What the cloud cannot be asked
    /// about stays for the next time. Safe to drop and to repeat.
    pub async fn settle_abandoned(&self) -> Result<(), ServiceError> {
        for abandoned in self.catalog.abandoned().await? {
            match self.stores.head_primary(&abandoned.key).await {
                Ok(Some(object)) if object.upload_id.as_ref() == Some(&abandoned.upload_id) => {
                    if abandoned.settled {
                        if self.remove_stray(&abandoned.key).await {
                            self.give_up(&abandoned).await?;
                        }
                        continue;
                    }
                    self.take_in(abandoned, object).await?;
                }
                // Nothing came of it. What was sent may land later and belongs to nobody then: the tombstone hides it, and
                // it is found and deleted.
                Ok(None) => {
                    let keys = std::slice::from_ref(&abandoned.key);
                    self.catalog.entomb(keys, StoreSet::default(), &self.origin).await?;
                    self.give_up(&abandoned).await?;
                }
                // The name is somebody else's.
                Ok(Some(_)) => self.give_up(&abandoned).await?,
                Err(_) if !self.stores.has_primary() => self.give_up(&abandoned).await?,
                Err(error) => {
                    tracing::debug!(object.key = %abandoned.key, error = %chain(&error), "not known yet whether it arrived");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn give_up(&self, abandoned: &Abandoned) -> Result<(), ServiceError> {
        self.catalog.release(&abandoned.key).await?;
        if let Some(request) = &abandoned.request {
            self.catalog.forget_request(request).await?;
        }
        Ok(())
    }

    async fn take_in(&self, abandoned: Abandoned, object: StoredObject) -> Result<(), ServiceError> {
        // The cloud may have kept a part of it and called that a success; and where the bytes went before their digest was
        // known, a repeat of the request is compared by this one.
        let Ok(sha256) = self.read_back(&abandoned.key).await else { return Ok(()) };
        if object.sha256.is_some_and(|sent| sent != sha256) {
            tracing::warn!(object.key = %abandoned.key, "the cloud kept a part of an upload that a crash cut off; it is removed");
            if self.remove_stray(&abandoned.key).await {
                self.give_up(&abandoned).await?;
            }
            return Ok(());
        }
        let key = abandoned.key;
        let recording = Recording {
            size_bytes: object.size_bytes,
            sha256: Some(sha256),
            content_type: object.content_type.unwrap_or_else(|| "application/octet-stream".to_owned()),
            original_filename: object.original_filename,
            durability: Durability::Cloud,
            stores: StoreSet::only(StoreKind::Supabase),
            held_by: None,
            uploaded_at: to_microseconds(object.modified_at),
            parked_reason: None,
            upload_id: abandoned.upload_id,
            key,
        };
        tracing::info!(object.key = %recording.key, "an upload that a crash cut off before its answer is in the cloud");
        // The name begins with the recording type.
        let name = recording.key.filename.as_str();
        let kind =
            name.split_once(&format!("_recording_{}_", recording.key.session)).map_or(name, |(kind, _)| kind);
        let fingerprint = format!("{} {kind}", recording.sha256.map(|d| d.to_string()).unwrap_or_default());
        let url = self.stores.public_url(&recording.key);
        let answer = |recording: &Recording| {
            serde_json::to_string(&receipt_of(recording, Landed::Cloud, url.clone())).unwrap_or_default()
        };
        let arrival = Arrival {
            recording: &recording,
            name_from: None,
            sync: false,
            parent: None,
            request: abandoned.request.as_ref().map(|request| (request, fingerprint.as_str())),
            answer: &answer,
        };
        match self.catalog.commit(arrival, &self.origin).await {
            // Whoever sent it again had it settled at the same moment.
            Ok(_) | Err(CatalogError::Taken(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
