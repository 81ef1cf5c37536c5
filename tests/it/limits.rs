//! Sizes at, below and above the limits, announced and not.

use recording_gateway::domain::SessionId;
use recording_gateway::service::ServiceError;
use recording_gateway::service::upload::{FileHead, UploadOptions};

use crate::support::cloud::uploads;
use crate::support::eventually;
use crate::support::fake_supabase::{FakeSupabase, Fault};
use crate::support::gateway::{Gateway, within};
use crate::support::media::webm;
use crate::support::raw_client::{RawClient, RawForm, chunked, exchange, upload, upload_head};
use crate::support::traces::assert_nothing_left;

const MAX: usize = 3_000_000;

async fn send(gateway: &Gateway, body: &[u8], known_length: bool) -> (u16, String) {
    let request = if known_length {
        upload("limits", body)
    } else {
        let head = upload_head("limits", "Transfer-Encoding: chunked\r\n");
        [head.as_bytes(), &chunked(body, 60_000)].concat()
    };
    let answer = exchange(&gateway.url, request).await;
    (answer.status, answer.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_has_at_least_one_byte_and_at_most_the_limit() {
    let cloud = FakeSupabase::start().await;
    let settings = [("uploads.max_bytes", "3000000")];
    for gateway in [Gateway::start(&settings).await, Gateway::with_cloud_and(&cloud, &settings).await] {
        let too_large = (413, "recording_too_large".to_owned());
        for type_first in [true, false] {
            let form = |len: usize| match type_first {
                true => RawForm::new().text("recording_type", "a").file(webm(len, 1)).end(),
                false => RawForm::new().file(webm(len, 1)).text("recording_type", "a").end(),
            };
            for known in [true, false] {
                assert_eq!(send(&gateway, &form(0), known).await, (422, "recording_empty".to_owned()));
                assert_eq!(send(&gateway, &form(MAX + 1), known).await, too_large);
                assert_eq!(send(&gateway, &form(MAX + 5_000_000), known).await, too_large);
            }
        }
        let cloud = gateway.services.stores.has_primary().then_some(&cloud);
        assert_nothing_left(&gateway, cloud).await;
        for known in [true, false] {
            for len in [1, MAX - 1, MAX] {
                let body = RawForm::new().file(webm(len, 1)).end();
                assert_eq!(send(&gateway, &body, known).await.0, 200, "{len} bytes");
            }
        }
        let sizes = gateway.get_json("/recordings/limits/list").await;
        let mut sizes: Vec<_> = sizes["recordings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["file_size"].as_u64().unwrap())
            .collect();
        sizes.sort_unstable();
        let max = MAX as u64;
        assert_eq!(sizes, [1, 1, max - 1, max - 1, max, max]);
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_length_over_the_limit_is_refused_before_the_body() {
    let gateway = Gateway::local().await;
    let lengths = ["21474902017", "9007199254740993", "9223372036854775807"];
    for length in lengths {
        let mut client = RawClient::connect(&gateway.url).await;
        client.send(upload_head("s", &format!("Content-Length: {length}\r\n"))).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (413, "recording_too_large"), "{length}");
    }
    // Numbers that are none.
    for length in [
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999999",
        "-1",
        "+5",
        "0x10",
        "5 5",
        "",
    ] {
        let mut client = RawClient::connect(&gateway.url).await;
        client.send(upload_head("s", &format!("Content-Length: {length}\r\n"))).await;
        let answer = client.answer().await;
        assert!([400, 431].contains(&answer.status), "{length}: {}", answer.status);
        client.closed().await;
    }
    assert_nothing_left(&gateway, None).await;
    gateway.stop().await;
}

/// What is over the limit is not written, however long the client goes on.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_a_block_over_the_limit_reaches_the_disk() {
    let gateway = Gateway::start(&[("uploads.max_bytes", "3000000")]).await;
    let head = upload_head("s", "Transfer-Encoding: chunked\r\n");
    let form = RawForm::new().file(webm(MAX, 1)).unfinished();
    let mut client = RawClient::connect(&gateway.url).await;
    client.send(&head).await;
    // Exactly the limit, and the client still there: it is in the spool.
    let unended = chunked(&form[..form.len() - 2], 60_000);
    client.send(&unended[..unended.len() - 5]).await;
    eventually("the blocks are in the spool", async || spooled(&gateway) >= 2 << 20).await;
    client.send("5\r\nabcde\r\n").await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 413);
    assert_nothing_left(&gateway, None).await;
    // It may go on and reads its answer; nothing of it is stored.
    for _ in 0..100 {
        client.send(format!("10000\r\n{}\r\n", "x".repeat(0x10000))).await;
        assert_eq!(spooled(&gateway), 0);
    }
    client.send("0\r\n\r\n").await;
    assert_nothing_left(&gateway, None).await;
    gateway.stop().await;
}

fn spooled(gateway: &Gateway) -> u64 {
    let files = std::fs::read_dir(gateway.recordings_dir().join(".spool")).unwrap();
    files.map(|file| file.unwrap().metadata().map_or(0, |about| about.len())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_over_the_number_of_places_are_told_to_come_back() {
    let gateway = Gateway::start(&[("uploads.max_concurrent", "2")]).await;
    let body = RawForm::new().file(webm(1000, 1)).end();
    let request = upload("busy", &body);
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut client = RawClient::connect(&gateway.url).await;
        client.send(&request[..request.len() - 1]).await;
        holders.push(client);
    }
    eventually("both places are taken", async || gateway.services.upload_slots.available_permits() == 0)
        .await;
    let answer = exchange(&gateway.url, &request).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "too_many_uploads"));
    assert!(answer.header("retry-after").is_some());
    for mut holder in holders {
        holder.send(&request[request.len() - 1..]).await;
        assert_eq!(holder.answer().await.status, 200);
    }
    assert_eq!(exchange(&gateway.url, &request).await.status, 200, "the places are free again");
    gateway.stop().await;
}

/// A client that hangs up after its last byte leaves an upload that goes on, in its place among the uploads.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_client_has_gone_keeps_its_place_until_it_is_kept() {
    let cloud = FakeSupabase::start().await;
    let settings = [("uploads.max_concurrent", "1"), ("supabase.patience", "1min"), ("sync.interval", "1h")];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    let services = &gateway.services;
    let hole = cloud.fault(Fault::BlackHole, uploads());
    let begin = || services.begin_upload(SessionId::parse("gone").unwrap(), UploadOptions::default());
    let mut incoming = begin().await.unwrap();
    incoming.begin_file(FileHead::default()).unwrap();
    incoming.push(&webm(1000, 1)).await.unwrap();
    let client = tokio::spawn(incoming.finish());
    eventually("it waits for the cloud", async || hole.hits() == 1).await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    assert_eq!(services.upload_slots.available_permits(), 0);
    assert!(matches!(begin().await, Err(ServiceError::Busy)));
    let mut rings = services.bell.subscribe();
    cloud.stop().await;
    within("the background is told that there is something to sync", rings.changed()).await.unwrap();
    eventually("the place is free again", async || services.upload_slots.available_permits() == 1).await;
    assert_eq!(gateway.names("gone").await.len(), 1);
    gateway.stop().await;
}
