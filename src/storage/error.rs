//! How stores fail: what kind of failure, whether trying again helps, and whether the change may have happened
//! nevertheless. The last one is the question a gateway must never guess at.

use std::time::Duration;

use crate::domain::StoreKind;

/// Longest time a store is believed when it says how long to wait.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What kind of failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// No such object.
    NotFound,
    /// No such bucket, or it is hidden from this key.
    BucketMissing,
    /// The key is taken.
    AlreadyExists,
    /// Over a size limit of the store.
    TooLarge,
    /// A media type the store does not take.
    TypeRefused,
    /// A name the store does not take.
    InvalidKey,
    /// The credentials are wrong, expired or revoked.
    Unauthorized,
    /// The credentials are right but may not do this.
    Forbidden,
    /// The store asks to slow down.
    Throttled,
    /// It cannot be reached, or answers that it cannot serve.
    Unavailable,
    /// It did not answer in time.
    Timeout,
    /// It answered something that is no answer of such a store.
    Nonsense,
    /// The bytes it holds are not the bytes that were sent.
    Mismatch,
    /// It has no room.
    Full,
    /// The local file system failed.
    Disk,
    /// The upload whose bytes were being sent was abandoned.
    SourceGone,
    /// Any other refusal.
    Refused,
}

/// Whether doing the same again can help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// At once or soon.
    Soon,
    /// When somebody has changed something: a key, a policy, a limit.
    AfterChange,
    /// Never for these bytes under this name.
    Never,
}

/// Whether the change may have been made in spite of the failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Certainly not.
    NotApplied,
    /// It may have been: ask the store before doing it again.
    Unknown,
}

/// A failed request to a store.
#[derive(Debug, thiserror::Error)]
#[error("{store}: {detail}")]
pub struct StorageError {
    /// The store that failed.
    pub store: StoreKind,
    /// What kind of failure.
    pub kind: Kind,
    /// Whether the change may have been made.
    pub outcome: Outcome,
    /// How long the store said it wants to be left alone, at most an hour.
    pub retry_after: Option<Duration>,
    /// One clause in plain words; may quote the store's own message.
    pub detail: String,
    /// What lies below.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StorageError {
    /// A failure that certainly changed nothing.
    pub fn certain(store: StoreKind, kind: Kind, detail: impl Into<String>) -> Self {
        let (outcome, detail) = (Outcome::NotApplied, detail.into());
        Self { store, kind, outcome, retry_after: None, detail, source: None }
    }

    /// Adds how long the store wants to be left alone; ignored where it did not say that it cannot serve now.
    pub fn retry_after(mut self, wait: Option<Duration>) -> Self {
        if matches!(self.kind, Kind::Throttled | Kind::Unavailable) {
            self.retry_after = wait.map(|wait| wait.min(LONGEST_RETRY_AFTER));
        }
        self
    }

    /// If `may_have_applied`, says that the change may have been made nevertheless.
    pub fn unknown_if(mut self, may_have_applied: bool) -> Self {
        if may_have_applied {
            self.outcome = Outcome::Unknown;
        }
        self
    }

    /// Adds what lies below.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A file-system failure of the local store.
    pub fn disk(error: std::io::Error, doing: &str) -> Self {
        use std::io::ErrorKind::{NotFound, QuotaExceeded, StorageFull};
        let kind = match error.kind() {
            StorageFull | QuotaExceeded => Kind::Full,
            NotFound => Kind::NotFound,
            _ => Kind::Disk,
        };
        Self::certain(StoreKind::Local, kind, doing.to_owned()).because(error)
    }

    /// Whether this user of the system has no right to it.
    pub fn is_about_rights(&self) -> bool {
        let error = self.source.as_deref().and_then(|source| source.downcast_ref::<std::io::Error>());
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    }

    /// Whether doing the same again can help.
    pub fn retry(&self) -> Retry {
        match self.kind {
            Kind::Throttled
            | Kind::Unavailable
            | Kind::Timeout
            | Kind::Nonsense
            | Kind::Mismatch
            | Kind::Full
            | Kind::Disk => Retry::Soon,
            Kind::Unauthorized | Kind::BucketMissing => Retry::AfterChange,
            Kind::TooLarge
            | Kind::TypeRefused
            | Kind::InvalidKey
            | Kind::Forbidden
            | Kind::AlreadyExists
            | Kind::NotFound
            | Kind::SourceGone
            | Kind::Refused => Retry::Never,
        }
    }

    /// Whether the failure says that the store as a whole cannot be used now, and not only that it will not take
    /// this object.
    pub fn blames_store(&self) -> bool {
        self.retry() != Retry::Never
    }

    /// Whether the failure says nothing about the store: it may have been found before the store was asked.
    pub fn says_nothing(&self) -> bool {
        matches!(self.kind, Kind::SourceGone | Kind::TooLarge | Kind::TypeRefused | Kind::InvalidKey)
    }
}

/// An error with everything below it on one line, for logs and reasons. What only repeats the one above it is left out.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let below = error.to_string();
        if !text.ends_with(&below) {
            text.push_str(": ");
            text.push_str(&below);
        }
        next = error.source();
    }
    text
}
