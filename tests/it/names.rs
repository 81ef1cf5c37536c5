//! Names: many recordings of one second, and names that somebody else has taken.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::JoinSet;

use crate::support::cloud::{BUCKET, dripping_form, reaches_the_bucket, rows, seen_uploads, uploads};
use crate::support::eventually;
use crate::support::fake_supabase::{BucketSpec, Canned, FakeSupabase, Fault, Matcher, Policy, Right};
use crate::support::gateway::{Gateway, cloud_settings};
use crate::support::media::webm;

/// 50 at once: every name is another, numbered without a gap within its second, and holds its own bytes.
async fn fifty_at_once(gateway: &Gateway) {
    let mut uploads = JoinSet::new();
    for seed in 0..50u64 {
        let (url, bytes) =
            (format!("{}/recordings/upload/many", gateway.url), webm(2000 + seed as usize, seed));
        let part = crate::support::gateway::file_part(bytes.clone(), "a.webm", "video/webm");
        let request = reqwest::Client::new()
            .post(url)
            .multipart(reqwest::multipart::Form::new().part("recording", part));
        uploads.spawn(async move {
            let answer: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
            (answer["file_path"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned(), bytes)
        });
    }
    let stored: BTreeMap<String, Vec<u8>> = uploads.join_all().await.into_iter().collect();
    assert_eq!(stored.len(), 50, "every name is another");
    let mut numbers: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
    for path in stored.keys() {
        let rest = path.strip_prefix("many/session_recording_many_").unwrap().strip_suffix(".webm").unwrap();
        let (second, number) = rest.split_at("20241201_143022".len());
        let number = if number.is_empty() { 1 } else { number.strip_prefix('_').unwrap().parse().unwrap() };
        numbers.entry(second).or_default().insert(number);
    }
    for (second, numbers) in numbers {
        let expected: BTreeSet<u32> = (1..=numbers.len() as u32).collect();
        assert_eq!(numbers, expected, "{second}");
    }
    for (path, bytes) in &stored {
        assert!(gateway.bytes(path).await == *bytes, "{path}");
    }
    let listed: BTreeSet<String> =
        gateway.names("many").await.iter().map(|name| format!("many/{name}")).collect();
    assert!(listed.iter().eq(stored.keys()));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_uploads_of_one_second_here() {
    let gateway = Gateway::local().await;
    fifty_at_once(&gateway).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_uploads_of_one_second_in_the_cloud() {
    let cloud = FakeSupabase::start().await;
    let gateway =
        Gateway::with_cloud_and(&cloud, &[("supabase.patience", "20s"), ("supabase.idle_timeout", "20s")])
            .await;
    fifty_at_once(&gateway).await;
    assert_eq!(cloud.keys(BUCKET).len(), 50);
    gateway.stop().await;
}

/// The first names of the next seconds.
fn names_to_come(session: &str) -> Vec<String> {
    let now = time::OffsetDateTime::now_utc();
    let stamp = time::macros::format_description!("[year][month][day]_[hour][minute][second]");
    (0..8)
        .map(|s| (now + time::Duration::seconds(s)).format(&stamp).unwrap())
        .map(|at| format!("{session}/session_recording_{session}_{at}.webm"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_object_is_left_alone() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    for (session, len) in [("small", 1000), ("medium", 300_000), ("large", 6_000_000)] {
        let foreign = names_to_come(session);
        for key in &foreign {
            cloud.put_object(BUCKET, key, b"somebody else's", "video/webm");
        }
        let bytes = webm(len, 1);
        let (status, answer) = gateway.upload(session, bytes.clone()).await;
        assert_eq!((status, &answer["durability"]), (200, &"cloud".into()), "{answer}");
        let path = answer["file_path"].as_str().unwrap();
        assert!(path.ends_with("_2.webm"), "the next free name: {path}");
        assert!(cloud.object(BUCKET, path).unwrap().bytes == bytes);
        for key in &foreign {
            assert_eq!(cloud.object(BUCKET, key).unwrap().bytes, b"somebody else's");
        }
        assert_eq!(gateway.names(session).await.len(), foreign.len() + 1, "all of them are listed");
        assert_eq!(gateway.bytes(&foreign[0]).await, b"somebody else's");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_an_operator_dropped_is_left_alone() {
    let gateway = Gateway::local().await;
    let dropped = names_to_come("s");
    std::fs::create_dir_all(gateway.recordings_dir().join("s")).unwrap();
    for key in &dropped {
        std::fs::write(gateway.recordings_dir().join(key), b"dropped").unwrap();
    }
    let bytes = webm(300_000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    let path = answer["file_path"].as_str().unwrap();
    assert!(path.ends_with("_2.webm"), "{path}");
    assert!(gateway.bytes(path).await == bytes);
    for key in &dropped {
        assert_eq!(gateway.bytes(key).await, b"dropped");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_was_taken_while_the_cloud_was_away_is_not_overwritten() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.fault(Fault::internal_error(), Matcher::any());
    let bytes = webm(5000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    let path = answer["file_path"].as_str().unwrap();
    // Of the same length even.
    let foreign = webm(5000, 2);
    cloud.put_object(BUCKET, path, &foreign, "video/webm");
    cloud.clear_faults();
    eventually("the recording says why it stays", async || {
        rows(&gateway, "s").await[0]["parked_reason"]
            .as_str()
            .is_some_and(|why| why.contains("another object"))
    })
    .await;
    assert!(cloud.object(BUCKET, path).unwrap().bytes == foreign);
    let row = &rows(&gateway, "s").await[0];
    assert_eq!(
        (&row["storage_type"], &row["public_url"]),
        (&"local".into(), &serde_json::Value::Null),
        "{row}"
    );
    assert!(gateway.bytes(path).await == bytes);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_put_there_by_somebody_else_will_do() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.fault(Fault::internal_error(), Matcher::any());
    let bytes = webm(5000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    let path = answer["file_path"].as_str().unwrap();
    cloud.put_object(BUCKET, path, &bytes, "video/webm");
    cloud.clear_faults();
    reaches_the_bucket(&gateway, &cloud, path, &bytes).await;
    gateway.stop().await;
}

/// The one row of the session, once its sync has found out why it stays here.
async fn parked_here(gateway: &Gateway, session: &str) -> serde_json::Value {
    eventually("it says why it stays here", async || {
        rows(gateway, session).await[0]["parked_reason"].is_string()
    })
    .await;
    let mut rows = rows(gateway, session).await;
    assert_eq!((rows.len(), &rows[0]["stores"]), (1, &serde_json::json!(["local"])), "{rows:?}");
    rows.remove(0)
}

/// What it sends it cannot see, so it cannot tell it from somebody else's: the next name would be the next copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_write_and_not_read_leaves_one_object_and_an_answer() {
    let cloud = FakeSupabase::start().await;
    cloud.delete_bucket(BUCKET);
    cloud.create_bucket(BucketSpec {
        name: BUCKET.into(),
        public: false,
        file_size_limit: None,
        allowed_mime_types: None,
    });
    let (bucket, rights) = (BUCKET.to_owned(), vec![Right::Insert]);
    cloud.allow(Policy { role: "anon".into(), bucket, key_prefix: String::new(), rights });
    for len in [1000, 6_000_000] {
        let mut settings = cloud_settings(&cloud);
        settings.extend([
            ("supabase.key".to_owned(), cloud.anon_key()),
            ("supabase.public".to_owned(), "false".to_owned()),
        ]);
        let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), settings).await;
        let before = cloud.keys(BUCKET).len();
        let upload = gateway.upload("s", webm(len, 1));
        let (status, answer) = crate::support::gateway::within("the upload is answered", upload).await;
        assert_eq!((status, &answer["durability"]), (200, &"local".into()), "{answer}");
        let row = parked_here(&gateway, "s").await;
        assert!(row["parked_reason"].as_str().unwrap().contains("right to read"), "{row}");
        assert_eq!(cloud.keys(BUCKET).len(), before + 1);
        gateway.stop().await;
    }
}

/// A cloud that says of every name that it is taken, and shows nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_takes_no_name_is_asked_for_some_and_the_recording_stays_here() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("supabase.patience", "20s")]).await;
    let taken = serde_json::json!({"statusCode": "409", "error": "Duplicate", "message": "The resource already exists"});
    cloud.fault(Fault::Status(Canned::json(400, &taken)), uploads());
    let upload = gateway.upload("s", webm(1000, 1));
    let (status, answer) = crate::support::gateway::within("the upload is answered", upload).await;
    assert_eq!((status, &answer["durability"]), (200, &"local".into()), "{answer}");
    assert!(seen_uploads(&cloud).len() <= 101, "{}", seen_uploads(&cloud).len());
    parked_here(&gateway, "s").await;
    gateway.stop().await;
}

/// The same of a name that is wanted for an object which is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_renames_to_no_name_is_asked_for_some() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("supabase.patience", "20s")]).await;
    let taken = serde_json::json!({"statusCode": "409", "error": "Duplicate", "message": "The resource already exists"});
    let moves = Matcher::any().path("/object/move");
    let renames = cloud.fault(Fault::Status(Canned::json(400, &taken)), moves);
    let bytes = webm(6_000_000, 1);
    let (pieces, form) = dripping_form();
    pieces.send(bytes[..5_000_000].to_vec()).unwrap();
    let rest = async {
        eventually("it is under way", async || cloud.open_uploads() > 0).await;
        pieces.send(bytes[5_000_000..].to_vec()).unwrap();
        drop(pieces);
    };
    let upload = gateway.upload_form("s", form.text("recording_type", "scene"));
    let upload = crate::support::gateway::within("the upload is answered", upload);
    let ((status, answer), ()) = tokio::join!(upload, rest);
    assert_eq!(status, 200, "{answer}");
    assert!((2..=100).contains(&renames.hits()), "{}", renames.hits());
    reaches_the_bucket(&gateway, &cloud, answer["file_path"].as_str().unwrap(), &bytes).await;
    gateway.stop().await;
}

/// The time that a client waits is one for all names together.
#[tokio::test(flavor = "multi_thread")]
async fn slow_refusals_of_names_do_not_add_up() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let taken = serde_json::json!({"statusCode": "409", "error": "Duplicate", "message": "The resource already exists"});
    let slow = Canned::json(400, &taken).delay(std::time::Duration::from_millis(500));
    cloud.fault(Fault::Status(slow), uploads());
    let (status, answer) = gateway.upload("s", webm(1000, 1)).await;
    assert_eq!((status, &answer["durability"]), (200, &"local".into()), "{answer}");
    assert!(
        seen_uploads(&cloud).len() <= 10,
        "more than two seconds of them: {}",
        seen_uploads(&cloud).len()
    );
    cloud.clear_faults();
    gateway.stop().await;
}
