//! Filling a catalogue that is new or was lost from what the stores hold, and taking in files that operators drop
//! into `recordings/`.

use crate::domain::merge::{Sources, merge};
use crate::domain::{ObjectKey, Recording, StoreKind, StoreSet};
use crate::service::{ServiceError, Services};
use crate::storage::{ListScope, chain};

impl Services {
    /// Gives every recording that a store has and the catalogue does not know a row, and every local one a sync job.
    /// Returns how many were new. Safe to drop and to repeat.
    pub async fn adopt_unknown(&self) -> Result<u64, ServiceError> {
        let view = self.catalog.view(&ListScope::Everything).await?;
        let mut known: std::collections::HashSet<_> = view.recordings.into_iter().map(|r| r.key).collect();
        known.extend(view.reserved);
        let listing = self.stores.list(&ListScope::Everything).await;
        let supabase = match listing.primary {
            Ok(objects) => Some(objects),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "looking for unknown recordings without the cloud");
                None
            }
        };
        for object in supabase.iter().flatten().filter(|object| view.deleted.keys.contains(&object.key)) {
            self.delete_late_push(&object.key).await?;
        }
        let sources = Sources {
            recordings: Vec::new(),
            deleted: view.deleted,
            supabase,
            supabase_hides: false,
            local: listing.fallback?,
        };
        let mut unknown: Vec<Recording> = Vec::new();
        for listed in merge(sources) {
            let mut recording = listed.recording;
            if known.contains(&recording.key) {
                continue;
            }
            // A list does not tell what the gateway left with the object; the object itself does.
            if recording.stores.supabase
                && let Ok(Some(object)) = self.stores.head_primary(&recording.key).await
            {
                recording.sha256 = object.sha256;
                recording.original_filename = object.original_filename;
                recording.upload_id = object.upload_id.unwrap_or_default();
            }
            unknown.push(recording);
        }
        let adopted = self.catalog.adopt(&unknown, true).await?;
        if adopted > 0 {
            tracing::info!(adopted, "recordings that the catalogue did not know were taken in");
            self.bell.notify_one();
        }
        Ok(adopted)
    }

    /// Deletes an object that a gateway sent and that landed after its recording was deleted. A name that was
    /// deleted is never given out again, so one with an upload id can be nothing else; what others put there since
    /// is theirs.
    async fn delete_late_push(&self, key: &ObjectKey) -> Result<(), ServiceError> {
        if let Ok(Some(object)) = self.stores.head_primary(key).await
            && object.upload_id.is_some()
        {
            self.catalog.entomb(key, StoreSet::only(StoreKind::Supabase)).await?;
            self.bell.notify_one();
        }
        Ok(())
    }
}
