//! What several gateways on one catalogue do for each other: one gives the bytes that only its disk has, and removes
//! its files when a recording was deleted through another.
//!
//! Apart from `download` and `delete`, which do not care where a disk is. The catalogue says who holds what; the other
//! gateways are asked for bytes and told to hurry, never asked what they know.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::catalog::Peer;
use crate::domain::{GatewayId, ObjectKey, Recording, SessionId, StoreKind};
use crate::service::delete::Deletion;
use crate::service::{ServiceError, Services};
use crate::storage::{OpenObject, chain};

impl Services {
    /// Opens a recording that `holder`'s disk has. Safe to drop.
    ///
    /// # Errors
    /// [`ServiceError::Peer`] names the gateway that did not give it.
    pub(super) async fn open_elsewhere(
        &self,
        holder: &GatewayId,
        recording: &Recording,
        range: Option<Range<u64>>,
        plays: bool,
    ) -> Result<OpenObject, ServiceError> {
        let Some(peer) = self.peer(holder).await? else {
            let url = holder.to_string();
            return Err(ServiceError::Peer { node: String::new(), url, source: None });
        };
        match self.peers.open(holder, &peer.url, recording, range.clone(), plays).await {
            Ok(opened) => Ok(opened),
            Err(error) => match self.catalog.get(&recording.key).await? {
                None => Err(ServiceError::NotFound),
                // It went to the cloud since it was located.
                Some(now) if now.stores.supabase => {
                    let opened = self.stores.open_primary(&recording.key, range).await;
                    opened.map_err(ServiceError::Cloud)?.ok_or(ServiceError::NotFound)
                }
                Some(_) => Err(ServiceError::Peer { node: peer.node, url: peer.url, source: Some(error) }),
            },
        }
    }

    async fn peer(&self, id: &GatewayId) -> Result<Option<Peer>, ServiceError> {
        Ok(self.catalog.peers().await?.into_iter().find(|peer| peer.id == *id))
    }

    /// Tells the gateways that have files of these deleted recordings to remove them now. Who cannot be told does it by
    /// its own jobs when it is back; then the local copy is pending. Safe to drop and to repeat.
    pub(super) async fn tell_holders(&self, keys: &[ObjectKey]) -> Result<Deletion, ServiceError> {
        let (mut held, mut holders) = (Vec::new(), BTreeSet::new());
        for key in keys {
            if let Some(tombstone) = self.catalog.tombstone(key).await?
                && tombstone.pending.local
                && let Some(holder) = tombstone.held_by
            {
                held.push(key);
                holders.insert((holder, key.session.clone()));
            }
        }
        let mut deletion = Deletion::default();
        if held.is_empty() {
            return Ok(deletion);
        }
        let told = holders.iter().map(|(holder, session)| self.tell(holder, session));
        futures_util::future::join_all(told).await;
        for key in held {
            let is_pending =
                self.catalog.tombstone(key).await?.is_some_and(|tombstone| tombstone.pending.local);
            if is_pending {
                deletion.pending.local = true;
            } else {
                deletion.deleted_from.local = true;
            }
        }
        Ok(deletion)
    }

    async fn tell(&self, holder: &GatewayId, session: &SessionId) {
        let peer = match self.peer(holder).await {
            Ok(Some(peer)) => peer,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "another gateway could not be told of a deletion");
                return;
            }
        };
        if let Err(error) = self.peers.finish_deletions(holder, &peer.url, session).await {
            tracing::warn!(
                gateway.id = %holder, gateway.node = peer.node, gateway.url = peer.url, error = %chain(&error),
                "a gateway that holds a deleted recording could not be told; it removes it when it is back"
            );
        }
    }

    /// Removes this gateway's files of deleted recordings of a session: another gateway says that there are some. Runs
    /// detached.
    pub async fn finish_deletions_here(&self, session: &SessionId) -> Result<(), ServiceError> {
        let (services, session) = (self.clone(), session.clone());
        let task = async move {
            let keys = services.catalog.pending_here(&session).await?;
            let mut gone = Vec::new();
            for key in keys {
                if services.delete_local(&key).await.is_some() {
                    gone.push(key);
                }
            }
            services.even_when_full(|| services.catalog.confirm_deleted(&gone, StoreKind::Local)).await?;
            Ok(())
        };
        self.tasks.spawn(task).await.unwrap_or(Err(ServiceError::Unexpected))
    }
}
