//! The statements of the catalogue, one text for both databases: columns are TEXT and BIGINT, placeholders `$1`. What
//! differs between them is in [`Dialect`] and nowhere else; how one is opened is the business of `sqlite` and
//! `postgres`.
//!
//! Invariant: changes to one session happen one after the other. SQLite has one writer; on PostgreSQL each
//! transaction that changes a session takes that session's lock first. So a name that was looked up is still free
//! when it is taken, and nothing is remembered beside its tombstone.

/// Does a change again that the database ended because it and others waited for each other: nothing of it was done. What
/// changes many rows in no order, and what can meet that, is done so. At the top, so that the rooms below know it.
macro_rules! again {
    ($change:expr) => {{
        let mut tries_left = super::TRIES;
        loop {
            let done = $change;
            tries_left -= 1;
            if tries_left == 0 || !super::was_deadlocked(&done) {
                break done;
            }
        }
    }};
}

mod audit;
mod deletions;
mod flush;
mod gateways;
mod jobs;
mod listings;
mod migrations;
mod parents;
mod queue;
mod recordings;
mod requests;
mod rows;
mod tallies;
mod transfer;

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AnyPool, SqlSafeStr, Transaction};
use time::OffsetDateTime;

use self::flush::LogFlush;
use super::{CatalogError, Counts, Recordings, RequestKey};
use crate::domain::recording::micros;
use crate::domain::{GatewayId, ObjectKey, SessionId};

type Result<T> = std::result::Result<T, CatalogError>;

/// A transaction. What it changed is on the disk when [`Tx::commit`] returns.
pub(super) struct Tx {
    inner: Transaction<'static, Any>,
    /// Where waiting for the disk is left to us.
    log: Option<Arc<LogFlush>>,
}

impl Tx {
    /// Ends it. Also after reading on the writing side: what was read is then on the disk too.
    async fn commit(self) -> Result<()> {
        self.inner.commit().await?;
        match self.log {
            Some(log) => log.wait().await,
            None => Ok(()),
        }
    }
}

impl Deref for Tx {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.inner
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.inner
    }
}

/// Which database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// A catalogue in an SQL database.
pub struct SqlCatalog {
    dialect: Dialect,
    /// On SQLite one connection, which makes changes one after the other.
    write: AnyPool,
    read: AnyPool,
    /// SQLite's, whose commits do not wait for the disk.
    log: Option<Arc<LogFlush>>,
    gateway: GatewayId,
    /// This process: what it reserves is given up when another one has taken its place.
    process: String,
    /// What may have been taken hold of by a commit whose answer was lost, to be given back.
    lost: Mutex<Vec<Lost>>,
}

/// Something that nobody here knows to have, and that keeps others from it if it is there.
enum Lost {
    /// A name reserved for an upload.
    Reservation { key: ObjectKey, upload_id: String },
    /// A keyed request marked as running, with this mark.
    Request(RequestKey),
}

impl From<sqlx::Error> for CatalogError {
    fn from(error: sqlx::Error) -> Self {
        let database = error.as_database_error();
        let code = database.and_then(|e| e.code()).unwrap_or_default().into_owned();
        match code.as_str() {
            // SQLITE_FULL (sqlite.org/rescode.html); disk_full of PostgreSQL (its manual, appendix A).
            "13" | "53100" => Self::Full(error),
            _ if database.is_some_and(|e| e.is_unique_violation()) => Self::Taken(error),
            _ => Self::Database(error),
        }
    }
}

impl SqlCatalog {
    /// Brings the schema up to date and takes up what an earlier process of this gateway left. `file` is SQLite's.
    pub(super) async fn prepare(
        dialect: Dialect,
        file: Option<&Path>,
        write: AnyPool,
        read: impl AsyncFnOnce() -> Result<AnyPool>,
        gateway: GatewayId,
    ) -> Result<Self> {
        migrations::run(dialect, &write).await?;
        let process = uuid::Uuid::now_v7().to_string();
        let log = file.map(|file| LogFlush::new(file, write.clone())).transpose();
        let log = log.map_err(|error| CatalogError::Database(error.into()))?.map(Arc::new);
        let read = read().await?;
        let catalog = Self { dialect, write, read, log, gateway, process, lost: Mutex::default() };
        catalog.take_over().await?;
        Ok(catalog)
    }

    /// The figures of a catalogue that is there, without changing it.
    pub(super) async fn inspect(dialect: Dialect, read: AnyPool) -> Result<Counts> {
        migrations::refuse_newer(dialect, &read).await?;
        let (gateway, process) = (GatewayId(String::new()), String::new());
        let (write, log) = (read.clone(), None);
        let inspector = Self { dialect, write, read, log, gateway, process, lost: Mutex::default() };
        inspector.counts().await
    }

    /// A transaction that changes things of no session, or of one that the caller locks.
    async fn begin(&self) -> Result<Tx> {
        let inner = match self.dialect {
            // Otherwise a transaction that reads first and writes later fails at once when another one writes.
            Dialect::Sqlite => self.write.begin_with("BEGIN IMMEDIATE").await?,
            Dialect::Postgres => self.write.begin().await?,
        };
        Ok(Tx { inner, log: self.log.clone() })
    }

    /// A transaction that changes a session: others wait until it is over.
    async fn begin_for(&self, session: &SessionId) -> Result<Tx> {
        let mut tx = self.begin().await?;
        self.lock_session(&mut tx, session).await?;
        Ok(tx)
    }

    async fn lock_session(&self, tx: &mut Tx, session: &SessionId) -> Result<()> {
        if self.dialect == Dialect::Postgres {
            // All of it ends with the transaction, so it is safe behind a pooler that gives each transaction another
            // connection. A gateway that vanished in the middle must not keep the session from the others.
            sql(
                "SELECT set_config('idle_in_transaction_session_timeout', '30s', true),
                     set_config('lock_timeout', '20s', true), pg_advisory_xact_lock(hashtextextended($1, 0))",
            )
            .bind(session.as_str())
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }

    /// A transaction that sees one moment. On SQLite that may be one that a power cut takes back.
    async fn snapshot(&self) -> Result<Tx> {
        let inner = match self.dialect {
            Dialect::Sqlite => self.read.begin().await?,
            Dialect::Postgres => {
                self.read.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?
            }
        };
        Ok(Tx { inner, log: None })
    }

    fn remember_lost(&self, lost: Lost) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(lost);
    }

    /// Gives back what lost commits may have taken.
    async fn give_back_lost(&self) -> Result<()> {
        loop {
            let Some(lost) = self.lost.lock().unwrap_or_else(PoisonError::into_inner).pop() else {
                return Ok(());
            };
            if let Err(error) = self.give_back(&lost).await {
                self.remember_lost(lost);
                return Err(error);
            }
        }
    }

    async fn give_back(&self, lost: &Lost) -> Result<()> {
        let mut tx = self.begin().await?;
        match lost {
            Lost::Reservation { key, upload_id } => {
                sql("DELETE FROM reservations WHERE session_id = $1 AND filename = $2 AND upload_id = $3")
                    .bind(key.session.as_str())
                    .bind(key.filename.as_str())
                    .bind(upload_id.as_str())
                    .execute(&mut *tx)
                    .await?;
            }
            Lost::Request(request) => self.forget_own(&mut tx, request).await?,
        }
        tx.commit().await
    }

    /// What an earlier process had begun: its leases, and keyed requests of which nothing may have come. What it
    /// reserved stays until somebody has looked for its object. An embedded catalogue is one gateway's own: whoever
    /// opens it is that gateway, also if its id was lost.
    async fn take_over(&self) -> Result<()> {
        let mut tx = self.begin().await?;
        if self.dialect == Dialect::Sqlite {
            for statement in [
                "UPDATE recordings SET local_gateway = $1 WHERE local_gateway <> $1",
                "UPDATE tombstones SET local_gateway = $1 WHERE local_gateway <> $1",
                "UPDATE jobs SET gateway = $1 WHERE gateway <> $1",
                "UPDATE jobs SET leased_by = $1 WHERE leased_by <> $1",
                "UPDATE reservations SET gateway = $1 WHERE gateway <> $1",
                "UPDATE idempotent_requests SET gateway = $1 WHERE gateway <> $1",
            ] {
                sql(statement).bind(self.gateway.as_str()).execute(&mut *tx).await?;
            }
        }
        for statement in [
            "UPDATE jobs SET leased_until = 0, leased_by = NULL WHERE leased_by = $1",
            "DELETE FROM idempotent_requests WHERE answer IS NULL AND gateway = $1 AND NOT EXISTS (
                 SELECT 1 FROM reservations r WHERE r.scope = idempotent_requests.scope
                 AND r.request_key = idempotent_requests.request_key)",
        ] {
            sql(statement).bind(self.gateway.as_str()).execute(&mut *tx).await?;
        }
        tx.commit().await
    }
}

/// Tries of a change that is done `again!`.
const TRIES: usize = 5;

/// Whether the database ended a transaction because it and others waited for each other (`deadlock_detected` of PostgreSQL,
/// its manual, appendix A): nothing of it was done.
fn was_deadlocked<T>(done: &Result<T>) -> bool {
    let Err(CatalogError::Database(error)) = done else { return false };
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "40P01")
}

/// A filter that an index can serve: text that allows for its absence would be read row by row. The value is bound in
/// either case.
fn given(column: &str, number: u32, is_given: bool) -> String {
    if is_given { format!("{column} = ${number}") } else { format!("${number} = ''") }
}

/// A statement. It is prepared without a name: behind a pooler in transaction mode the next transaction gets another
/// connection, where the name is not known, or known for something else.
fn sql<'q>(text: impl SqlSafeStr) -> Query<'q, Any, AnyArguments> {
    sqlx::query(text).persistent(false)
}

fn now_us() -> i64 {
    micros(OffsetDateTime::now_utc())
}

fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
