//! Clients that break off, stall or vanish: an upload without its clean end leaves nothing, wherever it stopped.

use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::support::eventually;
use crate::support::fake_supabase::{DEFAULT_BUCKET, FakeSupabase, SeenRequest};
use crate::support::gateway::{Gateway, SOON};
use crate::support::media::webm;
use crate::support::raw_client::{RawClient, RawForm, chunked, upload, upload_head};
use crate::support::traces::{assert_nothing_left, quiet};

/// How a client goes away.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The connection is reset.
    Reset,
    /// The client closes its side in order, and still reads.
    HalfClose,
}

/// A request's head and its body as it travels.
fn requests(body: &[u8], chunk: usize) -> [(String, Vec<u8>); 2] {
    let known = format!("Content-Length: {}\r\n", body.len());
    [
        (upload_head("cut", &known), body.to_vec()),
        (upload_head("cut", "Transfer-Encoding: chunked\r\n"), chunked(body, chunk)),
    ]
}

/// Sends a part of a request and goes away.
async fn cut_off(url: &str, head: &str, part: &[u8], cut: Cut) {
    let mut client = RawClient::connect(url).await;
    client.send(head).await;
    client.send(part).await;
    match cut {
        Cut::Reset => client.reset(),
        Cut::HalfClose => {
            client.finish_sending().await;
            if let Some(answer) = client.answer_if_any().await {
                assert_eq!(answer.status, 400, "a body of {} bytes: {}", part.len(), answer.code());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_form_cut_at_any_byte_leaves_nothing() {
    let gateway = Gateway::local().await;
    let body = RawForm::new().text("recording_type", "scene").file(webm(60, 1)).end();
    for (head, body) in requests(&body, 50) {
        let cuts = (0..body.len()).flat_map(|at| [(at, Cut::Reset), (at, Cut::HalfClose)]);
        stream::iter(cuts)
            .for_each_concurrent(32, |(at, cut)| cut_off(&gateway.url, &head, &body[..at], cut))
            .await;
    }
    assert_nothing_left(&gateway, None).await;
    // And the same bytes whole are a recording, so that it was the cut that mattered.
    for (head, body) in requests(&body, 50) {
        let mut client = RawClient::connect(&gateway.url).await;
        client.send([head.as_bytes(), &body].concat()).await;
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(gateway.names("cut").await.len(), 2);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_form_cut_on_its_way_to_the_cloud_leaves_nothing() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let file = webm(3_000_000, 2);
    // With the type first the cloud is told the length in advance.
    let orders = [
        RawForm::new().text("recording_type", "scene").file(&file).end(),
        RawForm::new().file(&file).text("recording_type", "scene").end(),
    ];
    for body in orders {
        for (head, body) in requests(&body, 65_536) {
            let steps = (0..16).map(|n| body.len() * n / 16);
            let cuts = steps.chain((1..=4).map(|n| body.len() - n)).enumerate();
            stream::iter(cuts)
                .for_each_concurrent(8, |(n, at)| {
                    let cut = if n % 2 == 0 { Cut::Reset } else { Cut::HalfClose };
                    cut_off(&gateway.url, &head, &body[..at], cut)
                })
                .await;
        }
    }
    assert_nothing_left(&gateway, Some(&cloud)).await;
    gateway.stop().await;
}

/// Bytes in the spool.
fn spooled(gateway: &Gateway) -> u64 {
    let files = std::fs::read_dir(gateway.recordings_dir().join(".spool")).unwrap();
    files.map(|file| file.unwrap().metadata().map_or(0, |about| about.len())).sum()
}

/// Every block of the file is full and on its way, only the form's end is missing: the cloud must not have it.
#[tokio::test(flavor = "multi_thread")]
async fn the_cloud_never_gets_the_last_byte_before_the_form_has_ended() {
    for type_first in [true, false] {
        let cloud = FakeSupabase::start().await;
        let gateway = Gateway::with_cloud(&cloud).await;
        let form = if type_first { RawForm::new().text("recording_type", "scene") } else { RawForm::new() };
        let body = form.file(webm(2 << 20, 3)).end();
        let request = upload("cut", &body);
        let mut client = RawClient::connect(&gateway.url).await;
        client.send(&request[..request.len() - 10]).await;
        eventually("the cloud is receiving", async || cloud.open_uploads() == 1).await;
        eventually("every block is in the spool", async || spooled(&gateway) == 2 << 20).await;
        // Time for the cloud to take all that it is given.
        tokio::time::sleep(SOON).await;
        let stored = |seen: &SeenRequest| seen.path.contains("/cut/") && seen.status == Some(200);
        assert!(!cloud.requests().iter().any(stored), "the cloud had everything");
        client.reset();
        assert_nothing_left(&gateway, Some(&cloud)).await;
        gateway.stop().await;
    }
}

/// So that size and digest can go with a short one.
#[tokio::test(flavor = "multi_thread")]
async fn the_cloud_is_sent_what_is_still_coming_from_half_a_mebibyte_on() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    for (len, spool, sent) in [((512 << 10) - 1, 256 << 10, 0), (512 << 10, 512 << 10, 1)] {
        let request =
            upload("half", &RawForm::new().text("recording_type", "scene").file(webm(len, 3)).end());
        let mut client = RawClient::connect(&gateway.url).await;
        client.send(&request[..request.len() - 10]).await;
        eventually("every full block is in the spool", async || spooled(&gateway) == spool).await;
        match sent {
            0 => tokio::time::sleep(SOON).await,
            _ => eventually("the cloud is receiving", async || cloud.open_uploads() == 1).await,
        }
        assert_eq!(cloud.open_uploads(), sent, "{len} bytes");
        client.send(&request[request.len() - 10..]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.json()["storage_type"].as_str()), (200, Some("supabase")));
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stalls_is_told_so() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("uploads.idle_timeout", "250ms")]).await;
    let body = RawForm::new().file(webm(2_500_000, 4)).end();
    let request = upload("stall", &body);
    let head = request.len() - body.len();
    for at in [head, head + 30, head + 1_000_000, request.len() - 20, request.len() - 1] {
        let mut client = RawClient::connect(&gateway.url).await;
        client.send(&request[..at]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (408, "upload_stalled"), "stalled at {at}");
    }
    assert_nothing_left(&gateway, Some(&cloud)).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_is_not_stalled() {
    let gateway = Gateway::start(&[("uploads.idle_timeout", "2s")]).await;
    let body = RawForm::new().file(webm(64, 5)).end();
    let request = upload("slow", &body);
    let mut client = RawClient::connect(&gateway.url).await;
    // Together longer than the timeout.
    for piece in request.chunks(request.len().div_ceil(10)) {
        client.send(piece).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(client.answer().await.status, 200);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gone_after_its_last_byte_is_kept_whole_or_not_at_all() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let file = webm(100_000, 6);
    let request = upload("gone", &RawForm::new().file(&file).end());
    for n in 0..40 {
        let mut client = RawClient::connect(&gateway.url).await;
        client.send(&request).await;
        // From at once to about when the answer is on its way.
        tokio::time::sleep(Duration::from_millis(n / 4)).await;
        client.reset();
    }
    quiet(&gateway).await;
    let names = gateway.names("gone").await;
    let mut listed: Vec<_> = names.iter().map(|name| format!("gone/{name}")).collect();
    listed.sort();
    assert_eq!(listed, cloud.keys(DEFAULT_BUCKET), "every object has a row and every row an object");
    for path in &listed {
        assert_eq!(gateway.bytes(path).await, file);
    }
    gateway.stop().await;
}
