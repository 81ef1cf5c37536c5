//! What was deleted is gone at once and never comes back, whatever the cloud does meanwhile.

use std::time::Duration;

use crate::support::cloud::{BUCKET, deletions, rows, seen_uploads, uploads};
use crate::support::eventually;
use crate::support::fake_supabase::{FakeSupabase, Fault, Matcher};
use crate::support::gateway::Gateway;
use crate::support::media::webm;

async fn upload(gateway: &Gateway, session: &str, len: usize, seed: u64) -> (String, String) {
    let (status, answer) = gateway.upload(session, webm(len, seed)).await;
    assert_eq!(status, 200, "{answer}");
    (answer["file_path"].as_str().unwrap().to_owned(), answer["filename"].as_str().unwrap().to_owned())
}

/// Answered as soon as it is here; its way to the bucket is the background's.
async fn upload_early(gateway: &Gateway, len: usize) -> String {
    let part = crate::support::gateway::file_part(webm(len, 1), "talk.webm", "video/webm");
    let form = reqwest::multipart::Form::new().part("recording", part);
    let request = gateway.request("POST", "/recordings/upload/s").multipart(form);
    let response = request.header("Prefer", "respond-async").send().await.unwrap();
    assert_eq!(response.status(), 202);
    let answer: serde_json::Value = response.json().await.unwrap();
    answer["file_path"].as_str().unwrap().to_owned()
}

/// In no listing, no info, no content.
async fn is_gone(gateway: &Gateway, path: &str) {
    let session = path.split('/').next().unwrap();
    let listed = rows(gateway, session).await;
    assert!(listed.iter().all(|row| row["file_path"] != path), "still listed: {path}");
    for below in ["", "/content", "/content?via=proxy", "/download"] {
        let response = gateway.get(&format!("/recordings/{path}{below}")).await;
        assert_eq!(response.status(), 404, "{path}{below}");
    }
    assert!(!gateway.recordings_dir().join(path).exists());
}

async fn no_jobs(gateway: &Gateway) {
    eventually("no job is left", async || gateway.services.catalog.counts().await.unwrap().jobs == 0).await;
}

/// They are questions here, so nothing else about such a recording can be asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_in_under_the_name_of_a_question_can_be_deleted() {
    let gateway = Gateway::local().await;
    let session = gateway.recordings_dir().join("odd");
    for name in ["list", "download"] {
        std::fs::create_dir_all(&session).unwrap();
        let file = session.join(name);
        std::fs::write(&file, b"dropped").unwrap();
        assert_eq!(rows(&gateway, "odd").await.len(), 1);
        let (status, answer) = gateway.delete(&format!("/recordings/odd/{name}")).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(rows(&gateway, "odd").await.len(), 0);
        assert!(!file.exists());
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_where_it_is_with_the_documented_messages() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;

    let (path, name) = upload(&gateway, "cloud", 5000, 1).await;
    let (status, answer) = gateway.delete(&format!("/recordings/{path}")).await;
    assert_eq!(status, 200);
    let expected = serde_json::json!({"success": true, "filename": name,
        "message": format!("Recording deleted from Supabase: {name}")});
    assert_eq!(answer, expected);
    assert!(cloud.object(BUCKET, &path).is_none());
    is_gone(&gateway, &path).await;
    assert_eq!(gateway.delete(&format!("/recordings/{path}")).await.0, 404, "a second time");

    cloud.fault(Fault::policy_refusal(), uploads());
    let (path, name) = upload(&gateway, "local", 5000, 2).await;
    let (status, answer) = gateway.delete(&format!("/recordings/{path}")).await;
    assert_eq!(
        answer["message"],
        format!("Recording deleted from local storage: {name}"),
        "{status} {answer}"
    );
    is_gone(&gateway, &path).await;
    cloud.clear_faults();

    // In both: the local one was dropped in by hand.
    let (path, name) = ("both/take.webm", "take.webm");
    cloud.put_object(BUCKET, path, b"the same", "video/webm");
    std::fs::create_dir_all(gateway.recordings_dir().join("both")).unwrap();
    std::fs::write(gateway.recordings_dir().join(path), b"the same").unwrap();
    let (_, answer) = gateway.delete(&format!("/recordings/{path}")).await;
    let message =
        format!("Recording deleted from Supabase: {name} Recording deleted from local storage: {name}");
    assert_eq!(answer["message"], message);
    assert!(cloud.object(BUCKET, path).is_none());
    is_gone(&gateway, path).await;

    let (status, answer) = gateway.delete("/recordings/nobody/nothing.webm").await;
    assert_eq!((status, &answer["code"]), (404, &"recording_not_found".into()), "{answer}");
    no_jobs(&gateway).await;
    gateway.stop().await;
}

/// Deletes while `fault` has the cloud, restarts, mends the cloud, and waits until the object is really gone.
async fn deletes_in_spite_of(fault: Fault, on: Matcher) {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let (path, name) = upload(&gateway, "s", 5000, 1).await;
    let (kept, _) = upload(&gateway, "s", 6000, 2).await;
    cloud.fault(fault, on);

    let (status, answer) = gateway.delete(&format!("/recordings/{path}")).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(answer["success"], true);
    assert_eq!(answer["pending"], serde_json::json!(["supabase"]));
    assert_eq!(answer["message"], format!("Deletion from Supabase is pending: {name}"));
    is_gone(&gateway, &path).await;
    let (status, answer) = gateway.delete(&format!("/recordings/{path}")).await;
    assert_eq!(
        (status, &answer["pending"]),
        (202, &serde_json::json!(["supabase"])),
        "asked again: {answer}"
    );

    let gateway = gateway.restart().await;
    is_gone(&gateway, &path).await;
    assert!(cloud.object(BUCKET, &path).is_some(), "the cloud still has it");
    cloud.clear_faults();
    eventually("the object is really gone", async || cloud.object(BUCKET, &path).is_none()).await;
    no_jobs(&gateway).await;
    is_gone(&gateway, &path).await;
    assert_eq!(gateway.delete(&format!("/recordings/{path}")).await.0, 404, "now it is over");
    assert!(gateway.bytes(&kept).await == webm(6000, 2), "the other one stays");
    gateway.stop().await;
}

/// reliability 31
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_cannot_be_asked_finds_out_later() {
    tokio::join!(
        deletes_in_spite_of(Fault::internal_error(), Matcher::any()),
        deletes_in_spite_of(Fault::BlackHole, Matcher::any()),
        deletes_in_spite_of(Fault::expired_key(), Matcher::any()),
        deletes_in_spite_of(Fault::database_read_only(), deletions()),
        deletes_in_spite_of(Fault::DeleteSaysOkButKeeps, deletions()),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_whose_answer_was_lost_is_confirmed_later() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let (path, _) = upload(&gateway, "s", 5000, 1).await;
    // Not once: the background may ask first.
    let lost = cloud.fault(Fault::StoredThenReset, deletions());
    let (status, answer) = gateway.delete(&format!("/recordings/{path}")).await;
    assert_eq!(status, 202, "{answer}");
    lost.remove();
    no_jobs(&gateway).await;
    assert!(cloud.object(BUCKET, &path).is_none());
    is_gone(&gateway, &path).await;
    gateway.stop().await;
}

/// Deletes a kept recording while its way to the bucket is under way, in a state that `fault` makes.
async fn deletes_during_sync(fault: Fault, len: usize) {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.fault(fault, uploads().times(1));
    let path = upload_early(&gateway, len).await;
    eventually("its sync is under way", async || !seen_uploads(&cloud).is_empty()).await;
    let (status, answer) = gateway.delete(&format!("/recordings/{path}")).await;
    assert!(status == 200 || status == 202, "{answer}");
    is_gone(&gateway, &path).await;
    // Whatever the push came to: the next job the runner takes comes after it.
    cloud.wait_until("the push ended", Duration::from_secs(20), |c| c.open_uploads() == 0).await;
    eventually("the bucket is empty and nothing is left to do", async || {
        cloud.keys(BUCKET).is_empty() && gateway.services.catalog.counts().await.unwrap().jobs == 0
    })
    .await;
    // The runner is idle: what it was at is over.
    let (later, _) = upload(&gateway, "t", 1000, 9).await;
    assert_eq!(cloud.keys(BUCKET), [later]);
    is_gone(&gateway, &path).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_under_way_does_not_bring_it_back() {
    tokio::join!(
        deletes_during_sync(Fault::Delay(Duration::from_millis(700)), 5000),
        deletes_during_sync(Fault::ReadThenHang, 5000),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_lands_after_the_deletion_was_confirmed_is_deleted_too() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    // The push is read slowly enough for the deletion to be over first; then the cloud fails to delete once.
    cloud.fault(Fault::SlowRead(2_000), uploads().times(1));
    let path = upload_early(&gateway, 5000).await;
    eventually("its sync is under way", async || !seen_uploads(&cloud).is_empty()).await;
    let (status, answer) = gateway.delete(&format!("/recordings/{path}")).await;
    assert_eq!(status, 200, "the cloud has nothing yet and says so: {answer}");
    cloud.fault(Fault::internal_error(), deletions().times(1));
    is_gone(&gateway, &path).await;
    let deleted = |c: &FakeSupabase| c.requests().iter().filter(|r| r.method == "DELETE").count();
    eventually("the late object is deleted", async || deleted(&cloud) >= 3 && cloud.keys(BUCKET).is_empty())
        .await;
    no_jobs(&gateway).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_name_is_not_used_again() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let mut names = std::collections::HashSet::new();
    // Several within one second.
    for seed in 0..6 {
        let (path, _) = upload(&gateway, "s", 1000, seed).await;
        assert_eq!(gateway.delete(&format!("/recordings/{path}")).await.0, 200);
        assert!(names.insert(path.clone()), "used again: {path}");
    }
    assert_eq!(cloud.keys(BUCKET), [""; 0]);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_whole() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    for seed in 0..3 {
        upload(&gateway, "s", 2000, seed).await;
    }
    cloud.put_object(BUCKET, "s/foreign.webm", b"foreign", "video/webm");
    std::fs::create_dir_all(gateway.recordings_dir().join("s")).unwrap();
    std::fs::write(gateway.recordings_dir().join("s/dropped.webm"), b"dropped").unwrap();
    let (other, _) = upload(&gateway, "s2", 2000, 9).await;
    let (status, answer) = gateway.delete("/recordings/s").await;
    assert_eq!((status, &answer["deleted_count"]), (200, &5.into()), "{answer}");
    assert_eq!(answer["message"], "Session deleted, 5 recordings: s");
    assert_eq!(rows(&gateway, "s").await.len(), 0);
    assert_eq!(cloud.keys(BUCKET), [other]);
    assert!(!gateway.recordings_dir().join("s").exists());
    assert_eq!(gateway.delete("/recordings/s").await.0, 404);
    no_jobs(&gateway).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_cloud_part_cannot_be_named_goes_whole() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let (known, _) = upload(&gateway, "s", 2000, 1).await;
    cloud.fault(Fault::bad_gateway(), Matcher::any());
    // Nobody here has heard of these.
    for key in ["s/foreign.webm", "s/other.mp4", "elsewhere/stays.webm"] {
        cloud.put_object(BUCKET, key, b"foreign", "video/webm");
    }
    let (kept, _) = upload(&gateway, "s", 2000, 2).await;
    let (status, answer) = gateway.delete("/recordings/s").await;
    assert_eq!((status, &answer["deleted_count"]), (202, &2.into()), "{answer}");
    assert_eq!(answer["pending"], serde_json::json!(["supabase"]));
    is_gone(&gateway, &known).await;
    is_gone(&gateway, &kept).await;
    let gateway = gateway.restart().await;
    assert_eq!(rows(&gateway, "s").await.len(), 0);

    // Later than the deletion by more than the millisecond that the cloud's times have.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (after, _) = upload(&gateway, "s", 2000, 3).await;
    cloud.put_object(BUCKET, "s/later.webm", b"later", "video/webm");
    let mut left = vec!["elsewhere/stays.webm".to_owned(), "s/later.webm".to_owned(), after.clone()];
    left.sort();
    cloud.clear_faults();
    eventually("the cloud has what came later, and nothing else", async || cloud.keys(BUCKET) == left).await;
    no_jobs(&gateway).await;
    assert_eq!(rows(&gateway, "s").await.len(), 2);
    assert!(gateway.bytes(&after).await == webm(2000, 3));
    is_gone(&gateway, &known).await;
    is_gone(&gateway, "s/foreign.webm").await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_objects_of_a_deleted_session_are_hidden_as_soon_as_lists_work() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.put_object(BUCKET, "s/foreign.webm", b"foreign", "video/webm");
    let lists = cloud.fault(Fault::internal_error(), Matcher::any().path("/object/list"));
    // The cloud still answers for a single object, and keeps what it is told to delete.
    cloud.fault(Fault::internal_error(), deletions());
    let (status, answer) = gateway.delete("/recordings/s").await;
    assert_eq!((status, &answer["deleted_count"]), (202, &0.into()), "{answer}");
    lists.remove();
    eventually("lists work", async || gateway.get_json("/recordings/s/list").await["degraded"] == false)
        .await;
    is_gone(&gateway, "s/foreign.webm").await;
    assert!(cloud.object(BUCKET, "s/foreign.webm").is_some());
    cloud.clear_faults();
    eventually("it is deleted", async || cloud.keys(BUCKET).is_empty()).await;
    no_jobs(&gateway).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_name_no_bucket_takes_can_be_deleted() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    std::fs::create_dir_all(gateway.recordings_dir().join("s")).unwrap();
    std::fs::write(gateway.recordings_dir().join("s/März.webm"), b"dropped").unwrap();
    let (status, answer) = gateway.delete("/recordings/s/März.webm").await;
    assert_eq!(
        (status, &answer["message"]),
        (200, &"Recording deleted from local storage: März.webm".into())
    );
    assert!(!gateway.recordings_dir().join("s/März.webm").exists());
    no_jobs(&gateway).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_lands_when_nobody_waits_for_it_any_more_is_found_and_deleted() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    // All bytes are on their way when patience ends; the cloud reads them later.
    cloud.fault(Fault::SlowRead(100_000), uploads().times(1));
    let path = upload_early(&gateway, 400_000).await;
    eventually("its sync is under way", async || !seen_uploads(&cloud).is_empty()).await;
    assert_eq!(gateway.delete(&format!("/recordings/{path}")).await.0, 200);
    cloud.wait_until("it landed late", Duration::from_secs(20), |c| c.keys(BUCKET) == [path.clone()]).await;
    is_gone(&gateway, &path).await;
    // Somebody else's object under a deleted name is not the gateway's to delete.
    let (other, _) = upload(&gateway, "t", 1000, 2).await;
    assert_eq!(gateway.delete(&format!("/recordings/{other}")).await.0, 200);
    cloud.put_object(BUCKET, &other, b"somebody else's", "video/webm");
    // The regular look for unknown objects, which a start begins with.
    let gateway = gateway.restart().await;
    eventually("it is deleted", async || cloud.object(BUCKET, &path).is_none()).await;
    no_jobs(&gateway).await;
    assert_eq!(cloud.keys(BUCKET), [other]);
    is_gone(&gateway, &path).await;
    gateway.stop().await;
}
