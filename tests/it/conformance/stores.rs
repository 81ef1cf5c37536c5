//! What every store promises. Each test asks the memory store, the local one and Supabase the same questions.

use std::ops::Range;
use std::time::Duration;

use futures_util::StreamExt;
use recording_gateway::domain::{ContentDigest, ObjectKey, SessionId, StoreKind};
use recording_gateway::spool::{Spool, SpoolReader};
use recording_gateway::storage::local::LocalStore;
use recording_gateway::storage::memory::MemoryStore;
use recording_gateway::storage::supabase::{Access, SupabaseStore};
use recording_gateway::storage::{Kind, ListScope, ObjectMeta, ObjectStore, Outcome};

use crate::support::fake_supabase::{DEFAULT_BUCKET, FakeSupabase};
use crate::support::media::{sha256, webm};

/// The stores under test, on a directory and a cloud of their own.
struct Stores {
    all: Vec<(&'static str, Box<dyn ObjectStore>)>,
    spool: Spool,
    _dir: tempfile::TempDir,
    _cloud: FakeSupabase,
}

async fn stores() -> Stores {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path().join(".spool")).unwrap();
    let cloud = FakeSupabase::start().await;
    let access = Access {
        base: url::Url::parse(&cloud.url()).unwrap(),
        key: cloud.service_key(),
        bucket: DEFAULT_BUCKET.to_owned(),
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(20),
        question_timeout: Duration::from_secs(20),
        resumable_from: 1,
        patch_bytes: 1_000_000,
    };
    let all: Vec<(&'static str, Box<dyn ObjectStore>)> = vec![
        ("memory", Box::new(MemoryStore::new(StoreKind::Supabase))),
        ("local", Box::new(LocalStore::open(dir.path().to_owned(), spool.clone()).unwrap())),
        ("supabase", Box::new(SupabaseStore::new(access, true, None).unwrap())),
    ];
    Stores { all, spool, _dir: dir, _cloud: cloud }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn meta(bytes: &[u8]) -> ObjectMeta {
    ObjectMeta {
        content_type: "video/webm".into(),
        upload_id: "upload 1".into(),
        sha256: ContentDigest::from_hex(&sha256(bytes)),
        original_filename: Some("Gespräch März.webm".into()),
    }
}

async fn finished(spool: &Spool, bytes: &[u8]) -> SpoolReader {
    let mut writer = spool.create(&uuid::Uuid::now_v7().to_string()).unwrap();
    writer.push(bytes).await.unwrap();
    writer.finish().await.unwrap().publish()
}

async fn put(stores: &Stores, store: &dyn ObjectStore, at: &str, bytes: &[u8]) {
    let source = finished(&stores.spool, bytes).await;
    store.put(&key(at), &source, Some(bytes.len() as u64), &meta(bytes)).await.unwrap();
}

async fn read(store: &dyn ObjectStore, at: &str, range: Option<Range<u64>>) -> Option<Vec<u8>> {
    let mut opened = store.open(&key(at), range).await.unwrap()?;
    let mut all = Vec::new();
    while let Some(bytes) = opened.bytes.next().await {
        all.extend_from_slice(&bytes.unwrap());
    }
    Some(all)
}

async fn keys(store: &dyn ObjectStore, scope: ListScope) -> Vec<String> {
    let mut keys: Vec<String> = store.list(&scope).await.unwrap().iter().map(|o| o.key.to_string()).collect();
    keys.sort();
    keys
}

fn session(text: &str) -> ListScope {
    ListScope::Session(SessionId::parse(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_is_there_whole() {
    let stores = stores().await;
    for (name, store) in &stores.all {
        for (i, len) in [1, 1000, 300_000, 5_000_000].into_iter().enumerate() {
            let (bytes, at) = (webm(len, i as u64), format!("s/take{i}.webm"));
            put(&stores, &**store, &at, &bytes).await;
            let object = store.head(&key(&at)).await.unwrap().unwrap_or_else(|| panic!("{name} {at}"));
            assert_eq!((object.key.to_string(), object.size_bytes), (at.clone(), len as u64), "{name}");
            assert_eq!(object.content_type.as_deref(), Some("video/webm"), "{name}");
            assert!(read(&**store, &at, None).await.unwrap() == bytes, "{name} {len}");
            // Plain files carry their bytes and nothing else.
            if *name != "local" {
                let expected = meta(&bytes);
                assert_eq!(object.sha256, expected.sha256, "{name}");
                assert_eq!(object.upload_id, Some(expected.upload_id), "{name}");
                assert_eq!(object.original_filename, expected.original_filename, "{name}");
            }
        }
        store.probe().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_range_within_it_can_be_read() {
    let stores = stores().await;
    let bytes = webm(300_000, 1);
    for (name, store) in &stores.all {
        put(&stores, &**store, "s/a.webm", &bytes).await;
        for range in [0..1, 0..300_000, 299_999..300_000, 1000..200_000, 0..0, 500..500, 300_000..300_000] {
            let part = read(&**store, "s/a.webm", Some(range.clone())).await.unwrap();
            assert!(part == bytes[range.start as usize..range.end as usize], "{name} {range:?}");
            let opened = store.open(&key("s/a.webm"), Some(range)).await.unwrap().unwrap();
            assert_eq!(opened.object.size_bytes, 300_000, "{name}: the size is of the whole");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_followed_while_it_grows() {
    let stores = stores().await;
    let bytes = webm(6_000_000, 1);
    for (name, store) in &stores.all {
        for (at, known) in [("s/known.webm", Some(6_000_000)), ("s/unknown.webm", None)] {
            let mut writer = stores.spool.create(&uuid::Uuid::now_v7().to_string()).unwrap();
            let source = writer.reader();
            let (at, about) = (key(at), meta(&bytes));
            let writing = async {
                for piece in bytes.chunks(700_000) {
                    writer.push(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
                let spooled = writer.finish().await.unwrap();
                assert!(store.head(&at).await.unwrap().is_none(), "{name}: nothing before the clean end");
                spooled.publish();
            };
            let (stored, ()) = tokio::join!(store.put(&at, &source, known, &about), writing);
            stored.unwrap_or_else(|error| panic!("{name} {at}: {error:?}"));
            assert!(read(&**store, &at.to_string(), None).await.unwrap() == bytes, "{name} {at}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_source_leaves_nothing() {
    let stores = stores().await;
    let bytes = webm(6_000_000, 1);
    for (name, store) in &stores.all {
        for (known, whole) in [(Some(6_000_000), true), (None, true), (Some(6_000_000), false), (None, false)]
        {
            let mut writer = stores.spool.create(&uuid::Uuid::now_v7().to_string()).unwrap();
            let source = writer.reader();
            let (at, about) = (key("s/a.webm"), meta(&bytes));
            let writing = async {
                writer.push(&bytes[..if whole { bytes.len() } else { 4_000_000 }]).await.unwrap();
                // All bytes are on the disk, and still it is not an end.
                if whole { drop(writer.finish().await.unwrap()) } else { drop(writer) }
            };
            let (stored, ()) = tokio::join!(store.put(&at, &source, known, &about), writing);
            let error = stored.expect_err(name);
            assert_eq!(
                (error.kind, error.outcome),
                (Kind::SourceGone, Outcome::NotApplied),
                "{name}: {error:?}"
            );
            assert!(store.head(&at).await.unwrap().is_none(), "{name}");
            assert!(store.list(&ListScope::Everything).await.unwrap().is_empty(), "{name}");
        }
    }
    assert_eq!(std::fs::read_dir(stores.spool.dir()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_key_is_not_overwritten() {
    let stores = stores().await;
    for (name, store) in &stores.all {
        let first = webm(2000, 1);
        put(&stores, &**store, "s/a.webm", &first).await;
        for len in [2000, 5_000_000] {
            let second = webm(len, 2);
            let source = finished(&stores.spool, &second).await;
            let error = store.put(&key("s/a.webm"), &source, None, &meta(&second)).await.expect_err(name);
            assert_eq!(
                (error.kind, error.outcome),
                (Kind::AlreadyExists, Outcome::NotApplied),
                "{name}: {error:?}"
            );
            assert!(read(&**store, "s/a.webm", None).await.unwrap() == first, "{name}");
            // The source is still good for another name.
            let other = key(&format!("s/b{len}.webm"));
            store.put(&other, &source, None, &meta(&second)).await.unwrap();
            assert!(read(&**store, &other.to_string(), None).await.unwrap() == second, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_keep_to_their_scope() {
    let stores = stores().await;
    for (name, store) in &stores.all {
        // Sessions that differ in case, or of which one begins as the other, are strangers.
        for at in ["s/a.webm", "s/b.webm", "s2/a.webm", "S/a.webm", "t-1/x.y.z"] {
            put(&stores, &**store, at, at.as_bytes()).await;
        }
        assert_eq!(keys(&**store, session("s")).await, ["s/a.webm", "s/b.webm"], "{name}");
        assert_eq!(keys(&**store, session("S")).await, ["S/a.webm"], "{name}");
        assert_eq!(keys(&**store, session("nobody")).await, [""; 0], "{name}");
        let mut names = store.names(&SessionId::parse("s").unwrap()).await.unwrap();
        names.sort();
        assert_eq!(names, [key("s/a.webm"), key("s/b.webm")], "{name}");
        assert!(store.names(&SessionId::parse("nobody").unwrap()).await.unwrap().is_empty(), "{name}");
        let some = [key("s/b.webm"), key("s/no.webm"), key("nobody/a.webm"), key("s2/a.webm")];
        let there = [store.head(&some[0]).await.unwrap(), store.head(&some[3]).await.unwrap()];
        assert_eq!(store.heads(&some).await.unwrap(), there.map(Option::unwrap), "{name}");
        let all = ["S/a.webm", "s/a.webm", "s/b.webm", "s2/a.webm", "t-1/x.y.z"];
        assert_eq!(keys(&**store, ListScope::Everything).await, all, "{name}");
        for object in store.list(&ListScope::Everything).await.unwrap() {
            assert_eq!(object.size_bytes, object.key.to_string().len() as u64, "{name}");
            let age = time::OffsetDateTime::now_utc() - object.modified_at;
            assert!(age < time::Duration::minutes(2) && age > -time::Duration::minutes(2), "{name}: {age}");
            let head = store.head(&object.key).await.unwrap().unwrap();
            assert_eq!(
                (head.size_bytes, head.modified_at),
                (object.size_bytes, object.modified_at),
                "{name}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_is_gone() {
    let stores = stores().await;
    for (name, store) in &stores.all {
        put(&stores, &**store, "s/a.webm", b"one").await;
        put(&stores, &**store, "s/b.webm", b"two").await;
        assert!(store.delete(&key("s/a.webm")).await.unwrap(), "{name}");
        assert!(!store.delete(&key("s/a.webm")).await.unwrap(), "{name}: it was gone already");
        assert!(store.head(&key("s/a.webm")).await.unwrap().is_none(), "{name}");
        assert_eq!(read(&**store, "s/a.webm", None).await, None, "{name}");
        assert_eq!(keys(&**store, session("s")).await, ["s/b.webm"], "{name}");
        // The name can be used again, and the last one leaves no trace of the session.
        put(&stores, &**store, "s/a.webm", b"three").await;
        assert_eq!(read(&**store, "s/a.webm", None).await.unwrap(), b"three", "{name}");
        assert!(
            store.delete(&key("s/a.webm")).await.unwrap() && store.delete(&key("s/b.webm")).await.unwrap()
        );
        assert!(store.list(&ListScope::Everything).await.unwrap().is_empty(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_moves_the_whole_object() {
    let stores = stores().await;
    for (name, store) in &stores.all {
        let bytes = webm(300_000, 1);
        put(&stores, &**store, "s/a.webm", &bytes).await;
        put(&stores, &**store, "s/taken.webm", b"taken").await;
        store.rename(&key("s/a.webm"), &key("t/b.webm")).await.unwrap();
        assert!(store.head(&key("s/a.webm")).await.unwrap().is_none(), "{name}");
        assert!(read(&**store, "t/b.webm", None).await.unwrap() == bytes, "{name}");
        let upload_id = store.head(&key("t/b.webm")).await.unwrap().unwrap().upload_id;
        assert_eq!(upload_id.as_deref(), (*name != "local").then_some("upload 1"), "{name}");
        let error = store.rename(&key("t/b.webm"), &key("s/taken.webm")).await.expect_err(name);
        assert_eq!(error.kind, Kind::AlreadyExists, "{name}");
        assert_eq!(read(&**store, "s/taken.webm", None).await.unwrap(), b"taken", "{name}");
        assert!(read(&**store, "t/b.webm", None).await.unwrap() == bytes, "{name}");
        let error = store.rename(&key("s/nothing.webm"), &key("s/c.webm")).await.expect_err(name);
        assert_eq!(error.kind, Kind::NotFound, "{name}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_absent_is_absent_and_no_error() {
    let stores = stores().await;
    for (name, store) in &stores.all {
        for at in ["s/none.webm", "s/ünïcode ☃.webm", "s/a%2Fb?c#d&e=f+g.webm", "s/..."] {
            // Not every one of these is a legal name; none of them is there.
            let Some(at) = ObjectKey::parse(at) else { continue };
            assert!(store.head(&at).await.unwrap().is_none(), "{name} {at}");
            assert!(store.open(&at, None).await.unwrap().is_none(), "{name} {at}");
            assert!(store.source(&at).await.unwrap().is_none(), "{name} {at}");
            assert!(!store.delete(&at).await.unwrap(), "{name} {at}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_are_kept_or_refused_but_never_mixed_up() {
    let stores = stores().await;
    let longest = "x".repeat(250) + ".webm";
    let odd = [
        "a b.webm",
        "März ☃.webm",
        "100%.webm",
        "%2e%2e.webm",
        "a+b&c=d.webm",
        "x?y#z.webm",
        "~",
        "a'b\"c.webm",
        "CON",
        &longest,
    ];
    for (name, store) in &stores.all {
        let mut kept = Vec::new();
        for filename in odd {
            let (at, bytes) = (format!("s/{filename}"), filename.as_bytes());
            let source = finished(&stores.spool, bytes).await;
            match store.put(&key(&at), &source, Some(bytes.len() as u64), &meta(bytes)).await {
                Ok(()) => {
                    assert_eq!(read(&**store, &at, None).await.unwrap(), bytes, "{name} {at}");
                    kept.push(at);
                }
                Err(error) => {
                    assert_eq!(
                        (error.kind, error.outcome),
                        (Kind::InvalidKey, Outcome::NotApplied),
                        "{name} {at}"
                    );
                    assert!(!key(&at).filename.is_portable(), "{name}: a portable name is taken: {at}");
                }
            }
        }
        kept.sort();
        assert_eq!(keys(&**store, session("s")).await, kept, "{name}");
        assert!(*name == "supabase" || kept.len() == odd.len(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_announced_length_stores_nothing_or_the_true_bytes() {
    let stores = stores().await;
    let bytes = webm(3_000_000, 1);
    for (name, store) in &stores.all {
        for (i, wrong) in [2_999_999, 3_000_001, 10].into_iter().enumerate() {
            let mut writer = stores.spool.create(&uuid::Uuid::now_v7().to_string()).unwrap();
            let (source, at, about) = (writer.reader(), key(&format!("s/a{i}.webm")), meta(&bytes));
            let writing = async {
                writer.push(&bytes).await.unwrap();
                writer.finish().await.unwrap().publish();
            };
            let (stored, ()) = tokio::join!(store.put(&at, &source, Some(wrong), &about), writing);
            match stored {
                Ok(()) => assert!(read(&**store, &at.to_string(), None).await.unwrap() == bytes, "{name}"),
                Err(_) => {
                    assert!(store.head(&at).await.unwrap().is_none(), "{name}: other bytes than were sent")
                }
            }
        }
    }
}
