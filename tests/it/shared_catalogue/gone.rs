//! A gateway that was killed in the middle of a keyed upload and does not come back, or not soon: the client goes to
//! another one.
//!
//! Apart because the real program has to be killed for it.

use std::path::Path;

use reqwest::multipart::Form;
use serde_json::Value;

use super::gateway;
use crate::support::cloud::{BUCKET, PATIENT, rows, uploads};
use crate::support::eventually;
use crate::support::fake_supabase::{FakeSupabase, Fault};
use crate::support::gateway::{cloud_settings, file_part};
use crate::support::media::webm;
use crate::support::postgres;
use crate::support::process::Process;

/// Sends it under its key; `None` if there was no answer.
async fn send(url: &str, bytes: &[u8]) -> Option<(u16, Value)> {
    let form = Form::new().part("recording", file_part(bytes.to_vec(), "a.webm", "video/webm"));
    let request = reqwest::Client::new().post(format!("{url}/recordings/upload/s"));
    let response = request.header("idempotency-key", "k").multipart(form).send().await.ok()?;
    Some((response.status().as_u16(), response.json().await.ok()?))
}

fn spooled(dir: &Path, prefix: &str) -> usize {
    let Ok(names) = std::fs::read_dir(dir.join("recordings/.spool")) else { return 0 };
    names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().starts_with(prefix)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_gateway_did_not_answer_is_answered_by_another_once() {
    let Some(url) = postgres::database("a keyed upload whose gateway was killed").await else { return };
    let cloud = FakeSupabase::start().await;
    let mut settings = cloud_settings(&cloud);
    for (key, value) in [("catalog.url", url.as_str()), ("server.node", "east")].iter().chain(PATIENT) {
        settings.push(((*key).to_owned(), (*value).to_owned()));
    }
    let args: Vec<String> =
        settings.iter().flat_map(|(key, value)| ["--set".into(), format!("{key}={value}")]).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let dir = tempfile::tempdir().unwrap();
    let (east, west) =
        (Process::start(dir.path(), &args), gateway(&url, "west", Some(&cloud), PATIENT).await);
    let bytes = webm(3000, 1);

    // The object arrives; the answer does not, and then the gateway is gone.
    cloud.fault(Fault::Delay(std::time::Duration::from_secs(600)), uploads());
    let east_url = east.url.clone();
    let killed = async {
        eventually("it waits for the cloud, which has it", async || {
            spooled(dir.path(), "note-") == 1 && cloud.keys(BUCKET).len() == 1
        })
        .await;
        east.kill();
    };
    let (answer, ()) = tokio::join!(send(&east_url, &bytes), killed);
    assert_eq!(answer, None);
    cloud.clear_faults();
    let (status, answer) = send(&west.url, &bytes).await.unwrap();
    assert_eq!((status, &answer["code"]), (409, &"idempotency_key_in_use".into()), "{answer}");

    // Ten minutes later.
    let pool = sqlx::PgPool::connect(url.as_str()).await.unwrap();
    for statement in [
        "UPDATE gateways SET seen_at = seen_at - 600000000 WHERE node LIKE 'east%'",
        "UPDATE idempotent_requests SET created_at = created_at - 600000000",
    ] {
        assert_eq!(sqlx::query(statement).execute(&pool).await.unwrap().rows_affected(), 1, "{statement}");
    }
    let (status, answer) = send(&west.url, &bytes).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let path = answer["file_path"].as_str().unwrap().to_owned();
    let once = async || {
        let listed = rows(&west, "s").await;
        listed.len() == 1 && listed[0]["file_path"] == path.as_str() && cloud.keys(BUCKET) == [path.as_str()]
    };
    eventually("it is there once", once).await;

    // Back again, with the whole upload in its spool: it is somebody else's by now.
    assert_eq!(spooled(dir.path(), "note-"), 1);
    let east = Process::start(dir.path(), &args);
    assert_eq!(spooled(dir.path(), ""), 0);
    assert!(once().await, "{:?}", rows(&west, "s").await);
    assert_eq!(send(&east.url, &bytes).await.unwrap().1["file_path"], path.as_str());
    assert!(west.bytes(&path).await == bytes);
    east.stop_in_order();
    assert!(once().await);
    west.stop().await;
}
