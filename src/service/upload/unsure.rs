//! Uploads of which nobody knows whether their row was written: the catalogue was lost at the moment of the promise and
//! could not be asked afterwards. Their client heard of a failure, their bytes stay in the spool, and what they took
//! stays taken, until the catalogue says how it was.
//!
//! Apart from `settle`, which cannot wait for it, and from `recover`, which is for what an earlier process left.

use std::sync::{Arc, Mutex, PoisonError};

use super::Leftovers;
use crate::catalog::RequestKey;
use crate::domain::{ObjectKey, SessionId};
use crate::service::{ServiceError, Services};

/// One of them.
pub(super) struct Unsure {
    pub(super) session: SessionId,
    pub(super) upload_id: String,
    pub(super) request: Option<RequestKey>,
    pub(super) names: Vec<ObjectKey>,
    pub(super) object: Option<ObjectKey>,
}

/// All of this process. Clones share the list.
#[derive(Clone, Default)]
pub struct UnsureUploads(Arc<Mutex<Vec<Unsure>>>);

impl UnsureUploads {
    pub(super) fn add(&self, unsure: Unsure) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(unsure);
    }

    fn take(&self) -> Option<Unsure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

impl Services {
    /// Asks the catalogue about uploads whose end is not known: what it has becomes a recording, the rest goes. Called
    /// now and then. Safe to repeat.
    pub async fn settle_unsure(&self) -> Result<(), ServiceError> {
        while let Some(unsure) = self.unsure.take() {
            let row = match self.catalog.committed(&unsure.session, &unsure.upload_id).await {
                Ok(row) => row,
                Err(error) => {
                    self.unsure.add(unsure);
                    return Err(error.into());
                }
            };
            tracing::info!(
                upload.id = unsure.upload_id,
                promised = row.is_some(),
                "an unsure upload is settled"
            );
            let Unsure { upload_id, request, names, object, .. } = unsure;
            // Dropping them gives back what no row keeps.
            let mut leftovers = Leftovers { services: self.clone(), request, names, object };
            if let Some(row) = &row {
                leftovers.belong_to(&row.key);
            }
            let spooled = self.spool.leftovers()?.into_iter();
            for leftover in spooled.filter(|leftover| leftover.upload_id.as_ref() == Some(&upload_id)) {
                self.take_up(leftover, row.clone()).await?;
            }
        }
        Ok(())
    }
}
