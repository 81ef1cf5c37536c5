//! The figures for operators. Apart because every probe asks for them: they are counted over indexes of what waits or is
//! parked, each row read once, and over sessions, never over all that is kept. Nothing here says what a figure means for
//! anybody's health.

use sqlx::{AssertSqlSafe, Row};

use super::{Result, Tx, sql};
use crate::catalog::{Counts, JobTally, STUCK_AFTER};

pub(super) async fn counts(tx: &mut Tx) -> Result<Counts> {
    let row = sql(AssertSqlSafe(format!(
        "SELECT (SELECT CAST(coalesce(sum(recordings), 0) AS BIGINT) FROM session_counts),
             waiting, bytes, oldest, parked,
             (SELECT count(*) FROM jobs WHERE state = 'open' AND kind IN ('delete', 'delete_local', 'delete_session')
                  AND attempts >= {STUCK_AFTER} AND last_error IS NOT NULL)
         FROM (SELECT count(*) - count(parked_reason) AS waiting,
                      CAST(coalesce(sum(CASE WHEN parked_reason IS NULL THEN size_bytes END), 0) AS BIGINT) AS bytes,
                      min(CASE WHEN parked_reason IS NULL THEN uploaded_at END) AS oldest,
                      count(parked_reason) AS parked
               FROM recordings WHERE in_supabase = 0) AS unsynced"
    )))
    .fetch_one(&mut **tx)
    .await?;
    let figure = |i: usize| -> Result<u64> { Ok(u64::try_from(row.try_get::<i64, _>(i)?).unwrap_or(0)) };
    let mut counts = Counts {
        recordings: figure(0)?,
        unsynced: figure(1)?,
        unsynced_bytes: figure(2)?,
        oldest_unsynced_us: row.try_get(3)?,
        parked: figure(4)?,
        stuck_deletions: figure(5)?,
        ..Counts::default()
    };
    // Two questions, each with an index of its own.
    let rows = sql("SELECT kind, 'open', count(*) FROM jobs WHERE state = 'open' GROUP BY kind
         UNION ALL SELECT kind, 'parked', count(*) FROM jobs WHERE state = 'parked' GROUP BY kind")
    .fetch_all(&mut **tx)
    .await?;
    for row in &rows {
        let kind: String = row.try_get(0)?;
        // Parents have no work of their own.
        let Some(at) = JobTally::KINDS.iter().position(|known| *known == kind) else { continue };
        let count = u64::try_from(row.try_get::<i64, _>(2)?).unwrap_or(0);
        let tally = &mut counts.by_kind[at];
        match row.try_get::<String, _>(1)?.as_str() {
            "parked" => tally.parked = count,
            _ => tally.open = count,
        }
    }
    counts.jobs = counts.by_kind.iter().map(|tally| tally.open).sum();
    Ok(counts)
}
