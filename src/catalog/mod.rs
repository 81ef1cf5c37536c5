//! The catalogue: what the gateway remembers about recordings, deletions and work that waits. One state-changing
//! method is one transaction; what it did is durable when it returns.
//!
//! The bytes do not depend on it: a lost catalogue is rebuilt from the stores. The tombstones do, which is why they
//! are written before anything is deleted.

mod job;
pub mod sqlite;

use std::collections::HashSet;

use async_trait::async_trait;
use time::OffsetDateTime;

pub use self::job::{Job, JobKind, Work};
use crate::domain::merge::Deleted;
use crate::domain::{
    ContentDigest, Durability, Filename, NameStem, ObjectKey, Recording, SessionId, StoreKind, StoreSet,
};
use crate::storage::ListScope;

/// Why the catalogue could not do it. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The disk has no room for it.
    #[error("the disk that holds the catalogue is full")]
    Full(#[source] sqlx::Error),
    /// Made by a newer version of this program.
    #[error(
        "the catalogue was made by a newer version (migration {0}); start that version, or move the catalogue away"
    )]
    Newer(i64),
    /// The database failed.
    #[error("the catalogue cannot be used")]
    Database(#[source] sqlx::Error),
    /// Its schema could not be brought up to date.
    #[error("the catalogue cannot be brought up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A row holds what this program never wrote.
    #[error("the catalogue holds a row that makes no sense: {0}")]
    Corrupt(String),
}

/// The memory of one deletion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tombstone {
    /// Stores that have not confirmed it yet.
    pub pending: StoreSet,
}

/// What is known of a request that carries an idempotency key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Begun {
    /// It is the first; it is now marked as running until `commit` or `forget_request`.
    First,
    /// An earlier one is still running.
    Running,
    /// An earlier one was answered.
    Answered(Answered),
}

/// An answer that a repeat gets again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    /// What the request asked for: digest and type of the recording.
    pub fingerprint: String,
    /// The answer, as the edge wrote it.
    pub answer: String,
}

/// The request an answer is kept for.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct RequestKey {
    /// The route and session it was sent to: equal keys of different sessions are different requests.
    pub scope: String,
    /// The client's key.
    pub key: String,
}

/// What `view` sees at one moment.
#[derive(Clone, Default, Debug)]
pub struct View {
    /// Rows of the scope.
    pub recordings: Vec<Recording>,
    /// What was deleted there.
    pub deleted: Deleted,
    /// Names of uploads on their way in.
    pub reserved: HashSet<ObjectKey>,
}

/// Figures for operators.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Recordings remembered.
    pub recordings: u64,
    /// Recordings that only the local disk has and that may go to the cloud.
    pub unsynced: u64,
    /// Their bytes.
    pub unsynced_bytes: u64,
    /// When the oldest of them was uploaded, microseconds since 1970 UTC.
    pub oldest_unsynced_us: Option<i64>,
    /// Recordings that the cloud will not take.
    pub parked: u64,
    /// Jobs that wait.
    pub jobs: u64,
}

/// The port.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// Gives out the first name of `stem`, counted from `first`, that no recording, tombstone or reservation has,
    /// and keeps it for the caller. Returns the name and its number.
    async fn reserve(
        &self,
        session: &SessionId,
        stem: &NameStem,
        first: u32,
    ) -> Result<(Filename, u32), CatalogError>;

    /// Gives a reserved name back.
    async fn release(&self, key: &ObjectKey) -> Result<(), CatalogError>;

    /// Remembers a finished recording, ends its reservation, keeps the answer for repeats, and if `sync` leaves a
    /// job to bring it to the cloud. If its name was deleted meanwhile, it is deleted instead.
    async fn commit(
        &self,
        recording: &Recording,
        sync: bool,
        answer: Option<(&RequestKey, &Answered)>,
    ) -> Result<(), CatalogError>;

    /// Remembers recordings found in a store that have neither row nor tombstone, nor went with their session; each
    /// that only the local disk has gets a sync job if `sync`. Returns how many were new.
    async fn adopt(&self, recordings: &[Recording], sync: bool) -> Result<u64, CatalogError>;

    /// One recording.
    async fn get(&self, key: &ObjectKey) -> Result<Option<Recording>, CatalogError>;

    /// Everything in the scope.
    async fn view(&self, scope: &ListScope) -> Result<View, CatalogError>;
    /// Leaves a sync job for every recording that only the local disk has, is not parked, and has none; with
    /// `in_both` also for those that the cloud has too, whose local copy is to go.
    async fn queue_unsynced(&self, in_both: bool) -> Result<(), CatalogError>;

    /// Notes where the copies are now, and their digest. `false` if there is no such recording any more: then it was deleted
    /// meanwhile, and whoever just made a copy has to remove it.
    async fn mark_stored(
        &self,
        key: &ObjectKey,
        stores: StoreSet,
        durability: Durability,
        sha256: ContentDigest,
    ) -> Result<bool, CatalogError>;

    /// Notes why the cloud will not take it and removes its sync job.
    async fn park(&self, key: &ObjectKey, reason: &str) -> Result<(), CatalogError>;

    /// Writes the tombstone, removes the row and its sync job, and leaves a job that deletes from the stores in
    /// `pending`. Repeating it adds to `pending`.
    async fn entomb(&self, key: &ObjectKey, pending: StoreSet) -> Result<(), CatalogError>;

    /// The tombstone of a name.
    async fn tombstone(&self, key: &ObjectKey) -> Result<Option<Tombstone>, CatalogError>;

    /// When a session was deleted whose cloud part is still to be deleted.
    async fn session_tombstone(&self, session: &SessionId) -> Result<Option<OffsetDateTime>, CatalogError>;

    /// A store confirmed the deletion. When no store is left, the job goes; the tombstone stays.
    async fn confirm_deleted(&self, key: &ObjectKey, store: StoreKind) -> Result<(), CatalogError>;

    /// Hides whatever the bucket holds of a session that the catalogue does not know, until that is deleted; leaves
    /// a job for it.
    async fn entomb_session(&self, session: &SessionId) -> Result<(), CatalogError>;

    /// The bucket was asked and its part of the session is deleted.
    async fn confirm_session_deleted(&self, session: &SessionId) -> Result<(), CatalogError>;

    /// Marks a keyed request as running, unless it is known.
    async fn begin_request(&self, request: &RequestKey) -> Result<Begun, CatalogError>;

    /// Forgets a running request that came to nothing.
    async fn forget_request(&self, request: &RequestKey) -> Result<(), CatalogError>;

    /// Forgets answers given before `older_than_us`.
    async fn expire_requests(&self, older_than_us: i64) -> Result<(), CatalogError>;

    /// Takes the oldest job that is due, deletions before syncs, and leases it for `lease_us`: nobody else gets it before that is over.
    async fn claim_job(&self, now_us: i64, lease_us: i64, work: Work) -> Result<Option<Job>, CatalogError>;

    /// The job is done. Does nothing if its lease was lost meanwhile.
    async fn complete_job(&self, job: &Job) -> Result<(), CatalogError>;

    /// The job failed and waits until `run_at_us`.
    async fn postpone_job(&self, job: &Job, run_at_us: i64, error: &str) -> Result<(), CatalogError>;

    /// Makes every waiting job due now.
    async fn hurry_jobs(&self, now_us: i64) -> Result<(), CatalogError>;

    /// Figures for operators; also the question whether the catalogue works.
    async fn counts(&self) -> Result<Counts, CatalogError>;
}
