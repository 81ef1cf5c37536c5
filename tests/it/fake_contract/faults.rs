//! Every scripted fault does what it says, once and on the requests it was armed for, and ends with the fake.
//!
//! Apart from the replayed groups because the real server was never asked to do these things.

use std::time::{Duration, Instant};

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::fake_supabase::{
    Bodies, Canned, DEFAULT_BUCKET, FakeOptions, FakeSupabase, Fault, Matcher,
};

const SHORT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);

/// A request with the service key; the client gives up after a while.
async fn ask(
    cloud: &FakeSupabase,
    method: Method,
    path: &str,
    body: Vec<u8>,
    patience: Duration,
) -> reqwest::Result<Response> {
    let kind = if body.starts_with(b"{") { "application/json" } else { "video/webm" };
    let request = reqwest::Client::new()
        .request(method, format!("{}/storage/v1{path}", cloud.url()))
        .bearer_auth(cloud.service_key())
        .timeout(patience);
    match body.is_empty() {
        true => request.send().await,
        false => request.header("content-type", kind).body(body).send().await,
    }
}

async fn upload(cloud: &FakeSupabase, key: &str, size: usize) -> reqwest::Result<Response> {
    ask(cloud, Method::POST, &format!("/object/{DEFAULT_BUCKET}/{key}"), vec![b'x'; size], PATIENCE).await
}

fn on_uploads() -> Matcher {
    Matcher::any().method("POST").path("/object/")
}

#[tokio::test]
async fn canned_answers_come_as_often_as_armed_and_store_nothing() {
    let cloud = FakeSupabase::start().await;
    let page = cloud.fault(Fault::bad_gateway(), on_uploads().times(1));
    let wait = cloud.fault(Fault::slow_down(Some(7)), on_uploads().times(1));
    let early = Fault::EarlyStatus(Canned::json(503, &json!({"message": "upstream"})));
    cloud.fault(early, on_uploads().times(1).skip(1));
    let answer = upload(&cloud, "a.webm", 10).await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (502, &"text/html".parse().unwrap())
    );
    let answer = upload(&cloud, "a.webm", 10).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &"7".parse().unwrap()));
    assert_eq!((page.hits(), wait.hits()), (1, 1));
    assert!(cloud.keys(DEFAULT_BUCKET).is_empty());
    assert_eq!(upload(&cloud, "a.webm", 10).await.expect("an answer").status(), 200, "the third skips one");
    assert_eq!(upload(&cloud, "b.webm", 5_000_000).await.expect("an answer").status(), 503);
    assert_eq!(upload(&cloud, "c.webm", 10).await.expect("an answer").status(), 200);
    assert_eq!(cloud.keys(DEFAULT_BUCKET), ["a.webm", "c.webm"]);
    let seen = cloud.requests();
    assert_eq!((seen.len(), seen[0].body_len, seen[0].status), (5, 10, Some(502)));
    assert_eq!(seen[0].header("content-type"), Some("video/webm"));
}

#[tokio::test]
async fn a_fault_can_be_removed_and_spares_other_requests() {
    let cloud = FakeSupabase::start().await;
    let fault = cloud.fault(Fault::internal_error(), on_uploads());
    assert_eq!(upload(&cloud, "a.webm", 10).await.expect("an answer").status(), 500);
    let status = ask(&cloud, Method::GET, "/status", Vec::new(), PATIENCE).await.expect("an answer");
    assert_eq!(status.status(), 200);
    fault.remove();
    assert_eq!(upload(&cloud, "a.webm", 10).await.expect("an answer").status(), 200);
    cloud.fault(Fault::internal_error(), Matcher::any());
    cloud.clear_faults();
    assert_eq!(upload(&cloud, "b.webm", 10).await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn delays_and_hangs() {
    let cloud = FakeSupabase::start().await;
    let armed = cloud.fault(Fault::Delay(SHORT), on_uploads().times(1));
    let start = Instant::now();
    assert_eq!(upload(&cloud, "late.webm", 10).await.expect("an answer").status(), 200);
    assert!(start.elapsed() >= SHORT && armed.hits() == 1);
    for fault in [Fault::BlackHole, Fault::ReadThenHang] {
        cloud.forget_requests();
        cloud.fault(fault.clone(), on_uploads().times(1));
        let path = format!("/object/{DEFAULT_BUCKET}/hung.webm");
        let patience = Duration::from_secs(2);
        let error =
            ask(&cloud, Method::POST, &path, vec![b'x'; 1000], patience).await.expect_err("no answer");
        assert!(error.is_timeout(), "{error:?}");
        let read = if matches!(fault, Fault::BlackHole) { 0 } else { 1000 };
        assert_eq!(cloud.requests()[0].body_len, read);
    }
    assert_eq!(cloud.keys(DEFAULT_BUCKET), ["late.webm"]);
}

#[tokio::test]
async fn a_hang_ends_when_the_cloud_stops_or_goes() {
    let cloud = FakeSupabase::start().await;
    cloud.fault(Fault::BlackHole, on_uploads());
    let (answer, ()) = tokio::join!(upload(&cloud, "a.webm", 10), async {
        cloud.wait_until("the request hangs", PATIENCE, |cloud| cloud.requests().len() == 1).await;
        cloud.stop().await;
    });
    assert!(!answer.expect_err("cut off").is_timeout());
    let refused = upload(&cloud, "a.webm", 10).await.expect_err("nobody listens");
    assert!(refused.is_connect(), "{refused:?}");
    cloud.clear_faults();
    cloud.restart_on_same_port().await;
    assert_eq!(upload(&cloud, "a.webm", 10).await.expect("an answer").status(), 200);
    let url = cloud.url();
    cloud.fault(Fault::ReadThenHang, Matcher::any());
    let hung = tokio::spawn(reqwest::Client::new().get(format!("{url}/status")).timeout(PATIENCE).send());
    cloud.wait_until("the second hangs", PATIENCE, |cloud| cloud.requests().len() == 3).await;
    drop(cloud);
    assert!(!hung.await.expect("no panic").expect_err("cut off").is_timeout());
}

#[tokio::test]
async fn broken_connections_and_answers() {
    let cloud = FakeSupabase::start().await;
    cloud.fault(Fault::ResetAfterRequestBytes(100_000), on_uploads().times(1));
    assert!(upload(&cloud, "a.webm", 20_000_000).await.is_err());
    let read = cloud.requests()[0].body_len;
    assert!((100_000..20_000_000).contains(&read), "{read}");
    assert!(cloud.keys(DEFAULT_BUCKET).is_empty());
    cloud.fault(Fault::HalfBody, on_uploads().times(1));
    let answer = upload(&cloud, "half.webm", 10).await.expect("a head");
    assert_eq!(answer.status(), 200);
    assert!(answer.bytes().await.is_err(), "the answer is cut");
    cloud.fault(Fault::GarbageJson, on_uploads().times(1));
    let answer = upload(&cloud, "garbage.webm", 10).await.expect("an answer");
    assert!(answer.json::<Value>().await.is_err());
    cloud.fault(Fault::StoredButError, on_uploads().times(1));
    assert_eq!(upload(&cloud, "error.webm", 10).await.expect("an answer").status(), 500);
    cloud.fault(Fault::StoredThenReset, on_uploads().times(1));
    assert!(upload(&cloud, "reset.webm", 10).await.is_err());
    assert_eq!(cloud.keys(DEFAULT_BUCKET), ["error.webm", "garbage.webm", "half.webm", "reset.webm"]);
    let path = format!("/object/public/{DEFAULT_BUCKET}/half.webm");
    cloud.fault(Fault::HalfBody, Matcher::any().method("GET").times(1));
    let answer = ask(&cloud, Method::GET, &path, Vec::new(), PATIENCE).await.expect("a head");
    assert!(answer.bytes().await.is_err(), "the download is cut");
}

#[tokio::test]
async fn lies() {
    let cloud = FakeSupabase::start().await;
    cloud.fault(Fault::SaidStoredButShort(4), on_uploads().times(1));
    assert_eq!(upload(&cloud, "short.webm", 10).await.expect("an answer").status(), 200);
    assert_eq!(cloud.object(DEFAULT_BUCKET, "short.webm").expect("stored").size, 4);
    cloud.fault(Fault::SaidStoredButNothing, on_uploads().times(1));
    assert_eq!(upload(&cloud, "nothing.webm", 10).await.expect("an answer").status(), 200);
    assert!(cloud.object(DEFAULT_BUCKET, "nothing.webm").is_none());
    cloud.fault(Fault::DeleteSaysOkButKeeps, Matcher::any().method("DELETE").times(2));
    let one = format!("/object/{DEFAULT_BUCKET}/short.webm");
    let answer = ask(&cloud, Method::DELETE, &one, Vec::new(), PATIENCE).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let many = format!("/object/{DEFAULT_BUCKET}");
    let body = br#"{"prefixes":["short.webm"]}"#.to_vec();
    let answer = ask(&cloud, Method::DELETE, &many, body, PATIENCE).await.expect("an answer");
    assert_eq!(answer.json::<Value>().await.expect("JSON")[0]["name"], "short.webm");
    assert_eq!(cloud.keys(DEFAULT_BUCKET), ["short.webm"]);
    for n in 0..9 {
        cloud.put_object(DEFAULT_BUCKET, &format!("many/{n}.webm"), b"x", "video/webm");
    }
    cloud.fault(Fault::TruncatedList, Matcher::any().path("/list"));
    for (route, body, place) in [("list", r#"{"prefix":"many"}"#, ""), ("list-v2", "{}", "/objects")] {
        let path = format!("/object/{route}/{DEFAULT_BUCKET}");
        let answer = ask(&cloud, Method::POST, &path, body.into(), PATIENCE).await.expect("an answer");
        let listed: Value = answer.json().await.expect("JSON");
        let length = listed.pointer(place).and_then(Value::as_array).expect("a list").len();
        assert!((1..9).contains(&length), "{route}: {length}");
    }
}

#[tokio::test]
async fn lies_about_resumable_uploads() {
    let cloud = FakeSupabase::start().await;
    // interview-recordings, r.webm
    let metadata = "bucketName aW50ZXJ2aWV3LXJlY29yZGluZ3M=,objectName ci53ZWJt";
    let mut sizes = Vec::new();
    for fault in [Fault::SaidStoredButShort(4), Fault::SaidStoredButNothing] {
        cloud.remove_object(DEFAULT_BUCKET, "r.webm");
        cloud.fault(fault, Matcher::any().path("/upload/resumable").times(1));
        let request = reqwest::Client::new()
            .post(format!("{}/storage/v1/upload/resumable", cloud.url()))
            .bearer_auth(cloud.service_key())
            .header("tus-resumable", "1.0.0")
            .header("upload-length", 10)
            .header("upload-metadata", metadata)
            .header("content-type", "application/offset+octet-stream")
            .body("0123456789");
        let answer = request.send().await.expect("an answer");
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["tus-complete"]),
            (201, &"1".parse().unwrap())
        );
        sizes.push(cloud.object(DEFAULT_BUCKET, "r.webm").map(|object| object.size));
    }
    assert_eq!(sizes, [Some(4), None]);
    assert_eq!(cloud.resumable_uploads().len(), 2);
    cloud.expire_resumable_uploads();
    assert!(cloud.resumable_uploads().is_empty());
}

#[tokio::test]
async fn slow_reading_slows_the_sender() {
    let cloud = FakeSupabase::start().await;
    cloud.fault(Fault::SlowRead(200_000), on_uploads().times(1));
    let start = Instant::now();
    assert_eq!(upload(&cloud, "slow.webm", 100_000).await.expect("an answer").status(), 200);
    assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
    assert_eq!(cloud.object(DEFAULT_BUCKET, "slow.webm").expect("stored").size, 100_000);
}

#[tokio::test]
async fn discarded_bodies_are_counted_and_hashed() {
    let cloud =
        FakeSupabase::start_with(FakeOptions { bodies: Bodies::Discard, ..FakeOptions::default() }).await;
    assert_eq!(upload(&cloud, "big.webm", 10).await.expect("an answer").status(), 200);
    let object = cloud.object(DEFAULT_BUCKET, "big.webm").expect("stored");
    assert_eq!((object.size, object.bytes.len()), (10, 0));
    assert_eq!(object.md5, "336311a016184326ddbdd61edd4eeb52", "MD5 of ten x");
}
