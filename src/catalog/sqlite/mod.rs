//! The catalogue in an embedded SQLite file. Writers go through one connection, readers through a few others; a
//! commit is on the disk when it returns (WAL with `synchronous=FULL`), because a forgotten tombstone would bring a
//! deleted recording back.

mod rows;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Row, SqlSafeStr, Sqlite, SqlitePool, Transaction};
use time::OffsetDateTime;

use self::rows::{RECORDING_COLUMNS, recording_of};
use super::{
    Answered, Begun, Catalog, CatalogError, Counts, Job, JobKind, RequestKey, Tombstone, View, Work,
};
use crate::domain::merge::Deleted;
use crate::domain::recording::micros;
use crate::domain::{
    ContentDigest, Durability, Filename, NameStem, ObjectKey, Recording, SessionId, StoreKind, StoreSet,
};
use crate::storage::ListScope;

/// A catalogue in one file.
pub struct SqliteCatalog {
    write: SqlitePool,
    read: SqlitePool,
}

type Result<T> = std::result::Result<T, CatalogError>;

impl From<sqlx::Error> for CatalogError {
    fn from(error: sqlx::Error) -> Self {
        // SQLITE_FULL is 13 (sqlite.org/rescode.html).
        let full = error.as_database_error().is_some_and(|e| e.code().as_deref() == Some("13"));
        if full { Self::Full(error) } else { Self::Database(error) }
    }
}

impl SqliteCatalog {
    /// Opens the file, making and migrating it as needed. Returns whether it was made.
    pub async fn open(path: &Path) -> Result<(Self, bool)> {
        let new = !path.exists();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            // On a full disk SQLite ends a transaction by itself; sqlx cannot roll back what is over and would
            // refuse every later one on this connection.
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options.clone())
            .await?;
        migrator().run(&write).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::VersionMissing(version) => CatalogError::Newer(version),
            error => CatalogError::Migrate(error),
        })?;
        let read = SqlitePoolOptions::new().max_connections(4).connect_with(options.read_only(true)).await?;
        // Reservations, running requests and leases belong to the process that made them.
        let catalog = Self { write, read };
        let mut tx = catalog.begin().await?;
        sqlx::query("DELETE FROM reservations").execute(&mut *tx).await?;
        sqlx::query("DELETE FROM idempotent_requests WHERE answer IS NULL").execute(&mut *tx).await?;
        sqlx::query("UPDATE jobs SET leased_until = 0 WHERE leased_until > 0").execute(&mut *tx).await?;
        tx.commit().await?;
        Ok((catalog, new))
    }

    /// Reads the figures of an existing file without changing it, also while a gateway runs on it.
    pub async fn inspect(path: &Path) -> Result<Counts> {
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        let read = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        let catalog = Self { write: read.clone(), read };
        let counts = catalog.counts().await;
        catalog.close().await;
        counts
    }

    /// Writes what is open and closes the file.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>> {
        Ok(self.write.begin_with("BEGIN IMMEDIATE").await?)
    }
}

fn migrator() -> Migrator {
    let initial = include_str!("migrations/0001_initial.sql");
    Migrator::with_migrations(vec![Migration::new(
        1,
        "initial".into(),
        MigrationType::Simple,
        initial.into_sql_str(),
        false,
    )])
}

async fn add_job(tx: &mut Transaction<'_, Sqlite>, kind: &str, session: &str, filename: &str) -> Result<()> {
    let now = micros(OffsetDateTime::now_utc());
    sqlx::query(
        "INSERT INTO jobs (id, kind, session_id, filename, attempts, created_at, run_at, leased_until)
         VALUES ($1, $2, $3, $4, 0, $5, $5, 0) ON CONFLICT (kind, session_id, filename) DO UPDATE SET run_at = $5",
    )
    .bind(uuid::Uuid::now_v7().to_string())
    .bind(kind)
    .bind(session)
    .bind(filename)
    .bind(now)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn drop_job(tx: &mut Transaction<'_, Sqlite>, kind: &str, session: &str, filename: &str) -> Result<()> {
    sqlx::query("DELETE FROM jobs WHERE kind = $1 AND session_id = $2 AND filename = $3")
        .bind(kind)
        .bind(session)
        .bind(filename)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn insert_recording(tx: &mut Transaction<'_, Sqlite>, recording: &Recording) -> Result<()> {
    sqlx::query(
        "INSERT INTO recordings (session_id, filename, size_bytes, sha256, content_type, original_filename,
             durability, in_supabase, in_local, uploaded_at, parked_reason, upload_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(recording.key.session.as_str())
    .bind(recording.key.filename.as_str())
    .bind(i64::try_from(recording.size_bytes).unwrap_or(i64::MAX))
    .bind(recording.sha256.map(|digest| digest.to_string()))
    .bind(&recording.content_type)
    .bind(&recording.original_filename)
    .bind(recording.durability.as_str())
    .bind(recording.stores.supabase)
    .bind(recording.stores.local)
    .bind(micros(recording.uploaded_at))
    .bind(&recording.parked_reason)
    .bind(&recording.upload_id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

#[async_trait]
impl Catalog for SqliteCatalog {
    async fn reserve(&self, session: &SessionId, stem: &NameStem, first: u32) -> Result<(Filename, u32)> {
        let mut tx = self.begin().await?;
        for n in first.max(1).. {
            let filename = stem.nth(n);
            let taken = sqlx::query(
                "SELECT 1 FROM recordings WHERE session_id = $1 AND filename = $2
                 UNION ALL SELECT 1 FROM tombstones WHERE session_id = $1 AND filename = $2
                 UNION ALL SELECT 1 FROM reservations WHERE session_id = $1 AND filename = $2 LIMIT 1",
            )
            .bind(session.as_str())
            .bind(filename.as_str())
            .fetch_optional(&mut *tx)
            .await?;
            if taken.is_none() {
                sqlx::query("INSERT INTO reservations (session_id, filename) VALUES ($1, $2)")
                    .bind(session.as_str())
                    .bind(filename.as_str())
                    .execute(&mut *tx)
                    .await?;
                tx.commit().await?;
                return Ok((filename, n));
            }
        }
        Err(CatalogError::Corrupt("every name of one second is taken".into()))
    }

    async fn release(&self, key: &ObjectKey) -> Result<()> {
        sqlx::query("DELETE FROM reservations WHERE session_id = $1 AND filename = $2")
            .bind(key.session.as_str())
            .bind(key.filename.as_str())
            .execute(&self.write)
            .await?;
        Ok(())
    }

    async fn commit(
        &self,
        recording: &Recording,
        sync: bool,
        answer: Option<(&RequestKey, &Answered)>,
    ) -> Result<()> {
        let (session, filename) = (recording.key.session.as_str(), recording.key.filename.as_str());
        let mut tx = self.begin().await?;
        insert_recording(&mut tx, recording).await?;
        sqlx::query("DELETE FROM reservations WHERE session_id = $1 AND filename = $2")
            .bind(session)
            .bind(filename)
            .execute(&mut *tx)
            .await?;
        let deleted = sqlx::query(
            "UPDATE tombstones SET pending_supabase = max(pending_supabase, $3), pending_local = 1
             WHERE session_id = $1 AND filename = $2",
        )
        .bind(session)
        .bind(filename)
        .bind(recording.stores.supabase)
        .execute(&mut *tx)
        .await?;
        if deleted.rows_affected() > 0 {
            // Somebody deleted it between the name and the answer: that was the later word.
            sqlx::query("DELETE FROM recordings WHERE session_id = $1 AND filename = $2")
                .bind(session)
                .bind(filename)
                .execute(&mut *tx)
                .await?;
            add_job(&mut tx, "delete", session, filename).await?;
        } else if sync {
            add_job(&mut tx, "sync", session, filename).await?;
        }
        if let Some((request, answered)) = answer {
            sqlx::query(
                "UPDATE idempotent_requests SET fingerprint = $3, answer = $4 WHERE scope = $1 AND request_key = $2",
            )
            .bind(&request.scope)
            .bind(&request.key)
            .bind(&answered.fingerprint)
            .bind(&answered.answer)
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn adopt(&self, recordings: &[Recording], sync: bool) -> Result<u64> {
        let mut adopted = 0;
        let mut tx = self.begin().await?;
        for recording in recordings {
            let (session, filename) = (recording.key.session.as_str(), recording.key.filename.as_str());
            let known = sqlx::query(
                "SELECT 1 FROM recordings WHERE session_id = $1 AND filename = $2
                 UNION ALL SELECT 1 FROM tombstones WHERE session_id = $1 AND filename = $2
                 UNION ALL SELECT 1 FROM reservations WHERE session_id = $1 AND filename = $2
                 UNION ALL SELECT 1 FROM session_tombstones WHERE session_id = $1 AND $3 AND deleted_at >= $4
                 LIMIT 1",
            )
            .bind(session)
            .bind(filename)
            // What the bucket held of a session when it was deleted goes with it.
            .bind(recording.stores.supabase)
            .bind(micros(recording.uploaded_at))
            .fetch_optional(&mut *tx)
            .await?;
            if known.is_none() {
                insert_recording(&mut tx, recording).await?;
                if sync && !recording.stores.supabase {
                    add_job(&mut tx, "sync", session, filename).await?;
                }
                adopted += 1;
            }
        }
        tx.commit().await?;
        Ok(adopted)
    }

    async fn get(&self, key: &ObjectKey) -> Result<Option<Recording>> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {RECORDING_COLUMNS} FROM recordings WHERE session_id = $1 AND filename = $2"
        )))
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .fetch_optional(&self.read)
        .await?;
        row.as_ref().map(recording_of).transpose()
    }

    async fn view(&self, scope: &ListScope) -> Result<View> {
        // An empty text stands for every session.
        let session = match scope {
            ListScope::Everything => "",
            ListScope::Session(session) => session.as_str(),
        };
        // One transaction, so that all three answers are of one moment.
        let mut tx = self.read.begin().await?;
        let recordings = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {RECORDING_COLUMNS} FROM recordings WHERE $1 = '' OR session_id = $1"
        )))
        .bind(session)
        .fetch_all(&mut *tx)
        .await?;
        let tombstones =
            sqlx::query("SELECT session_id, filename FROM tombstones WHERE $1 = '' OR session_id = $1")
                .bind(session)
                .fetch_all(&mut *tx)
                .await?;
        let reserved =
            sqlx::query("SELECT session_id, filename FROM reservations WHERE $1 = '' OR session_id = $1")
                .bind(session)
                .fetch_all(&mut *tx)
                .await?;
        let sessions = sqlx::query(
            "SELECT session_id, deleted_at FROM session_tombstones WHERE $1 = '' OR session_id = $1",
        )
        .bind(session)
        .fetch_all(&mut *tx)
        .await?;
        Ok(View {
            recordings: recordings.iter().map(recording_of).collect::<Result<_>>()?,
            deleted: Deleted {
                keys: tombstones.iter().map(rows::key_of).collect::<Result<_>>()?,
                sessions: sessions.iter().map(rows::session_and_time_of).collect::<Result<_>>()?,
            },
            reserved: reserved.iter().map(rows::key_of).collect::<Result<_>>()?,
        })
    }

    async fn queue_unsynced(&self, in_both: bool) -> Result<()> {
        let mut tx = self.begin().await?;
        let unsynced = sqlx::query(
            "SELECT session_id, filename FROM recordings r WHERE (in_supabase = 0 OR ($1 AND in_local = 1)) AND parked_reason IS NULL
                 AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.kind = 'sync' AND j.session_id = r.session_id
                                 AND j.filename = r.filename) ORDER BY uploaded_at",
        )
        .bind(in_both)
        .fetch_all(&mut *tx)
        .await?;
        for row in &unsynced {
            let (session, filename): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            add_job(&mut tx, "sync", &session, &filename).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn mark_stored(
        &self,
        key: &ObjectKey,
        stores: StoreSet,
        durability: Durability,
        sha256: ContentDigest,
    ) -> Result<bool> {
        let (session, filename) = (key.session.as_str(), key.filename.as_str());
        let mut tx = self.begin().await?;
        let changed = sqlx::query(
            "UPDATE recordings SET in_supabase = $3, in_local = $4, durability = $5, sha256 = coalesce(sha256, $6),
                 parked_reason = CASE WHEN $3 THEN NULL ELSE parked_reason END
             WHERE session_id = $1 AND filename = $2",
        )
        .bind(session)
        .bind(filename)
        .bind(stores.supabase)
        .bind(stores.local)
        .bind(durability.as_str())
        .bind(sha256.to_string())
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if stores.supabase {
            drop_job(&mut tx, "sync", session, filename).await?;
        }
        tx.commit().await?;
        Ok(changed > 0)
    }

    async fn park(&self, key: &ObjectKey, reason: &str) -> Result<()> {
        let (session, filename) = (key.session.as_str(), key.filename.as_str());
        let mut tx = self.begin().await?;
        sqlx::query("UPDATE recordings SET parked_reason = $3 WHERE session_id = $1 AND filename = $2")
            .bind(session)
            .bind(filename)
            .bind(reason)
            .execute(&mut *tx)
            .await?;
        drop_job(&mut tx, "sync", session, filename).await?;
        Ok(tx.commit().await?)
    }

    async fn entomb(&self, key: &ObjectKey, pending: StoreSet) -> Result<()> {
        let (session, filename) = (key.session.as_str(), key.filename.as_str());
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO tombstones (session_id, filename, deleted_at, pending_supabase, pending_local)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (session_id, filename) DO UPDATE SET
                 pending_supabase = max(pending_supabase, $4), pending_local = max(pending_local, $5)",
        )
        .bind(session)
        .bind(filename)
        .bind(micros(OffsetDateTime::now_utc()))
        .bind(pending.supabase)
        .bind(pending.local)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM recordings WHERE session_id = $1 AND filename = $2")
            .bind(session)
            .bind(filename)
            .execute(&mut *tx)
            .await?;
        drop_job(&mut tx, "sync", session, filename).await?;
        add_job(&mut tx, "delete", session, filename).await?;
        Ok(tx.commit().await?)
    }

    async fn tombstone(&self, key: &ObjectKey) -> Result<Option<Tombstone>> {
        let row = sqlx::query(
            "SELECT pending_supabase, pending_local FROM tombstones WHERE session_id = $1 AND filename = $2",
        )
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .fetch_optional(&self.read)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let pending =
            StoreSet { supabase: row.try_get::<i64, _>(0)? != 0, local: row.try_get::<i64, _>(1)? != 0 };
        Ok(Some(Tombstone { pending }))
    }

    async fn session_tombstone(&self, session: &SessionId) -> Result<Option<OffsetDateTime>> {
        let row = sqlx::query("SELECT session_id, deleted_at FROM session_tombstones WHERE session_id = $1")
            .bind(session.as_str())
            .fetch_optional(&self.read)
            .await?;
        Ok(row.as_ref().map(rows::session_and_time_of).transpose()?.map(|(_, at)| at))
    }

    async fn confirm_deleted(&self, key: &ObjectKey, store: StoreKind) -> Result<()> {
        let (session, filename) = (key.session.as_str(), key.filename.as_str());
        let mut tx = self.begin().await?;
        sqlx::query(match store {
            StoreKind::Supabase => {
                "UPDATE tombstones SET pending_supabase = 0 WHERE session_id = $1 AND filename = $2"
            }
            StoreKind::Local => {
                "UPDATE tombstones SET pending_local = 0 WHERE session_id = $1 AND filename = $2"
            }
        })
        .bind(session)
        .bind(filename)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "DELETE FROM jobs WHERE kind = 'delete' AND session_id = $1 AND filename = $2 AND EXISTS
                 (SELECT 1 FROM tombstones WHERE session_id = $1 AND filename = $2
                  AND pending_supabase = 0 AND pending_local = 0)",
        )
        .bind(session)
        .bind(filename)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn entomb_session(&self, session: &SessionId) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO session_tombstones (session_id, deleted_at) VALUES ($1, $2)
             ON CONFLICT (session_id) DO UPDATE SET deleted_at = $2",
        )
        .bind(session.as_str())
        .bind(micros(OffsetDateTime::now_utc()))
        .execute(&mut *tx)
        .await?;
        add_job(&mut tx, "delete_session", session.as_str(), "").await?;
        Ok(tx.commit().await?)
    }

    async fn confirm_session_deleted(&self, session: &SessionId) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM session_tombstones WHERE session_id = $1")
            .bind(session.as_str())
            .execute(&mut *tx)
            .await?;
        drop_job(&mut tx, "delete_session", session.as_str(), "").await?;
        Ok(tx.commit().await?)
    }

    async fn begin_request(&self, request: &RequestKey) -> Result<Begun> {
        let mut tx = self.begin().await?;
        let known = sqlx::query(
            "SELECT fingerprint, answer FROM idempotent_requests WHERE scope = $1 AND request_key = $2",
        )
        .bind(&request.scope)
        .bind(&request.key)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(row) = known {
            let (fingerprint, answer): (Option<String>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            return Ok(match (fingerprint, answer) {
                (Some(fingerprint), Some(answer)) => Begun::Answered(Answered { fingerprint, answer }),
                _ => Begun::Running,
            });
        }
        sqlx::query("INSERT INTO idempotent_requests (scope, request_key, created_at) VALUES ($1, $2, $3)")
            .bind(&request.scope)
            .bind(&request.key)
            .bind(micros(OffsetDateTime::now_utc()))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Begun::First)
    }

    async fn forget_request(&self, request: &RequestKey) -> Result<()> {
        sqlx::query(
            "DELETE FROM idempotent_requests WHERE scope = $1 AND request_key = $2 AND answer IS NULL",
        )
        .bind(&request.scope)
        .bind(&request.key)
        .execute(&self.write)
        .await?;
        Ok(())
    }

    async fn expire_requests(&self, older_than_us: i64) -> Result<()> {
        sqlx::query("DELETE FROM idempotent_requests WHERE answer IS NOT NULL AND created_at < $1")
            .bind(older_than_us)
            .execute(&self.write)
            .await?;
        Ok(())
    }

    async fn claim_job(&self, now_us: i64, lease_us: i64, work: Work) -> Result<Option<Job>> {
        let row = sqlx::query(
            "UPDATE jobs SET leased_until = $1 + $2, attempts = attempts + 1 WHERE id = (
                 SELECT id FROM jobs WHERE run_at <= $1 AND leased_until <= $1 AND ($3 OR kind <> 'sync')
                 ORDER BY kind = 'sync', created_at, id LIMIT 1)
             RETURNING id, kind, session_id, filename, attempts",
        )
        .bind(now_us)
        .bind(lease_us)
        .bind(work == Work::All)
        .fetch_optional(&self.write)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let (kind, session, filename): (String, String, String) =
            (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let kind = JobKind::parse(&kind, &session, &filename)
            .ok_or_else(|| CatalogError::Corrupt(format!("job {kind} {session}/{filename}")))?;
        Ok(Some(Job { id: row.try_get(0)?, kind, attempt: row.try_get(4)? }))
    }

    async fn complete_job(&self, job: &Job) -> Result<()> {
        let mut tx = self.begin().await?;
        // A deletion that was asked for again meanwhile goes on.
        sqlx::query(
            "UPDATE jobs SET leased_until = 0 WHERE id = $1 AND attempts = $2 AND kind = 'delete' AND EXISTS
                 (SELECT 1 FROM tombstones t WHERE t.session_id = jobs.session_id AND t.filename = jobs.filename
                  AND (pending_supabase = 1 OR pending_local = 1))",
        )
        .bind(&job.id)
        .bind(job.attempt)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM jobs WHERE id = $1 AND attempts = $2 AND leased_until > 0")
            .bind(&job.id)
            .bind(job.attempt)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn postpone_job(&self, job: &Job, run_at_us: i64, error: &str) -> Result<()> {
        sqlx::query(
            "UPDATE jobs SET run_at = $3, leased_until = 0, last_error = $4 WHERE id = $1 AND attempts = $2",
        )
        .bind(&job.id)
        .bind(job.attempt)
        .bind(run_at_us)
        .bind(error)
        .execute(&self.write)
        .await?;
        Ok(())
    }

    async fn hurry_jobs(&self, now_us: i64) -> Result<()> {
        sqlx::query("UPDATE jobs SET run_at = $1 WHERE run_at > $1")
            .bind(now_us)
            .execute(&self.write)
            .await?;
        Ok(())
    }

    async fn counts(&self) -> Result<Counts> {
        let row = sqlx::query(
            "SELECT count(*), coalesce(sum(u), 0), coalesce(sum(CASE WHEN u THEN size_bytes ELSE 0 END), 0),
                 min(CASE WHEN u THEN uploaded_at END), coalesce(sum(parked_reason IS NOT NULL), 0),
                 (SELECT count(*) FROM jobs)
             FROM (SELECT *, (in_supabase = 0 AND parked_reason IS NULL) AS u FROM recordings)",
        )
        .fetch_one(&self.read)
        .await?;
        let figure = |i: usize| -> Result<u64> { Ok(u64::try_from(row.try_get::<i64, _>(i)?).unwrap_or(0)) };
        Ok(Counts {
            recordings: figure(0)?,
            unsynced: figure(1)?,
            unsynced_bytes: figure(2)?,
            oldest_unsynced_us: row.try_get(3)?,
            parked: figure(4)?,
            jobs: figure(5)?,
        })
    }
}
