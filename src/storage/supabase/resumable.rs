//! Sending one finished object by the resumable endpoint (contract, section 10), so that a break of the line or of
//! this process costs only what was on its way.
//!
//! The server's offset is the only truth: after anything but a plain success it is asked, and sending goes on from what
//! it says. As with a single request, the object appears only with its last byte. What is remembered of an upload is
//! bound to the recording, and its bytes were compared with its digest before: they are the same ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::Method;
use reqwest::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};

use super::client::{Client, nonsense, read_capped, timeout, transport};
use super::tus::{self, Purpose, tus_refusal};
use super::upload::{At, stalled};
use super::wire::retry_after;
use crate::domain::{ObjectKey, StoreKind};
use crate::spool::SpoolReader;
use crate::storage::{Background, Kind, ObjectMeta, StorageError};

/// A request that brought at least this much before it broke is followed by the next at once. One that brought less
/// counts as a failed try.
const PROGRESS_BYTES: u64 = 64 << 10;
/// After a break the server may still be taking in what is on its way; the question for the offset ends that.
const SETTLING: Duration = Duration::from_millis(200);
/// Shortest request after a proxy refused a longer one: the piece that Supabase's own documents use.
const SHORTEST_PATCH: u64 = 6 << 20;

/// Stores the object, continuing the upload that `background.resume` remembers. [`Kind::NotFound`]: the server has no
/// resumable endpoint.
pub(super) async fn put(
    client: &Client,
    key: &ObjectKey,
    source: &SpoolReader,
    size: u64,
    meta: &ObjectMeta,
    background: Background<'_>,
) -> Result<(), StorageError> {
    let purpose = Purpose::of(key, size, meta);
    let sending = Sending { client, key, source, size, background };
    let known = background.resume.load().await.and_then(|text| tus::from_text(&text, &purpose));
    if let Some(id) = known {
        match sending.offset(&id, Some(&purpose)).await? {
            Some(offset) => {
                tracing::debug!(object.key = %key, offset, "an upload to the cloud is continued");
                match sending.finish(&id, offset).await? {
                    Ended::Whole => return Ok(()),
                    Ended::Gone => {}
                }
            }
            None => background.resume.save(None).await,
        }
    }
    let id = sending.create(&purpose.metadata(&client.access.bucket, &meta.content_type)).await?;
    (background.accepted)();
    background.resume.save(Some(&tus::to_text(&id, purpose))).await;
    match sending.finish(&id, 0).await? {
        Ended::Whole => Ok(()),
        Ended::Gone => Err(unavailable("it forgot an upload it had just begun")),
    }
}

fn unavailable(detail: &str) -> StorageError {
    StorageError::certain(StoreKind::Supabase, Kind::Unavailable, detail)
}

/// How the sending of one upload ended.
enum Ended {
    /// The server has all bytes.
    Whole,
    /// The server knows nothing of it any more: it has expired.
    Gone,
}

/// What became of one request that sent bytes.
enum Sent {
    /// The server said how much it has.
    Offset(u64),
    /// It has to be asked. Whether all bytes may have arrived.
    Doubt(StorageError, bool),
    /// Something in front refuses bodies of this length.
    TooLong(StorageError),
    /// It was refused for good, or for now.
    Refused(StorageError),
}

struct Sending<'a> {
    client: &'a Client,
    key: &'a ObjectKey,
    source: &'a SpoolReader,
    size: u64,
    background: Background<'a>,
}

impl Sending<'_> {
    /// Begins an upload. The server judges size, type, name and rights here, before any byte.
    async fn create(&self, metadata: &str) -> Result<String, StorageError> {
        let request = self.client.resumable(Method::POST, "");
        let request = request
            .header("upload-length", self.size)
            .header("upload-metadata", metadata)
            .header(CONTENT_LENGTH, 0)
            .timeout(self.client.access.idle_timeout);
        let response = request.send().await.map_err(|error| transport(error, false))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        if status == 201 {
            return tus::id_in(&headers).ok_or_else(|| nonsense(false));
        }
        let body = read_capped(response, false).await?;
        if (200..300).contains(&status) {
            return Err(nonsense(false));
        }
        Err(tus_refusal(status, &body, false).retry_after(retry_after(&headers)))
    }

    /// Asks how much the server has; `None` if it does not know the upload, or not as one for `purpose`. A request
    /// that still sends is ended by this question.
    async fn offset(&self, id: &str, purpose: Option<&Purpose>) -> Result<Option<u64>, StorageError> {
        // The server lets a question wait for the request it ends, so it may take longer than others.
        let request = self.client.resumable(Method::HEAD, &format!("/{id}"));
        let request = request.timeout(self.client.access.idle_timeout);
        let response = request.send().await.map_err(|error| transport(error, false))?;
        let (status, headers) = (response.status().as_u16(), response.headers());
        match (status, tus::number(headers, "upload-offset")) {
            (200 | 204, Some(offset)) => {
                let is_ours = purpose.is_none_or(|p| p.is_of(headers, &self.client.access.bucket));
                Ok(Some(offset).filter(|offset| is_ours && *offset <= self.size))
            }
            (404 | 410, _) => Ok(None),
            // No body says why (section 2): a key that does not work is no reason to forget the upload.
            (400..500, _) if status != 429 => match self.client.info("authenticated/", self.key).await {
                Err(error) if error.kind != Kind::NotFound => Err(error),
                _ => Ok(None),
            },
            (429 | 500.., _) => Err(tus_refusal(status, b"", false).retry_after(retry_after(headers))),
            _ => Err(nonsense(false)),
        }
    }

    /// Sends what is missing from `offset` on. An upload that has come to its end, good or bad, is forgotten; after
    /// other failures it can be continued.
    async fn finish(&self, id: &str, mut offset: u64) -> Result<Ended, StorageError> {
        let mut longest = self.client.access.patch_bytes;
        while offset < self.size {
            let before = offset;
            let end = self.size.min(before.saturating_add(longest));
            let (error, may_be_whole) = match self.append(id, before, end).await {
                Sent::Offset(at) if at > before && at <= self.size => {
                    offset = at;
                    (self.background.accepted)();
                    continue;
                }
                Sent::Offset(_) => (unavailable("it takes no more bytes of the upload"), false),
                Sent::Doubt(error, may_be_whole) => (error, may_be_whole),
                Sent::TooLong(error) if longest <= SHORTEST_PATCH => return Err(error),
                Sent::TooLong(_) => {
                    longest = (longest / 4).max(SHORTEST_PATCH);
                    continue;
                }
                Sent::Refused(error) => return Err(error),
            };
            let taken = error.kind == Kind::AlreadyExists;
            tokio::time::sleep(SETTLING).await;
            offset = match self.offset(id, None).await {
                Ok(Some(at)) => at,
                Ok(None) => {
                    self.background.resume.save(None).await;
                    return if may_be_whole { Err(error.unknown_if(true)) } else { Ok(Ended::Gone) };
                }
                Err(asking) => return Err(asking.unknown_if(may_be_whole)),
            };
            if offset < self.size && taken {
                // Somebody else's object has the name, or ours came there another way. The rest is never wanted.
                self.background.resume.save(None).await;
                let _ = self.terminate(id).await;
                return Err(error);
            }
            if offset < self.size && offset < before.saturating_add(PROGRESS_BYTES) {
                return Err(error);
            }
            tracing::debug!(object.key = %self.key, offset, error = %crate::storage::chain(&error), "sending broke off and goes on");
        }
        // The next try must not take this upload for its own success: whether the object is there is asked for.
        self.background.resume.save(None).await;
        Ok(Ended::Whole)
    }

    /// Sends the bytes `start..end`.
    async fn append(&self, id: &str, start: u64, end: u64) -> Sent {
        let given = Arc::new(AtomicU64::new(start));
        let (bytes, held) = self.background.pacer.pace(self.source.part(start, end));
        let counted = given.clone();
        let bytes = bytes.inspect(move |piece| {
            counted.fetch_add(piece.as_ref().map_or(0, |piece| piece.len() as u64), Ordering::Relaxed);
        });
        let request = self.client.resumable(Method::PATCH, &format!("/{id}"));
        let request = request
            .header(CONTENT_TYPE, "application/offset+octet-stream")
            .header(CONTENT_LENGTH, end - start)
            .header("upload-offset", start)
            .header(CONNECTION, "close")
            .body(reqwest::Body::wrap_stream(bytes));
        let given = || given.load(Ordering::Relaxed);
        let may_be_whole = || end == self.size && given() >= end;
        let at = || At {
            position: given(),
            waits_for_us: held.now(),
            digests: if may_be_whole() { self.size } else { 0 },
        };
        let idle = self.client.access.idle_timeout;
        let answered = async {
            let response = request.send().await.map_err(|error| transport(error, false))?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok((status, headers, read_capped(response, false).await?))
        };
        let answered = tokio::select! {
            answered = answered => answered,
            () = stalled(at, idle) => Err(timeout(false)),
        };
        match answered {
            Ok((status, headers, body)) => judge(status, &headers, &body, may_be_whole()),
            Err(error) => Sent::Doubt(error, may_be_whole()),
        }
    }

    /// Gives an upload up, so that the server need not keep what it has of it until it expires.
    async fn terminate(&self, id: &str) -> Result<(), reqwest::Error> {
        let request = self.client.resumable(Method::DELETE, &format!("/{id}"));
        request.timeout(self.client.access.question_timeout).send().await.map(|_| ())
    }
}

/// What the answer to a request that sent bytes means.
fn judge(status: u16, headers: &HeaderMap, body: &[u8], may_be_whole: bool) -> Sent {
    if status == 204 {
        return match tus::number(headers, "upload-offset") {
            Some(offset) => Sent::Offset(offset),
            None => Sent::Doubt(nonsense(false), may_be_whole),
        };
    }
    if (200..300).contains(&status) {
        return Sent::Doubt(nonsense(false), may_be_whole);
    }
    let mut error = tus_refusal(status, body, false).retry_after(retry_after(headers));
    if matches!(status, 404 | 410) {
        // It has expired; that the endpoint itself is missing is said when an upload is begun.
        error.kind = Kind::Unavailable;
    }
    match error.kind {
        // The length was accepted when the upload was begun.
        Kind::TooLarge => Sent::TooLong(error),
        _ if error.retry_after.is_some() => Sent::Refused(error.unknown_if(may_be_whole)),
        // A complete upload, a name taken meanwhile, another offset than it has, an expired upload, or a failure of
        // the server: each is cleared up by asking for the offset.
        Kind::AlreadyExists | Kind::Throttled | Kind::Unavailable | Kind::Timeout | Kind::Nonsense => {
            Sent::Doubt(error, may_be_whole)
        }
        _ => Sent::Refused(error),
    }
}
