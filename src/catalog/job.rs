//! Work that waits: what to do with which recording, how often it was tried, and what became of it.

use time::OffsetDateTime;

use super::GatewayId;
use crate::domain::{Filename, ObjectKey, SessionId};

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JobKind {
    /// Bring a recording to the primary. Only the gateway that has the local copy can.
    Sync(ObjectKey),
    /// Finish a deletion in the primary.
    Delete(ObjectKey),
    /// Remove the local copy of a deleted recording. Only the gateway that has it can.
    DeleteLocal(ObjectKey),
    /// Delete what the bucket holds of a session.
    DeleteSession(SessionId),
    /// Every sync that waited when it was asked for: a parent, done when its children are.
    SyncAll,
    /// The syncs of one session: a parent.
    SyncSession(SessionId),
    /// What one bulk load brought: a parent.
    Migration,
}

impl JobKind {
    /// The word used in rows, answers, logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sync(_) => "sync",
            Self::Delete(_) => "delete",
            Self::DeleteLocal(_) => "delete_local",
            Self::DeleteSession(_) => "delete_session",
            Self::SyncAll => "sync_all",
            Self::SyncSession(_) => "sync_session",
            Self::Migration => "migration",
        }
    }

    /// Whether it is done by its children alone.
    pub fn is_parent(&self) -> bool {
        matches!(self, Self::SyncAll | Self::SyncSession(_) | Self::Migration)
    }

    /// The recording it is about.
    pub fn key(&self) -> Option<&ObjectKey> {
        match self {
            Self::Sync(key) | Self::Delete(key) | Self::DeleteLocal(key) => Some(key),
            _ => None,
        }
    }

    /// The session it is about.
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::DeleteSession(session) | Self::SyncSession(session) => Some(session),
            kind => kind.key().map(|key| &key.session),
        }
    }

    pub(super) fn parse(kind: &str, session: &str, filename: &str) -> Option<Self> {
        let of_session = || SessionId::parse(session).ok();
        let key = || Some(ObjectKey::new(of_session()?, Filename::parse(filename).ok()?));
        match kind {
            "sync" => key().map(Self::Sync),
            "delete" => key().map(Self::Delete),
            "delete_local" => key().map(Self::DeleteLocal),
            "delete_session" => of_session().map(Self::DeleteSession),
            "sync_all" => Some(Self::SyncAll),
            "sync_session" => of_session().map(Self::SyncSession),
            "migration" => Some(Self::Migration),
            _ => None,
        }
    }
}

/// Which jobs a worker takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Any.
    All,
    /// Only deletions: they are short, and nobody wants them to wait for a recording that takes hours.
    Deletions,
    /// Only what needs no cloud: files of deleted recordings.
    Local,
}

/// A job as claimed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// What to do.
    pub kind: JobKind,
    /// Which try this is, counted from 1. With the id it names the lease: a slow worker cannot finish a job that
    /// was given to another meanwhile.
    pub attempt: i64,
    /// Where an interrupted transfer can go on, as the store wrote it.
    pub resume_point: Option<String>,
}

/// How a job is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobState {
    /// It is to be done when its time comes.
    Waiting,
    /// Somebody is at it.
    Running,
    /// It is done.
    Done,
    /// It cannot be done until somebody changes something; a retry takes it up again.
    Parked,
    /// Somebody asked that it not be done; a retry takes it up again.
    Cancelled,
}

impl JobState {
    /// Every state there is.
    pub const ALL: [Self; 5] = [Self::Waiting, Self::Running, Self::Done, Self::Parked, Self::Cancelled];

    /// The word used in answers and queries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Parked => "parked",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads the word back.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// How far the children of a parent are.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Children {
    /// All of them.
    pub total: u64,
    /// Done.
    pub done: u64,
    /// Parked.
    pub parked: u64,
    /// Cancelled, also by the deletion of their recording.
    pub cancelled: u64,
}

/// A job to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobRecord {
    /// Its id; sorted by the time it was made.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// How it is.
    pub state: JobState,
    /// Tries so far.
    pub attempts: i64,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it is due next; only of one that waits.
    pub run_at: Option<OffsetDateTime>,
    /// When it came to an end.
    pub finished_at: Option<OffsetDateTime>,
    /// Why the last try failed, or why it is parked.
    pub last_error: Option<String>,
    /// The job it is a part of.
    pub parent_id: Option<String>,
    /// The gateway that alone can do it.
    pub gateway: Option<GatewayId>,
    /// Its children's progress, of a parent.
    pub children: Option<Children>,
}

/// Which jobs to list: newest first.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct JobQuery {
    /// Only these states.
    pub state: Option<JobState>,
    /// Only this kind.
    pub kind: Option<String>,
    /// Only about this session.
    pub session: Option<SessionId>,
    /// Only the children of this job.
    pub parent: Option<String>,
    /// Only jobs made before the one with this id.
    pub before: Option<String>,
    /// At most this many.
    pub limit: usize,
}

/// What came of a request to retry or cancel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Changed {
    /// It is as asked for; the job as it is now.
    Yes(JobRecord),
    /// It cannot be: done already, or a deletion, which is never taken back. The job as it is.
    No(JobRecord),
    /// There is no such job.
    Unknown,
}
