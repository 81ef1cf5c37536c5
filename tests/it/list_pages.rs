//! A page of a session is what the whole list has there, at the price of a page.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use recording_gateway::domain::merge::{Listed, StoredObject};
use recording_gateway::domain::page::{PageRequest, Position};
use recording_gateway::domain::{ObjectKey, SessionId, StoreKind};
use recording_gateway::service::Services;
use recording_gateway::spool::SpoolReader;
use recording_gateway::storage::local::LocalStore;
use recording_gateway::storage::pace::Pacer;
use recording_gateway::storage::tiered::TieredStore;
use recording_gateway::storage::{ListScope, ObjectMeta, ObjectStore, OpenObject, Probe, StorageError};
use time::OffsetDateTime;

use crate::support::cloud::rows;
use crate::support::fake_supabase::{FakeSupabase, Fault, Matcher};
use crate::support::gateway::Gateway;
use crate::support::media::webm;
use crate::support::{aged, eventually};

fn session(text: &str) -> SessionId {
    SessionId::parse(text).unwrap()
}

async fn whole(services: &Services, id: &str) -> Vec<Listed> {
    services.merged(&ListScope::Session(session(id))).await.unwrap().rows
}

/// The session in pages, with what happens after each.
async fn paged(
    services: &Services,
    id: &str,
    limit: usize,
    mut after_each: impl AsyncFnMut(),
) -> Vec<Listed> {
    let (mut all, mut page) = (Vec::new(), PageRequest { limit, after: None });
    loop {
        let answer = services.list_recordings(&session(id), &page).await.unwrap();
        all.extend(answer.rows);
        let Some(cursor) = answer.next_cursor else { return all };
        page.after = Some(Position::from_cursor(&cursor).unwrap());
        after_each().await;
    }
}

/// The whole list, which its pages are.
async fn checked(services: &Services, id: &str) -> Vec<Listed> {
    let whole = whole(services, id).await;
    for limit in [1, 2, 1000] {
        let total =
            services.list_recordings(&session(id), &PageRequest { limit, after: None }).await.unwrap().total;
        assert_eq!(total, whole.len(), "{id}");
        assert_eq!(paged(services, id, limit, async || {}).await, whole, "{id} by {limit}");
    }
    whole
}

/// Their directories are old enough for what they look like to be believed, and were listed since.
async fn believed(services: &Services, ids: &[&str]) {
    for id in ids {
        eventually("its directory is old enough to be believed", async || {
            let changed = services.stores.fallback().changed_at(&session(id)).await.unwrap().unwrap();
            OffsetDateTime::now_utc() - changed > time::Duration::seconds(4)
        })
        .await;
        checked(services, id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_the_files_a_page_shows_it() {
    let gateway = Gateway::start(&[("sync.interval", "60s")]).await;
    let services = &gateway.services;
    let ids = ["dropped", "removed", "truncated", "grown", "deleted", "uploaded"];
    let dir = |id: &str| gateway.recordings_dir().join(id);
    for id in ids {
        for seed in 0..3 {
            assert_eq!(gateway.upload(id, webm(1000, seed)).await.0, 200);
        }
    }
    let by_hand = dir("grown").join("by hand.webm");
    std::fs::write(&by_hand, webm(500, 9)).unwrap();
    assert_eq!(checked(services, "grown").await.len(), 4, "it is seen before it has a row");
    aged(&by_hand);
    assert_eq!(services.adopt_local().await.unwrap(), 1);
    believed(services, &ids).await;

    let newest = async |id: &str| whole(services, id).await.remove(0).recording.key;
    std::fs::write(dir("dropped").join("by hand.webm"), b"dropped").unwrap();
    let removed = newest("removed").await;
    std::fs::remove_file(dir("").join(removed.to_string())).unwrap();
    let truncated = newest("truncated").await;
    let file = dir("").join(truncated.to_string());
    std::fs::File::options().write(true).open(file).unwrap().set_len(10).unwrap();
    std::fs::write(&by_hand, webm(700, 9)).unwrap();
    let deleted = newest("deleted").await;
    services.delete_recording(&deleted).await.unwrap();
    gateway.upload("uploaded", webm(1000, 7)).await;

    let list = checked(services, "dropped").await;
    assert_eq!((list.len(), list[0].recording.key.filename.as_str()), (4, "by hand.webm"));
    for (id, key) in [("removed", &removed), ("truncated", &truncated)] {
        let list = checked(services, id).await;
        let missing: Vec<_> = list.iter().filter(|row| row.missing).map(|row| &row.recording.key).collect();
        assert_eq!((list.len(), missing), (3, vec![key]), "{id}");
    }
    let list = checked(services, "grown").await;
    assert_eq!((list.len(), list[0].recording.size_bytes), (4, 700), "it stands where it is new");
    let list = checked(services, "deleted").await;
    assert!(list.len() == 2 && list.iter().all(|row| row.recording.key != deleted));
    assert_eq!(checked(services, "uploaded").await.len(), 4);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_and_goes_between_pages_shifts_nothing() {
    let gateway = Gateway::start(&[("sync.interval", "60s")]).await;
    for seed in 0..6 {
        gateway.upload("s", webm(1000, seed)).await;
    }
    let before = whole(&gateway.services, "s").await;
    let mut shown = before.iter();
    let seen = paged(&gateway.services, "s", 2, async || {
        // One that was shown goes, and one comes that is newer than all.
        gateway.services.delete_recording(&shown.next().unwrap().recording.key).await.unwrap();
        gateway.upload("s", webm(2000, 9)).await;
    })
    .await;
    assert_eq!(seen, before);
    // A cursor of another list has its place in this one.
    for (name, left) in [("a/x", 0), ("s/", 0), ("s0/x", 6), ("t/x", 6)] {
        let list = whole(&gateway.services, "s").await;
        let after = Position { name: name.into(), ..list[0].position() };
        let expected = list.iter().filter(|row| row.position() < after).count();
        assert_eq!(expected, if left == 0 { list.len() - 1 } else { left }, "{name}");
        let page = PageRequest { limit: 9, after: Some(after) };
        let answer = gateway.services.list_recordings(&session("s"), &page).await.unwrap();
        assert_eq!((answer.rows.len(), answer.total), (expected, list.len()), "{name}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_costs_a_page() {
    let gateway = Gateway::start(&[("sync.interval", "60s")]).await;
    for seed in 0..6 {
        gateway.upload("s", webm(1000, seed)).await;
    }
    let store = LocalStore::open(gateway.recordings_dir(), gateway.services.spool.clone()).unwrap();
    let zero = AtomicUsize::default;
    let disk = Arc::new(Counted { store, lists: zero(), names: zero(), heads: zero() });
    let mut services = gateway.services.clone();
    let patience = Duration::from_secs(1);
    services.stores =
        Arc::new(TieredStore::new(None, disk.clone(), patience, (1, patience), patience, Pacer::new(0)));
    let page = async || {
        disk.forget();
        services.list_recordings(&session("s"), &PageRequest { limit: 2, after: None }).await.unwrap().total
    };
    believed(&services, &["s"]).await;
    assert_eq!(
        (page().await, disk.counts()),
        (6, [0, 0, 3]),
        "only the files on the page, and on the next one's top"
    );
    services.find_newest(&session("s")).await.unwrap();
    assert_eq!(disk.counts()[..2], [0, 0]);
    gateway.upload("s", webm(1000, 7)).await;
    assert_eq!((page().await, disk.counts()), (7, [0, 1, 3]), "a directory that changed is read by name");
    std::fs::write(gateway.recordings_dir().join("s/by hand.webm"), b"dropped").unwrap();
    assert_eq!((page().await, disk.counts()), (8, [1, 1, 0]), "what has no row makes it look at everything");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_cloud_is_left_alone_the_pages_are_the_list() {
    let cloud = FakeSupabase::start().await;
    let gateway =
        Gateway::with_cloud_and(&cloud, &[("sync.interval", "60s"), ("supabase.breaker_pause", "60s")]).await;
    for seed in 0..3 {
        gateway.upload("s", webm(1000, seed)).await;
    }
    cloud.fault(Fault::expired_key(), Matcher::any());
    gateway.upload("s", webm(1000, 3)).await;
    assert_eq!(rows(&gateway, "s").await.len(), 4, "the last time that the cloud is asked");
    let asked = cloud.requests().len();
    let list = checked(&gateway.services, "s").await;
    assert_eq!(list.iter().filter(|row| row.recording.stores.supabase).count(), 3, "it is believed");
    let answer = gateway.get_json("/recordings/s/list?limit=1").await;
    assert_eq!((&answer["degraded"], &answer["total_count"]), (&true.into(), &4.into()), "{answer}");
    assert_eq!(answer["unavailable_stores"], serde_json::json!(["supabase"]));
    assert_eq!(cloud.requests().len(), asked, "it is left alone");
    cloud.clear_faults();
    gateway.stop().await;
}

/// The local store, with how often it was asked for a list, for names, and for how many single files.
struct Counted {
    store: LocalStore,
    lists: AtomicUsize,
    names: AtomicUsize,
    heads: AtomicUsize,
}

impl Counted {
    fn counts(&self) -> [usize; 3] {
        [&self.lists, &self.names, &self.heads].map(|count| count.load(Ordering::SeqCst))
    }

    fn forget(&self) {
        for count in [&self.lists, &self.names, &self.heads] {
            count.store(0, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl ObjectStore for Counted {
    fn kind(&self) -> StoreKind {
        StoreKind::Local
    }

    async fn put(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        size: Option<u64>,
        meta: &ObjectMeta,
    ) -> Result<(), StorageError> {
        self.store.put(key, source, size, meta).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<StoredObject>, StorageError> {
        self.heads.fetch_add(1, Ordering::SeqCst);
        self.store.head(key).await
    }

    async fn heads(&self, keys: &[ObjectKey]) -> Result<Vec<StoredObject>, StorageError> {
        self.heads.fetch_add(keys.len(), Ordering::SeqCst);
        self.store.heads(keys).await
    }

    async fn open(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<OpenObject>, StorageError> {
        self.store.open(key, range).await
    }

    async fn list(&self, scope: &ListScope) -> Result<Vec<StoredObject>, StorageError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.store.list(scope).await
    }

    async fn names(&self, session: &SessionId) -> Result<Vec<ObjectKey>, StorageError> {
        self.names.fetch_add(1, Ordering::SeqCst);
        self.store.names(session).await
    }

    async fn changed_at(&self, session: &SessionId) -> Result<Option<OffsetDateTime>, StorageError> {
        self.store.changed_at(session).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<bool, StorageError> {
        self.store.delete(key).await
    }

    async fn rename(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), StorageError> {
        self.store.rename(from, to).await
    }

    async fn probe(&self) -> Result<Probe, StorageError> {
        self.store.probe().await
    }
}
