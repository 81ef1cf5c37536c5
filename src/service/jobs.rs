//! Jobs as people see them: looked at, tried again, stopped; and the two that people make, a sync of what is only here
//! and a bulk load.

use time::OffsetDateTime;

use super::{ServiceError, Services};
use crate::catalog::{Changed, QueueSyncs};
pub use crate::catalog::{Children, JobKind, JobQuery, JobRecord, JobState};
use crate::domain::SessionId;
use crate::domain::page::{PageRequest, Position};
use crate::domain::recording::micros;
use crate::storage::ListScope;

/// Every kind of job, as answers and queries name it.
pub const JOB_KINDS: [&str; 7] =
    ["sync", "delete", "delete_local", "delete_session", "sync_all", "sync_session", "migration"];

/// One page of jobs.
#[derive(Debug)]
pub struct JobsPage {
    /// Newest first.
    pub rows: Vec<JobRecord>,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
}

/// What a sync would bring to the cloud.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SyncPlan {
    /// Recordings that only a local disk has and that wait for the cloud.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Recordings that are parked or whose sync was cancelled; they would be tried again.
    pub parked: u64,
}

impl Services {
    /// A page of jobs; `before` and `limit` of the query are the page's. Safe to drop.
    pub async fn list_jobs(&self, query: JobQuery, page: &PageRequest) -> Result<JobsPage, ServiceError> {
        let before = page.after.as_ref().map(|after| after.name.clone());
        let mut rows = self.catalog.list_jobs(&JobQuery { before, limit: page.limit + 1, ..query }).await?;
        let more = rows.len() > page.limit;
        rows.truncate(page.limit);
        let place = |job: &JobRecord| Position { time_us: micros(job.created_at), name: job.id.clone() };
        let next_cursor = rows.last().filter(|_| more).map(|job| place(job).to_cursor());
        Ok(JobsPage { rows, next_cursor })
    }

    /// One job. Safe to drop.
    pub async fn get_job(&self, id: &str) -> Result<JobRecord, ServiceError> {
        check_id(id)?;
        self.catalog.get_job(id).await?.ok_or(ServiceError::JobNotFound)
    }

    /// Makes a job due now, also a parked or cancelled one; of a parent, its parts. Safe to drop and to repeat.
    ///
    /// # Errors
    /// [`ServiceError::JobNotFound`], [`ServiceError::JobFixed`] if there is nothing to be done any more.
    pub async fn retry_job(&self, id: &str) -> Result<JobRecord, ServiceError> {
        check_id(id)?;
        let now = micros(OffsetDateTime::now_utc());
        match self.even_when_full(|| self.catalog.retry_job(id, now)).await? {
            Changed::Yes(job) => {
                self.bell.send_replace(());
                self.tell_job(id).await;
                Ok(job)
            }
            Changed::No(_) => Err(ServiceError::JobFixed(
                "There is nothing to retry: the job is done, or its recording is gone.",
            )),
            Changed::Unknown => Err(ServiceError::JobNotFound),
        }
    }

    /// Stops a sync that is open, or the open parts of a parent. The recordings stay where they are. Safe to drop and
    /// to repeat.
    ///
    /// # Errors
    /// [`ServiceError::JobNotFound`], [`ServiceError::JobFixed`] if it is not open or is a deletion.
    pub async fn cancel_job(&self, id: &str) -> Result<JobRecord, ServiceError> {
        check_id(id)?;
        match self.even_when_full(|| self.catalog.cancel_job(id, &self.origin)).await? {
            Changed::Yes(job) => {
                self.tell_job(id).await;
                Ok(job)
            }
            Changed::No(job) if matches!(job.kind, JobKind::Sync(_)) || job.kind.is_parent() => {
                Err(ServiceError::JobFixed("There is nothing to cancel: the job is not open any more."))
            }
            Changed::No(_) => Err(ServiceError::JobFixed(
                "A deletion cannot be cancelled: what was deleted never comes back.",
            )),
            Changed::Unknown => Err(ServiceError::JobNotFound),
        }
    }

    /// What [`Services::sync_now`] would send. Safe to drop.
    ///
    /// # Errors
    /// [`ServiceError::NoCloud`].
    pub async fn plan_sync(&self, session: Option<&SessionId>) -> Result<SyncPlan, ServiceError> {
        if !self.stores.has_primary() {
            return Err(ServiceError::NoCloud);
        }
        let Some(session) = session else {
            let counts = self.catalog.counts().await?;
            return Ok(SyncPlan {
                count: counts.unsynced,
                bytes: counts.unsynced_bytes,
                parked: counts.parked,
            });
        };
        let mut plan = SyncPlan::default();
        for row in self.catalog.view(&ListScope::Session(session.clone())).await?.recordings {
            if row.stores.supabase {
                continue;
            }
            if row.parked_reason.is_some() {
                plan.parked += 1;
            } else {
                plan.count += 1;
                plan.bytes += row.size_bytes;
            }
        }
        Ok(plan)
    }

    /// Brings everything that only a local disk has to the cloud, parked recordings too: makes a parent of those syncs,
    /// or finds the open one. With `hurry`, what failed and waits for its next try goes now. The parent is done at once
    /// if there is nothing, or if all of it is part of other jobs. Runs detached: a parent that was opened is closed.
    ///
    /// # Errors
    /// [`ServiceError::NoCloud`].
    pub async fn sync_now(
        &self,
        session: Option<&SessionId>,
        hurry: bool,
    ) -> Result<JobRecord, ServiceError> {
        if !self.stores.has_primary() {
            return Err(ServiceError::NoCloud);
        }
        let (services, session) = (self.clone(), session.cloned());
        self.tasks
            .spawn(async move { services.queue_as_one(session.as_ref(), hurry).await })
            .await
            .unwrap_or(Err(ServiceError::Unexpected))
    }

    async fn queue_as_one(
        &self,
        session: Option<&SessionId>,
        hurry: bool,
    ) -> Result<JobRecord, ServiceError> {
        let kind = session.cloned().map_or(JobKind::SyncAll, JobKind::SyncSession);
        // This is what makes room on a full disk.
        let parent = self.even_when_full(|| self.catalog.open_parent(&kind)).await?;
        let which = QueueSyncs { session, parked: true, parent: Some(&parent.id), ..QueueSyncs::default() };
        self.even_when_full(|| self.catalog.queue_syncs(which)).await?;
        self.even_when_full(|| self.catalog.close_parent(&parent.id)).await?;
        if hurry {
            let now = micros(OffsetDateTime::now_utc());
            self.even_when_full(|| self.catalog.hurry_jobs(now)).await?;
        }
        self.bell.send_replace(());
        self.tell_job(&parent.id).await;
        self.get_job(&parent.id).await
    }

    /// Makes the parent of a bulk load's syncs. It is done whenever none of them waits, so also now. Runs detached.
    pub async fn begin_migration(&self) -> Result<JobRecord, ServiceError> {
        let services = self.clone();
        let begin = async move {
            let parent = services.catalog.open_parent(&JobKind::Migration).await?;
            services.catalog.close_parent(&parent.id).await?;
            services.tell_job(&parent.id).await;
            services.get_job(&parent.id).await
        };
        self.tasks.spawn(begin).await.unwrap_or(Err(ServiceError::Unexpected))
    }

    /// Ends parents that have no open part: a process that was killed may have opened one and not closed it. Safe to
    /// drop and to repeat.
    pub async fn close_parents(&self) -> Result<(), ServiceError> {
        Ok(self.even_when_full(|| self.catalog.close_parents()).await?)
    }

    /// Whether uploads may name this job as the one they are part of. Safe to drop.
    ///
    /// # Errors
    /// [`ServiceError::NoSuchLoad`].
    pub(super) async fn check_load(&self, id: &str) -> Result<(), ServiceError> {
        match self.catalog.get_job(id).await? {
            Some(job) if job.kind == JobKind::Migration => Ok(()),
            _ => Err(ServiceError::NoSuchLoad),
        }
    }
}

/// What no id can be is not asked for: PostgreSQL takes no NUL.
fn check_id(id: &str) -> Result<(), ServiceError> {
    if id.chars().any(char::is_control) { Err(ServiceError::JobNotFound) } else { Ok(()) }
}
