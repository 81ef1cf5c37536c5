//! The catalogue on PostgreSQL, shared by every gateway that is told the same `DATABASE_URL`. Supabase's own database
//! is the usual one, mostly through its pooler: a pooler in transaction mode gives each transaction another connection,
//! so every statement runs in one, and none is prepared by name.

use std::str::FromStr;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyConnection, AnyPool, Connection, Executor};
use url::Url;

use super::sql::{Dialect, SqlCatalog};
use super::{CatalogError, Counts, Recordings};
use crate::domain::GatewayId;

/// Connections of one gateway at most. The smallest project on Supabase has 15 for all clients of its pooler.
const CONNECTIONS: u32 = 6;
/// A pooler drops idle clients; we go first.
const IDLE: Duration = Duration::from_secs(60);
/// How long the database may take to answer at all.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Connects and migrates as needed. Returns whether the catalogue was made.
///
/// # Errors
/// [`CatalogError::Newer`] for a catalogue of a newer version, which is left as it is.
pub async fn open(url: &Url, gateway: GatewayId) -> Result<(SqlCatalog, bool), CatalogError> {
    let pool = pool(url, CONNECTIONS).await?;
    let shared = pool.clone();
    let catalog = SqlCatalog::prepare(Dialect::Postgres, None, pool, async || Ok(shared), gateway).await?;
    let new = catalog.counts().await?.recordings == 0;
    Ok((catalog, new))
}

/// Reads the figures of an existing catalogue without changing it.
pub async fn inspect(url: &Url) -> Result<Counts, CatalogError> {
    let read = pool(url, 1).await?;
    let counts = SqlCatalog::inspect(Dialect::Postgres, read.clone()).await;
    read.close().await;
    counts
}

async fn pool(url: &Url, connections: u32) -> Result<AnyPool, CatalogError> {
    sqlx::any::install_default_drivers();
    let options = AnyConnectOptions::from_str(url.as_str())?;
    knock(&options).await?;
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ANSWERS_WITHIN)
        .idle_timeout(IDLE)
        .connect_with(options)
        .await
        .map_err(CatalogError::from)
}

/// Asks something on one connection, for the true cause if that fails: a pool goes on trying, and says in the end that it
/// took too long.
async fn knock(options: &AnyConnectOptions) -> Result<(), CatalogError> {
    let asked = async {
        let mut connection = AnyConnection::connect_with(options).await?;
        connection.execute("SELECT 1").await?;
        connection.close().await
    };
    let answered = tokio::time::timeout(ANSWERS_WITHIN, asked).await;
    Ok(answered.unwrap_or(Err(sqlx::Error::PoolTimedOut))?)
}
