//! A finished recording as the catalogue remembers it, and the words for where its copies are.

use std::fmt;

use time::OffsetDateTime;

use super::{ContentDigest, GatewayId, ObjectKey};

/// The make of a store. Which one is primary and which the fallback is a role, decided in one place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum StoreKind {
    /// A Supabase Storage bucket.
    Supabase,
    /// The local `recordings/` directory.
    Local,
}

impl StoreKind {
    /// The word used in answers, rows and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Supabase => "supabase",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The stores that hold a copy. Ordered as answers show them: the cloud first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreSet {
    /// A copy is in the bucket.
    pub supabase: bool,
    /// A copy is on the local disk.
    pub local: bool,
}

impl StoreSet {
    /// Just one store.
    pub fn only(kind: StoreKind) -> Self {
        Self { supabase: kind == StoreKind::Supabase, local: kind == StoreKind::Local }
    }

    /// Whether `kind` holds a copy.
    pub fn holds(self, kind: StoreKind) -> bool {
        match kind {
            StoreKind::Supabase => self.supabase,
            StoreKind::Local => self.local,
        }
    }

    /// The stores, the cloud first.
    pub fn iter(self) -> impl Iterator<Item = StoreKind> {
        [StoreKind::Supabase, StoreKind::Local].into_iter().filter(move |kind| self.holds(*kind))
    }

    /// Whether no store holds it.
    pub fn is_empty(self) -> bool {
        !self.supabase && !self.local
    }
}

/// What an answer promises about a recording.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Durability {
    /// Fsynced on this machine: bytes, name and directory.
    Local,
    /// The primary confirmed it.
    Cloud,
    /// The primary's size and digest were compared.
    CloudVerified,
}

impl Durability {
    /// The word used in answers and rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Cloud => "cloud",
            Self::CloudVerified => "cloud_verified",
        }
    }

    /// Reads the word back.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Local, Self::Cloud, Self::CloudVerified].into_iter().find(|d| d.as_str() == text)
    }
}

/// One finished recording. Its bytes never change; only where its copies are does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recording {
    /// Its identity.
    pub key: ObjectKey,
    /// Length in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the bytes; `None` until somebody has read a file that came in past the gateway.
    pub sha256: Option<ContentDigest>,
    /// Media type without parameters.
    pub content_type: String,
    /// The name the client's file had: data, never a path.
    pub original_filename: Option<String>,
    /// What was promised.
    pub durability: Durability,
    /// Where the copies are.
    pub stores: StoreSet,
    /// The other gateway whose disk has the local copy; `None` if it is this one's or nobody's.
    pub held_by: Option<GatewayId>,
    /// When the upload was complete, to the microsecond.
    pub uploaded_at: OffsetDateTime,
    /// Why the cloud will not take it (too large, a type it refuses, policy); `None` when nothing stands in the way.
    pub parked_reason: Option<String>,
    /// The id the gateway wrote into the object's metadata when it sent it, by which it knows its own.
    pub upload_id: String,
}

impl Recording {
    /// Whether it is a file that came in past the gateway and of whose bytes nobody was promised anything yet: it is what
    /// that file is.
    pub fn follows_its_file(&self) -> bool {
        let only_here = self.stores.local && !self.stores.supabase && self.held_by.is_none();
        only_here && self.upload_id.is_empty() && self.sha256.is_none()
    }

    /// Names its bytes, in quotes as HTTP writes it: the same from every gateway on one catalogue.
    pub fn entity_tag(&self) -> String {
        match self.sha256 {
            Some(digest) => format!("\"{digest}\""),
            // Bytes that came in past the gateway: what the file system tells stands in for their digest.
            None => format!("\"{:x}-{:x}\"", self.size_bytes, self.uploaded_at.unix_timestamp_nanos()),
        }
    }
}

/// Drops what the catalogue cannot keep: anything below a microsecond.
pub fn to_microseconds(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(at.microsecond() * 1000).expect("a whole microsecond is a legal nanosecond")
}

/// Microseconds since 1970 UTC: how times are kept and compared. Every date there is fits.
pub fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}
