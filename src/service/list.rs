//! Listings of recordings: the catalogue and both stores as one. The catalogue is read first: what was deleted before the question
//! came is hidden whatever a slow store still says. A page is read from the catalogue alone where the stores can be known to
//! have nothing to add.

use std::collections::{HashMap, HashSet};

use crate::domain::merge::{Deleted, Listed, Sources, follow, merge};
use crate::domain::page::PageRequest;
use crate::domain::{ObjectKey, Recording, SessionId, StoreKind};
use crate::service::{ServiceError, Services};
use crate::storage::tiered::{Listing, PrimaryError};
use crate::storage::{ListScope, StorageError, chain};

/// A merged listing.
#[derive(Debug)]
pub struct Merged {
    /// Newest first.
    pub rows: Vec<Listed>,
    /// Stores that could not be asked; then the rows are what is known.
    pub unavailable: Vec<StoreKind>,
    /// Why the local disk could not.
    pub disk_error: Option<StorageError>,
}

/// One page of a session's recordings.
#[derive(Debug)]
pub struct RecordingsPage {
    /// The page.
    pub rows: Vec<Listed>,
    /// Recordings in the session.
    pub total: usize,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
    /// Stores that could not be asked.
    pub unavailable: Vec<StoreKind>,
}

impl Services {
    /// The recordings of a session. Safe to drop.
    pub async fn list_recordings(
        &self,
        session: &SessionId,
        page: &PageRequest,
    ) -> Result<RecordingsPage, ServiceError> {
        if let Some(known) = self.known_page(session, page).await? {
            return Ok(known);
        }
        let merged = self.merged(&ListScope::Session(session.clone())).await?;
        let total = merged.rows.len();
        let (rows, next_cursor) = page.cut(merged.rows, Listed::position);
        Ok(RecordingsPage { rows, total, next_cursor, unavailable: merged.unavailable })
    }

    /// The page as the catalogue has it, with a look at the files on it alone: as long as the bucket is not asked and every
    /// file of the session is known, the stores have nothing to add. `None` if they may, or cannot be asked.
    async fn known_page(
        &self,
        session: &SessionId,
        page: &PageRequest,
    ) -> Result<Option<RecordingsPage>, ServiceError> {
        // As in `merged`, a second look tells what is missing from what moved.
        for last_look in [false, true] {
            let Some(left_alone) = self.stores.primary_left_alone() else { return Ok(None) };
            // Before the rows are read: a file that was there has its row by then.
            let Ok(true) = self.files_are_known(session).await else { return Ok(None) };
            let seen = self.catalog.recordings_page(session, page.after.as_ref(), page.limit + 1).await?;
            let Ok(false) = self.stand_elsewhere(seen.following).await else { return Ok(None) };
            let keys: Vec<ObjectKey> = seen.rows.iter().map(|row| row.key.clone()).collect();
            let Ok(files) = self.stores.fallback().heads(&keys).await else { return Ok(None) };
            let listing = Listing { primary: Err(left_alone), fallback: Ok(files) };
            let merged = merge_listing(seen.rows, Deleted::default(), listing, false);
            if last_look || !merged.rows.iter().any(|row| row.missing) {
                let (rows, next_cursor) = page.cut(merged.rows, Listed::position);
                let total = usize::try_from(seen.total).unwrap_or(usize::MAX);
                let unavailable = merged.unavailable;
                return Ok(Some(RecordingsPage { rows, total, next_cursor, unavailable }));
            }
        }
        Ok(None)
    }

    /// Whether one of these rows is not what its file is now, and so belongs elsewhere in the list than its row.
    async fn stand_elsewhere(&self, rows: Vec<Recording>) -> Result<bool, ServiceError> {
        if rows.is_empty() {
            return Ok(false);
        }
        let keys: Vec<ObjectKey> = rows.iter().map(|row| row.key.clone()).collect();
        let files = self.stores.fallback().heads(&keys).await?;
        let mut rows: HashMap<ObjectKey, Recording> =
            rows.into_iter().map(|row| (row.key.clone(), row)).collect();
        Ok(files.iter().any(|file| rows.get_mut(&file.key).is_some_and(|row| follow(row, file))))
    }

    /// Everything in the scope, in memory. Safe to drop.
    pub async fn merged(&self, scope: &ListScope) -> Result<Merged, ServiceError> {
        let merged = self.merged_once(scope).await?;
        // A sync that moved it from the disk to the cloud while both were listed is no loss: the second look tells.
        if merged.rows.iter().any(|row| row.missing) { self.merged_once(scope).await } else { Ok(merged) }
    }

    async fn merged_once(&self, scope: &ListScope) -> Result<Merged, ServiceError> {
        let mut view = self.catalog.view(scope).await?;
        // Uploads that were not answered yet: their objects may still get another name, or go.
        view.deleted.keys.extend(view.reserved);
        let listing = self.stores.list(scope).await;
        let hides = self.list_hides(&view.recordings, &listing).await;
        Ok(merge_listing(view.recordings, view.deleted, listing, hides))
    }

    /// One recording, wherever it is. Safe to drop.
    ///
    /// # Errors
    /// If no store that could be asked knows it, why another could not.
    pub async fn find(&self, key: &ObjectKey) -> Result<Listed, ServiceError> {
        let found = self.find_once(key).await?;
        if found.missing { self.find_once(key).await } else { Ok(found) }
    }

    async fn find_once(&self, key: &ObjectKey) -> Result<Listed, ServiceError> {
        if self.catalog.tombstone(key).await?.is_some() {
            return Err(ServiceError::NotFound);
        }
        let row = self.catalog.get(key).await?;
        let mut listing = self.stores.look(key).await;
        let cloud_error = match &mut listing.primary {
            Err(PrimaryError::NotConfigured) | Ok(_) => None,
            Err(error) => Some(std::mem::replace(error, PrimaryError::NotConfigured)),
        };
        let mut deleted = Deleted::default();
        if row.is_none()
            && let Some(at) = self.catalog.session_tombstone(&key.session).await?
        {
            deleted.sessions.insert(key.session.clone(), at);
        }
        let merged = merge_listing(row.into_iter().collect(), deleted, listing, false);
        match (merged.rows.into_iter().next(), merged.disk_error, cloud_error) {
            (Some(found), ..) => Ok(found),
            (None, Some(error), _) => Err(error.into()),
            (None, None, Some(error)) => Err(ServiceError::Cloud(error)),
            (None, None, None) => Err(ServiceError::NotFound),
        }
    }

    /// The newest recording of a session. Safe to drop.
    pub async fn find_newest(&self, session: &SessionId) -> Result<Listed, ServiceError> {
        let first = self.known_page(session, &PageRequest { limit: 1, after: None }).await?;
        if let Some(newest) = first.and_then(|page| page.rows.into_iter().find(|row| !row.missing)) {
            return Ok(newest);
        }
        let merged = self.merged(&ListScope::Session(session.clone())).await?;
        // A recording whose bytes are gone is no answer as long as there is one that can be had.
        let (there, missing): (Vec<_>, Vec<_>) = merged.rows.into_iter().partition(|row| !row.missing);
        let none = || merged.disk_error.map_or(ServiceError::EmptySession, ServiceError::from);
        there.into_iter().chain(missing).next().ok_or_else(none)
    }

    /// Whether the bucket's list leaves out what is there: policies may let a key read an object by name and not
    /// list it. Asked of one recording that the list lacks.
    async fn list_hides(&self, recordings: &[Recording], listing: &Listing) -> bool {
        let Ok(objects) = &listing.primary else { return false };
        let listed: HashSet<&ObjectKey> = objects.iter().map(|object| &object.key).collect();
        let lacking = recordings.iter().find(|row| row.stores.supabase && !listed.contains(&row.key));
        match lacking {
            Some(row) => matches!(self.stores.head_primary(&row.key).await, Ok(Some(_))),
            None => false,
        }
    }
}

fn merge_listing(
    recordings: Vec<Recording>,
    deleted: Deleted,
    listing: Listing,
    supabase_hides: bool,
) -> Merged {
    let mut unavailable = Vec::new();
    let supabase = match listing.primary {
        Ok(objects) => Some(objects),
        Err(PrimaryError::NotConfigured) => None,
        Err(error) => {
            tracing::info!(error = %chain(&error), "answering without the cloud");
            unavailable.push(StoreKind::Supabase);
            None
        }
    };
    let (local, disk_error) = match listing.fallback {
        Ok(files) => (files, None),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "answering without the local disk");
            unavailable.push(StoreKind::Local);
            (Vec::new(), Some(error))
        }
    };
    let local_unasked = disk_error.is_some();
    let sources = Sources { recordings, deleted, supabase, supabase_hides, local, local_unasked };
    Merged { rows: merge(sources), unavailable, disk_error }
}
