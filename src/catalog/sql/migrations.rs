//! The schema, forward only. Both databases have the same steps under the same numbers.

use std::borrow::Cow;
use std::collections::BTreeMap;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AnyPool, Row, SqlSafeStr};

use super::{Dialect, Result, sql};
use crate::catalog::CatalogError;

/// Any number that nobody else uses for an advisory lock.
const MIGRATING: &str = "SELECT pg_advisory_xact_lock(7240124901)";

fn steps(dialect: Dialect) -> [(&'static str, &'static str); 7] {
    [
        ("initial", include_str!("migrations/0001_initial.sql")),
        ("gateways jobs audit", include_str!("migrations/0002_gateways_jobs_audit.sql")),
        (
            "append only",
            match dialect {
                Dialect::Sqlite => include_str!("migrations/0003_append_only.sqlite.sql"),
                Dialect::Postgres => include_str!("migrations/0003_append_only.postgres.sql"),
            },
        ),
        ("parked for now", include_str!("migrations/0004_parked_for_now.sql")),
        ("indexes", include_str!("migrations/0005_indexes.sql")),
        (
            "session counts",
            match dialect {
                Dialect::Sqlite => include_str!("migrations/0006_session_counts.sqlite.sql"),
                Dialect::Postgres => include_str!("migrations/0006_session_counts.postgres.sql"),
            },
        ),
        ("request marks", include_str!("migrations/0007_request_marks.sql")),
    ]
}

pub(super) async fn run(dialect: Dialect, pool: &AnyPool) -> Result<()> {
    let migrations = steps(dialect).into_iter().zip(1..).map(|((name, text), version)| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, text.into_sql_str(), false)
    });
    let migrated = match dialect {
        Dialect::Sqlite => Migrator::with_migrations(migrations.collect()).run(pool).await,
        Dialect::Postgres => run_in_one(migrations.collect(), pool).await?,
    };
    migrated.map_err(|error| match error {
        MigrateError::VersionMissing(version) => CatalogError::Newer(version),
        error => CatalogError::Migrate(error),
    })
}

/// Whether a catalogue that is only looked at is of a version that can be read.
///
/// # Errors
/// [`CatalogError::Newer`] if it is not.
pub(super) async fn refuse_newer(dialect: Dialect, pool: &AnyPool) -> Result<()> {
    let row = sql("SELECT max(version) FROM _sqlx_migrations").fetch_one(pool).await?;
    let known = i64::try_from(steps(dialect).len()).unwrap_or(i64::MAX);
    match row.try_get::<Option<i64>, _>(0)? {
        Some(version) if version > known => Err(CatalogError::Newer(version)),
        _ => Ok(()),
    }
}

/// What the migrator does, in one transaction and without names for statements, as a pooler wants it; its own lock
/// belongs to a session, which a pooler may give to somebody else before it is released. Gateways that start at the
/// same time wait for the first one.
async fn run_in_one(
    migrations: Vec<Migration>,
    pool: &AnyPool,
) -> Result<std::result::Result<(), MigrateError>> {
    let mut tx = pool.begin().await?;
    sql(MIGRATING).execute(&mut *tx).await?;
    // As the migrator makes it.
    sql(
        "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
             version BIGINT PRIMARY KEY, description TEXT NOT NULL, installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
             success BOOLEAN NOT NULL, checksum BYTEA NOT NULL, execution_time BIGINT NOT NULL)",
    )
    .execute(&mut *tx)
    .await?;
    let rows = sql("SELECT version, encode(checksum, 'hex') FROM _sqlx_migrations ORDER BY version")
        .fetch_all(&mut *tx)
        .await?;
    let mut applied = BTreeMap::new();
    for row in &rows {
        applied.insert(row.try_get::<i64, _>(0)?, row.try_get::<String, _>(1)?);
    }
    for migration in migrations {
        let (version, checksum) = (migration.version, hex::encode(&migration.checksum));
        match applied.remove(&version) {
            Some(known) if known == checksum => continue,
            Some(_) => return Ok(Err(MigrateError::VersionMismatch(version))),
            None => {}
        }
        sqlx::raw_sql(migration.sql.clone()).execute(&mut *tx).await?;
        sql("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ($1, $2, true, decode($3, 'hex'), 0)")
        .bind(version)
        .bind(migration.description.as_ref())
        .bind(checksum)
        .execute(&mut *tx)
        .await?;
    }
    if let Some((version, _)) = applied.pop_first() {
        return Ok(Err(MigrateError::VersionMissing(version)));
    }
    tx.commit().await?;
    Ok(Ok(()))
}
