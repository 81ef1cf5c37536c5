//! Getting one object into the primary for certain: try, ask what happened, try again. "Stored" means that the store,
//! asked afterwards, has the object with the size that was sent and the id of this very upload.

use std::time::Duration;

use super::{Background, Kind, ObjectMeta, ObjectStore, Outcome, Retry, StorageError};
use crate::domain::ObjectKey;
use crate::spool::SpoolReader;

/// Pause before the first repetition; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Tries for one object, so that one which the store can never take does not hold up the others.
const MOST_TRIES: u32 = 6;

/// What the store says after a `put`.
enum Found {
    /// It is ours and whole.
    Ours,
    /// It is ours and has another size.
    OursButWrong(u64),
    /// Somebody else's.
    Foreign,
    /// Nothing there.
    Nothing,
}

/// Stores `source` under `key` and confirms it, following the source while it grows. Gives up at the first failure
/// that repeating cannot help, or when `go_on` says so; it is told each failure that blames the store. With
/// `background` the source is complete, and a try takes up where the one before was broken off.
///
/// # Errors
/// [`Kind::AlreadyExists`]: the name holds somebody else's object, and nothing of ours; take another. For all others
/// [`StorageError::outcome`] says whether the object may appear in the store nevertheless.
pub(super) async fn push(
    store: &dyn ObjectStore,
    key: &ObjectKey,
    source: &SpoolReader,
    known_size: Option<u64>,
    meta: &ObjectMeta,
    background: Option<Background<'_>>,
    go_on: impl Fn(&StorageError) -> bool,
) -> Result<(), StorageError> {
    let mut pause = FIRST_PAUSE;
    // Once unknown, unknown until the store was asked.
    let mut may_be_there = false;
    // A try of ours was taken, or may have been: a store that shows nothing then may hide it.
    let mut sent = false;
    for tries_left in (0..MOST_TRIES).rev() {
        let attempt = if may_be_there {
            confirm(store, key, source, meta).await
        } else {
            let put = match background {
                Some(background) => store.put_in_background(key, source, meta, background).await,
                None => store.put(key, source, known_size, meta).await,
            };
            match put {
                Ok(()) => {
                    sent = true;
                    confirm(store, key, source, meta).await.map_err(|e| e.unknown_if(true))
                }
                Err(error) if error.kind == Kind::AlreadyExists => {
                    // Perhaps by an earlier attempt of ours whose answer was lost.
                    match look(store, key, source, meta).await {
                        Ok(Found::Ours) => Ok(()),
                        // Ours and not whole: the name is not somebody else's.
                        Ok(Found::OursButWrong(_)) if source.complete_size().is_some() => {
                            confirm(store, key, source, meta).await
                        }
                        // The next name would be the next copy.
                        Ok(Found::Nothing) if sent => Err(hidden(store)),
                        Ok(_) => Err(error),
                        Err(asking) => Err(asking.unknown_if(true)),
                    }
                }
                Err(error) => {
                    sent |= error.outcome == Outcome::Unknown;
                    Err(error)
                }
            }
        };
        let error = match attempt {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if error.kind == Kind::Mismatch && error.outcome == Outcome::NotApplied {
            // Asked and found wrong or missing: what is there under our id is worth nothing.
            may_be_there = false;
        } else if error.outcome == Outcome::Unknown {
            may_be_there = true;
        }
        let worth_it = if error.blames_store() { go_on(&error) } else { true };
        if error.retry() != Retry::Soon || !worth_it || tries_left == 0 {
            // Where somebody else's object is there is none of ours.
            let may_be_hidden = sent && error.kind != Kind::AlreadyExists;
            return Err(error.unknown_if(may_be_there || may_be_hidden));
        }
        tracing::debug!(object.key = %key, error = %super::chain(&error), "sending to the cloud failed; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    unreachable!("the last try returns")
}

/// Asks for the object and compares. [`Kind::Mismatch`] with `NotApplied` if it is certain that our object is not
/// there whole; a short one has been removed then.
async fn confirm(
    store: &dyn ObjectStore,
    key: &ObjectKey,
    source: &SpoolReader,
    meta: &ObjectMeta,
) -> Result<(), StorageError> {
    let mismatch = |detail: String| StorageError::certain(store.kind(), Kind::Mismatch, detail);
    match look(store, key, source, meta).await? {
        Found::Ours => Ok(()),
        Found::Nothing => Err(mismatch("the object is not there, although it was sent".into())),
        Found::OursButWrong(size) => {
            // It would block the name for the next try and be served as if it were whole.
            store.delete(key).await?;
            Err(mismatch(format!("it kept only {size} bytes of the object")))
        }
        Found::Foreign => {
            Err(StorageError::certain(store.kind(), Kind::AlreadyExists, "another writer has this name"))
        }
    }
}

fn hidden(store: &dyn ObjectStore) -> StorageError {
    let detail = "it took the object and does not show it; the key may lack the right to read";
    StorageError::certain(store.kind(), Kind::Mismatch, detail).unknown_if(true)
}

async fn look(
    store: &dyn ObjectStore,
    key: &ObjectKey,
    source: &SpoolReader,
    meta: &ObjectMeta,
) -> Result<Found, StorageError> {
    let Some(object) = store.head(key).await? else { return Ok(Found::Nothing) };
    if object.upload_id.as_deref() != Some(&meta.upload_id) {
        return Ok(Found::Foreign);
    }
    match source.complete_size() {
        Some(size) if size == object.size_bytes => Ok(Found::Ours),
        _ => Ok(Found::OursButWrong(object.size_bytes)),
    }
}
