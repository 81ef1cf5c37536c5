//! Leaving jobs for what should be in the cloud and has none. Apart from the other changes of jobs because it goes through
//! all sessions at once, without their locks: what others change between two statements must not be touched.

use sqlx::Row;

use super::jobs::{NewJob, insert};
use super::parents::settle_parent;
use super::{Result, SqlCatalog, sql};
use crate::catalog::QueueSyncs;
use crate::domain::GatewayId;

impl SqlCatalog {
    pub(super) async fn queue_once(&self, which: QueueSyncs<'_>) -> Result<u64> {
        let session = which.session.map_or("", |session| session.as_str());
        // Two texts, so that what waits is found by its index.
        let stores = if which.in_both { "$2 = 1" } else { "$2 = 0 AND in_supabase = 0" };
        let mut tx = self.begin().await?;
        let rows = sql(sqlx::AssertSqlSafe(format!(
            "SELECT session_id, filename, local_gateway FROM recordings r
             WHERE ($1 = '' OR session_id = $1) AND local_gateway IS NOT NULL AND {stores}
                 AND (parked_reason IS NULL OR $3 = 1 OR ($4 = 1 AND parked_for_now = 1))
                 AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.kind = 'sync' AND j.session_id = r.session_id
                                 AND j.filename = r.filename AND j.state = 'open')
             ORDER BY uploaded_at, session_id, filename"
        )))
        .bind(session)
        .bind(i64::from(which.in_both))
        .bind(i64::from(which.parked))
        .bind(i64::from(which.for_now))
        .fetch_all(&mut *tx)
        .await?;
        for row in &rows {
            let (session, filename): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let holder = GatewayId(row.try_get(2)?);
            let (session, filename) = (session.as_str(), filename.as_str());
            let job =
                NewJob { kind: "sync", session, filename, gateway: Some(&holder), parent: which.parent };
            insert(&mut tx, job).await?;
        }
        if which.parked || which.for_now {
            // Only of those that have a job now: others may have been parked since they were looked for.
            sql(
                "UPDATE recordings SET parked_reason = NULL WHERE parked_reason IS NOT NULL AND ($1 = '' OR session_id = $1)
                     AND in_supabase = 0 AND (parked_for_now = 1 OR $2 = 1)
                     AND EXISTS (SELECT 1 FROM jobs j WHERE j.kind = 'sync' AND j.session_id = recordings.session_id
                                 AND j.filename = recordings.filename AND j.state = 'open')",
            )
            .bind(session)
            .bind(i64::from(which.parked))
            .execute(&mut *tx)
            .await?;
            // The new job takes the parked one's place.
            sql(
                "UPDATE jobs SET state = 'cancelled' WHERE kind = 'sync' AND state = 'parked' AND ($1 = '' OR session_id = $1)
                     AND EXISTS (SELECT 1 FROM jobs j WHERE j.kind = 'sync' AND j.session_id = jobs.session_id
                                 AND j.filename = jobs.filename AND j.state = 'open')",
            )
            .bind(session)
            .execute(&mut *tx)
            .await?;
        }
        if let Some(parent) = which.parent {
            sql("UPDATE jobs SET parent_id = $2 WHERE kind = 'sync' AND state = 'open' AND parent_id IS NULL
                     AND ($1 = '' OR session_id = $1)")
            .bind(session)
            .bind(parent)
            .execute(&mut *tx)
            .await?;
            settle_parent(&mut tx, parent).await?;
        }
        let row = sql(
            "SELECT count(*) FROM jobs WHERE kind = 'sync' AND state = 'open' AND ($1 = '' OR session_id = $1)",
        )
        .bind(session)
        .fetch_one(&mut *tx)
        .await?;
        let open: i64 = row.try_get(0)?;
        tx.commit().await?;
        Ok(u64::try_from(open).unwrap_or(0))
    }
}
