//! The audit over HTTP and on the command line: every change with its request, filters and pages, refusals, and that
//! nobody can flood it.

use std::process::Command;

use recording_gateway::domain::{ObjectKey, StoreKind, StoreSet};
use reqwest::multipart::Form;
use serde_json::Value;

use crate::support::cloud::BUCKET;
use crate::support::eventually;
use crate::support::fake_supabase::FakeSupabase;
use crate::support::gateway::{Gateway, file_part};
use crate::support::media::{sha256, webm};

async fn changes(gateway: &Gateway, query: &str) -> Vec<Value> {
    let list = gateway.get_json(&format!("/audit?{query}")).await;
    list["changes"].as_array().unwrap_or_else(|| panic!("no changes: {list}")).clone()
}

fn form(bytes: Vec<u8>) -> Form {
    Form::new().part("recording", file_part(bytes, "talk.webm", "video/webm"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_says_who_when_which_request_and_what() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.stop().await;
    let bytes = webm(4000, 1);
    let request = gateway.request("POST", "/recordings/upload/s").header("x-request-id", "the-upload");
    let answer: Value = request.multipart(form(bytes.clone())).send().await.unwrap().json().await.unwrap();
    cloud.restart_on_same_port().await;
    eventually("it was synced", async || changes(&gateway, "action=synced").await.len() == 1).await;
    let path = answer["file_path"].as_str().unwrap();
    let request =
        gateway.request("DELETE", &format!("/recordings/{path}")).header("x-request-id", "the-deletion");
    assert!(request.send().await.unwrap().status().is_success());

    let all = changes(&gateway, "session_id=s").await;
    let told: Vec<_> =
        all.iter().map(|row| [&row["action"], &row["actor"]].map(|v| v.as_str().unwrap())).collect();
    assert_eq!(
        told,
        [["deleted", "anonymous"], ["synced", "gateway"], ["uploaded", "anonymous"]],
        "newest first"
    );
    assert_eq!(
        (&all[0]["request_id"], &all[2]["request_id"]),
        (&"the-deletion".into(), &"the-upload".into())
    );
    let digest = sha256(&bytes);
    assert_eq!(
        (all[2]["sha256_before"].as_str(), all[2]["sha256_after"].as_str()),
        (None, Some(digest.as_str()))
    );
    assert_eq!(all[0]["sha256_before"].as_str(), Some(digest.as_str()));
    assert!(all.iter().all(|row| row["filename"] == answer["filename"] && row["time"].is_string()));

    let middle = all[1]["time"].as_str().unwrap();
    let since = changes(&gateway, &format!("session_id=s&since={middle}")).await;
    let until = changes(&gateway, &format!("session_id=s&until={middle}")).await;
    assert_eq!((since.len(), until.len()), (2, 1), "since is with it, until without");
    assert_eq!(changes(&gateway, "actor=gateway&action=synced").await.len(), 1);
    assert_eq!(changes(&gateway, "filename=none.webm").await.len(), 0);
    let first = gateway.get("/audit?session_id=s&limit=2").await;
    let link = first.headers()["link"].to_str().unwrap().to_owned();
    let next = link.trim_start_matches('<').split('>').next().unwrap();
    let rest = gateway.get_json(next).await;
    assert_eq!((rest["changes"].as_array().unwrap().len(), &rest["changes"][0]["id"]), (1, &all[2]["id"]));
    for query in ["actor=a%00", "filename=a%00", "action=danced", "since=yesterday", "until=2024-12-01"] {
        let response = gateway.get(&format!("/audit?{query}")).await;
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "filter_invalid", "{query}");
    }
    assert_eq!(gateway.request("DELETE", "/audit").send().await.unwrap().status(), 405, "it is only read");

    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"));
    command.current_dir("/").env_clear().args([
        "audit",
        "--session",
        "s",
        "--action",
        "deleted",
        "--url",
        &gateway.url,
    ]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.lines().count() == 2 && told.contains("the-deletion") && told.contains(path), "{told}");
    gateway.stop().await;
}

/// A file that was dropped in and an object of others have no row before they are taken in; what the gateway clears away
/// is nobody's deletion.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_of_what_has_no_row_is_noted_too() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.interval", "1h")]).await;
    let dropped = gateway.recordings_dir().join("s/dropped.webm");
    std::fs::create_dir_all(dropped.parent().unwrap()).unwrap();
    std::fs::write(&dropped, webm(500, 1)).unwrap();
    cloud.put_object(BUCKET, "s/theirs.webm", &webm(500, 2), "video/webm");
    cloud.put_object(BUCKET, "t/theirs.webm", &webm(500, 3), "video/webm");
    for path in ["s/dropped.webm", "s/theirs.webm", "t"] {
        let request = gateway
            .request("DELETE", &format!("/recordings/{path}"))
            .header("x-request-id", path.replace('/', "-"));
        assert_eq!(request.send().await.unwrap().status(), 200, "{path}");
        assert_eq!(gateway.delete(&format!("/recordings/{path}")).await.0, 404, "once");
    }
    assert!(!dropped.exists() && cloud.keys(BUCKET).is_empty());
    let stray = ObjectKey::parse("u/stray.webm").unwrap();
    let pending = StoreSet::only(StoreKind::Supabase);
    gateway.services.catalog.entomb(&[stray], pending, &gateway.services.origin).await.unwrap();
    let noted: Vec<_> = changes(&gateway, "")
        .await
        .iter()
        .map(|row| {
            ["action", "actor", "request_id", "session_id", "filename", "sha256_before"]
                .map(|name| row[name].as_str().unwrap_or("").to_owned())
        })
        .collect();
    let expected = [
        ["deleted", "anonymous", "t", "t", "theirs.webm", ""],
        ["deleted", "anonymous", "s-theirs.webm", "s", "theirs.webm", ""],
        ["deleted", "anonymous", "s-dropped.webm", "s", "dropped.webm", ""],
    ];
    assert_eq!(noted, expected.map(|row| row.map(str::to_owned)));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_uploads_are_noted_beside_the_answer() {
    let gateway = Gateway::start(&[("uploads.max_bytes", "10000")]).await;
    let send = async |id: &str, form: Form, headers: &[(&str, &str)]| {
        let mut request = gateway.request("POST", "/recordings/upload/s").header("x-request-id", id);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.multipart(form).send().await.unwrap().status().as_u16()
    };
    let text = Form::new().part("recording", file_part(b"only words here".repeat(30), "a.txt", "text/plain"));
    assert_eq!(send("type", text, &[]).await, 415);
    assert_eq!(send("large", form(webm(200_000, 1)), &[]).await, 413);
    let digest = "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:";
    assert_eq!(send("digest", form(webm(500, 1)), &[("repr-digest", digest)]).await, 422);
    assert_eq!(send("first", form(webm(500, 1)), &[("idempotency-key", "k")]).await, 200);
    assert_eq!(send("reused", form(webm(500, 2)), &[("idempotency-key", "k")]).await, 422);
    // A mistake in the request is none against a rule.
    assert_eq!(send("empty", Form::new().text("recording_type", "session"), &[]).await, 422);
    eventually("four refusals are noted", async || changes(&gateway, "action=denied").await.len() == 4).await;
    let mut noted: Vec<_> = changes(&gateway, "action=denied&session_id=s")
        .await
        .iter()
        .map(|row| {
            let code = row["detail"].as_str().unwrap().split(':').next().unwrap().to_owned();
            (row["request_id"].as_str().unwrap().to_owned(), code)
        })
        .collect();
    noted.sort_unstable();
    let expected = [
        ("digest", "digest_mismatch"),
        ("large", "recording_too_large"),
        ("reused", "idempotency_key_reused"),
        ("type", "recording_type_not_allowed"),
    ];
    assert_eq!(noted, expected.map(|(id, code)| (id.to_owned(), code.to_owned())));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refusals_does_not_fill_the_disk() {
    let gateway = Gateway::start(&[("uploads.max_bytes", "100")]).await;
    let started = std::time::Instant::now();
    for _ in 0..60 {
        let (status, _) = gateway.upload("s", webm(200, 1)).await;
        assert_eq!(status, 413, "each is answered");
    }
    let most = 11 + usize::try_from(started.elapsed().as_secs()).unwrap();
    eventually("the first are noted", async || changes(&gateway, "action=denied").await.len() >= 10).await;
    let noted = changes(&gateway, "action=denied&limit=1000").await.len();
    assert!((10..=most).contains(&noted), "{noted} of 60 are noted, {most} may be");
    gateway.stop().await;
}
