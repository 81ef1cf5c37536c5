//! The rules of the merged listing, one by one and over any two listings.

use proptest::prelude::*;

use super::*;
use crate::domain::Filename;

fn key(n: u8) -> ObjectKey {
    // As sessions `a` comes before `a-b`, as texts `a/` behind `a-b/`.
    let session = if n.is_multiple_of(2) { "a" } else { "a-b" };
    ObjectKey::new(SessionId::parse(session).unwrap(), Filename::parse(&format!("r{n}.webm")).unwrap())
}

fn at(second: u8) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_700_000_000 + i64::from(second)).unwrap()
}

fn object(n: u8, size: u64, second: u8) -> StoredObject {
    StoredObject {
        key: key(n),
        size_bytes: size,
        modified_at: at(second),
        content_type: Some("video/webm".into()),
        etag: None,
        sha256: None,
        original_filename: None,
        upload_id: None,
    }
}

fn row(n: u8, size: u64, second: u8, stores: StoreSet) -> Recording {
    Recording {
        key: key(n),
        size_bytes: size,
        sha256: Some(ContentDigest::from_bytes([n; 32])),
        content_type: "video/webm".into(),
        original_filename: None,
        durability: Durability::Local,
        stores,
        held_by: None,
        uploaded_at: at(second),
        parked_reason: None,
        upload_id: "u".into(),
    }
}

const BOTH: StoreSet = StoreSet { supabase: true, local: true };

#[test]
fn a_recording_in_both_stores_is_one_row() {
    let rows = merge(Sources {
        recordings: vec![row(1, 5, 1, BOTH)],
        supabase: Some(vec![object(1, 5, 9)]),
        local: vec![object(1, 5, 1)],
        ..Sources::default()
    });
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].recording.stores, BOTH);
    assert_eq!(rows[0].recording.uploaded_at, at(1), "the catalogue's time, not the store's");
}

#[test]
fn a_short_object_is_no_copy() {
    let rows = merge(Sources {
        recordings: vec![row(1, 5, 1, StoreSet::only(StoreKind::Local))],
        supabase: Some(vec![object(1, 3, 1)]),
        local: vec![object(1, 5, 1)],
        ..Sources::default()
    });
    assert_eq!(rows[0].recording.stores, StoreSet::only(StoreKind::Local));
}

#[test]
fn a_copy_the_row_does_not_name_counts_by_its_upload_id_or_when_there_is_no_other() {
    let (cloud, disk) = (StoreSet::only(StoreKind::Supabase), StoreSet::only(StoreKind::Local));
    let stores = |row_in, supabase: Option<StoredObject>, local: Option<StoredObject>| {
        let rows = merge(Sources {
            recordings: vec![row(1, 5, 1, row_in)],
            supabase: Some(supabase.into_iter().collect()),
            local: local.into_iter().collect(),
            ..Sources::default()
        });
        rows[0].recording.stores
    };
    let copy = || Some(object(1, 5, 1));
    assert_eq!(stores(cloud, copy(), copy()), cloud, "a file of the same size may be another's");
    assert_eq!(stores(disk, copy(), copy()), disk, "so may an object");
    let ours = StoredObject { upload_id: Some("u".into()), ..object(1, 5, 1) };
    assert_eq!(stores(disk, Some(ours), copy()), BOTH, "a push whose answer was lost");
    assert_eq!(stores(cloud, None, copy()), disk, "put back by an operator");
}

#[test]
fn a_disk_that_cannot_be_asked_is_believed() {
    let here = row(1, 5, 1, StoreSet::only(StoreKind::Local));
    let rows = merge(Sources { recordings: vec![here], local_unasked: true, ..Sources::default() });
    assert_eq!((rows.len(), rows[0].missing), (1, false));
    assert_eq!(rows[0].recording.stores, StoreSet::only(StoreKind::Local));
}

#[test]
fn a_cloud_that_cannot_be_asked_is_believed() {
    let rows = merge(Sources {
        recordings: vec![row(1, 5, 1, StoreSet::only(StoreKind::Supabase))],
        supabase: None,
        ..Sources::default()
    });
    assert_eq!(rows[0].recording.stores, StoreSet::only(StoreKind::Supabase));
    assert!(!rows[0].missing);
}

#[test]
fn a_row_without_bytes_is_shown_as_missing() {
    let rows = merge(Sources {
        recordings: vec![row(1, 5, 1, StoreSet::only(StoreKind::Supabase))],
        supabase: Some(vec![]),
        ..Sources::default()
    });
    assert!(rows[0].missing);
}

#[test]
fn deleted_names_and_sessions_stay_hidden() {
    let mut sources = Sources {
        recordings: vec![row(2, 5, 2, StoreSet::only(StoreKind::Local))],
        supabase: Some(vec![object(1, 5, 1), object(3, 5, 1), object(4, 5, 9)]),
        local: vec![object(2, 5, 2)],
        ..Sources::default()
    };
    sources.deleted.keys.insert(key(1));
    let names: Vec<_> = merge(sources.clone()).into_iter().map(|r| r.recording.key).collect();
    assert_eq!(names, [key(4), key(2), key(3)]);
    sources.deleted.sessions.extend([key(3), key(4)].map(|key| (key.session, at(5))));
    let names: Vec<_> = merge(sources).into_iter().map(|r| r.recording.key).collect();
    assert_eq!(names, [key(4), key(2)], "only what was uploaded since is shown");
}

fn objects() -> impl Strategy<Value = Vec<StoredObject>> {
    proptest::collection::btree_map(0u8..12, (0u64..3, 0u8..4), 0..12)
        .prop_map(|m| m.into_iter().map(|(n, (size, second))| object(n, size, second)).collect())
}

proptest! {
    #[test]
    fn any_two_listings_merge(
        cloud in proptest::option::of(objects()),
        local in objects(),
        rows in proptest::collection::btree_map(0u8..12, (0u64..3, 0u8..4, any::<bool>()), 0..12),
        gone in proptest::collection::hash_set(0u8..12, 0..4),
    ) {
        let recordings: Vec<_> = rows.iter().map(|(n, (size, second, cloud))| {
            row(*n, *size, *second, StoreSet::only(if *cloud { StoreKind::Supabase } else { StoreKind::Local }))
        }).collect();
        let sources = Sources {
            recordings: recordings.clone(),
            deleted: Deleted { keys: gone.iter().map(|n| key(*n)).collect(), sessions: HashMap::new() },
            supabase: cloud.clone(),
            local: local.clone(),
            ..Sources::default()
        };
        let merged = merge(sources);

        // Every name that anybody knows and nobody deleted is there exactly once; nothing else is.
        let mut expected: HashSet<ObjectKey> = recordings.iter().map(|r| r.key.clone()).collect();
        expected.extend(cloud.iter().flatten().map(|o| o.key.clone()));
        expected.extend(local.iter().map(|o| o.key.clone()));
        expected.retain(|k| !gone.iter().any(|n| key(*n) == *k));
        let got: Vec<ObjectKey> = merged.iter().map(|l| l.recording.key.clone()).collect();
        prop_assert_eq!(got.len(), expected.len());
        prop_assert_eq!(got.into_iter().collect::<HashSet<_>>(), expected);

        // Newest first, and a strict order, so that cursors work.
        prop_assert!(merged.windows(2).all(|w| w[0].position() > w[1].position()));

        for listed in &merged {
            let r = &listed.recording;
            let has = |objects: &[StoredObject]| objects.iter().any(|o| o.key == r.key && o.size_bytes == r.size_bytes);
            if !listed.missing {
                // A store is named only if it was seen to hold that size, or could not be asked.
                prop_assert!(!r.stores.is_empty());
                prop_assert!(!r.stores.local || has(&local));
                if let Some(cloud) = &cloud {
                    prop_assert!(!r.stores.supabase || has(cloud));
                }
            } else {
                prop_assert!(!has(&local) && !cloud.as_ref().is_some_and(|c| has(c)));
            }
        }
    }
}
