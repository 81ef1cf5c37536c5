//! What is said of a name for every way it can be: the rules of `judge`, without stores or a catalogue.

use time::Duration;
use time::macros::datetime;

use super::*;
use crate::domain::{Durability, GatewayId, StoreKind::*};

const NOW: OffsetDateTime = datetime!(2026-01-02 12:00 UTC);
const LONG_AGO: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

fn key() -> ObjectKey {
    ObjectKey::parse("s/a.webm").unwrap()
}

fn digest(n: u8) -> ContentDigest {
    ContentDigest::from_bytes([n; 32])
}

fn row(stores: StoreSet) -> Recording {
    Recording {
        key: key(),
        size_bytes: 5,
        sha256: Some(digest(1)),
        content_type: "video/webm".into(),
        original_filename: None,
        durability: Durability::Local,
        stores,
        held_by: None,
        uploaded_at: LONG_AGO,
        parked_reason: None,
        upload_id: "u".into(),
    }
}

fn seen(size_bytes: u64) -> Seen {
    let object = StoredObject {
        key: key(),
        size_bytes,
        modified_at: LONG_AGO,
        content_type: None,
        etag: None,
        sha256: None,
        original_filename: None,
        upload_id: Some("u".into()),
    };
    Seen { object, digest: None, unreadable: None }
}

fn good() -> Copy {
    Copy::There(Box::new(seen(5)))
}

fn short() -> Copy {
    Copy::There(Box::new(seen(3)))
}

fn case(row: Option<Recording>, cloud: Copy, local: Copy) -> Case {
    Case {
        key: key(),
        row,
        tombstone: None,
        session_deleted: None,
        jobs: Vec::new(),
        cloud,
        local,
        spooled: false,
        has_cloud: true,
        settled: NOW,
        now: NOW + Duration::MINUTE,
    }
}

/// Word, store and remedy of each verdict.
fn judged(case: &Case) -> Vec<(Word, Option<StoreKind>, Remedy)> {
    judge(case).verdicts.into_iter().map(|v| (v.word, v.store, v.remedy)).collect()
}

const BOTH: StoreSet = StoreSet { supabase: true, local: true };
const CLOUD: StoreSet = StoreSet { supabase: true, local: false };
const HERE: StoreSet = StoreSet { supabase: false, local: true };

fn no(remedy: &Remedy) -> bool {
    matches!(remedy, Remedy::None(_))
}

#[test]
fn what_is_as_the_row_says_is_no_finding() {
    assert_eq!(judged(&case(Some(row(CLOUD)), good(), Copy::Absent)), []);
    assert_eq!(judged(&case(Some(row(BOTH)), good(), good())), []);
    let mut waits = case(Some(row(HERE)), Copy::Absent, good());
    waits.jobs = vec![JobKind::Sync(key())];
    assert_eq!(judged(&waits), []);
}

#[test]
fn a_good_copy_elsewhere_makes_up_for_one_that_is_gone_or_wrong() {
    let here = Remedy::Correct { stores: HERE, good: Local, sync: true };
    let there = Remedy::Correct { stores: CLOUD, good: Supabase, sync: false };
    let gone = case(Some(row(BOTH)), Copy::Absent, good());
    assert_eq!(judged(&gone), [(Word::Missing, Some(Supabase), here.clone())]);
    let only_cloud_named = case(Some(row(CLOUD)), Copy::Absent, good());
    assert_eq!(judged(&only_cloud_named), [(Word::Missing, Some(Supabase), here.clone())]);
    let wrong = case(Some(row(BOTH)), short(), good());
    assert_eq!(judged(&wrong), [(Word::Different, Some(Supabase), here)]);
    let no_file = case(Some(row(BOTH)), good(), Copy::Absent);
    assert_eq!(judged(&no_file), [(Word::Missing, Some(Local), there.clone())]);
    let never_marked = case(Some(row(HERE)), good(), Copy::Absent);
    assert_eq!(judged(&never_marked), [(Word::Missing, Some(Local), there)]);
    let rotten = case(Some(row(BOTH)), good(), short());
    assert_eq!(judged(&rotten), [(Word::Different, Some(Local), Remedy::SetAside)]);
}

#[test]
fn only_what_nobody_can_have_is_lost() {
    let lost = [(Word::Missing, None, Remedy::Forget)];
    for stores in [BOTH, CLOUD, HERE] {
        assert_eq!(judged(&case(Some(row(stores)), Copy::Absent, Copy::Absent)), lost);
        let unknown = case(Some(row(stores)), Copy::NotAsked, Copy::Absent);
        assert_eq!(judged(&unknown), [], "a cloud that cannot be asked");
        assert!(judge(&unknown).not_checkable > 0);
    }
    let mut elsewhere = row(HERE);
    elsewhere.held_by = Some(GatewayId("other".into()));
    let elsewhere = case(Some(elsewhere), Copy::Absent, Copy::Absent);
    assert_eq!(judge(&elsewhere), Judged { verdicts: Vec::new(), not_checkable: 1 });
    // Not what damaged copies are left of either.
    for (cloud, local) in [(short(), Copy::Absent), (Copy::Absent, short()), (short(), short())] {
        let found = judged(&case(Some(row(BOTH)), cloud, local));
        assert!(found.len() == 2 && found.iter().all(|(_, _, remedy)| no(remedy)), "{found:?}");
    }
}

#[test]
fn what_is_on_its_way_is_left_alone() {
    let mut young = row(HERE);
    young.uploaded_at = NOW + Duration::SECOND;
    assert_eq!(judged(&case(Some(young), Copy::Absent, Copy::Absent)), [], "its row comes before its file");
    let mut in_spool = case(Some(row(HERE)), Copy::Absent, Copy::Absent);
    in_spool.spooled = true;
    let found = judged(&in_spool);
    assert!(found.len() == 1 && no(&found[0].2), "{found:?}");
    let mut at_its_end = case(Some(row(BOTH)), good(), Copy::Absent);
    at_its_end.jobs = vec![JobKind::Sync(key())];
    assert_eq!(judged(&at_its_end), []);
    let mut fresh = seen(5);
    fresh.object.modified_at = NOW + Duration::SECOND;
    assert_eq!(judged(&case(None, Copy::There(Box::new(fresh.clone())), Copy::There(Box::new(fresh)))), []);
}

/// A recorder with a wrong clock, or a copy that kept a wrong time.
#[test]
fn a_time_to_come_keeps_nothing_from_being_judged() {
    let ahead = |size_bytes| {
        let mut seen = seen(size_bytes);
        seen.object.modified_at = NOW + Duration::DAY;
        Copy::There(Box::new(seen))
    };
    let found = judged(&case(None, Copy::Absent, ahead(5)));
    assert_eq!(found, [(Word::Unknown, Some(Local), Remedy::Adopt)]);
    let found = judged(&case(Some(row(BOTH)), good(), ahead(3)));
    assert_eq!(found, [(Word::Different, Some(Local), Remedy::SetAside)]);
}

#[test]
fn names_without_a_row() {
    let unknown = |store| [(Word::Unknown, store, Remedy::Adopt)];
    assert_eq!(judged(&case(None, good(), Copy::Absent)), unknown(Some(Supabase)));
    assert_eq!(judged(&case(None, Copy::NotAsked, good())), unknown(Some(Local)));
    assert_eq!(judged(&case(None, good(), good())), unknown(None));
    let mut deleted = case(None, good(), good());
    deleted.tombstone = Some(Tombstone { pending: BOTH, held_by: None });
    deleted.jobs = vec![JobKind::Delete(key()), JobKind::DeleteLocal(key())];
    assert_eq!(judged(&deleted), [], "the deletion is under way");
    deleted.tombstone = Some(Tombstone { pending: StoreSet::default(), held_by: None });
    deleted.jobs.clear();
    let again = |stores| Remedy::DeleteAgain(stores);
    let expected =
        [(Word::Orphaned, Some(Supabase), again(CLOUD)), (Word::Orphaned, Some(Local), again(HERE))];
    assert_eq!(judged(&deleted), expected);
    let mut with_session = case(None, good(), Copy::Absent);
    with_session.session_deleted = Some(NOW);
    assert_eq!(judged(&with_session), []);
}

#[test]
fn digests_and_upload_ids_count_where_they_are_known() {
    let with = |change: fn(&mut Seen)| {
        let mut seen = seen(5);
        change(&mut seen);
        Copy::There(Box::new(seen))
    };
    let other_bytes = with(|seen| seen.digest = Some(digest(2)));
    let found = judged(&case(Some(row(CLOUD)), other_bytes, Copy::Absent));
    assert_eq!(found[0].0, Word::Different);
    let claimed = with(|seen| seen.object.sha256 = Some(digest(2)));
    assert_eq!(judged(&case(Some(row(CLOUD)), claimed, Copy::Absent))[0].0, Word::Different);
    let of_another = with(|seen| seen.object.upload_id = None);
    let object = &of_another.seen().unwrap().object;
    assert!(is_doubtful(&row(CLOUD), object), "only its bytes can tell");
    assert!(!is_doubtful(&row(CLOUD), &seen(5).object));
    let unreadable = with(|seen| seen.unreadable = Some("EIO".into()));
    let found = judged(&case(Some(row(BOTH)), good(), unreadable));
    assert!(found[0].0 == Word::Different && no(&found[0].2), "a disk that fails now may read later");
}
