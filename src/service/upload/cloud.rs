//! An upload's way to the cloud, in a task of its own: takes a name, sends, and takes the next name if somebody
//! else's object has this one.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::catalog::RequestKey;
use crate::domain::{NameStem, ObjectKey, SessionId};
use crate::service::{ServiceError, Services};
use crate::spool::SpoolReader;
use crate::storage::ObjectMeta;
use crate::storage::tiered::{Deadline, PrimaryError, Waiting};

/// How often a cloud that failed is tried again while the client still sends.
const TRY_AGAIN_EVERY: Duration = Duration::from_millis(500);

/// Names that one upload tries: more than uploads of one second could take that know nothing of each other. A cloud that says
/// of each that it is taken has something else to say.
pub(super) const MOST_NAMES: usize = 100;

/// A running transfer to the cloud. It ends by itself when its source is abandoned; dropped unawaited, it gives its
/// name back.
pub(super) struct CloudLeg {
    services: Services,
    task: Option<JoinHandle<Arrived>>,
    /// The name's stem it was started under.
    pub(super) stem: NameStem,
}

/// How a transfer ended.
pub(super) struct Arrived {
    /// The name that was taken last, and its number; it stays reserved.
    pub(super) name: Result<(ObjectKey, u32), ServiceError>,
    /// Whether the object is in the cloud under that name.
    pub(super) result: Result<(), PrimaryError>,
}

impl CloudLeg {
    pub(super) fn start(
        services: &Services,
        session: SessionId,
        stem: NameStem,
        source: SpoolReader,
        known_size: Option<u64>,
        meta: ObjectMeta,
        request: Option<RequestKey>,
    ) -> Self {
        let task = run(services.clone(), session, stem.clone(), source, known_size, meta, request);
        Self { services: services.clone(), task: Some(services.tasks.spawn(task)), stem }
    }

    /// Waits for the end of the transfer.
    pub(super) async fn arrived(mut self) -> Arrived {
        match self.task.take() {
            Some(task) => task.await.unwrap_or_else(|_| Arrived {
                name: Err(ServiceError::Unexpected),
                result: Err(PrimaryError::NotConfigured),
            }),
            None => Arrived { name: Err(ServiceError::Unexpected), result: Err(PrimaryError::NotConfigured) },
        }
    }
}

impl Drop for CloudLeg {
    fn drop(&mut self) {
        let Some(task) = self.task.take() else { return };
        // The upload came to nothing. The transfer may have ended before that, so only here is it known that nobody
        // wants its name.
        let catalog = self.services.catalog.clone();
        self.services.tasks.spawn(async move {
            let Ok(Arrived { name: Ok((key, _)), .. }) = task.await else { return };
            if let Err(error) = catalog.release(&key).await {
                tracing::debug!(object.key = %key, error = %crate::storage::chain(&error), "a name stays reserved until the next start");
            }
        });
    }
}

async fn run(
    services: Services,
    session: SessionId,
    stem: NameStem,
    source: SpoolReader,
    known_size: Option<u64>,
    meta: ObjectMeta,
    request: Option<RequestKey>,
) -> Arrived {
    let (mut next, mut names, deadline) = (1, 0, Deadline::default());
    loop {
        names += 1;
        let (key, n) =
            match services.catalog.reserve(&session, &stem, next, &meta.upload_id, request.as_ref()).await {
                Ok((filename, n)) => (ObjectKey::new(session.clone(), filename), n),
                Err(error) => {
                    return Arrived { name: Err(error.into()), result: Err(PrimaryError::NotConfigured) };
                }
            };
        let put =
            || services.stores.put_primary(&key, &source, known_size, &meta, Waiting::Client(&deadline));
        let mut result = put().await;
        // As long as the client sends there is time for the cloud to come back, and then once more.
        while result.as_ref().is_err_and(PrimaryError::may_heal)
            && source.complete_size().is_none()
            && !source.is_abandoned()
        {
            let _ = tokio::time::timeout(TRY_AGAIN_EVERY, source.completed()).await;
            result = put().await;
        }
        let is_taken = result.as_ref().is_err_and(PrimaryError::name_is_taken);
        if is_taken && names < MOST_NAMES && !source.is_abandoned() {
            tracing::info!(object.key = %key, "the bucket has another object of this name; taking the next one");
            let _ = services.catalog.release(&key).await;
            next = n + 1;
            continue;
        }
        return Arrived { name: Ok((key, n)), result };
    }
}
