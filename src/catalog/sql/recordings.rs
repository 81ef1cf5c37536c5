//! Recordings and their names.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::rows::{RECORDING_COLUMNS, key_of, recording_of, session_and_time_of, session_of, without_nul};
use super::{Dialect, Lost, Result, SqlCatalog, Tx, audit, jobs, listings, parents, sql, tallies};
use crate::catalog::{
    Abandoned, Action, Arrival, CatalogError, Change, Counts, Mend, Names, Origin, Recordings,
    RecordingsSeen, RequestKey, SessionsSeen, View,
};
use crate::domain::merge::Deleted;
use crate::domain::page::Position;
use crate::domain::recording::micros;
use crate::domain::{
    ContentDigest, Durability, Filename, NameStem, ObjectKey, Recording, SessionId, StoreSet,
};
use crate::storage::ListScope;

/// Files that came in past the gateway and of whose bytes nobody was promised anything. An index has just these.
pub(super) const FOLLOWS: &str = "upload_id = '' AND sha256 IS NULL AND in_supabase = 0";

/// A statement about the name `$1`, `$2`, with the condition that nothing has it, had it or is promised it.
macro_rules! if_name_is_free {
    ($statement:literal) => {
        concat!(
            $statement,
            " WHERE NOT EXISTS (SELECT 1 FROM recordings WHERE session_id = $1 AND filename = $2)
                 AND NOT EXISTS (SELECT 1 FROM tombstones WHERE session_id = $1 AND filename = $2)
                 AND NOT EXISTS (SELECT 1 FROM reservations WHERE session_id = $1 AND filename = $2)"
        )
    };
}

fn every_name_is_taken() -> CatalogError {
    CatalogError::Corrupt("every name of one second is taken".into())
}

impl SqlCatalog {
    /// Adds a recording, unless its name is taken: then nothing, and `false`.
    async fn insert(&self, tx: &mut Tx, recording: &Recording) -> Result<bool> {
        let inserted = sql(if_name_is_free!(
            "INSERT INTO recordings (session_id, filename, size_bytes, sha256, content_type, original_filename,
                 durability, in_supabase, local_gateway, uploaded_at, parked_reason, upload_id, parked_for_now)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13"
        ))
        .bind(recording.key.session.as_str())
        .bind(recording.key.filename.as_str())
        .bind(i64::try_from(recording.size_bytes).unwrap_or(i64::MAX))
        .bind(recording.sha256.map(|digest| digest.to_string()))
        .bind(without_nul(&recording.content_type))
        .bind(recording.original_filename.as_deref().map(without_nul))
        .bind(recording.durability.as_str())
        .bind(i64::from(recording.stores.supabase))
        .bind(self.holder(recording.stores))
        .bind(micros(recording.uploaded_at))
        .bind(recording.parked_reason.as_deref().map(without_nul))
        .bind(without_nul(&recording.upload_id))
        // Of a recording that is new, only the cloud's word can have parked it.
        .bind(i64::from(recording.parked_reason.is_some()))
        .execute(&mut **tx)
        .await?;
        Ok(inserted.rows_affected() > 0)
    }

    /// Adds a recording under the first name of the stem that is free, counted from `first`.
    async fn insert_named(
        &self,
        tx: &mut Tx,
        recording: &mut Recording,
        stem: &NameStem,
        first: u32,
    ) -> Result<()> {
        for n in first.max(1)..=u32::MAX {
            recording.key.filename = stem.nth(n);
            if self.insert(tx, recording).await? {
                return Ok(());
            }
        }
        Err(every_name_is_taken())
    }

    async fn set_aside(&self, key: &ObjectKey, reason: &str, for_now: bool, by: &Origin) -> Result<()> {
        let mut tx = self.begin_for(&key.session).await?;
        let parked = sql(
            "UPDATE recordings SET parked_reason = $3, parked_for_now = $4 WHERE session_id = $1 AND filename = $2",
        )
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .bind(without_nul(reason))
        .bind(i64::from(for_now))
        .execute(&mut *tx)
        .await?;
        jobs::end_open(&mut tx, "sync", key, "parked", Some(reason)).await?;
        if parked.rows_affected() > 0 {
            let change = Change { detail: Some(reason), ..Change::of(Action::Parked, key) };
            audit::note(&mut tx, &change, by).await?;
        }
        tx.commit().await
    }

    /// If it was deleted between its name and its commit: what the stores have of it is to go too. `false` if it was not.
    async fn bury_again(&self, tx: &mut Tx, recording: &Recording) -> Result<bool> {
        let buried =
            sql("UPDATE tombstones SET pending_supabase = CASE WHEN $3 = 1 THEN 1 ELSE pending_supabase END,
                 pending_local = CASE WHEN $4 = '' THEN pending_local ELSE 1 END,
                 local_gateway = CASE WHEN $4 = '' THEN local_gateway ELSE $4 END
             WHERE session_id = $1 AND filename = $2")
            .bind(recording.key.session.as_str())
            .bind(recording.key.filename.as_str())
            .bind(i64::from(recording.stores.supabase))
            .bind(self.holder(recording.stores).unwrap_or_default())
            .execute(&mut **tx)
            .await?;
        Ok(buried.rows_affected() > 0)
    }

    /// Reserves a name, unless it is taken: then nothing, and `false`.
    async fn keep_name(
        &self,
        tx: &mut Tx,
        key: &ObjectKey,
        upload_id: &str,
        request: Option<&RequestKey>,
    ) -> Result<bool> {
        let kept = sql(if_name_is_free!(
            "INSERT INTO reservations
                 (session_id, filename, gateway, process, upload_id, scope, request_key, request_mark)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8"
        ))
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .bind(self.gateway.as_str())
        .bind(self.process.as_str())
        .bind(upload_id)
        .bind(request.map(|request| request.scope.as_str()))
        .bind(request.map(|request| request.key.as_str()))
        .bind(request.map(|request| request.mark.as_str()))
        .execute(&mut **tx)
        .await?;
        Ok(kept.rows_affected() > 0)
    }

    /// Who holds the local copy of a recording that this gateway stores so.
    fn holder(&self, stores: StoreSet) -> Option<&str> {
        stores.local.then_some(self.gateway.as_str())
    }

    pub(super) async fn drop_row(tx: &mut Tx, key: &ObjectKey) -> Result<u64> {
        let dropped = sql("DELETE FROM recordings WHERE session_id = $1 AND filename = $2")
            .bind(key.session.as_str())
            .bind(key.filename.as_str())
            .execute(&mut **tx)
            .await?;
        Ok(dropped.rows_affected())
    }

    async fn row_by_upload(&self, tx: &mut Tx, upload_id: &str) -> Result<Option<Recording>> {
        let row = sql(AssertSqlSafe(format!(
            "SELECT {RECORDING_COLUMNS} FROM recordings WHERE upload_id = $1 LIMIT 1"
        )))
        .bind(upload_id)
        .fetch_optional(&mut **tx)
        .await?;
        row.as_ref().map(|row| recording_of(row, &self.gateway)).transpose()
    }

    pub(super) async fn row(
        &self,
        connection: &mut AnyConnection,
        key: &ObjectKey,
    ) -> Result<Option<Recording>> {
        let row = sql(AssertSqlSafe(format!(
            "SELECT {RECORDING_COLUMNS} FROM recordings WHERE session_id = $1 AND filename = $2"
        )))
        // Asked for with each range of a download; without a server there is no pooler.
        .persistent(self.dialect == Dialect::Sqlite)
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .fetch_optional(connection)
        .await?;
        row.as_ref().map(|row| recording_of(row, &self.gateway)).transpose()
    }
}

#[async_trait]
impl Recordings for SqlCatalog {
    async fn reserve(
        &self,
        session: &SessionId,
        stem: &NameStem,
        first: u32,
        upload_id: &str,
        request: Option<&RequestKey>,
    ) -> Result<(Filename, u32)> {
        let mut tx = self.begin_for(session).await?;
        for n in first.max(1)..=u32::MAX {
            let key = ObjectKey::new(session.clone(), stem.nth(n));
            if !self.keep_name(&mut tx, &key, upload_id, request).await? {
                continue;
            }
            if let Err(error) = tx.commit().await {
                self.remember_lost(Lost::Reservation { key, upload_id: upload_id.to_owned() });
                return Err(error);
            }
            return Ok((key.filename, n));
        }
        Err(every_name_is_taken())
    }

    async fn release(&self, key: &ObjectKey) -> Result<()> {
        let mut tx = self.begin().await?;
        release(&mut tx, key).await?;
        tx.commit().await
    }

    async fn abandoned(&self) -> Result<Vec<Abandoned>> {
        self.give_back_lost().await?;
        let mut tx = self.snapshot().await?;
        let rows =
            sql("SELECT session_id, filename, upload_id, scope, request_key, request_mark FROM reservations
             WHERE gateway = $1 AND process <> $2")
            .bind(self.gateway.as_str())
            .bind(self.process.as_str())
            .fetch_all(&mut *tx)
            .await?;
        let abandoned = |row| -> Result<Abandoned> {
            let key = key_of(row)?;
            Ok(Abandoned { key, upload_id: row.try_get(2)?, request: request_of(row, 3)? })
        };
        rows.iter().map(abandoned).collect()
    }

    async fn give_up(&self, abandoned: &Abandoned) -> Result<()> {
        let mut tx = self.begin().await?;
        let given_up = sql("DELETE FROM reservations
             WHERE session_id = $1 AND filename = $2 AND upload_id = $3 AND process <> $4
             RETURNING scope, request_key, request_mark")
        .bind(abandoned.key.session.as_str())
        .bind(abandoned.key.filename.as_str())
        .bind(abandoned.upload_id.as_str())
        .bind(self.process.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(request) = given_up.as_ref().map(|row| request_of(row, 0)).transpose()?.flatten() {
            self.forget_own(&mut tx, &request).await?;
        }
        tx.commit().await
    }

    async fn commit(&self, arrival: Arrival<'_>, by: &Origin) -> Result<Recording> {
        let mut recording = arrival.recording.clone();
        let mut tx = self.begin_for(&recording.key.session).await?;
        let buried = match arrival.name_from {
            Some((stem, first)) => {
                self.insert_named(&mut tx, &mut recording, stem, first).await?;
                false
            }
            None => {
                release(&mut tx, &recording.key).await?;
                let buried = self.bury_again(&mut tx, &recording).await?;
                if !buried && !self.insert(&mut tx, &recording).await? {
                    return Err(CatalogError::Corrupt(format!("{} is there already", recording.key)));
                }
                buried
            }
        };
        let key = &recording.key;
        if buried {
            // Somebody deleted it between the name and the answer: that was the later word.
            jobs::add_deletions(&mut tx, key, recording.stores, &self.gateway).await?;
        } else {
            // One that the cloud will not take has a job too, to be retried when somebody made it fit.
            if arrival.sync || recording.parked_reason.is_some() {
                jobs::add(&mut tx, "sync", key, Some(&self.gateway), arrival.parent).await?;
            }
            if let Some(reason) = &recording.parked_reason {
                jobs::end_open(&mut tx, "sync", key, "parked", Some(reason)).await?;
            }
        }
        let uploaded = Change { after: recording.sha256, ..Change::of(Action::Uploaded, key) };
        audit::note(&mut tx, &uploaded, by).await?;
        if let Some((request, fingerprint)) = arrival.request {
            let answered = sql("UPDATE idempotent_requests SET fingerprint = $3, answer = $4
                 WHERE scope = $1 AND request_key = $2 AND gateway = $5 AND fingerprint = $6 AND answer IS NULL")
            .bind(request.scope.as_str())
            .bind(request.key.as_str())
            .bind(fingerprint)
            .bind((arrival.answer)(&recording))
            .bind(self.gateway.as_str())
            .bind(request.mark.as_str())
            .execute(&mut *tx)
            .await?;
            if answered.rows_affected() == 0 {
                return Err(CatalogError::RequestLost);
            }
        }
        tx.commit().await?;
        Ok(recording)
    }

    async fn retract(&self, key: &ObjectKey, upload_id: &str, request: Option<&RequestKey>) -> Result<bool> {
        let mut tx = self.begin_for(&key.session).await?;
        if Self::drop_row(&mut tx, key).await? == 0 {
            return Ok(false);
        }
        // The row had the name until now, so nobody else has it.
        self.keep_name(&mut tx, key, upload_id, request).await?;
        jobs::drop_open(&mut tx, "sync", key).await?;
        if let Some(request) = request {
            sql("UPDATE idempotent_requests SET fingerprint = $4, answer = NULL
                 WHERE scope = $1 AND request_key = $2 AND gateway = $3")
            .bind(request.scope.as_str())
            .bind(request.key.as_str())
            .bind(self.gateway.as_str())
            .bind(request.mark.as_str())
            .execute(&mut *tx)
            .await?;
        }
        let change =
            Change { detail: Some("the upload could not be kept"), ..Change::of(Action::Denied, key) };
        audit::note(&mut tx, &change, &Origin::gateway("upload")).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn adopt(&self, recordings: &[Recording], sync: bool, by: &Origin) -> Result<u64> {
        let mut adopted = 0;
        // One transaction a session, so that no two wait for each other's locks.
        for recordings in recordings.chunk_by(|a, b| a.key.session == b.key.session) {
            let Some(first) = recordings.first() else { continue };
            let mut tx = self.begin_for(&first.key.session).await?;
            let session_deleted =
                sql("SELECT session_id, deleted_at FROM session_tombstones WHERE session_id = $1")
                    .bind(first.key.session.as_str())
                    .fetch_optional(&mut *tx)
                    .await?;
            let deleted_at = session_deleted.as_ref().map(session_and_time_of).transpose()?.map(|(_, at)| at);
            for recording in recordings {
                let key = &recording.key;
                // What the bucket held of a session when it was deleted goes with it.
                let went =
                    recording.stores.supabase && deleted_at.is_some_and(|at| at >= recording.uploaded_at);
                if went || !self.insert(&mut tx, recording).await? {
                    continue;
                }
                if sync && !recording.stores.supabase {
                    jobs::add(&mut tx, "sync", key, Some(&self.gateway), None).await?;
                }
                let change = Change { after: recording.sha256, ..Change::of(Action::Adopted, key) };
                audit::note(&mut tx, &change, by).await?;
                adopted += 1;
            }
            tx.commit().await?;
        }
        Ok(adopted)
    }

    async fn get(&self, key: &ObjectKey) -> Result<Option<Recording>> {
        match self.dialect {
            // One statement sees one moment by itself.
            Dialect::Sqlite => self.row(&mut *self.read.acquire().await?, key).await,
            Dialect::Postgres => self.row(&mut *self.snapshot().await?, key).await,
        }
    }

    async fn get_by_upload(&self, upload_id: &str) -> Result<Option<Recording>> {
        self.row_by_upload(&mut self.snapshot().await?, upload_id).await
    }

    async fn committed(&self, session: &SessionId, upload_id: &str) -> Result<Option<Recording>> {
        let mut tx = self.begin_for(session).await?;
        let row = self.row_by_upload(&mut tx, upload_id).await?;
        tx.commit().await?;
        Ok(row)
    }

    async fn sessions(&self) -> Result<Vec<SessionId>> {
        let rows = sql("SELECT session_id FROM recordings UNION SELECT session_id FROM tombstones
             UNION SELECT session_id FROM reservations UNION SELECT session_id FROM session_tombstones
             UNION SELECT session_id FROM jobs WHERE state = 'open' AND session_id <> '' ORDER BY 1")
        .fetch_all(&mut *self.snapshot().await?)
        .await?;
        rows.iter().map(session_of).collect()
    }

    async fn recorded_sessions(&self, sessions: &[SessionId]) -> Result<HashSet<SessionId>> {
        listings::recorded_sessions(&mut self.snapshot().await?, sessions).await
    }

    async fn sessions_page(&self, after: Option<&Position>, limit: usize) -> Result<SessionsSeen> {
        listings::sessions_page(&mut self.snapshot().await?, self.dialect, after, limit).await
    }

    async fn recordings_page(
        &self,
        session: &SessionId,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<RecordingsSeen> {
        let page = async |connection: &mut AnyConnection| {
            listings::recordings_page(connection, self.dialect, &self.gateway, session, after, limit).await
        };
        match self.dialect {
            Dialect::Sqlite => page(&mut *self.read.acquire().await?).await,
            // Behind a pooler every statement is in a transaction.
            Dialect::Postgres => page(&mut *self.snapshot().await?).await,
        }
    }

    async fn names(&self, keys: &[ObjectKey]) -> Result<Names> {
        listings::names(&mut self.snapshot().await?, keys).await
    }

    async fn view(&self, scope: &ListScope) -> Result<View> {
        // Two texts, so that one session's question uses its index whatever the planner thinks of parameters.
        let (filter, session) = match scope {
            ListScope::Everything => ("$1 = ''", ""),
            ListScope::Session(session) => ("session_id = $1", session.as_str()),
        };
        let mut tx = self.snapshot().await?;
        let mut rows = async |columns: &str, table: &str| {
            let text = format!("SELECT {columns} FROM {table} WHERE {filter}");
            sql(AssertSqlSafe(text)).bind(session).fetch_all(&mut *tx).await
        };
        let recordings = rows(RECORDING_COLUMNS, "recordings").await?;
        let tombstones = rows("session_id, filename", "tombstones").await?;
        let reserved = rows("session_id, filename", "reservations").await?;
        let sessions = rows("session_id, deleted_at", "session_tombstones").await?;
        Ok(View {
            recordings: recordings
                .iter()
                .map(|row| recording_of(row, &self.gateway))
                .collect::<Result<_>>()?,
            deleted: Deleted {
                keys: tombstones.iter().map(key_of).collect::<Result<_>>()?,
                sessions: sessions.iter().map(session_and_time_of).collect::<Result<_>>()?,
            },
            reserved: reserved.iter().map(key_of).collect::<Result<_>>()?,
        })
    }

    async fn following(&self, after: Option<&ObjectKey>, limit: usize) -> Result<Vec<Recording>> {
        let (session, filename) = after.map_or(("", ""), |key| (key.session.as_str(), key.filename.as_str()));
        let rows = sql(AssertSqlSafe(format!(
            "SELECT {RECORDING_COLUMNS} FROM recordings WHERE {FOLLOWS} AND local_gateway = $3
                 AND (session_id, filename) > ($1, $2) ORDER BY session_id, filename LIMIT $4"
        )))
        .bind(session)
        .bind(filename)
        .bind(self.gateway.as_str())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *self.snapshot().await?)
        .await?;
        rows.iter().map(|row| recording_of(row, &self.gateway)).collect()
    }

    async fn follow(&self, as_it_is: &Recording) -> Result<bool> {
        let key = &as_it_is.key;
        let mut tx = self.begin_for(&key.session).await?;
        let followed = sql(AssertSqlSafe(format!(
            "UPDATE recordings SET size_bytes = $4, uploaded_at = $5
             WHERE session_id = $1 AND filename = $2 AND {FOLLOWS} AND local_gateway = $3"
        )))
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .bind(self.gateway.as_str())
        .bind(i64::try_from(as_it_is.size_bytes).unwrap_or(i64::MAX))
        .bind(micros(as_it_is.uploaded_at))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(followed.rows_affected() > 0)
    }

    async fn mark_stored(
        &self,
        key: &ObjectKey,
        stores: StoreSet,
        durability: Durability,
        sha256: ContentDigest,
        by: &Origin,
    ) -> Result<bool> {
        let mut tx = self.begin_for(&key.session).await?;
        let Some(before) = self.row(&mut tx, key).await? else { return Ok(false) };
        sql(
            "UPDATE recordings SET in_supabase = $3, local_gateway = $4, durability = $5, sha256 = $6, parked_reason = $7
             WHERE session_id = $1 AND filename = $2",
        )
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .bind(i64::from(stores.supabase))
        .bind(self.holder(stores))
        .bind(durability.as_str())
        .bind(before.sha256.unwrap_or(sha256).to_string())
        .bind(before.parked_reason.as_deref().filter(|_| !stores.supabase))
        .execute(&mut *tx)
        .await?;
        if stores.supabase && !before.stores.supabase {
            let change =
                Change { before: before.sha256, after: Some(sha256), ..Change::of(Action::Synced, key) };
            audit::note(&mut tx, &change, by).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    async fn mend(&self, mend: Mend<'_>, by: &Origin) -> Result<bool> {
        let (before, key) = (mend.before, &mend.before.key);
        let mut tx = self.begin_for(&key.session).await?;
        if self.row(&mut tx, key).await?.as_ref() != Some(before) {
            return Ok(false);
        }
        // A copy on another gateway's disk stays that one's.
        let holder = match &before.held_by {
            Some(other) => mend.stores.local.then_some(other.as_str()),
            None => self.holder(mend.stores),
        };
        sql("UPDATE recordings SET in_supabase = $3, local_gateway = $4, durability = $5, parked_reason = $6
             WHERE session_id = $1 AND filename = $2")
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .bind(i64::from(mend.stores.supabase))
        .bind(holder)
        .bind(mend.durability.as_str())
        .bind(before.parked_reason.as_deref().filter(|_| !mend.sync && !mend.stores.supabase))
        .execute(&mut *tx)
        .await?;
        if mend.sync || mend.stores.supabase {
            jobs::replace_parked(&mut tx, key).await?;
        }
        if mend.sync {
            jobs::add(&mut tx, "sync", key, Some(&self.gateway), None).await?;
        } else if !mend.stores.local {
            jobs::end_open(&mut tx, "sync", key, "done", None).await?;
        }
        let change = Change {
            before: mend.found.or(before.sha256),
            after: before.sha256,
            detail: Some(mend.detail),
            ..Change::of(Action::Repaired, key)
        };
        audit::note(&mut tx, &change, by).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn park(&self, key: &ObjectKey, reason: &str, by: &Origin) -> Result<()> {
        self.set_aside(key, reason, false, by).await
    }

    async fn park_for_now(&self, key: &ObjectKey, reason: &str, by: &Origin) -> Result<()> {
        self.set_aside(key, reason, true, by).await
    }

    async fn forget(&self, before: &Recording, by: &Origin) -> Result<bool> {
        let key = &before.key;
        let mut tx = self.begin_for(&key.session).await?;
        if self.row(&mut tx, key).await?.as_ref() != Some(before) {
            return Ok(false);
        }
        Self::drop_row(&mut tx, key).await?;
        let ended = jobs::cancel_sync(&mut tx, key, "the recording is lost").await?;
        parents::settle_parents(&mut tx, ended).await?;
        let detail = Some("no store had it; forgotten");
        let change = Change { before: before.sha256, detail, ..Change::of(Action::Repaired, key) };
        audit::note(&mut tx, &change, by).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn counts(&self) -> Result<Counts> {
        tallies::counts(&mut self.snapshot().await?).await
    }
}

/// From three columns, the first of which is given.
fn request_of(row: &AnyRow, first: usize) -> Result<Option<RequestKey>> {
    let text = |i: usize| row.try_get::<Option<String>, _>(first + i);
    let mark = text(2)?.unwrap_or_default();
    Ok(text(0)?.zip(text(1)?).map(|(scope, key)| RequestKey { scope, key, mark }))
}

async fn release(tx: &mut Tx, key: &ObjectKey) -> Result<()> {
    sql("DELETE FROM reservations WHERE session_id = $1 AND filename = $2")
        .bind(key.session.as_str())
        .bind(key.filename.as_str())
        .execute(&mut **tx)
        .await?;
    Ok(())
}
