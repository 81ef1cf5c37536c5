//! Work that waits. A job is open until it is done, parked or cancelled; among the open ones there is one at most of a
//! kind for a recording. A parent ends with its last open child, and is open again when it gets another.
//!
//! Invariant: who changes several recordings and their jobs holds the lock of their session (see [`super`]), or takes
//! none that somebody else has; otherwise two could wait for each other.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::parents::{add_children, parents_of, settle_open_parents, settle_parent, settle_parents};
use super::rows::{corrupt, key_of, time_of, without_nul};
use super::{Dialect, Result, SqlCatalog, Tx, audit, given, new_id, now_us, sql};
use crate::catalog::{
    Action, Change, Changed, Job, JobKind, JobQuery, JobRecord, JobState, Jobs, Origin, QueueSyncs, Work,
};
use crate::domain::{Filename, GatewayId, ObjectKey, SessionId, StoreSet};

/// Why a recording whose sync was cancelled is not in the cloud.
const CANCELLED: &str = "its sync was cancelled; retry the job to send it";

pub(super) struct NewJob<'a> {
    pub(super) kind: &'a str,
    pub(super) session: &'a str,
    pub(super) filename: &'a str,
    pub(super) gateway: Option<&'a GatewayId>,
    pub(super) parent: Option<&'a str>,
}

pub(super) async fn insert(tx: &mut Tx, job: NewJob<'_>) -> Result<()> {
    sql(
        "INSERT INTO jobs (id, kind, session_id, filename, state, gateway, parent_id, attempts, created_at, run_at, leased_until)
         VALUES ($1, $2, $3, $4, 'open', $5, $6, 0, $7, $7, 0)
         ON CONFLICT (kind, session_id, filename) WHERE state = 'open' DO UPDATE SET run_at = $7, gateway = $5",
    )
    .bind(new_id())
    .bind(job.kind)
    .bind(job.session)
    .bind(job.filename)
    .bind(job.gateway.map(GatewayId::as_str))
    .bind(job.parent)
    .bind(now_us())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(super) async fn add(
    tx: &mut Tx,
    kind: &str,
    key: &ObjectKey,
    gateway: Option<&GatewayId>,
    parent: Option<&str>,
) -> Result<()> {
    let (session, filename) = (key.session.as_str(), key.filename.as_str());
    insert(tx, NewJob { kind, session, filename, gateway, parent }).await?;
    match parent {
        Some(parent) => settle_parent(tx, parent).await,
        None => Ok(()),
    }
}

pub(super) async fn add_of_session(tx: &mut Tx, kind: &str, session: &SessionId) -> Result<()> {
    insert(tx, NewJob { kind, session: session.as_str(), filename: "", gateway: None, parent: None }).await
}

/// A job for each store that is still to confirm: the file can only be removed by the gateway that has it.
pub(super) async fn add_deletions(
    tx: &mut Tx,
    key: &ObjectKey,
    pending: StoreSet,
    holder: &GatewayId,
) -> Result<()> {
    if pending.local {
        add(tx, "delete_local", key, Some(holder), None).await?;
    }
    if pending.supabase {
        add(tx, "delete", key, None, None).await?;
    }
    Ok(())
}

/// As if it had never been.
pub(super) async fn drop_open(tx: &mut Tx, kind: &str, key: &ObjectKey) -> Result<()> {
    let dropped = sql(
        "DELETE FROM jobs WHERE kind = $1 AND session_id = $2 AND filename = $3 AND state = 'open' RETURNING parent_id",
    )
    .bind(kind)
    .bind(key.session.as_str())
    .bind(key.filename.as_str())
    .fetch_all(&mut **tx)
    .await?;
    settle_parents(tx, parents_of(&dropped)?).await
}

/// A recording is gone: its sync ends, also one that was parked. Returns the parents, for [`settle_parents`] when no other
/// child is touched any more.
pub(super) async fn cancel_sync(tx: &mut Tx, key: &ObjectKey, why: &str) -> Result<Vec<String>> {
    let ended = sql(
        "UPDATE jobs SET state = 'cancelled', finished_at = $3, leased_until = 0, leased_by = NULL, last_error = $4
         WHERE kind = 'sync' AND session_id = $1 AND filename = $2 AND state IN ('open', 'parked') RETURNING parent_id",
    )
    .bind(key.session.as_str())
    .bind(key.filename.as_str())
    .bind(now_us())
    .bind(why)
    .fetch_all(&mut **tx)
    .await?;
    parents_of(&ended)
}

/// A parked sync makes room for what takes its place.
pub(super) async fn replace_parked(tx: &mut Tx, key: &ObjectKey) -> Result<()> {
    sql("UPDATE jobs SET state = 'cancelled'
         WHERE kind = 'sync' AND session_id = $1 AND filename = $2 AND state = 'parked'")
    .bind(key.session.as_str())
    .bind(key.filename.as_str())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The open job comes to an end.
pub(super) async fn end_open(
    tx: &mut Tx,
    kind: &str,
    key: &ObjectKey,
    state: &str,
    error: Option<&str>,
) -> Result<()> {
    let parents = end_child(tx, kind, key, state, error).await?;
    settle_parents(tx, parents).await
}

async fn end_child(
    tx: &mut Tx,
    kind: &str,
    key: &ObjectKey,
    state: &str,
    error: Option<&str>,
) -> Result<Vec<String>> {
    let ended = sql(
        "UPDATE jobs SET state = $4, finished_at = $5, leased_until = 0, leased_by = NULL, last_error = $6
         WHERE kind = $1 AND session_id = $2 AND filename = $3 AND state = 'open' RETURNING parent_id",
    )
    .bind(kind)
    .bind(key.session.as_str())
    .bind(key.filename.as_str())
    .bind(state)
    .bind(now_us())
    .bind(error.map(without_nul))
    .fetch_all(&mut **tx)
    .await?;
    parents_of(&ended)
}

/// A deletion is done. One that its request did at once leaves no job behind.
pub(super) async fn end_deletion(tx: &mut Tx, kind: &str, key: &ObjectKey) -> Result<()> {
    sql(
        "DELETE FROM jobs WHERE kind = $1 AND session_id = $2 AND filename = $3 AND state = 'open' AND attempts = 0",
    )
    .bind(kind)
    .bind(key.session.as_str())
    .bind(key.filename.as_str())
    .execute(&mut **tx)
    .await?;
    end_open(tx, kind, key, "done", None).await
}

pub(super) async fn end_of_session(tx: &mut Tx, kind: &str, session: &SessionId) -> Result<()> {
    sql("UPDATE jobs SET state = 'done', finished_at = $3, leased_until = 0, leased_by = NULL
         WHERE kind = $1 AND session_id = $2 AND state = 'open'")
    .bind(kind)
    .bind(session.as_str())
    .bind(now_us())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Makes a job due now. If a newer one took its place, that one is hurried.
async fn retry(tx: &mut Tx, id: &str, key: &ObjectKey, now_us: i64) -> Result<()> {
    sql(
        "UPDATE jobs SET state = 'open', finished_at = NULL WHERE id = $1 AND state IN ('parked', 'cancelled')
             AND NOT EXISTS (SELECT 1 FROM jobs other WHERE other.kind = jobs.kind AND other.state = 'open'
                 AND other.session_id = jobs.session_id AND other.filename = jobs.filename)",
    )
    .bind(id)
    .execute(&mut **tx)
    .await?;
    sql(
        "UPDATE recordings SET parked_reason = NULL WHERE session_id = $1 AND filename = $2 AND parked_reason IS NOT NULL",
    )
    .bind(key.session.as_str())
    .bind(key.filename.as_str())
    .execute(&mut **tx)
    .await?;
    sql(
        "UPDATE jobs SET run_at = $3 WHERE session_id = $1 AND filename = $2 AND state = 'open' AND run_at > $3",
    )
    .bind(key.session.as_str())
    .bind(key.filename.as_str())
    .bind(now_us)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

const JOB_COLUMNS: &str = "id, kind, session_id, filename, state, attempts, created_at, run_at, leased_until, finished_at, \
    last_error, parent_id, gateway";

fn record_of(row: &AnyRow, now: i64) -> Result<JobRecord> {
    let (kind, session, filename): (String, String, String) =
        (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    let kind = JobKind::parse(&kind, &session, &filename)
        .ok_or_else(|| corrupt(format!("job {kind} {session}/{filename}")))?;
    let (state, leased_until): (String, i64) = (row.try_get(4)?, row.try_get(8)?);
    let state = match state.as_str() {
        "open" if leased_until > now => JobState::Running,
        "open" => JobState::Waiting,
        state => JobState::parse(state).ok_or_else(|| corrupt(state))?,
    };
    let run_at =
        if state == JobState::Waiting && !kind.is_parent() { Some(time_of(row.try_get(7)?)?) } else { None };
    Ok(JobRecord {
        id: row.try_get(0)?,
        kind,
        state,
        attempts: row.try_get(5)?,
        created_at: time_of(row.try_get(6)?)?,
        run_at,
        finished_at: row.try_get::<Option<i64>, _>(9)?.map(time_of).transpose()?,
        last_error: row.try_get(10)?,
        parent_id: row.try_get(11)?,
        gateway: row.try_get::<Option<String>, _>(12)?.map(GatewayId),
        children: None,
    })
}

impl SqlCatalog {
    /// Looks past rows that somebody is just changing, instead of waiting for them: nobody can be waiting for us then.
    fn skip_locked(&self) -> &'static str {
        match self.dialect {
            Dialect::Sqlite => "",
            Dialect::Postgres => "FOR UPDATE SKIP LOCKED",
        }
    }

    async fn job(&self, tx: &mut Tx, id: &str) -> Result<Option<JobRecord>> {
        let row = sql(sqlx::AssertSqlSafe(format!("SELECT {JOB_COLUMNS} FROM jobs WHERE id = $1")))
            .bind(id)
            .fetch_optional(&mut **tx)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let mut job = record_of(&row, now_us())?;
        add_children(tx, &mut job).await?;
        Ok(Some(job))
    }

    /// The job itself, or of a parent its children that are in one of `states`: what goes into one transaction together.
    /// On PostgreSQL that is a session, whose lock is taken first as for every change of one; several could meet who
    /// takes them in another order, and of a large parent they would be more than the server has room for.
    async fn affected(&self, job: &JobRecord, states: &[&str]) -> Result<Vec<Vec<(String, ObjectKey)>>> {
        let column = if job.kind.is_parent() { "parent_id" } else { "id" };
        let rows = sql(sqlx::AssertSqlSafe(format!(
            "SELECT session_id, filename, id, state FROM jobs WHERE {column} = $1 AND filename <> ''
             ORDER BY session_id, filename"
        )))
        .bind(job.id.as_str())
        .fetch_all(&mut *self.snapshot().await?)
        .await?;
        let mut affected: Vec<(String, ObjectKey)> = Vec::new();
        for row in &rows {
            let state: String = row.try_get(3)?;
            if states.contains(&state.as_str()) {
                affected.push((row.try_get(2)?, key_of(row)?));
            }
        }
        let together = |a: &(String, ObjectKey), b: &(String, ObjectKey)| {
            self.dialect == Dialect::Sqlite || a.1.session == b.1.session
        };
        Ok(affected.chunk_by(together).map(<[_]>::to_vec).collect())
    }

    /// Makes some jobs of one transaction due now; whether there was one.
    async fn retry_part(
        &self,
        part: &[(String, ObjectKey)],
        is_deletion: bool,
        parent: Option<&str>,
        now_us: i64,
    ) -> Result<bool> {
        let (mut tx, mut changed) = (self.begin_part(part).await?, false);
        for (id, key) in part {
            // A recording that is gone leaves nothing to send.
            if is_deletion || self.row(&mut tx, key).await?.is_some() {
                retry(&mut tx, id, key, now_us).await?;
                changed = true;
            }
        }
        if let Some(parent) = parent {
            settle_parent(&mut tx, parent).await?;
        }
        tx.commit().await?;
        Ok(changed)
    }

    /// Stops some syncs of one transaction; whether one was open.
    async fn cancel_part(&self, part: &[(String, ObjectKey)], by: &Origin) -> Result<bool> {
        let (mut tx, mut changed) = (self.begin_part(part).await?, false);
        let mut parents = Vec::new();
        for (id, key) in part {
            // It may have come to its end before the session was ours.
            let open = sql("SELECT 1 FROM jobs WHERE id = $1 AND state = 'open'").bind(id.as_str());
            if open.fetch_optional(&mut *tx).await?.is_none() {
                continue;
            }
            changed = true;
            parents.extend(end_child(&mut tx, "sync", key, "cancelled", Some(CANCELLED)).await?);
            sql("UPDATE recordings SET parked_reason = $3, parked_for_now = 0
                 WHERE session_id = $1 AND filename = $2 AND in_supabase = 0")
            .bind(key.session.as_str())
            .bind(key.filename.as_str())
            .bind(CANCELLED)
            .execute(&mut *tx)
            .await?;
            let change = Change { detail: Some(CANCELLED), ..Change::of(Action::Parked, key) };
            audit::note(&mut tx, &change, by).await?;
        }
        settle_parents(&mut tx, parents).await?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn begin_part(&self, part: &[(String, ObjectKey)]) -> Result<Tx> {
        match part.first() {
            Some((_, first)) => self.begin_for(&first.session).await,
            None => self.begin().await,
        }
    }
}

#[async_trait]
impl Jobs for SqlCatalog {
    async fn queue_syncs(&self, which: QueueSyncs<'_>) -> Result<u64> {
        again!(self.queue_once(which).await)
    }

    async fn claim_job(&self, now_us: i64, lease_us: i64, work: Work) -> Result<Option<Job>> {
        let skip = self.skip_locked();
        // Each is one question: with a single kind the oldest is the first that the index has.
        const DELETIONS: &str = "kind IN ('delete_local', 'delete', 'delete_session')";
        let kinds = match work {
            Work::All => [DELETIONS, "kind = 'sync'"].as_slice(),
            Work::Deletions => [DELETIONS].as_slice(),
            Work::Local => ["kind = 'delete_local'"].as_slice(),
        };
        for kinds in kinds {
            let mut tx = self.begin().await?;
            let row = sql(sqlx::AssertSqlSafe(format!(
                "UPDATE jobs SET leased_until = $2, leased_by = $3, attempts = attempts + 1 WHERE id = (
                     SELECT id FROM jobs WHERE state = 'open' AND {kinds} AND run_at <= $1 AND leased_until <= $1
                         AND (gateway IS NULL OR gateway = $3)
                     ORDER BY created_at, id LIMIT 1 {skip})
                 RETURNING id, kind, session_id, filename, attempts, resume_point"
            )))
            .bind(now_us)
            .bind(now_us.saturating_add(lease_us))
            .bind(self.gateway.as_str())
            .fetch_optional(&mut *tx)
            .await?;
            tx.commit().await?;
            let Some(row) = row else { continue };
            let (kind, session, filename): (String, String, String) =
                (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            let kind = JobKind::parse(&kind, &session, &filename)
                .ok_or_else(|| corrupt(format!("job {kind} {session}/{filename}")))?;
            return Ok(Some(Job {
                id: row.try_get(0)?,
                kind,
                attempt: row.try_get(4)?,
                resume_point: row.try_get(5)?,
            }));
        }
        Ok(None)
    }

    async fn renew_job(&self, job: &Job, until_us: i64) -> Result<bool> {
        let mut tx = self.begin().await?;
        let renewed = sql(
            "UPDATE jobs SET leased_until = $3 WHERE id = $1 AND attempts = $2 AND state = 'open' AND leased_until > 0",
        )
        .bind(job.id.as_str())
        .bind(job.attempt)
        .bind(until_us)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(renewed.rows_affected() > 0)
    }

    async fn complete_job(&self, job: &Job) -> Result<()> {
        let mut tx = self.begin().await?;
        // A deletion that was asked for again meanwhile goes on.
        sql(
            "UPDATE jobs SET leased_until = 0, leased_by = NULL WHERE id = $1 AND attempts = $2 AND (EXISTS
                 (SELECT 1 FROM tombstones t WHERE t.session_id = jobs.session_id AND t.filename = jobs.filename
                  AND ((jobs.kind = 'delete' AND pending_supabase = 1) OR (jobs.kind = 'delete_local' AND pending_local = 1)))
                 OR (jobs.kind = 'delete_session' AND EXISTS
                     (SELECT 1 FROM session_tombstones t WHERE t.session_id = jobs.session_id)))",
        )
        .bind(job.id.as_str())
        .bind(job.attempt)
        .execute(&mut *tx)
        .await?;
        let ended = sql(
            "UPDATE jobs SET state = 'done', finished_at = $3, leased_until = 0, leased_by = NULL, last_error = NULL,
                 resume_point = NULL
             WHERE id = $1 AND attempts = $2 AND state = 'open' AND leased_until > 0 RETURNING parent_id",
        )
        .bind(job.id.as_str())
        .bind(job.attempt)
        .bind(now_us())
        .fetch_all(&mut *tx)
        .await?;
        settle_parents(&mut tx, parents_of(&ended)?).await?;
        tx.commit().await
    }

    async fn postpone_job(&self, job: &Job, run_at_us: i64, error: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        sql("UPDATE jobs SET run_at = $3, leased_until = 0, leased_by = NULL, last_error = $4
             WHERE id = $1 AND attempts = $2 AND state = 'open'")
        .bind(job.id.as_str())
        .bind(job.attempt)
        .bind(run_at_us)
        .bind(without_nul(error))
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    async fn release_job(&self, job: &Job) -> Result<()> {
        let mut tx = self.begin().await?;
        sql("UPDATE jobs SET leased_until = 0, leased_by = NULL, attempts = attempts - 1
             WHERE id = $1 AND attempts = $2 AND state = 'open' AND leased_until > 0")
        .bind(job.id.as_str())
        .bind(job.attempt)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    async fn keep_resume_point(&self, job: &Job, at: Option<&str>) -> Result<()> {
        let mut tx = self.begin().await?;
        sql("UPDATE jobs SET resume_point = $3 WHERE id = $1 AND attempts = $2 AND state = 'open'")
            .bind(job.id.as_str())
            .bind(job.attempt)
            .bind(at.map(without_nul))
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }

    async fn hurry_jobs(&self, now_us: i64) -> Result<()> {
        let mut tx = self.begin().await?;
        // The times were spread by chance: their fractions of a second are, still.
        let skip = self.skip_locked();
        sql(sqlx::AssertSqlSafe(format!(
            "UPDATE jobs SET run_at = $1 + attempts * (run_at % 1000000) WHERE id IN (
                 SELECT id FROM jobs WHERE state = 'open' AND run_at > $1 + attempts * (run_at % 1000000) {skip})"
        )))
        .bind(now_us)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    async fn pull_in_jobs(&self, now_us: i64, furthest_us: i64, leased_until_us: i64) -> Result<bool> {
        const AHEAD: &str = "state = 'open' AND (run_at > $1 OR leased_until > $1)";
        // Asked often, and hardly ever there is one: that is no reason to keep writers waiting.
        let any = sql(sqlx::AssertSqlSafe(format!("SELECT 1 FROM jobs WHERE {AHEAD} LIMIT 1")))
            .bind(furthest_us)
            .fetch_optional(&mut *self.snapshot().await?)
            .await?;
        if any.is_none() {
            return Ok(false);
        }
        let skip = self.skip_locked();
        let mut tx = self.begin().await?;
        let pulled = sql(sqlx::AssertSqlSafe(format!(
            "UPDATE jobs SET run_at = CASE WHEN run_at > $1 THEN $2 ELSE run_at END,
                 leased_until = CASE WHEN leased_until > $1 THEN $3 ELSE leased_until END
             WHERE id IN (SELECT id FROM jobs WHERE {AHEAD} {skip})"
        )))
        .bind(furthest_us)
        .bind(now_us)
        .bind(leased_until_us)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(pulled.rows_affected() > 0)
    }

    async fn open_parent(&self, kind: &JobKind) -> Result<JobRecord> {
        let id = new_id();
        let session = kind.session().map_or("", |session| session.as_str());
        // Two bulk loads are two jobs.
        let filename = if *kind == JobKind::Migration { id.as_str() } else { "" };
        loop {
            let mut tx = self.begin().await?;
            sql(
                "INSERT INTO jobs (id, kind, session_id, filename, state, attempts, created_at, run_at, leased_until)
                 VALUES ($1, $2, $3, $4, 'open', 0, $5, $5, 0)
                 ON CONFLICT (kind, session_id, filename) WHERE state = 'open' DO NOTHING",
            )
            .bind(id.as_str())
            .bind(kind.name())
            .bind(session)
            .bind(filename)
            .bind(now_us())
            .execute(&mut *tx)
            .await?;
            let row = sql(
                "SELECT id FROM jobs WHERE kind = $1 AND session_id = $2 AND filename = $3 AND state = 'open'",
            )
            .bind(kind.name())
            .bind(session)
            .bind(filename)
            .fetch_optional(&mut *tx)
            .await?;
            // Otherwise the one that was in the way ended between the two statements.
            let Some(row) = row else { continue };
            let found: String = row.try_get(0)?;
            let parent = self.job(&mut tx, &found).await?;
            tx.commit().await?;
            return parent.ok_or_else(|| corrupt("a job that was just made"));
        }
    }

    async fn close_parent(&self, id: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        settle_parent(&mut tx, id).await?;
        tx.commit().await
    }

    async fn close_parents(&self) -> Result<()> {
        let mut tx = self.begin().await?;
        settle_open_parents(&mut tx).await?;
        tx.commit().await
    }

    async fn open_jobs(&self, session: &SessionId, filename: Option<&Filename>) -> Result<Vec<JobRecord>> {
        // The kinds are named so that the index of open jobs, which begins with them, is used.
        let rows = sql(sqlx::AssertSqlSafe(format!(
            "SELECT {JOB_COLUMNS} FROM jobs WHERE state = 'open'
                 AND kind IN ('sync', 'delete', 'delete_local', 'delete_session')
                 AND session_id = $1 AND ($2 = '' OR filename = $2) ORDER BY id"
        )))
        .bind(session.as_str())
        .bind(filename.map_or("", |filename| filename.as_str()))
        .fetch_all(&mut *self.snapshot().await?)
        .await?;
        let now = now_us();
        rows.iter().map(|row| record_of(row, now)).collect()
    }

    async fn get_job(&self, id: &str) -> Result<Option<JobRecord>> {
        self.job(&mut self.snapshot().await?, id).await
    }

    async fn list_jobs(&self, query: &JobQuery) -> Result<Vec<JobRecord>> {
        let now = now_us();
        // Waiting and running are both open; the lease tells.
        let (state, lease) = match query.state {
            None => ("", ""),
            Some(JobState::Waiting) => ("open", "waiting"),
            Some(JobState::Running) => ("open", "running"),
            Some(state) => (state.as_str(), ""),
        };
        let parent = given("parent_id", 4, query.parent.is_some());
        let before = match query.before {
            Some(_) => "id < $5",
            None => "$5 = ''",
        };
        let mut tx = self.snapshot().await?;
        let rows = sql(sqlx::AssertSqlSafe(format!(
            "SELECT {JOB_COLUMNS} FROM jobs WHERE ($1 = '' OR state = $1) AND ($2 = '' OR kind = $2)
                 AND ($3 = '' OR session_id = $3) AND {parent} AND {before}
                 AND ($6 = '' OR ($6 = 'running') = (leased_until > $7 OR kind IN ('sync_all', 'sync_session', 'migration')))
             ORDER BY id DESC LIMIT $8"
        )))
        .bind(state)
        .bind(query.kind.as_deref().unwrap_or_default())
        .bind(query.session.as_ref().map_or("", |session| session.as_str()))
        .bind(query.parent.as_deref().unwrap_or_default())
        .bind(query.before.as_deref().unwrap_or_default())
        .bind(lease)
        .bind(now)
        .bind(i64::try_from(query.limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *tx)
        .await?;
        let mut jobs = rows.iter().map(|row| record_of(row, now)).collect::<Result<Vec<_>>>()?;
        for job in &mut jobs {
            add_children(&mut tx, job).await?;
        }
        Ok(jobs)
    }

    async fn retry_job(&self, id: &str, now_us: i64) -> Result<Changed> {
        let Some(job) = self.get_job(id).await? else { return Ok(Changed::Unknown) };
        let is_deletion = !matches!(job.kind, JobKind::Sync(_)) && !job.kind.is_parent();
        let mut changed = matches!(job.kind, JobKind::DeleteSession(_));
        let parent = if job.kind.is_parent() { Some(id) } else { job.parent_id.as_deref() };
        for part in self.affected(&job, &["open", "parked", "cancelled"]).await? {
            changed |= again!(self.retry_part(&part, is_deletion, parent, now_us).await)?;
        }
        if let JobKind::DeleteSession(_) = job.kind {
            let mut tx = self.begin().await?;
            sql("UPDATE jobs SET run_at = $2 WHERE id = $1 AND run_at > $2")
                .bind(id)
                .bind(now_us)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
        }
        // It goes with what it is about: a deletion that was done at the first try leaves no job.
        let Some(job) = self.get_job(id).await? else { return Ok(Changed::Unknown) };
        Ok(if !changed || job.state == JobState::Done { Changed::No(job) } else { Changed::Yes(job) })
    }

    async fn cancel_job(&self, id: &str, by: &Origin) -> Result<Changed> {
        let Some(job) = self.get_job(id).await? else { return Ok(Changed::Unknown) };
        if !matches!(job.kind, JobKind::Sync(_)) && !job.kind.is_parent() {
            return Ok(Changed::No(job));
        }
        let mut changed = false;
        for part in self.affected(&job, &["open"]).await? {
            changed |= again!(self.cancel_part(&part, by).await)?;
        }
        let Some(job) = self.get_job(id).await? else { return Ok(Changed::Unknown) };
        Ok(if changed { Changed::Yes(job) } else { Changed::No(job) })
    }

    async fn expire_jobs(&self, older_than_us: i64) -> Result<()> {
        let mut tx = self.begin().await?;
        let skip = self.skip_locked();
        sql(sqlx::AssertSqlSafe(format!(
            "DELETE FROM jobs WHERE id IN (
                 SELECT id FROM jobs WHERE finished_at < $1 AND state IN ('done', 'cancelled') {skip})"
        )))
        .bind(older_than_us)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }
}
