//! What was kept here gets to the cloud: compared first, in order, once, and also what operators drop in.

use std::path::PathBuf;
use std::time::Duration;

use recording_gateway::catalog::{JobQuery, Work};
use recording_gateway::domain::{ObjectKey, SessionId};
use recording_gateway::service::rebuild::Seen;

use crate::support::cloud::{BUCKET, PATIENT, reaches_the_bucket, rows, seen_uploads, uploads};
use crate::support::fake_supabase::{FakeSupabase, Fault, Matcher};
use crate::support::gateway::{Gateway, cloud_settings};
use crate::support::media::{sha256, webm};
use crate::support::{aged, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn many_that_were_kept_arrive_when_the_cloud_is_back() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.stop().await;
    let mut kept = Vec::new();
    for seed in 0..12 {
        let bytes = webm(50_000 + seed as usize, seed);
        let (_, answer) = gateway.upload("s", bytes.clone()).await;
        kept.push((answer["file_path"].as_str().unwrap().to_owned(), bytes));
    }
    cloud.restart_on_same_port().await;
    eventually("all are in the bucket and none is here", async || {
        rows(&gateway, "s").await.iter().all(|row| row["stores"] == serde_json::json!(["supabase"]))
    })
    .await;
    assert_eq!(cloud.keys(BUCKET).len(), 12);
    for (path, bytes) in &kept {
        let object = cloud.object(BUCKET, path).unwrap();
        assert!(object.bytes == *bytes, "{path}");
        assert_eq!(object.metadata["sha256"], sha256(bytes));
        assert_eq!(object.metadata["original_filename"], "talk.webm");
    }
    assert!(!gateway.recordings_dir().join("s").exists(), "the empty folder goes too");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_outage_does_not_make_them_wait_long() {
    let cloud = FakeSupabase::start().await;
    // Each failed try doubles the pause: after a few it would be minutes.
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.fault(Fault::internal_error(), Matcher::any());
    let bytes = webm(5000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    let key = recording_gateway::domain::ObjectKey::parse(answer["file_path"].as_str().unwrap()).unwrap();
    let asked = |cloud: &FakeSupabase| {
        cloud.requests().iter().any(|r| r.path.contains("/bucket/") && r.status == Some(500))
    };
    eventually("the cloud was asked how it is", async || asked(&cloud)).await;
    eventually("its job failed and waits", async || {
        gateway.services.catalog.counts().await.unwrap().jobs == 1
    })
    .await;
    // As after hours: due in ten minutes.
    let in_minutes = |minutes| {
        let at = time::OffsetDateTime::now_utc() + time::Duration::minutes(minutes);
        i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap()
    };
    eventually("the job is put off", async || {
        match gateway.services.catalog.claim_job(in_minutes(10), 1, Work::All).await.unwrap() {
            Some(job) => {
                assert_eq!(job.kind, recording_gateway::catalog::JobKind::Sync(key.clone()));
                gateway.services.catalog.postpone_job(&job, in_minutes(10), "for the test").await.unwrap();
                true
            }
            None => false,
        }
    })
    .await;
    cloud.clear_faults();
    reaches_the_bucket(&gateway, &cloud, answer["file_path"].as_str().unwrap(), &bytes).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_without_credentials_follows_when_there_are_some() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::local().await;
    let bytes = webm(300_000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    assert_eq!(
        answer["message"],
        format!("Recording saved locally: {}", answer["filename"].as_str().unwrap())
    );
    let dir = gateway.stop().await;
    let gateway = Gateway::start_in(dir, cloud_settings(&cloud)).await;
    reaches_the_bucket(&gateway, &cloud, answer["file_path"].as_str().unwrap(), &bytes).await;
    gateway.stop().await;
}

/// reliability 4
#[tokio::test(flavor = "multi_thread")]
async fn files_dropped_in_are_synced() {
    let cloud = FakeSupabase::start().await;
    let dir = tempfile::tempdir().unwrap();
    let bytes = webm(300_000, 1);
    std::fs::create_dir_all(dir.path().join("recordings/old")).unwrap();
    std::fs::write(dir.path().join("recordings/old/talk.webm"), &bytes).unwrap();
    aged(&dir.path().join("recordings/old/talk.webm"));
    let gateway = Gateway::start_in(dir, cloud_settings(&cloud)).await;
    reaches_the_bucket(&gateway, &cloud, "old/talk.webm", &bytes).await;
    assert_eq!(cloud.object(BUCKET, "old/talk.webm").unwrap().content_type, "video/webm");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_still_being_copied_is_left_alone() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.interval", "60s")]).await;
    let file = gateway.recordings_dir().join("old/talk.webm");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, webm(1000, 1)).unwrap();
    assert_eq!(gateway.services.adopt_local().await.unwrap(), 0);
    assert_eq!(rows(&gateway, "old").await.len(), 1, "it is listed all the same");
    std::fs::write(&file, webm(2000, 1)).unwrap();
    aged(&file);
    // The background may have looked just before.
    gateway.services.adopt_local().await.unwrap();
    reaches_the_bucket(&gateway, &cloud, "old/talk.webm", &webm(2000, 1)).await;
    gateway.stop().await;
}

/// A recorder whose clock is ahead, or an archive that kept such a time.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_time_to_come_is_taken_in_and_sent() {
    let cloud = FakeSupabase::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, bytes) = (dir.path().join("recordings/old/talk.webm"), webm(3000, 1));
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    let year = std::time::SystemTime::now() + Duration::from_secs(365 * 86_400);
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(year).unwrap();
    let gateway = Gateway::start_in(dir, cloud_settings(&cloud)).await;
    reaches_the_bucket(&gateway, &cloud, "old/talk.webm", &bytes).await;
    gateway.stop().await;
}

/// Drops a file and has it taken in, as if its writer had paused.
async fn dropped(gateway: &Gateway, bytes: &[u8]) -> PathBuf {
    let file = gateway.recordings_dir().join("old/talk.webm");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, bytes).unwrap();
    aged(&file);
    let key = ObjectKey::parse("old/talk.webm").unwrap();
    eventually("it is taken in", async || {
        // The background may be at it too.
        gateway.services.adopt_local().await.unwrap();
        gateway.services.catalog.get(&key).await.unwrap().is_some()
    })
    .await;
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_grows_after_it_was_taken_in_is_what_it_is_now() {
    let gateway = Gateway::start(&[("sync.interval", "60s")]).await;
    let whole = webm(2000, 1);
    let file = dropped(&gateway, &whole[..1000]).await;
    std::fs::write(&file, &whole).unwrap();
    let listed = rows(&gateway, "old").await;
    assert_eq!(listed[0]["file_size"], 2000, "the listing does not wait for the next look: {listed:?}");
    assert!(gateway.bytes("old/talk.webm").await == whole);
    let key = ObjectKey::parse("old/talk.webm").unwrap();
    gateway.services.adopt_changed(&mut Seen::default()).await.unwrap();
    let row = gateway.services.catalog.get(&key).await.unwrap().unwrap();
    let changed_at = gateway.services.stores.fallback().head(&key).await.unwrap().unwrap().modified_at;
    assert_eq!((row.size_bytes, row.uploaded_at.unix_timestamp()), (2000, changed_at.unix_timestamp()));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_grew_before_it_is_sent_is_sent_whole() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.fault(Fault::internal_error(), Matcher::any());
    let whole = webm(300_000, 1);
    let file = dropped(&gateway, &whole[..200_000]).await;
    std::fs::write(&file, &whole).unwrap();
    cloud.clear_faults();
    let job = async || {
        let query = JobQuery { limit: 1, ..JobQuery::default() };
        gateway.services.catalog.list_jobs(&query).await.unwrap().remove(0)
    };
    eventually("it is let alone while it is being written", async || {
        job().await.last_error.is_some_and(|error| error.contains("still being written"))
    })
    .await;
    assert!(seen_uploads(&cloud).iter().all(|upload| upload.status != Some(200)));
    aged(&file);
    // A crash left what was sent of the file before: it is this very job's.
    let metadata = serde_json::json!({ "upload_id": format!("{}:of-then", job().await.id) });
    cloud.put_object_with(BUCKET, "old/talk.webm", &whole[..200_000], "video/webm", metadata);
    reaches_the_bucket(&gateway, &cloud, "old/talk.webm", &whole).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_it_is_sent_is_sent_again() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, PATIENT).await;
    let whole = webm(300_000, 1);
    let slow = cloud.fault(Fault::Delay(Duration::from_secs(4)), uploads().times(1));
    let file = dropped(&gateway, &whole[..200_000]).await;
    eventually("the cloud has what there was", async || slow.hits() > 0 && !cloud.keys(BUCKET).is_empty())
        .await;
    // The beginning is another too, as when a recorder writes down how long it was.
    let mut other = whole.clone();
    other[100] ^= 1;
    std::fs::write(&file, &other).unwrap();
    eventually("what was sent is taken back", async || cloud.keys(BUCKET).is_empty()).await;
    assert!(std::fs::read(&file).unwrap() == other, "what came later is not lost");
    aged(&file);
    reaches_the_bucket(&gateway, &cloud, "old/talk.webm", &other).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_did_not_change_is_not_looked_at_again() {
    let gateway = Gateway::start(&[("sync.interval", "60s")]).await;
    let dir = gateway.recordings_dir().join("old");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("a.webm"), webm(1000, 1)).unwrap();
    // A file with two names is no recording, until the other name goes; its directory does not tell.
    std::fs::write(dir.join("b.webm"), webm(1000, 2)).unwrap();
    std::fs::hard_link(dir.join("b.webm"), gateway.recordings_dir().join(".elsewhere")).unwrap();
    let (services, mut seen) = (&gateway.services, Seen::default());
    assert_eq!(services.adopt_changed(&mut seen).await.unwrap(), 0, "it is fresh");
    aged(&dir.join("a.webm"));
    aged(&dir.join("b.webm"));
    services.adopt_changed(&mut seen).await.unwrap();
    // The look at the start may have come between.
    let row = services.catalog.get(&ObjectKey::parse("old/a.webm").unwrap()).await.unwrap();
    assert!(row.is_some(), "what was too fresh is not forgotten");
    let session = SessionId::parse("old").unwrap();
    eventually("its directory is old enough to be believed", async || {
        let changed = services.stores.fallback().changed_at(&session).await.unwrap().unwrap();
        time::OffsetDateTime::now_utc() - changed > time::Duration::seconds(4)
    })
    .await;
    assert_eq!(services.adopt_changed(&mut seen).await.unwrap(), 0);
    std::fs::remove_file(gateway.recordings_dir().join(".elsewhere")).unwrap();
    assert_eq!(services.adopt_changed(&mut seen).await.unwrap(), 0, "nothing changed as far as it can see");
    std::fs::write(dir.join("c.webm"), webm(1000, 3)).unwrap();
    aged(&dir.join("c.webm"));
    assert_eq!(services.adopt_changed(&mut seen).await.unwrap(), 2, "a change makes it look at all of it");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_no_bucket_takes_is_parked() {
    let cloud = FakeSupabase::start().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("recordings/old")).unwrap();
    std::fs::write(dir.path().join("recordings/old/März #1.webm"), b"bytes").unwrap();
    aged(&dir.path().join("recordings/old/März #1.webm"));
    let gateway = Gateway::start_in(dir, cloud_settings(&cloud)).await;
    eventually("it says why it stays", async || {
        rows(&gateway, "old").await.first().is_some_and(|row| row["parked_reason"].is_string())
    })
    .await;
    assert_eq!(gateway.bytes("old/März%20%231.webm").await, b"bytes");
    assert!(seen_uploads(&cloud).is_empty());
    gateway.stop().await;
}

/// Keeps one recording here, arms `fault` for the sync, and lets it run into it some times.
async fn local_copy_stays_while(verify: &str, fault: Fault, on: Matcher) {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.verify", verify)]).await;
    cloud.fault(Fault::internal_error(), Matcher::any());
    let bytes = webm(300_000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    let path = answer["file_path"].as_str().unwrap();
    cloud.clear_faults();
    let armed = cloud.fault(fault, on);
    eventually("the sync ran into it", async || armed.hits() >= 2).await;
    assert_eq!(
        std::fs::read(gateway.recordings_dir().join(path)).unwrap().len(),
        bytes.len(),
        "the local copy stays"
    );
    assert!(gateway.bytes(path).await == bytes);
    cloud.clear_faults();
    reaches_the_bucket(&gateway, &cloud, path, &bytes).await;
    let durability = if verify == "size" { "cloud" } else { "cloud_verified" };
    assert_eq!(rows(&gateway, "s").await[0]["durability"], durability);
    gateway.stop().await;
}

/// reliability 25, 26
#[tokio::test(flavor = "multi_thread")]
async fn the_local_copy_goes_only_after_the_cloud_copy_was_compared() {
    let downloads = || Matcher::any().method("GET").path("/object/authenticated/");
    tokio::join!(
        local_copy_stays_while("size", Fault::SaidStoredButShort(1000), uploads()),
        local_copy_stays_while("size", Fault::SaidStoredButNothing, uploads()),
        local_copy_stays_while("etag", Fault::StoredButError, Matcher::any()),
        local_copy_stays_while("read", Fault::HalfBody, downloads()),
        local_copy_stays_while("read", Fault::internal_error(), downloads()),
    );
}

/// reliability 24
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_copy_with_other_bytes_is_no_copy() {
    for verify in ["etag", "read"] {
        let cloud = FakeSupabase::start().await;
        let gateway =
            Gateway::with_cloud_and(&cloud, &[("sync.verify", verify), ("sync.keep_local", "true")]).await;
        cloud.fault(Fault::internal_error(), Matcher::any());
        let bytes = webm(5000, 1);
        let (_, answer) = gateway.upload("s", bytes.clone()).await;
        let path = answer["file_path"].as_str().unwrap();
        // Our name, our length, not our bytes, and not by us.
        cloud.put_object(BUCKET, path, &webm(5000, 2), "video/webm");
        cloud.clear_faults();
        eventually("it says why it stays", async || {
            rows(&gateway, "s").await[0]["parked_reason"].is_string()
        })
        .await;
        assert!(gateway.recordings_dir().join(path).exists(), "{verify}");
        assert!(gateway.bytes(path).await == bytes, "{verify}");
        gateway.stop().await;
    }
}

/// What arrived was damaged on its way and has our name, our id and our length: it is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_damaged_on_its_way_is_sent_again() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.verify", "read")]).await;
    cloud.fault(Fault::internal_error(), Matcher::any());
    let bytes = webm(300_000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    let path = answer["file_path"].as_str().unwrap();
    let key = recording_gateway::domain::ObjectKey::parse(path).unwrap();
    let upload_id = gateway.services.catalog.get(&key).await.unwrap().unwrap().upload_id;
    let mut damaged = bytes.clone();
    damaged[200_000] ^= 1;
    let metadata = serde_json::json!({ "upload_id": upload_id, "sha256": sha256(&bytes) });
    cloud.put_object_with(BUCKET, path, &damaged, "video/webm", metadata);
    cloud.clear_faults();
    eventually("the bucket has the right bytes", async || {
        cloud.object(BUCKET, path).is_some_and(|object| object.bytes == bytes)
            && !gateway.recordings_dir().join(path).exists()
    })
    .await;
    assert!(gateway.bytes(path).await == bytes);
    gateway.stop().await;
}

/// A start that may let local copies go: one is gone already, one is damaged. The row says in the end what is so, and
/// nobody gets damaged bytes.
#[tokio::test(flavor = "multi_thread")]
async fn local_copies_that_went_or_rotted_are_settled() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.keep_local", "true")]).await;
    cloud.fault(Fault::internal_error(), Matcher::any());
    let (gone, rotten) = (webm(5000, 1), webm(6000, 2));
    let mut paths = Vec::new();
    for bytes in [&gone, &rotten] {
        let (_, answer) = gateway.upload("s", bytes.clone()).await;
        paths.push(answer["file_path"].as_str().unwrap().to_owned());
    }
    cloud.clear_faults();
    let stores = async |gateway: &Gateway, path: &str| {
        let key = recording_gateway::domain::ObjectKey::parse(path).unwrap();
        let stores = gateway.services.catalog.get(&key).await.unwrap().unwrap().stores;
        (stores.supabase, stores.local)
    };
    eventually("both are in both places", async || {
        stores(&gateway, &paths[0]).await == (true, true) && stores(&gateway, &paths[1]).await == (true, true)
    })
    .await;
    let dir = gateway.stop().await;
    let file = |path: &str| dir.path().join("recordings").join(path);
    std::fs::remove_file(file(&paths[0])).unwrap();
    let mut damaged = rotten.clone();
    damaged[3000] ^= 1;
    std::fs::write(file(&paths[1]), damaged).unwrap();
    let gateway = Gateway::start_in(dir, cloud_settings(&cloud)).await;
    for (path, bytes) in paths.iter().zip([&gone, &rotten]) {
        eventually("the row says cloud", async || stores(&gateway, path).await == (true, false)).await;
        eventually("its file is away", async || !gateway.recordings_dir().join(path).exists()).await;
        assert!(gateway.bytes(path).await == *bytes);
    }
    gateway.stop().await;
}

/// The row says both, and the bucket lost its copy, or has another under the name.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_copy_that_went_is_sent_again_before_the_local_one_goes() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.keep_local", "true")]).await;
    let mut kept = Vec::new();
    cloud.fault(Fault::internal_error(), uploads());
    for (session, seed) in [("gone", 1), ("short", 2), ("other", 3)] {
        let bytes = webm(5000, seed);
        let (_, answer) = gateway.upload(session, bytes.clone()).await;
        kept.push((answer["file_path"].as_str().unwrap().to_owned(), bytes));
    }
    cloud.clear_faults();
    let stores = async |gateway: &Gateway, path: &str| {
        let row = gateway.services.catalog.get(&ObjectKey::parse(path).unwrap()).await.unwrap().unwrap();
        (row.stores.supabase, row.stores.local, row.parked_reason.is_some())
    };
    for (path, _) in &kept {
        eventually("it is in both places", async || stores(&gateway, path).await == (true, true, false))
            .await;
    }
    let dir = gateway.stop().await;
    let meta = cloud.object(BUCKET, &kept[1].0).unwrap().metadata;
    for (path, _) in &kept {
        cloud.remove_object(BUCKET, path);
    }
    cloud.put_object_with(BUCKET, &kept[1].0, b"short", "video/webm", meta);
    cloud.put_object(BUCKET, &kept[2].0, &webm(5000, 9), "video/webm");
    cloud.fault(Fault::internal_error(), uploads());
    let gateway = Gateway::start_in(dir, cloud_settings(&cloud)).await;
    for (path, bytes) in &kept {
        eventually("it is known to be here only", async || {
            let (supabase, local, _) = stores(&gateway, path).await;
            (supabase, local) == (false, true)
        })
        .await;
        assert!(gateway.bytes(path).await == *bytes);
    }
    cloud.clear_faults();
    for (path, bytes) in &kept[..2] {
        eventually("it is in the cloud", async || stores(&gateway, path).await == (true, false, false)).await;
        assert!(cloud.object(BUCKET, path).unwrap().bytes == *bytes);
    }
    // Somebody else's object stays, and the recording beside it.
    eventually("it is parked", async || stores(&gateway, &kept[2].0).await == (false, true, true)).await;
    assert!(cloud.object(BUCKET, &kept[2].0).unwrap().bytes == webm(5000, 9));
    gateway.stop().await;
}

/// reliability 18
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_local_copy_never_reaches_the_cloud() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.fault(Fault::internal_error(), Matcher::any());
    let (_, answer) = gateway.upload("s", webm(300_000, 1)).await;
    let path = answer["file_path"].as_str().unwrap();
    let mut damaged = webm(300_000, 1);
    damaged[200_000] ^= 1;
    std::fs::write(gateway.recordings_dir().join(path), &damaged).unwrap();
    cloud.clear_faults();
    cloud.forget_requests();
    eventually("it says what is wrong", async || {
        rows(&gateway, "s").await[0]["parked_reason"].as_str().is_some_and(|why| why.contains("damaged"))
    })
    .await;
    assert!(seen_uploads(&cloud).is_empty());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_was_broken_off_by_a_stop_goes_on_after_it() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.stop().await;
    let bytes = webm(300_000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    let hole = cloud.fault(Fault::BlackHole, uploads());
    cloud.forget_requests();
    cloud.restart_on_same_port().await;
    eventually("the sync is under way", async || !seen_uploads(&cloud).is_empty()).await;
    let gateway = gateway.restart().await;
    hole.remove();
    reaches_the_bucket(&gateway, &cloud, answer["file_path"].as_str().unwrap(), &bytes).await;
    gateway.stop().await;
}
