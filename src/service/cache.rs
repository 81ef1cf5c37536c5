//! The read-through cache: cloud recordings that are played often through the gateway come from its disk.
//!
//! A recording is taken in at its second play within a day, for most are played once, by whoever made them. It is
//! fetched once, beside the play that asked for it, which goes on from the cloud; kept only if its bytes have the
//! digest that the catalogue knows; and always gives way to uploads. Whether a recording is there at all, and what
//! it is called, is never asked of the cache: it answers only where the bytes would have come from the cloud.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use crate::catalog::CatalogError;
use crate::domain::{ContentDigest, Recording, StoreKind};
use crate::runtime::metrics;
use crate::service::{ServiceError, Services};
use crate::spool::{SpoolError, read_blocks};
use crate::storage::cache::CacheDir;
use crate::storage::tiered::PrimaryError;
use crate::storage::{OpenObject, chain};

/// How long after a play another one counts as the second.
const WINDOW: Duration = Duration::from_secs(24 * 3600);
/// First plays that are remembered; beyond that they are forgotten all at once.
const REMEMBERED: usize = 10_000;
/// Recordings that are fetched at once.
const AT_ONCE: usize = 2;
/// A player that asks for no more than this from the start only asks whether ranges work.
const PROBE_BYTES: u64 = 2;

/// What is cached and what may be soon. Clones share it.
#[derive(Clone, Debug)]
pub struct Cache {
    files: Arc<CacheDir>,
    /// When a recording that is not cached was first played.
    plays: Arc<Mutex<HashMap<ContentDigest, Instant>>>,
    fetching: Arc<Mutex<HashSet<ContentDigest>>>,
    slots: Arc<Semaphore>,
}

/// Why a recording was not taken in. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
enum NotKept {
    #[error("the disk has no room to spare")]
    NoRoom,
    #[error("the cloud did not give it")]
    Cloud(#[from] PrimaryError),
    #[error("its bytes broke off")]
    BrokeOff(#[source] io::Error),
    #[error("the cloud copy is not the recording that was stored")]
    OtherBytes,
    #[error("it could not be spooled")]
    Spool(#[from] SpoolError),
    #[error("it could not be kept")]
    Disk(#[from] io::Error),
    #[error("whether it is still there could not be asked")]
    Catalog(#[from] CatalogError),
}

/// Held while a recording is fetched.
struct Fetching {
    cache: Cache,
    digest: ContentDigest,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        lock(&self.cache.fetching).remove(&self.digest);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Cache {
    /// A cache of these files.
    pub fn new(files: CacheDir) -> Self {
        Self {
            files: Arc::new(files),
            plays: Arc::default(),
            fetching: Arc::default(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Bytes that are cached now.
    pub fn bytes(&self) -> u64 {
        self.files.bytes()
    }

    /// Gives up about `bytes`, if there are as many. Blocking.
    pub fn free(&self, bytes: u64) {
        self.files.free(bytes);
    }

    /// Forgets the bytes of a recording that is deleted. Another with the same bytes will be fetched again.
    pub(super) async fn forget(&self, digest: Option<ContentDigest>) {
        if let Some(digest) = digest {
            lock(&self.plays).remove(&digest);
            self.files.forget(digest).await;
        }
    }

    /// Notes a play; `true` at the second one within the window.
    fn is_wanted(&self, digest: ContentDigest) -> bool {
        let mut plays = lock(&self.plays);
        if plays.get(&digest).is_some_and(|first| first.elapsed() <= WINDOW) {
            return true;
        }
        if plays.len() >= REMEMBERED {
            plays.clear();
        }
        plays.insert(digest, Instant::now());
        false
    }

    /// Claims the fetching of a recording; `None` if it is being fetched.
    fn begin(&self, digest: ContentDigest) -> Option<Fetching> {
        lock(&self.fetching).insert(digest).then(|| Fetching { cache: self.clone(), digest })
    }
}

impl Services {
    /// Opens a recording's bytes as [`Services::open`] does, from the cache where they would come from the cloud and it
    /// has them. `plays` says that somebody will read them, and not only ask about them. Safe to drop.
    pub async fn play(
        &self,
        recording: &Recording,
        store: StoreKind,
        range: Option<Range<u64>>,
        plays: bool,
    ) -> Result<OpenObject, ServiceError> {
        let digest = match recording.sha256 {
            Some(digest) if store == StoreKind::Supabase && self.cache.files.limit_bytes() > 0 => digest,
            _ => return self.open(recording, store, range, plays).await,
        };
        if let Some(file) = self.cache.files.open_file(digest, recording.size_bytes).await {
            metrics::cache_asked("hit");
            let range = range.unwrap_or(0..recording.size_bytes);
            let services = self.clone();
            let bytes = read_blocks(Arc::new(file), range.start, range.end, self.spool.blocks().clone());
            // A disk that cannot read it must not keep the cloud's copy from the next one who asks.
            let bytes = bytes.inspect_err(move |_| {
                let cache = services.cache.clone();
                services.tasks.spawn(async move { cache.files.forget(digest).await });
            });
            let bytes = bytes.boxed();
            return Ok(OpenObject { object: recording.into(), bytes });
        }
        metrics::cache_asked("miss");
        let from_start = range.as_ref().is_none_or(|r| r.start == 0 && r.end > PROBE_BYTES);
        let opened = self.open(recording, store, range, plays).await?;
        // A player asks for many ranges in one play; one of them has the first byte.
        if plays && from_start && self.cache.is_wanted(digest) {
            self.start_fetching(recording.clone(), digest);
        }
        Ok(opened)
    }

    /// Fetches a recording into the cache, beside whoever plays it, unless it is being fetched or too many are.
    fn start_fetching(&self, recording: Recording, digest: ContentDigest) {
        let Ok(slot) = self.cache.slots.clone().try_acquire_owned() else { return };
        let Some(fetching) = self.cache.begin(digest) else { return };
        // Kept while the cloud let this play wait.
        if self.cache.files.has(digest) {
            return;
        }
        let services = self.clone();
        self.tasks.spawn(async move {
            let (_slot, _fetching) = (slot, fetching);
            let fetched = tokio::select! {
                fetched = services.fetch(&recording, digest) => fetched,
                () = services.tasks.stopping().cancelled() => return,
            };
            // Whether it worked or not: without this, one that cannot be kept would be fetched at each play.
            lock(&services.cache.plays).remove(&digest);
            let (key, size) = (&recording.key, recording.size_bytes);
            match fetched {
                Ok(()) => tracing::debug!(object.key = %key, size, "a recording was taken into the cache"),
                Err(error @ NotKept::OtherBytes) => {
                    tracing::warn!(object.key = %key, error = %chain(&error), "not cached");
                }
                Err(error) => tracing::info!(object.key = %key, error = %chain(&error), "not cached"),
            }
        });
    }

    /// The bytes go through the spool as those of an upload do: hashed on the way, within promised room, and removed
    /// with their last holder or at the next start.
    async fn fetch(&self, recording: &Recording, digest: ContentDigest) -> Result<(), NotKept> {
        let size = recording.size_bytes;
        if size > self.cache.files.limit_bytes() {
            return Err(NotKept::NoRoom);
        }
        let room = self.room.spare(size)?.ok_or(NotKept::NoRoom)?;
        let opened = self.stores.open_primary(&recording.key, None).await?.ok_or(NotKept::OtherBytes)?;
        let mut writer = self.spool.create(&uuid::Uuid::now_v7().to_string())?.within(room);
        let (mut bytes, mut received) = (opened.bytes, 0);
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(NotKept::BrokeOff)?;
            received += chunk.len() as u64;
            if received > size {
                return Err(NotKept::OtherBytes);
            }
            writer.push(&chunk).await?;
        }
        let spooled = writer.finish().await?;
        if spooled.sha256 != digest || spooled.size_bytes != size {
            return Err(NotKept::OtherBytes);
        }
        let path = spooled.publish().take_path().ok_or(SpoolError::Abandoned)?;
        let files = self.cache.files.clone();
        let kept = tokio::task::spawn_blocking(move || files.keep(path, digest, size)).await;
        kept.unwrap_or_else(|panic| Err(io::Error::other(panic)))?;
        // Deleted while it came: the deletion found nothing to forget.
        if self.catalog.get(&recording.key).await?.is_none() {
            self.cache.forget(Some(digest)).await;
        }
        Ok(())
    }
}
