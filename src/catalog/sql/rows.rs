//! Rows of the catalogue to words of the domain and back.

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

/// `mine` is the gateway that reads: a copy on its own disk is held by nobody else.
pub(super) fn recording_of(row: &AnyRow, mine: &GatewayId) -> Result<Recording, CatalogError> {
    let key = key_of(row)?;
    let durability: String = row.try_get(6)?;
    let uploaded_at: i64 = row.try_get(9)?;
    let holder: Option<String> = row.try_get(8)?;
    Ok(Recording {
        size_bytes: u64::try_from(row.try_get::<i64, _>(2)?).map_err(|_| corrupt(&key))?,
        sha256: digest_of(row, 3)?,
        content_type: row.try_get(4)?,
        original_filename: row.try_get(5)?,
        durability: Durability::parse(&durability).ok_or_else(|| corrupt(&key))?,
        stores: StoreSet { supabase: row.try_get::<i64, _>(7)? != 0, local: holder.is_some() },
        held_by: other(holder, mine),
        uploaded_at: time_of(uploaded_at)?,
        parked_reason: row.try_get(10)?,
        upload_id: row.try_get(11)?,
        key,
    })
}

/// The holder, if it is another gateway than `mine`.
pub(super) fn other(holder: Option<String>, mine: &GatewayId) -> Option<GatewayId> {
    holder.filter(|holder| holder != mine.as_str()).map(GatewayId)
}
