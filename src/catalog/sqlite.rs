//! The catalogue in an embedded SQLite file, which one gateway has alone. Writers go through one connection, readers
//! through a few others. A commit is on the disk when the catalogue answers, because a forgotten tombstone would bring a
//! deleted recording back; many are flushed at once (see `sql/flush`), so SQLite itself does not wait.

use std::path::Path;
use std::str::FromStr;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyConnection, AnyPool, Connection, Executor};
use url::Url;

use super::sql::{Dialect, SqlCatalog};
use super::{CatalogError, Counts};
use crate::domain::GatewayId;

const READERS: u32 = 4;

/// Opens the file, making and migrating it as needed. Returns whether it was made.
///
/// # Errors
/// [`CatalogError::Newer`] for a file of a newer version, [`CatalogError::Damaged`] for one that is no catalogue: they are
/// left as they are. [`CatalogError::Closed`] if this user may not use it.
pub async fn open(path: &Path, gateway: GatewayId) -> Result<(SqlCatalog, bool), CatalogError> {
    let new = !path.exists();
    knock(path, "rwc").await?;
    let write = pool(path, "rwc", 1, true).await?;
    let readers = async || pool(path, "ro", READERS, false).await;
    Ok((SqlCatalog::prepare(Dialect::Sqlite, Some(path), write, readers, gateway).await?, new))
}

/// Reads the figures of an existing file without changing it, also while a gateway runs on it.
pub async fn inspect(path: &Path) -> Result<Counts, CatalogError> {
    knock(path, "ro").await?;
    let read = pool(path, "ro", 1, false).await?;
    let counts = SqlCatalog::inspect(Dialect::Sqlite, read.clone()).await;
    read.close().await;
    counts
}

async fn pool(path: &Path, mode: &str, connections: u32, writes: bool) -> Result<AnyPool, CatalogError> {
    sqlx::any::install_default_drivers();
    AnyPoolOptions::new()
        .max_connections(connections)
        // They cost nothing while they idle.
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                connection.execute("PRAGMA busy_timeout = 10000").await?;
                if writes {
                    connection.execute("PRAGMA journal_mode = WAL").await?;
                    connection.execute("PRAGMA synchronous = NORMAL").await?;
                }
                Ok(())
            })
        })
        // A file does not go away as a server does.
        .test_before_acquire(false)
        // On a full disk SQLite ends a transaction by itself; sqlx cannot roll back what is over and would refuse
        // every later one on this connection.
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
        .connect_with(AnyConnectOptions::from_str(&address(path, mode)?)?)
        .await
        .map_err(CatalogError::from)
}

/// Opens the file on one connection, for the true cause if that fails: a pool goes on trying, and says in the end that it
/// took too long.
async fn knock(path: &Path, mode: &str) -> Result<(), CatalogError> {
    // Read-only, a directory is opened and then fails as a broken disk does.
    if path.is_dir() {
        return Err(CatalogError::Closed(std::io::Error::from(std::io::ErrorKind::IsADirectory).into()));
    }
    sqlx::any::install_default_drivers();
    let options = AnyConnectOptions::from_str(&address(path, mode)?)?;
    let asked = async {
        let mut connection = AnyConnection::connect_with(&options).await?;
        // The first reads it; the second wants to write, and changes nothing.
        connection.execute("SELECT count(*) FROM sqlite_master").await?;
        if mode == "rwc" {
            connection.execute("BEGIN IMMEDIATE").await?;
            connection.execute("ROLLBACK").await?;
        }
        connection.close().await
    };
    let Err(error) = asked.await else { return Ok(()) };
    let code = error.as_database_error().and_then(|error| error.code());
    // The low byte of an extended code is the plain one (sqlite.org/rescode.html).
    match code.and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff) {
        // CORRUPT, NOTADB
        Some(11 | 26) => Err(CatalogError::Damaged(error)),
        // PERM, READONLY, CANTOPEN
        Some(3 | 8 | 14) => Err(CatalogError::Closed(error)),
        // BUSY, LOCKED: somebody looks into it.
        Some(5 | 6) => Ok(()),
        _ => Err(error.into()),
    }
}

fn address(path: &Path, mode: &str) -> Result<String, CatalogError> {
    let absolute = std::path::absolute(path).map_err(|error| CatalogError::Database(error.into()))?;
    let mut url = Url::from_file_path(&absolute)
        .map_err(|()| CatalogError::Corrupt(format!("{} is no path for a file", absolute.display())))?
        .to_string();
    url.replace_range(.."file".len(), "sqlite");
    Ok(format!("{url}?mode={mode}"))
}
