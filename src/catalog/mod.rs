//! The catalogue: what the gateway remembers about recordings, deletions and work that waits. One state-changing
//! method is one transaction with its row in the audit; what it did is durable when it returns.
//!
//! The bytes do not depend on it: a lost catalogue is rebuilt from the stores. The tombstones do, which is why they
//! are written before anything is deleted.
//!
//! Several gateways may share one ([`postgres`]); [`sqlite`] is one gateway's own. The statements are the same (`sql`).

mod audit;
pub mod copy;
mod job;
pub mod postgres;
mod sql;
pub mod sqlite;

use std::collections::HashSet;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use self::audit::{Action, AuditEntry, AuditQuery, Change, Origin};
pub use self::job::{Changed, Children, Job, JobKind, JobQuery, JobRecord, JobState, Work};
pub use self::sql::SqlCatalog;
use crate::domain::merge::Deleted;
use crate::domain::page::Position;
use crate::domain::{
    ContentDigest, Durability, Filename, GatewayId, NameStem, ObjectKey, Recording, SessionId, StoreKind,
    StoreSet,
};
use crate::storage::ListScope;

/// Why the catalogue could not do it. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The disk has no room for it.
    #[error("the disk that holds the catalogue is full")]
    Full(#[source] sqlx::Error),
    /// Made by a newer version of this program.
    #[error("the catalogue was made by a newer version (migration {0})")]
    Newer(i64),
    /// The file is none of a catalogue, or is damaged. It was not changed.
    #[error("the catalogue's file is damaged, or something else")]
    Damaged(#[source] sqlx::Error),
    /// The file cannot be opened, or not for writing.
    #[error("the catalogue's file cannot be opened")]
    Closed(#[source] sqlx::Error),
    /// Another gateway has taken the keyed request over, because this one was not seen for long.
    #[error("another gateway answers this request")]
    RequestLost,
    /// There is such a row already.
    #[error("the name is taken in the catalogue")]
    Taken(#[source] sqlx::Error),
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tombstone {
    /// Stores that have not confirmed it yet.
    pub pending: StoreSet,
    /// The other gateway whose disk has the local copy; `None` if it is this one's or nobody's.
    pub held_by: Option<GatewayId>,
}

/// A name kept for an upload that ended without an answer, because its process did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Abandoned {
    /// The name.
    pub key: ObjectKey,
    /// By which the object, if it is in the bucket, is known to be this upload's.
    pub upload_id: String,
    /// The keyed request that waits for its answer.
    pub request: Option<RequestKey>,
}

/// A finished recording that is to be remembered.
pub struct Arrival<'a> {
    /// What is known of it. Its name is final if it was reserved.
    pub recording: &'a Recording,
    /// Where its name is still to be found: the first of this stem, counted from the number, that nobody has.
    pub name_from: Option<(&'a NameStem, u32)>,
    /// Whether it is to be brought to the cloud.
    pub sync: bool,
    /// The job that the sync is a part of.
    pub parent: Option<&'a str>,
    /// The keyed request that brought it, with the fingerprint of what it asked for.
    pub request: Option<(&'a RequestKey, &'a str)>,
    /// The answer to keep for repeats of the request.
    pub answer: &'a (dyn Fn(&Recording) -> String + Send + Sync),
}

/// Another gateway on the same catalogue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its id.
    pub id: GatewayId,
    /// Its `server.node`.
    pub node: String,
    /// Where it can be reached.
    pub url: String,
    /// When it last said that it is there.
    pub seen_at: OffsetDateTime,
}

/// A row that is to be put right.
#[derive(Clone, Copy, Debug)]
pub struct Mend<'a> {
    /// The row as it was found.
    pub before: &'a Recording,
    /// Where its copies are instead.
    pub stores: StoreSet,
    /// What that promises.
    pub durability: Durability,
    /// Whether it is to be brought to the cloud; then it is parked no longer.
    pub sync: bool,
    /// Digest of the copy that was wrong, as far as it is known.
    pub found: Option<ContentDigest>,
    /// What was wrong, for the audit.
    pub detail: &'a str,
}

/// Which syncs to queue.
#[derive(Clone, Copy, Default, Debug)]
pub struct QueueSyncs<'a> {
    /// Only this session's.
    pub session: Option<&'a SessionId>,
    /// Also recordings that the cloud has already, whose local copy is to go.
    pub in_both: bool,
    /// Also what was parked or cancelled, for whatever reason.
    pub parked: bool,
    /// Also what was parked for now.
    pub for_now: bool,
    /// Make them parts of this job, if they are of no other.
    pub parent: Option<&'a str>,
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
#[derive(Clone, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub struct RequestKey {
    /// The route and session it was sent to: equal keys of different sessions are different requests.
    pub scope: String,
    /// The client's key.
    pub key: String,
    /// This one of those that were sent with the key: whoever has to do with one that came to nothing leaves the next one
    /// alone.
    #[serde(default)]
    pub mark: String,
}

impl RequestKey {
    /// Of a request that has just come.
    pub fn new(scope: String, key: String) -> Self {
        Self { scope, key, mark: uuid::Uuid::now_v7().to_string() }
    }

    /// Whether a client would take them for the same.
    pub fn is_repeat_of(&self, other: &Self) -> bool {
        (&self.scope, &self.key) == (&other.scope, &other.key)
    }
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

/// What is known of some names, at one moment.
#[derive(Clone, Default, Debug)]
pub struct Names {
    /// Those that have a row.
    pub recorded: HashSet<ObjectKey>,
    /// Those that were deleted, and which of their sessions.
    pub deleted: Deleted,
    /// Those of uploads on their way in.
    pub reserved: HashSet<ObjectKey>,
}

impl Names {
    /// Whether nothing is known of it.
    pub fn lack(&self, key: &ObjectKey) -> bool {
        !self.recorded.contains(key) && !self.deleted.keys.contains(key) && !self.reserved.contains(key)
    }
}

/// What `recordings_page` sees at one moment.
#[derive(Clone, Default, Debug)]
pub struct RecordingsSeen {
    /// The page, in the order of lists.
    pub rows: Vec<Recording>,
    /// Rows of the session.
    pub total: u64,
    /// Those of the session that [follow their file](Recording::follows_its_file), wherever they stand: by what the file
    /// is now they may belong somewhere else.
    pub following: Vec<Recording>,
}

/// A session by the recordings it has, as far as they are known to whoever tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionTotals {
    /// Its id.
    pub session: SessionId,
    /// How many they are.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the newest of them was uploaded, microseconds since 1970 UTC.
    pub newest_us: i64,
}

/// What `sessions_page` sees at one moment.
#[derive(Clone, Default, Debug)]
pub struct SessionsSeen {
    /// The page, the session with the newest row first, equal times by name descending.
    pub rows: Vec<SessionTotals>,
    /// Sessions that have rows.
    pub sessions: u64,
    /// Rows.
    pub recordings: u64,
    /// What is hidden only for now: names of uploads on their way in, and sessions whose cloud part is still to be
    /// deleted. Tombstones of recordings are not here: they stay, so they can be asked for later ([`Names`]).
    pub hidden: Deleted,
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
    /// Jobs that wait or run, parents aside.
    pub jobs: u64,
    /// The same and parked ones, by kind.
    pub by_kind: [JobTally; JobTally::KINDS.len()],
    /// Deletions that failed [often](STUCK_AFTER): a store keeps what was deleted, most likely because it refuses.
    pub stuck_deletions: u64,
}

/// Tries after which a deletion that still fails is told to operators. It is tried on. A cloud that is away is left alone
/// before that, and being left alone is no try.
pub const STUCK_AFTER: i64 = 3;

/// Jobs of one kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct JobTally {
    /// Those that wait or run.
    pub open: u64,
    /// Those that are parked.
    pub parked: u64,
}

impl JobTally {
    /// The kinds that are done by themselves, as [`Counts::by_kind`] has them.
    pub const KINDS: [&str; 4] = ["sync", "delete", "delete_local", "delete_session"];
}

/// The port: everything the use cases ask of a catalogue.
pub trait Catalog: Recordings + Deletions + Jobs + Requests + Audit + Gateways {}

impl<T: Recordings + Deletions + Jobs + Requests + Audit + Gateways> Catalog for T {}

/// Recordings and their names.
#[async_trait]
pub trait Recordings: Send + Sync {
    /// Gives out the first name of `stem`, counted from `first`, that no recording, tombstone or reservation has,
    /// and keeps it for the caller, also through a crash. Returns the name and its number.
    async fn reserve(
        &self,
        session: &SessionId,
        stem: &NameStem,
        first: u32,
        upload_id: &str,
        request: Option<&RequestKey>,
    ) -> Result<(Filename, u32), CatalogError>;

    /// Gives a reserved name back.
    async fn release(&self, key: &ObjectKey) -> Result<(), CatalogError>;

    /// Names that earlier processes of this gateway had reserved when they ended. Also gives back what commits whose
    /// answer was lost may have taken. Asked now and then.
    async fn abandoned(&self) -> Result<Vec<Abandoned>, CatalogError>;

    /// Gives such a name back, and its keyed request unless that was taken over, in one: whoever repeats the request finds
    /// it running, or may begin anew.
    async fn give_up(&self, abandoned: &Abandoned) -> Result<(), CatalogError>;

    /// Remembers a finished recording, ends its reservation, keeps the answer for repeats, and leaves a job to bring
    /// it to the cloud if that is asked for. Returns it with its name. If its name was deleted meanwhile, it is
    /// deleted instead. [`CatalogError::RequestLost`] if its keyed request is another gateway's by now.
    async fn commit(&self, arrival: Arrival<'_>, by: &Origin) -> Result<Recording, CatalogError>;

    /// Takes a commit back that was not answered yet: row, job and answer go. The name is reserved for its upload
    /// again, since the bucket may have something of it. `false`, and nothing is changed, if the recording was deleted
    /// meanwhile.
    async fn retract(
        &self,
        key: &ObjectKey,
        upload_id: &str,
        request: Option<&RequestKey>,
    ) -> Result<bool, CatalogError>;

    /// Remembers recordings found in a store that have neither row nor tombstone, nor went with their session; each
    /// that only the local disk has gets a sync job if `sync`. Returns how many were new.
    async fn adopt(&self, recordings: &[Recording], sync: bool, by: &Origin) -> Result<u64, CatalogError>;

    /// One recording.
    async fn get(&self, key: &ObjectKey) -> Result<Option<Recording>, CatalogError>;

    /// The recording that came in by this upload.
    async fn get_by_upload(&self, upload_id: &str) -> Result<Option<Recording>, CatalogError>;

    /// Every session that has a recording, a tombstone, a reserved name or open work, by name.
    async fn sessions(&self) -> Result<Vec<SessionId>, CatalogError>;
    /// The same, asked by whoever does not know whether its commit arrived: not before every change of the session that
    /// is under way has ended, so that a commit which is still being carried out cannot follow the answer.
    async fn committed(
        &self,
        session: &SessionId,
        upload_id: &str,
    ) -> Result<Option<Recording>, CatalogError>;

    /// Those of the sessions that have a row.
    async fn recorded_sessions(&self, sessions: &[SessionId]) -> Result<HashSet<SessionId>, CatalogError>;

    /// Sessions that have rows, at most `limit` of those that come after a position.
    async fn sessions_page(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<SessionsSeen, CatalogError>;

    /// Rows of a session, at most `limit` of those that come after a position of its list.
    async fn recordings_page(
        &self,
        session: &SessionId,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<RecordingsSeen, CatalogError>;

    /// What is known of these names, at one moment.
    async fn names(&self, keys: &[ObjectKey]) -> Result<Names, CatalogError>;

    /// Everything in the scope, at one moment. All of it is held in memory: nothing that runs by itself or answers
    /// a request asks for more than a session.
    async fn view(&self, scope: &ListScope) -> Result<View, CatalogError>;

    /// Recordings that [follow their file](Recording::follows_its_file), at most `limit` of those after a name, by name.
    async fn following(
        &self,
        after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<Recording>, CatalogError>;

    /// Such a row says what its file is now: `as_it_is`, with the size and time of it. `false` if it follows no file any
    /// more, or is gone.
    async fn follow(&self, as_it_is: &Recording) -> Result<bool, CatalogError>;

    /// Notes where the copies are now, and their digest. `false` if there is no such recording any more: then it was
    /// deleted meanwhile, and whoever just made a copy has to remove it.
    async fn mark_stored(
        &self,
        key: &ObjectKey,
        stores: StoreSet,
        durability: Durability,
        sha256: ContentDigest,
        by: &Origin,
    ) -> Result<bool, CatalogError>;

    /// Puts a row right that was found to be `mend.before`: where its copies are, and why they go no further. Nothing
    /// is changed, and the answer is `false`, if the row is another by now.
    async fn mend(&self, mend: Mend<'_>, by: &Origin) -> Result<bool, CatalogError>;

    /// Notes why it cannot go to the cloud: it is damaged, or its name is taken. Its sync job stays parked until
    /// somebody asks for it.
    async fn park(&self, key: &ObjectKey, reason: &str, by: &Origin) -> Result<(), CatalogError>;

    /// As [`park`](Self::park), for a cause that may go away by itself, such as what the cloud takes:
    /// [`QueueSyncs::for_now`] takes it up again.
    async fn park_for_now(&self, key: &ObjectKey, reason: &str, by: &Origin) -> Result<(), CatalogError>;

    /// Forgets a recording whose bytes no store has: what `verify` does about a loss that was told. Nothing is changed,
    /// and the answer is `false`, if the row is another than `before` by now.
    async fn forget(&self, before: &Recording, by: &Origin) -> Result<bool, CatalogError>;

    /// Figures for operators; also the question whether the catalogue works.
    async fn counts(&self) -> Result<Counts, CatalogError>;
}

/// What was deleted.
#[async_trait]
pub trait Deletions: Send + Sync {
    /// Writes tombstones, removes rows and their sync jobs, and leaves jobs that delete from the stores in `pending`,
    /// all at once. Repeating it adds to what is pending.
    async fn entomb(&self, keys: &[ObjectKey], pending: StoreSet, by: &Origin) -> Result<(), CatalogError>;

    /// The same for what a client wants deleted: also what had no row is in the audit then.
    async fn delete(&self, keys: &[ObjectKey], pending: StoreSet, by: &Origin) -> Result<(), CatalogError>;

    /// The tombstone of a name.
    async fn tombstone(&self, key: &ObjectKey) -> Result<Option<Tombstone>, CatalogError>;

    /// Whether anything was ever deleted.
    async fn has_tombstones(&self) -> Result<bool, CatalogError>;

    /// Deleted recordings of a session whose files this gateway has still to remove.
    async fn pending_here(&self, session: &SessionId) -> Result<Vec<ObjectKey>, CatalogError>;

    /// When a session was deleted whose cloud part is still to be deleted.
    async fn session_tombstone(&self, session: &SessionId) -> Result<Option<OffsetDateTime>, CatalogError>;

    /// A store confirmed the deletion of these; for local copies only what this gateway holds is meant. Jobs that have
    /// nothing left to do go; the tombstones stay.
    async fn confirm_deleted(&self, keys: &[ObjectKey], store: StoreKind) -> Result<(), CatalogError>;

    /// Hides whatever the bucket holds of a session that the catalogue does not know, until that is deleted; leaves
    /// a job for it.
    async fn entomb_session(&self, session: &SessionId, by: &Origin) -> Result<(), CatalogError>;

    /// The bucket was asked and its part of the session is deleted, as far as it was deleted at `deleted_at`: a later
    /// deletion of the session stays.
    async fn confirm_session_deleted(
        &self,
        session: &SessionId,
        deleted_at: OffsetDateTime,
    ) -> Result<(), CatalogError>;
}

/// Work that waits.
#[async_trait]
pub trait Jobs: Send + Sync {
    /// Leaves a sync job for every recording that only this gateway's disk has and that has none. Returns how many
    /// syncs wait or run in that scope now.
    async fn queue_syncs(&self, which: QueueSyncs<'_>) -> Result<u64, CatalogError>;

    /// Takes the oldest job that is due, deletions before syncs, and leases it for `lease_us`: nobody else gets it
    /// before that is over.
    async fn claim_job(&self, now_us: i64, lease_us: i64, work: Work) -> Result<Option<Job>, CatalogError>;

    /// Makes the lease last until `until_us`. `false` if it was lost.
    async fn renew_job(&self, job: &Job, until_us: i64) -> Result<bool, CatalogError>;

    /// The job is done. Does nothing if its lease was lost meanwhile.
    async fn complete_job(&self, job: &Job) -> Result<(), CatalogError>;

    /// The job failed and waits until `run_at_us`.
    async fn postpone_job(&self, job: &Job, run_at_us: i64, error: &str) -> Result<(), CatalogError>;

    /// Gives the lease back as if the job had never been claimed: this was no try. Does nothing if it was lost meanwhile.
    async fn release_job(&self, job: &Job) -> Result<(), CatalogError>;

    /// Remembers where the job's transfer can go on. Does nothing if its lease was lost meanwhile.
    async fn keep_resume_point(&self, job: &Job, at: Option<&str>) -> Result<(), CatalogError>;

    /// Makes every waiting job due soon: at most a second after `now_us` for each try it had, so that not all come at once
    /// and those that fail on their own account fall behind. None becomes due later than it was.
    async fn hurry_jobs(&self, now_us: i64) -> Result<(), CatalogError>;

    /// Makes jobs due now that are put off beyond `furthest_us`, and ends leases beyond it at `leased_until_us`: both were
    /// made by a clock that was ahead. Whether there was one.
    async fn pull_in_jobs(
        &self,
        now_us: i64,
        furthest_us: i64,
        leased_until_us: i64,
    ) -> Result<bool, CatalogError>;

    /// Makes a parent, or returns the open one of the same kind and session.
    async fn open_parent(&self, kind: &JobKind) -> Result<JobRecord, CatalogError>;

    /// Ends a parent that has no open child.
    async fn close_parent(&self, id: &str) -> Result<(), CatalogError>;

    /// Ends every parent that has no open child. One that somebody is just giving its children is open again with the
    /// first.
    async fn close_parents(&self) -> Result<(), CatalogError>;

    /// What is to be done in a session, or with one recording of it.
    async fn open_jobs(
        &self,
        session: &SessionId,
        filename: Option<&Filename>,
    ) -> Result<Vec<JobRecord>, CatalogError>;

    /// One job.
    async fn get_job(&self, id: &str) -> Result<Option<JobRecord>, CatalogError>;

    /// Jobs, newest first.
    async fn list_jobs(&self, query: &JobQuery) -> Result<Vec<JobRecord>, CatalogError>;

    /// Makes a job due now, also a parked or cancelled one; of a parent, those of its children that are not done.
    async fn retry_job(&self, id: &str, now_us: i64) -> Result<Changed, CatalogError>;

    /// Stops a sync that waits, or those that wait of a parent; the recordings stay where they are, and are shown as
    /// parked.
    async fn cancel_job(&self, id: &str, by: &Origin) -> Result<Changed, CatalogError>;

    /// Forgets jobs that ended before `older_than_us`, except parked ones.
    async fn expire_jobs(&self, older_than_us: i64) -> Result<(), CatalogError>;
}

/// Requests that carry an idempotency key.
#[async_trait]
pub trait Requests: Send + Sync {
    /// Marks a keyed request as running, unless it is known.
    async fn begin_request(&self, request: &RequestKey) -> Result<Begun, CatalogError>;

    /// Forgets a running request of this gateway that came to nothing.
    async fn forget_request(&self, request: &RequestKey) -> Result<(), CatalogError>;

    /// Lets a repeat have the key of a request whose process ended before its answer and whose object nobody can ask
    /// about now. `false` if the request runs.
    async fn take_over_request(&self, request: &RequestKey) -> Result<bool, CatalogError>;

    /// Lets a repeat have the key of a request that has had no answer since `since_us` and whose gateway was not seen
    /// since then: it is this gateway's now, marked as running, and so are the names that were reserved for it, as
    /// [`abandoned`](Recordings::abandoned) ones; a commit for it by the other one fails. `false` if the request runs.
    async fn take_from_gone(&self, request: &RequestKey, since_us: i64) -> Result<bool, CatalogError>;

    /// Forgets answers given before `older_than_us`, and requests without one whose gateway was not seen since then.
    async fn expire_requests(&self, older_than_us: i64) -> Result<(), CatalogError>;
}

/// Who changed what.
#[async_trait]
pub trait Audit: Send + Sync {
    /// Writes down a change that no other method makes.
    async fn note(&self, change: Change<'_>, by: &Origin) -> Result<(), CatalogError>;

    /// Changes, newest first.
    async fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>, CatalogError>;
}

/// The gateways on this catalogue.
#[async_trait]
pub trait Gateways: Send + Sync {
    /// This gateway's id.
    fn gateway_id(&self) -> &GatewayId;

    /// Says that this gateway is there, and where others reach it.
    async fn register(&self, node: &str, url: &str) -> Result<(), CatalogError>;

    /// Says that it still is there, between two times of [`register`](Self::register).
    async fn still_here(&self) -> Result<(), CatalogError>;

    /// The others.
    async fn peers(&self) -> Result<Vec<Peer>, CatalogError>;

    /// A fact about the catalogue itself, such as that the bucket was taken in.
    async fn fact(&self, name: &str) -> Result<Option<String>, CatalogError>;

    /// Writes a fact down.
    async fn set_fact(&self, name: &str, value: &str) -> Result<(), CatalogError>;

    /// Writes what is open and closes every connection.
    async fn close(&self);
}
