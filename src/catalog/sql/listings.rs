//! Questions whose answers are as long as the question: what is known of some names, of some sessions, of one page
//! of sessions or of recordings. Whoever goes through everything asks these, a part at a time.

use std::collections::{HashMap, HashSet};

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::recordings::FOLLOWS;
use super::rows::{
    RECORDING_COLUMNS, corrupt, key_of, recordings_of, session_and_time_of, session_of, time_of,
};
use super::{Dialect, Result, Tx, sql};
use crate::catalog::{Names, RecordingsSeen, SessionTotals, SessionsSeen};
use crate::domain::merge::Deleted;
use crate::domain::page::Position;
use crate::domain::{GatewayId, ObjectKey, SessionId};

/// Values bound in one statement. SQLite takes 32766 (sqlite.org/limits.html), PostgreSQL 65535.
const AT_ONCE: usize = 500;

/// `($1, $2), ($3, $4)` and so on: `rows` of them with `columns` each.
fn values(rows: usize, columns: usize) -> String {
    let row = |n: usize| {
        let numbers: Vec<String> = (1..=columns).map(|c| format!("${}", n * columns + c)).collect();
        format!("({})", numbers.join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

pub(super) async fn names(tx: &mut Tx, keys: &[ObjectKey]) -> Result<Names> {
    let mut names = Names::default();
    for keys in keys.chunks(AT_ONCE) {
        let has = |table: &str| {
            format!(
                "(SELECT COUNT(*) FROM {table} t WHERE t.session_id = asked.session_id AND t.filename = asked.filename)"
            )
        };
        let text = format!(
            "WITH asked (session_id, filename) AS (VALUES {})
             SELECT session_id, filename, {}, {}, {},
                 (SELECT deleted_at FROM session_tombstones t WHERE t.session_id = asked.session_id) FROM asked",
            values(keys.len(), 2),
            has("recordings"),
            has("tombstones"),
            has("reservations"),
        );
        let mut question = sql(AssertSqlSafe(text));
        for key in keys {
            question = question.bind(key.session.as_str()).bind(key.filename.as_str());
        }
        for row in question.fetch_all(&mut **tx).await? {
            let key = key_of(&row)?;
            if let Some(at) = row.try_get::<Option<i64>, _>(5)? {
                names.deleted.sessions.insert(key.session.clone(), time_of(at)?);
            }
            let sets = [&mut names.recorded, &mut names.deleted.keys, &mut names.reserved];
            for (set, column) in sets.into_iter().zip(2..) {
                if row.try_get::<i64, _>(column)? > 0 {
                    set.insert(key.clone());
                }
            }
        }
    }
    Ok(names)
}

pub(super) async fn recorded_sessions(tx: &mut Tx, sessions: &[SessionId]) -> Result<HashSet<SessionId>> {
    let mut recorded = HashSet::new();
    for sessions in sessions.chunks(AT_ONCE) {
        let text = format!(
            "WITH asked (session_id) AS (VALUES {}) SELECT session_id FROM asked
             WHERE EXISTS (SELECT 1 FROM recordings r WHERE r.session_id = asked.session_id)",
            values(sessions.len(), 1)
        );
        let mut question = sql(AssertSqlSafe(text));
        for session in sessions {
            question = question.bind(session.as_str());
        }
        for row in question.fetch_all(&mut **tx).await? {
            recorded.insert(session_of(&row)?);
        }
    }
    Ok(recorded)
}

/// A text in the order of its bytes, as pages are merged with what stores tell.
fn by_bytes(dialect: Dialect, column: &str) -> String {
    match dialect {
        Dialect::Sqlite => column.to_owned(),
        Dialect::Postgres => format!("{column} COLLATE \"C\""),
    }
}

/// What comes after a position in the list of a session: every row of an earlier time than this one, and of this time
/// those with a lesser name. Any position has its place in any list.
fn later_than<'a>(session: &SessionId, after: Option<&'a Position>) -> (i64, &'a str) {
    let Some(after) = after else { return (i64::MAX, "") };
    let own = after.name.strip_prefix(session.as_str()).and_then(|name| name.strip_prefix('/'));
    match own {
        Some(filename) => (after.time_us, filename),
        // All names of the session are on one side of it.
        None if after.name > format!("{session}/") => (after.time_us.saturating_add(1), ""),
        None => (after.time_us, ""),
    }
}

/// In one statement, which sees one moment by itself.
pub(super) async fn recordings_page(
    connection: &mut AnyConnection,
    dialect: Dialect,
    mine: &GatewayId,
    session: &SessionId,
    after: Option<&Position>,
    limit: usize,
) -> Result<RecordingsSeen> {
    let (time_us, name) = later_than(session, after);
    let by_bytes = by_bytes(dialect, "filename");
    let in_one_text = match dialect {
        Dialect::Sqlite => format!("json_group_array(json_array({RECORDING_COLUMNS}))"),
        Dialect::Postgres => {
            format!("COALESCE(CAST(json_agg(json_build_array({RECORDING_COLUMNS})) AS TEXT), '[]')")
        }
    };
    // The cast: SQLite prepares a statement anew each time a bare `LIMIT $4` is bound, to plan by its value.
    let text = format!(
        "SELECT (SELECT {in_one_text} FROM (
                SELECT {RECORDING_COLUMNS} FROM recordings
                WHERE session_id = $1 AND uploaded_at <= $2 AND (uploaded_at < $2 OR {by_bytes} < $3)
                ORDER BY uploaded_at DESC, {by_bytes} DESC LIMIT CAST($4 AS BIGINT)) AS page),
             (SELECT {in_one_text} FROM recordings
                WHERE session_id = $1 AND local_gateway = $5 AND {FOLLOWS}),
             COALESCE((SELECT recordings FROM session_counts WHERE session_id = $1), 0)"
    );
    let row = sql(AssertSqlSafe(text))
        // Without a server there is no pooler, and preparing it costs as much as a third of the rows.
        .persistent(dialect == Dialect::Sqlite)
        .bind(session.as_str())
        .bind(time_us)
        .bind(name)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(mine.as_str())
        .fetch_one(connection)
        .await?;
    let (rows, following): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let mut rows = recordings_of(&rows, mine)?;
    // Nothing lays down the order within an aggregate.
    rows.sort_by(|a, b| (b.uploaded_at, &b.key.filename).cmp(&(a.uploaded_at, &a.key.filename)));
    Ok(RecordingsSeen { rows, total: number(&row, 2)?, following: recordings_of(&following, mine)? })
}

pub(super) async fn sessions_page(
    tx: &mut Tx,
    dialect: Dialect,
    after: Option<&Position>,
    limit: usize,
) -> Result<SessionsSeen> {
    let by_bytes = by_bytes(dialect, "session_id");
    let later = match after {
        None => String::new(),
        Some(_) => format!("AND (newest < $2 OR (newest = $2 AND {by_bytes} < $3))"),
    };
    // Grows with the sessions, not with their recordings.
    let text = format!(
        "WITH counted AS MATERIALIZED (
             SELECT session_id, (SELECT MAX(uploaded_at) FROM recordings
                                 WHERE recordings.session_id = session_counts.session_id) AS newest
             FROM session_counts WHERE recordings > 0)
         SELECT session_id, newest FROM counted
         WHERE newest IS NOT NULL {later} ORDER BY newest DESC, {by_bytes} DESC LIMIT $1"
    );
    let mut question = sql(AssertSqlSafe(text)).bind(i64::try_from(limit).unwrap_or(i64::MAX));
    if let Some(after) = after {
        question = question.bind(after.time_us).bind(after.name.as_str());
    }
    let newest: Vec<(SessionId, i64)> = (question.fetch_all(&mut **tx).await?.iter())
        .map(|row| Ok((session_of(row)?, row.try_get(1)?)))
        .collect::<Result<_>>()?;
    let mut totals = totals(tx, &newest).await?;
    let counted = sql("SELECT COUNT(*), CAST(COALESCE(SUM(recordings), 0) AS BIGINT)
         FROM session_counts WHERE recordings > 0")
    .fetch_one(&mut **tx)
    .await?;
    let reserved = sql("SELECT session_id, filename FROM reservations").fetch_all(&mut **tx).await?;
    let deleted = sql("SELECT session_id, deleted_at FROM session_tombstones").fetch_all(&mut **tx).await?;
    let rows = newest.into_iter().filter_map(|(session, newest_us)| {
        let (count, bytes) = totals.remove(&session)?;
        Some(SessionTotals { session, count, bytes, newest_us })
    });
    Ok(SessionsSeen {
        rows: rows.collect(),
        sessions: number(&counted, 0)?,
        recordings: number(&counted, 1)?,
        hidden: Deleted {
            keys: reserved.iter().map(key_of).collect::<Result<_>>()?,
            sessions: deleted.iter().map(session_and_time_of).collect::<Result<_>>()?,
        },
    })
}

/// Rows and bytes of some sessions.
async fn totals(tx: &mut Tx, sessions: &[(SessionId, i64)]) -> Result<HashMap<SessionId, (u64, u64)>> {
    let mut totals = HashMap::new();
    for sessions in sessions.chunks(AT_ONCE) {
        let numbers: Vec<String> = (1..=sessions.len()).map(|n| format!("${n}")).collect();
        let text = format!(
            "SELECT session_id, COUNT(*), CAST(SUM(size_bytes) AS BIGINT) FROM recordings
             WHERE session_id IN ({}) GROUP BY session_id",
            numbers.join(", ")
        );
        let mut question = sql(AssertSqlSafe(text));
        for (session, _) in sessions {
            question = question.bind(session.as_str());
        }
        for row in question.fetch_all(&mut **tx).await? {
            totals.insert(session_of(&row)?, (number(&row, 1)?, number(&row, 2)?));
        }
    }
    Ok(totals)
}

fn number(row: &AnyRow, column: usize) -> Result<u64> {
    let number: i64 = row.try_get(column)?;
    u64::try_from(number).map_err(|_| corrupt(number))
}
