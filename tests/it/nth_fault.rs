//! The Nth operation on a file fails, for every N until none is hit any more: with no space, with an I/O error, with a
//! short write; once, and from then on for good. After each the program is alive, works again when the fault is
//! over, and after a crash holds to what it answered.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::cloud::BUCKET;
use crate::support::eventually;
use crate::support::fake_supabase::{Fault, Matcher};
use crate::support::media::webm;
use crate::support::process::Process;
use crate::support::raw_client::{self, RawClient, RawForm};
use crate::support::rig::Rig;
use crate::support::shim::{Action, FOR_GOOD, Operation, Plan};

const SUITE: &str = "nth_fault";

/// More than the block that an upload begins with, so that there are several writes.
const LEN: usize = 200_000;

/// The faults, each with what it is tried on.
fn faults() -> Vec<(Action, &'static str, usize)> {
    vec![
        (Action::IoError, "any", 1),
        (Action::NoSpace, "any", 1),
        (Action::Short, "writes", 1),
        (Action::NoSpace, "writes", FOR_GOOD),
        (Action::IoError, "flushes", FOR_GOOD),
    ]
}

/// A file that could not be flushed is not trusted again: after a failed fsync the kernel may forget what it could not
/// write, and the next one says success (reliability 7). A catalogue's log is written anew before its next fsync, and a
/// directory is flushed again for the next file.
fn assert_no_second_fsync(log: &[Operation]) {
    let mut failed = BTreeSet::new();
    for operation in log.iter().filter(|o| ["fsync", "fdatasync"].contains(&o.operation.as_str())) {
        let is_file = operation.class == "spool" || operation.path.contains(".webm");
        if is_file && !operation.hit {
            assert!(!failed.contains(&operation.path), "flushed again after a failure: {}", operation.path);
        } else if is_file {
            assert!(failed.insert(operation.path.clone()), "flushed again: {}", operation.path);
        }
    }
}

/// What comes after the fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The disk is well again, and the gateway works on before it crashes.
    Works,
    /// It crashes on top, before it could write anything else.
    Crashes,
    /// The one or the other.
    ByTurns,
}

/// Runs a scenario with each fault at each place. `prepare` runs without faults and says what to act on.
async fn fail_everywhere(
    rig: &Rig,
    next: Next,
    prepare: impl AsyncFn(&Process, &str) -> String,
    act: impl AsyncFn(&Process, &str, &str),
) {
    let mut process = rig.start();
    rig.cloud_answers(&process).await;
    let (begun, mut tried) = (Instant::now(), 0);
    for (action, operation, times) in faults() {
        for n in 1.. {
            assert!(n < 300, "there is no end to it");
            let session = format!("{action:?}-{operation}-{times}-{n}").to_lowercase();
            let subject = prepare(&process, &session).await;
            rig.faults.arm(&Plan::nth(action, n).of(operation, "any").times(times));
            act(&process, &session, &subject).await;
            rig.faults.disarm();
            let log = rig.faults.log();
            assert_no_second_fsync(&log);
            let alive = rig.ledger.status(&process.url, "/healthz").await;
            assert_eq!(alive, Some(200), "{session}: {:?} {:?}", log.last(), process.kill());
            if next == Next::Works || (next == Next::ByTurns && n % 2 == 0) {
                let again = rig.ledger.upload(&process.url, &format!("{session}-again"), 1000).await.unwrap();
                assert_eq!(again.0, 200, "{session}: {} after {log:?}", again.1);
            }
            let hit = log.iter().any(|operation| operation.hit);
            process = rig.crash_and_check(process).await;
            tried += 1;
            if !hit {
                break;
            }
        }
    }
    println!("{tried} faults in {:?}", begun.elapsed());
    assert!(tried > 20, "the faults did not hit anything");
    rig.ledger.check_everything(&process.url, &rig.root()).await;
    if let Some(cloud) = &rig.cloud {
        rig.ledger.drains_into(cloud).await;
    }
    process.stop_in_order();
}

fn is_refusal(status: u16) -> bool {
    [500, 503, 507].contains(&status)
}

async fn upload(rig: &Rig, process: &Process, session: &str) {
    let (status, answer) = rig.ledger.upload(&process.url, session, LEN).await.expect("an answer comes");
    assert!(status == 200 || is_refusal(status), "{session}: {answer}");
}

/// reliability 5, 6, 7, 8
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_without_a_cloud_is_kept_or_refused_at_any_fault() {
    let Some(rig) = Rig::local(SUITE, &[("storage.min_free", "0"), ("sync.interval", "1h")]) else { return };
    fail_everywhere(
        &rig,
        Next::Works,
        async |_, _| String::new(),
        async |process, session, _| {
            upload(&rig, process, session).await;
        },
    )
    .await;
}

/// A commit that failed may be on the disk all the same, and a crash makes it count. Then the recording is there whole,
/// although it was refused, or nothing of it is; never a row without its file. reliability 4, 6
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_on_top_of_a_refused_upload_leaves_nothing_of_it() {
    let Some(rig) = Rig::local(SUITE, &[("storage.min_free", "0"), ("sync.interval", "1h")]) else { return };
    fail_everywhere(
        &rig,
        Next::Crashes,
        async |_, _| String::new(),
        async |process, session, _| {
            upload(&rig, process, session).await;
        },
    )
    .await;
}

/// reliability 5, 6, 7, 8
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_with_a_dead_cloud_is_kept_or_refused_at_any_fault() {
    let dead =
        [("supabase.url", "http://127.0.0.1:9"), ("supabase.key", "k"), ("supabase.breaker_failures", "1")];
    let pauses = [("supabase.breaker_pause", "5min"), ("storage.min_free", "0"), ("sync.interval", "1h")];
    let Some(mut rig) = Rig::local(SUITE, &[dead.as_slice(), &pauses].concat()) else { return };
    rig.ledger.without_a_cloud();
    fail_everywhere(
        &rig,
        Next::Works,
        async |_, _| String::new(),
        async |process, session, _| {
            upload(&rig, process, session).await;
        },
    )
    .await;
}

/// reliability 7, 8
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_for_good_or_refused_at_any_fault() {
    let Some(rig) = Rig::local(SUITE, &[("storage.min_free", "0"), ("sync.interval", "1h")]) else { return };
    let prepare = async |process: &Process, session: &str| {
        let (status, answer) = rig.ledger.upload(&process.url, session, 1000).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        answer["file_path"].as_str().unwrap().to_owned()
    };
    fail_everywhere(&rig, Next::ByTurns, prepare, async |process, session, path| {
        let (status, answer) = rig.ledger.delete(&process.url, path).await.expect("an answer comes");
        assert!([200, 202].contains(&status) || is_refusal(status), "{session}: {answer}");
    })
    .await;
}

/// reliability 7, 8
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_goes_on_after_any_fault() {
    let quick = [("supabase.patience", "0s"), ("supabase.breaker_failures", "1000")];
    let soon = [("storage.min_free", "0"), ("sync.interval", "50ms")];
    let Some(rig) = Rig::with_cloud(SUITE, &[quick, soon].concat()).await else { return };
    let prepare = async |process: &Process, session: &str| {
        eventually("what failed before is synced", async || {
            rig.ledger.kept().iter().all(|path| !rig.root().join(path).exists())
        })
        .await;
        rig.cloud().stop().await;
        let (status, answer) = rig.ledger.upload(&process.url, session, 1000).await.unwrap();
        assert_eq!((status, &answer["storage_type"]), (200, &"local".into()), "{answer}");
        answer["file_path"].as_str().unwrap().to_owned()
    };
    fail_everywhere(&rig, Next::ByTurns, prepare, async |_, _, path| {
        rig.cloud().restart_on_same_port().await;
        // A disk that fails for good stops the sync: then nothing more is waited for.
        let (file, begun) = (rig.root().join(path), Instant::now());
        let enough = || rig.faults.hit() && begun.elapsed() > Duration::from_millis(150);
        eventually("it is synced", async || !file.exists() || enough()).await;
    })
    .await;
}

/// What was answered outlives a power cut: the log of the catalogue was flushed after the last write to it.
#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_is_flushed_before_every_answer() {
    let Some(rig) = Rig::local(SUITE, &[("storage.min_free", "0"), ("sync.interval", "1h")]) else { return };
    let process = rig.start();
    let flushed = |what: &str| {
        let log = rig.faults.log();
        let is_log = |o: &&Operation| o.path.ends_with("catalog.sqlite-wal");
        let last = |kinds: &[&str]| {
            log.iter().rposition(|o| kinds.contains(&o.operation.as_str()) && is_log(&o)).unwrap_or_default()
        };
        let (written, synced) = (last(&["write", "pwrite", "pwritev"]), last(&["fsync", "fdatasync"]));
        assert!(written > 0 && synced > written, "{what} was answered before it was on the disk: {log:?}");
    };
    for round in 0..5 {
        rig.faults.arm(&Plan::nth(Action::Count, 1));
        let (status, answer) = rig.ledger.upload(&process.url, "flushed", LEN).await.unwrap();
        flushed("an upload");
        assert_eq!(status, 200, "{answer}");
        let place = answer["file_path"].as_str().unwrap().to_owned();
        rig.faults.arm(&Plan::nth(Action::Count, 1));
        let (status, answer) = rig.ledger.delete(&process.url, &place).await.unwrap();
        assert_eq!(status, 200, "round {round}: {answer}");
        flushed("a deletion");
    }
    process.stop_in_order();
}

/// A log that cannot be flushed is no promise, and is made anew before the next one.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_promised_while_the_catalogue_cannot_be_flushed() {
    let Some(rig) = Rig::local(SUITE, &[("storage.min_free", "0"), ("sync.interval", "1h")]) else { return };
    let process = rig.start();
    rig.faults.arm(&Plan::nth(Action::IoError, 1).of("flushes", "catalog").times(FOR_GOOD));
    for _ in 0..3 {
        let (status, answer) = rig.ledger.upload(&process.url, "unflushed", LEN).await.unwrap();
        assert!(is_refusal(status), "{answer}");
    }
    assert!(rig.faults.hit());
    rig.faults.arm(&Plan::nth(Action::Count, 1));
    let (status, answer) = rig.ledger.upload(&process.url, "unflushed", LEN).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let anew = |o: &Operation| o.operation == "ftruncate" && o.path.ends_with("catalog.sqlite-wal");
    assert!(rig.faults.log().iter().any(anew), "the log that failed is trusted again");
    rig.faults.disarm();
    let process = rig.crash_and_check(process).await;
    process.stop_in_order();
}

/// The type came after the file, the object has its new name in the bucket, and the catalogue fails then: the upload is
/// refused, and nothing of it stays there.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_was_renamed_for_nothing_does_not_stay() {
    let settings = [("storage.min_free", "0"), ("sync.interval", "100ms"), ("supabase.patience", "20s")];
    let Some(rig) = Rig::with_cloud(SUITE, &settings).await else { return };
    let process = rig.start();
    rig.cloud_answers(&process).await;
    let slow = rig.cloud().fault(Fault::Delay(Duration::from_secs(2)), Matcher::any().path("/object/move"));
    let form = RawForm::new().file(webm(3_000_000, 1)).text("recording_type", "scene").end();
    let mut client = RawClient::connect(&process.url).await;
    client.send(raw_client::upload("late-type", &form)).await;
    let keys = || rig.cloud().keys(BUCKET);
    eventually("it is renamed", async || slow.hits() == 1 && keys().iter().any(|k| k.contains("scene")))
        .await;
    rig.faults.arm(&Plan::nth(Action::IoError, 1).of("writes", "catalog").times(FOR_GOOD));
    let answer = client.answer().await;
    assert!(is_refusal(answer.status), "{}", answer.status);
    rig.faults.disarm();
    eventually("nothing of it is in the bucket", async || keys().is_empty()).await;
    let list = rig.ledger.json(&process.url, "/recordings/late-type/list").await;
    assert_eq!(list["total_count"], 0, "{list}");
    process.stop_in_order();
}
