//! The real program told to stop while work is under way that does not end within the grace: what was complete is there
//! after the next start, as after a kill. And what a power cut leaves of such work.

use serde_json::Value;

use crate::support::cloud::uploads;
use crate::support::eventually;
use crate::support::fake_supabase::Fault;
use crate::support::process::Process;
use crate::support::raw_client::{RawClient, RawForm, upload_head};
use crate::support::rig::Rig;
use crate::support::shim::{Action, FOR_GOOD, Plan};

const SUITE: &str = "stopped";

/// Files in the spool whose names begin so.
fn spooled(rig: &Rig, prefix: &str) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(rig.root().join(".spool")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix)).collect()
}

async fn total(rig: &Rig, process: &Process, session: &str) -> Value {
    rig.ledger.json(&process.url, &format!("/recordings/{session}/list")).await["total_count"].clone()
}

/// The client sends it again under its key and has it once, whole. reliability 2
async fn is_there_once(rig: &Rig, process: &Process, session: &str, bytes: Vec<u8>) {
    assert_eq!(total(rig, process, session).await, 1);
    let key = [("Idempotency-Key", "once")];
    let (status, answer) = rig.ledger.upload_with(&process.url, session, bytes, &key).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(total(rig, process, session).await, 1);
    rig.ledger.check(&process.url, &rig.root()).await;
}

/// The row is written and its flush hangs: it may be promised, so its bytes stay. reliability 1, 2
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_the_promise_leaves_row_and_bytes() {
    let Some(rig) = Rig::local(SUITE, &[("storage.min_free", "0"), ("server.shutdown_grace", "0s")]) else {
        return;
    };
    let (process, bytes) = (rig.start(), rig.ledger.bytes(3000));
    let form = RawForm::new().file(&bytes).end();
    let (begin, end) = form.split_at(1000);
    let head = format!("Idempotency-Key: once\r\nContent-Length: {}\r\n", form.len());
    let mut client = RawClient::connect(&process.url).await;
    client.send(upload_head("s", &head)).await;
    client.send(begin).await;
    eventually("it has its key", async || spooled(&rig, "form-").len() == 1).await;
    rig.faults.arm(&Plan::nth(Action::Hang, 1).of("flushes", "catalog").times(FOR_GOOD));
    client.send(end).await;
    eventually("its row waits to be flushed", async || {
        let log = rig.faults.log();
        let safe = log.iter().position(|o| o.class == "spool" && o.operation == "fsync");
        let written = safe.is_some_and(|safe| log[safe..].iter().any(|o| o.class == "catalog" && !o.hit));
        written && rig.faults.hit()
    })
    .await;
    process.stop_in_order();
    let process = rig.start();
    is_there_once(&rig, &process, "s", bytes).await;
    process.stop_in_order();
}

/// Starts it behind a cloud that swallows uploads, and has a client wait for one that is complete until `end` is over.
async fn while_one_waits(rig: &Rig, bytes: &[u8], end: impl FnOnce(Process)) {
    let process = rig.start();
    rig.cloud_answers(&process).await;
    rig.cloud().fault(Fault::BlackHole, uploads());
    let url = process.url.clone();
    let client = rig.ledger.upload_with(&url, "s", bytes.to_vec(), &[("Idempotency-Key", "once")]);
    let ended = async {
        eventually("it waits for the cloud", async || spooled(rig, "note-").len() == 1).await;
        end(process);
    };
    let (answer, ()) = tokio::join!(client, ended);
    assert!(answer.is_none(), "{answer:?}");
    rig.cloud().clear_faults();
}

const WAITING: &[(&str, &str)] =
    &[("storage.min_free", "0"), ("supabase.patience", "1min"), ("server.shutdown_grace", "1s")];

/// reliability 1, 16
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_keeps_what_was_complete_and_waits_for_the_cloud() {
    let Some(rig) = Rig::with_cloud(SUITE, WAITING).await else { return };
    let bytes = rig.ledger.bytes(300_000);
    while_one_waits(&rig, &bytes, |process| {
        let log = process.stop_in_order();
        assert!(log.iter().any(|line| line.contains("the next start takes it up")), "{log:?}");
    })
    .await;
    let process = rig.start();
    is_there_once(&rig, &process, "s", bytes).await;
    assert!(spooled(&rig, "").is_empty());
    rig.ledger.drains_into(rig.cloud()).await;
    process.stop_in_order();
}

/// What is found of an upload after a power cut may be what its recording left that was deleted since. It was promised
/// to nobody. reliability 3
#[tokio::test(flavor = "multi_thread")]
async fn a_note_counts_until_the_machine_starts_anew() {
    let Some(rig) = Rig::with_cloud(SUITE, WAITING).await else { return };
    let bytes = rig.ledger.bytes(300_000);
    while_one_waits(&rig, &bytes, |process| drop(process.kill())).await;
    let note = &spooled(&rig, "note-")[0];
    let mut text: Value = serde_json::from_slice(&std::fs::read(note).unwrap()).unwrap();
    assert!(text["boot"].is_string(), "{text}");
    text["boot"] = "the one before".into();
    std::fs::write(note, text.to_string()).unwrap();
    let process = rig.start();
    rig.cloud_answers(&process).await;
    assert!(spooled(&rig, "").is_empty());
    assert_eq!(total(&rig, &process, "s").await, 0);
    // Nothing of it stands in the way.
    let key = [("Idempotency-Key", "once")];
    let (status, answer) = rig.ledger.upload_with(&process.url, "s", bytes, &key).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    rig.ledger.check(&process.url, &rig.root()).await;
    let log = process.stop_in_order();
    assert!(log.iter().any(|line| line.contains("its client has to send it again")), "{log:?}");
}
