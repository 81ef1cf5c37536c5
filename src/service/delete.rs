//! Deletion: the tombstone first, then the stores, then their confirmation. From the moment the tombstone is written
//! the recording is gone from every answer, whatever happens to the rest.

use crate::domain::{ContentDigest, ObjectKey, SessionId, StoreKind, StoreSet};
use crate::runtime::metrics;
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
            let again = self.finish_deletion(key, tombstone.pending).await?;
            return Ok(again);
        }
        let digest = match self.find(key).await {
            Ok(found) => found.recording.sha256,
            // Unknown here and the cloud cannot say: if it has it, it will have to go.
            Err(ServiceError::Cloud(_)) => None,
            Err(error) => return Err(error),
        };
        let everywhere = StoreSet { supabase: self.stores.has_primary(), local: true };
        self.forget_and_entomb(key, digest, everywhere).await?;
        let deletion = self.finish_deletion(key, everywhere).await?;
        metrics::deleted(if deletion.pending.is_empty() { "done" } else { "pending" });
        Ok(deletion)
    }

    /// Writes the tombstone, also on a full disk. The cache forgets the bytes before, so that a crash leaves none behind,
    /// and after, for they may have come in between.
    async fn forget_and_entomb(
        &self,
        key: &ObjectKey,
        digest: Option<ContentDigest>,
        pending: StoreSet,
    ) -> Result<(), ServiceError> {
        self.cache.forget(digest).await;
        self.even_when_full(|| self.catalog.entomb(key, pending)).await?;
        self.cache.forget(digest).await;
        Ok(())
    }

    /// Deletes from the stores in `pending` and notes their confirmation. Safe to drop and to repeat.
    pub(super) async fn finish_deletion(
        &self,
        key: &ObjectKey,
        pending: StoreSet,
    ) -> Result<Deletion, ServiceError> {
        let mut deletion = Deletion::default();
        if pending.local {
            match self.stores.fallback().delete(key).await {
                Ok(existed) => {
                    deletion.deleted_from.local = existed;
                    self.even_when_full(|| self.catalog.confirm_deleted(key, StoreKind::Local)).await?;
                }
                Err(error) => {
                    tracing::warn!(object.key = %key, error = %chain(&error), "a deleted recording's file is still to be removed");
                    deletion.pending.local = true;
                }
            }
        }
        if pending.supabase {
            match self.stores.delete_primary(key).await {
                Ok(existed) => {
                    deletion.deleted_from.supabase = existed;
                    self.even_when_full(|| self.catalog.confirm_deleted(key, StoreKind::Supabase)).await?;
                }
                Err(error) => {
                    tracing::warn!(object.key = %key, error = %chain(&error), "a deleted recording's object is still to be removed from the cloud");
                    deletion.pending.supabase = true;
                }
            }
        }
        if !deletion.pending.is_empty() {
            self.bell.send_replace(());
        }
        Ok(deletion)
    }

    /// Removes an object that no recording names, sent by an upload that got another name or came to nothing. The
    /// tombstone comes first here too, and stays: a push whose outcome is unknown may land after the bucket confirmed
    /// that it has nothing.
    pub(super) async fn remove_stray(&self, key: &ObjectKey) {
        let cloud = StoreSet::only(StoreKind::Supabase);
        if let Err(error) = self.catalog.entomb(key, cloud).await {
            tracing::error!(object.key = %key, error = %chain(&error), "an object that belongs to no recording may stay in the bucket");
        }
        if let Err(error) = self.finish_deletion(key, cloud).await {
            tracing::warn!(object.key = %key, error = %chain(&error), "the removal of an object could not be noted; it is tried again");
        }
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
        if merged.rows.is_empty() && !cloud_unknown {
            return Err(ServiceError::EmptySession);
        }
        let mut result = SessionDeletion { count: merged.rows.len(), ..SessionDeletion::default() };
        if cloud_unknown {
            // What it holds cannot be named now, so all of it is hidden until it can.
            self.even_when_full(|| self.catalog.entomb_session(session)).await?;
            result.pending.supabase = true;
        }
        let everywhere = StoreSet { supabase: self.stores.has_primary(), local: true };
        // First every tombstone, so that the whole session is gone from every answer; then the stores.
        for row in &merged.rows {
            self.forget_and_entomb(&row.recording.key, row.recording.sha256, everywhere).await?;
        }
        for row in &merged.rows {
            let deletion = self.finish_deletion(&row.recording.key, everywhere).await?;
            result.pending.supabase |= deletion.pending.supabase;
            result.pending.local |= deletion.pending.local;
            metrics::deleted(if deletion.pending.is_empty() { "done" } else { "pending" });
        }
        Ok(result)
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
        for object in objects {
            let known = view.recordings.iter().any(|row| row.key == object.key);
            if known || view.reserved.contains(&object.key) || object.modified_at > deleted_at {
                continue;
            }
            self.catalog
                .entomb(&object.key, StoreSet { supabase: true, local: false })
                .await
                .map_err(ServiceError::from)?;
            self.stores.delete_primary(&object.key).await?;
            self.catalog
                .confirm_deleted(&object.key, StoreKind::Supabase)
                .await
                .map_err(ServiceError::from)?;
        }
        self.catalog.confirm_session_deleted(session).await.map_err(ServiceError::from)?;
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
