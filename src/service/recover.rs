//! What an earlier process left in the middle: uploads that were promised and whose file had not found its place, and
//! names reserved for objects of which nobody knows whether they arrived.
//!
//! Invariant: an upload is promised when its row is written. Its bytes are then in the spool under its upload id or in
//! their place, never elsewhere; so a spool file with a row is a recording, and one without is nothing, unless a note
//! says that it is complete.

use crate::domain::{Recording, StoreSet};
use crate::service::{ServiceError, Services};
use crate::spool::{Leftover, SpoolReader};
use crate::storage::{ObjectMeta, StorageError, chain};

impl Services {
    /// Puts promised recordings that a crash kept from their place there, makes recordings of uploads that were complete
    /// and waited for the cloud, and removes the rest of the spool. Called before the first request. Returns how many
    /// were put in place and how many removed.
    pub async fn recover_spool(&self) -> Result<(usize, usize), ServiceError> {
        let (mut placed, mut removed) = (0, 0);
        for leftover in self.spool.leftovers()? {
            let row = match &leftover.upload_id {
                Some(id) => self.catalog.get_by_upload(id).await?,
                None => None,
            };
            let kept = match row {
                None => match self.keep_whole(&leftover).await {
                    Ok(kept) => kept,
                    Err(error) => {
                        tracing::error!(
                            spool.file = leftover.name(), error = %chain(&error),
                            "a complete upload of an earlier run could not be kept; it is tried again at the next start"
                        );
                        continue;
                    }
                },
                Some(_) => false,
            };
            if kept || self.take_up(leftover, row).await? {
                placed += 1;
            } else {
                removed += 1;
            }
        }
        self.spool.remove_lone_notes()?;
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
                    // It has its place already.
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
                    // It was promised: whatever stands in the way, also what is no recording's file, it stays for the next
                    // start.
                    tracing::error!(
                        object.key = %row.key, spool.file = leftover.name(), error = %chain(&error),
                        "a recording that was promised cannot get its place; clear that and start again"
                    );
                    return Ok(false);
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

    async fn place(&self, row: &Recording, source: &SpoolReader) -> Result<(), StorageError> {
        let meta = ObjectMeta {
            content_type: row.content_type.clone(),
            upload_id: row.upload_id.clone(),
            sha256: row.sha256,
            original_filename: row.original_filename.clone(),
        };
        self.stores.put_fallback(&row.key, source, &meta).await
    }

    /// Looks for the objects of uploads that a crash cut off, under the names that no recording took: one that is there
    /// is removed, the name is given back. What the cloud cannot be asked about stays for the next time. Safe to drop
    /// and to repeat.
    pub async fn settle_abandoned(&self) -> Result<(), ServiceError> {
        for abandoned in self.catalog.abandoned().await? {
            match self.stores.head_primary(&abandoned.key).await {
                // Its upload was not whole when it was cut off, or is a recording by another name.
                Ok(Some(object)) if object.upload_id.as_ref() == Some(&abandoned.upload_id) => {
                    if self.remove_stray(&abandoned.key).await {
                        self.catalog.give_up(&abandoned).await?;
                    }
                }
                // Nothing came of it. What was sent may land later and belongs to nobody then: the tombstone hides it, and
                // it is found and deleted.
                Ok(None) => {
                    let keys = std::slice::from_ref(&abandoned.key);
                    self.catalog.entomb(keys, StoreSet::default(), &self.origin).await?;
                    self.catalog.give_up(&abandoned).await?;
                }
                // The name is somebody else's.
                Ok(Some(_)) => self.catalog.give_up(&abandoned).await?,
                Err(_) if !self.stores.has_primary() => self.catalog.give_up(&abandoned).await?,
                Err(error) => {
                    tracing::debug!(object.key = %abandoned.key, error = %chain(&error), "not known yet whether it arrived");
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
