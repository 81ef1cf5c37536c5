//! An upload's way to the cloud, in a task of its own: takes a name, sends, and takes the next name if somebody
//! else's object has this one.

use tokio::task::JoinHandle;

use crate::domain::{NameStem, ObjectKey, SessionId};
use crate::service::{ServiceError, Services};
use crate::spool::SpoolReader;
use crate::storage::ObjectMeta;
use crate::storage::tiered::{PrimaryError, Waiting};

/// A running transfer to the cloud. It ends by itself when its source is abandoned.
pub(super) struct CloudLeg {
    task: Option<JoinHandle<Arrived>>,
    /// What travels with the bytes.
    pub(super) meta: ObjectMeta,
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
    ) -> Self {
        let task = run(services.clone(), session, stem.clone(), source, known_size, meta.clone());
        Self { task: Some(services.tasks.spawn(task)), meta, stem }
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

async fn run(
    services: Services,
    session: SessionId,
    stem: NameStem,
    source: SpoolReader,
    known_size: Option<u64>,
    meta: ObjectMeta,
) -> Arrived {
    let mut next = 1;
    loop {
        let (key, n) = match services.catalog.reserve(&session, &stem, next).await {
            Ok((filename, n)) => (ObjectKey::new(session.clone(), filename), n),
            Err(error) => {
                return Arrived { name: Err(error.into()), result: Err(PrimaryError::NotConfigured) };
            }
        };
        let result = services.stores.put_primary(&key, &source, known_size, &meta, Waiting::Client).await;
        if source.is_abandoned() {
            // The upload came to nothing and nobody waits for this: give the name back here.
            if let Err(error) = services.catalog.release(&key).await {
                tracing::debug!(object.key = %key, error = %crate::storage::chain(&error), "a name stays reserved until the next start");
            }
        } else if result.as_ref().is_err_and(PrimaryError::name_is_taken) {
            tracing::info!(object.key = %key, "the bucket has another object of this name; taking the next one");
            let _ = services.catalog.release(&key).await;
            next = n + 1;
            continue;
        }
        return Arrived { name: Ok((key, n)), result };
    }
}
