//! What single recorded answers cannot show: what the connection does, and requests that overlap.
//!
//! Apart from the replayed groups because each test here drives its connections by hand.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::raw_client::receive;
use super::{PRIVATE, recorded_cloud};
use crate::support::fake_supabase::{FakeOptions, FakeSupabase};

const PATIENCE: Duration = Duration::from_secs(10);

fn head(cloud: &FakeSupabase, method: &str, path: &str, headers: &str) -> Vec<u8> {
    let key = cloud.service_key();
    let host = cloud.address();
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n{headers}\r\n")
        .into_bytes()
}

async fn connect(cloud: &FakeSupabase) -> TcpStream {
    TcpStream::connect(cloud.address()).await.expect("the fake listens")
}

/// Sends an upload with its whole body, reads the answer, then asks for `/status` on the same connection.
/// Gives the upload's status and, when one came in time, that of the second request.
async fn upload_then_status(
    cloud: &FakeSupabase,
    path: &str,
    headers: &str,
    body: usize,
) -> (u16, Option<u16>) {
    let mut stream = connect(cloud).await;
    let headers = format!("Content-Type: video/webm\r\nContent-Length: {body}\r\n{headers}");
    stream.write_all(&head(cloud, "POST", path, &headers)).await.expect("sent");
    let (mut read, mut write) = stream.split();
    let bytes = vec![b'x'; body];
    let (_, answer) = tokio::join!(write.write_all(&bytes), receive(&mut read, false, false));
    if write.write_all(&head(cloud, "GET", "/status", "")).await.is_err() {
        return (answer.status, None);
    }
    let second = timeout(Duration::from_secs(2), receive(&mut read, false, false)).await;
    (answer.status, second.ok().map(|answer| answer.status))
}

#[tokio::test]
async fn late_refusals_leave_a_connection_that_never_answers_again() {
    let cloud = recorded_cloud(FakeOptions::default()).await;
    cloud.put_object(PRIVATE, "dup.webm", b"x", "video/webm");
    for (path, why) in [("dup.webm", "a duplicate"), ("%23.webm", "an invalid key")] {
        let path = format!("/object/{PRIVATE}/{path}");
        assert_eq!(upload_then_status(&cloud, &path, "", 1_500_000).await, (400, None), "{why}");
        assert_eq!(
            upload_then_status(&cloud, &path, "", 1000).await,
            (400, Some(200)),
            "{why}, a small body"
        );
    }
}

#[tokio::test]
async fn early_refusals_leave_a_good_connection() {
    let cloud = recorded_cloud(FakeOptions::default()).await;
    for path in ["/object/nobucket/x.webm", "/object/limited-recordings/x.webm"] {
        assert_eq!(upload_then_status(&cloud, path, "", 1_500_000).await, (400, Some(200)), "{path}");
    }
}

#[tokio::test]
async fn a_half_read_connection_is_reset_in_the_end() {
    let options = FakeOptions { late_refusal_reset: Duration::from_millis(300), ..FakeOptions::default() };
    let cloud = recorded_cloud(options).await;
    cloud.put_object(PRIVATE, "dup.webm", b"x", "video/webm");
    let mut stream = connect(&cloud).await;
    let headers = "Content-Type: video/webm\r\nContent-Length: 30000000\r\n";
    let path = format!("/object/{PRIVATE}/dup.webm");
    stream.write_all(&head(&cloud, "POST", &path, headers)).await.expect("sent");
    let answer = receive(&mut stream, false, false).await;
    assert_eq!((answer.status, answer.header("connection")), (400, Some("keep-alive")));
    let writing = async {
        loop {
            if let Err(error) = stream.write_all(&[b'x'; 65_536]).await {
                return error;
            }
        }
    };
    let error = timeout(PATIENCE, writing).await.expect("the server loses patience");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Uploads 5 MB to a taken key with `Connection: close`, as an ordinary client does.
async fn refused_upload(cloud: &FakeSupabase) -> reqwest::Result<reqwest::Response> {
    let request = reqwest::Client::new()
        .post(format!("{}/storage/v1/object/{PRIVATE}/dup.webm", cloud.url()))
        .bearer_auth(cloud.service_key())
        .header("content-type", "video/webm")
        .header("connection", "close")
        .body(vec![b'x'; 5_000_000]);
    timeout(PATIENCE, request.send()).await.expect("in time")
}

#[tokio::test]
async fn asking_for_close_ends_the_connection_with_the_answer() {
    let cloud = recorded_cloud(FakeOptions::default()).await;
    cloud.put_object(PRIVATE, "dup.webm", b"x", "video/webm");
    for _ in 0..20 {
        let answer = refused_upload(&cloud).await.expect("an answer while still writing");
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["connection"]),
            (400, &"close".parse().unwrap())
        );
        assert!(answer.text().await.expect("the answer is whole").contains("KeyAlreadyExists"));
    }
}

#[tokio::test]
async fn closing_at_once_may_cost_the_client_the_answer() {
    let cloud = recorded_cloud(FakeOptions { close_linger: None, ..FakeOptions::default() }).await;
    cloud.put_object(PRIVATE, "dup.webm", b"x", "video/webm");
    let mut lost = 0;
    for _ in 0..20 {
        match refused_upload(&cloud).await {
            Ok(answer) => assert_eq!(answer.status(), 400),
            Err(error) => {
                assert!(error.is_request(), "{error:?}");
                lost += 1;
            }
        }
    }
    assert!(lost > 0, "a close at once was never seen as a broken pipe");
}

#[tokio::test]
async fn an_object_appears_with_its_last_byte_and_the_last_to_finish_wins() {
    let cloud = recorded_cloud(FakeOptions::default()).await;
    let path = format!("/object/{PRIVATE}/inflight.webm");
    let mut first = connect(&cloud).await;
    let headers = "Content-Type: video/webm\r\nContent-Length: 20\r\n";
    first.write_all(&head(&cloud, "POST", &path, headers)).await.expect("sent");
    first.write_all(b"0123456789").await.expect("sent");
    cloud.wait_until("the first upload is received", PATIENCE, |cloud| cloud.open_uploads() == 1).await;
    assert!(cloud.object(PRIVATE, "inflight.webm").is_none());
    // No lock: a second upload of the same new key is let in and told 200, and so is the first afterwards.
    let (second, _) = upload_then_status(&cloud, &path, "", 31).await;
    assert_eq!(second, 200);
    assert_eq!(cloud.object(PRIVATE, "inflight.webm").expect("stored").size, 31);
    first.write_all(b"abcdefghij").await.expect("sent");
    assert_eq!(receive(&mut first, false, false).await.status, 200);
    assert_eq!(cloud.object(PRIVATE, "inflight.webm").expect("stored").bytes, b"0123456789abcdefghij");
}

#[tokio::test]
async fn many_at_once_may_all_be_told_yes() {
    let cloud = recorded_cloud(FakeOptions::default()).await;
    let path = format!("/object/{PRIVATE}/race.webm");
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(&cloud).await;
        let headers = "Content-Type: video/webm\r\nContent-Length: 2\r\n";
        stream.write_all(&head(&cloud, "POST", &path, headers)).await.expect("sent");
        stream.write_all(b"x").await.expect("sent");
        streams.push(stream);
    }
    cloud.wait_until("all eight are in", PATIENCE, |cloud| cloud.open_uploads() == 8).await;
    for mut stream in streams {
        stream.write_all(b"y").await.expect("sent");
        assert_eq!(receive(&mut stream, false, false).await.status, 200);
    }
}

/// Creates a resumable upload of `length` bytes and gives its path.
async fn create_resumable(cloud: &FakeSupabase, length: u64) -> String {
    // private-recordings, tus/lock.webm
    let metadata = "bucketName cHJpdmF0ZS1yZWNvcmRpbmdz,objectName dHVzL2xvY2sud2VibQ==";
    let answer = reqwest::Client::new()
        .post(format!("{}/storage/v1/upload/resumable", cloud.url()))
        .bearer_auth(cloud.service_key())
        .header("tus-resumable", "1.0.0")
        .header("upload-length", length)
        .header("upload-metadata", metadata);
    let answer = answer.send().await.expect("an answer");
    assert_eq!(answer.status(), 201);
    let location = answer.headers()["location"].to_str().expect("text").to_owned();
    location.strip_prefix(&cloud.url()).expect("on this host").to_owned()
}

const PATCH: &str =
    "Tus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\nUpload-Offset: 0\r\n";

#[tokio::test]
async fn a_newcomer_cuts_the_running_patch_short() {
    let cloud = recorded_cloud(FakeOptions::default()).await;
    let path = create_resumable(&cloud, 10).await;
    let mut running = connect(&cloud).await;
    let headers = format!("{PATCH}Content-Length: 10\r\n");
    running.write_all(&head(&cloud, "PATCH", &path, &headers)).await.expect("sent");
    running.write_all(b"012").await.expect("sent");
    let taken = |cloud: &FakeSupabase| cloud.open_uploads() == 1;
    cloud.wait_until("the PATCH is received", PATIENCE, taken).await;
    let mut newcomer = connect(&cloud).await;
    newcomer.write_all(&head(&cloud, "HEAD", &path, "Tus-Resumable: 1.0.0\r\n")).await.expect("sent");
    let offset = timeout(PATIENCE, receive(&mut newcomer, true, false)).await.expect("in time");
    let cut = timeout(PATIENCE, receive(&mut running, false, true)).await.expect("in time");
    assert_eq!((offset.status, cut.status, cut.closed), (200, 204, true));
    assert_eq!(cut.header("upload-offset"), offset.header("upload-offset"));
    assert!(cloud.object(PRIVATE, "tus/lock.webm").is_none());
}

#[tokio::test]
async fn of_four_equal_patches_one_is_taken() {
    let cloud = recorded_cloud(FakeOptions::default()).await;
    let path = create_resumable(&cloud, 10).await;
    let mut statuses = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(&cloud).await;
        let mut request = head(&cloud, "PATCH", &path, &format!("{PATCH}Content-Length: 10\r\n"));
        request.extend_from_slice(b"0123456789");
        stream.write_all(&request).await.expect("sent");
        streams.push(stream);
    }
    for mut stream in streams {
        statuses.push(timeout(PATIENCE, receive(&mut stream, false, false)).await.expect("in time").status);
    }
    statuses.sort();
    assert_eq!(statuses, [204, 409, 409, 409]);
    assert_eq!(cloud.object(PRIVATE, "tus/lock.webm").expect("stored").bytes, b"0123456789");
}

#[tokio::test]
async fn a_patch_that_turns_out_too_long_keeps_nothing() {
    let cloud = recorded_cloud(FakeOptions::default()).await;
    let path = create_resumable(&cloud, 10).await;
    let mut stream = connect(&cloud).await;
    let headers = format!("{PATCH}Transfer-Encoding: chunked\r\n");
    stream.write_all(&head(&cloud, "PATCH", &path, &headers)).await.expect("sent");
    stream.write_all(b"6\r\nwrong!\r\n").await.expect("sent");
    cloud.wait_until("the PATCH is received", PATIENCE, |cloud| cloud.open_uploads() == 1).await;
    stream.write_all(b"6\r\nwrong!\r\n0\r\n\r\n").await.expect("sent");
    let answer = timeout(PATIENCE, receive(&mut stream, false, true)).await.expect("in time");
    assert_eq!((answer.status, answer.closed), (413, true));
    let mut stream = connect(&cloud).await;
    stream.write_all(&head(&cloud, "HEAD", &path, "Tus-Resumable: 1.0.0\r\n")).await.expect("sent");
    assert_eq!(receive(&mut stream, true, false).await.header("upload-offset"), Some("0"));
    let mut request = head(&cloud, "PATCH", &path, &format!("{PATCH}Content-Length: 10\r\n"));
    request.extend_from_slice(b"0123456789");
    stream.write_all(&request).await.expect("sent");
    assert_eq!(receive(&mut stream, false, false).await.status, 204);
    let object = cloud.object(PRIVATE, "tus/lock.webm").expect("stored");
    assert_eq!(
        (object.bytes.as_slice(), object.md5.as_str()),
        (&b"0123456789"[..], "781e5e245d69b566979b86e28d23f2c7")
    );
}
