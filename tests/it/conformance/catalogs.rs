//! The story of a catalogue: what it promises across names, recordings, deletions, jobs, repeats and restarts.

use std::path::PathBuf;

use recording_gateway::catalog::{
    Action, Answered, Arrival, Audit, AuditQuery, Begun, CatalogError, Changed, Children, Deletions,
    Gateways, Job, JobKind, JobQuery, JobState, JobTally, Jobs, Mend, Origin, QueueSyncs, Recordings,
    RequestKey, Requests, SqlCatalog, Work, sqlite,
};
use recording_gateway::domain::merge::{Listed, Sources, merge};
use recording_gateway::domain::page::Position;
use recording_gateway::domain::{
    ContentDigest, Durability, Filename, GatewayId, NameStem, ObjectKey, Recording, RecordingType, SessionId,
    StoreKind, StoreSet,
};
use recording_gateway::storage::ListScope;
use time::OffsetDateTime;
use time::macros::datetime;
use url::Url;

use crate::support::postgres;

/// A catalogue that can be closed and opened again, on either database.
struct Place {
    dir: tempfile::TempDir,
    postgres: Option<Url>,
}

impl Place {
    /// One on each database that is there.
    async fn all() -> Vec<Self> {
        let place = |postgres| Self { dir: tempfile::tempdir().unwrap(), postgres };
        let shared = postgres::database("the catalogue on PostgreSQL").await;
        [place(None)].into_iter().chain(shared.map(|url| place(Some(url)))).collect()
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("catalog.sqlite")
    }

    async fn open(&self) -> SqlCatalog {
        self.open_as("here").await
    }

    async fn open_as(&self, gateway: &str) -> SqlCatalog {
        self.try_open(gateway).await.unwrap()
    }

    async fn try_open(&self, gateway: &str) -> Result<SqlCatalog, CatalogError> {
        let gateway = GatewayId(gateway.to_owned());
        let opened = match &self.postgres {
            None => sqlite::open(&self.path(), gateway).await,
            Some(url) => recording_gateway::catalog::postgres::open(url, gateway).await,
        };
        opened.map(|(catalog, _)| catalog)
    }
}

/// The story on every database that is there.
macro_rules! story {
    ($name:ident, $tell:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            for place in Place::all().await {
                $tell(place).await;
            }
        }
    };
}

fn by() -> Origin {
    Origin { actor: "tester".into(), request_id: "r1".into() }
}

/// Keeps a recording whose name is given.
async fn keep(
    catalog: &SqlCatalog,
    recording: &Recording,
    sync: bool,
    request: Option<&RequestKey>,
) -> Result<Recording, CatalogError> {
    let arrival = Arrival {
        recording,
        name_from: None,
        sync,
        parent: None,
        request: request.map(|request| (request, "f")),
        answer: &|recording| format!("{{{}}}", recording.key),
    };
    catalog.commit(arrival, &by()).await
}

async fn reserve(catalog: &SqlCatalog, session: &SessionId, stem: &NameStem, first: u32) -> (Filename, u32) {
    catalog.reserve(session, stem, first, "u9", None).await.unwrap()
}

async fn entomb(catalog: &SqlCatalog, key: &ObjectKey, pending: StoreSet) {
    catalog.entomb(std::slice::from_ref(key), pending, &by()).await.unwrap();
}

async fn confirm(catalog: &SqlCatalog, key: &ObjectKey, store: StoreKind) {
    catalog.confirm_deleted(std::slice::from_ref(key), store).await.unwrap();
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
        held_by: None,
        uploaded_at: datetime!(2024-12-01 14:30:22.123456 UTC),
        parked_reason: None,
        upload_id: "u1".into(),
    }
}

fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap() + 1_000_000
}

const HOUR: i64 = 3_600_000_000;

async fn claim(catalog: &SqlCatalog) -> Option<Job> {
    catalog.claim_job(now(), HOUR, Work::All).await.unwrap()
}

story!(names_are_given_once, names_are_given_once_on);

async fn names_are_given_once_on(place: Place) {
    let catalog = place.open().await;
    let stem = stem(datetime!(2024-12-01 14:30:22 UTC));
    let s = session("s");
    let reservations = (0..20).map(|_| reserve(&catalog, &s, &stem, 1));
    let mut numbers: Vec<u32> =
        futures_util::future::join_all(reservations).await.into_iter().map(|r| r.1).collect();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(1..=20), "all at once, no number twice: {numbers:?}");

    let key = |n| ObjectKey::new(s.clone(), stem.nth(n));
    keep(&catalog, &recording(&key(1), StoreKind::Local), false, None).await.unwrap();
    catalog.release(&key(2)).await.unwrap();
    catalog.release(&key(3)).await.unwrap();
    assert_eq!(reserve(&catalog, &s, &stem, 1).await, (stem.nth(2), 2), "given back, given out");
    assert_eq!(reserve(&catalog, &s, &stem, 3).await.1, 3, "counted from where the caller says");
    entomb(&catalog, &key(1), StoreSet::default()).await;
    assert_eq!(reserve(&catalog, &s, &stem, 1).await.1, 21, "a deleted name is not used again");
    let other = session("t");
    assert_eq!(reserve(&catalog, &other, &stem, 1).await.1, 1, "another session, another name");

    let view = catalog.view(&ListScope::Session(s.clone())).await.unwrap();
    assert_eq!(view.reserved.len(), 20);
    assert!(view.deleted.keys.contains(&key(1)) && view.recordings.is_empty());
    catalog.close().await;
    let catalog = place.open().await;
    assert!(
        catalog.view(&ListScope::Everything).await.unwrap().reserved.len() == 21,
        "nobody knows yet whether their objects arrived"
    );
    let abandoned = catalog.abandoned().await.unwrap();
    assert_eq!(abandoned.len(), 21);
    assert!(abandoned.iter().all(|one| one.upload_id == "u9" && one.request.is_none()));
    for one in &abandoned {
        catalog.release(&one.key).await.unwrap();
    }
    assert_eq!(reserve(&catalog, &s, &stem, 1).await.1, 2, "the deleted one is still remembered");
    assert_eq!(catalog.abandoned().await.unwrap(), [], "its own are not abandoned");
}

story!(a_recordings_life, a_recordings_life_on);

async fn a_recordings_life_on(place: Place) {
    let catalog = place.open().await;
    let key = ObjectKey::parse("s/a.webm").unwrap();
    let kept = recording(&key, StoreKind::Local);
    assert_eq!(catalog.get(&key).await.unwrap(), None);
    keep(&catalog, &kept, true, None).await.unwrap();
    assert_eq!(catalog.get(&key).await.unwrap(), Some(kept.clone()));
    assert!(keep(&catalog, &kept, true, None).await.is_err(), "one name, one recording");
    let counts = catalog.counts().await.unwrap();
    assert_eq!(
        (counts.recordings, counts.unsynced, counts.unsynced_bytes, counts.jobs),
        (1, 1, 5_000_000_000, 1)
    );
    assert_eq!(counts.oldest_unsynced_us, Some(1_733_063_422_123_456));

    // It cannot go to the cloud, then it does.
    catalog.park(&key, "too large", &by()).await.unwrap();
    let parked = catalog.get(&key).await.unwrap().unwrap();
    assert_eq!(parked.parked_reason.as_deref(), Some("too large"));
    let counts = catalog.counts().await.unwrap();
    assert_eq!((counts.unsynced, counts.parked, counts.jobs), (0, 1, 0));
    let both = StoreSet { supabase: true, local: true };
    let digest = ContentDigest::from_bytes([7; 32]);
    assert!(catalog.mark_stored(&key, both, Durability::CloudVerified, digest, &by()).await.unwrap());
    let stored = catalog.get(&key).await.unwrap().unwrap();
    assert_eq!(
        (stored.stores, stored.durability, stored.parked_reason),
        (both, Durability::CloudVerified, None)
    );

    // Deleted: gone at once, remembered for good.
    entomb(&catalog, &key, both).await;
    assert_eq!(catalog.get(&key).await.unwrap(), None);
    assert_eq!(catalog.tombstone(&key).await.unwrap().unwrap().pending, both);
    assert!(
        !catalog.mark_stored(&key, both, Durability::Cloud, digest, &by()).await.unwrap(),
        "it is not brought back"
    );
    assert_eq!(
        catalog.adopt(std::slice::from_ref(&kept), true, &by()).await.unwrap(),
        0,
        "not this way either"
    );
    confirm(&catalog, &key, StoreKind::Local).await;
    assert_eq!(catalog.tombstone(&key).await.unwrap().unwrap().pending, StoreSet::only(StoreKind::Supabase));
    assert_eq!(catalog.counts().await.unwrap().jobs, 1);
    confirm(&catalog, &key, StoreKind::Supabase).await;
    assert!(catalog.tombstone(&key).await.unwrap().unwrap().pending.is_empty());
    assert_eq!(catalog.counts().await.unwrap().jobs, 0);
    // A late object: the deletion is taken up again.
    entomb(&catalog, &key, StoreSet::only(StoreKind::Supabase)).await;
    assert_eq!(catalog.tombstone(&key).await.unwrap().unwrap().pending, StoreSet::only(StoreKind::Supabase));
    assert_eq!(claim(&catalog).await.unwrap().kind, JobKind::Delete(key));
}

story!(what_others_brought_is_adopted_once, what_others_brought_is_adopted_once_on);

async fn what_others_brought_is_adopted_once_on(place: Place) {
    let catalog = place.open().await;
    let (here, there) = (ObjectKey::parse("s/here.webm").unwrap(), ObjectKey::parse("t/there.webm").unwrap());
    let found = [recording(&here, StoreKind::Local), recording(&there, StoreKind::Supabase)];
    assert_eq!(catalog.adopt(&found, true, &by()).await.unwrap(), 2);
    assert_eq!(catalog.adopt(&found, true, &by()).await.unwrap(), 0);
    assert_eq!(claim(&catalog).await.unwrap().kind, JobKind::Sync(here.clone()), "only what the cloud lacks");
    assert_eq!(claim(&catalog).await, None);
    let (s, t) = (ListScope::Session(session("s")), ListScope::Session(session("t")));
    assert_eq!(catalog.view(&s).await.unwrap().recordings, [recording(&here, StoreKind::Local)]);
    assert_eq!(catalog.view(&t).await.unwrap().recordings.len(), 1);
    assert_eq!(catalog.view(&ListScope::Everything).await.unwrap().recordings.len(), 2);
    // A name that an upload holds is not adopted under its feet.
    let at = stem(datetime!(2024-12-01 14:30:22 UTC));
    let (filename, _) = reserve(&catalog, &session("s"), &at, 1).await;
    let reserved = recording(&ObjectKey::new(session("s"), filename), StoreKind::Supabase);
    assert_eq!(catalog.adopt(&[reserved], true, &by()).await.unwrap(), 0);
}

story!(rows_follow_files_that_nobody_was_promised, following_on);

async fn following_on(place: Place) {
    let catalog = place.open().await;
    let key = |name: &str| ObjectKey::parse(&format!("s/{name}.webm")).unwrap();
    let dropped = |name: &str| Recording {
        upload_id: String::new(),
        sha256: None,
        ..recording(&key(name), StoreKind::Local)
    };
    let uploaded = recording(&key("uploaded"), StoreKind::Local);
    let found = [dropped("a"), dropped("b"), dropped("sent"), uploaded.clone()];
    assert_eq!(catalog.adopt(&found, false, &by()).await.unwrap(), 4);
    let both = StoreSet { supabase: true, local: true };
    let digest = ContentDigest::from_bytes([7; 32]);
    assert!(catalog.mark_stored(&key("sent"), both, Durability::Cloud, digest, &by()).await.unwrap());
    let page = catalog.recordings_page(&session("s"), None, 1).await.unwrap();
    assert_eq!((page.rows.len(), page.total, page.following), (1, 4, vec![dropped("a"), dropped("b")]));
    assert_eq!(catalog.following(None, 1).await.unwrap(), [dropped("a")]);
    assert_eq!(catalog.following(Some(&key("a")), 9).await.unwrap(), [dropped("b")]);
    let uploaded_at = datetime!(2025-01-02 03:04:05 UTC);
    let grown = Recording { size_bytes: 77, uploaded_at, ..dropped("a") };
    assert!(catalog.follow(&grown).await.unwrap());
    assert_eq!(catalog.get(&key("a")).await.unwrap(), Some(grown.clone()));
    for name in ["sent", "uploaded", "nobody"] {
        let other = Recording { key: key(name), ..grown.clone() };
        assert!(!catalog.follow(&other).await.unwrap(), "{name}");
    }
    assert_eq!(catalog.get(&key("uploaded")).await.unwrap(), Some(uploaded));
}

story!(parts_add_up_to_everything, parts_add_up_to_everything_on);

async fn parts_add_up_to_everything_on(place: Place) {
    let catalog = place.open().await;
    // Times that are equal, ids of which one begins as the other and that differ in case: only bytes order them.
    let ids = ["S", "s", "s-1", "s.1", "s1", "T", "t"];
    let mut rows = Vec::new();
    for (n, id) in ids.into_iter().enumerate() {
        for take in 0..=n {
            let key = ObjectKey::parse(&format!("{id}/{take}.webm")).unwrap();
            let seconds = if n < 5 { 0 } else { take as i64 };
            let uploaded_at = datetime!(2024-12-01 14:30:22 UTC) + time::Duration::seconds(seconds);
            let size_bytes = 10 + take as u64;
            rows.push(Recording { uploaded_at, size_bytes, ..recording(&key, StoreKind::Supabase) });
        }
    }
    catalog.adopt(&rows, true, &by()).await.unwrap();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = catalog.sessions_page(after.as_ref(), 3).await.unwrap();
        assert_eq!((page.sessions, page.recordings), (7, rows.len() as u64), "all, not the page");
        let Some(last) = page.rows.last() else { break };
        after = Some(Position { time_us: last.newest_us, name: last.session.to_string() });
        seen.extend(page.rows);
    }
    let ordered: Vec<&str> = seen.iter().map(|row| row.session.as_str()).collect();
    assert_eq!(ordered, ["t", "T", "s1", "s.1", "s-1", "s", "S"]);
    assert_eq!((seen[0].count, seen[0].bytes), (7, 70 + 21));

    // A session's rows in pages, in the order of bytes.
    let listed =
        |rows: Vec<Recording>| -> Vec<Listed> { merge(Sources { recordings: rows, ..Sources::default() }) };
    for id in ids {
        let own = rows.iter().filter(|row| row.key.session.as_str() == id).cloned();
        let expected: Vec<Recording> = listed(own.collect()).into_iter().map(|row| row.recording).collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = catalog.recordings_page(&session(id), after.as_ref(), 2).await.unwrap();
            assert_eq!((page.total, page.following.len()), (expected.len() as u64, 0), "{id}");
            after = listed(page.rows.clone()).last().map(Listed::position);
            seen.extend(page.rows);
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, expected, "{id}");
    }
    assert_eq!(catalog.recordings_page(&session("nobody"), None, 2).await.unwrap().total, 0);

    // More names than are asked for at once.
    let (gone, kept) = (rows[1].key.clone(), rows[2].key.clone());
    entomb(&catalog, &gone, StoreSet::only(StoreKind::Supabase)).await;
    catalog.entomb_session(&session("u"), &by()).await.unwrap();
    let (filename, _) = reserve(&catalog, &session("v"), &stem(datetime!(2024-12-01 14:30:22 UTC)), 1).await;
    let reserved = ObjectKey::new(session("v"), filename);
    let unknown = (0..1200).map(|n| ObjectKey::parse(&format!("u/{n}.webm")).unwrap());
    let asked: Vec<ObjectKey> = unknown.chain([gone.clone(), kept.clone(), reserved.clone()]).collect();
    let names = catalog.names(&asked).await.unwrap();
    assert_eq!(names.recorded, [kept].into());
    let counted = catalog.recordings_page(&gone.session, None, 9).await.unwrap();
    let own = rows.iter().filter(|row| row.key.session == gone.session).count();
    assert_eq!((counted.rows.len(), counted.total), (own - 1, own as u64 - 1), "one was deleted");
    assert_eq!(names.deleted.keys, [gone].into());
    assert_eq!(names.reserved, [reserved.clone()].into());
    assert_eq!(names.deleted.sessions.keys().collect::<Vec<_>>(), [&session("u")]);
    assert_eq!(asked.iter().filter(|key| names.lack(key)).count(), 1200);
    let hidden = catalog.sessions_page(None, 1).await.unwrap().hidden;
    assert_eq!(hidden.keys, [reserved].into());
    assert!(hidden.sessions.contains_key(&session("u")));

    let strangers = (0..1200).map(|n| session(&format!("nobody{n}")));
    let asked: Vec<SessionId> = strangers.chain([session("t"), session("u")]).collect();
    assert_eq!(catalog.recorded_sessions(&asked).await.unwrap(), [session("t")].into());
    assert!(catalog.has_tombstones().await.unwrap());
}

story!(jobs_are_leased_to_one_at_a_time, jobs_are_leased_to_one_at_a_time_on);

async fn jobs_are_leased_to_one_at_a_time_on(place: Place) {
    let catalog = place.open().await;
    let keys: Vec<ObjectKey> = (0..3).map(|n| ObjectKey::parse(&format!("s/{n}.webm")).unwrap()).collect();
    for key in &keys {
        keep(&catalog, &recording(key, StoreKind::Local), true, None).await.unwrap();
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

story!(sessions_are_deleted_until_the_cloud_was_asked, sessions_are_deleted_until_the_cloud_was_asked_on);

async fn sessions_are_deleted_until_the_cloud_was_asked_on(place: Place) {
    let catalog = place.open().await;
    let s = session("s");
    assert_eq!(catalog.session_tombstone(&s).await.unwrap(), None);
    let before = OffsetDateTime::now_utc();
    catalog.entomb_session(&s, &by()).await.unwrap();
    catalog.close().await;
    let catalog = place.open().await;
    let at = catalog.session_tombstone(&s).await.unwrap().unwrap();
    assert!(at >= before - time::Duration::milliseconds(1) && at <= OffsetDateTime::now_utc());
    assert_eq!(
        catalog.view(&ListScope::Session(s.clone())).await.unwrap().deleted.sessions.get(&s),
        Some(&at)
    );
    assert!(catalog.view(&ListScope::Session(session("t"))).await.unwrap().deleted.sessions.is_empty());

    // It is deleted again while what it was then is being deleted.
    let first = claim(&catalog).await.unwrap();
    assert_eq!(first.kind, JobKind::DeleteSession(s.clone()));
    catalog.entomb_session(&s, &by()).await.unwrap();
    let again = catalog.session_tombstone(&s).await.unwrap().unwrap();
    assert!(again > at);
    catalog.confirm_session_deleted(&s, at).await.unwrap();
    assert_eq!(catalog.session_tombstone(&s).await.unwrap(), Some(again), "that is still to be done");
    catalog.complete_job(&first).await.unwrap();
    assert_eq!(claim(&catalog).await.unwrap().id, first.id);
    catalog.confirm_session_deleted(&s, again).await.unwrap();
    assert_eq!(catalog.session_tombstone(&s).await.unwrap(), None);
    assert_eq!(catalog.counts().await.unwrap().jobs, 0);
}

story!(
    what_a_rebuild_found_before_its_session_was_deleted_is_not_adopted_after_it,
    what_a_rebuild_found_before_its_session_was_deleted_is_not_adopted_after_it_on
);

async fn what_a_rebuild_found_before_its_session_was_deleted_is_not_adopted_after_it_on(place: Place) {
    let catalog = place.open().await;
    catalog.entomb_session(&session("s"), &by()).await.unwrap();
    let key = |text| ObjectKey::parse(text).unwrap();
    let old = recording(&key("s/old.webm"), StoreKind::Supabase);
    let new = Recording {
        uploaded_at: OffsetDateTime::now_utc() + time::Duration::hours(1),
        ..recording(&key("s/new.webm"), StoreKind::Supabase)
    };
    let here = recording(&key("s/here.webm"), StoreKind::Local);
    let other = recording(&key("t/old.webm"), StoreKind::Supabase);
    assert_eq!(catalog.adopt(&[old.clone(), new, here, other], false, &by()).await.unwrap(), 3);
    assert_eq!(catalog.get(&old.key).await.unwrap(), None);
}

story!(
    a_recording_deleted_before_its_upload_was_answered_stays_deleted,
    a_recording_deleted_before_its_upload_was_answered_stays_deleted_on
);

async fn a_recording_deleted_before_its_upload_was_answered_stays_deleted_on(place: Place) {
    let catalog = place.open().await;
    let key = ObjectKey::parse("s/a.webm").unwrap();
    entomb(&catalog, &key, StoreSet::default()).await;
    confirm(&catalog, &key, StoreKind::Supabase).await;
    assert_eq!(catalog.counts().await.unwrap().jobs, 0);
    keep(&catalog, &recording(&key, StoreKind::Local), true, None).await.unwrap();
    assert_eq!(catalog.get(&key).await.unwrap(), None, "no row beside the tombstone");
    assert_eq!(catalog.tombstone(&key).await.unwrap().unwrap().pending, StoreSet::only(StoreKind::Local));
    assert_eq!(claim(&catalog).await.unwrap().kind, JobKind::DeleteLocal(key), "its bytes go too");
    assert_eq!(claim(&catalog).await, None, "and are not sent");
}

story!(a_keyed_request_is_answered_once, a_keyed_request_is_answered_once_on);

async fn a_keyed_request_is_answered_once_on(place: Place) {
    let catalog = place.open().await;
    let request = |scope: &str| RequestKey::new(scope.into(), "k".into());
    let (one, two) = (request("one"), request("two"));
    assert_eq!(catalog.begin_request(&one).await.unwrap(), Begun::First);
    assert_eq!(catalog.begin_request(&one).await.unwrap(), Begun::Running);
    assert_eq!(catalog.begin_request(&two).await.unwrap(), Begun::First, "another scope");
    catalog.forget_request(&two).await.unwrap();
    assert_eq!(catalog.begin_request(&two).await.unwrap(), Begun::First, "it came to nothing");

    let answered = Answered { fingerprint: "f".into(), answer: "{s/a.webm}".into() };
    let key = ObjectKey::parse("s/a.webm").unwrap();
    keep(&catalog, &recording(&key, StoreKind::Supabase), false, Some(&one)).await.unwrap();
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

story!(a_request_that_came_to_nothing_leaves_its_repeat_alone, a_request_that_came_to_nothing_on);

async fn a_request_that_came_to_nothing_on(place: Place) {
    let catalog = place.open().await;
    let request = || RequestKey::new("one".into(), "k".into());
    let (first, repeat, third) = (request(), request(), request());
    let key = ObjectKey::parse("s/a.webm").unwrap();
    let draft = recording(&key, StoreKind::Local);
    assert_eq!(catalog.begin_request(&first).await.unwrap(), Begun::First);
    catalog.forget_request(&first).await.unwrap();
    assert_eq!(catalog.begin_request(&repeat).await.unwrap(), Begun::First);
    // As when it was not known whether it was forgotten.
    catalog.forget_request(&first).await.unwrap();
    assert_eq!(catalog.begin_request(&request()).await.unwrap(), Begun::Running);
    let late = keep(&catalog, &draft, false, Some(&first)).await;
    assert!(matches!(late, Err(CatalogError::RequestLost)), "{late:?}");
    assert_eq!(catalog.get(&key).await.unwrap(), None);
    let kept = keep(&catalog, &draft, false, Some(&repeat)).await.unwrap();
    let twice = keep(&catalog, &draft, false, Some(&repeat)).await;
    assert!(twice.is_err(), "an answer is given once");

    // What is taken back runs again, and can come to nothing.
    catalog.retract(&kept.key, "u9", Some(&repeat)).await.unwrap();
    assert_eq!(catalog.begin_request(&request()).await.unwrap(), Begun::Running);
    catalog.forget_request(&repeat).await.unwrap();

    // A name that a killed process had taken for it is given up after the key was.
    assert_eq!(catalog.begin_request(&first).await.unwrap(), Begun::First);
    let stem = stem(datetime!(2024-12-01 14:30:22 UTC));
    catalog.reserve(&session("s"), &stem, 1, "u8", Some(&first)).await.unwrap();
    catalog.forget_request(&first).await.unwrap();
    catalog.close().await;
    let catalog = place.open().await;
    assert_eq!(catalog.begin_request(&third).await.unwrap(), Begun::First);
    for abandoned in catalog.abandoned().await.unwrap() {
        catalog.give_up(&abandoned).await.unwrap();
    }
    assert_eq!(catalog.begin_request(&request()).await.unwrap(), Begun::Running);
}

// reliability 17
story!(a_catalogue_of_a_newer_version_is_refused_untouched, a_newer_version_on);

async fn a_newer_version_on(place: Place) {
    place.open().await.close().await;
    let of_tomorrow = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                       VALUES (99, 'of tomorrow', true, '00', 0)";
    match &place.postgres {
        None => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(place.path());
            let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
            sqlx::query(of_tomorrow).execute(&pool).await.unwrap();
            pool.close().await;
        }
        Some(url) => {
            let pool = sqlx::PgPool::connect(url.as_str()).await.unwrap();
            sqlx::query(of_tomorrow).execute(&pool).await.unwrap();
            pool.close().await;
        }
    }
    let before = std::fs::read(place.path()).ok();
    match place.try_open("here").await {
        Err(CatalogError::Newer(version)) => assert_eq!(version, 99),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was opened"),
    }
    assert!(std::fs::read(place.path()).ok() == before, "and not changed");
}

story!(a_name_is_found_with_the_commit, a_name_is_found_on);

async fn a_name_is_found_on(place: Place) {
    let catalog = place.open().await;
    let stem = stem(datetime!(2024-12-01 14:30:22 UTC));
    let s = session("s");
    let (reserved, _) = reserve(&catalog, &s, &stem, 1).await;
    let draft = recording(&ObjectKey::new(s.clone(), reserved), StoreKind::Local);
    let arrival = || Arrival {
        recording: &draft,
        name_from: Some((&stem, 1)),
        sync: true,
        parent: None,
        request: None,
        answer: &|_| String::new(),
    };
    let commits = (0..10).map(|_| async { catalog.commit(arrival(), &by()).await });
    let mut names: Vec<String> = futures_util::future::join_all(commits)
        .await
        .into_iter()
        .map(|kept| kept.unwrap().key.filename.to_string())
        .collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    let wanted: Vec<String> = (2..=11).map(|n| stem.nth(n).to_string()).collect();
    assert_eq!(names, wanted, "each its own, none the reserved one");
    let key = ObjectKey::new(s.clone(), stem.nth(5));
    assert!(catalog.retract(&key, "u1", None).await.unwrap());
    assert_eq!(catalog.get(&key).await.unwrap(), None);
    let counts = catalog.counts().await.unwrap();
    assert_eq!((counts.recordings, counts.jobs), (9, 9), "as if it had never been");
    let reserved = catalog.names(std::slice::from_ref(&key)).await.unwrap().reserved;
    assert!(reserved.contains(&key), "the bucket may have something under its name");
    catalog.release(&key).await.unwrap();
    assert_eq!(catalog.commit(arrival(), &by()).await.unwrap().key, key);
    let found = catalog.get_by_upload("u1").await.unwrap().unwrap();
    assert_eq!(found.upload_id, "u1");
    assert_eq!(catalog.get_by_upload("u2").await.unwrap(), None);

    let other = recording(&key, StoreKind::Local);
    let named = Arrival { recording: &other, name_from: None, ..arrival() };
    assert!(catalog.commit(named, &by()).await.is_err(), "its name is another recording's");
    assert_eq!(catalog.counts().await.unwrap().recordings, 10);
}

story!(what_was_deleted_is_not_taken_back, deleted_before_it_is_taken_back_on);

async fn deleted_before_it_is_taken_back_on(place: Place) {
    let catalog = place.open().await;
    let key = ObjectKey::parse("s/a.webm").unwrap();
    let request = RequestKey::new("one".into(), "k".into());
    catalog.begin_request(&request).await.unwrap();
    let draft = recording(&key, StoreKind::Local);
    keep(&catalog, &draft, true, Some(&request)).await.unwrap();
    let everywhere = StoreSet { supabase: true, local: true };
    catalog.delete(std::slice::from_ref(&key), everywhere, &by()).await.unwrap();
    assert!(!catalog.retract(&key, "u1", Some(&request)).await.unwrap());
    assert_eq!(catalog.tombstone(&key).await.unwrap().unwrap().pending, everywhere);
    let names = catalog.names(std::slice::from_ref(&key)).await.unwrap();
    assert!(names.reserved.is_empty(), "nobody gets its name again");
    let again = RequestKey::new("one".into(), "k".into());
    assert!(matches!(catalog.begin_request(&again).await.unwrap(), Begun::Answered(_)), "it was answered");
}

story!(every_change_is_written_down, every_change_on);

async fn every_change_on(place: Place) {
    let catalog = place.open().await;
    let (one, two) = (ObjectKey::parse("s/one.webm").unwrap(), ObjectKey::parse("t/two.webm").unwrap());
    keep(&catalog, &recording(&one, StoreKind::Local), true, None).await.unwrap();
    let gateway = Origin::gateway("background");
    catalog.adopt(&[recording(&two, StoreKind::Local)], true, &gateway).await.unwrap();
    let digest = ContentDigest::from_bytes([7; 32]);
    let both = StoreSet { supabase: true, local: true };
    for _ in 0..2 {
        catalog.mark_stored(&one, both, Durability::CloudVerified, digest, &gateway).await.unwrap();
    }
    catalog.park(&two, "too large", &gateway).await.unwrap();
    entomb(&catalog, &one, both).await;
    entomb(&catalog, &one, both).await;
    let all = AuditQuery { limit: 100, ..AuditQuery::default() };
    let entries = catalog.audit(&all).await.unwrap();
    let told: Vec<(Action, &str, &str)> =
        entries.iter().map(|e| (e.action, e.session_id.as_str(), e.origin.actor.as_str())).collect();
    assert_eq!(
        told,
        [
            (Action::Deleted, "s", "tester"),
            (Action::Parked, "t", "gateway"),
            (Action::Synced, "s", "gateway"),
            (Action::Adopted, "t", "gateway"),
            (Action::Uploaded, "s", "tester"),
        ],
        "newest first, once each"
    );
    assert_eq!((entries[0].before, entries[0].after), (Some(digest), None));
    assert_eq!((entries[4].before, entries[4].after), (None, Some(digest)));
    assert_eq!(entries[0].origin.request_id, "r1");

    // Filters and pages.
    let count =
        async |query: AuditQuery| catalog.audit(&AuditQuery { limit: 100, ..query }).await.unwrap().len();
    assert_eq!(count(AuditQuery { session: Some(session("s")), ..AuditQuery::default() }).await, 3);
    assert_eq!(count(AuditQuery { action: Some(Action::Parked), ..AuditQuery::default() }).await, 1);
    assert_eq!(count(AuditQuery { actor: Some("gateway".into()), ..AuditQuery::default() }).await, 3);
    assert_eq!(count(AuditQuery { filename: Some("two.webm".into()), ..AuditQuery::default() }).await, 2);
    assert_eq!(count(AuditQuery { since_us: Some(now() + HOUR), ..AuditQuery::default() }).await, 0);
    assert_eq!(count(AuditQuery { until_us: Some(now() + HOUR), ..AuditQuery::default() }).await, 5);
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = catalog.audit(&AuditQuery { limit: 2, before, ..AuditQuery::default() }).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.id.clone());
        seen.extend(page);
    }
    assert_eq!(seen, entries);

    // What had no row, too, if somebody asked for it; but not what the gateway clears away.
    let unknown = ["u/asked.webm", "u/cleared.webm"].map(|key| ObjectKey::parse(key).unwrap());
    entomb(&catalog, &unknown[1], both).await;
    for _ in 0..2 {
        catalog.delete(&unknown, both, &by()).await.unwrap();
    }
    let of_u = AuditQuery { session: Some(session("u")), limit: 100, ..AuditQuery::default() };
    let entries = catalog.audit(&of_u).await.unwrap();
    let told: Vec<_> = entries.iter().map(|e| (e.action, e.filename.as_deref(), e.before)).collect();
    assert_eq!(told, [(Action::Deleted, Some("asked.webm"), None)], "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_is_append_only() {
    for place in Place::all().await {
        let catalog = place.open().await;
        keep(&catalog, &recording(&ObjectKey::parse("s/a.webm").unwrap(), StoreKind::Local), false, None)
            .await
            .unwrap();
        for statement in ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"] {
            let refused = match &place.postgres {
                None => {
                    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(place.path());
                    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
                    sqlx::query(statement).execute(&pool).await.map(drop)
                }
                Some(url) => {
                    let pool = sqlx::PgPool::connect(url.as_str()).await.unwrap();
                    sqlx::query(statement).execute(&pool).await.map(drop)
                }
            };
            assert!(refused.unwrap_err().to_string().contains("append-only"), "{statement}");
        }
    }
}

story!(a_job_can_be_parked_retried_and_cancelled, a_job_can_be_on);

async fn a_job_can_be_on(place: Place) {
    let catalog = place.open().await;
    let keys: Vec<ObjectKey> = (0..3).map(|n| ObjectKey::parse(&format!("s/{n}.webm")).unwrap()).collect();
    for key in &keys {
        keep(&catalog, &recording(key, StoreKind::Local), true, None).await.unwrap();
    }
    let state = async |state: JobState| {
        let query = JobQuery { state: Some(state), limit: 100, ..JobQuery::default() };
        catalog.list_jobs(&query).await.unwrap().into_iter().map(|job| job.kind).collect::<Vec<_>>()
    };
    let sync = |n: usize| JobKind::Sync(keys[n].clone());
    let first = claim(&catalog).await.unwrap();
    assert_eq!(state(JobState::Running).await, [sync(0)]);
    assert_eq!(state(JobState::Waiting).await, [sync(2), sync(1)]);
    assert!(catalog.renew_job(&first, now() + HOUR).await.unwrap());
    catalog.keep_resume_point(&first, Some("there")).await.unwrap();
    catalog.postpone_job(&first, now(), "no").await.unwrap();
    assert!(!catalog.renew_job(&Job { attempt: 0, ..first.clone() }, now()).await.unwrap());
    let again = catalog.claim_job(now() + 2_000_000, HOUR, Work::All).await.unwrap().unwrap();
    assert_eq!((again.id.as_str(), again.resume_point.as_deref()), (first.id.as_str(), Some("there")));

    // Parked with its reason, then taken up again.
    catalog.park(&keys[0], "too large", &by()).await.unwrap();
    assert!(!catalog.renew_job(&again, now() + HOUR).await.unwrap(), "the lease is lost");
    let parked = catalog.get_job(&first.id).await.unwrap().unwrap();
    assert_eq!((parked.state, parked.last_error.as_deref()), (JobState::Parked, Some("too large")));
    assert_eq!(catalog.counts().await.unwrap().parked, 1);
    match catalog.retry_job(&first.id, now()).await.unwrap() {
        Changed::Yes(job) => assert_eq!((job.state, job.finished_at), (JobState::Waiting, None)),
        other => panic!("{other:?}"),
    }
    assert_eq!(catalog.get(&keys[0]).await.unwrap().unwrap().parked_reason, None);

    // Cancelled: it stays here and says why; a retry sends it after all.
    match catalog.cancel_job(&first.id, &by()).await.unwrap() {
        Changed::Yes(job) => assert_eq!(job.state, JobState::Cancelled),
        other => panic!("{other:?}"),
    }
    assert!(catalog.get(&keys[0]).await.unwrap().unwrap().parked_reason.unwrap().contains("cancelled"));
    assert!(matches!(catalog.cancel_job(&first.id, &by()).await.unwrap(), Changed::No(_)), "once");
    assert!(matches!(catalog.retry_job(&first.id, now()).await.unwrap(), Changed::Yes(_)));
    assert_eq!(catalog.retry_job("nobody", now()).await.unwrap(), Changed::Unknown);
    assert_eq!(catalog.cancel_job("nobody", &by()).await.unwrap(), Changed::Unknown);

    // Done, and a deletion, can neither be retried nor cancelled.
    let job = claim(&catalog).await.unwrap();
    catalog.complete_job(&job).await.unwrap();
    assert!(matches!(catalog.retry_job(&job.id, now()).await.unwrap(), Changed::No(_)));
    entomb(&catalog, &keys[1], StoreSet::only(StoreKind::Supabase)).await;
    let deletion = claim(&catalog).await.unwrap();
    assert!(matches!(catalog.cancel_job(&deletion.id, &by()).await.unwrap(), Changed::No(_)));
    // What ended long ago is forgotten, what is parked is not.
    catalog.park(&keys[2], "too large", &by()).await.unwrap();
    catalog.expire_jobs(now()).await.unwrap();
    let all = catalog.list_jobs(&JobQuery { limit: 100, ..JobQuery::default() }).await.unwrap();
    assert!(all.iter().all(|job| !matches!(job.state, JobState::Done | JobState::Cancelled)), "{all:?}");
    assert!(all.iter().any(|job| job.state == JobState::Parked));
}

story!(a_parent_is_as_far_as_its_children, a_parent_on);

async fn a_parent_on(place: Place) {
    let catalog = place.open().await;
    let keys: Vec<ObjectKey> = ["s/0.webm", "s/1.webm", "s/2.webm", "t/0.webm"]
        .iter()
        .map(|key| ObjectKey::parse(key).unwrap())
        .collect();
    for key in &keys {
        keep(&catalog, &recording(key, StoreKind::Local), false, None).await.unwrap();
    }
    catalog.park(&keys[2], "too large", &by()).await.unwrap();
    let s = session("s");
    let parent = catalog.open_parent(&JobKind::SyncSession(s.clone())).await.unwrap();
    assert_eq!(catalog.open_parent(&parent.kind).await.unwrap().id, parent.id, "the open one is found again");
    let queue = QueueSyncs { session: Some(&s), parent: Some(&parent.id), ..QueueSyncs::default() };
    assert_eq!(catalog.queue_syncs(queue).await.unwrap(), 2, "what is parked stays so");
    assert_eq!(
        catalog.queue_syncs(QueueSyncs { parked: true, ..queue }).await.unwrap(),
        3,
        "unless asked for"
    );
    assert_eq!(
        claim(&catalog).await.unwrap().kind,
        JobKind::Sync(keys[0].clone()),
        "parents are given to nobody"
    );
    let progress = async || catalog.get_job(&parent.id).await.unwrap().unwrap();
    assert_eq!(progress().await.children, Some(Children { total: 3, ..Children::default() }));
    catalog.park(&keys[0], "too large", &by()).await.unwrap();
    let job = claim(&catalog).await.unwrap();
    catalog.complete_job(&job).await.unwrap();
    assert_eq!(progress().await.state, JobState::Running);
    entomb(&catalog, &keys[2], StoreSet::only(StoreKind::Local)).await;
    let done = progress().await;
    assert_eq!(
        (done.state, done.children),
        (JobState::Done, Some(Children { total: 3, done: 1, parked: 1, cancelled: 1 }))
    );
    // A retry of the parent takes its unfinished children up again; those that went are left alone.
    assert!(
        matches!(catalog.retry_job(&parent.id, now()).await.unwrap(), Changed::Yes(job) if job.state == JobState::Running)
    );
    let child = JobQuery {
        parent: Some(parent.id.clone()),
        state: Some(JobState::Waiting),
        limit: 10,
        ..JobQuery::default()
    };
    assert_eq!(catalog.list_jobs(&child).await.unwrap().len(), 1);
    assert!(
        matches!(catalog.cancel_job(&parent.id, &by()).await.unwrap(), Changed::Yes(job) if job.state == JobState::Done)
    );
    let empty = catalog.open_parent(&JobKind::Migration).await.unwrap();
    assert_ne!(
        catalog.open_parent(&JobKind::Migration).await.unwrap().id,
        empty.id,
        "two loads are two jobs"
    );
    catalog.close_parent(&empty.id).await.unwrap();
    let state = async || catalog.get_job(&empty.id).await.unwrap().unwrap().state;
    assert_eq!(state().await, JobState::Done);
    let key = ObjectKey::parse("u/0.webm").unwrap();
    keep_as_part(&catalog, &key, &empty.id).await;
    assert_eq!(state().await, JobState::Running);
    catalog.retract(&key, "u", None).await.unwrap();
    assert_eq!(state().await, JobState::Done, "an upload that could not be kept leaves nothing to wait for");
}

story!(what_a_killed_process_opened_is_closed_unless_it_has_parts, closes_parents_on);

async fn closes_parents_on(place: Place) {
    let catalog = place.open().await;
    let mut opened = Vec::new();
    for kind in [JobKind::Migration, JobKind::SyncAll, JobKind::SyncSession(session("s")), JobKind::Migration]
    {
        opened.push(catalog.open_parent(&kind).await.unwrap().id);
    }
    let last = opened.pop().unwrap();
    keep_as_part(&catalog, &ObjectKey::parse("s/0.webm").unwrap(), &last).await;
    catalog.close_parents().await.unwrap();
    let state = async |id: &str| catalog.get_job(id).await.unwrap().unwrap().state;
    for id in &opened {
        assert_eq!(state(id).await, JobState::Done);
    }
    assert_eq!(state(&last).await, JobState::Running);
}

/// Keeps a recording whose sync is a part of a job.
async fn keep_as_part(catalog: &SqlCatalog, key: &ObjectKey, parent: &str) {
    let recording = recording(key, StoreKind::Local);
    let arrival = Arrival {
        recording: &recording,
        name_from: None,
        sync: true,
        parent: Some(parent),
        request: None,
        answer: &|_| String::new(),
    };
    catalog.commit(arrival, &by()).await.unwrap();
}

/// Six workers end the children of each parent at the same moment, while clients delete and others come.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_ends_whoever_ends_its_last_children() {
    for place in Place::all().await {
        let catalog = std::sync::Arc::new(place.open().await);
        let mut parents = Vec::new();
        for n in 0..40 {
            let parent = catalog.open_parent(&JobKind::Migration).await.unwrap();
            for child in 0..6 {
                let key = ObjectKey::parse(&format!("s{n}/{child}.webm")).unwrap();
                keep_as_part(&catalog, &key, &parent.id).await;
            }
            parents.push(parent.id);
        }
        let mut jobs = Vec::new();
        while let Some(job) = claim(&catalog).await {
            jobs.push(job);
        }
        assert_eq!(jobs.len(), 240);
        for (n, (jobs, parent)) in jobs.chunks(6).zip(&parents).enumerate() {
            let mut workers = tokio::task::JoinSet::new();
            for job in jobs {
                let (catalog, job) = (catalog.clone(), job.clone());
                workers.spawn(async move { catalog.complete_job(&job).await.unwrap() });
            }
            // Every fourth is cancelled, gets another child, or is deleted at the same moment.
            let (catalog, parent) = (catalog.clone(), parent.clone());
            workers.spawn(async move {
                let key = |name: &str| ObjectKey::parse(&format!("s{n}/{name}.webm")).unwrap();
                match n % 4 {
                    1 => drop(catalog.cancel_job(&parent, &by()).await.unwrap()),
                    2 => keep_as_part(&catalog, &key("late"), &parent).await,
                    3 => {
                        let keys = ["5", "4", "3", "2", "1", "0"].map(key);
                        catalog.entomb(&keys, StoreSet::default(), &by()).await.unwrap();
                    }
                    _ => {}
                }
            });
            while let Some(ended) = workers.join_next().await {
                ended.unwrap();
            }
        }
        for (n, parent) in parents.iter().enumerate() {
            let job = catalog.get_job(parent).await.unwrap().unwrap();
            let expected = if n % 4 == 2 { JobState::Running } else { JobState::Done };
            assert_eq!(job.state, expected, "{n}: {job:?}");
        }
    }
}

/// The parts of a parent are cancelled and taken up again while their session is deleted and everything is hurried: nobody
/// waits for who waits for him.
#[tokio::test(flavor = "multi_thread")]
async fn cancelling_and_deleting_do_not_wait_for_each_other() {
    for place in Place::all().await {
        let catalog = std::sync::Arc::new(place.open().await);
        let all = catalog.open_parent(&JobKind::SyncAll).await.unwrap().id;
        for n in 0..25 {
            let parent = catalog.open_parent(&JobKind::Migration).await.unwrap().id;
            let key = |child: i32| ObjectKey::parse(&format!("s{n}/{child}.webm")).unwrap();
            for child in 0..12 {
                keep_as_part(&catalog, &key(child), &parent).await;
            }
            let mut workers = tokio::task::JoinSet::new();
            let (other, id) = (catalog.clone(), parent.clone());
            workers.spawn(async move { drop(other.cancel_job(&id, &by()).await.unwrap()) });
            let (other, sync) = (catalog.clone(), all.clone());
            workers.spawn(async move {
                let which = QueueSyncs { parked: true, parent: Some(&sync), ..QueueSyncs::default() };
                other.queue_syncs(which).await.unwrap();
            });
            let other = catalog.clone();
            workers.spawn(async move { other.hurry_jobs(now()).await.unwrap() });
            let (other, id) = (catalog.clone(), parent.clone());
            workers.spawn(async move { drop(other.retry_job(&id, now()).await.unwrap()) });
            let (other, keys) = (catalog.clone(), (0..12).rev().map(key).collect::<Vec<_>>());
            workers.spawn(async move { other.delete(&keys, StoreSet::default(), &by()).await.unwrap() });
            while let Some(ended) = workers.join_next().await {
                ended.unwrap();
            }
            assert_eq!(catalog.get_job(&parent).await.unwrap().unwrap().state, JobState::Done, "{n}");
        }
        assert_eq!(catalog.counts().await.unwrap().recordings, 0);
    }
}

/// PostgreSQL sees what others changed between two statements; here somebody holds the first of them up until then.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_while_syncs_are_queued_stays_parked() {
    for place in Place::all().await {
        let Some(url) = &place.postgres else { continue };
        let catalog = std::sync::Arc::new(place.open().await);
        let key = |name: &str| ObjectKey::parse(&format!("s/{name}.webm")).unwrap();
        keep(&catalog, &recording(&key("parked"), StoreKind::Local), true, None).await.unwrap();
        keep(&catalog, &recording(&key("waits"), StoreKind::Local), false, None).await.unwrap();
        let pool = sqlx::PgPool::connect(url.as_str()).await.unwrap();
        let mut holder = pool.begin().await.unwrap();
        sqlx::query(
            "INSERT INTO jobs (id, kind, session_id, filename, state, attempts, created_at, run_at, leased_until)
             VALUES ('held', 'sync', 's', 'waits.webm', 'open', 0, 0, 0, 0)",
        )
        .execute(&mut *holder)
        .await
        .unwrap();
        let other = catalog.clone();
        let queued = tokio::spawn(async move {
            let which = QueueSyncs { parked: true, ..QueueSyncs::default() };
            other.queue_syncs(which).await.unwrap()
        });
        crate::support::eventually("it is held up", async || {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.unwrap() > 0
        })
        .await;
        catalog.park(&key("parked"), "damaged", &by()).await.unwrap();
        holder.rollback().await.unwrap();
        queued.await.unwrap();
        let row = catalog.get(&key("parked")).await.unwrap().unwrap();
        assert_eq!(row.parked_reason.as_deref(), Some("damaged"));
        assert_eq!(catalog.counts().await.unwrap().by_kind[0], JobTally { open: 1, parked: 1 });
        // Asked for afterwards, it is taken up, and the parked job makes room.
        catalog.queue_syncs(QueueSyncs { parked: true, ..QueueSyncs::default() }).await.unwrap();
        assert_eq!(catalog.get(&key("parked")).await.unwrap().unwrap().parked_reason, None);
        assert_eq!(catalog.counts().await.unwrap().by_kind[0], JobTally { open: 2, parked: 0 });
        pool.close().await;
    }
}

story!(what_a_clock_that_was_ahead_put_off_is_due, clock_was_ahead_on);

async fn clock_was_ahead_on(place: Place) {
    let catalog = place.open().await;
    for name in ["put_off", "leased"] {
        let key = ObjectKey::parse(&format!("s/{name}.webm")).unwrap();
        keep(&catalog, &recording(&key, StoreKind::Local), true, None).await.unwrap();
    }
    let put_off = claim(&catalog).await.unwrap();
    catalog.postpone_job(&put_off, now() + 24 * HOUR, "no").await.unwrap();
    let leased = catalog.claim_job(now(), 24 * HOUR, Work::All).await.unwrap().unwrap();
    assert!(!catalog.pull_in_jobs(now(), now() + 25 * HOUR, now()).await.unwrap(), "not that far");
    assert_eq!(claim(&catalog).await, None);
    assert!(catalog.pull_in_jobs(now() - 2_000_000, now() + 2 * HOUR, now() + HOUR).await.unwrap());
    assert!(!catalog.pull_in_jobs(now(), now() + 2 * HOUR, now()).await.unwrap(), "once");
    assert_eq!(claim(&catalog).await.map(|job| job.id), Some(put_off.id));
    assert_eq!(claim(&catalog).await, None, "who is at it has time to renew");
    let after = catalog.claim_job(now() + 2 * HOUR, HOUR, Work::All).await.unwrap();
    assert!(after.is_some());
    assert!(!catalog.renew_job(&leased, now()).await.unwrap() || after.unwrap().id != leased.id);
}

story!(what_a_store_says_is_kept_whatever_it_is, said_by_a_store_on);

async fn said_by_a_store_on(place: Place) {
    let catalog = place.open().await;
    let key = ObjectKey::parse("s/a.webm").unwrap();
    let found = Recording {
        content_type: "video/\0webm".into(),
        upload_id: "u\0".into(),
        original_filename: Some("a\0.webm".into()),
        ..recording(&key, StoreKind::Local)
    };
    assert_eq!(catalog.adopt(&[found], true, &by()).await.unwrap(), 1);
    let row = catalog.get(&key).await.unwrap().unwrap();
    assert_eq!((row.content_type.as_str(), row.upload_id.as_str()), ("video/webm", "u"));
    let job = claim(&catalog).await.unwrap();
    catalog.keep_resume_point(&job, Some("at\0 1")).await.unwrap();
    catalog.postpone_job(&job, now() - 2_000_000, "it said \0 nothing").await.unwrap();
    let told = catalog.get_job(&job.id).await.unwrap().unwrap();
    assert_eq!(told.last_error.as_deref(), Some("it said  nothing"));
    assert_eq!(claim(&catalog).await.unwrap().resume_point.as_deref(), Some("at 1"));
    catalog.park(&key, "too \0large", &by()).await.unwrap();
    let row = catalog.get(&key).await.unwrap().unwrap();
    assert_eq!(row.parked_reason.as_deref(), Some("too large"));
}

story!(a_parked_sync_ends_with_its_recording, parked_and_gone_on);

async fn parked_and_gone_on(place: Place) {
    let catalog = place.open().await;
    let key = |name: &str| ObjectKey::parse(&format!("s/{name}.webm")).unwrap();
    for name in ["deleted", "lost", "mended", "found"] {
        keep(&catalog, &recording(&key(name), StoreKind::Local), true, None).await.unwrap();
        catalog.park(&key(name), "too large", &by()).await.unwrap();
    }
    let [syncs, others @ ..] = catalog.counts().await.unwrap().by_kind;
    assert_eq!((syncs, others), (JobTally { open: 0, parked: 4 }, [JobTally::default(); 3]));
    let row = async |name: &str| catalog.get(&key(name)).await.unwrap().unwrap();
    entomb(&catalog, &key("deleted"), StoreSet::default()).await;
    assert!(catalog.forget(&row("lost").await, &by()).await.unwrap());
    let (stores, durability) = (StoreSet::only(StoreKind::Local), Durability::Local);
    let before = row("mended").await;
    let mend = Mend { before: &before, stores, durability, sync: true, found: None, detail: "queued" };
    assert!(catalog.mend(mend, &by()).await.unwrap());
    let before = row("found").await;
    let both = StoreSet { supabase: true, local: true };
    let mend = Mend { before: &before, stores: both, sync: false, detail: "it is there", ..mend };
    assert!(catalog.mend(mend, &by()).await.unwrap());

    let all = catalog.list_jobs(&JobQuery { limit: 100, ..JobQuery::default() }).await.unwrap();
    let count = |state: JobState| all.iter().filter(|job| job.state == state).count();
    assert_eq!((count(JobState::Parked), count(JobState::Cancelled)), (0, 4), "{all:?}");
    let open: Vec<_> = all.iter().filter(|job| job.state == JobState::Waiting).collect();
    assert_eq!(open.iter().map(|job| &job.kind).collect::<Vec<_>>(), [&JobKind::Sync(key("mended"))]);
    let deleted = all.iter().find(|job| job.kind == JobKind::Sync(key("deleted"))).unwrap();
    assert_eq!(deleted.last_error.as_deref(), Some("the recording was deleted"));
    let lost = all.iter().find(|job| job.kind == JobKind::Sync(key("lost"))).unwrap();
    assert_eq!(lost.last_error.as_deref(), Some("the recording is lost"));
}

story!(what_is_not_what_was_judged_is_not_forgotten, forgotten_on);

async fn forgotten_on(place: Place) {
    let catalog = place.open().await;
    let key = ObjectKey::parse("s/a.webm").unwrap();
    keep(&catalog, &recording(&key, StoreKind::Local), true, None).await.unwrap();
    let before = catalog.get(&key).await.unwrap().unwrap();
    let both = StoreSet { supabase: true, local: true };
    let digest = ContentDigest::from_bytes([7; 32]);
    assert!(catalog.mark_stored(&key, both, Durability::CloudVerified, digest, &by()).await.unwrap());
    assert!(!catalog.forget(&before, &by()).await.unwrap(), "it was synced meanwhile");
    let after = catalog.get(&key).await.unwrap().unwrap();
    assert_eq!(after.stores, both);
    assert!(catalog.forget(&after, &by()).await.unwrap());
    assert_eq!(catalog.get(&key).await.unwrap(), None);
    assert!(!catalog.forget(&after, &by()).await.unwrap());
}

/// It takes a request of a gateway that was not seen for long, and nothing of one that is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_request_of_a_gateway_that_is_gone_is_taken_over() {
    let Some(url) = postgres::database("keyed requests of a gateway that is gone").await else { return };
    let place = Place { dir: tempfile::tempdir().unwrap(), postgres: Some(url.clone()) };
    let (east, west) = (place.open_as("east").await, place.open_as("west").await);
    let request = RequestKey::new("one".into(), "k".into());
    east.register("", "").await.unwrap();
    assert_eq!(east.begin_request(&request).await.unwrap(), Begun::First);
    let stem = stem(datetime!(2024-12-01 14:30:22 UTC));
    let (name, _) = east.reserve(&session("s"), &stem, 1, "u9", Some(&request)).await.unwrap();
    let take = async |since: i64| west.take_from_gone(&request, since).await.unwrap();
    assert!(!take(now() - HOUR).await, "it has only begun");
    let pool = sqlx::PgPool::connect(url.as_str()).await.unwrap();
    let older = "UPDATE idempotent_requests SET created_at = created_at - 7200000000";
    sqlx::query(older).execute(&pool).await.unwrap();
    assert!(!take(now() - HOUR).await, "its gateway is there");
    sqlx::query("UPDATE gateways SET seen_at = 0").execute(&pool).await.unwrap();
    east.still_here().await.unwrap();
    assert!(!take(now() - HOUR).await, "its gateway is there, still");
    sqlx::query("UPDATE gateways SET seen_at = 0").execute(&pool).await.unwrap();
    assert!(take(now() - HOUR).await);
    assert!(!take(now() - HOUR).await, "once");
    assert_eq!(west.begin_request(&request).await.unwrap(), Begun::Running);
    let key = ObjectKey::new(session("s"), name);
    let left = west.abandoned().await.unwrap();
    assert_eq!(left.iter().map(|one| (&one.key, &one.request)).collect::<Vec<_>>(), [(&key, &None)]);
    assert_eq!((left[0].upload_id.as_str(), east.abandoned().await.unwrap().len()), ("u9", 0));

    // The other one comes back: it neither answers nor gives up what is no longer its own.
    let kept = keep(&east, &recording(&key, StoreKind::Local), false, Some(&request)).await;
    assert!(matches!(kept, Err(CatalogError::RequestLost)), "{kept:?}");
    assert_eq!(east.get(&key).await.unwrap(), None);
    east.forget_request(&request).await.unwrap();
    assert_eq!(east.begin_request(&request).await.unwrap(), Begun::Running);
    let other = recording(&ObjectKey::parse("s/b.webm").unwrap(), StoreKind::Local);
    keep(&west, &other, false, Some(&request)).await.unwrap();
    assert!(matches!(east.begin_request(&request).await.unwrap(), Begun::Answered(_)));
    assert!(!east.take_from_gone(&request, now() + HOUR).await.unwrap(), "it has its answer");

    // What nobody asks for again is forgotten, but not what runs here.
    let (here, there) =
        (RequestKey { key: "l".into(), ..request.clone() }, RequestKey { key: "m".into(), ..request });
    assert_eq!(west.begin_request(&here).await.unwrap(), Begun::First);
    assert_eq!(east.begin_request(&there).await.unwrap(), Begun::First);
    west.expire_requests(now()).await.unwrap();
    assert_eq!(west.begin_request(&here).await.unwrap(), Begun::Running);
    assert_eq!(west.begin_request(&there).await.unwrap(), Begun::First);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_on_one_catalogue_keep_to_their_own_disks() {
    let Some(url) = postgres::database("several gateways on one catalogue").await else { return };
    let place = Place { dir: tempfile::tempdir().unwrap(), postgres: Some(url) };
    let (east, west) = tokio::join!(place.open_as("east"), place.open_as("west"));
    let key = ObjectKey::parse("s/a.webm").unwrap();
    keep(&east, &recording(&key, StoreKind::Local), true, None).await.unwrap();
    assert_eq!(east.get(&key).await.unwrap().unwrap().held_by, None);
    let seen = west.get(&key).await.unwrap().unwrap();
    assert_eq!((seen.held_by, seen.stores.local), (Some(GatewayId("east".into())), true));
    assert_eq!(claim(&west).await, None, "only east has the file");
    let job = claim(&east).await.unwrap();
    // A restart of one leaves the other's lease alone.
    drop(west);
    let west = place.open_as("west").await;
    assert!(east.renew_job(&job, now() + HOUR).await.unwrap());
    entomb(&west, &key, StoreSet { supabase: true, local: true }).await;
    assert_eq!(west.tombstone(&key).await.unwrap().unwrap().held_by, Some(GatewayId("east".into())));
    assert_eq!(claim(&west).await.unwrap().kind, JobKind::Delete(key.clone()));
    assert_eq!(claim(&west).await, None);
    assert_eq!(claim(&east).await.unwrap().kind, JobKind::DeleteLocal(key.clone()));
    east.register("e", "http://east").await.unwrap();
    let peers = west.peers().await.unwrap();
    assert_eq!((peers.len(), peers[0].url.as_str(), peers[0].node.as_str()), (1, "http://east", "e"));
    assert_eq!(east.peers().await.unwrap(), []);
    west.set_fact("f", "1").await.unwrap();
    assert_eq!(east.fact("f").await.unwrap().as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_never_collide() {
    for place in Place::all().await {
        let catalog = place.open().await;
        let others = if place.postgres.is_some() { 3 } else { 0 };
        let mut gateways = vec![catalog];
        for n in 0..others {
            gateways.push(place.open_as(&format!("other-{n}")).await);
        }
        let keys: Vec<ObjectKey> =
            (0..40).map(|n| ObjectKey::parse(&format!("s/{n}.webm")).unwrap()).collect();
        entomb(&gateways[0], &keys[0], StoreSet::only(StoreKind::Supabase)).await;
        gateways[0].entomb(&keys, StoreSet::only(StoreKind::Supabase), &by()).await.unwrap();
        let claims = gateways.iter().cycle().take(60).map(claim);
        let mut ids: Vec<String> =
            futures_util::future::join_all(claims).await.into_iter().flatten().map(|job| job.id).collect();
        ids.sort_unstable();
        let claimed = ids.len();
        ids.dedup();
        assert_eq!((ids.len(), claimed), (40, 40), "each job once, all of them");
    }
}

story!(a_row_is_mended_only_while_it_is_what_was_found, mended_on);

async fn mended_on(place: Place) {
    let catalog = place.open().await;
    let name = ObjectKey::parse("s/a.webm").unwrap();
    let cloud = Recording {
        parked_reason: None,
        ..keep(&catalog, &recording(&name, StoreKind::Supabase), false, None).await.unwrap()
    };
    let before = catalog.get(&name).await.unwrap().unwrap();
    let found = Some(ContentDigest::from_bytes([9; 32]));
    let stores = StoreSet::only(StoreKind::Local);
    let mend =
        Mend { before: &before, stores, durability: Durability::Local, sync: true, found, detail: "gone" };
    assert!(catalog.mend(mend, &by()).await.unwrap());
    let after = catalog.get(&name).await.unwrap().unwrap();
    assert_eq!((after.stores, after.durability, after.sha256), (stores, Durability::Local, cloud.sha256));
    assert!(!catalog.mend(mend, &by()).await.unwrap(), "the row is another by now");

    let jobs = catalog.open_jobs(&name.session, Some(&name.filename)).await.unwrap();
    assert_eq!(jobs.iter().map(|job| job.kind.clone()).collect::<Vec<_>>(), [JobKind::Sync(name.clone())]);
    assert_eq!(catalog.open_jobs(&name.session, None).await.unwrap(), jobs);
    let stores = StoreSet::only(StoreKind::Supabase);
    let back = Mend { before: &after, stores, durability: Durability::Cloud, sync: false, ..mend };
    assert!(catalog.mend(back, &by()).await.unwrap());
    assert!(catalog.open_jobs(&name.session, None).await.unwrap().is_empty(), "nothing here to be sent");

    let query = AuditQuery { action: Some(Action::Repaired), limit: 9, ..AuditQuery::default() };
    let entries = catalog.audit(&query).await.unwrap();
    assert_eq!(entries.len(), 2);
    let first = &entries[1];
    assert_eq!((first.before, first.after, first.detail.as_deref()), (found, cloud.sha256, Some("gone")));

    entomb(&catalog, &ObjectKey::parse("t/b.webm").unwrap(), StoreSet::default()).await;
    assert_eq!(catalog.sessions().await.unwrap(), [session("s"), session("t")]);
}
