//! The story of a catalogue: what it promises across names, recordings, deletions, jobs, repeats and restarts.

use std::path::{Path, PathBuf};

use recording_gateway::catalog::sqlite::SqliteCatalog;
use recording_gateway::catalog::{Answered, Begun, Catalog, CatalogError, Job, JobKind, RequestKey, Work};
use recording_gateway::domain::{
    ContentDigest, Durability, NameStem, ObjectKey, Recording, RecordingType, SessionId, StoreKind, StoreSet,
};
use recording_gateway::storage::ListScope;
use time::OffsetDateTime;
use time::macros::datetime;

/// A catalogue that can be closed and opened again.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("catalog.sqlite")
    }

    async fn open(&self) -> SqliteCatalog {
        SqliteCatalog::open(&self.path()).await.unwrap().0
    }
}

fn session(text: &str) -> SessionId {
    SessionId::parse(text).unwrap()
}

fn stem(at: OffsetDateTime) -> NameStem {
    NameStem::new(&RecordingType::default(), &session("s"), at, "", "webm")
}

fn recording(key: &ObjectKey, store: StoreKind) -> Recording {
    Recording {
        key: key.clone(),
        size_bytes: 5_000_000_000,
        sha256: Some(ContentDigest::from_bytes([7; 32])),
        content_type: "video/webm".into(),
        original_filename: Some("März.webm".into()),
        durability: Durability::Local,
        stores: StoreSet::only(store),
        uploaded_at: datetime!(2024-12-01 14:30:22.123456 UTC),
        parked_reason: None,
        upload_id: "u1".into(),
    }
}

fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap() + 1_000_000
}

const HOUR: i64 = 3_600_000_000;

async fn claim(catalog: &dyn Catalog) -> Option<Job> {
    catalog.claim_job(now(), HOUR, Work::All).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_given_once() {
    let place = Place::new();
    let catalog = place.open().await;
    let stem = stem(datetime!(2024-12-01 14:30:22 UTC));
    let s = session("s");
    let reservations = (0..20).map(|_| catalog.reserve(&s, &stem, 1));
    let mut numbers: Vec<u32> =
        futures_util::future::join_all(reservations).await.into_iter().map(|r| r.unwrap().1).collect();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(1..=20), "all at once, no number twice: {numbers:?}");

    let key = |n| ObjectKey::new(s.clone(), stem.nth(n));
    catalog.commit(&recording(&key(1), StoreKind::Local), false, None).await.unwrap();
    catalog.release(&key(2)).await.unwrap();
    catalog.release(&key(3)).await.unwrap();
    assert_eq!(catalog.reserve(&s, &stem, 1).await.unwrap(), (stem.nth(2), 2), "given back, given out");
    assert_eq!(catalog.reserve(&s, &stem, 3).await.unwrap().1, 3, "counted from where the caller says");
    catalog.entomb(&key(1), StoreSet::default()).await.unwrap();
    assert_eq!(catalog.reserve(&s, &stem, 1).await.unwrap().1, 21, "a deleted name is not used again");
    let other = session("t");
    assert_eq!(catalog.reserve(&other, &stem, 1).await.unwrap().1, 1, "another session, another name");

    let view = catalog.view(&ListScope::Session(s.clone())).await.unwrap();
    assert_eq!(view.reserved.len(), 20);
    assert!(view.deleted.keys.contains(&key(1)) && view.recordings.is_empty());
    catalog.close().await;
    let catalog = place.open().await;
    assert!(
        catalog.view(&ListScope::Everything).await.unwrap().reserved.is_empty(),
        "they belong to a process"
    );
    assert_eq!(catalog.reserve(&s, &stem, 1).await.unwrap().1, 2, "the deleted one is still remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recordings_life() {
    let place = Place::new();
    let catalog = place.open().await;
    let key = ObjectKey::parse("s/a.webm").unwrap();
    let kept = recording(&key, StoreKind::Local);
    assert_eq!(catalog.get(&key).await.unwrap(), None);
    catalog.commit(&kept, true, None).await.unwrap();
    assert_eq!(catalog.get(&key).await.unwrap(), Some(kept.clone()));
    assert!(catalog.commit(&kept, true, None).await.is_err(), "one name, one recording");
    let counts = catalog.counts().await.unwrap();
    assert_eq!(
        (counts.recordings, counts.unsynced, counts.unsynced_bytes, counts.jobs),
        (1, 1, 5_000_000_000, 1)
    );
    assert_eq!(counts.oldest_unsynced_us, Some(1_733_063_422_123_456));

    // It cannot go to the cloud, then it does.
    catalog.park(&key, "too large").await.unwrap();
    let parked = catalog.get(&key).await.unwrap().unwrap();
    assert_eq!(parked.parked_reason.as_deref(), Some("too large"));
    let counts = catalog.counts().await.unwrap();
    assert_eq!((counts.unsynced, counts.parked, counts.jobs), (0, 1, 0));
    let both = StoreSet { supabase: true, local: true };
    let digest = ContentDigest::from_bytes([7; 32]);
    assert!(catalog.mark_stored(&key, both, Durability::CloudVerified, digest).await.unwrap());
    let stored = catalog.get(&key).await.unwrap().unwrap();
    assert_eq!(
        (stored.stores, stored.durability, stored.parked_reason),
        (both, Durability::CloudVerified, None)
    );

    // Deleted: gone at once, remembered for good.
    catalog.entomb(&key, both).await.unwrap();
    assert_eq!(catalog.get(&key).await.unwrap(), None);
    assert_eq!(catalog.tombstone(&key).await.unwrap().unwrap().pending, both);
    assert!(
        !catalog.mark_stored(&key, both, Durability::Cloud, digest).await.unwrap(),
        "it is not brought back"
    );
    assert_eq!(catalog.adopt(std::slice::from_ref(&kept), true).await.unwrap(), 0, "not this way either");
    catalog.confirm_deleted(&key, StoreKind::Local).await.unwrap();
    assert_eq!(catalog.tombstone(&key).await.unwrap().unwrap().pending, StoreSet::only(StoreKind::Supabase));
    assert_eq!(catalog.counts().await.unwrap().jobs, 1);
    catalog.confirm_deleted(&key, StoreKind::Supabase).await.unwrap();
    assert!(catalog.tombstone(&key).await.unwrap().unwrap().pending.is_empty());
    assert_eq!(catalog.counts().await.unwrap().jobs, 0);
    // A late object: the deletion is taken up again.
    catalog.entomb(&key, StoreSet::only(StoreKind::Supabase)).await.unwrap();
    assert_eq!(catalog.tombstone(&key).await.unwrap().unwrap().pending, StoreSet::only(StoreKind::Supabase));
    assert_eq!(claim(&catalog).await.unwrap().kind, JobKind::Delete(key));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_brought_is_adopted_once() {
    let place = Place::new();
    let catalog = place.open().await;
    let (here, there) = (ObjectKey::parse("s/here.webm").unwrap(), ObjectKey::parse("t/there.webm").unwrap());
    let found = [recording(&here, StoreKind::Local), recording(&there, StoreKind::Supabase)];
    assert_eq!(catalog.adopt(&found, true).await.unwrap(), 2);
    assert_eq!(catalog.adopt(&found, true).await.unwrap(), 0);
    assert_eq!(claim(&catalog).await.unwrap().kind, JobKind::Sync(here.clone()), "only what the cloud lacks");
    assert_eq!(claim(&catalog).await, None);
    let (s, t) = (ListScope::Session(session("s")), ListScope::Session(session("t")));
    assert_eq!(catalog.view(&s).await.unwrap().recordings, [recording(&here, StoreKind::Local)]);
    assert_eq!(catalog.view(&t).await.unwrap().recordings.len(), 1);
    assert_eq!(catalog.view(&ListScope::Everything).await.unwrap().recordings.len(), 2);
    // A name that an upload holds is not adopted under its feet.
    let at = stem(datetime!(2024-12-01 14:30:22 UTC));
    let (filename, _) = catalog.reserve(&session("s"), &at, 1).await.unwrap();
    let reserved = recording(&ObjectKey::new(session("s"), filename), StoreKind::Supabase);
    assert_eq!(catalog.adopt(&[reserved], true).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_leased_to_one_at_a_time() {
    let place = Place::new();
    let catalog = place.open().await;
    let keys: Vec<ObjectKey> = (0..3).map(|n| ObjectKey::parse(&format!("s/{n}.webm")).unwrap()).collect();
    for key in &keys {
        catalog.commit(&recording(key, StoreKind::Local), true, None).await.unwrap();
    }
    let first = claim(&catalog).await.unwrap();
    assert_eq!((&first.kind, first.attempt), (&JobKind::Sync(keys[0].clone()), 1), "the oldest first");
    let second = claim(&catalog).await.unwrap();
    let third = claim(&catalog).await.unwrap();
    assert_eq!(claim(&catalog).await, None, "all are taken");
    catalog.complete_job(&second).await.unwrap();

    // Put off, then due, then a lease that runs out and is lost.
    catalog.postpone_job(&first, now() + HOUR, "no").await.unwrap();
    assert_eq!(claim(&catalog).await, None);
    catalog.hurry_jobs(now() - 2_000_000).await.unwrap();
    let again = claim(&catalog).await.unwrap();
    assert_eq!((&again.id, again.attempt), (&first.id, 2));
    let short = async || catalog.claim_job(now() + 2 * HOUR, HOUR, Work::Deletions).await.unwrap();
    assert_eq!(short().await, None, "a worker for deletions takes no sync");
    let taken_over = catalog.claim_job(now() + 2 * HOUR, HOUR, Work::All).await.unwrap().unwrap();
    assert_eq!((&taken_over.id, taken_over.attempt), (&first.id, 3));
    catalog.complete_job(&again).await.unwrap();
    catalog.postpone_job(&again, now(), "late").await.unwrap();
    assert_eq!(catalog.counts().await.unwrap().jobs, 2, "the lease was lost: it changes nothing");
    catalog.complete_job(&taken_over).await.unwrap();
    assert_eq!(catalog.counts().await.unwrap().jobs, 1);

    // A process that was killed holds no lease.
    catalog.close().await;
    let catalog = place.open().await;
    assert_eq!(claim(&catalog).await.map(|job| job.id), Some(third.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_deleted_until_the_cloud_was_asked() {
    let place = Place::new();
    let catalog = place.open().await;
    let s = session("s");
    assert_eq!(catalog.session_tombstone(&s).await.unwrap(), None);
    let before = OffsetDateTime::now_utc();
    catalog.entomb_session(&s).await.unwrap();
    catalog.close().await;
    let catalog = place.open().await;
    let at = catalog.session_tombstone(&s).await.unwrap().unwrap();
    assert!(at >= before - time::Duration::milliseconds(1) && at <= OffsetDateTime::now_utc());
    assert_eq!(
        catalog.view(&ListScope::Session(s.clone())).await.unwrap().deleted.sessions.get(&s),
        Some(&at)
    );
    assert!(catalog.view(&ListScope::Session(session("t"))).await.unwrap().deleted.sessions.is_empty());
    assert_eq!(claim(&catalog).await.unwrap().kind, JobKind::DeleteSession(s.clone()));
    catalog.confirm_session_deleted(&s).await.unwrap();
    assert_eq!(catalog.session_tombstone(&s).await.unwrap(), None);
    assert_eq!(catalog.counts().await.unwrap().jobs, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rebuild_found_before_its_session_was_deleted_is_not_adopted_after_it() {
    let place = Place::new();
    let catalog = place.open().await;
    catalog.entomb_session(&session("s")).await.unwrap();
    let key = |text| ObjectKey::parse(text).unwrap();
    let old = recording(&key("s/old.webm"), StoreKind::Supabase);
    let new = Recording {
        uploaded_at: OffsetDateTime::now_utc() + time::Duration::hours(1),
        ..recording(&key("s/new.webm"), StoreKind::Supabase)
    };
    let here = recording(&key("s/here.webm"), StoreKind::Local);
    let other = recording(&key("t/old.webm"), StoreKind::Supabase);
    assert_eq!(catalog.adopt(&[old.clone(), new, here, other], false).await.unwrap(), 3);
    assert_eq!(catalog.get(&old.key).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_deleted_before_its_upload_was_answered_stays_deleted() {
    let place = Place::new();
    let catalog = place.open().await;
    let key = ObjectKey::parse("s/a.webm").unwrap();
    catalog.entomb(&key, StoreSet::default()).await.unwrap();
    catalog.confirm_deleted(&key, StoreKind::Supabase).await.unwrap();
    assert_eq!(catalog.counts().await.unwrap().jobs, 0);
    catalog.commit(&recording(&key, StoreKind::Local), true, None).await.unwrap();
    assert_eq!(catalog.get(&key).await.unwrap(), None, "no row beside the tombstone");
    assert_eq!(catalog.tombstone(&key).await.unwrap().unwrap().pending, StoreSet::only(StoreKind::Local));
    assert_eq!(claim(&catalog).await.unwrap().kind, JobKind::Delete(key), "its bytes go too");
    assert_eq!(claim(&catalog).await, None, "and are not sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_request_is_answered_once() {
    let place = Place::new();
    let catalog = place.open().await;
    let request = |scope: &str| RequestKey { scope: scope.into(), key: "k".into() };
    let (one, two) = (request("one"), request("two"));
    assert_eq!(catalog.begin_request(&one).await.unwrap(), Begun::First);
    assert_eq!(catalog.begin_request(&one).await.unwrap(), Begun::Running);
    assert_eq!(catalog.begin_request(&two).await.unwrap(), Begun::First, "another scope");
    catalog.forget_request(&two).await.unwrap();
    assert_eq!(catalog.begin_request(&two).await.unwrap(), Begun::First, "it came to nothing");

    let answered = Answered { fingerprint: "f".into(), answer: "{}".into() };
    let key = ObjectKey::parse("s/a.webm").unwrap();
    catalog.commit(&recording(&key, StoreKind::Supabase), false, Some((&one, &answered))).await.unwrap();
    assert_eq!(catalog.begin_request(&one).await.unwrap(), Begun::Answered(answered.clone()));
    catalog.forget_request(&one).await.unwrap();
    assert_eq!(
        catalog.begin_request(&one).await.unwrap(),
        Begun::Answered(answered.clone()),
        "answers are kept"
    );
    catalog.close().await;
    let catalog = place.open().await;
    assert_eq!(catalog.begin_request(&one).await.unwrap(), Begun::Answered(answered));
    assert_eq!(catalog.begin_request(&two).await.unwrap(), Begun::First, "its process is gone");
    catalog.expire_requests(now()).await.unwrap();
    assert_eq!(catalog.begin_request(&one).await.unwrap(), Begun::First, "too old");
    assert_eq!(catalog.begin_request(&two).await.unwrap(), Begun::Running, "one that runs does not expire");
}

/// reliability 17
#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_of_a_newer_version_is_refused_untouched() {
    let place = Place::new();
    place.open().await.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(place.path());
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99, 'of tomorrow', 1, x'00', 0)",
    )
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;
    let before = std::fs::read(place.path()).unwrap();
    match SqliteCatalog::open(Path::new(&place.path())).await {
        Err(CatalogError::Newer(version)) => assert_eq!(version, 99),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was opened"),
    }
    assert!(std::fs::read(place.path()).unwrap() == before, "and not changed");
}
