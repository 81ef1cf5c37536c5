//! Both stores and the catalogue as one list, whatever can be asked.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use recording_gateway::domain::merge::StoredObject;
use recording_gateway::domain::page::PageRequest;
use recording_gateway::domain::{ObjectKey, SessionId, StoreKind, StoreSet};
use recording_gateway::service::{ServiceError, Services};
use recording_gateway::spool::SpoolReader;
use recording_gateway::storage::memory::MemoryStore;
use recording_gateway::storage::pace::Pacer;
use recording_gateway::storage::supabase::{Access, SupabaseStore};
use recording_gateway::storage::tiered::{PrimaryError, TieredStore};
use recording_gateway::storage::{Kind, ListScope, ObjectMeta, ObjectStore, OpenObject, Probe, StorageError};
use serde_json::Value;

use crate::support::cloud::{BUCKET, PATIENT, rows, uploads};
use crate::support::fake_supabase::{Canned, FakeSupabase, Fault, Matcher};
use crate::support::gateway::Gateway;
use crate::support::media::{sha256, webm};
use crate::support::{aged, eventually};

async fn upload(gateway: &Gateway, session: &str, len: usize, seed: u64) -> Value {
    let (status, answer) = gateway.upload(session, webm(len, seed)).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn paths(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["file_path"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_stores_are_one_list() {
    let cloud = FakeSupabase::start().await;
    let gateway =
        Gateway::with_cloud_and(&cloud, &[("sync.keep_local", "true"), ("sync.interval", "60s")]).await;
    let first = upload(&gateway, "s", 1000, 1).await;
    let second = upload(&gateway, "s", 2000, 2).await;
    let kept_fault = cloud.fault(Fault::expired_key(), uploads());
    let third = upload(&gateway, "s", 3000, 3).await;
    kept_fault.remove();
    upload(&gateway, "s2", 500, 4).await;

    let list = gateway.get_json("/recordings/s/list").await;
    assert_eq!((&list["total_count"], &list["degraded"]), (&3.into(), &false.into()));
    assert_eq!(list["unavailable_stores"], serde_json::json!([]));
    let rows = list["recordings"].as_array().unwrap();
    let newest_first: Vec<&str> =
        [&third, &second, &first].iter().map(|answer| answer["file_path"].as_str().unwrap()).collect();
    assert_eq!(paths(rows), newest_first);
    let cloud_url = |path: &Value| {
        format!("{}/storage/v1/object/public/{BUCKET}/{}", cloud.url(), path.as_str().unwrap())
    };
    assert_eq!(rows[2]["public_url"], cloud_url(&first["file_path"]));
    for (row, answer) in [(&rows[0], &third), (&rows[1], &second), (&rows[2], &first)] {
        for field in [
            "file_path",
            "filename",
            "session_id",
            "file_size",
            "sha256",
            "content_type",
            "upload_time",
            "storage_type",
            "public_url",
            "durability",
            "original_filename",
        ] {
            assert_eq!(row[field], answer[field], "{field}: {row}");
        }
        let in_cloud = answer["storage_type"] == "supabase";
        assert_eq!(row["bucket"], if in_cloud { BUCKET.into() } else { Value::Null });
        let info = gateway.get_json(&format!("/recordings/{}", answer["file_path"].as_str().unwrap())).await;
        assert_eq!(info, *row);
    }
    assert_eq!(gateway.get_json("/recordings/s").await, rows[0], "the newest");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_in_both_stores_is_one_row() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.keep_local", "true")]).await;
    cloud.fault(Fault::internal_error(), uploads());
    let answer = upload(&gateway, "s", 5000, 1).await;
    cloud.clear_faults();
    eventually("it is in both", async || rows(&gateway, "s").await[0]["storage_type"] == "supabase").await;
    eventually("the sync is over", async || gateway.services.catalog.counts().await.unwrap().unsynced == 0)
        .await;
    let rows = rows(&gateway, "s").await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["stores"], serde_json::json!(["supabase", "local"]));
    assert_eq!(rows[0]["file_path"], answer["file_path"]);
    assert!(gateway.recordings_dir().join(answer["file_path"].as_str().unwrap()).exists());
    let sessions = gateway.get_json("/recordings").await;
    assert_eq!(
        (&sessions["sessions"][0]["count"], &sessions["sessions"][0]["bytes"]),
        (&1.into(), &5000.into())
    );
    gateway.stop().await;
}

/// Follows the Link headers to the end; returns every row once and checks the pages on the way.
async fn all_pages(gateway: &Gateway, path: &str, field: &str, total: usize) -> Vec<Value> {
    let (mut next, mut all) = (path.to_owned(), Vec::new());
    loop {
        let response = gateway.get(&next).await;
        let link = response.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let page: Value = response.json().await.unwrap();
        assert_eq!(page["total_count"], total, "it counts everything, not the page");
        all.extend(page[field].as_array().unwrap().iter().cloned());
        let Some(cursor) = page["next_cursor"].as_str() else {
            assert_eq!(link, None);
            return all;
        };
        let link = link.expect("a next page has a link");
        next = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned();
        assert!(next.contains(&format!("cursor={cursor}")), "{link}");
        assert!(all.len() <= total, "it does not end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_cover_thousands_exactly_once() {
    let cloud = FakeSupabase::start().await;
    // Their times are those of the cloud's milliseconds, so many are equal.
    for n in 0..2500 {
        cloud.put_object(BUCKET, &format!("big/take{n:04}.webm"), b"x", "video/webm");
        if n % 10 == 0 {
            cloud.put_object(BUCKET, &format!("talk{n:04}/a.webm"), b"yz", "video/webm");
        }
    }
    let gateway = Gateway::with_cloud_and(&cloud, PATIENT).await;
    upload(&gateway, "big", 1000, 1).await;
    for limit in ["", "?limit=1000", "?limit=333"] {
        let rows = all_pages(&gateway, &format!("/recordings/big/list{limit}"), "recordings", 2501).await;
        let distinct: HashSet<&str> = paths(&rows).into_iter().collect();
        assert_eq!((rows.len(), distinct.len()), (2501, 2501), "limit {limit}");
        let times: Vec<&str> = rows.iter().map(|row| row["upload_time"].as_str().unwrap()).collect();
        let at = |text: &str| {
            time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap()
        };
        assert!(times.windows(2).all(|pair| at(pair[0]) >= at(pair[1])), "newest first");
    }
    let sessions = all_pages(&gateway, "/recordings?limit=40", "sessions", 251).await;
    let distinct: HashSet<&str> = sessions.iter().map(|s| s["session_id"].as_str().unwrap()).collect();
    assert_eq!((sessions.len(), distinct.len()), (251, 251));
    let big = sessions.iter().find(|s| s["session_id"] == "big").unwrap();
    assert_eq!((&big["count"], &big["bytes"]), (&2501.into(), &3500.into()));
    assert_eq!(sessions[0], *big, "the session with the newest recording is first");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_past_the_gateway_is_listed_and_served() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.interval", "60s")]).await;
    cloud.put_object(BUCKET, "s/by app.mp4", b"by an app", "video/mp4");
    cloud.put_object(BUCKET, "s/deeper/no recording.mp4", b"x", "video/mp4");
    std::fs::create_dir_all(gateway.recordings_dir().join("s")).unwrap();
    std::fs::write(gateway.recordings_dir().join("s/dropped März.webm"), b"by hand").unwrap();
    std::fs::write(gateway.recordings_dir().join("s/.hidden"), b"x").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", gateway.recordings_dir().join("s/link.webm")).unwrap();

    let list = gateway.get_json("/recordings/s/list").await;
    assert_eq!(list["total_count"], 2, "{list}");
    for (path, store, bytes, content_type) in [
        ("s/by app.mp4", "supabase", &b"by an app"[..], "video/mp4"),
        ("s/dropped März.webm", "local", b"by hand", "video/webm"),
    ] {
        let rows = list["recordings"].as_array().unwrap();
        let row =
            rows.iter().find(|row| row["file_path"] == path).unwrap_or_else(|| panic!("{path} in {list}"));
        assert_eq!((&row["storage_type"], &row["content_type"]), (&store.into(), &content_type.into()));
        assert_eq!(row["file_size"], bytes.len());
        assert_eq!(gateway.bytes(path).await, bytes);
        assert_eq!(gateway.get_json(&format!("/recordings/{path}")).await, *row);
    }
    assert_eq!(gateway.get("/recordings/s/link.webm/content").await.status(), 404);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_cloud_what_is_known_is_listed() {
    for fault in [Fault::bad_gateway(), Fault::BlackHole, Fault::GarbageJson, Fault::HalfBody] {
        let cloud = FakeSupabase::start().await;
        let gateway = Gateway::with_cloud(&cloud).await;
        let known = upload(&gateway, "s", 1000, 1).await;
        cloud.put_object(BUCKET, "s/foreign.webm", b"x", "video/webm");
        cloud.fault(fault.clone(), Matcher::any());
        let kept = upload(&gateway, "s", 2000, 2).await;
        assert_eq!(kept["durability"], "local");
        for path in ["/recordings/s/list", "/recordings"] {
            let response = gateway.get(path).await;
            assert_eq!(response.status(), 200, "{fault:?}");
            let list: Value = response.json().await.unwrap();
            assert_eq!(list["degraded"], true, "{fault:?}: {list}");
            assert_eq!(list["unavailable_stores"], serde_json::json!(["supabase"]));
            assert_eq!(list["total_count"], if path == "/recordings" { 1 } else { 2 });
        }
        let rows = rows(&gateway, "s").await;
        assert_eq!(paths(&rows), [kept["file_path"].as_str().unwrap(), known["file_path"].as_str().unwrap()]);
        assert_eq!(rows[1]["storage_type"], "supabase", "it is believed to have what it had");
        assert!(rows.iter().all(|row| row["missing"] == false));
        let content = gateway
            .get(&format!("/recordings/{}/content?via=proxy", known["file_path"].as_str().unwrap()))
            .await;
        assert_eq!(content.status(), 502, "{fault:?}");
        cloud.clear_faults();
        eventually("all is listed again", async || {
            let list = gateway.get_json("/recordings/s/list").await;
            list["degraded"] == false && list["total_count"] == 3
        })
        .await;
        gateway.stop().await;
    }
}

/// reliability 30
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_cut_short_or_does_not_get_on_hides_nothing_known() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    for seed in 0..4 {
        upload(&gateway, "s", 1000, seed).await;
    }
    cloud.fault(Fault::TruncatedList, Matcher::any().path("/object/list"));
    let rows = rows(&gateway, "s").await;
    assert_eq!(rows.len(), 4, "the catalogue knows them");
    gateway.stop().await;
}

/// A list whose cursors come back to where they were.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_goes_in_a_circle_is_given_up() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::local().await;
    let services = on_other_stores(&gateway, &cloud, MemoryStore::new(StoreKind::Local));
    let page = |next: &str, name: &str| {
        let object = serde_json::json!({"name": name, "metadata": {"size": 1, "mimetype": "video/webm"}});
        let body =
            serde_json::json!({"hasNext": true, "nextCursor": next, "folders": [], "objects": [object]});
        Fault::Status(Canned::json(200, &body))
    };
    for _ in 0..10 {
        for (next, name) in [("A", "s/a.webm"), ("B", "s/b.webm")] {
            cloud.fault(page(next, name), Matcher::any().path("/object/list-v2/").times(1));
        }
    }
    let listing = services.stores.list(&ListScope::Session(SessionId::parse("s").unwrap())).await;
    assert!(matches!(listing.primary, Err(PrimaryError::Failed(error)) if error.kind == Kind::Nonsense));
    assert_eq!(cloud.requests().len(), 3, "the third page brings nothing new");
    // An empty page that is not the last would be asked for ever too.
    cloud.clear_faults();
    let empty = serde_json::json!({"hasNext": true, "nextCursor": "A", "folders": [], "objects": []});
    cloud.fault(Fault::Status(Canned::json(200, &empty)), Matcher::any().path("/object/list-v2/"));
    assert!(services.stores.primary_page(&ListScope::Everything, None).await.is_err());
    gateway.stop().await;
}

/// reliability 4
#[tokio::test(flavor = "multi_thread")]
async fn a_loss_is_not_hidden() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let lost = upload(&gateway, "s", 1000, 1).await;
    let path = lost["file_path"].as_str().unwrap();
    cloud.remove_object(BUCKET, path);
    let rows = rows(&gateway, "s").await;
    assert_eq!(
        (rows.len(), &rows[0]["missing"], &rows[0]["stores"]),
        (1, &true.into(), &serde_json::json!([]))
    );
    assert_eq!(gateway.get(&format!("/recordings/{path}/content?via=proxy")).await.status(), 404);
    // A short object in its place is no copy of it.
    cloud.put_object(BUCKET, path, b"short", "video/webm");
    assert_eq!(crate::support::cloud::rows(&gateway, "s").await[0]["missing"], true);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_list_does_not_make_recordings_missing() {
    use crate::support::fake_supabase::{Policy, Right};
    let cloud = FakeSupabase::start().await;
    cloud.allow(Policy {
        role: "anon".into(),
        bucket: BUCKET.into(),
        key_prefix: String::new(),
        rights: vec![Right::Insert],
    });
    let anon = cloud.anon_key();
    let mut settings = crate::support::gateway::cloud_settings(&cloud);
    settings.extend([("supabase.key".to_owned(), anon), ("supabase.public".to_owned(), "true".to_owned())]);
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), settings).await;
    let hidden =
        |c: &FakeSupabase| c.requests().iter().any(|r| r.path.contains("/bucket/") && r.status.is_some());
    cloud.wait_until("it asked for the bucket, which is hidden too", crate::support::PATIENCE, hidden).await;
    let answer = upload(&gateway, "s", 1000, 1).await;
    assert_eq!(answer["durability"], "cloud", "{answer}");
    let list = gateway.get_json("/recordings/s/list").await;
    assert_eq!(list["degraded"], false, "{list}");
    assert!(gateway.bytes(answer["file_path"].as_str().unwrap()).await == webm(1000, 1));
    let rows = rows(&gateway, "s").await;
    assert_eq!((rows.len(), &rows[0]["missing"]), (1, &false.into()), "{rows:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_changes_nothing() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.interval", "60s")]).await;
    upload(&gateway, "s", 1000, 1).await;
    upload(&gateway, "s", 6_000_000, 2).await;
    cloud.fault(Fault::internal_error(), uploads());
    let kept = upload(&gateway, "s", 300_000, 3).await;
    let before = gateway.get_json("/recordings/s/list").await;
    let sessions = gateway.get_json("/recordings").await;
    let gateway = gateway.restart().await;
    assert_eq!(gateway.get_json("/recordings/s/list").await["recordings"], before["recordings"]);
    assert_eq!(gateway.get_json("/recordings").await["sessions"], sessions["sessions"]);
    assert!(gateway.bytes(kept["file_path"].as_str().unwrap()).await == webm(300_000, 3));
    cloud.clear_faults();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_catalogue_is_rebuilt_from_both_stores() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.interval", "60s")]).await;
    let in_cloud = upload(&gateway, "s", 40_000, 1).await;
    let large = upload(&gateway, "s", 6_000_000, 2).await;
    cloud.put_object(BUCKET, "t/foreign.webm", b"foreign", "video/webm");
    cloud.fault(Fault::internal_error(), uploads());
    let kept = upload(&gateway, "s", 50_000, 3).await;
    let before = rows(&gateway, "s").await;
    cloud.clear_faults();
    let dir = gateway.stop().await;
    std::fs::remove_dir_all(dir.path().join("recordings/.catalog")).unwrap();
    aged(&dir.path().join("recordings").join(kept["file_path"].as_str().unwrap()));

    let mut settings = crate::support::gateway::cloud_settings(&cloud);
    settings.push(("sync.interval".into(), "1s".into()));
    let gateway = Gateway::start_in(dir, settings).await;
    let rebuilt = async || gateway.services.catalog.counts().await.unwrap().recordings == 3;
    eventually("every recording of ours has a row again", rebuilt).await;
    // The rows alone, as if the cloud were away.
    let row = async |path: &str| {
        gateway
            .services
            .catalog
            .get(&recording_gateway::domain::ObjectKey::parse(path).unwrap())
            .await
            .unwrap()
            .unwrap()
    };
    let found = row(in_cloud["file_path"].as_str().unwrap()).await;
    assert_eq!(found.sha256.unwrap().to_string(), sha256(&webm(40_000, 1)));
    assert_eq!(found.original_filename.as_deref(), Some("talk.webm"));
    assert!(!found.upload_id.is_empty() && found.stores.supabase && !found.stores.local);
    let found = row(large["file_path"].as_str().unwrap()).await;
    assert_eq!((found.size_bytes, found.original_filename.as_deref()), (6_000_000, Some("talk.webm")));
    assert_eq!(rows(&gateway, "t").await.len(), 1, "what others put there is listed without a row");
    // What was only here goes to the cloud as before.
    let path = kept["file_path"].as_str().unwrap();
    eventually("what was kept is synced", async || {
        cloud.object(BUCKET, path).is_some_and(|o| o.bytes == webm(50_000, 3))
    })
    .await;
    eventually("and is a recording as the others", async || {
        let after = rows(&gateway, "s").await;
        after.len() == before.len() && after.iter().all(|row| row["storage_type"] == "supabase")
    })
    .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sessions_of_a_large_bucket_are_listed_without_reading_all_of_it() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[PATIENT, &[("sync.interval", "60s")]].concat()).await;
    eventually("the bucket was taken in", async || {
        gateway.services.catalog.fact("bucket_taken_in").await.unwrap().is_some()
    })
    .await;
    upload(&gateway, "big", 1000, 1).await;
    for n in 0..8100 {
        cloud.put_object(BUCKET, &format!("big/take{n:04}.webm"), b"x", "video/webm");
    }
    for n in 0..20 {
        cloud.put_object(BUCKET, &format!("alone{n:02}/a.webm"), b"yz", "video/webm");
        cloud.put_object(BUCKET, &format!("alone{n:02}/b.webm"), b"yz", "video/webm");
    }
    cloud.put_object(BUCKET, "deep/er/no recording.webm", b"x", "video/webm");
    cloud.put_object(BUCKET, "known/by an app.webm", b"abc", "video/webm");
    std::fs::create_dir_all(gateway.recordings_dir().join("known")).unwrap();
    std::fs::write(gateway.recordings_dir().join("known/by hand.webm"), b"by hand").unwrap();
    upload(&gateway, "known", 2000, 2).await;

    cloud.forget_requests();
    let page = gateway.get_json("/recordings?limit=5").await;
    assert_eq!((&page["total_count"], &page["degraded"]), (&22.into(), &false.into()));
    let ids: Vec<&str> =
        page["sessions"].as_array().unwrap().iter().map(|s| s["session_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["known", "alone19", "alone18", "alone17", "alone16"], "newest first");
    let is_list = |r: &crate::support::fake_supabase::SeenRequest| r.path.contains("/object/list-v2/");
    let asked = cloud.requests().iter().filter(|r| is_list(r)).count();
    // Eight pages to learn that it is large, its folders, 21 folders without rows, and the known one on the page.
    assert_eq!(asked, 8 + 1 + 21 + 1, "the large session is not on the page and is not read");

    let sessions = all_pages(&gateway, "/recordings?limit=7", "sessions", 22).await;
    let of = |id: &str| {
        let found: Vec<_> = sessions.iter().filter(|s| s["session_id"] == id).collect();
        assert_eq!(found.len(), 1, "{id}");
        (found[0]["count"].as_u64().unwrap(), found[0]["bytes"].as_u64().unwrap())
    };
    assert_eq!((of("big"), of("known"), of("alone00")), ((8101, 9100), (3, 2010), (2, 4)));

    // When the cloud goes away between, what is known is told.
    cloud.fault(Fault::bad_gateway(), Matcher::any().path("/object/list-v2/").skip(9));
    let page = gateway.get_json("/recordings?limit=1").await;
    assert_eq!((&page["degraded"], &page["sessions"][0]["session_id"]), (&true.into(), &"known".into()));
    assert_eq!(page["sessions"][0]["count"], 2, "the row and the file here");
    cloud.clear_faults();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_in_stays_when_the_rest_cannot_be_asked_for() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.interval", "60s")]).await;
    let mut answers = Vec::new();
    for seed in 0..3 {
        answers.push(upload(&gateway, "s", 1000, seed).await);
    }
    let dir = gateway.stop().await;
    std::fs::remove_dir_all(dir.path().join("recordings/.catalog")).unwrap();
    // One object that nobody gets to see.
    let stubborn = answers[1]["filename"].as_str().unwrap();
    let fault = cloud.fault(Fault::internal_error(), Matcher::any().path(stubborn));
    let settings = crate::support::gateway::cloud_settings(&cloud);
    let gateway = Gateway::start_in(dir, settings).await;
    let rows = async || gateway.services.catalog.counts().await.unwrap().recordings;
    eventually("the others have rows again", async || rows().await == 2).await;
    assert!(gateway.services.catalog.fact("bucket_taken_in").await.unwrap().is_none());
    fault.remove();
    eventually("it has one too, once it can be seen", async || rows().await == 3).await;
    gateway.stop().await;
}

/// A disk with one directory that its gateway may not read.
struct Locked(MemoryStore);

impl Locked {
    fn may_read(&self, session: &SessionId) -> Result<(), StorageError> {
        let refused = || StorageError::disk(std::io::ErrorKind::PermissionDenied.into(), "cannot look");
        if session.as_str() == "locked" { Err(refused()) } else { Ok(()) }
    }
}

#[async_trait]
impl ObjectStore for Locked {
    fn kind(&self) -> StoreKind {
        StoreKind::Local
    }

    async fn put(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        known_size: Option<u64>,
        meta: &ObjectMeta,
    ) -> Result<(), StorageError> {
        self.0.put(key, source, known_size, meta).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<StoredObject>, StorageError> {
        self.may_read(&key.session)?;
        self.0.head(key).await
    }

    async fn open(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<OpenObject>, StorageError> {
        self.may_read(&key.session)?;
        self.0.open(key, range).await
    }

    async fn list(&self, scope: &ListScope) -> Result<Vec<StoredObject>, StorageError> {
        if let ListScope::Session(session) = scope {
            self.may_read(session)?;
        }
        self.0.list(scope).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<bool, StorageError> {
        self.0.delete(key).await
    }

    async fn rename(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), StorageError> {
        self.0.rename(from, to).await
    }

    async fn probe(&self) -> Result<Probe, StorageError> {
        self.0.probe().await
    }
}

/// The gateway's use cases with another local disk, and the cloud that it does not have.
fn on_other_stores(gateway: &Gateway, cloud: &FakeSupabase, disk: impl ObjectStore + 'static) -> Services {
    let soon = Duration::from_secs(10);
    let access = Access {
        base: url::Url::parse(&cloud.url()).unwrap(),
        key: cloud.service_key(),
        bucket: BUCKET.to_owned(),
        connect_timeout: soon,
        idle_timeout: soon,
        question_timeout: soon,
        resumable_from: 1_000_000,
        patch_bytes: 1_000_000,
    };
    let bucket: Arc<dyn ObjectStore> = Arc::new(SupabaseStore::new(access, true, None).unwrap());
    let stores = TieredStore::new(Some(bucket), Arc::new(disk), soon, (3, soon), soon, Pacer::new(0));
    Services { stores: Arc::new(stores), ..gateway.services.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_read_keeps_nothing_in_the_bucket_from_being_known() {
    let cloud = FakeSupabase::start().await;
    for (key, upload) in [("locked/a.webm", "u1"), ("open/b.webm", "u2")] {
        let sent = serde_json::json!({"upload_id": upload, "sha256": sha256(&webm(1000, 1))});
        cloud.put_object_with(BUCKET, key, &webm(1000, 1), "video/webm", sent);
    }
    let gateway = Gateway::local().await;
    let services = on_other_stores(&gateway, &cloud, Locked(MemoryStore::new(StoreKind::Local)));
    assert_eq!(services.adopt_cloud().await.unwrap(), None, "not everything was asked");
    assert_eq!(services.catalog.counts().await.unwrap().recordings, 2);
    assert_eq!(services.adopt_cloud().await.unwrap(), Some(0));

    let locked = SessionId::parse("locked").unwrap();
    let page = PageRequest { limit: 10, after: None };
    let page = services.list_recordings(&locked, &page).await.unwrap();
    assert_eq!((page.rows.len(), page.unavailable), (1, vec![StoreKind::Local]));
    let row = &page.rows[0];
    assert_eq!((row.missing, row.recording.stores), (false, StoreSet::only(StoreKind::Supabase)));
    assert!(!services.find(&row.recording.key).await.unwrap().missing);
    assert_eq!(services.find_newest(&locked).await.unwrap().recording.key, row.recording.key);
    // What cannot be seen cannot be called gone.
    let unknown = ObjectKey::parse("locked/c.webm").unwrap();
    assert!(matches!(services.find(&unknown).await, Err(ServiceError::Disk(_))));
    assert!(matches!(services.delete_session(&locked).await, Err(ServiceError::Disk(_))));
    assert_eq!(cloud.keys(BUCKET).len(), 2);
    gateway.stop().await;
}
