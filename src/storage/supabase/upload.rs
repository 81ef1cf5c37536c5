//! Sending one object in one request while its spool file may still be growing.
//!
//! Certainty rests on two facts of the contract (section 5): an object appears only after its last byte, and an
//! aborted request leaves nothing. So as long as this side has held back the last byte, nothing was stored; that is
//! why the last block is not sent before the upload reached its clean end.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, unfold};
use tokio::time::Instant;

use super::client::{Client, read_capped, timeout, transport};
use super::wire::{UserMetadata, refusal, retry_after};
use crate::domain::{ObjectKey, StoreKind};
use crate::spool::{Follower, SpoolError, SpoolReader};
use crate::storage::pace::{Held, Pacer};
use crate::storage::{Kind, ObjectMeta, StorageError};

/// Slowest rate, in bytes a second, at which a server may digest what it received before it answers (section 12:
/// the file backend hashes the whole file).
const DIGEST_BYTES_PER_SECOND: u64 = 20 << 20;

pub(super) async fn put(
    client: &Client,
    key: &ObjectKey,
    source: &SpoolReader,
    known_size: Option<u64>,
    max_bytes: Option<u64>,
    meta: &ObjectMeta,
    pacer: Option<&Pacer>,
) -> Result<(), StorageError> {
    let announced = source.complete_size().or(known_size);
    let sent = send(client, key, source, announced, max_bytes, meta, pacer).await;
    // A client that announced another length than it sent is not the cloud's fault: once more, with the true one.
    match source.complete_size() {
        Some(size) if sent.is_err() && announced.is_some_and(|announced| announced != size) => {
            send(client, key, source, Some(size), max_bytes, meta, pacer).await
        }
        _ => sent,
    }
}

async fn send(
    client: &Client,
    key: &ObjectKey,
    source: &SpoolReader,
    known_size: Option<u64>,
    max_bytes: Option<u64>,
    meta: &ObjectMeta,
    pacer: Option<&Pacer>,
) -> Result<(), StorageError> {
    let over_limit = |size: u64| max_bytes.is_some_and(|max| size > max);
    if let Some(size) = known_size {
        fits(size, max_bytes)?;
    }
    let follower = source.follow();
    let watch = follower.watch();
    let bytes = guarded(follower, source.clone(), known_size, max_bytes);
    let (bytes, held) = match pacer {
        Some(pacer) => pacer.pace(bytes),
        None => (bytes, Held::default()),
    };
    let body = reqwest::Body::wrap_stream(bytes);
    let metadata = UserMetadata::of(meta).to_json();
    let request = client.upload(key, body, known_size, &meta.content_type, STANDARD.encode(metadata));

    let all_sent = || source.complete_size().is_some_and(|size| watch.position() >= size);
    let at = || At {
        position: watch.position(),
        waits_for_us: watch.waits_for_writer() || held.now(),
        digests: source.complete_size().filter(|_| all_sent()).unwrap_or_default(),
    };
    let sent = tokio::select! {
        sent = request.send() => sent,
        () = stalled(at, client.access.idle_timeout) => return Err(timeout(all_sent())),
    };
    let response = sent.map_err(|error| {
        if source.is_abandoned() {
            return source_gone(SpoolError::Abandoned);
        }
        if over_limit(watch.position()) {
            return too_large(max_bytes);
        }
        transport(error, all_sent())
    })?;
    let (status, wait) = (response.status(), retry_after(response.headers()));
    let body = tokio::time::timeout(client.access.idle_timeout, read_capped(response, all_sent()));
    let body = body.await.map_err(|_| timeout(all_sent()))??;
    if !status.is_success() {
        let mut error = refusal(status.as_u16(), &body, all_sent()).retry_after(wait);
        // Nothing can be missing that is only being made: this is not the route it should be.
        if error.kind == Kind::NotFound {
            error.kind = Kind::Nonsense;
        }
        return Err(error);
    }
    // Whether it is really there is asked by the caller; but a success without all bytes is none.
    if all_sent() {
        Ok(())
    } else {
        let detail = "answered before it had all bytes";
        Err(StorageError::certain(StoreKind::Supabase, Kind::Nonsense, detail).unknown_if(true))
    }
}

/// An object of `size` bytes is within the bucket's limit.
pub(super) fn fits(size: u64, max_bytes: Option<u64>) -> Result<(), StorageError> {
    if max_bytes.is_some_and(|max| size > max) { Err(too_large(max_bytes)) } else { Ok(()) }
}

fn too_large(max_bytes: Option<u64>) -> StorageError {
    let limit = ByteSize(max_bytes.unwrap_or_default());
    let detail = format!("it is larger than the bucket's limit of {limit}");
    StorageError::certain(StoreKind::Supabase, Kind::TooLarge, detail)
}

/// The upload whose bytes were being sent came to nothing.
pub(super) fn source_gone(error: SpoolError) -> StorageError {
    StorageError::certain(StoreKind::Supabase, Kind::SourceGone, "the upload was abandoned").because(error)
}

/// The follower's bytes, with two guards. The block that would complete a body of announced length is sent only after
/// the clean end, and not at all if the length turns out to be another. And the body breaks off where it outgrows the
/// bucket: the server limits only what it was told the length of (section 5).
fn guarded(
    follower: Follower,
    source: SpoolReader,
    announced: Option<u64>,
    max_bytes: Option<u64>,
) -> BoxStream<'static, Result<Bytes, SpoolError>> {
    unfold((follower.bytes, 0u64, false), move |(mut bytes, sent, over)| {
        let source = source.clone();
        async move {
            if over {
                return None;
            }
            let mut next = bytes.next().await?;
            let after = sent + next.as_ref().map_or(0, |chunk| chunk.len() as u64);
            if max_bytes.is_some_and(|max| after > max) {
                next = Err(SpoolError::Io(std::io::Error::other("more bytes than the bucket takes")));
            } else if next.is_ok() && announced.is_some_and(|announced| after >= announced) {
                match source.completed().await {
                    Ok(size) if Some(size) == announced => {}
                    Ok(_) => {
                        next = Err(SpoolError::Io(std::io::Error::other("the length was announced wrongly")))
                    }
                    Err(error) => next = Err(error),
                }
            }
            let over = next.is_err();
            Some((next, (bytes, after, over)))
        }
    })
    .boxed()
}

/// How far a body is on its way.
pub(super) struct At {
    /// Bytes that were given to the network.
    pub(super) position: u64,
    /// Whether the next move is ours, and not the cloud's.
    pub(super) waits_for_us: bool,
    /// Bytes the server may be digesting now that it has them all.
    pub(super) digests: u64,
}

/// Ends when nothing has moved for `idle` although the next move is the cloud's.
pub(super) async fn stalled(at: impl Fn() -> At, idle: Duration) {
    let (mut last_position, mut since) = (at().position, Instant::now());
    loop {
        tokio::time::sleep(idle / 10).await;
        let now = at();
        if now.position != last_position || now.waits_for_us {
            (last_position, since) = (now.position, Instant::now());
        }
        if since.elapsed() >= idle + Duration::from_secs(now.digests / DIGEST_BYTES_PER_SECOND) {
            return;
        }
    }
}
