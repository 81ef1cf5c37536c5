//! The schema, forward only. Both databases have the same steps under the same numbers.

use std::borrow::Cow;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AnyPool, SqlSafeStr};

use super::{Dialect, Result};
use crate::catalog::CatalogError;

/// Any number that nobody else uses for an advisory lock.
const MIGRATING: &str = "SELECT pg_advisory_xact_lock(7240124901)";

fn steps(dialect: Dialect) -> [(&'static str, &'static str); 4] {
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
    ]
}

pub(super) async fn run(dialect: Dialect, pool: &AnyPool) -> Result<()> {
    // Gateways that start at the same time: the second waits and finds nothing to do. The migrator's own lock belongs to
    // a session, which a pooler may give to somebody else before it is released.
    let mut waiting = None;
    if dialect == Dialect::Postgres {
        let mut tx = pool.begin().await?;
        sqlx::query(MIGRATING).execute(&mut *tx).await?;
        waiting = Some(tx);
    }
    let migrations = steps(dialect).into_iter().zip(1..).map(|((name, text), version)| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, text.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.set_locking(false);
    let migrated = migrator.run(pool).await;
    if let Some(tx) = waiting {
        tx.commit().await?;
    }
    migrated.map_err(|error| match error {
        MigrateError::VersionMissing(version) => CatalogError::Newer(version),
        error => CatalogError::Migrate(error),
    })
}
