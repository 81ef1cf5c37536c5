//! Filling a catalogue that is new or was lost from what the stores hold, and taking in files that operators drop
//! into `recordings/`.

use std::collections::HashSet;
use std::time::Duration;

use time::OffsetDateTime;

use crate::domain::merge::{Sources, StoredObject, merge};
use crate::domain::{ObjectKey, Recording, StoreKind, StoreSet};
use crate::service::{ServiceError, Services};
use crate::storage::ListScope;

/// The fact that the bucket was taken in.
const TAKEN_IN: &str = "bucket_taken_in";

/// A file that changed more recently may still be being copied here.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

impl Services {
    /// Gives every file on the local disk that the catalogue does not know a row and, with a cloud, a sync job.
    /// Returns how many were new. Safe to drop and to repeat.
    pub async fn adopt_local(&self) -> Result<u64, ServiceError> {
        let view = self.catalog.view(&ListScope::Everything).await?;
        let known: HashSet<ObjectKey> = view.recordings.into_iter().map(|row| row.key).collect();
        let settled = OffsetDateTime::now_utc() - SETTLED_AFTER;
        let mut local = self.stores.fallback().list(&ListScope::Everything).await?;
        local.retain(|object| !known.contains(&object.key) && object.modified_at <= settled);
        let rows = merge(Sources { deleted: view.deleted, local, ..Sources::default() });
        self.adopt(rows.into_iter().map(|row| row.recording).collect()).await
    }

    /// Takes in what the bucket holds, once in a catalogue's life: a lost one comes back so. Safe to drop and to repeat.
    pub async fn adopt_cloud_once(&self) -> Result<(), ServiceError> {
        if !self.stores.has_primary() || self.catalog.fact(TAKEN_IN).await?.is_some() {
            return Ok(());
        }
        if self.adopt_cloud().await?.is_some() {
            self.catalog.set_fact(TAKEN_IN, &self.rules.bucket).await?;
        }
        Ok(())
    }

    /// Gives every object in the bucket that the catalogue does not know a row, with what the gateway once left with
    /// it. `None` if the cloud cannot be asked now. Safe to drop and to repeat.
    pub async fn adopt_cloud(&self) -> Result<Option<u64>, ServiceError> {
        let view = self.catalog.view(&ListScope::Everything).await?;
        let known: HashSet<ObjectKey> = view.recordings.into_iter().map(|row| row.key).collect();
        let listing = self.stores.list(&ListScope::Everything).await;
        let (Ok(objects), local) = (listing.primary, listing.fallback?) else { return Ok(None) };
        let mut unknown: Vec<StoredObject> = Vec::new();
        for object in objects.into_iter().filter(|object| !known.contains(&object.key)) {
            // A list does not tell what travels with an object; the object itself does. What carries no upload id
            // was put there by others, who may take it away again: it is listed without a row.
            match self.stores.head_primary(&object.key).await {
                Ok(found) => unknown.extend(found.filter(|object| object.upload_id.is_some())),
                Err(_) => return Ok(None),
            }
        }
        let rows =
            merge(Sources { deleted: view.deleted, supabase: Some(unknown), local, ..Sources::default() });
        let in_cloud =
            rows.into_iter().map(|row| row.recording).filter(|recording| recording.stores.supabase);
        self.adopt(in_cloud.collect()).await.map(Some)
    }

    /// Deletes objects that a gateway sent and that landed after their recording was deleted. A name that was deleted
    /// is never given out again, so one with an upload id can be nothing else; what others put there since is
    /// theirs. Safe to drop and to repeat.
    pub async fn delete_late_pushes(&self) -> Result<(), ServiceError> {
        let deleted = self.catalog.view(&ListScope::Everything).await?.deleted.keys;
        if deleted.is_empty() {
            return Ok(());
        }
        let Ok(objects) = self.stores.list(&ListScope::Everything).await.primary else { return Ok(()) };
        for object in objects.into_iter().filter(|object| deleted.contains(&object.key)) {
            if let Ok(Some(found)) = self.stores.head_primary(&object.key).await
                && found.upload_id.is_some()
            {
                let cloud = StoreSet::only(StoreKind::Supabase);
                self.catalog.entomb(&[object.key], cloud, &self.origin).await?;
                self.bell.send_replace(());
            }
        }
        Ok(())
    }

    async fn adopt(&self, unknown: Vec<Recording>) -> Result<u64, ServiceError> {
        if unknown.is_empty() {
            return Ok(0);
        }
        let adopted = self.catalog.adopt(&unknown, self.stores.has_primary(), &self.origin).await?;
        if adopted > 0 {
            tracing::info!(adopted, "recordings that the catalogue did not know were taken in");
            self.bell.send_replace(());
        }
        Ok(adopted)
    }
}
