//! Who changed what: rows are added in the transaction of the change.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::rows::{corrupt, digest_of, time_of, without_nul};
use super::{Result, SqlCatalog, Tx, given, new_id, now_us, sql};
use crate::catalog::{Action, Audit, AuditEntry, AuditQuery, Change, Origin};

pub(super) async fn note(tx: &mut Tx, change: &Change<'_>, by: &Origin) -> Result<()> {
    sql(
        "INSERT INTO audit (id, at, action, actor, request_id, session_id, filename, sha256_before, sha256_after, detail)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(new_id())
    .bind(now_us())
    .bind(change.action.as_str())
    .bind(by.actor.as_str())
    .bind(by.request_id.as_str())
    .bind(change.session.as_str())
    .bind(change.filename.unwrap_or_default())
    .bind(change.before.map(|digest| digest.to_string()))
    .bind(change.after.map(|digest| digest.to_string()))
    .bind(change.detail.map(without_nul))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

#[async_trait]
impl Audit for SqlCatalog {
    async fn note(&self, change: Change<'_>, by: &Origin) -> Result<()> {
        let mut tx = self.begin().await?;
        note(&mut tx, &change, by).await?;
        tx.commit().await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>> {
        let session = given("session_id", 1, query.session.is_some());
        let before = match query.before {
            Some(_) => "id < $7",
            None => "$7 = ''",
        };
        let rows = sql(sqlx::AssertSqlSafe(format!(
            "SELECT id, at, action, actor, request_id, session_id, filename, sha256_before, sha256_after, detail
             FROM audit WHERE {session} AND ($2 = '' OR filename = $2)
                 AND ($3 = '' OR action = $3) AND ($4 = '' OR actor = $4)
                 AND at >= $5 AND at < $6 AND {before}
             ORDER BY id DESC LIMIT $8"
        )))
        .bind(query.session.as_ref().map_or("", |session| session.as_str()))
        .bind(query.filename.as_deref().unwrap_or_default())
        .bind(query.action.map_or("", Action::as_str))
        .bind(query.actor.as_deref().unwrap_or_default())
        .bind(query.since_us.unwrap_or(i64::MIN))
        .bind(query.until_us.unwrap_or(i64::MAX))
        .bind(query.before.as_deref().unwrap_or_default())
        .bind(i64::try_from(query.limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *self.snapshot().await?)
        .await?;
        rows.iter().map(entry_of).collect()
    }
}

fn entry_of(row: &AnyRow) -> Result<AuditEntry> {
    let action: String = row.try_get(2)?;
    let filename: String = row.try_get(6)?;
    Ok(AuditEntry {
        id: row.try_get(0)?,
        at: time_of(row.try_get(1)?)?,
        action: Action::parse(&action).ok_or_else(|| corrupt(action))?,
        origin: Origin { actor: row.try_get(3)?, request_id: row.try_get(4)? },
        session_id: row.try_get(5)?,
        filename: Some(filename).filter(|name| !name.is_empty()),
        before: digest_of(row, 7)?,
        after: digest_of(row, 8)?,
        detail: row.try_get(9)?,
    })
}
