//! Repeats, digests and early answers: the same request twice is one recording, wrong bytes are none.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::multipart::Form;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::cloud::{BUCKET, dripping_form, reaches_the_bucket, rows};
use crate::support::eventually;
use crate::support::fake_supabase::{FakeSupabase, Fault, Matcher};
use crate::support::gateway::{Gateway, file_part};
use crate::support::media::webm;
use crate::support::raw_client::{FORM_TYPE, RawClient, RawForm};

fn form(bytes: &[u8]) -> Form {
    Form::new().part("recording", file_part(bytes.to_vec(), "talk.webm", "video/webm"))
}

async fn send(gateway: &Gateway, headers: &[(&str, &str)], form: Form) -> (u16, Value) {
    let mut request = gateway.request("POST", "/recordings/upload/s").multipart(form);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(bytes)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_first_answer() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    for (key, len) in [("\"small\"", 1000), ("\"large\"", 6_000_000)] {
        let (bytes, key) = (webm(len, 1), [("Idempotency-Key", key)]);
        let before = cloud.keys(BUCKET).len();
        let first = send(&gateway, &key, form(&bytes)).await;
        assert_eq!(first.0, 200, "{}", first.1);
        for _ in 0..2 {
            assert_eq!(send(&gateway, &key, form(&bytes)).await, first);
        }
        let (status, answer) = send(&gateway, &key, form(&webm(len, 2))).await;
        assert_eq!((status, &answer["code"]), (422, &"idempotency_key_reused".into()), "{answer}");
        let other_type = form(&bytes).text("recording_type", "scene");
        assert_eq!(send(&gateway, &key, other_type).await.0, 422, "the type is part of what was asked");
        assert_eq!(cloud.keys(BUCKET).len(), before + 1);
        assert_eq!(rows(&gateway, "s").await.len(), before + 1);
    }
    // The same key for another session is another request.
    let elsewhere = gateway.request("POST", "/recordings/upload/t").multipart(form(&webm(10, 1)));
    let elsewhere = elsewhere.header("Idempotency-Key", "\"small\"").send().await.unwrap();
    assert_eq!(elsewhere.json::<Value>().await.unwrap()["session_id"], "t");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_survive_a_restart() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let (bytes, key) = (webm(300_000, 1), [("Idempotency-Key", "again")]);
    let first = send(&gateway, &key, form(&bytes)).await;
    let gateway = gateway.restart().await;
    assert_eq!(send(&gateway, &key, form(&bytes)).await, first);
    assert_eq!(send(&gateway, &key, form(&webm(300_000, 2))).await.0, 422);
    assert_eq!(cloud.keys(BUCKET).len(), 1);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_first_runs_a_second_waits_outside() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let (bytes, key) = (webm(6_000_000, 1), [("Idempotency-Key", "one")]);
    let (pieces, dripping) = dripping_form();
    pieces.send(bytes[..4_000_000].to_vec()).unwrap();
    let second = async {
        eventually("the first is under way", async || cloud.open_uploads() > 0).await;
        let refused = send(&gateway, &key, form(&bytes)).await;
        pieces.send(bytes[4_000_000..].to_vec()).unwrap();
        drop(pieces);
        refused
    };
    let (first, (status, answer)) = tokio::join!(send(&gateway, &key, dripping), second);
    assert_eq!((status, &answer["code"]), (409, &"idempotency_key_in_use".into()), "{answer}");
    assert_eq!(first.0, 200, "{}", first.1);
    assert_eq!(send(&gateway, &key, form(&bytes)).await, first);
    assert_eq!(cloud.keys(BUCKET).len(), 1);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_frees_the_key() {
    let gateway = Gateway::local().await;
    let bytes = webm(300_000, 1);
    let wrong = digest_of(b"something else");
    let headers = [("Idempotency-Key", "k"), ("Repr-Digest", wrong.as_str())];
    assert_eq!(send(&gateway, &headers, form(&bytes)).await.0, 422);
    // A client that hangs up fails as well.
    let (pieces, dripping) = dripping_form();
    pieces.send(bytes.clone()).unwrap();
    let key = [("Idempotency-Key", "k")];
    eventually("the key is free again", async || {
        let (_pieces, hanging) = dripping_form();
        let hung = tokio::time::timeout(crate::support::gateway::SOON, send(&gateway, &key, hanging)).await;
        hung.is_err()
    })
    .await;
    let hung = tokio::time::timeout(crate::support::gateway::SOON, send(&gateway, &key, dripping)).await;
    assert!(hung.is_err() || hung.unwrap().0 == 409);
    drop(pieces);
    eventually("the next attempt is the first", async || send(&gateway, &key, form(&bytes)).await.0 == 200)
        .await;
    assert_eq!(rows(&gateway, "s").await.len(), 1);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_at_any_moment_frees_the_key() {
    let gateway = Gateway::local().await;
    // All of the request arrives at once, so that the gateway hears of the end of the connection while it takes the key.
    // That takes a moment only; each client hangs up a little later than the one before.
    const CLIENTS: u32 = 300;
    for n in 0..CLIENTS {
        let mut client = RawClient::connect(&gateway.url).await;
        let form = RawForm::new().file(webm(1000, 1)).end();
        let head = format!(
            "POST /recordings/upload/s HTTP/1.1\r\nHost: h\r\nIdempotency-Key: {n}\r\n\
             Content-Type: {FORM_TYPE}\r\nContent-Length: {}\r\n\r\n",
            form.len()
        );
        client.send([head.as_bytes(), &form].concat()).await;
        let until = Instant::now() + n * Duration::from_micros(30);
        while Instant::now() < until {
            tokio::task::yield_now().await;
        }
        client.reset();
    }
    let bytes = webm(1000, 1);
    for n in 0..CLIENTS {
        eventually("the key is free", async || {
            send(&gateway, &[("Idempotency-Key", &n.to_string())], form(&bytes)).await.0 == 200
        })
        .await;
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_is_local_and_the_cloud_follows() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    // The cloud would make anybody wait.
    let slow = cloud.fault(Fault::BlackHole, Matcher::any());
    for (i, len) in [1000, 6_000_000].into_iter().enumerate() {
        let bytes = webm(len, 1);
        let key = format!("early{i}");
        let headers = [("Prefer", "respond-async"), ("Idempotency-Key", key.as_str())];
        let first = send(&gateway, &headers, form(&bytes)).await;
        let answer = &first.1;
        assert_eq!(
            (first.0, &answer["durability"], &answer["storage_type"]),
            (202, &"local".into(), &"local".into()),
            "{answer}"
        );
        assert!(gateway.bytes(answer["file_path"].as_str().unwrap()).await == bytes);
        assert_eq!(send(&gateway, &headers, form(&bytes)).await, first);
    }
    slow.remove();
    let kept = rows(&gateway, "s").await;
    assert_eq!(kept.len(), 2);
    eventually("the cloud has them", async || cloud.keys(BUCKET).len() == 2).await;
    eventually("only the cloud has them", async || {
        rows(&gateway, "s").await.iter().all(|row| row["stores"] == serde_json::json!(["supabase"]))
    })
    .await;
    gateway.stop().await;

    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let bytes = webm(300_000, 4);
    let (status, answer) = send(&gateway, &[("Prefer", "wait=5, respond-async")], form(&bytes)).await;
    assert_eq!((status, &answer["durability"]), (202, &"local".into()));
    reaches_the_bucket(&gateway, &cloud, answer["file_path"].as_str().unwrap(), &bytes).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_matches_is_no_obstacle_and_one_that_does_not_stores_nothing() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    for len in [1000, 300_000, 6_000_000, 4 << 20] {
        let bytes = webm(len, 1);
        let (right, wrong) = (digest_of(&bytes), digest_of(&webm(len, 2)));
        let part_with = |digest: &str| {
            let mut headers = reqwest::header::HeaderMap::new();
            headers.insert("content-digest", digest.parse().unwrap());
            Form::new().part("recording", file_part(bytes.clone(), "a.webm", "video/webm").headers(headers))
        };
        let type_first = || {
            Form::new()
                .text("recording_type", "session")
                .part("recording", file_part(bytes.clone(), "a.webm", "video/webm"))
        };
        for refused in [
            send(&gateway, &[("Repr-Digest", &wrong)], form(&bytes)).await,
            // Of known length, so the cloud waits for the very last bytes.
            send(&gateway, &[("Repr-Digest", &wrong)], type_first()).await,
            // Of the whole body, as RFC 9530 says.
            send(&gateway, &[("Content-Digest", &right)], form(&bytes)).await,
            send(&gateway, &[], part_with(&wrong)).await,
        ] {
            assert_eq!((refused.0, &refused.1["code"]), (422, &"digest_mismatch".into()), "{}", refused.1);
        }
        gateway.settle().await;
        cloud.wait_until("no upload is open", crate::support::PATIENCE, |c| c.open_uploads() == 0).await;
        assert_eq!(cloud.keys(BUCKET), [""; 0], "nothing in the cloud");
        assert_eq!(rows(&gateway, "s").await.len(), 0);
        for taken in [
            send(&gateway, &[("Repr-Digest", &right)], form(&bytes)).await,
            send(&gateway, &[], part_with(&right)).await,
            send(&gateway, &[("Repr-Digest", &format!("md5=:AAAA:, {right}"))], type_first()).await,
        ] {
            assert_eq!((taken.0, &taken.1["durability"]), (200, &"cloud".into()), "{}", taken.1);
        }
        assert_eq!(cloud.keys(BUCKET).len(), 3);
        assert_eq!(gateway.delete("/recordings/s").await.0, 200);
    }
    gateway.stop().await;
}
