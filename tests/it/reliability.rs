//! The faults that the gateway has to survive, by number, and the tests that show that it does; and tests of those that
//! no other suite is about. Numbers are stable: a doc comment that says `reliability N` means this table.

use std::path::Path;

use recording_gateway::catalog::Work;
use recording_gateway::spool::Spool;
use recording_gateway::storage::local::LocalStore;

use crate::support::cloud::{BUCKET, uploads};
use crate::support::eventually;
use crate::support::fake_supabase::{FakeSupabase, Fault};
use crate::support::gateway::Gateway;
use crate::support::media::webm;

/// Number, what happens, and the tests, as `suite::test` in `tests/it` or `path.rs::test` from the root.
const FAULTS: [(u8, &str, &[&str]); 37] = [
    (
        1,
        "killed while it receives",
        &["crash::killed_while_an_upload_goes_to_the_cloud", "crash::killed_while_it_recovers"],
    ),
    (
        2,
        "killed between the file's place and the answer",
        &[
            "crash::killed_while_it_keeps_an_upload_here",
            "crash::killed_and_repeated_a_keyed_upload_is_there_once",
        ],
    ),
    (3, "the power goes after a success", &["environment::a_power_cut_after_the_answer_takes_nothing"]),
    (
        4,
        "a row without its file, a file without its row",
        &[
            "crash::killed_while_it_keeps_an_upload_here",
            "list::a_loss_is_not_hidden",
            "sync::files_dropped_in_are_synced",
        ],
    ),
    (
        5,
        "no room in the middle of a body",
        &["disk_full::a_disk_that_fills_up_in_the_middle_costs_only_the_upload_that_does_not_fit"],
    ),
    (6, "no room for the row alone", &["disk_full::without_room_for_the_row_nothing_is_called_saved"]),
    (
        7,
        "a write or a flush fails",
        &[
            "nth_fault::an_upload_without_a_cloud_is_kept_or_refused_at_any_fault",
            "nth_fault::a_sync_goes_on_after_any_fault",
        ],
    ),
    (8, "closing a file fails", &["nth_fault::an_upload_with_a_dead_cloud_is_kept_or_refused_at_any_fault"]),
    (
        9,
        "spool and recordings on two file systems",
        &["reliability::a_spool_on_another_file_system_is_refused"],
    ),
    (10, "a spool that takes no files", &["environment::a_spool_that_takes_no_files_is_told"]),
    (11, "the spool is removed under it", &["environment::a_spool_that_is_deleted_under_it_is_told"]),
    (12, "two processes on one directory", &["operations::two_processes_never_share_a_directory"]),
    (
        13,
        "the clock jumps",
        &[
            "reliability::a_clock_that_was_ahead_puts_nothing_off_beyond_the_next_start",
            "src/storage/breaker.rs::one_try_at_a_time_and_the_pause_doubles",
        ],
    ),
    (
        14,
        "more uploads than there is room for",
        &[
            "limits::uploads_over_the_number_of_places_are_told_to_come_back",
            "src/spool/tests.rs::blocks_shrink_when_many_upload",
        ],
    ),
    (
        15,
        "no descriptors are left",
        &["environment::connections_never_take_the_descriptors_that_uploads_need"],
    ),
    (
        16,
        "told to stop while uploads run",
        &[
            "operations::every_polite_signal_lets_a_running_upload_finish",
            "operations::a_stop_waits_no_longer_than_the_grace",
        ],
    ),
    (
        17,
        "a directory of another version",
        &["environment::a_catalogue_of_a_newer_version_keeps_it_from_starting"],
    ),
    (18, "bytes rot on the disk", &["sync::a_damaged_local_copy_never_reaches_the_cloud"]),
    (
        19,
        "no address, no connection, no TLS",
        &["wire::an_address_that_leads_nowhere", "wire::a_cloud_that_is_away_for_the_whole_run"],
    ),
    (
        20,
        "connected, and silence",
        &["fallback::a_black_hole_does_not_slow_the_client", "wire::a_wire_that_swallows"],
    ),
    (
        21,
        "errors of the server, pages instead of answers",
        &["fallback::a_large_recording_survives_every_fault", "wire::a_wire_that_lies"],
    ),
    (
        22,
        "asked to wait",
        &[
            "src/storage/breaker.rs::a_store_that_asks_for_time_gets_it",
            "resumable_sync::the_cloud_is_left_alone_for_as_long_as_it_asks",
        ],
    ),
    (23, "one status for many reasons", &["fallback::a_small_recording_survives_every_fault"]),
    (
        24,
        "the name is taken",
        &[
            "names::somebody_elses_object_is_left_alone",
            "names::the_same_bytes_put_there_by_somebody_else_will_do",
            "sync::a_cloud_copy_with_other_bytes_is_no_copy",
        ],
    ),
    (
        25,
        "an error, and it was stored",
        &[
            "fallback::a_medium_recording_survives_every_fault",
            "resumable_sync::a_lost_last_answer_is_asked_about",
        ],
    ),
    (
        26,
        "a success, and it was not",
        &[
            "sync::the_local_copy_goes_only_after_the_cloud_copy_was_compared",
            "resumable_sync::a_success_that_is_none_is_found_out",
        ],
    ),
    (
        27,
        "the line breaks in the middle",
        &["wire::a_wire_that_resets", "resumable_sync::it_goes_on_where_the_line_broke"],
    ),
    (
        28,
        "the key is refused",
        &[
            "fallback::a_refused_key_is_tried_once_and_named",
            "resumable_sync::a_refused_key_is_no_reason_to_begin_anew",
        ],
    ),
    (29, "larger than the cloud takes", &["fallback::what_is_over_the_buckets_limit_is_parked"]),
    (
        30,
        "lists that are cut or repeat themselves",
        &["list::a_list_that_is_cut_short_or_does_not_get_on_hides_nothing_known"],
    ),
    (31, "deleted, it says, and still there", &["delete::a_cloud_that_cannot_be_asked_finds_out_later"]),
    (32, "a slow line", &["wire::a_slow_wire"]),
    (
        33,
        "back after hours",
        &[
            "resumable_sync::the_background_keeps_to_its_rate_and_gives_way_to_clients",
            "sync::many_that_were_kept_arrive_when_the_cloud_is_back",
        ],
    ),
    (
        40,
        "two uploads of one name at once",
        &["names::fifty_uploads_of_one_second_here", "names::fifty_uploads_of_one_second_in_the_cloud"],
    ),
    (
        41,
        "an idempotency key is used again",
        &[
            "idempotency::a_repeat_gets_the_first_answer",
            "idempotency::while_the_first_runs_a_second_waits_outside",
            "idempotency::answers_survive_a_restart",
        ],
    ),
    (
        63,
        "deleted during a push, before it lands, before a restart",
        &[
            "delete::a_push_that_is_under_way_does_not_bring_it_back",
            "delete::a_push_that_lands_after_the_deletion_was_confirmed_is_deleted_too",
            "delete::a_cloud_that_cannot_be_asked_finds_out_later",
            "model::whatever_happens_nothing_is_lost_and_nothing_comes_back",
        ],
    ),
    (64, "the name of a deleted recording is wanted again", &["delete::a_deleted_name_is_not_used_again"]),
];

#[test]
fn every_fault_has_a_test_that_exists() {
    let numbers: Vec<u8> = FAULTS.iter().map(|(number, ..)| *number).collect();
    let wanted: Vec<u8> = (1..=33).chain([40, 41, 63, 64]).collect();
    assert_eq!(numbers, wanted);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (number, title, tests) in FAULTS {
        assert!(!title.is_empty() && !tests.is_empty(), "{number}");
        for test in tests {
            let (suite, name) = test.rsplit_once("::").unwrap();
            let files = match suite.strip_suffix(".rs") {
                Some(_) => vec![root.join(suite)],
                None => vec![
                    root.join(format!("tests/it/{suite}.rs")),
                    root.join(format!("tests/it/{suite}/mod.rs")),
                ],
            };
            let source = files.iter().find_map(|file| std::fs::read_to_string(file).ok());
            let source = source.unwrap_or_else(|| panic!("{number}: no suite {suite}"));
            let at =
                source.find(&format!("fn {name}(")).unwrap_or_else(|| panic!("{number}: no test {test}"));
            let before = source[..at].trim_end_matches("async ").trim_end();
            assert!(before.ends_with(']'), "{number}: {test} is no test");
        }
    }
}

/// A rename between file systems is a copy that can break off; so such a directory is refused at the start.
/// reliability 9
#[test]
fn a_spool_on_another_file_system_is_refused() {
    use std::os::unix::fs::MetadataExt;
    let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm"));
    let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
    let other = other.ok().filter(|other| device(other.path()) != device(root.path()));
    let Some(other) = other else {
        return crate::support::skip::skip_or_fail("reliability", "there is no second file system");
    };
    std::os::unix::fs::symlink(other.path(), root.path().join(".spool")).unwrap();
    let spool = Spool::open(root.path().join(".spool")).unwrap();
    let error = LocalStore::open(root.path().to_owned(), spool).err().expect("it is refused");
    assert_eq!(error.kind(), std::io::ErrorKind::CrossesDevices, "{error}");
    let near = Spool::open(root.path().join(".near")).unwrap();
    LocalStore::open(root.path().to_owned(), near).unwrap();
}

/// Leaves a job as the runner of a clock that is a year ahead would have.
async fn put_off_for_a_year(gateway: &Gateway) {
    let catalog = &gateway.services.catalog;
    let year_us = 365 * 86_400_000_000;
    let now = recording_gateway::domain::recording::micros(time::OffsetDateTime::now_utc());
    eventually("the job is put off for a year", async || {
        let Some(job) = catalog.claim_job(now + year_us, 1_000_000, Work::All).await.unwrap() else {
            return false;
        };
        catalog.postpone_job(&job, now + year_us, "the clock was ahead").await.unwrap();
        true
    })
    .await;
}

/// What was put off while the clock was ahead is due when the gateway starts with the right one. reliability 13
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_ahead_puts_nothing_off_beyond_the_next_start() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let fault = cloud.fault(Fault::internal_error(), uploads());
    let (status, answer) = gateway.upload("s", webm(5000, 1)).await;
    assert_eq!((status, &answer["storage_type"]), (200, &"local".into()));
    // As the runner of a clock that is a year ahead would have left it, and nobody took it since.
    put_off_for_a_year(&gateway).await;
    let gateway = gateway.restart().await;
    fault.remove();
    eventually("it is in the bucket", async || cloud.keys(BUCKET).len() == 1).await;
    gateway.stop().await;
}

/// The same while it runs: the clock is set right, and what was put off by the wrong one does not wait a year.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_ahead_puts_nothing_off_for_long() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let key = recording_gateway::domain::ObjectKey::parse("s/a.webm").unwrap();
    let catalog = gateway.services.catalog.clone();
    let pending = recording_gateway::domain::StoreSet::only(recording_gateway::domain::StoreKind::Supabase);
    // A deletion that the runners do not get to: the cloud refuses it.
    let fault = cloud.fault(Fault::policy_refusal(), crate::support::cloud::deletions());
    cloud.put_object(BUCKET, "s/a.webm", b"bytes", "video/webm");
    catalog.entomb(&[key], pending, &gateway.services.origin).await.unwrap();
    put_off_for_a_year(&gateway).await;
    fault.remove();
    eventually("it is deleted", async || cloud.keys(BUCKET).is_empty()).await;
    gateway.stop().await;
}
