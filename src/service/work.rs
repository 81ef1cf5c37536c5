//! Work in the background: which job may be taken now, one try of it, and what a failure means for the others. When a job
//! is tried again is the runner's business; how a recording is brought to the cloud is in `sync`, how it is deleted in
//! `delete`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::delete::PrimaryOrService;
use super::{ServiceError, Services};
use crate::catalog::{CatalogError, Job, JobKind, QueueSyncs, Work};
use crate::domain::recording::micros;
use crate::domain::{ObjectKey, StoreKind, backoff};
use crate::storage::{LONGEST_RETRY_AFTER, chain};

/// How far the clocks of gateways on one catalogue may be apart.
const CLOCKS_APART: Duration = Duration::from_secs(3600);

/// How a try ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tried {
    /// The job is done and gone.
    Done,
    /// It cannot be done as things are; the recording says why.
    Parked,
    /// The cloud takes nothing now: this was no try.
    NotNow,
    /// It has to be tried again.
    Again(Setback),
}

/// Why a job has to be tried again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setback {
    /// In plain words.
    pub reason: String,
    /// How long the cloud wants to be left alone, if it said so.
    pub at_least: Option<Duration>,
    /// Whether the cloud failed, so that the job may be done as soon as that works again.
    pub by_cloud: bool,
}

impl Setback {
    /// A failure that has nothing to do with the cloud.
    pub(super) fn here(reason: &str) -> Tried {
        Tried::Again(Self { reason: reason.to_owned(), at_least: None, by_cloud: false })
    }
}

impl From<PrimaryOrService> for Setback {
    fn from(error: PrimaryOrService) -> Self {
        let (at_least, by_cloud) = match &error {
            // One bad copy is no failure of the cloud that its next success makes good.
            PrimaryOrService::Primary(error) => {
                (error.retry_after(), error.may_heal() && !error.is_mismatch())
            }
            PrimaryOrService::Service(_) => (None, false),
        };
        Self { reason: chain(&error), at_least, by_cloud }
    }
}

/// What the background remembers of the cloud's failures between two jobs.
#[derive(Debug, Default)]
pub struct PutOff {
    /// Jobs wait because the cloud failed, and it has taken nothing since.
    by_cloud: AtomicBool,
    /// Until when the cloud asked to be left alone; not by the clock on the wall, which may be set.
    not_before: Mutex<Option<Instant>>,
}

impl PutOff {
    /// A job is to be put off: from now on nothing is hurried before the time that the cloud asked for.
    pub fn heed(&self, setback: &Setback) {
        if let Some(at_least) = setback.at_least {
            let mut not_before = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
            *not_before = (*not_before).max(Some(Instant::now() + at_least));
        }
    }

    /// It was put off: from now on it can be hurried.
    pub fn note(&self, setback: &Setback) {
        if setback.by_cloud {
            self.by_cloud.store(true, Ordering::Relaxed);
        }
    }

    /// How long the cloud still wants to be left alone.
    fn rest(&self) -> Duration {
        let not_before = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }
}

impl Services {
    /// Leaves a job for everything that should be in the cloud alone and is not, also for what was parked for a cause that
    /// may be gone since the gateway stopped. Safe to drop and to repeat.
    pub async fn queue_unsynced(&self) -> Result<(), ServiceError> {
        self.queue(QueueSyncs { in_both: !self.rules.keep_local, for_now: true, ..QueueSyncs::default() })
            .await
    }

    /// Leaves a job for everything that should be in the cloud and is not, and for whose wait there is no reason: there should
    /// be none, and one that there is would wait for the next start. Safe to drop and to repeat.
    pub async fn queue_forgotten(&self) -> Result<(), ServiceError> {
        self.queue(QueueSyncs::default()).await
    }

    /// Takes up what the cloud refused: it takes other recordings now than it did. Safe to drop and to repeat.
    pub async fn queue_refused(&self) -> Result<(), ServiceError> {
        self.queue(QueueSyncs { for_now: true, ..QueueSyncs::default() }).await
    }

    async fn queue(&self, which: QueueSyncs<'_>) -> Result<(), ServiceError> {
        if self.stores.has_primary() {
            self.catalog.queue_syncs(which).await?;
            self.bell.send_replace(());
        }
        Ok(())
    }

    /// Takes the next job that is due, also on a full disk: the work that waits is what makes room there. While the cloud
    /// takes nothing, what needs it is not touched.
    pub async fn claim_job(
        &self,
        now_us: i64,
        lease_us: i64,
        work: Work,
    ) -> Result<Option<Job>, CatalogError> {
        let work = match work {
            work if self.stores.primary_takes_writes() => work,
            Work::Deletions | Work::Local => Work::Local,
            Work::All => return Ok(None),
        };
        self.even_when_full(|| self.catalog.claim_job(now_us, lease_us, work)).await
    }

    /// Tries a job once. Safe to drop and to repeat.
    pub async fn try_job(&self, job: &Job) -> Tried {
        self.tell_job(&job.id).await;
        let done = match &job.kind {
            JobKind::Sync(key) => self.sync_recording(job, key).await,
            JobKind::Delete(key) => self.resume_deletion(key, StoreKind::Supabase).await,
            JobKind::DeleteLocal(key) => self.resume_deletion(key, StoreKind::Local).await,
            JobKind::DeleteSession(session) => {
                self.finish_session_deletion(session).await.map(|()| Tried::Done)
            }
            // Done by their children; nobody is given one.
            JobKind::SyncAll | JobKind::SyncSession(_) | JobKind::Migration => Ok(Tried::Done),
        };
        let tried = done.unwrap_or_else(|error| Tried::Again(error.into()));
        if tried == Tried::Done && matches!(job.kind, JobKind::Sync(_) | JobKind::Delete(_)) {
            self.cloud_works();
        }
        tried
    }

    /// What is left to do about a job that was dropped in the middle because it is not ours any more: if that is so because
    /// its recording was deleted, what may have arrived of it is deleted too. Safe to drop and to repeat.
    pub async fn drop_job(&self, job: &Job) {
        let JobKind::Sync(key) = &job.kind else { return };
        let cleared = async {
            match self.catalog.get(key).await.map_err(ServiceError::from)? {
                Some(_) => Ok(Tried::Done),
                None => self.delete_what_arrived(key).await,
            }
        };
        if let Err(error) = cleared.await {
            tracing::warn!(object.key = %key, error = %chain(&error), "what was being sent of a deleted recording is still to be removed");
        }
    }

    /// Each store has a job of its own.
    pub(super) async fn resume_deletion(
        &self,
        key: &ObjectKey,
        store: StoreKind,
    ) -> Result<Tried, PrimaryOrService> {
        let deletion = self.finish_deletions(std::slice::from_ref(key)).await?;
        Ok(match deletion.pending.holds(store) {
            false => Tried::Done,
            true => match deletion.cause.filter(|_| store == StoreKind::Supabase) {
                Some((reason, by_cloud)) => Tried::Again(Setback { reason, at_least: None, by_cloud }),
                None => Setback::here("the file could not be removed from this disk"),
            },
        })
    }

    /// The cloud has just taken something: what waits because it failed before need not wait its whole time.
    pub fn cloud_works(&self) {
        if self.put_off.by_cloud.swap(false, Ordering::Relaxed) {
            let services = self.clone();
            self.tasks.spawn(async move { services.hurry_jobs().await });
        }
    }

    /// Makes what waits due soon, but not before the time the cloud asked for is over. Safe to drop and to repeat.
    pub async fn hurry_jobs(&self) {
        let soonest = OffsetDateTime::now_utc() + self.put_off.rest();
        match self.catalog.hurry_jobs(micros(soonest)).await {
            Ok(()) => self.bell.send_replace(()),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "what waits for the cloud waits its time");
            }
        }
    }
    /// Sets right what a clock that was ahead put off or leased further than `interval` and `lease` allow. Safe to drop and
    /// to repeat.
    pub async fn heed_the_clock(&self, interval: Duration, lease: Duration) -> Result<(), CatalogError> {
        let longest = backoff::LONGEST_PAUSE.max(interval).max(LONGEST_RETRY_AFTER).max(lease);
        let now = OffsetDateTime::now_utc();
        let [now_us, furthest_us, lease_us] = [now, now + longest + CLOCKS_APART, now + lease].map(micros);
        if self.catalog.pull_in_jobs(now_us, furthest_us, lease_us).await? {
            tracing::warn!("the clock was ahead and is not any more; what was put off by it is due now");
            self.bell.send_replace(());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_rest_that_was_asked_for_counts() {
        let put_off = PutOff::default();
        assert_eq!(put_off.rest(), Duration::ZERO);
        let asked = |at_least| Setback { reason: String::new(), at_least, by_cloud: false };
        for seconds in [60, 5] {
            put_off.heed(&asked(Some(Duration::from_secs(seconds))));
        }
        put_off.heed(&asked(None));
        assert!(put_off.rest() > Duration::from_secs(50) && put_off.rest() <= Duration::from_secs(60));
    }
}
