//! Downloads: the bytes of a recording from wherever they are, or the address where they can be had.

use std::ops::Range;

use crate::domain::merge::Listed;
use crate::domain::{ObjectKey, Recording, StoreKind};
use crate::service::{ServiceError, Services};
use crate::storage::OpenObject;
use crate::storage::tiered::ObjectUrl;

impl Services {
    /// What to serve for `key` and from which store. The local copy is preferred: it costs nobody anything.
    ///
    /// Safe to drop.
    pub async fn locate(&self, key: &ObjectKey) -> Result<(Listed, StoreKind), ServiceError> {
        // What was deleted has no row. With one that names this disk and a file there is no need to ask the cloud. A file
        // that the row does not name may be another's: left by a crash before its upload was answered, or dropped there.
        if let Some(recording) = self.catalog.get(key).await?
            && recording.stores.local
        {
            let is_there = match &recording.held_by {
                // Another gateway's disk is believed; the cloud is nearer if it has it too.
                Some(_) => !recording.stores.supabase,
                None => {
                    let file = self.stores.fallback().head(key).await?;
                    file.is_some_and(|file| file.size_bytes == recording.size_bytes)
                }
            };
            if is_there {
                return Ok((Listed { recording, missing: false }, StoreKind::Local));
            }
        }
        let found = self.find(key).await?;
        if found.missing {
            return Err(ServiceError::NotFound);
        }
        let stores = found.recording.stores;
        let cloud_is_nearer = found.recording.held_by.is_some() && stores.supabase;
        let store = if stores.local && !cloud_is_nearer { StoreKind::Local } else { StoreKind::Supabase };
        Ok((found, store))
    }

    /// Opens the bytes, whole or a range within them; `plays` says that somebody will read them. Safe to drop.
    pub async fn open(
        &self,
        recording: &Recording,
        store: StoreKind,
        range: Option<Range<u64>>,
        plays: bool,
    ) -> Result<OpenObject, ServiceError> {
        let key = &recording.key;
        let opened = match (store, &recording.held_by) {
            (StoreKind::Local, Some(holder)) => {
                return self.open_elsewhere(holder, recording, range, plays).await;
            }
            (StoreKind::Local, None) => match self.stores.fallback().open(key, range.clone()).await? {
                // It went to the cloud since it was located.
                None if self.stores.has_primary() => {
                    self.stores.open_primary(key, range).await.map_err(ServiceError::Cloud)?
                }
                opened => opened,
            },
            (StoreKind::Supabase, holder) => {
                match (self.stores.open_primary(key, range.clone()).await, holder) {
                    (Err(_), Some(holder)) if recording.stores.local => {
                        return self.open_elsewhere(holder, recording, range, plays).await;
                    }
                    (opened, _) => opened.map_err(ServiceError::Cloud)?,
                }
            }
        };
        opened.ok_or(ServiceError::NotFound)
    }

    /// Where the cloud copy can be read. Safe to drop.
    pub async fn cloud_url(&self, key: &ObjectKey) -> Result<ObjectUrl, ServiceError> {
        self.stores.url(key).await.map_err(ServiceError::Cloud)
    }
}
