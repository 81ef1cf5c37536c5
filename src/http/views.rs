//! The bodies of answers, as clients see them.

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use super::Edge;
use crate::domain::merge::Listed;
use crate::domain::{StoreKind, StoreSet};
use crate::service::list::RecordingsPage;
use crate::service::sessions::{SessionTotals, SessionsPage};
use crate::service::upload::{Landed, Receipt};

/// RFC 3339 in UTC.
pub(super) fn time_text(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC).format(&Rfc3339).unwrap_or_default()
}

pub(super) fn time_text_us(us: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000).map(time_text).unwrap_or_default()
}

pub(super) fn store_names(stores: StoreSet) -> Vec<&'static str> {
    stores.iter().map(StoreKind::as_str).collect()
}

/// Answer to an upload.
#[derive(Serialize, ToSchema)]
pub(super) struct UploadView {
    success: bool,
    /// `session_id/filename`
    file_path: String,
    /// Bytes
    file_size: u64,
    message: String,
    session_id: String,
    filename: String,
    /// `supabase` or `local`
    storage_type: String,
    /// Null for a local copy and in a private bucket
    public_url: Option<String>,
    content_type: String,
    /// Hex
    sha256: String,
    /// `local`: fsynced at the gateway; `cloud`: confirmed by Supabase
    durability: String,
    /// RFC 3339 UTC
    upload_time: String,
    /// The client's own name of the file
    original_filename: Option<String>,
    /// Why the cloud will not take it, if it will not
    parked_reason: Option<String>,
}

impl UploadView {
    pub(super) fn of(receipt: Receipt) -> Self {
        let name = &receipt.filename;
        let message = match &receipt.landed {
            Landed::Cloud => format!("Recording uploaded to Supabase successfully: {name}"),
            Landed::Local => format!("Recording saved locally: {name}"),
            Landed::CloudUnavailable => format!("Recording saved locally (Supabase unavailable): {name}"),
            Landed::Parked(reason) => {
                format!("Recording saved locally (Supabase will not take it: {reason}): {name}")
            }
            Landed::Early => format!("Recording saved locally, Supabase follows: {name}"),
        };
        Self {
            success: true,
            message,
            parked_reason: if let Landed::Parked(reason) = receipt.landed { Some(reason) } else { None },
            file_path: receipt.file_path,
            file_size: receipt.file_size,
            session_id: receipt.session_id,
            filename: receipt.filename,
            storage_type: receipt.storage_type,
            public_url: receipt.public_url,
            content_type: receipt.content_type,
            sha256: receipt.sha256,
            durability: receipt.durability,
            upload_time: time_text_us(receipt.uploaded_at_us),
            original_filename: receipt.original_filename,
        }
    }
}

/// One recording.
#[derive(Serialize, ToSchema)]
pub(super) struct RecordingView {
    session_id: String,
    filename: String,
    /// `session_id/filename`
    pub(super) file_path: String,
    /// Bytes
    pub(super) file_size: u64,
    /// RFC 3339 UTC
    upload_time: String,
    /// Null for a local copy and in a private bucket
    pub(super) public_url: Option<String>,
    /// Null for a local copy
    bucket: Option<String>,
    /// `supabase` if the cloud has it, else `local`
    pub(super) storage_type: &'static str,
    /// Every store that has it
    stores: Vec<&'static str>,
    content_type: String,
    /// Hex; null for a file that came in past the gateway and was not read yet
    sha256: Option<String>,
    /// `local`, `cloud` or `cloud_verified`
    durability: &'static str,
    original_filename: Option<String>,
    /// Why the cloud will not take it, if it will not
    parked_reason: Option<String>,
    /// No store has its bytes any more
    missing: bool,
}

impl RecordingView {
    pub(super) fn of(edge: &Edge, listed: Listed) -> Self {
        let recording = listed.recording;
        let in_cloud = recording.stores.supabase;
        let kind = if in_cloud { StoreKind::Supabase } else { StoreKind::Local };
        Self {
            public_url: if in_cloud { edge.services.stores.public_url(&recording.key) } else { None },
            bucket: in_cloud.then(|| edge.services.rules.bucket.clone()),
            file_path: recording.key.to_string(),
            session_id: recording.key.session.to_string(),
            filename: recording.key.filename.to_string(),
            file_size: recording.size_bytes,
            upload_time: time_text(recording.uploaded_at),
            storage_type: kind.as_str(),
            stores: if listed.missing { Vec::new() } else { store_names(recording.stores) },
            content_type: recording.content_type,
            sha256: recording.sha256.map(|digest| digest.to_string()),
            durability: recording.durability.as_str(),
            original_filename: recording.original_filename,
            parked_reason: recording.parked_reason,
            missing: listed.missing,
        }
    }
}

/// Recordings of a session.
#[derive(Serialize, ToSchema)]
pub(super) struct RecordingsView {
    session_id: String,
    /// Newest first
    recordings: Vec<RecordingView>,
    /// In the session, not on the page
    total_count: usize,
    /// Null on the last page
    pub(super) next_cursor: Option<String>,
    /// A store could not be asked; the list is what is known
    degraded: bool,
    unavailable_stores: Vec<&'static str>,
}

impl RecordingsView {
    pub(super) fn of(edge: &Edge, session_id: String, page: RecordingsPage) -> Self {
        Self {
            session_id,
            recordings: page.rows.into_iter().map(|row| RecordingView::of(edge, row)).collect(),
            total_count: page.total,
            next_cursor: page.next_cursor,
            degraded: !page.unavailable.is_empty(),
            unavailable_stores: page.unavailable.into_iter().map(StoreKind::as_str).collect(),
        }
    }
}

/// One session.
#[derive(Serialize, ToSchema)]
pub(super) struct SessionView {
    session_id: String,
    /// Recordings in it
    count: u64,
    /// Their bytes
    bytes: u64,
    /// When its newest recording was uploaded, RFC 3339 UTC
    newest: String,
}

impl From<SessionTotals> for SessionView {
    fn from(summary: SessionTotals) -> Self {
        Self {
            session_id: summary.session.to_string(),
            count: summary.count,
            bytes: summary.bytes,
            newest: time_text_us(summary.newest_us),
        }
    }
}

/// The sessions.
#[derive(Serialize, ToSchema)]
pub(super) struct SessionsView {
    /// The one with the newest recording first
    sessions: Vec<SessionView>,
    /// Sessions in all
    total_count: u64,
    /// Null on the last page
    pub(super) next_cursor: Option<String>,
    /// A store could not be asked; the list is what is known
    degraded: bool,
    unavailable_stores: Vec<&'static str>,
}

impl From<SessionsPage> for SessionsView {
    fn from(page: SessionsPage) -> Self {
        Self {
            sessions: page.rows.into_iter().map(SessionView::from).collect(),
            total_count: page.total,
            next_cursor: page.next_cursor,
            degraded: !page.unavailable.is_empty(),
            unavailable_stores: page.unavailable.into_iter().map(StoreKind::as_str).collect(),
        }
    }
}

/// Where a cloud copy can be had.
#[derive(Serialize, ToSchema)]
pub(super) struct DownloadView {
    /// `supabase`
    pub(super) storage_type: &'static str,
    /// Null in a private bucket
    pub(super) public_url: Option<String>,
    /// `session_id/filename`
    pub(super) file_path: String,
    /// Bytes
    pub(super) file_size: u64,
    /// In a private bucket
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signed_url: Option<String>,
    /// When the signed address stops working, RFC 3339 UTC
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<String>,
}

/// What became of a deletion.
#[derive(Serialize, ToSchema)]
pub(super) struct DeletionView {
    pub(super) success: bool,
    pub(super) message: String,
    pub(super) filename: String,
    /// Stores that could not be asked; the gateway deletes there as soon as it can
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) pending: Vec<&'static str>,
}

/// What became of the deletion of a session.
#[derive(Serialize, ToSchema)]
pub(super) struct SessionDeletionView {
    pub(super) success: bool,
    pub(super) message: String,
    pub(super) session_id: String,
    /// Recordings that are gone
    pub(super) deleted_count: usize,
    /// Stores that could not be asked; the gateway deletes there as soon as it can
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) pending: Vec<&'static str>,
}

pub(super) fn pending(stores: StoreSet) -> Vec<&'static str> {
    store_names(stores)
}
