//! Is the fake cloud honest? Replays the recorded answers of the real server against it.
//!
//! Apart from every other suite, which trust the fake because of this one. Nothing about the gateway is tested here.
//! `tests/it/support/contract_cases.json` holds the recordings: what the real server answered, at the version its
//! head names. Groups that were recorded and are not in that file, because the fake does not do what they show:
//! the S3 endpoint (as sent by boto3 and aws-sdk, S3_PROTOCOL_ENABLED), the S3 object store behind the server
//! (all `s3-backend` groups), ETags by modification time, and storage3 (Python), which sends what storage-js sends.
//! Single cases left out stand in [`LEFT_OUT`] with their reason.

mod bodies;
mod compare;
mod connection;
mod faults;
mod raw_client;
mod replay;
mod storage_js;

use std::time::Duration;

use serde_json::Value;

use crate::support::fake_supabase::{
    Bodies, BucketSpec, FakeOptions, FakeSupabase, Fault, Matcher, Policy, Right,
};
use replay::Replay;

const RECORDINGS: &str = include_str!("../support/contract_cases.json");
const PRIVATE: &str = "private-recordings";
const PUBLIC: &str = "interview-recordings";
/// What the recorded server was configured with, in bytes.
const GLOBAL_LIMIT: u64 = 524_288_000;

const SEVERAL_AT_ONCE: &str = "several requests at once: connection.rs tests it";
const OTHER_RUNS: &str = "shows what other recordings left in the bucket";
const BROKEN_DISK: &str = "the fake's disk does not break: a fault answers in its place";

/// Group, case, reason.
const LEFT_OUT: &[(&str, &str, &str)] = &[
    ("abort-and-concurrency", "read during an overwrite in flight: old version", SEVERAL_AT_ONCE),
    ("abort-and-concurrency", "read after the overwrite finished: new version", SEVERAL_AT_ONCE),
    ("abort-and-concurrency", "new key while its upload is in flight: not visible", SEVERAL_AT_ONCE),
    (
        "abort-and-concurrency",
        "second POST (no upsert) of the same new key while the first is in flight",
        SEVERAL_AT_ONCE,
    ),
    ("abort-and-concurrency", "the first POST (no upsert) then finishes", SEVERAL_AT_ONCE),
    ("abort-and-concurrency", "content after the race: the later finisher won", SEVERAL_AT_ONCE),
    ("abort-and-concurrency", "8 parallel POSTs of one new key without x-upsert", SEVERAL_AT_ONCE),
    ("tus-life", "4 parallel PATCH of the same bytes", SEVERAL_AT_ONCE),
    ("list", "list root", OTHER_RUNS),
    ("list-v2", "v2 default", OTHER_RUNS),
    ("fault-backend", "backend cannot write (path blocked): upload", BROKEN_DISK),
    ("fault-backend", "info after the failed write", BROKEN_DISK),
    ("fault-backend", "backend cannot write: upload 5 MB", BROKEN_DISK),
    ("fault-database", "Postgres down (connection refused): health", "the fake has no database to lose"),
    (
        "fault-database",
        "Postgres down (connection refused): tus create",
        "names the recording's database host",
    ),
    (
        "config: NODE_ENV=production",
        "tus create over plain HTTP",
        "set public_url to get a Location elsewhere",
    ),
];

/// The recorded cases of a group in their order, without those left out.
fn cases<'a>(recordings: &'a Value, group: &str) -> Vec<&'a Value> {
    let all = recordings["cases"].as_array().expect("a list of cases");
    let left_out =
        |case: &Value| LEFT_OUT.iter().any(|(g, name, _)| case["group"] == *g && case["name"] == *name);
    let found: Vec<&Value> = all.iter().filter(|case| case["group"] == group && !left_out(case)).collect();
    assert!(!found.is_empty(), "no cases of {group}");
    found
}

/// A fake with the buckets of the recordings: one public, one private, one with limits.
async fn recorded_cloud(options: FakeOptions) -> FakeSupabase {
    let cloud = FakeSupabase::start_with(FakeOptions { global_limit: GLOBAL_LIMIT, ..options }).await;
    cloud.create_bucket(BucketSpec { name: PRIVATE.into(), ..BucketSpec::default() });
    cloud.create_bucket(BucketSpec {
        name: "limited-recordings".into(),
        file_size_limit: Some(1_000_000),
        allowed_mime_types: Some(vec!["video/webm".into(), "audio/webm".into()]),
        ..BucketSpec::default()
    });
    cloud
}

/// Plays a group; `before` is called with each case's name before it and puts there what the recordings do not show.
async fn play_on(replay: &mut Replay, group: &str, before: impl AsyncFn(&mut Replay, &str)) {
    let recordings: Value = serde_json::from_str(RECORDINGS).expect("the recordings are JSON");
    let cases = cases(&recordings, group);
    replay.create_hidden_uploads(&cases).await;
    for case in cases {
        before(replay, case["name"].as_str().unwrap_or_default()).await;
        replay.play(case).await;
    }
}

fn verdict(replay: Replay, least: usize) {
    assert!(replay.differences.is_empty(), "\n{}\n", replay.differences.join("\n"));
    assert!(replay.played >= least, "only {} cases were played", replay.played);
}

async fn play(group: &str, least: usize, setup: impl AsyncFn(&FakeSupabase)) {
    let mut replay = Replay::new(recorded_cloud(FakeOptions::default()).await);
    setup(&replay.cloud).await;
    play_on(&mut replay, group, async |_: &mut Replay, _: &str| {}).await;
    verdict(replay, least);
}

async fn nothing(_: &FakeSupabase) {}

#[test]
fn every_case_left_out_was_recorded() {
    let recordings: Value = serde_json::from_str(RECORDINGS).expect("the recordings are JSON");
    for (group, name, _) in LEFT_OUT {
        let cases = recordings["cases"].as_array().expect("a list of cases");
        assert!(cases.iter().any(|case| case["group"] == *group && case["name"] == *name), "{group}: {name}");
    }
}

#[tokio::test]
async fn service_routes() {
    play("service", 8, nothing).await;
}

#[tokio::test]
async fn buckets() {
    let cloud =
        FakeSupabase::start_with(FakeOptions { global_limit: GLOBAL_LIMIT, ..Default::default() }).await;
    cloud.delete_bucket(PUBLIC);
    let mut replay = Replay::new(cloud);
    play_on(&mut replay, "bucket", async |replay: &mut Replay, name: &str| {
        if name == "delete bucket, not empty" {
            replay.cloud.put_object("limit-text", "x.webm", b"x", "video/webm");
        }
    })
    .await;
    verdict(replay, 44);
}

#[tokio::test]
async fn raw_uploads() {
    play("upload-raw", 32, nothing).await;
}

#[tokio::test]
async fn multipart_uploads() {
    let mut replay = Replay::new(recorded_cloud(FakeOptions::default()).await);
    play_on(&mut replay, "upload-multipart", async |_: &mut Replay, _: &str| {}).await;
    // The 4 MB of this file were random when recorded: its ETag cannot be the same.
    replay.differences.retain(|text| !(text.contains("with a larger file") && text.contains("etag")));
    verdict(replay, 20);
}

#[tokio::test]
async fn upload_limits() {
    play("upload-limits", 18, nothing).await;
}

#[tokio::test]
async fn upload_auth() {
    play("upload-auth", 15, nothing).await;
}

#[tokio::test]
async fn keys() {
    play("keys", 66, nothing).await;
}

#[tokio::test]
async fn aborted_uploads() {
    play("abort-and-concurrency", 9, async |cloud: &FakeSupabase| {
        cloud.put_object(PRIVATE, "abort/ow.webm", b"version one", "video/webm");
    })
    .await;
}

/// The objects the reading groups were recorded on.
async fn readable(cloud: &FakeSupabase) {
    let digits = b"0123456789".repeat(100);
    // Uploaded, not put: their Cache-Control and metadata show in the answers.
    let upload = async |bucket: &str, key: &str, bytes: &[u8], kind: &str, metadata: &str| {
        let client = reqwest::Client::new();
        let answer = client
            .post(format!("{}/object/{bucket}/{key}", cloud.url()))
            .bearer_auth(cloud.service_key())
            .header("content-type", kind)
            .header("cache-control", "max-age=3600")
            .header("x-metadata", metadata)
            .body(bytes.to_vec())
            .send();
        assert_eq!(answer.await.expect("an answer").status(), 200);
    };
    upload(PUBLIC, "dl/pub.webm", &digits, "video/webm", "").await;
    upload(PRIVATE, "dl/priv.webm", &digits, "video/webm", "").await;
    upload(PRIVATE, "dl/page.html", b"<script>1</script>", "text/html", "").await;
    upload(PRIVATE, "dl/empty.webm", b"", "video/webm", "").await;
    upload(PRIVATE, "dl/meta.webm", &digits, "video/webm", "eyJ0YWtlIjoxfQ==").await;
    upload(PRIVATE, "dl/big.bin", &vec![b'x'; 20_000_000], "video/webm", "").await;
}

#[tokio::test]
async fn downloads_ranges_conditions_head_and_info() {
    for (group, least) in
        [("download", 21), ("range", 17), ("conditional", 11), ("disposition", 6), ("head", 13), ("info", 12)]
    {
        let mut replay = Replay::new(recorded_cloud(FakeOptions::default()).await);
        readable(&replay.cloud).await;
        replay.time_conditions().await;
        play_on(&mut replay, group, async |_: &mut Replay, _: &str| {}).await;
        // The 20 MB were random when recorded: their ETag cannot be the same.
        replay.differences.retain(|text| !(text.contains("download 20 MB") && text.contains("etag")));
        verdict(replay, least);
    }
}

#[tokio::test]
async fn signed_downloads() {
    let mut replay = Replay::new(recorded_cloud(FakeOptions::default()).await);
    for key in ["sg/a.webm", "sg/b c.webm", "sg/q?x.webm"] {
        replay.cloud.put_object(PRIVATE, key, b"0123456789", "video/webm");
    }
    play_on(&mut replay, "signed-download", async |replay: &mut Replay, name: &str| match name {
        "signed URL after overwrite serves the new content" => {
            replay.cloud.put_object(PRIVATE, "sg/a.webm", b"new content", "video/webm");
        }
        "signed URL after delete" => assert!(replay.cloud.remove_object(PRIVATE, "sg/a.webm")),
        _ => {}
    })
    .await;
    verdict(replay, 33);
}

#[tokio::test]
async fn signed_uploads() {
    play("signed-upload", 15, nothing).await;
}

#[tokio::test]
async fn lists() {
    let keys = ["2026/a/chunk-001", "2026/a/chunk-002", "2026/a/chunk-010", "2026/b/chunk-001"]
        .into_iter()
        .chain(["top-b", "Top-a", "top_c"]);
    let mut replay = Replay::new(recorded_cloud(FakeOptions::default()).await);
    let put = async |cloud: &FakeSupabase, key: &str, bytes: &[u8]| {
        cloud.put_object(PRIVATE, key, bytes, "video/webm");
        // The recorded order by time needs times that differ in the milliseconds the answers show.
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    for key in keys {
        put(&replay.cloud, &format!("ls/{key}.webm"), b"0123456789").await;
    }
    put(&replay.cloud, "ls2/x.webm", b"0123456789").await;
    for n in 0..1250 {
        replay.cloud.put_object(PRIVATE, &format!("many/obj-{n:05}.webm"), b"x", "video/webm");
    }
    for key in ["srt/a.webm", "srt/B.webm", "srt/c.webm", "srt/D/x.webm", "srt/e/x.webm"] {
        put(&replay.cloud, key, b"x").await;
    }
    play_on(&mut replay, "list-v2", async |_: &mut Replay, _: &str| {}).await;
    play_on(&mut replay, "list", async |replay: &mut Replay, name: &str| {
        if name == "list when two folders differ only in case" {
            replay.cloud.put_object(PRIVATE, "SRT/z.webm", b"x", "video/webm");
        }
    })
    .await;
    verdict(replay, 58);
}

#[tokio::test]
async fn deletes() {
    play("delete", 20, async |cloud: &FakeSupabase| {
        for key in ["del/a.webm", "del/b.webm", "del/c.webm", "del/dir/d.webm"] {
            cloud.put_object(PRIVATE, key, b"0123456789", "video/webm");
        }
        for n in 0..1250 {
            cloud.put_object(PRIVATE, &format!("many/obj-{n:05}.webm"), b"x", "video/webm");
        }
    })
    .await;
}

#[tokio::test]
async fn moves_and_copies() {
    for (group, key, cache_control) in
        [("move", "mv/a.webm", "no-cache"), ("copy", "cp/a.webm", "max-age=60")]
    {
        play(group, 12, async |cloud: &FakeSupabase| {
            let answer = reqwest::Client::new()
                .post(format!("{}/object/{PRIVATE}/{key}", cloud.url()))
                .bearer_auth(cloud.service_key())
                .header("content-type", "video/webm")
                .header("cache-control", cache_control)
                .header("x-metadata", "eyJtIjogMX0=")
                .body("AAA");
            assert_eq!(answer.send().await.expect("an answer").status(), 200);
            cloud.put_object(PRIVATE, "mv/taken.webm", b"x", "video/webm");
            cloud.put_object(PRIVATE, "sess/noct.bin", b"hello webm bytes", "application/octet-stream");
        })
        .await;
    }
}

#[tokio::test]
async fn resumable_uploads() {
    let mut replay = Replay::new(recorded_cloud(FakeOptions::default()).await);
    for group in ["tus", "tus-create", "tus-life", "tus-signed"] {
        play_on(&mut replay, group, async |replay: &mut Replay, name: &str| match name {
            "its cache-control" => {
                let id = "cHJpdmF0ZS1yZWNvcmRpbmdzL3R1cy9jYy53ZWJtLzY0MjY4MTJiLTQwYjItNDVlOC1iOTQzLTM1MDkxZWIwYjJmYw";
                replay.append(id, 0, b"0123456789").await;
            }
            "HEAD while a PATCH is in flight" => {
                let id = "cHJpdmF0ZS1yZWNvcmRpbmdzL3R1cy9sb2NrLndlYm0vMmE2YzhhNGQtZjQ3Ni00YTJlLThkOGEtZDc0NjU0ZmIwODQ2";
                replay.append(id, 0, b"012").await;
            }
            _ => {}
        })
        .await;
    }
    verdict(replay, 99);
}

#[tokio::test]
async fn official_clients_as_recorded() {
    let mut replay = Replay::new(recorded_cloud(FakeOptions::default()).await);
    play_on(&mut replay, "as sent by storage-js 2.109.0", async |_: &mut Replay, _: &str| {}).await;
    play_on(&mut replay, "as sent by tus-js-client 4.3.1", async |_: &mut Replay, _: &str| {}).await;
    verdict(replay, 59);
}

#[tokio::test]
async fn connection_after_an_early_error_answers_the_same() {
    play("connection-after-early-error", 14, async |cloud: &FakeSupabase| {
        cloud.put_object(PRIVATE, "conn/dup.webm", b"x", "video/webm");
    })
    .await;
}

#[tokio::test]
async fn odd_uploads() {
    play("upload-misc", 4, nothing).await;
}

#[tokio::test]
async fn size_limits_of_the_server() {
    let options =
        FakeOptions { global_limit: 5_000_000, standard_limit: Some(2_000_000), ..FakeOptions::default() };
    let cloud = FakeSupabase::start_with(options).await;
    cloud.create_bucket(BucketSpec { name: PRIVATE.into(), ..BucketSpec::default() });
    let mut replay = Replay::new(cloud);
    let group = "config: UPLOAD_FILE_SIZE_LIMIT=5000000, UPLOAD_FILE_SIZE_LIMIT_STANDARD=2000000";
    play_on(&mut replay, group, async |_: &mut Replay, _: &str| {}).await;
    verdict(replay, 13);
}

#[tokio::test]
async fn where_resumable_uploads_say_they_are() {
    let trusting = FakeOptions { trust_forwarded_prefix: true, ..FakeOptions::default() };
    let elsewhere =
        FakeOptions { public_url: Some("https://public.example".into()), ..FakeOptions::default() };
    for (group, options, least) in [
        ("config: REQUEST_ALLOW_X_FORWARDED_PATH=true", trusting, 2),
        ("config: STORAGE_PUBLIC_URL=https://public.example", elsewhere, 1),
    ] {
        let mut replay = Replay::new(recorded_cloud(options).await);
        play_on(&mut replay, group, async |_: &mut Replay, _: &str| {}).await;
        verdict(replay, least);
    }
}

#[tokio::test]
async fn policies() {
    let mut replay = Replay::new(recorded_cloud(FakeOptions::default()).await);
    let policy = |role: &str, rights: &[Right]| Policy {
        role: role.to_owned(),
        bucket: PRIVATE.to_owned(),
        key_prefix: "rls/".to_owned(),
        rights: rights.to_vec(),
    };
    replay.cloud.allow(policy("anon", &[Right::Insert]));
    let group = "rls: insert policy only, for anon, keys below rls/";
    play_on(&mut replay, group, async |_: &mut Replay, _: &str| {}).await;
    replay
        .cloud
        .allow(policy("authenticated", &[Right::Insert, Right::Select, Right::Update, Right::Delete]));
    let group = "rls: insert + select + update + delete policies for authenticated";
    play_on(&mut replay, group, async |_: &mut Replay, _: &str| {}).await;
    verdict(replay, 15);
}

#[tokio::test]
async fn rows_without_bytes() {
    let mut replay =
        Replay::new(recorded_cloud(FakeOptions { bodies: Bodies::Discard, ..Default::default() }).await);
    let answer = reqwest::Client::new()
        .post(format!("{}/object/{PRIVATE}/flt/gone.webm", replay.cloud.url()))
        .bearer_auth(replay.cloud.service_key())
        .header("content-type", "video/webm")
        .body("0123456789");
    assert_eq!(answer.send().await.expect("an answer").status(), 200);
    play_on(&mut replay, "fault-backend", async |_: &mut Replay, _: &str| {}).await;
    verdict(replay, 5);
}

/// The scripted faults answer in the words of the real server.
#[tokio::test]
async fn broken_databases() {
    let mut replay = Replay::new(recorded_cloud(FakeOptions::default()).await);
    for key in ["flt/ok.webm", "flt/row.webm"] {
        replay.cloud.put_object(PRIVATE, key, b"0123456789", "video/webm");
    }
    play_on(&mut replay, "fault-database", async |replay: &mut Replay, name: &str| {
        replay.cloud.clear_faults();
        let fault = match name {
            name if name.contains("refused)") && !name.ends_with("status") => Fault::internal_error(),
            name if name.contains("locked by somebody") => Fault::database_timeout(),
            name if name.contains("no free connection") => Fault::slow_down(None),
            "database read-only: upload" | "database read-only: delete" => Fault::database_read_only(),
            "database read-only: tus create" => {
                let message = "The database is currently in read-only mode. Please try again later.";
                Fault::resumable_refusal(503, message)
            }
            _ => return,
        };
        replay.cloud.fault(fault, Matcher::any());
    })
    .await;
    verdict(replay, 15);
}
