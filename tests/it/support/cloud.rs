//! What the suites about the cloud ask again and again: which requests it saw, where a recording is, a client that
//! sends when the test says so.

use reqwest::multipart::{Form, Part};
use serde_json::Value;
use tokio::sync::mpsc;

use super::eventually;
use super::fake_supabase::{FakeSupabase, Matcher, SeenRequest};
use super::gateway::Gateway;

pub use super::fake_supabase::DEFAULT_BUCKET as BUCKET;

/// Settings for tests that expect the cloud to succeed, however busy the machine is.
pub const PATIENT: &[(&str, &str)] =
    &[("supabase.patience", "20s"), ("supabase.idle_timeout", "20s"), ("supabase.list_timeout", "20s")];

/// Hits uploads of objects and nothing else.
pub fn uploads() -> Matcher {
    Matcher::any().method("POST").path("/object/interview-recordings/")
}

/// Hits deletions of objects and nothing else.
pub fn deletions() -> Matcher {
    Matcher::any().method("DELETE").path("/object/interview-recordings/")
}

/// The uploads that reached the cloud.
pub fn seen_uploads(cloud: &FakeSupabase) -> Vec<SeenRequest> {
    let is_upload = |r: &SeenRequest| r.method == "POST" && r.path.contains("/object/interview-recordings/");
    cloud.requests().into_iter().filter(is_upload).collect()
}

/// A form whose file is the pieces sent to the other end; dropping that ends the file.
pub fn dripping_form() -> (mpsc::UnboundedSender<Vec<u8>>, Form) {
    let (pieces, mut rest) = mpsc::unbounded_channel::<Vec<u8>>();
    let stream = futures_util::stream::poll_fn(move |context| {
        rest.poll_recv(context).map(|piece| piece.map(Ok::<_, std::io::Error>))
    });
    let part = Part::stream(reqwest::Body::wrap_stream(stream));
    let part = part.file_name("talk.webm").mime_str("video/webm").unwrap();
    (pieces, Form::new().part("recording", part))
}

/// The rows of a session, as listed.
pub async fn rows(gateway: &Gateway, session: &str) -> Vec<Value> {
    let list = gateway.get_json(&format!("/recordings/{session}/list?limit=1000")).await;
    list["recordings"].as_array().unwrap_or_else(|| panic!("no list: {list}")).clone()
}

/// Waits until the one recording of the session is in the bucket under its name, and nowhere else.
pub async fn reaches_the_bucket(gateway: &Gateway, cloud: &FakeSupabase, path: &str, bytes: &[u8]) {
    let session = path.split('/').next().unwrap();
    let local = gateway.recordings_dir().join(path);
    eventually("the recording is in the bucket only", async || {
        let rows = rows(gateway, session).await;
        rows.len() == 1 && rows[0]["stores"] == serde_json::json!(["supabase"]) && !local.exists()
    })
    .await;
    assert_eq!(cloud.keys(BUCKET), [path], "one object, under the name that was answered");
    assert!(cloud.object(BUCKET, path).unwrap().bytes == bytes, "the bucket has other bytes: {path}");
    let rows = rows(gateway, session).await;
    assert_eq!(rows[0]["file_path"], path);
    assert!(gateway.bytes(path).await == bytes, "other bytes are served: {path}");
    assert_eq!(gateway.services.catalog.counts().await.unwrap().unsynced, 0);
}
