//! The audit: every change with who asked for it. Rows are only ever added.

use time::OffsetDateTime;

use crate::domain::{ContentDigest, ObjectKey, SessionId};

/// Who makes a change, and by which request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// `anonymous` for a client, `gateway` for what it does by itself.
    pub actor: String,
    /// The request's id, or what else made it happen.
    pub request_id: String,
}

impl Origin {
    /// What the gateway does by itself, because of `cause`.
    pub fn gateway(cause: impl Into<String>) -> Self {
        Self { actor: "gateway".to_owned(), request_id: cause.into() }
    }
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// A recording came in and was promised.
    Uploaded,
    /// A file or object that was found got a row.
    Adopted,
    /// A recording that was kept locally is in the cloud.
    Synced,
    /// The cloud will not take a recording, or somebody stopped its sync.
    Parked,
    /// A recording was deleted.
    Deleted,
    /// A row, file or object was put right.
    Repaired,
    /// A request was refused.
    Denied,
}

impl Action {
    /// Every action there is.
    pub const ALL: [Self; 7] = [
        Self::Uploaded,
        Self::Adopted,
        Self::Synced,
        Self::Parked,
        Self::Deleted,
        Self::Repaired,
        Self::Denied,
    ];

    /// The word used in rows, answers and queries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uploaded => "uploaded",
            Self::Adopted => "adopted",
            Self::Synced => "synced",
            Self::Parked => "parked",
            Self::Deleted => "deleted",
            Self::Repaired => "repaired",
            Self::Denied => "denied",
        }
    }

    /// Reads the word back.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == text)
    }
}

/// A change to be written down.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// What was done.
    pub action: Action,
    /// With what: a recording, or a whole session.
    pub session: &'a SessionId,
    /// The recording's name; `None` for a whole session.
    pub filename: Option<&'a str>,
    /// Digest before.
    pub before: Option<ContentDigest>,
    /// Digest after.
    pub after: Option<ContentDigest>,
    /// What else is worth knowing.
    pub detail: Option<&'a str>,
}

impl<'a> Change<'a> {
    /// A change of a recording, without digests.
    pub fn of(action: Action, key: &'a ObjectKey) -> Self {
        let filename = Some(key.filename.as_str());
        Self { action, session: &key.session, filename, before: None, after: None, detail: None }
    }
}

/// One row of the audit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditEntry {
    /// Its id; sorted by time.
    pub id: String,
    /// When.
    pub at: OffsetDateTime,
    /// What was done.
    pub action: Action,
    /// By whom and which request.
    pub origin: Origin,
    /// The session; may be one whose id is no longer legal.
    pub session_id: String,
    /// The recording's name; `None` for a whole session.
    pub filename: Option<String>,
    /// Digest before.
    pub before: Option<ContentDigest>,
    /// Digest after.
    pub after: Option<ContentDigest>,
    /// What else is worth knowing.
    pub detail: Option<String>,
}

/// Which rows: newest first.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct AuditQuery {
    /// Only this action.
    pub action: Option<Action>,
    /// Only this actor.
    pub actor: Option<String>,
    /// Only this session.
    pub session: Option<SessionId>,
    /// Only recordings of this name.
    pub filename: Option<String>,
    /// Not before this time, microseconds since 1970 UTC.
    pub since_us: Option<i64>,
    /// Before this time, microseconds since 1970 UTC.
    pub until_us: Option<i64>,
    /// Only rows before the one with this id.
    pub before: Option<String>,
    /// At most this many.
    pub limit: usize,
}
