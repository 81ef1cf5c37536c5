//! Recordings come out again: ranges, conditions, cloud copies by proxy and by redirect, and nothing that is no recording.

use std::os::unix::fs::symlink;
use std::time::Duration;

use recording_gateway::domain::{ObjectKey, StoreKind};
use reqwest::Response;
use serde_json::Value;

use crate::support::fake_supabase::{BucketSpec, Canned, DEFAULT_BUCKET, FakeSupabase, Fault, Matcher};
use crate::support::gateway::{Gateway, within};
use crate::support::media::{sha256, webm};
use crate::support::raw_client::{bare, exchange};

const SIZE: usize = 700_000;

/// A gateway with one recording of [`SIZE`] bytes: here or in the cloud.
async fn with_one(cloud: Option<&FakeSupabase>) -> (Gateway, String, Vec<u8>) {
    let gateway = match cloud {
        Some(cloud) => Gateway::with_cloud_and(cloud, &[("download.via", "proxy")]).await,
        None => Gateway::local().await,
    };
    let bytes = webm(SIZE, 9);
    let (status, answer) = gateway.upload("s", bytes.clone()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["storage_type"], if cloud.is_some() { "supabase" } else { "local" });
    let path = format!("/recordings/{}", answer["file_path"].as_str().unwrap());
    (gateway, path, bytes)
}

async fn get(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = headers
        .iter()
        .fold(gateway.request("GET", path), |request, (key, value)| request.header(*key, *value));
    request.send().await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// What a crash between the rename and the catalogue can leave: a file under a name that the next upload gets too.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_same_name_and_size_never_stands_in_for_a_recording_in_the_cloud() {
    let cloud = FakeSupabase::start().await;
    let (gateway, path, bytes) = with_one(Some(&cloud)).await;
    let file_path = path.strip_prefix("/recordings/").unwrap();
    let file = gateway.recordings_dir().join(file_path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, webm(SIZE, 77)).unwrap();

    assert!(gateway.bytes(file_path).await == bytes, "the bytes of another recording are served");
    let info = gateway.get_json(&path).await;
    assert_eq!(info["stores"], serde_json::json!(["supabase"]));
    let list = gateway.get_json("/recordings/s/list").await;
    assert_eq!(list["recordings"][0]["stores"], serde_json::json!(["supabase"]));

    assert_eq!(gateway.delete(&path).await.0, 200);
    assert!(!file.exists(), "nothing of that name stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_give_exactly_the_bytes_that_were_asked_for() {
    let cloud = FakeSupabase::start().await;
    for cloud in [None, Some(&cloud)] {
        let (gateway, path, bytes) = with_one(cloud).await;
        let content = format!("{path}/content");
        let last = SIZE - 1;
        let parts = [
            ("bytes=0-0", 0, 0),
            ("bytes=0-", 0, last),
            ("bytes=100-199", 100, 199),
            ("bytes=262143-262144", 262_143, 262_144),
            ("bytes=699999-", last, last),
            ("bytes=-1", last, last),
            ("bytes=-1000", SIZE - 1000, last),
            ("bytes=-99999999", 0, last),
            ("bytes=10-99999999999999999999999", 10, last),
            ("BYTES=5-6", 5, 6),
            ("bytes= 5-6", 5, 6),
            ("bytes=,5-6,", 5, 6),
        ];
        for (range, start, end) in parts {
            let response = get(&gateway, &content, &[("range", range)]).await;
            assert_eq!(response.status(), 206, "{range}");
            assert_eq!(header(&response, "content-range"), format!("bytes {start}-{end}/{SIZE}"), "{range}");
            assert_eq!(header(&response, "content-length"), (end - start + 1).to_string(), "{range}");
            assert_eq!(response.bytes().await.unwrap(), &bytes[start..=end], "{range}");
        }
        // Several ranges, other units and nonsense get the whole once, never more.
        for range in [
            "bytes=0-1,5-6",
            "bytes=0-,0-,0-,0-",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=--1",
            "bytes",
            "items=0-5",
            "bytes=1-2-3",
            "",
        ] {
            let response = get(&gateway, &content, &[("range", range)]).await;
            assert_eq!(
                (response.status().as_u16(), header(&response, "content-range")),
                (200, ""),
                "{range}"
            );
            assert_eq!(response.bytes().await.unwrap(), bytes, "{range}");
        }
        for range in ["bytes=700000-", "bytes=700000-700001", "bytes=-0", "bytes=99999999999999999999999-"] {
            let response = get(&gateway, &content, &[("range", range)]).await;
            assert_eq!(response.status(), 416, "{range}");
            assert_eq!(header(&response, "content-range"), format!("bytes */{SIZE}"), "{range}");
            let problem: Value = response.json().await.unwrap();
            assert_eq!(problem["code"], "range_not_satisfiable");
        }
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_save_bytes_and_never_mix_versions() {
    let cloud = FakeSupabase::start().await;
    for cloud in [None, Some(&cloud)] {
        let (gateway, path, bytes) = with_one(cloud).await;
        let content = format!("{path}/content");
        let whole = get(&gateway, &content, &[]).await;
        let (etag, modified) =
            (header(&whole, "etag").to_owned(), header(&whole, "last-modified").to_owned());
        assert_eq!(etag, format!("\"{}\"", sha256(&bytes)), "strong, from the content");
        assert_eq!(header(&whole, "accept-ranges"), "bytes");
        assert_eq!(header(&whole, "content-type"), "video/webm");
        assert!(header(&whole, "content-disposition").starts_with("inline; filename="));
        assert_eq!(header(&whole, "cache-control"), "private, no-cache, no-transform");
        assert!(header(&whole, "repr-digest").starts_with("sha-256=:"));
        assert_eq!(whole.bytes().await.unwrap(), bytes);

        let weak = format!("W/{etag}");
        let several = format!("\"x\", {weak}");
        let (old, future) = ("Mon, 01 Jan 2001 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
        for (name, value, status) in [
            ("if-none-match", etag.as_str(), 304),
            ("if-none-match", weak.as_str(), 304),
            ("if-none-match", several.as_str(), 304),
            ("if-none-match", "*", 304),
            ("if-none-match", "\"other\"", 200),
            ("if-modified-since", modified.as_str(), 304),
            ("if-modified-since", future, 304),
            ("if-modified-since", old, 200),
            ("if-modified-since", "yesterday", 200),
            ("if-match", etag.as_str(), 200),
            ("if-match", "*", 200),
            ("if-match", "\"other\"", 412),
            ("if-match", weak.as_str(), 412),
            ("if-unmodified-since", modified.as_str(), 200),
            ("if-unmodified-since", old, 412),
        ] {
            let response = get(&gateway, &content, &[(name, value)]).await;
            assert_eq!(response.status(), status, "{name}: {value}");
            if status == 304 {
                assert_eq!(header(&response, "etag"), etag);
                assert_eq!(response.bytes().await.unwrap().len(), 0);
            }
        }
        for (validator, status) in [
            (etag.as_str(), 206),
            (modified.as_str(), 206),
            (weak.as_str(), 200),
            ("\"other\"", 200),
            (old, 200),
            ("nonsense", 200),
        ] {
            let headers = [("range", "bytes=5-9"), ("if-range", validator)];
            let response = get(&gateway, &content, &headers).await;
            assert_eq!(response.status(), status, "If-Range: {validator}");
            let expected = if status == 206 { &bytes[5..10] } else { &bytes[..] };
            assert_eq!(response.bytes().await.unwrap(), expected, "If-Range: {validator}");
        }
        // A download is the same, to be saved.
        if cloud.is_none() {
            let saved = get(&gateway, &format!("{path}/download"), &[("range", "bytes=1-3")]).await;
            assert_eq!(saved.status(), 206);
            assert!(header(&saved, "content-disposition").starts_with("attachment; filename="));
            assert_eq!(saved.bytes().await.unwrap(), &bytes[1..4]);
            let newest = get(&gateway, "/recordings/s/download", &[]).await;
            assert_eq!(newest.bytes().await.unwrap(), bytes);
        }
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_copy_by_its_address() {
    let cloud = FakeSupabase::start().await;
    let (gateway, path, bytes) = with_one(Some(&cloud)).await;
    let key = path.trim_start_matches("/recordings/");
    let public = format!("{}/storage/v1/object/public/{DEFAULT_BUCKET}/{key}", cloud.url());
    let response = get(&gateway, &format!("{path}/content?via=redirect"), &[("range", "bytes=0-9")]).await;
    assert_eq!(response.status(), 307);
    assert_eq!(header(&response, "location"), public);
    assert_eq!(header(&response, "cache-control"), "no-store");
    assert_eq!(reqwest::get(&public).await.unwrap().bytes().await.unwrap(), bytes);
    for download in ["/recordings/s/download".to_owned(), format!("{path}/download")] {
        let answer = gateway.get_json(&download).await;
        assert_eq!(
            answer,
            serde_json::json!({"storage_type": "supabase", "public_url": public, "file_path": key, "file_size": SIZE})
        );
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_buckets_copy_by_a_signed_address() {
    let cloud = FakeSupabase::start().await;
    cloud.create_bucket(BucketSpec { name: DEFAULT_BUCKET.into(), public: false, ..BucketSpec::default() });
    let (gateway, path, bytes) = with_one(Some(&cloud)).await;
    let info = gateway.get_json(&path).await;
    assert_eq!(info["public_url"], Value::Null);
    for download in ["/recordings/s/download".to_owned(), format!("{path}/download")] {
        let answer = gateway.get_json(&download).await;
        assert_eq!(answer["public_url"], Value::Null);
        assert_eq!(answer["storage_type"], "supabase");
        let at = time::OffsetDateTime::parse(
            answer["expires_at"].as_str().unwrap(),
            &time::format_description::well_known::Rfc3339,
        )
        .unwrap();
        let left = at - time::OffsetDateTime::now_utc();
        assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left}");
        let signed = reqwest::get(answer["signed_url"].as_str().unwrap()).await.unwrap();
        assert_eq!(signed.status(), 200);
        assert_eq!(signed.bytes().await.unwrap(), bytes);
    }
    let response = get(&gateway, &format!("{path}/content?via=redirect"), &[]).await;
    assert_eq!(response.status(), 307);
    let signed = reqwest::get(header(&response, "location")).await.unwrap();
    assert_eq!(signed.bytes().await.unwrap(), bytes);
    assert_eq!(
        gateway.bytes(path.trim_start_matches("/recordings/")).await,
        bytes,
        "the proxy needs no address"
    );
    gateway.stop().await;
}

/// A cloud that sends something else: a problem if it shows in time, else a transfer that breaks; never a short success.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_sends_wrong_bytes_is_never_believed() {
    let cloud = FakeSupabase::start().await;
    let (gateway, path, bytes) = with_one(Some(&cloud)).await;
    let content = format!("{path}/content");
    let reads = || Matcher::any().method("GET").path("/object/authenticated/");
    let html = Canned::raw(200, "text/html", "<html>Sign in to the hotel's network</html>");
    let other_error = Canned::raw(503, "text/html", "<html>down</html>");
    for (what, fault) in [
        ("a page", Fault::Status(html)),
        ("the whole without its end", Fault::HalfBody),
        ("an error page", Fault::Status(other_error)),
        ("a reset", Fault::ResetAfterRequestBytes(0)),
    ] {
        for range in [None, Some("bytes=1000-500000")] {
            cloud.clear_faults();
            let handle = cloud.fault(fault.clone(), reads());
            let headers: Vec<_> = range.iter().map(|range| ("range", *range)).collect();
            let response = within(what, get(&gateway, &content, &headers)).await;
            let status = response.status().as_u16();
            assert!(handle.hits() > 0, "{what}: the fault was met");
            match status {
                502 => {
                    assert_eq!(response.json::<Value>().await.unwrap()["code"], "cloud_unavailable", "{what}")
                }
                200 | 206 => {
                    assert!(within(what, response.bytes()).await.is_err(), "{what}: a short success")
                }
                _ => panic!("{what}: {status}"),
            }
            // The breaker may have opened; wait until the cloud is asked again.
            cloud.clear_faults();
            crate::support::eventually("the cloud is used again", async || {
                gateway.get(&content).await.status() == 200
            })
            .await;
        }
    }
    // A server that knows no ranges answers 200 with everything.
    let whole = Canned::raw(200, "video/webm", "x".repeat(SIZE));
    let handle = cloud.fault(Fault::Status(whole), reads());
    let response = get(&gateway, &content, &[("range", "bytes=0-9")]).await;
    assert_eq!(response.status(), 502);
    assert!(handle.hits() > 0);
    cloud.clear_faults();
    assert_eq!(gateway.bytes(path.trim_start_matches("/recordings/")).await, bytes);
    gateway.stop().await;
}

/// The answer has begun with its length; all that can still be said is that it broke off.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut_while_it_is_read_is_a_broken_answer() {
    let gateway = Gateway::local().await;
    // More than sockets hold.
    let bytes = webm(64 << 20, 5);
    let (status, answer) = gateway.upload("s", bytes.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let file_path = answer["file_path"].as_str().unwrap();
    let mut response = get(&gateway, &format!("/recordings/{file_path}/content"), &[]).await;
    assert_eq!(header(&response, "content-length"), bytes.len().to_string());
    let mut got = response.chunk().await.unwrap().unwrap().to_vec();
    let kept = 40 << 20;
    let file = std::fs::File::options().write(true).open(gateway.recordings_dir().join(file_path)).unwrap();
    file.set_len(kept as u64).unwrap();
    let broken = loop {
        match within("the rest", response.chunk()).await {
            Ok(Some(chunk)) => got.extend_from_slice(&chunk),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broken, "taken for complete with {} bytes", got.len());
    assert!(got.len() <= kept && bytes.starts_with(&got));
}

/// Links, pipes and directories that somebody put among the recordings are left alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_plain_file_is_neither_listed_nor_served() {
    let gateway = Gateway::local().await;
    let (_, answer) = gateway.upload("s", webm(1000, 1)).await;
    let name = answer["filename"].as_str().unwrap();
    let root = gateway.recordings_dir();
    let session = root.join("s");
    let outside = root.parent().unwrap().join("secret.webm");
    std::fs::write(&outside, "secret").unwrap();
    std::fs::create_dir(root.parent().unwrap().join("elsewhere")).unwrap();
    std::fs::write(root.parent().unwrap().join("elsewhere/a.webm"), "secret").unwrap();

    symlink(&outside, session.join("link.webm")).unwrap();
    symlink(name, session.join("inner-link.webm")).unwrap();
    symlink("/nowhere", session.join("dangling.webm")).unwrap();
    symlink("/dev/zero", session.join("device.webm")).unwrap();
    symlink("loop.webm", session.join("loop.webm")).unwrap();
    std::fs::hard_link(&outside, session.join("hard.webm")).unwrap();
    std::fs::create_dir(session.join("directory.webm")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(session.join("pipe.webm")).status().unwrap();
    assert!(fifo.success());
    let socket = std::os::unix::net::UnixListener::bind(session.join("socket.webm")).unwrap();
    symlink(root.parent().unwrap().join("elsewhere"), root.join("linked-session")).unwrap();
    std::fs::write(root.join("file-session"), "no directory").unwrap();
    // A plain file is a recording.
    std::fs::write(session.join("dropped in.webm"), webm(300, 2)).unwrap();

    let listed = within("the listing", gateway.names("s")).await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(listed.contains(&name.to_owned()) && listed.contains(&"dropped in.webm".to_owned()));
    for bad in ["link", "inner-link", "dangling", "device", "loop", "hard", "directory", "pipe", "socket"] {
        for way in ["", "/content", "/download"] {
            let path = format!("/recordings/s/{bad}.webm{way}");
            let answer = within(&path, exchange(&gateway.url, bare("GET", &path))).await;
            assert_eq!((answer.status, answer.code().as_str()), (404, "recording_not_found"), "{path}");
        }
    }
    for session in ["linked-session", "file-session"] {
        assert_eq!(gateway.names(session).await, Vec::<String>::new(), "{session}");
        assert_eq!(gateway.get(&format!("/recordings/{session}/a.webm/content")).await.status(), 404);
    }
    let sessions = within("the sessions", gateway.get_json("/recordings")).await;
    assert_eq!(sessions["total_count"], 1, "{sessions}");
    // An upload into a session that is a link goes nowhere else, and says so.
    let (status, answer) = gateway.upload("linked-session", webm(100, 3)).await;
    assert_eq!(status, 500, "{answer}");
    assert_eq!(std::fs::read_dir(root.parent().unwrap().join("elsewhere")).unwrap().count(), 1);
    // Deleting one does not reach through it.
    let (status, _) = gateway.delete("/recordings/s/link.webm").await;
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "secret", "{status}");
    let (status, _) = within("the session's deletion", gateway.delete("/recordings/s")).await;
    assert!([200, 202].contains(&status), "{status}");
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "secret");
    drop(socket);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_goes_to_the_cloud_after_it_was_located_is_read_there() {
    let cloud = FakeSupabase::start().await;
    let (gateway, path, bytes) = with_one(Some(&cloud)).await;
    let key = ObjectKey::parse(path.trim_start_matches("/recordings/")).unwrap();
    let located = gateway.services.catalog.get(&key).await.unwrap().unwrap();
    let opened = gateway.services.open(&located, StoreKind::Local, None, true).await.unwrap();
    assert_eq!(opened.object.size_bytes, bytes.len() as u64);
    gateway.stop().await;
}
