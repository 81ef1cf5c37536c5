//! What the process stands on gives way: power, descriptors, the spool, the catalogue's version. The real program, seen
//! from outside.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use sqlx::{Connection, SqliteConnection};

use crate::support::eventually;
use crate::support::process::{Process, command};
use crate::support::raw_client::{RawClient, RawForm, bare, exchange, upload, upload_head};
use crate::support::rig::Rig;
use crate::support::shim::{Action, FOR_GOOD, Operation, Plan};

const SUITE: &str = "environment";

/// What a power cut right now would take away: names and bytes that no fsync has made durable. Of the catalogue only its
/// log counts; its index beside it is made anew at each start.
fn lost_in_a_power_cut(log: &[Operation]) -> BTreeSet<String> {
    let mut at_risk = BTreeSet::new();
    let parent = |path: &str| path.rsplit_once('/').map_or(".".to_owned(), |(dir, _)| dir.to_owned());
    for Operation { operation, path, .. } in log.iter().filter(|o| !o.failed && !o.path.ends_with("-shm")) {
        match operation.as_str() {
            "fsync" | "fdatasync" => {
                at_risk.retain(|lost: &String| {
                    *lost != format!("bytes of {path}") && !lost.starts_with(&format!("name in {path}:"))
                });
            }
            // A file whose name in the spool was flushed is found there by its upload if its new name is lost.
            "rename" if !at_risk.iter().any(|lost| lost.starts_with("name in .spool:")) => {}
            "create" | "mkdir" | "rename" => {
                at_risk.insert(format!("name in {}: {path}", parent(path)));
            }
            "write" | "pwrite" | "writev" | "pwritev" | "ftruncate" => {
                at_risk.insert(format!("bytes of {path}"));
            }
            _ => {}
        }
    }
    // What the next start makes anew is nothing to miss. The catalogue's log is opened as if it had to be made by each
    // connection; SQLite flushes the directory with its first flush of one that it made.
    let nothing_to_miss = ["name in .: .spool", "name in .catalog:"];
    at_risk.retain(|lost| !nothing_to_miss.iter().any(|beginning| lost.starts_with(beginning)));
    at_risk
}

/// At the moment of the answer everything it promises has been flushed: bytes, name, directory, row. reliability 3
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_after_the_answer_takes_nothing() {
    let Some(rig) = Rig::local(SUITE, &[("sync.interval", "1h")]) else { return };
    rig.faults.arm(&Plan::nth(Action::Count, 1));
    let process = Process::run(rig.command()).unwrap_or_else(|(_, log)| panic!("{log:?}"));
    assert_eq!(lost_in_a_power_cut(&rig.faults.log()), BTreeSet::new(), "at the start");
    for session in ["first", "first", "second"] {
        rig.faults.arm(&Plan::nth(Action::Count, 1));
        let (status, answer) = rig.ledger.upload(&process.url, session, 3_000_000).await.unwrap();
        let log = rig.faults.log();
        assert_eq!(status, 200, "{answer}");
        assert_eq!(lost_in_a_power_cut(&log), BTreeSet::new());
        // The bytes were flushed under the old name, before they had the new one.
        let position = |operation: &str, class: &str| {
            log.iter().position(|o| o.operation == operation && o.class == class).expect(operation)
        };
        assert!(position("fsync", "spool") < position("rename", "session"));
        let last_write = log.iter().rposition(|o| o.operation == "pwrite" && o.class == "spool").unwrap();
        assert!(last_write < position("fsync", "spool"));

        rig.faults.arm(&Plan::nth(Action::Count, 1));
        let path = answer["file_path"].as_str().unwrap();
        assert_eq!(rig.ledger.delete(&process.url, path).await.unwrap().0, 200);
        let log = rig.faults.log();
        assert_eq!(lost_in_a_power_cut(&log), BTreeSet::new());
        // The tombstone is durable before the file goes, and that it went is too.
        let unlinked = log.iter().position(|o| o.operation == "unlink" && o.class == "session").unwrap();
        let before =
            log[..unlinked].iter().rfind(|o| o.class == "catalog" && o.operation != "close").unwrap();
        assert!(["fsync", "fdatasync"].contains(&before.operation.as_str()), "{before:?}");
        assert_eq!(log[unlinked + 1].operation, "fsync");
        rig.ledger.upload(&process.url, session, 1000).await.unwrap();
    }
    process.stop_in_order();
}

/// A session's directory whose name could not be flushed does not stay, or the next recording in it would be promised
/// under a name that a power cut takes away. reliability 3, 7
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_could_not_be_flushed_is_made_anew() {
    let Some(rig) = Rig::local(SUITE, &[("sync.interval", "1h")]) else { return };
    let process = rig.start();
    rig.faults.arm(&Plan::nth(Action::IoError, 1).of("fsync", "root"));
    assert_eq!(rig.ledger.upload(&process.url, "s", 1000).await.unwrap().0, 500);
    let mut log = rig.faults.log();
    let failed = log.iter().position(|o| o.hit).unwrap();
    log.remove(failed);
    rig.faults.arm(&Plan::nth(Action::Count, 1));
    assert_eq!(rig.ledger.upload(&process.url, "s", 1000).await.unwrap().0, 200);
    log.extend(rig.faults.log());
    assert_eq!(lost_in_a_power_cut(&log), BTreeSet::new());
    rig.crash_and_check(process).await.stop_in_order();
}

/// Idle connections take what there is of descriptors; an upload that runs ends well all the same, and when they are gone
/// new ones are taken. reliability 15
#[tokio::test(flavor = "multi_thread")]
async fn connections_never_take_the_descriptors_that_uploads_need() {
    let dir = tempfile::tempdir().unwrap();
    let program = command(dir.path(), &["--set", "server.header_timeout=5min"]);
    let mut limited = Command::new("sh");
    limited.current_dir(dir.path()).env_clear().env("GATEWAY_SERVER__PORT", "0");
    limited
        .args(["-c", "ulimit -n 120 && exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(program.get_args());
    let process = Process::run(limited).unwrap_or_else(|(_, log)| panic!("{log:?}"));
    let body = RawForm::new().file(crate::support::media::webm(300_000, 1)).end();
    let head = upload_head("running", &format!("Content-Length: {}\r\n", body.len()));
    let mut running = Vec::new();
    for _ in 0..10 {
        let mut client = RawClient::connect(&process.url).await;
        client.send(&head).await;
        client.send(&body[..200_000]).await;
        running.push(client);
    }
    let spool = dir.path().join("recordings/.spool");
    eventually("the uploads run", async || std::fs::read_dir(&spool).unwrap().count() == running.len()).await;
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count();
    let mut idle = Vec::new();
    // Fewer than the system lets wait to be accepted.
    for _ in 0..110 {
        idle.push(RawClient::connect(&process.url).await);
    }
    // Until it takes no more: the count stands still.
    let mut last = 0;
    eventually("no more are taken", async || {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        std::mem::replace(&mut last, descriptors()) == last
    })
    .await;
    for client in &mut running {
        client.send(&body[200_000..]).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "with {last} descriptors open: {:?}", answer.json());
    }
    drop((running, idle));
    assert_eq!(exchange(&process.url, bare("GET", "/healthz")).await.status, 200);
    let list = exchange(&process.url, bare("GET", "/recordings/running/list")).await;
    assert_eq!(list.json()["total_count"], 10);
    process.stop_in_order();
}

/// Uploads that run and that come are refused, or were kept; the gateway says that it is not ready and lives on. When the
/// directory is there again, so is everything. reliability 11
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_deleted_under_it_is_told() {
    let Some(rig) = Rig::local(SUITE, &[]) else { return };
    let process = rig.start();
    assert_eq!(rig.ledger.upload(&process.url, "before", 1000).await.unwrap().0, 200);
    let body = RawForm::new().file(crate::support::media::webm(1000, 99)).end();
    let mut running = RawClient::connect(&process.url).await;
    running.send(upload_head("running", &format!("Content-Length: {}\r\n", body.len()))).await;
    running.send(&body[..900]).await;
    let spool = rig.root().join(".spool");
    eventually("the upload runs", async || std::fs::read_dir(&spool).unwrap().count() == 1).await;
    std::fs::remove_dir_all(&spool).unwrap();
    assert_eq!(rig.ledger.status(&process.url, "/readyz").await, Some(503));
    assert_eq!(rig.ledger.status(&process.url, "/healthz").await, Some(200));
    running.send(&body[900..]).await;
    assert_eq!(running.answer().await.status, 500);
    let list = exchange(&process.url, bare("GET", "/recordings/running/list")).await;
    assert_eq!(list.json()["total_count"], 0, "it was refused");
    assert_eq!(rig.ledger.upload(&process.url, "without", 1000).await.unwrap().0, 503);
    std::fs::create_dir(&spool).unwrap();
    assert_eq!(rig.ledger.status(&process.url, "/readyz").await, Some(200));
    assert_eq!(rig.ledger.upload(&process.url, "after", 1000).await.unwrap().0, 200);
    std::fs::remove_dir_all(&spool).unwrap();
    let process = rig.crash_and_check(process).await;
    assert_eq!(rig.ledger.upload(&process.url, "after", 1000).await.unwrap().0, 200);
    process.stop_in_order();
}

/// Not ready, no upload is taken, nothing else suffers. reliability 10
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_takes_no_files_is_told() {
    let Some(rig) = Rig::local(SUITE, &[]) else { return };
    let process = rig.start();
    let (_, answer) = rig.ledger.upload(&process.url, "before", 1000).await.unwrap();
    process.stop_in_order();
    rig.faults.arm(&Plan::nth(Action::ReadOnly, 1).of("create", "spool").times(FOR_GOOD));
    let process = Process::run(rig.command()).unwrap_or_else(|(_, log)| panic!("{log:?}"));
    assert_eq!(rig.ledger.status(&process.url, "/readyz").await, Some(503));
    let refused = exchange(&process.url, upload("s", &RawForm::new().file("x").end())).await;
    assert!([500, 503].contains(&refused.status), "{}", refused.status);
    rig.ledger.check_everything(&process.url, &rig.root()).await;
    let path = answer["file_path"].as_str().unwrap();
    assert_eq!(rig.ledger.delete(&process.url, path).await.unwrap().0, 200);
    rig.faults.disarm();
    assert_eq!(rig.ledger.status(&process.url, "/readyz").await, Some(200));
    assert_eq!(rig.ledger.upload(&process.url, "after", 1000).await.unwrap().0, 200);
    rig.crash_and_check(process).await.stop_in_order();
}

/// An older program does not touch what a newer one made, and says what to do. reliability 17
#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_of_a_newer_version_keeps_it_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    Process::start(dir.path(), &[]).stop_in_order();
    let catalogue = dir.path().join("recordings/.catalog/catalog.sqlite");
    let mut newer = SqliteConnection::connect(catalogue.to_str().unwrap()).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99, 'of a newer version', 1, x'00', 0)",
    )
    .execute(&mut newer)
    .await
    .unwrap();
    newer.close().await.unwrap();
    let bytes = std::fs::read(&catalogue).unwrap();
    let refused = command(dir.path(), &[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("newer version"), "{text}");
    assert!(std::fs::read(&catalogue).unwrap() == bytes, "the catalogue was changed");
}

/// What can never be used as a catalogue is told at once, with what to do, and left as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_that_is_none_is_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    Process::start(dir.path(), &[]).stop_in_order();
    let catalogue = dir.path().join("recordings/.catalog/catalog.sqlite");
    let whole = std::fs::read(&catalogue).unwrap();
    // A log that the end did not clear away would make a rotten file good again.
    for log in ["catalog.sqlite-wal", "catalog.sqlite-shm"] {
        let _ = std::fs::remove_file(catalogue.with_file_name(log));
    }
    let refused = || {
        let begun = Instant::now();
        let refused = command(dir.path(), &[]).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
        let check = Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"))
            .current_dir(dir.path())
            .env_clear()
            .args(["check", "--port", "0"])
            .output()
            .unwrap();
        [String::from_utf8(refused.stderr).unwrap(), String::from_utf8(check.stdout).unwrap()]
    };
    let garbage = b"somebody's notes ".repeat(1000);
    // Its first page is good, what it leads to is not.
    let mut rotten = whole.clone();
    rotten[100..4096].fill(0xa5);
    for bytes in [&garbage, &rotten] {
        std::fs::write(&catalogue, bytes).unwrap();
        for text in refused() {
            assert!(text.contains("damaged") && text.contains("catalog.sqlite away"), "{text}");
            assert!(!text.contains("timed out"), "{text}");
        }
        assert!(std::fs::read(&catalogue).unwrap() == *bytes, "it was changed");
    }
    std::fs::remove_file(&catalogue).unwrap();
    std::fs::create_dir(&catalogue).unwrap();
    for text in refused() {
        assert!(text.contains("cannot be opened") && text.contains("may read and write"), "{text}");
    }
    std::fs::remove_dir(&catalogue).unwrap();
    std::fs::write(&catalogue, whole).unwrap();
    Process::start(dir.path(), &[]).stop_in_order();
}
