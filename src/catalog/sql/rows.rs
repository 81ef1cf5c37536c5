//! Rows of the catalogue to words of the domain and back.

use serde::Deserialize;
use sqlx::Row;
use sqlx::any::AnyRow;
use time::OffsetDateTime;

use crate::catalog::CatalogError;
use crate::domain::{
    ContentDigest, Durability, Filename, GatewayId, ObjectKey, Recording, SessionId, StoreSet,
};

/// In the order in which [`recording_of`] reads them.
pub(super) const RECORDING_COLUMNS: &str = "session_id, filename, size_bytes, sha256, content_type, \
    original_filename, durability, in_supabase, local_gateway, uploaded_at, parked_reason, upload_id";

pub(super) fn corrupt(what: impl std::fmt::Display) -> CatalogError {
    CatalogError::Corrupt(what.to_string())
}

/// A text from outside as both databases can keep it: PostgreSQL has no NUL in texts, and none is meant. What was said by
/// clients is checked at the edge; this is for what stores say and hold.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

pub(super) fn time_of(us: i64) -> Result<OffsetDateTime, CatalogError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000).map_err(|_| corrupt(us))
}

pub(super) fn session_and_time_of(row: &AnyRow) -> Result<(SessionId, OffsetDateTime), CatalogError> {
    Ok((session_of(row)?, time_of(row.try_get(1)?)?))
}

pub(super) fn session_of(row: &AnyRow) -> Result<SessionId, CatalogError> {
    let text: String = row.try_get(0)?;
    SessionId::parse(&text).map_err(|_| corrupt(text))
}

pub(super) fn key_of(row: &AnyRow) -> Result<ObjectKey, CatalogError> {
    let text: String = row.try_get(1)?;
    Ok(ObjectKey::new(session_of(row)?, Filename::parse(&text).map_err(|_| corrupt(text))?))
}

pub(super) fn digest_of(row: &AnyRow, column: usize) -> Result<Option<ContentDigest>, CatalogError> {
    let hex: Option<String> = row.try_get(column)?;
    Ok(hex.as_deref().and_then(ContentDigest::from_hex))
}

/// [`RECORDING_COLUMNS`] as they are kept.
#[derive(Deserialize)]
pub(super) struct Columns {
    session_id: String,
    filename: String,
    size_bytes: i64,
    sha256: Option<String>,
    content_type: String,
    original_filename: Option<String>,
    durability: String,
    in_supabase: i64,
    local_gateway: Option<String>,
    uploaded_at: i64,
    parked_reason: Option<String>,
    upload_id: String,
}

impl Columns {
    /// `mine` is the gateway that reads: a copy on its own disk is held by nobody else.
    fn recording(self, mine: &GatewayId) -> Result<Recording, CatalogError> {
        let session = SessionId::parse(&self.session_id).map_err(|_| corrupt(&self.session_id))?;
        let filename = Filename::parse(&self.filename).map_err(|_| corrupt(&self.filename))?;
        let key = ObjectKey::new(session, filename);
        Ok(Recording {
            size_bytes: u64::try_from(self.size_bytes).map_err(|_| corrupt(&key))?,
            sha256: self.sha256.as_deref().and_then(ContentDigest::from_hex),
            content_type: self.content_type,
            original_filename: self.original_filename,
            durability: Durability::parse(&self.durability).ok_or_else(|| corrupt(&key))?,
            stores: StoreSet { supabase: self.in_supabase != 0, local: self.local_gateway.is_some() },
            held_by: other(self.local_gateway, mine),
            uploaded_at: time_of(self.uploaded_at)?,
            parked_reason: self.parked_reason,
            upload_id: self.upload_id,
            key,
        })
    }
}

/// One recording, as `mine` reads it.
pub(super) fn recording_of(row: &AnyRow, mine: &GatewayId) -> Result<Recording, CatalogError> {
    let columns = Columns {
        session_id: row.try_get(0)?,
        filename: row.try_get(1)?,
        size_bytes: row.try_get(2)?,
        sha256: row.try_get(3)?,
        content_type: row.try_get(4)?,
        original_filename: row.try_get(5)?,
        durability: row.try_get(6)?,
        in_supabase: row.try_get(7)?,
        local_gateway: row.try_get(8)?,
        uploaded_at: row.try_get(9)?,
        parked_reason: row.try_get(10)?,
        upload_id: row.try_get(11)?,
    };
    columns.recording(mine)
}

/// Recordings that the database put into one text, an array for each: rows one by one cost several times that, as each
/// goes from thread to thread.
pub(super) fn recordings_of(json: &str, mine: &GatewayId) -> Result<Vec<Recording>, CatalogError> {
    let rows: Vec<Columns> = serde_json::from_str(json).map_err(corrupt)?;
    rows.into_iter().map(|columns| columns.recording(mine)).collect()
}

/// The holder, if it is another gateway than `mine`.
pub(super) fn other(holder: Option<String>, mine: &GatewayId) -> Option<GatewayId> {
    holder.filter(|holder| holder != mine.as_str()).map(GatewayId)
}
