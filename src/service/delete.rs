//! Deletion: the tombstone first, then the stores, then their confirmation. From the moment the tombstone is written
//! the recording is gone from every answer, whatever happens to the rest.

use crate::domain::{ContentDigest, Filename, ObjectKey, SessionId, StoreKind, StoreSet};
use crate::runtime::metrics;
use crate::service::events::Event;
use crate::service::{ServiceError, Services};
use crate::storage::tiered::PrimaryError;
use crate::storage::{ListScope, chain};

/// What became of a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deletion {
    /// Stores that had it and confirmed that it is gone.
    pub deleted_from: StoreSet,
    /// Stores that could not be asked; a job finishes the work.
    pub pending: StoreSet,
    /// Why the cloud did not confirm, and whether waiting may help.
    pub cause: Option<(String, bool)>,
}

/// What became of the deletion of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionDeletion {
    /// Recordings that are gone from every answer.
    pub count: usize,
    /// Stores that could not be asked.
    pub pending: StoreSet,
}

impl Services {
    /// Deletes one recording from every store. Runs detached once the tombstone is being written.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] if no store has it and none is left to be asked.
    pub async fn delete_recording(&self, key: &ObjectKey) -> Result<Deletion, ServiceError> {
        let (services, key) = (self.clone(), key.clone());
        self.tasks
            .spawn(async move { services.delete_now(&key).await })
            .await
            .unwrap_or(Err(ServiceError::Unexpected))
    }

    async fn delete_now(&self, key: &ObjectKey) -> Result<Deletion, ServiceError> {
        if let Some(tombstone) = self.catalog.tombstone(key).await? {
            if tombstone.pending.is_empty() {
                return Err(ServiceError::NotFound);
            }
            // Asked again while a store is still to confirm: try it now.
            return self.delete_everywhere(std::slice::from_ref(key)).await;
        }
        let digest = match self.find(key).await {
            Ok(found) => found.recording.sha256,
            // Unknown here and the cloud cannot say: if it has it, it will have to go.
            Err(ServiceError::Cloud(_)) => None,
            Err(error) => return Err(error),
        };
        self.forget_and_entomb(std::slice::from_ref(key), &[digest], self.everywhere()).await?;
        self.tell_deletion(&key.session, Some(&key.filename), self.everywhere());
        let deletion = self.delete_everywhere(std::slice::from_ref(key)).await?;
        self.tell_deletion(&key.session, Some(&key.filename), deletion.pending);
        metrics::deleted(if deletion.pending.is_empty() { "done" } else { "pending" });
        Ok(deletion)
    }

    /// Writes the tombstones, also on a full disk. The cache forgets the bytes before, so that a crash leaves none behind,
    /// and after, for they may have come in between.
    async fn forget_and_entomb(
        &self,
        keys: &[ObjectKey],
        digests: &[Option<ContentDigest>],
        pending: StoreSet,
    ) -> Result<(), ServiceError> {
        for digest in digests {
            self.cache.forget(*digest).await;
        }
        self.even_when_full(|| self.catalog.delete(keys, pending, &self.origin)).await?;
        for digest in digests {
            self.cache.forget(*digest).await;
        }
        Ok(())
    }

    fn tell_deletion(&self, session: &SessionId, filename: Option<&Filename>, pending: StoreSet) {
        let (session, filename) = (session.clone(), filename.cloned());
        self.events.tell(|| Event::Deletion { session, filename, pending });
    }

    fn everywhere(&self) -> StoreSet {
        StoreSet { supabase: self.stores.has_primary(), local: true }
    }

    /// Deletes entombed recordings from every store, other gateways' disks included, for a client that waits.
    async fn delete_everywhere(&self, keys: &[ObjectKey]) -> Result<Deletion, ServiceError> {
        let (here, elsewhere) = tokio::join!(self.finish_deletions(keys), self.tell_holders(keys));
        let (mut deletion, elsewhere) = (here?, elsewhere?);
        deletion.deleted_from.local |= elsewhere.deleted_from.local;
        deletion.pending.local |= elsewhere.pending.local;
        Ok(deletion)
    }

    /// Deletes entombed recordings from the cloud and this disk where they have not confirmed it, and notes their
    /// confirmation. What another gateway's disk has is its own to remove. Safe to drop and to repeat.
    pub(super) async fn finish_deletions(&self, keys: &[ObjectKey]) -> Result<Deletion, ServiceError> {
        let mut deletion = Deletion::default();
        let (mut gone_here, mut gone_there) = (Vec::new(), Vec::new());
        for key in keys {
            let Some(tombstone) = self.catalog.tombstone(key).await? else { continue };
            if tombstone.pending.local && tombstone.held_by.is_none() {
                match self.delete_local(key).await {
                    Some(existed) => {
                        deletion.deleted_from.local |= existed;
                        gone_here.push(key.clone());
                    }
                    None => deletion.pending.local = true,
                }
            }
            if tombstone.pending.supabase {
                match self.stores.delete_primary(key).await {
                    Ok(existed) => {
                        deletion.deleted_from.supabase |= existed;
                        gone_there.push(key.clone());
                    }
                    Err(error) => {
                        tracing::warn!(object.key = %key, error = %chain(&error), "a deleted recording's object is still to be removed from the cloud");
                        deletion.pending.supabase = true;
                        deletion.cause = Some((chain(&error), error.may_heal()));
                    }
                }
            }
        }
        self.even_when_full(|| self.catalog.confirm_deleted(&gone_here, StoreKind::Local)).await?;
        self.even_when_full(|| self.catalog.confirm_deleted(&gone_there, StoreKind::Supabase)).await?;
        if !deletion.pending.is_empty() {
            self.bell.send_replace(());
        }
        Ok(deletion)
    }

    /// Removes the local copy: whether there was one, or `None` if it could not be removed.
    pub(super) async fn delete_local(&self, key: &ObjectKey) -> Option<bool> {
        match self.stores.fallback().delete(key).await {
            Ok(existed) => Some(existed),
            Err(error) => {
                tracing::warn!(object.key = %key, error = %chain(&error), "a deleted recording's file is still to be removed");
                None
            }
        }
    }

    /// A recording may be deleted before its file is in its place: called when it is.
    pub(super) async fn unless_deleted(&self, key: &ObjectKey) {
        if matches!(self.catalog.tombstone(key).await, Ok(Some(_))) {
            let (keys, here) = (std::slice::from_ref(key), StoreSet::only(StoreKind::Local));
            if let Err(error) = self.even_when_full(|| self.catalog.entomb(keys, here, &self.origin)).await {
                tracing::warn!(object.key = %key, error = %chain(&error), "a deleted recording's file is still to be removed");
            }
            // Here and now: whoever looked before there was a file may confirm that there is none after this was noted.
            self.delete_local(key).await;
            self.bell.send_replace(());
        }
    }

    /// Removes an object that no recording names, sent by an upload that got another name or came to nothing. The
    /// tombstone comes first here too, and stays: a push whose outcome is unknown may land after the bucket confirmed
    /// that it has nothing.
    /// Returns whether it is sure to go.
    pub(super) async fn remove_stray(&self, key: &ObjectKey) -> bool {
        let keys = std::slice::from_ref(key);
        if let Err(error) = self.catalog.entomb(keys, StoreSet::only(StoreKind::Supabase), &self.origin).await
        {
            tracing::warn!(object.key = %key, error = %chain(&error), "an object that belongs to no recording is still in the bucket");
            return false;
        }
        if let Err(error) = self.finish_deletions(keys).await {
            tracing::warn!(object.key = %key, error = %chain(&error), "the removal of an object could not be noted; it is tried again");
        }
        true
    }

    /// Deletes every recording of a session. Runs detached.
    ///
    /// # Errors
    /// [`ServiceError::EmptySession`] if there is nothing to delete and every store could be asked.
    pub async fn delete_session(&self, session: &SessionId) -> Result<SessionDeletion, ServiceError> {
        let (services, session) = (self.clone(), session.clone());
        let task = async move { services.delete_session_now(&session).await };
        self.tasks.spawn(task).await.unwrap_or(Err(ServiceError::Unexpected))
    }

    async fn delete_session_now(&self, session: &SessionId) -> Result<SessionDeletion, ServiceError> {
        let merged = self.merged(&ListScope::Session(session.clone())).await?;
        let cloud_unknown = merged.unavailable.contains(&StoreKind::Supabase);
        // Files that cannot be named now would come back when they can.
        if let Some(error) = merged.disk_error {
            return Err(error.into());
        }
        if merged.rows.is_empty() && !cloud_unknown {
            return Err(ServiceError::EmptySession);
        }
        if cloud_unknown {
            // What it holds cannot be named now, so all of it is hidden until it can.
            self.even_when_full(|| self.catalog.entomb_session(session, &self.origin)).await?;
        }
        let (keys, digests): (Vec<_>, Vec<_>) =
            merged.rows.into_iter().map(|row| (row.recording.key, row.recording.sha256)).unzip();
        // Every tombstone first, at once, so that the whole session is gone from every answer; then the stores.
        self.forget_and_entomb(&keys, &digests, self.everywhere()).await?;
        self.tell_deletion(session, None, self.everywhere());
        let mut pending = self.delete_everywhere(&keys).await?.pending;
        pending.supabase |= cloud_unknown;
        self.tell_deletion(session, None, pending);
        metrics::deleted(if pending.is_empty() { "done" } else { "pending" });
        Ok(SessionDeletion { count: keys.len(), pending })
    }

    /// Finishes the deletion of a session whose cloud part could not be named: deletes every object there that the
    /// catalogue does not know. Safe to drop and to repeat.
    pub(super) async fn finish_session_deletion(&self, session: &SessionId) -> Result<(), PrimaryOrService> {
        let Some(deleted_at) = self.catalog.session_tombstone(session).await.map_err(ServiceError::from)?
        else {
            return Ok(());
        };
        let scope = ListScope::Session(session.clone());
        let objects = self.stores.list(&scope).await.primary?;
        // Read after the list: the object of an upload that runs meanwhile has its row by now, or its name is
        // reserved still.
        let view = self.catalog.view(&scope).await.map_err(ServiceError::from)?;
        let strays: Vec<ObjectKey> = objects
            .into_iter()
            .filter(|object| {
                let known = view.recordings.iter().any(|row| row.key == object.key);
                !known && !view.reserved.contains(&object.key) && object.modified_at <= deleted_at
            })
            .map(|object| object.key)
            .collect();
        let cloud = StoreSet::only(StoreKind::Supabase);
        self.catalog.entomb(&strays, cloud, &self.origin).await.map_err(ServiceError::from)?;
        self.finish_deletions(&strays).await?;
        self.catalog.confirm_session_deleted(session, deleted_at).await.map_err(ServiceError::from)?;
        Ok(())
    }
}

/// Why background work on the cloud stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrimaryOrService {
    /// The cloud.
    #[error("the cloud did not do it")]
    Primary(#[from] PrimaryError),
    /// Something here.
    #[error("it could not be done here")]
    Service(#[from] ServiceError),
}
