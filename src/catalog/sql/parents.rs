//! Jobs that are done by others: a parent ends with its last open child, and is open again when it gets another. Apart
//! from `jobs` because every change of a job ends here.
//!
//! Invariant: whoever ends a child or makes one holds the parent's row until its transaction is over, and looks at the
//! other children only then; otherwise two that end the last two at the same moment each leave the end to the other. The
//! children come first and the parents last, sorted, so that nobody waits for a child while others wait for its parent.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Result, Tx, now_us, sql};
use crate::catalog::{Children, JobRecord, JobState};

/// The first column of children.
pub(super) fn parents_of(children: &[AnyRow]) -> Result<Vec<String>> {
    let mut parents = Vec::new();
    for row in children {
        parents.extend(row.try_get::<Option<String>, _>(0)?);
    }
    Ok(parents)
}

/// Ends parents that have no open child, and opens those that have one again. No child is touched after it.
pub(super) async fn settle_parents(tx: &mut Tx, mut parents: Vec<String>) -> Result<()> {
    parents.sort_unstable();
    parents.dedup();
    for parent in parents {
        settle_parent(tx, &parent).await?;
    }
    Ok(())
}

/// Ends every parent that has no open child.
pub(super) async fn settle_open_parents(tx: &mut Tx) -> Result<()> {
    let open =
        sql("SELECT id FROM jobs WHERE state = 'open' AND kind IN ('sync_all', 'sync_session', 'migration')")
            .fetch_all(&mut **tx)
            .await?;
    settle_parents(tx, parents_of(&open)?).await
}

pub(super) async fn settle_parent(tx: &mut Tx, id: &str) -> Result<()> {
    // Takes the row, in either database. What comes after it sees what those have done who had it before.
    sql("UPDATE jobs SET state = state WHERE id = $1").bind(id).execute(&mut **tx).await?;
    const OPEN_CHILD: &str =
        "EXISTS (SELECT 1 FROM jobs child WHERE child.parent_id = $1 AND child.state = 'open')";
    sql(sqlx::AssertSqlSafe(format!(
        "UPDATE jobs SET state = 'done', finished_at = $2 WHERE id = $1 AND state = 'open' AND NOT {OPEN_CHILD}"
    )))
    .bind(id)
    .bind(now_us())
    .execute(&mut **tx)
    .await?;
    sql(sqlx::AssertSqlSafe(format!(
        "UPDATE jobs SET state = 'open', finished_at = NULL WHERE id = $1 AND state = 'done' AND {OPEN_CHILD}"
    )))
    .bind(id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Counts the children of a parent; any other is left as it is.
pub(super) async fn add_children(tx: &mut Tx, job: &mut JobRecord) -> Result<()> {
    if !job.kind.is_parent() {
        return Ok(());
    }
    let rows = sql("SELECT state, count(*) FROM jobs WHERE parent_id = $1 GROUP BY state")
        .bind(job.id.as_str())
        .fetch_all(&mut **tx)
        .await?;
    let mut children = Children::default();
    for row in &rows {
        let (state, count): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        let count = u64::try_from(count).unwrap_or(0);
        children.total += count;
        match state.as_str() {
            "done" => children.done = count,
            "parked" => children.parked = count,
            "cancelled" => children.cancelled = count,
            _ => {}
        }
    }
    if job.state == JobState::Waiting {
        job.state = JobState::Running;
    }
    job.children = Some(children);
    Ok(())
}
