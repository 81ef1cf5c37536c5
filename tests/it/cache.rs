//! Cloud recordings that are played often come from the disk, and nobody can tell but by the cloud's silence.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Response;
use serde_json::Value;

use crate::support::cloud::{BUCKET, PATIENT};
use crate::support::eventually;
use crate::support::fake_supabase::{FakeSupabase, Fault, Matcher};
use crate::support::gateway::Gateway;
use crate::support::media::{sha256, webm};

const SIZE: usize = 700_000;

/// A gateway with a cache of `cache_bytes` behind `cloud`.
async fn caching(cloud: &FakeSupabase, cache_bytes: &str) -> Gateway {
    let mut settings = PATIENT.to_vec();
    settings.extend([
        ("download.via", "proxy"),
        ("download.cache_bytes", cache_bytes),
        ("storage.min_free", "0"),
    ]);
    Gateway::with_cloud_and(cloud, &settings).await
}

/// Uploads `bytes`, which go to the cloud; returns `session_id/filename`.
async fn in_cloud(gateway: &Gateway, bytes: &[u8]) -> String {
    let (status, answer) = gateway.upload("s", bytes.to_vec()).await;
    assert_eq!((status, &answer["storage_type"]), (200, &Value::from("supabase")), "{answer}");
    answer["file_path"].as_str().unwrap().to_owned()
}

fn cached(gateway: &Gateway) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(gateway.recordings_dir().join(".cache")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn is_cached(gateway: &Gateway, bytes: &[u8]) -> bool {
    gateway.recordings_dir().join(".cache").join(sha256(bytes)).exists()
}

/// How often the bytes of the object were fetched from the cloud.
fn fetches(cloud: &FakeSupabase, path: &str) -> usize {
    let is_fetch = |method: &str, at: &str| {
        method == "GET" && at.contains("/object/authenticated/") && at.ends_with(path)
    };
    cloud.requests().iter().filter(|seen| is_fetch(&seen.method, &seen.path)).count()
}

async fn play(gateway: &Gateway, path: &str, bytes: &[u8]) {
    assert!(gateway.bytes(path).await == bytes, "other bytes are played");
}

/// Plays it until it is cached.
async fn take_in(gateway: &Gateway, path: &str, bytes: &[u8]) {
    play(gateway, path, bytes).await;
    play(gateway, path, bytes).await;
    eventually("it is cached", async || is_cached(gateway, bytes)).await;
    eventually("nothing of it is left elsewhere", async || {
        std::fs::read_dir(gateway.recordings_dir().join(".spool")).unwrap().count() == 0
    })
    .await;
}

async fn get(gateway: &Gateway, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = gateway.request(method, &format!("/recordings/{path}/content"));
    let request = headers.iter().fold(request, |request, (key, value)| request.header(*key, *value));
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_play_takes_it_in_and_from_then_on_the_cloud_is_not_asked_for_bytes() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "10MiB").await;
    let bytes = webm(SIZE, 1);
    let path = in_cloud(&gateway, &bytes).await;
    cloud.forget_requests();
    play(&gateway, &path, &bytes).await;
    // Questions, probes and parts from the middle are no plays.
    get(&gateway, "HEAD", &path, &[]).await;
    for range in ["bytes=0-1", "bytes=1000-", "bytes=-5"] {
        get(&gateway, "GET", &path, &[("range", range)]).await.bytes().await.unwrap();
    }
    assert!(cached(&gateway).is_empty(), "played once");
    let before = fetches(&cloud, &path);
    take_in(&gateway, &path, &bytes).await;
    let after = fetches(&cloud, &path);
    assert!(after > before, "the fake cloud counts fetches");
    for _ in 0..3 {
        play(&gateway, &path, &bytes).await;
    }
    assert_eq!(fetches(&cloud, &path), after);
    // A redirect goes to the cloud as ever.
    let redirect = gateway.get(&format!("/recordings/{path}/content?via=redirect")).await;
    assert_eq!(redirect.status(), 307);
    let metrics = gateway.get("/metrics").await.text().await.unwrap();
    for name in ["gateway_cache_bytes", "gateway_cache_requests_total{outcome=\"hit\"}", "{outcome=\"miss\"}"]
    {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_nothing_is_kept() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "0").await;
    let bytes = webm(SIZE, 1);
    let path = in_cloud(&gateway, &bytes).await;
    for _ in 0..4 {
        play(&gateway, &path, &bytes).await;
    }
    assert!(!gateway.recordings_dir().join(".cache").exists());
    gateway.stop().await;
}

/// Every answer is compared with the one of the same request before the recording was cached.
#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_byte_for_byte() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "10MiB").await;
    let bytes = webm(SIZE, 2);
    let path = in_cloud(&gateway, &bytes).await;
    let whole = get(&gateway, "HEAD", &path, &[]).await;
    let field = |name: &str| whole.headers()[name].to_str().unwrap().to_owned();
    let (etag, modified) = (field("etag"), field("last-modified"));
    let questions: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("HEAD", vec![]),
        ("HEAD", vec![("range", "bytes=5-9")]),
        ("GET", vec![("range", "bytes=0-0")]),
        ("GET", vec![("range", "bytes=100-299999")]),
        ("GET", vec![("range", "bytes=-1000")]),
        ("GET", vec![("range", "bytes=700000-")]),
        ("GET", vec![("range", "bytes=0-1,5-6")]),
        ("GET", vec![("range", "bytes=10-"), ("if-range", &etag)]),
        ("GET", vec![("range", "bytes=10-"), ("if-range", &modified)]),
        ("GET", vec![("range", "bytes=10-"), ("if-range", "\"other\"")]),
        ("GET", vec![("if-none-match", &etag)]),
        ("GET", vec![("if-match", "\"other\"")]),
        ("GET", vec![]),
    ];
    let ask = async |(method, headers): &(&str, Vec<(&str, &str)>)| {
        let answer = get(&gateway, method, &path, headers).await;
        let status = answer.status();
        let mut fields = answer.headers().clone();
        fields.remove("date");
        fields.remove("x-request-id");
        let body = answer.bytes().await.unwrap();
        // A problem's body names its request.
        (status, fields, if status.is_client_error() { Default::default() } else { body })
    };
    let mut before = Vec::new();
    for question in &questions {
        before.push(ask(question).await);
    }
    take_in(&gateway, &path, &bytes).await;
    let fetched = fetches(&cloud, &path);
    for (question, before) in questions.iter().zip(before) {
        assert!(ask(question).await == before, "{question:?}");
    }
    assert_eq!(fetches(&cloud, &path), fetched, "all of it came from here");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_play_at_once_cost_one_fetch_more() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "10MiB").await;
    let bytes = webm(SIZE, 3);
    let path = in_cloud(&gateway, &bytes).await;
    play(&gateway, &path, &bytes).await;
    cloud.forget_requests();
    let plays = (0..8).map(|_| play(&gateway, &path, &bytes));
    futures_util::future::join_all(plays).await;
    eventually("it is cached", async || is_cached(&gateway, &bytes)).await;
    assert!(fetches(&cloud, &path) <= 9, "{} fetches", fetches(&cloud, &path));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asked_before_it_was_kept_does_not_have_it_fetched_again() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "10MiB").await;
    let bytes = webm(SIZE, 14);
    let path = in_cloud(&gateway, &bytes).await;
    play(&gateway, &path, &bytes).await;
    cloud.forget_requests();
    let late = Matcher::any().method("GET").path("/object/authenticated/").times(2);
    cloud.fault(Fault::Delay(Duration::from_secs(2)), late);
    let late = async { tokio::join!(play(&gateway, &path, &bytes), play(&gateway, &path, &bytes)) };
    let taken_in = async {
        eventually("both were asked for", async || fetches(&cloud, &path) == 2).await;
        play(&gateway, &path, &bytes).await;
        eventually("it is cached", async || is_cached(&gateway, &bytes)).await;
    };
    tokio::join!(late, taken_in);
    gateway.settle().await;
    assert_eq!(fetches(&cloud, &path), 4, "each play but the first, and once for the cache");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_plays_while_the_cloud_is_away_and_after_a_restart() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "10MiB").await;
    let (bytes, other) = (webm(SIZE, 4), webm(SIZE, 5));
    let path = in_cloud(&gateway, &bytes).await;
    let uncached = in_cloud(&gateway, &other).await;
    take_in(&gateway, &path, &bytes).await;
    cloud.stop().await;
    play(&gateway, &path, &bytes).await;
    let answer = get(&gateway, "GET", &uncached, &[]).await;
    assert_eq!(answer.status(), 502, "the other is only there");
    let gateway = gateway.restart().await;
    assert_eq!(cached(&gateway).len(), 1);
    play(&gateway, &path, &bytes).await;
    gateway.stop().await;
}

/// Who takes an object out of the bucket means it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_from_the_bucket_is_not_played() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "10MiB").await;
    let bytes = webm(SIZE, 11);
    let path = in_cloud(&gateway, &bytes).await;
    take_in(&gateway, &path, &bytes).await;
    assert!(cloud.remove_object(BUCKET, &path));
    assert_eq!(get(&gateway, "GET", &path, &[]).await.status(), 404);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_the_recording_are_never_kept() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "10MiB").await;
    let (bytes, wrong) = (webm(SIZE, 6), webm(SIZE, 7));
    let path = in_cloud(&gateway, &bytes).await;
    // Same size, as the bucket's owner may put it there. What is played then is the cloud's answer, as without a cache.
    assert!(cloud.remove_object(BUCKET, &path));
    cloud.put_object(BUCKET, &path, &wrong, "video/webm");
    for _ in 0..4 {
        get(&gateway, "GET", &path, &[]).await.bytes().await.unwrap();
    }
    gateway.settle().await;
    assert!(cached(&gateway).is_empty());

    // One that breaks off leaves nothing either, and the next play tries again.
    let whole = webm(SIZE, 8);
    let path = in_cloud(&gateway, &whole).await;
    play(&gateway, &path, &whole).await;
    let half = Matcher::any().method("GET").path("/object/authenticated/").times(2);
    let broken = cloud.fault(Fault::HalfBody, half);
    let _ = get(&gateway, "GET", &path, &[]).await.bytes().await;
    eventually("both reads broke off", async || broken.hits() == 2).await;
    gateway.settle().await;
    assert!(cached(&gateway).is_empty());
    take_in(&gateway, &path, &whole).await;
    play(&gateway, &path, &whole).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_damaged_on_the_disk_is_fetched_again() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "10MiB").await;
    let bytes = webm(SIZE, 9);
    let path = in_cloud(&gateway, &bytes).await;
    take_in(&gateway, &path, &bytes).await;
    let file = cached(&gateway).pop().unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_len(SIZE as u64 - 1).unwrap();
    play(&gateway, &path, &bytes).await;
    assert!(!file.exists(), "cut short");
    take_in(&gateway, &path, &bytes).await;
    let dir = gateway.stop().await;
    // A flipped bit, while the gateway did not run.
    let mut rotten = bytes.clone();
    rotten[SIZE / 2] ^= 1;
    std::fs::write(
        file.file_name().map(|name| dir.path().join("recordings/.cache").join(name)).unwrap(),
        rotten,
    )
    .unwrap();
    std::fs::write(dir.path().join("recordings/.spool/form-left"), b"half of a fetch").unwrap();
    let mut settings = crate::support::gateway::cloud_settings(&cloud);
    settings.extend(
        [("download.via", "proxy"), ("download.cache_bytes", "10MiB")]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    let gateway = Gateway::start_in(dir, settings).await;
    play(&gateway, &path, &bytes).await;
    assert!(cached(&gateway).is_empty(), "damaged");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_recording_is_forgotten_and_one_with_the_same_bytes_plays_on() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "10MiB").await;
    let bytes = webm(SIZE, 10);
    let (first, second) = (in_cloud(&gateway, &bytes).await, in_cloud(&gateway, &bytes).await);
    take_in(&gateway, &first, &bytes).await;
    assert_eq!(gateway.delete(&format!("/recordings/{first}")).await.0, 200);
    assert!(cached(&gateway).is_empty(), "the bytes of a deleted recording stay");
    assert_eq!(get(&gateway, "GET", &first, &[]).await.status(), 404);
    take_in(&gateway, &second, &bytes).await;
    play(&gateway, &second, &bytes).await;
    // With its session too.
    assert_eq!(gateway.delete("/recordings/s").await.0, 200);
    assert!(cached(&gateway).is_empty());
    assert_eq!(get(&gateway, "GET", &second, &[]).await.status(), 404);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_played_go_first_and_what_is_too_large_never_comes() {
    let cloud = FakeSupabase::start().await;
    let gateway = caching(&cloud, "1500000").await;
    let all: Vec<Vec<u8>> = (20..23).map(|seed| webm(SIZE, seed)).collect();
    let mut paths = Vec::new();
    for bytes in &all {
        paths.push(in_cloud(&gateway, bytes).await);
    }
    take_in(&gateway, &paths[0], &all[0]).await;
    take_in(&gateway, &paths[1], &all[1]).await;
    play(&gateway, &paths[0], &all[0]).await;
    take_in(&gateway, &paths[2], &all[2]).await;
    assert!(
        is_cached(&gateway, &all[0]) && !is_cached(&gateway, &all[1]),
        "the second was played longest ago"
    );
    play(&gateway, &paths[1], &all[1]).await;

    let large = webm(1_500_001, 30);
    let path = in_cloud(&gateway, &large).await;
    for _ in 0..3 {
        play(&gateway, &path, &large).await;
    }
    gateway.settle().await;
    assert_eq!(cached(&gateway).len(), 2);
    gateway.stop().await;
}
