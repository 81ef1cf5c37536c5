//! A recording goes in and is found where the answer says.

use reqwest::multipart::Form;

use crate::support::fake_supabase::FakeSupabase;
use crate::support::gateway::{Gateway, file_part};
use crate::support::media::{sha256, webm};

const BUCKET: &str = "interview-recordings";

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cloud_it_is_kept_here() {
    let gateway = Gateway::local().await;
    let bytes = webm(300_000, 1);
    let (status, answer) = gateway.upload("session_123", bytes.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let name = answer["filename"].as_str().unwrap();
    assert_eq!(answer["success"], true);
    assert_eq!(answer["file_path"], format!("session_123/{name}"));
    assert_eq!(answer["file_size"], 300_000);
    assert_eq!(answer["message"], format!("Recording saved locally: {name}"));
    assert_eq!(answer["storage_type"], "local");
    assert_eq!(answer["durability"], "local");
    assert_eq!(answer["sha256"], sha256(&bytes));
    assert_eq!(answer["original_filename"], "talk.webm");
    assert!(name.starts_with("session_recording_session_123_2") && name.ends_with(".webm"), "{name}");
    assert_eq!(std::fs::read(gateway.recordings_dir().join("session_123").join(name)).unwrap(), bytes);
    assert_eq!(gateway.bytes(&format!("session_123/{name}")).await, bytes);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_cloud_it_is_in_the_bucket_and_not_here() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    for (seed, len) in [(1, 100), (2, 70_000), (3, 5_000_000)] {
        let bytes = webm(len, seed);
        let (status, answer) = gateway.upload("s", bytes.clone()).await;
        assert_eq!(status, 200, "{answer}");
        let path = answer["file_path"].as_str().unwrap();
        let name = answer["filename"].as_str().unwrap();
        assert_eq!(answer["message"], format!("Recording uploaded to Supabase successfully: {name}"));
        assert_eq!(answer["durability"], "cloud");
        assert_eq!(answer["public_url"], format!("{}/storage/v1/object/public/{BUCKET}/{path}", cloud.url()));
        let object = cloud.object(BUCKET, path).expect("it is in the bucket");
        assert_eq!(object.bytes, bytes);
        assert_eq!(object.content_type, "video/webm");
        assert!(!gateway.recordings_dir().join(path).exists());
        assert_eq!(gateway.bytes(path).await, bytes);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_type_may_come_after_the_file() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    // Small: waits for the end. Large: on its way under the likely name when the type comes.
    for len in [1000, 6_000_000] {
        let bytes = webm(len, 7);
        let form = Form::new()
            .part("recording", file_part(bytes.clone(), "a.webm", "video/webm"))
            .text("recording_type", "scene");
        let (status, answer) = gateway.upload_form("late", form).await;
        assert_eq!(status, 200, "{answer}");
        let path = answer["file_path"].as_str().unwrap();
        assert!(path.starts_with("late/scene_recording_late_"), "{path}");
        assert_eq!(cloud.object(BUCKET, path).unwrap().bytes, bytes);
    }
    assert_eq!(cloud.keys(BUCKET).len(), 2, "nothing is left under the likely name");
    gateway.stop().await;
}
