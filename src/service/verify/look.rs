//! Looking at one name: row, stores, row again; reading bytes for their digest at a rate that leaves uploads theirs.
//!
//! Never any change in here.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use std::sync::atomic::Ordering;
use time::OffsetDateTime;

use super::judge::{Case, Copy, Judged, Seen, is_doubtful, judge};
use super::{Finding, Run, Stop};
use crate::catalog::Tombstone;
use crate::domain::merge::StoredObject;
use crate::domain::{ContentDigest, ObjectKey, Recording, StoreKind};

/// Bytes a second that are read while uploads come in, each of the copies that are read at once.
const BESIDE_UPLOADS: u64 = 8 << 20;
/// Pauses shorter than this are gathered.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// How often a name that changes meanwhile is looked at.
const TRIES: u32 = 3;

/// What the catalogue says of a name at one moment.
#[derive(PartialEq, Eq)]
pub(super) struct Known {
    pub row: Option<Recording>,
    tombstone: Option<Tombstone>,
    session_deleted: Option<OffsetDateTime>,
}

impl Run {
    pub(super) async fn known(&self, key: &ObjectKey) -> Result<Known, Stop> {
        let catalog = &self.services.catalog;
        Ok(Known {
            row: catalog.get(key).await?,
            tombstone: catalog.tombstone(key).await?,
            session_deleted: catalog.session_tombstone(&key.session).await?,
        })
    }

    /// Looks at one name until it holds still, and does what is to be done about what is wrong.
    pub(super) async fn examine(&self, key: &ObjectKey) -> Result<Vec<Finding>, Stop> {
        for _ in 0..TRIES {
            self.go_on()?;
            let Some(case) = self.look(key).await? else { continue };
            let Judged { verdicts, not_checkable } = judge(&case);
            self.state().summary.not_checkable += not_checkable;
            let mut findings = Vec::new();
            for verdict in verdicts {
                let treated = self.treat(&case, &verdict).await?;
                findings.push(self.finding(key, case.row.as_ref(), verdict, treated));
            }
            return Ok(findings);
        }
        self.state().summary.in_motion += 1;
        Ok(Vec::new())
    }

    /// Everything known of a name; `None` if the catalogue changed its mind meanwhile.
    async fn look(&self, key: &ObjectKey) -> Result<Option<Case>, Stop> {
        let (settled, now) = (self.settled(), OffsetDateTime::now_utc());
        let known = self.known(key).await?;
        // Asked before the store: what is not in the spool any more is in its place by then.
        let spooled = known.row.as_ref().is_some_and(|row| self.services.spool.has(&row.upload_id));
        let listing = self.services.stores.look(key).await;
        let mut cloud = match listing.primary {
            Ok(objects) => copy_of(objects),
            Err(error) => {
                self.without_cloud(&error);
                // Without a cloud nothing can be there that the row does not name.
                let names_it = known.row.as_ref().is_some_and(|row| row.stores.supabase);
                if self.services.stores.has_primary() || names_it { Copy::NotAsked } else { Copy::Absent }
            }
        };
        let mut local = copy_of(listing.fallback?);
        if let Some(row) = &known.row {
            let sized = |copy: &Copy| copy.seen().is_some_and(|s| s.object.size_bytes == row.size_bytes);
            let in_doubt = cloud.seen().is_some_and(|seen| is_doubtful(row, &seen.object));
            if self.options.read && sized(&local) {
                local = self.with_digest(key, StoreKind::Local, local).await?;
            }
            if (self.options.read || in_doubt) && row.sha256.is_some() && sized(&cloud) {
                cloud = self.with_digest(key, StoreKind::Supabase, cloud).await?;
            }
        }
        let jobs = self.services.catalog.open_jobs(&key.session, Some(&key.filename)).await?;
        if self.known(key).await? != known {
            return Ok(None);
        }
        let Known { row, tombstone, session_deleted } = known;
        Ok(Some(Case {
            key: key.clone(),
            row,
            tombstone,
            session_deleted,
            jobs: jobs.into_iter().map(|job| job.kind).collect(),
            cloud,
            local,
            spooled,
            has_cloud: self.services.stores.has_primary(),
            settled,
            now,
        }))
    }

    /// The same copy with the digest of its bytes. A cloud that breaks off has not been asked.
    async fn with_digest(&self, key: &ObjectKey, store: StoreKind, copy: Copy) -> Result<Copy, Stop> {
        let Copy::There(seen) = copy else { return Ok(copy) };
        Ok(match self.digest(key, store).await? {
            Ok(None) => Copy::Absent,
            Ok(digest) => Copy::There(Box::new(Seen { digest, ..*seen })),
            Err(_) if store == StoreKind::Supabase => Copy::NotAsked,
            Err(why) => Copy::There(Box::new(Seen { unreadable: Some(why), ..*seen })),
        })
    }

    /// Reads a copy. `Ok(None)` if there is none; a sentence if it could not be read.
    pub(super) async fn digest(
        &self,
        key: &ObjectKey,
        store: StoreKind,
    ) -> Result<Result<Option<ContentDigest>, String>, Stop> {
        let stores = &self.services.stores;
        let opened = match store {
            StoreKind::Local => {
                stores.fallback().open(key, None).await.map_err(|error| crate::storage::chain(&error))
            }
            StoreKind::Supabase => stores.open_primary(key, None).await.map_err(|error| {
                self.without_cloud(&error);
                crate::storage::chain(&error)
            }),
        };
        Ok(match opened {
            Ok(Some(opened)) => self.hash(opened.bytes).await?.map(Some),
            Ok(None) => Ok(None),
            Err(why) => Err(why),
        })
    }

    async fn hash(
        &self,
        mut bytes: impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send,
    ) -> Result<Result<ContentDigest, String>, Stop> {
        let (mut hasher, mut owed) = (Sha256::new(), Duration::ZERO);
        while let Some(chunk) = bytes.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => return Ok(Err(error.to_string())),
            };
            hasher.update(&chunk);
            self.read.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if self.services.spool.blocks().uploads() > 0 {
                owed += Duration::from_secs_f64(chunk.len() as f64 / BESIDE_UPLOADS as f64);
            }
            // The block goes back before anybody waits.
            drop(chunk);
            tokio::task::yield_now().await;
            if owed >= SHORTEST_PAUSE {
                tokio::time::sleep(owed).await;
                owed = Duration::ZERO;
            }
            self.tell_progress().await?;
        }
        Ok(Ok(ContentDigest::from_bytes(hasher.finalize().into())))
    }
}

fn copy_of(objects: Vec<StoredObject>) -> Copy {
    match objects.into_iter().next() {
        Some(object) => Copy::There(Box::new(Seen { object, digest: None, unreadable: None })),
        None => Copy::Absent,
    }
}
