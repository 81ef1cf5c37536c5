//! Rows of the catalogue to words of the domain and back.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use crate::catalog::CatalogError;
use crate::domain::{ContentDigest, Durability, Filename, ObjectKey, Recording, SessionId, StoreSet};

/// In the order in which [`recording_of`] reads them.
pub(super) const RECORDING_COLUMNS: &str = "session_id, filename, size_bytes, sha256, content_type, \
    original_filename, durability, in_supabase, in_local, uploaded_at, parked_reason, upload_id";

fn corrupt(what: impl std::fmt::Display) -> CatalogError {
    CatalogError::Corrupt(what.to_string())
}

fn time_of(us: i64) -> Result<OffsetDateTime, CatalogError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000).map_err(|_| corrupt(us))
}

pub(super) fn session_and_time_of(row: &SqliteRow) -> Result<(SessionId, OffsetDateTime), CatalogError> {
    Ok((session_of(row)?, time_of(row.try_get(1)?)?))
}

fn session_of(row: &SqliteRow) -> Result<SessionId, CatalogError> {
    let text: String = row.try_get(0)?;
    SessionId::parse(&text).map_err(|_| corrupt(text))
}

pub(super) fn key_of(row: &SqliteRow) -> Result<ObjectKey, CatalogError> {
    let text: String = row.try_get(1)?;
    Ok(ObjectKey::new(session_of(row)?, Filename::parse(&text).map_err(|_| corrupt(text))?))
}

pub(super) fn recording_of(row: &SqliteRow) -> Result<Recording, CatalogError> {
    let key = key_of(row)?;
    let durability: String = row.try_get(6)?;
    let uploaded_at: i64 = row.try_get(9)?;
    let sha256: Option<String> = row.try_get(3)?;
    Ok(Recording {
        size_bytes: u64::try_from(row.try_get::<i64, _>(2)?).map_err(|_| corrupt(&key))?,
        sha256: sha256.as_deref().and_then(ContentDigest::from_hex),
        content_type: row.try_get(4)?,
        original_filename: row.try_get(5)?,
        durability: Durability::parse(&durability).ok_or_else(|| corrupt(&key))?,
        stores: StoreSet { supabase: row.try_get::<i64, _>(7)? != 0, local: row.try_get::<i64, _>(8)? != 0 },
        uploaded_at: time_of(uploaded_at)?,
        parked_reason: row.try_get(10)?,
        upload_id: row.try_get(11)?,
        key,
    })
}
