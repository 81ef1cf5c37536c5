//! One listing out of three memories: what the catalogue knows, what the bucket holds, what the local disk holds.
//! Data in, data out; sorting, de-duplication and hiding of deleted names happen here and nowhere else.
//!
//! Rules:
//! - a deleted name is never shown, whoever still lists it;
//! - one name is one row, with the stores that really hold it; with a row in the catalogue a copy counts only if it
//!   has the row's size (a short object in the bucket is no copy), and beside a store that the row names only if it
//!   carries the row's upload id (a file of the same size may be another recording's);
//! - a file of whose bytes nobody was promised anything is as it is now, whatever the row says of it;
//! - a store that could not be asked is believed to hold what the catalogue says it holds;
//! - a row whose bytes no store has is shown as missing, not dropped: a listing that hides a loss is a lie.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};

use time::OffsetDateTime;

use super::page::Position;
use super::{ContentDigest, Durability, ObjectKey, Recording, SessionId, StoreKind, StoreSet};

/// What a store says about one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredObject {
    /// Its name.
    pub key: ObjectKey,
    /// Length in bytes.
    pub size_bytes: u64,
    /// When it was written there.
    pub modified_at: OffsetDateTime,
    /// Media type as the store knows it.
    pub content_type: Option<String>,
    /// The store's own entity tag, quoted; no content hash in general.
    pub etag: Option<String>,
    /// SHA-256 that the gateway left with the object.
    pub sha256: Option<ContentDigest>,
    /// Client's file name that the gateway left with the object.
    pub original_filename: Option<String>,
    /// Upload id that the gateway left with the object.
    pub upload_id: Option<String>,
}

impl From<&Recording> for StoredObject {
    /// As a store would tell of it that knows all about it, but no entity tag.
    fn from(recording: &Recording) -> Self {
        Self {
            key: recording.key.clone(),
            size_bytes: recording.size_bytes,
            modified_at: recording.uploaded_at,
            content_type: Some(recording.content_type.clone()),
            etag: None,
            sha256: recording.sha256,
            original_filename: recording.original_filename.clone(),
            upload_id: Some(recording.upload_id.clone()),
        }
    }
}

/// Names that were deleted.
#[derive(Clone, Default, Debug)]
pub struct Deleted {
    /// Single recordings.
    pub keys: HashSet<ObjectKey>,
    /// Whole sessions whose cloud objects could not be named then, with the time: what the bucket held at that time
    /// and the catalogue does not know is hidden.
    pub sessions: HashMap<SessionId, OffsetDateTime>,
}

/// Everything known about one session, or about all of them.
#[derive(Clone, Default, Debug)]
pub struct Sources {
    /// Rows of the catalogue.
    pub recordings: Vec<Recording>,
    /// Tombstones.
    pub deleted: Deleted,
    /// Objects in the bucket; `None` if it could not be asked.
    pub supabase: Option<Vec<StoredObject>>,
    /// The bucket's list is known to leave out objects that are there.
    pub supabase_hides: bool,
    /// Files on the local disk.
    pub local: Vec<StoredObject>,
    /// The local disk could not be asked.
    pub local_unasked: bool,
}

/// One row of the merged listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The recording, its `stores` as found.
    pub recording: Recording,
    /// No store has its bytes.
    pub missing: bool,
}

impl Listed {
    /// Where the row stands in the list.
    pub fn position(&self) -> Position {
        Position {
            time_us: super::recording::micros(self.recording.uploaded_at),
            name: self.recording.key.to_string(),
        }
    }
}

/// Makes a row say what its file is now. `false` if it did already, or does not follow the file.
pub fn follow(row: &mut Recording, file: &StoredObject) -> bool {
    let now = (file.size_bytes, super::recording::to_microseconds(file.modified_at));
    let differs = row.follows_its_file() && (row.size_bytes, row.uploaded_at) != now;
    if differs {
        (row.size_bytes, row.uploaded_at) = now;
    }
    differs
}

#[derive(Default)]
struct Found {
    row: Option<Recording>,
    supabase: Option<StoredObject>,
    local: Option<StoredObject>,
}

/// Merges; newest first, equal times by name descending.
pub fn merge(sources: Sources) -> Vec<Listed> {
    let (cloud_asked, hides) = (sources.supabase.is_some(), sources.supabase_hides);
    let here_unasked = sources.local_unasked;
    let mut found: BTreeMap<ObjectKey, Found> = BTreeMap::new();
    for row in sources.recordings {
        let entry = found.entry(row.key.clone()).or_default();
        entry.row = Some(row);
    }
    for object in sources.supabase.into_iter().flatten() {
        let entry = found.entry(object.key.clone()).or_default();
        entry.supabase = Some(object);
    }
    for object in sources.local {
        let entry = found.entry(object.key.clone()).or_default();
        entry.local = Some(object);
    }
    let deleted = sources.deleted;
    let mut rows: Vec<Listed> = found
        .into_iter()
        .filter(|(key, found)| !deleted.keys.contains(key) && !went_with_session(&deleted, key, found))
        .map(|(_, found)| match found.row {
            // An object that is listed is judged; one that is not may be there all the same.
            Some(row) => {
                let asked = cloud_asked && !(hides && found.supabase.is_none());
                known(row, found.supabase, found.local, asked, here_unasked)
            }
            None => unknown(found.supabase, found.local),
        })
        .collect();
    rows.sort_by(newest_first);
    rows
}

/// The order of [`Listed::position`], backwards.
fn newest_first(a: &Listed, b: &Listed) -> Ordering {
    let time = |row: &Listed| super::recording::micros(row.recording.uploaded_at);
    time(b).cmp(&time(a)).then_with(|| by_text(&b.recording.key, &a.recording.key))
}

/// As the keys are written: `a-b/x` comes before `a/x`, though the session `a` before `a-b`.
fn by_text(a: &ObjectKey, b: &ObjectKey) -> Ordering {
    if a.session == b.session { a.filename.cmp(&b.filename) } else { a.to_string().cmp(&b.to_string()) }
}

fn went_with_session(deleted: &Deleted, key: &ObjectKey, found: &Found) -> bool {
    let Some(deleted_at) = deleted.sessions.get(&key.session) else { return false };
    found.row.is_none()
        && found.local.is_none()
        && found.supabase.as_ref().is_some_and(|object| object.modified_at <= *deleted_at)
}

fn known(
    mut row: Recording,
    supabase: Option<StoredObject>,
    local: Option<StoredObject>,
    cloud_asked: bool,
    here_unasked: bool,
) -> Listed {
    if let Some(file) = &local {
        follow(&mut row, file);
    }
    let sized = |object: Option<&StoredObject>| object.is_some_and(|o| o.size_bytes == row.size_bytes);
    let is_ours =
        |o: &StoredObject| !row.upload_id.is_empty() && o.upload_id.as_ref() == Some(&row.upload_id);
    let sized_supabase = row.parked_reason.is_none() && sized(supabase.as_ref());
    let confirmed = StoreSet {
        // What the cloud would not take is not there: an object of that name is somebody else's.
        supabase: match cloud_asked {
            true => sized_supabase && (row.stores.supabase || supabase.as_ref().is_some_and(is_ours)),
            false => row.stores.supabase,
        },
        // Another gateway's disk cannot be looked at: it is believed.
        local: row.stores.local && (row.held_by.is_some() || here_unasked || sized(local.as_ref())),
    };
    // A copy in a store that never got this recording may be of an upload that a crash cut off before its answer.
    // It is shown only when there is no other: an operator may have put it back.
    let stores = match confirmed.is_empty() {
        false => confirmed,
        true => StoreSet { supabase: cloud_asked && sized_supabase, local: sized(local.as_ref()) },
    };
    let missing = stores.is_empty();
    if !missing {
        row.stores = stores;
    }
    Listed { recording: row, missing }
}

/// A file or object that came in past the gateway. Copies of different sizes are not one recording: the bucket's is
/// shown, since that is the one public URLs lead to.
fn unknown(supabase: Option<StoredObject>, local: Option<StoredObject>) -> Listed {
    let both = matches!((&supabase, &local), (Some(s), Some(l)) if s.size_bytes == l.size_bytes);
    let (kind, object) = match (supabase, local) {
        (Some(object), _) => (StoreKind::Supabase, object),
        (None, Some(object)) => (StoreKind::Local, object),
        (None, None) => unreachable!("an entry is made by a row or an object"),
    };
    let recording = Recording {
        key: object.key,
        size_bytes: object.size_bytes,
        sha256: object.sha256,
        content_type: object.content_type.unwrap_or_else(|| "application/octet-stream".to_owned()),
        original_filename: object.original_filename,
        durability: if kind == StoreKind::Supabase { Durability::Cloud } else { Durability::Local },
        stores: if both { StoreSet { supabase: true, local: true } } else { StoreSet::only(kind) },
        uploaded_at: super::recording::to_microseconds(object.modified_at),
        held_by: None,
        parked_reason: None,
        upload_id: object.upload_id.unwrap_or_default(),
    };
    Listed { recording, missing: false }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
