//! Why a use case failed. What status and code that becomes is the edge's business.

use crate::catalog::CatalogError;
use crate::domain::NameError;
use crate::spool::SpoolError;
use crate::storage::peer::PeerError;
use crate::storage::tiered::PrimaryError;
use crate::storage::{Kind, StorageError};

/// A use case that failed. Unless a variant says otherwise, nothing was changed and nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A name that is none.
    #[error("{0}")]
    Name(#[from] NameError),
    /// No such recording.
    #[error("there is no such recording")]
    NotFound,
    /// No recording in the session.
    #[error("this session has no recordings")]
    EmptySession,
    /// More bytes than the gateway takes.
    #[error("the recording is larger than {limit_bytes} bytes")]
    TooLarge {
        /// `uploads.max_bytes`.
        limit_bytes: u64,
    },
    /// No bytes at all.
    #[error("the recording is empty")]
    Empty,
    /// A media type that is not taken.
    #[error("recordings of type {content_type} are not taken")]
    TypeNotAllowed {
        /// What it is.
        content_type: String,
    },
    /// The bytes are not those the client announced.
    #[error("the bytes do not have the digest that was announced")]
    DigestMismatch,
    /// The disk is full, or would be.
    #[error("the disk is full")]
    StorageFull,
    /// The spool takes no files: it is gone, read-only, or not ours.
    #[error("the spool takes no files")]
    SpoolUnusable(#[source] std::io::Error),
    /// All upload slots are taken.
    #[error("too many uploads at once")]
    Busy,
    /// A request with this idempotency key is still running.
    #[error("a request with this idempotency key is still running")]
    RequestRunning,
    /// The idempotency key was used for something else.
    #[error("the idempotency key was used for another recording")]
    RequestDiffers,
    /// No such job.
    #[error("there is no such job")]
    JobNotFound,
    /// The job cannot be changed so, for this reason: a whole sentence.
    #[error("{0}")]
    JobFixed(&'static str),
    /// An upload names a bulk load that is not known.
    #[error("the upload is to be part of a bulk load that is not known")]
    NoSuchLoad,
    /// There is no cloud to bring anything to.
    #[error("no cloud is configured")]
    NoCloud,
    /// All places for listeners are taken.
    #[error("too many listen to events")]
    TooManyListeners,
    /// Another verification is running.
    #[error("another verification is running")]
    VerifyRunning,
    /// The cloud is needed and cannot be used.
    #[error("the cloud is needed and cannot be used")]
    Cloud(#[source] PrimaryError),
    /// Only another gateway's disk has it, and that gateway does not give it.
    #[error("the gateway {node:?} at {url:?} did not give what only it has")]
    Peer {
        /// Its `server.node`; may be empty.
        node: String,
        /// Where it says it can be reached, or its id if it never said so.
        url: String,
        /// Why; `None` if it never said where it can be reached.
        #[source]
        source: Option<PeerError>,
    },
    /// The local disk failed.
    #[error("the local disk failed")]
    Disk(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The catalogue failed.
    #[error("the catalogue failed")]
    Catalog(#[source] CatalogError),
    /// A task ended without a result. A defect.
    #[error("the work ended unexpectedly")]
    Unexpected,
}

impl From<CatalogError> for ServiceError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Full(_) => Self::StorageFull,
            CatalogError::RequestLost => Self::RequestRunning,
            error => Self::Catalog(error),
        }
    }
}

impl From<SpoolError> for ServiceError {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::Full(_) => Self::StorageFull,
            error => Self::Disk(error.into()),
        }
    }
}

impl From<StorageError> for ServiceError {
    fn from(error: StorageError) -> Self {
        match error.kind {
            Kind::Full => Self::StorageFull,
            _ => Self::Disk(error.into()),
        }
    }
}
