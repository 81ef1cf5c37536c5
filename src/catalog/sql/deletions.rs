//! What was deleted.

use async_trait::async_trait;
use sqlx::Row;
use time::OffsetDateTime;

use super::rows::{key_of, other, session_and_time_of};
use super::{Result, SqlCatalog, Tx, audit, jobs, now_us, parents, sql};
use crate::catalog::{Action, Change, Deletions, Origin, Tombstone};
use crate::domain::recording::micros;
use crate::domain::{GatewayId, ObjectKey, SessionId, StoreKind, StoreSet};

impl SqlCatalog {
    /// With `asked`, what had no row is noted too, once.
    async fn bury(&self, keys: &[ObjectKey], pending: StoreSet, asked: bool, by: &Origin) -> Result<()> {
        // Whole sessions are deleted at once; keys of several sessions come one session after the other.
        for keys in keys.chunk_by(|a, b| a.session == b.session) {
            let Some(first) = keys.first() else { continue };
            again!(self.bury_in(&first.session, keys, pending, asked, by).await)?;
        }
        Ok(())
    }

    async fn bury_in(
        &self,
        session: &SessionId,
        keys: &[ObjectKey],
        pending: StoreSet,
        asked: bool,
        by: &Origin,
    ) -> Result<()> {
        let mut tx = self.begin_for(session).await?;
        let mut ended = Vec::new();
        for key in keys {
            let (session, filename) = (key.session.as_str(), key.filename.as_str());
            let row = self.row(&mut tx, key).await?;
            let is_new = asked && row.is_none() && !is_entombed(&mut tx, key).await?;
            // The file may lie on another gateway's disk. What nobody knows of can only lie here.
            let holder =
                row.as_ref().and_then(|row| row.held_by.clone()).unwrap_or_else(|| self.gateway.clone());
            let local = if pending.local { holder.as_str() } else { "" };
            // Without a row it was deleted before: if somebody has still to remove the file, that stays so.
            let kept = sql(
                "INSERT INTO tombstones (session_id, filename, deleted_at, pending_supabase, pending_local, local_gateway)
                 VALUES ($1, $2, $3, $4, $5, nullif($6, '')) ON CONFLICT (session_id, filename) DO UPDATE SET
                     pending_supabase = CASE WHEN $4 = 1 THEN 1 ELSE tombstones.pending_supabase END,
                     pending_local = CASE WHEN $5 = 1 THEN 1 ELSE tombstones.pending_local END,
                     local_gateway = CASE WHEN $5 = 1 AND ($7 = 1 OR tombstones.pending_local = 0) THEN $6
                         ELSE tombstones.local_gateway END
                 RETURNING local_gateway",
            )
            .bind(session)
            .bind(filename)
            .bind(now_us())
            .bind(i64::from(pending.supabase))
            .bind(i64::from(pending.local))
            .bind(local)
            .bind(i64::from(row.is_some()))
            .fetch_one(&mut *tx)
            .await?;
            let holder = kept.try_get::<Option<String>, _>(0)?.map_or(holder, GatewayId);
            ended.extend(jobs::cancel_sync(&mut tx, key, "the recording was deleted").await?);
            jobs::add_deletions(&mut tx, key, pending, &holder).await?;
            if row.is_some() {
                Self::drop_row(&mut tx, key).await?;
            }
            if row.is_some() || is_new {
                let before = row.and_then(|row| row.sha256);
                let change = Change { before, ..Change::of(Action::Deleted, key) };
                audit::note(&mut tx, &change, by).await?;
            }
        }
        parents::settle_parents(&mut tx, ended).await?;
        tx.commit().await
    }
}

async fn is_entombed(tx: &mut Tx, key: &ObjectKey) -> Result<bool> {
    let found = sql("SELECT 1 FROM tombstones WHERE session_id = $1 AND filename = $2")
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(found.is_some())
}

#[async_trait]
impl Deletions for SqlCatalog {
    async fn entomb(&self, keys: &[ObjectKey], pending: StoreSet, by: &Origin) -> Result<()> {
        self.bury(keys, pending, false, by).await
    }

    async fn delete(&self, keys: &[ObjectKey], pending: StoreSet, by: &Origin) -> Result<()> {
        self.bury(keys, pending, true, by).await
    }

    async fn tombstone(&self, key: &ObjectKey) -> Result<Option<Tombstone>> {
        let row = sql(
            "SELECT pending_supabase, pending_local, local_gateway FROM tombstones WHERE session_id = $1 AND filename = $2",
        )
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .fetch_optional(&mut *self.snapshot().await?)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let pending =
            StoreSet { supabase: row.try_get::<i64, _>(0)? != 0, local: row.try_get::<i64, _>(1)? != 0 };
        Ok(Some(Tombstone { pending, held_by: other(row.try_get::<Option<String>, _>(2)?, &self.gateway) }))
    }

    async fn has_tombstones(&self) -> Result<bool> {
        let found =
            sql("SELECT 1 FROM tombstones LIMIT 1").fetch_optional(&mut *self.snapshot().await?).await?;
        Ok(found.is_some())
    }

    async fn pending_here(&self, session: &SessionId) -> Result<Vec<ObjectKey>> {
        let rows = sql("SELECT session_id, filename FROM tombstones
             WHERE session_id = $1 AND pending_local = 1 AND local_gateway = $2")
        .bind(session.as_str())
        .bind(self.gateway.as_str())
        .fetch_all(&mut *self.snapshot().await?)
        .await?;
        rows.iter().map(key_of).collect()
    }

    async fn session_tombstone(&self, session: &SessionId) -> Result<Option<OffsetDateTime>> {
        let row = sql("SELECT session_id, deleted_at FROM session_tombstones WHERE session_id = $1")
            .bind(session.as_str())
            .fetch_optional(&mut *self.snapshot().await?)
            .await?;
        Ok(row.as_ref().map(session_and_time_of).transpose()?.map(|(_, at)| at))
    }

    async fn confirm_deleted(&self, keys: &[ObjectKey], store: StoreKind) -> Result<()> {
        let (statement, job) = match store {
            StoreKind::Supabase => (
                "UPDATE tombstones SET pending_supabase = 0 WHERE session_id = $1 AND filename = $2 AND $3 <> ''",
                "delete",
            ),
            StoreKind::Local => (
                "UPDATE tombstones SET pending_local = 0, local_gateway = NULL WHERE session_id = $1 AND filename = $2
                     AND (local_gateway IS NULL OR local_gateway = $3)",
                "delete_local",
            ),
        };
        for keys in keys.chunk_by(|a, b| a.session == b.session) {
            let Some(first) = keys.first() else { continue };
            let mut tx = self.begin_for(&first.session).await?;
            for key in keys {
                let confirmed = sql(statement)
                    .bind(key.session.as_str())
                    .bind(key.filename.as_str())
                    .bind(self.gateway.as_str())
                    .execute(&mut *tx)
                    .await?;
                if confirmed.rows_affected() > 0 {
                    jobs::end_deletion(&mut tx, job, key).await?;
                }
            }
            tx.commit().await?;
        }
        Ok(())
    }

    async fn entomb_session(&self, session: &SessionId, by: &Origin) -> Result<()> {
        let mut tx = self.begin_for(session).await?;
        // Each deletion has a time of its own, also if the clock is slow.
        sql("INSERT INTO session_tombstones (session_id, deleted_at) VALUES ($1, $2)
             ON CONFLICT (session_id) DO UPDATE SET deleted_at = CASE
                 WHEN session_tombstones.deleted_at < $2 THEN $2 ELSE session_tombstones.deleted_at + 1 END")
        .bind(session.as_str())
        .bind(now_us())
        .execute(&mut *tx)
        .await?;
        jobs::add_of_session(&mut tx, "delete_session", session).await?;
        let detail = Some("what the bucket holds of the session");
        let change =
            Change { action: Action::Deleted, session, filename: None, before: None, after: None, detail };
        audit::note(&mut tx, &change, by).await?;
        tx.commit().await
    }

    async fn confirm_session_deleted(&self, session: &SessionId, deleted_at: OffsetDateTime) -> Result<()> {
        let mut tx = self.begin_for(session).await?;
        let confirmed = sql("DELETE FROM session_tombstones WHERE session_id = $1 AND deleted_at = $2")
            .bind(session.as_str())
            .bind(micros(deleted_at))
            .execute(&mut *tx)
            .await?;
        if confirmed.rows_affected() > 0 {
            jobs::end_of_session(&mut tx, "delete_session", session).await?;
        }
        tx.commit().await
    }
}
