//! Work that waits: what to do with which recording, and how often it was tried.

use crate::domain::{Filename, ObjectKey, SessionId};

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JobKind {
    /// Bring a recording to the primary.
    Sync(ObjectKey),
    /// Finish a deletion.
    Delete(ObjectKey),
    /// Delete what the bucket holds of a session.
    DeleteSession(SessionId),
}

impl JobKind {
    /// The word used in rows, logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sync(_) => "sync",
            Self::Delete(_) => "delete",
            Self::DeleteSession(_) => "delete_session",
        }
    }

    pub(super) fn parse(kind: &str, session: &str, filename: &str) -> Option<Self> {
        let session = SessionId::parse(session).ok()?;
        let key = |session| Some(ObjectKey::new(session, Filename::parse(filename).ok()?));
        match kind {
            "sync" => key(session).map(Self::Sync),
            "delete" => key(session).map(Self::Delete),
            "delete_session" => Some(Self::DeleteSession(session)),
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
}
