//! Uploads of which nobody knows whether their row was written: the catalogue was lost at the moment of the promise and
//! could not be asked afterwards. Their client heard of a failure, their bytes stay in the spool, and what they took
//! stays taken, until the catalogue says how it was. Also what other uploads could not give back for the same reason.
//!
//! Apart from `settle`, which cannot wait for it, and from `recover`, which is for what an earlier process left.

use std::sync::{Arc, Mutex, PoisonError};

use super::Leftovers;
use crate::catalog::{Action, CatalogError, Change, RequestKey};
use crate::domain::{ObjectKey, SessionId};
use crate::service::{ServiceError, Services};

/// One of them.
pub(super) struct Unsure {
    /// Whose row may be there; `None` if it is known that there is none.
    pub(super) upload: Option<(SessionId, String)>,
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

    fn take_all(&self) -> Vec<Unsure> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Services {
    /// A commit that failed may be on the disk all the same: not valid now, but a crash would make it count. The next
    /// change that is flushed takes its place, so one is made. Until then the bytes stay in the spool: a start finds
    /// row and bytes, or no row and removes them; never a row alone.
    pub(super) async fn make_sure_of_nothing(&self, session: &SessionId) -> Result<(), CatalogError> {
        let detail = Some("the upload could not be kept");
        let refused =
            Change { action: Action::Denied, session, filename: None, before: None, after: None, detail };
        self.catalog.note(refused, &self.origin).await
    }

    /// Asks the catalogue about uploads whose end is not known: what it has becomes a recording, the rest goes. Called
    /// now and then. Safe to repeat: what could not be settled stays.
    pub async fn settle_unsure(&self) -> Result<(), ServiceError> {
        let mut unsure = self.unsure.take_all().into_iter();
        while let Some(one) = unsure.next() {
            if let Err(error) = self.settle_one(&one).await {
                std::iter::once(one).chain(unsure).for_each(|left| self.unsure.add(left));
                return Err(error);
            }
        }
        Ok(())
    }

    async fn settle_one(&self, one: &Unsure) -> Result<(), ServiceError> {
        let mut row = None;
        if let Some((session, upload_id)) = &one.upload {
            row = self.catalog.committed(session, upload_id).await?;
            if row.is_none() {
                self.make_sure_of_nothing(session).await?;
            }
            for leftover in self.spool.leftovers()? {
                if leftover.upload_id.as_ref() == Some(upload_id) {
                    self.take_up(leftover, row.clone()).await?;
                }
            }
            tracing::info!(upload.id = upload_id, promised = row.is_some(), "an unsure upload is settled");
        }
        // Dropping them gives back what no row keeps.
        let mut leftovers = Leftovers {
            services: self.clone(),
            request: one.request.clone(),
            names: one.names.clone(),
            object: one.object.clone(),
        };
        if let Some(row) = &row {
            leftovers.belong_to(&row.key);
        }
        Ok(())
    }
}
