//! Rows of the catalogue to words of the domain and back.

use std::borrow::Cow;

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

/// A text that stays where it was read, unless it had to be unescaped.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

/// [`RECORDING_COLUMNS`] as they are kept.
#[derive(Deserialize)]
struct Columns<'a> {
    #[serde(borrow)]
    session_id: Text<'a>,
    #[serde(borrow)]
    filename: Text<'a>,
    size_bytes: i64,
    #[serde(borrow)]
    sha256: Option<Text<'a>>,
    content_type: String,
    original_filename: Option<String>,
    #[serde(borrow)]
    durability: Text<'a>,
    in_supabase: i64,
    #[serde(borrow)]
    local_gateway: Option<Text<'a>>,
    uploaded_at: i64,
    parked_reason: Option<String>,
    upload_id: String,
}

impl Columns<'_> {
    /// `mine` is the gateway that reads: a copy on its own disk is held by nobody else.
    fn recording(self, mine: &GatewayId) -> Result<Recording, CatalogError> {
        let session = SessionId::parse(&self.session_id.0).map_err(|_| corrupt(&self.session_id.0))?;
        let filename = Filename::parse(&self.filename.0).map_err(|_| corrupt(&self.filename.0))?;
        let key = ObjectKey::new(session, filename);
        Ok(Recording {
            size_bytes: u64::try_from(self.size_bytes).map_err(|_| corrupt(&key))?,
            sha256: self.sha256.as_ref().and_then(|hex| ContentDigest::from_hex(&hex.0)),
            content_type: self.content_type,
            original_filename: self.original_filename,
            durability: Durability::parse(&self.durability.0).ok_or_else(|| corrupt(&key))?,
            stores: StoreSet { supabase: self.in_supabase != 0, local: self.local_gateway.is_some() },
            held_by: other(self.local_gateway.map(|holder| holder.0), mine),
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
        session_id: row.try_get::<String, _>(0)?.into(),
        filename: row.try_get::<String, _>(1)?.into(),
        size_bytes: row.try_get(2)?,
        sha256: row.try_get::<Option<String>, _>(3)?.map(Text::from),
        content_type: row.try_get(4)?,
        original_filename: row.try_get(5)?,
        durability: row.try_get::<String, _>(6)?.into(),
        in_supabase: row.try_get(7)?,
        local_gateway: row.try_get::<Option<String>, _>(8)?.map(Text::from),
        uploaded_at: row.try_get(9)?,
        parked_reason: row.try_get(10)?,
        upload_id: row.try_get(11)?,
    };
    columns.recording(mine)
}

/// Recordings that the database put into one text, an array for each: rows one by one cost several times that, as each
/// goes from thread to thread.
pub(super) fn recordings_of(json: &str, mine: &GatewayId) -> Result<Vec<Recording>, CatalogError> {
    let rows: Vec<Columns<'_>> = serde_json::from_str(json).map_err(corrupt)?;
    rows.into_iter().map(|columns| columns.recording(mine)).collect()
}

/// The holder, if it is another gateway than `mine`.
pub(super) fn other(holder: Option<impl AsRef<str> + Into<String>>, mine: &GatewayId) -> Option<GatewayId> {
    holder.filter(|holder| holder.as_ref() != mine.as_str()).map(|holder| GatewayId(holder.into()))
}
