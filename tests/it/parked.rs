//! What the bucket will not take is kept here, says why, and is never stored there: not even where the server would.

use reqwest::multipart::{Form, Part};

use crate::support::eventually;
use crate::support::fake_supabase::{BucketSpec, FakeSupabase};
use crate::support::gateway::{Gateway, file_part};
use crate::support::media::webm;

async fn small_bucket() -> (FakeSupabase, Gateway) {
    let cloud = FakeSupabase::start().await;
    cloud.create_bucket(BucketSpec {
        name: "small".into(),
        public: true,
        file_size_limit: Some(2_000_000),
        allowed_mime_types: Some(vec!["video/*".into()]),
    });
    let gateway = Gateway::with_cloud_and(&cloud, &[("supabase.bucket", "small")]).await;
    (cloud, gateway)
}

async fn assert_parked(cloud: &FakeSupabase, gateway: &Gateway, form: Form, bytes: &[u8], why: &str) {
    let (status, answer) = gateway.upload_form("s", form).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["storage_type"], "local", "{answer}");
    assert!(answer["parked_reason"].as_str().unwrap().contains(why), "{answer}");
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .starts_with("Recording saved locally (Supabase will not take it: ")
    );
    let path = answer["file_path"].as_str().unwrap();
    let info = gateway.get_json(&format!("/recordings/{path}")).await;
    assert_eq!(info["parked_reason"], answer["parked_reason"]);
    assert_eq!(gateway.bytes(path).await, bytes);
    assert_eq!(cloud.keys("small"), Vec::<String>::new());
    assert_eq!(gateway.services.catalog.counts().await.unwrap().jobs, 0, "it is not tried for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large() {
    let (cloud, gateway) = small_bucket().await;
    let bytes = webm(3_000_000, 1);
    let part = || file_part(bytes.clone(), "a.webm", "video/webm");
    // The length is known only where the type comes first.
    let known = Form::new().text("recording_type", "scene").part("recording", part());
    assert_parked(&cloud, &gateway, known, &bytes, "limit of").await;
    let unknown = Form::new().part("recording", part());
    assert_parked(&cloud, &gateway, unknown, &bytes, "limit of").await;
    let chunked = Part::stream(bytes.clone()).file_name("a.webm").mime_str("video/webm").unwrap();
    assert_parked(&cloud, &gateway, Form::new().part("recording", chunked), &bytes, "limit of").await;

    let fits = webm(2_000_000, 2);
    let (_, answer) = gateway.upload("s", fits).await;
    assert_eq!(answer["storage_type"], "supabase", "exactly the limit is taken: {answer}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_the_bucket_refuses() {
    let (cloud, gateway) = small_bucket().await;
    let bytes = b"OggS no video at all".repeat(10);
    let form = Form::new().part("recording", file_part(bytes.clone(), "a.ogg", "audio/ogg"));
    assert_parked(&cloud, &gateway, form, &bytes, "takes only video/*").await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_was_announced_wrongly_costs_a_second_transfer_and_nothing_else() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("supabase.breaker_failures", "1")]).await;
    let bytes = webm(5_000_000, 3);
    // Type first, so that the file is taken for the last field; but another follows.
    let form = Form::new()
        .text("recording_type", "scene")
        .part("recording", file_part(bytes.clone(), "a.webm", "video/webm"))
        .text("note", "something else behind the file");
    let (status, answer) = gateway.upload_form("s", form).await;
    assert_eq!((status, answer["storage_type"].as_str()), (200, Some("supabase")), "{answer}");
    let path = answer["file_path"].as_str().unwrap();
    assert_eq!(cloud.object("interview-recordings", path).unwrap().bytes, bytes);
    eventually("the breaker never opened", async || {
        gateway.services.stores.primary_status().is_some_and(|status| status.cause.is_none())
    })
    .await;
    gateway.stop().await;
}
