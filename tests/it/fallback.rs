//! What an upload comes to when the cloud fails, in every way we know: the client gets its answer, the bytes are
//! here, and when the cloud is well again they go there, once.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use reqwest::multipart::Form;

use crate::support::cloud::{
    BUCKET, PATIENT, dripping_form, reaches_the_bucket, rows, seen_uploads, uploads,
};
use crate::support::eventually;
use crate::support::fake_supabase::{BucketSpec, Canned, FakeSupabase, Fault, Matcher, SeenRequest};
use crate::support::gateway::{Gateway, file_part};
use crate::support::media::{sha256, webm};

/// How a fault is made.
#[derive(Clone)]
enum Break {
    /// Nobody listens.
    Refuse,
    /// The bucket is gone.
    NoBucket,
    /// On every request.
    Everything(Fault),
    /// On uploads only: questions are answered as ever.
    Uploads(Fault),
    /// On the first upload only.
    FirstUpload(Fault),
}

/// What the client is told.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Ends {
    Cloud,
    Kept,
    Parked,
    /// As fast as the network is.
    CloudOrKept,
}

fn html(status: u16) -> Canned {
    Canned::raw(status, "text/html", "<html><body>no</body></html>")
}

/// Every fault, by a name for the report.
fn faults() -> Vec<(&'static str, Break, Ends)> {
    use Break::{Everything, FirstUpload, NoBucket, Refuse, Uploads};
    use Ends::{Cloud, CloudOrKept, Kept, Parked};
    let no_route =
        serde_json::json!({"message": "Route POST:/ not found", "error": "Not Found", "statusCode": 404});
    let failing = [
        ("black hole", Fault::BlackHole),
        ("reads and hangs", Fault::ReadThenHang),
        ("500", Fault::internal_error()),
        ("502 page", Fault::bad_gateway()),
        ("429", Fault::slow_down(None)),
        ("544", Fault::database_timeout()),
        ("400 that means 503", Fault::database_read_only()),
        ("early 503 page", Fault::EarlyStatus(html(503))),
        ("404 of a wrong route", Fault::Status(Canned::json(404, &no_route))),
        ("reset at once", Fault::ResetAfterRequestBytes(0)),
        ("reset after 500 bytes", Fault::ResetAfterRequestBytes(500)),
        ("reset after 200 KB", Fault::ResetAfterRequestBytes(200_000)),
        ("reset after 5 MB", Fault::ResetAfterRequestBytes(5_000_000)),
        ("expired key", Fault::expired_key()),
    ];
    let mut all = vec![("refuses connections", Refuse, Kept), ("bucket missing", NoBucket, Kept)];
    for (name, fault) in failing {
        all.push((name, Everything(fault.clone()), Kept));
        all.push((name, Uploads(fault.clone()), Kept));
        let heals = !matches!(fault, Fault::BlackHole | Fault::ReadThenHang) && name != "expired key";
        if heals {
            all.push((name, FirstUpload(fault), Cloud));
        }
    }
    all.extend([
        ("garbage JSON everywhere", Everything(Fault::GarbageJson), Kept),
        ("garbage JSON to uploads", Uploads(Fault::GarbageJson), Cloud),
        ("half answers everywhere", Everything(Fault::HalfBody), Kept),
        ("half answers to uploads", Uploads(Fault::HalfBody), Cloud),
        ("stored but said 500", Uploads(Fault::StoredButError), Cloud),
        ("stored but says 500 to everything", Everything(Fault::StoredButError), Kept),
        ("stored, then reset", Uploads(Fault::StoredThenReset), Cloud),
        ("stored, then resets everything", Everything(Fault::StoredThenReset), Kept),
        ("said stored but short", Uploads(Fault::SaidStoredButShort(700)), Kept),
        ("said stored but empty", Uploads(Fault::SaidStoredButShort(0)), Kept),
        ("said stored but nothing", Uploads(Fault::SaidStoredButNothing), Kept),
        ("short once", FirstUpload(Fault::SaidStoredButShort(700)), Cloud),
        ("nothing once", FirstUpload(Fault::SaidStoredButNothing), Cloud),
        ("slow read", Uploads(Fault::SlowRead(200_000)), CloudOrKept),
        ("slow answers", Uploads(Fault::Delay(Duration::from_millis(200))), Cloud),
        ("policy", Uploads(Fault::policy_refusal()), Parked),
    ]);
    all
}

async fn break_it(cloud: &FakeSupabase, how: &Break) {
    match how.clone() {
        Break::Refuse => cloud.stop().await,
        Break::NoBucket => cloud.delete_bucket(BUCKET),
        Break::Everything(fault) => drop(cloud.fault(fault, Matcher::any())),
        Break::Uploads(fault) => drop(cloud.fault(fault, uploads())),
        Break::FirstUpload(fault) => drop(cloud.fault(fault, uploads().times(1))),
    }
}

async fn mend(cloud: &FakeSupabase, how: &Break) {
    cloud.clear_faults();
    match how {
        Break::Refuse => cloud.restart_on_same_port().await,
        Break::NoBucket => {
            cloud.create_bucket(BucketSpec { name: BUCKET.into(), public: true, ..BucketSpec::default() });
        }
        _ => {}
    }
}

async fn one_case(how: Break, ends: Ends, bytes: Vec<u8>) {
    let cloud = FakeSupabase::start().await;
    let patience = if matches!(ends, Ends::Cloud | Ends::Parked) { PATIENT } else { &[] };
    let gateway = Gateway::with_cloud_and(&cloud, patience).await;
    break_it(&cloud, &how).await;

    let (status, answer) = gateway.upload("s", bytes.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let name = answer["filename"].as_str().unwrap();
    let path = format!("s/{name}");
    assert_eq!(answer["success"], true);
    assert_eq!(answer["file_path"], path);
    assert_eq!(answer["file_size"], bytes.len());
    assert_eq!(answer["sha256"], sha256(&bytes));
    let message = answer["message"].as_str().unwrap();
    let ended = match (answer["durability"].as_str().unwrap(), answer["parked_reason"].as_str()) {
        ("cloud", None) => {
            assert_eq!(message, format!("Recording uploaded to Supabase successfully: {name}"));
            assert_eq!(answer["storage_type"], "supabase");
            assert!(answer["public_url"].as_str().unwrap().ends_with(&path));
            Ends::Cloud
        }
        ("local", reason) => {
            assert_eq!(answer["storage_type"], "local");
            assert!(answer["public_url"].is_null());
            if reason.is_none() {
                assert_eq!(message, format!("Recording saved locally (Supabase unavailable): {name}"));
                Ends::Kept
            } else {
                Ends::Parked
            }
        }
        other => panic!("{other:?}"),
    };
    assert!(ended == ends || (ends == Ends::CloudOrKept && ended != Ends::Parked), "{answer}");
    // Whatever the cloud does now: one recording, served whole.
    if ended != Ends::Cloud {
        assert_eq!(gateway.names("s").await, [name]);
        assert!(gateway.bytes(&path).await == bytes, "other bytes are served");
    }
    gateway.settle().await;

    mend(&cloud, &how).await;
    if ended == Ends::Parked {
        assert_eq!(gateway.services.catalog.counts().await.unwrap().jobs, 0);
        assert_eq!(cloud.keys(BUCKET), [""; 0]);
        assert_eq!(rows(&gateway, "s").await[0]["parked_reason"], answer["parked_reason"]);
    } else {
        reaches_the_bucket(&gateway, &cloud, &path, &bytes).await;
    }
    gateway.stop().await;
}

/// Runs the faults side by side, so many at once that their waiting overlaps, and names all that fail.
async fn matrix(bytes: usize) {
    let cases = faults().into_iter().enumerate().map(async |(i, (name, how, ends))| {
        let scope = match how {
            Break::Everything(_) => "everything",
            Break::Uploads(_) => "uploads",
            Break::FirstUpload(_) => "the first upload",
            _ => "all",
        };
        let case = AssertUnwindSafe(one_case(how, ends, webm(bytes, i as u64 + 1))).catch_unwind().await;
        case.err().map(|_| format!("{name} ({scope})"))
    });
    let failed: Vec<String> = futures_util::stream::iter(cases)
        .buffer_unordered(12)
        .filter_map(async |failed| failed)
        .collect()
        .await;
    assert!(failed.is_empty(), "with {bytes} bytes: {failed:#?}");
}

/// reliability 19, 20, 21, 23, 25, 26, 27, 28, 32
#[tokio::test(flavor = "multi_thread")]
async fn a_small_recording_survives_every_fault() {
    matrix(1000).await;
}

/// reliability 19, 20, 21, 23, 25, 26, 27, 28, 32
#[tokio::test(flavor = "multi_thread")]
async fn a_medium_recording_survives_every_fault() {
    matrix(300_000).await;
}

/// reliability 19, 20, 21, 23, 25, 26, 27, 28, 32
#[tokio::test(flavor = "multi_thread")]
async fn a_large_recording_survives_every_fault() {
    matrix(6_000_000).await;
}

/// The client sends half, the cloud fails meanwhile, heals, and the client sends the rest.
async fn heals_while_the_client_sends(how: Break) {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, PATIENT).await;
    break_it(&cloud, &how).await;
    let bytes = webm(4_000_000, 3);
    let (pieces, form) = dripping_form();
    pieces.send(bytes[..3_000_000].to_vec()).unwrap();
    let client = async {
        let tried = || match how {
            Break::Refuse => gateway.services.stores.primary_status().unwrap().cause.is_some(),
            _ => seen_uploads(&cloud).len() >= 3,
        };
        eventually("the upload failed some times", async || tried()).await;
        mend(&cloud, &how).await;
        eventually("the upload is under way again", async || cloud.open_uploads() > 0).await;
        pieces.send(bytes[3_000_000..].to_vec()).unwrap();
        drop(pieces);
    };
    let ((status, answer), ()) = tokio::join!(gateway.upload_form("s", form), client);
    assert_eq!((status, &answer["durability"]), (200, &"cloud".into()), "{answer}");
    reaches_the_bucket(&gateway, &cloud, answer["file_path"].as_str().unwrap(), &bytes).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_that_heal_while_the_client_sends_are_not_noticed() {
    tokio::join!(
        heals_while_the_client_sends(Break::Uploads(Fault::ResetAfterRequestBytes(100_000))),
        heals_while_the_client_sends(Break::Uploads(Fault::EarlyStatus(html(502)))),
        heals_while_the_client_sends(Break::Refuse),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_some_failures_the_cloud_is_left_alone_until_it_is_back() {
    let cloud = FakeSupabase::start().await;
    let quiet = [PATIENT, &[("supabase.breaker_pause", "60s"), ("sync.interval", "60s")]].concat();
    let gateway = Gateway::with_cloud_and(&cloud, &quiet).await;
    cloud.fault(Fault::internal_error(), uploads());
    let (_, first) = gateway.upload("s", webm(1000, 1)).await;
    assert_eq!(first["durability"], "local");
    let seen = seen_uploads(&cloud).len();
    assert!((1..=3).contains(&seen), "three failures open the breaker: {seen}");
    for seed in 2..6 {
        let (status, answer) = gateway.upload("s", webm(1000 * seed, seed as u64)).await;
        assert_eq!((status, &answer["durability"]), (200, &"local".into()), "{answer}");
    }
    assert_eq!(seen_uploads(&cloud).len(), seen, "nobody asks while it is open");
    let ready = gateway.get_json("/readyz").await;
    assert_eq!(ready["status"], "degraded", "{ready}");
    gateway.stop().await;
}

/// The one that finds out whether the cloud is back may take hours; that it was begun there is enough for the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_sync_that_tries_the_cloud_keeps_nobody_waiting() {
    let cloud = FakeSupabase::start().await;
    let settings = [
        ("supabase.resumable_from", "1MiB"),
        ("supabase.breaker_failures", "1"),
        ("sync.max_concurrent", "1"),
    ];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    let away = cloud.fault(Fault::internal_error(), Matcher::any());
    let (_, large) = gateway.upload("s", webm(16 << 20, 1)).await;
    assert_eq!(large["durability"], "local");
    // From here on the only one that tries is its sync, and that does not end.
    let slow = cloud.fault(Fault::SlowRead(100_000), Matcher::any().method("PATCH"));
    away.remove();
    eventually("it is being sent", async || slow.hits() > 0).await;
    let (_, small) = gateway.upload("s", webm(1000, 2)).await;
    assert_eq!(small["durability"], "cloud", "{small}");
    assert!(cloud.object(BUCKET, large["file_path"].as_str().unwrap()).is_none(), "it is still being sent");
    gateway.stop().await;
}

/// reliability 19, 33
#[tokio::test(flavor = "multi_thread")]
async fn the_breaker_closes_when_the_cloud_is_back() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.fault(Fault::bad_gateway(), Matcher::any());
    let mut kept = Vec::new();
    for seed in 1..5 {
        let (_, answer) = gateway.upload("s", webm(1000, seed)).await;
        assert_eq!(answer["durability"], "local", "{answer}");
        kept.push(answer["file_path"].as_str().unwrap().to_owned());
    }
    cloud.clear_faults();
    eventually("what was kept is in the bucket", async || {
        kept.iter().all(|path| cloud.object(BUCKET, path).is_some())
    })
    .await;
    let (_, answer) = gateway.upload("s", webm(1000, 9)).await;
    assert_eq!(answer["durability"], "cloud", "{answer}");
    eventually("all is well", async || gateway.get_json("/readyz").await["status"] == "ready").await;
    gateway.stop().await;
}

/// reliability 22
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_asks_for_time_is_not_even_asked_how_it_is() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, PATIENT).await;
    eventually("the start is over", async || {
        gateway.services.catalog.fact("bucket_taken_in").await.unwrap().is_some()
    })
    .await;
    cloud.forget_requests();
    cloud.fault(Fault::slow_down(Some(4)), uploads().times(1));
    let began = std::time::Instant::now();
    let bytes = webm(5000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    assert_eq!(answer["durability"], "local");
    let is_upload = |r: &SeenRequest| r.path.contains("/object/interview-recordings/");
    let refused = cloud.requests().iter().position(is_upload).expect("it was asked to wait");
    eventually("something is sent again", async || cloud.requests().len() > refused + 1).await;
    let next = &cloud.requests()[refused + 1];
    assert!(began.elapsed() >= Duration::from_millis(3900), "{:?}: {next:?}", began.elapsed());
    reaches_the_bucket(&gateway, &cloud, answer["file_path"].as_str().unwrap(), &bytes).await;
    gateway.stop().await;
}

/// reliability 28
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_tried_once_and_named() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("supabase.breaker_pause", "5s")]).await;
    cloud.fault(Fault::expired_key(), Matcher::any());
    let (_, answer) = gateway.upload("s", webm(1000, 1)).await;
    assert_eq!(answer["durability"], "local");
    assert_eq!(seen_uploads(&cloud).len(), 1, "a wrong key does not get right by asking again");
    let ready = gateway.get_json("/readyz").await;
    let checks = ready["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "cloud").unwrap();
    assert_eq!(check["status"], "degraded");
    assert!(check["detail"].as_str().unwrap().contains("\"exp\" claim"), "{check}");
    cloud.clear_faults();
    let path = answer["file_path"].as_str().unwrap();
    eventually("it is in the bucket", async || cloud.object(BUCKET, path).is_some()).await;
    eventually("all is well", async || gateway.get_json("/readyz").await["status"] == "ready").await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_does_not_close_the_breaker() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.interval", "60s")]).await;
    cloud.fault(Fault::internal_error(), uploads());
    gateway.upload("s", webm(1000, 1)).await;
    // The pause is over: the next upload is the one try. It hangs, and its client hangs up.
    cloud.clear_faults();
    cloud.fault(Fault::BlackHole, uploads());
    tokio::time::sleep(Duration::from_millis(400)).await;
    let seen = seen_uploads(&cloud).len();
    let (pieces, form) = dripping_form();
    pieces.send(webm(3_000_000, 2)).unwrap();
    let hung = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::select! {
            _ = gateway.upload_form("s", form) => panic!("nobody ended the form"),
            () = cloud.wait_until("the try", Duration::from_secs(10), |c| seen_uploads(c).len() > seen) => {}
        }
    });
    hung.await.unwrap();
    drop(pieces);
    gateway.settle().await;
    let state = gateway.services.stores.primary_status().unwrap().state;
    assert_ne!(state, recording_gateway::storage::breaker::State::Closed, "the cloud never answered");
    // And its place as the one try is free again at once.
    cloud.clear_faults();
    eventually("an upload may try", async || {
        gateway.upload("s", webm(1000, 3)).await.1["durability"] == "cloud"
    })
    .await;
    gateway.stop().await;
}

/// reliability 20
#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_does_not_slow_the_client() {
    let cloud = FakeSupabase::start().await;
    let more = [("supabase.idle_timeout", "60s"), ("supabase.patience", "1s")];
    let gateway = Gateway::with_cloud_and(&cloud, &more).await;
    cloud.fault(Fault::BlackHole, uploads());
    // More than all buffers on the way hold.
    let bytes = webm(48_000_000, 5);
    let (pieces, form) = dripping_form();
    for piece in bytes.chunks(1_000_000) {
        pieces.send(piece.to_vec()).unwrap();
    }
    let all_received = async {
        eventually("all bytes are here while the cloud took none", async || {
            let spool = std::fs::read_dir(gateway.recordings_dir().join(".spool")).unwrap();
            let sizes = spool.filter_map(|e| Some(e.ok()?.metadata().ok()?.len()));
            sizes.sum::<u64>() >= 46_000_000
        })
        .await;
        assert_eq!(cloud.open_uploads(), 0, "the cloud reads nothing");
        drop(pieces);
    };
    let ((status, answer), ()) = tokio::join!(gateway.upload_form("s", form), all_received);
    assert_eq!((status, &answer["durability"]), (200, &"local".into()), "{answer}");
    assert!(seen_uploads(&cloud).iter().all(|upload| upload.body_len == 0));
    assert!(gateway.bytes(answer["file_path"].as_str().unwrap()).await == bytes);
    cloud.clear_faults();
    gateway.stop().await;
}

/// Kept, served, listed with the reason, not retried, and never in the bucket.
async fn is_parked(gateway: &Gateway, cloud: &FakeSupabase, form: Form, bytes: &[u8], why: &str) {
    let (status, answer) = gateway.upload_form("s", form).await;
    assert_eq!((status, &answer["durability"]), (200, &"local".into()), "{answer}");
    let reason = answer["parked_reason"].as_str().unwrap_or_else(|| panic!("not parked: {answer}"));
    assert!(reason.contains(why), "{reason}");
    let path = answer["file_path"].as_str().unwrap();
    let rows = rows(gateway, "s").await;
    let row = rows.iter().find(|row| row["file_path"] == path).unwrap();
    assert_eq!(row["parked_reason"], reason);
    assert_eq!(row["storage_type"], "local");
    assert!(gateway.bytes(path).await == bytes);
    assert!(cloud.object(BUCKET, path).is_none());
    assert!(seen_uploads(cloud).iter().all(|upload| upload.status != Some(200)), "it was there for a moment");
    let counts = gateway.services.catalog.counts().await.unwrap();
    assert_eq!((counts.jobs, counts.unsynced), (0, 0), "nothing is left to try");
}

fn type_first(bytes: &[u8]) -> Form {
    Form::new()
        .text("recording_type", "session")
        .part("recording", file_part(bytes.to_vec(), "a.webm", "video/webm"))
}

fn type_last(bytes: &[u8]) -> Form {
    Form::new()
        .part("recording", file_part(bytes.to_vec(), "a.webm", "video/webm"))
        .text("recording_type", "session")
}

fn bucket_with(file_size_limit: Option<u64>, types: Option<&[&str]>) -> BucketSpec {
    BucketSpec {
        name: BUCKET.into(),
        public: true,
        file_size_limit,
        allowed_mime_types: types.map(|types| types.iter().map(|&text| text.to_owned()).collect()),
    }
}

/// reliability 29
#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_the_buckets_limit_is_parked() {
    let cloud = FakeSupabase::start().await;
    cloud.create_bucket(bucket_with(Some(3_000_000), None));
    let gateway = Gateway::with_cloud(&cloud).await;
    for (seed, len) in [(1, 3_000_001), (2, 8_000_000)] {
        let bytes = webm(len, seed);
        is_parked(&gateway, &cloud, type_first(&bytes), &bytes, "limit of").await;
        // Of unknown length: the server would take it.
        is_parked(&gateway, &cloud, type_last(&bytes), &bytes, "limit of").await;
    }
    for form in [type_first, type_last] {
        let bytes = webm(3_000_000, 3);
        let (_, answer) = gateway.upload_form("t", form(&bytes)).await;
        assert_eq!(answer["durability"], "cloud", "exactly the limit: {answer}");
    }
    assert_eq!(gateway.services.catalog.counts().await.unwrap().parked, 4);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_could_not_be_asked_is_kept_too() {
    let cloud = FakeSupabase::start().await;
    cloud.create_bucket(bucket_with(Some(3_000_000), None));
    let bucket_row = cloud.fault(Fault::internal_error(), Matcher::any().method("GET").path("/bucket/"));
    let settings = crate::support::gateway::cloud_settings(&cloud);
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), settings).await;
    eventually("the bucket was asked for", async || bucket_row.hits() > 0).await;
    let bytes = webm(8_000_000, 1);
    // Refused as one request; the background finds out that there is no other way.
    let (status, answer) = gateway.upload_form("s", type_last(&bytes)).await;
    assert_eq!(
        (status, &answer["durability"], &answer["parked_reason"]),
        (200, &"local".into(), &serde_json::Value::Null)
    );
    eventually("it says why it stays", async || {
        rows(&gateway, "s").await[0]["parked_reason"].as_str().is_some_and(|why| why.contains("exceeded"))
    })
    .await;
    let path = answer["file_path"].as_str().unwrap();
    assert!(gateway.bytes(path).await == bytes);
    assert!(cloud.keys(BUCKET).is_empty());
    let counts = gateway.services.catalog.counts().await.unwrap();
    assert_eq!((counts.jobs, counts.unsynced, counts.parked), (0, 0, 1));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_the_bucket_refuses_is_parked() {
    let cloud = FakeSupabase::start().await;
    cloud.create_bucket(bucket_with(None, Some(&["audio/*", "video/mp4"])));
    let gateway = Gateway::with_cloud(&cloud).await;
    for (seed, len) in [(1, 1000), (2, 300_000), (3, 6_000_000)] {
        let bytes = webm(len, seed);
        is_parked(&gateway, &cloud, type_first(&bytes), &bytes, "takes only").await;
        is_parked(&gateway, &cloud, type_last(&bytes), &bytes, "takes only").await;
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_under_a_name_that_was_given_up_does_not_become_a_second_recording() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let bytes = webm(6_000_000, 1);
    // It is on its way as `session_...` when the type comes. It is stored, and the cloud denies it.
    cloud.fault(Fault::StoredThenReset, uploads());
    let questions = cloud.fault(Fault::internal_error(), Matcher::any());
    let (pieces, form) = dripping_form();
    pieces.send(bytes[..5_000_000].to_vec()).unwrap();
    let form = form.text("recording_type", "scene");
    let rest = async {
        eventually("it is under way", async || cloud.open_uploads() > 0).await;
        pieces.send(bytes[5_000_000..].to_vec()).unwrap();
        drop(pieces);
    };
    let ((_, answer), ()) = tokio::join!(gateway.upload_form("s", form), rest);
    assert_eq!(answer["durability"], "local", "{answer}");
    assert!(answer["filename"].as_str().unwrap().starts_with("scene_recording_"), "{answer}");
    gateway.settle().await;
    assert_eq!(cloud.keys(BUCKET).len(), 1, "it is there under the other name");
    questions.remove();
    cloud.clear_faults();
    let path = answer["file_path"].as_str().unwrap();
    eventually("only the right name is left", async || cloud.keys(BUCKET) == [path]).await;
    reaches_the_bucket(&gateway, &cloud, path, &bytes).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_failed_after_all_leaves_nothing_in_the_bucket() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    // The cloud stores it and denies it, and then the disk cannot keep it either.
    std::fs::write(gateway.recordings_dir().join("s"), "in the way").unwrap();
    cloud.fault(Fault::StoredThenReset, uploads());
    cloud.fault(Fault::internal_error(), Matcher::any());
    let (status, answer) = gateway.upload("s", webm(300_000, 1)).await;
    assert_eq!((status, &answer["code"]), (500, &"disk_failed".into()), "{answer}");
    assert_eq!(cloud.keys(BUCKET).len(), 1, "it is there all the same");
    cloud.clear_faults();
    eventually("it is gone", async || cloud.keys(BUCKET).is_empty()).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_rename_gets_the_recording_there_all_the_same() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, PATIENT).await;
    cloud.fault(Fault::policy_refusal(), Matcher::any().path("/object/move"));
    let bytes = webm(6_000_000, 1);
    let (pieces, form) = dripping_form();
    pieces.send(bytes[..5_000_000].to_vec()).unwrap();
    let form = form.text("recording_type", "scene");
    let rest = async {
        eventually("it is under way", async || cloud.open_uploads() > 0).await;
        pieces.send(bytes[5_000_000..].to_vec()).unwrap();
        drop(pieces);
    };
    let ((_, answer), ()) = tokio::join!(gateway.upload_form("s", form), rest);
    assert_eq!(
        (&answer["durability"], &answer["parked_reason"]),
        (&"local".into(), &serde_json::Value::Null)
    );
    reaches_the_bucket(&gateway, &cloud, answer["file_path"].as_str().unwrap(), &bytes).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_object_that_could_not_be_looked_at_is_replaced_later() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    cloud.fault(Fault::SaidStoredButShort(700), uploads());
    cloud.fault(Fault::internal_error(), Matcher::any().method("GET").path("/object/info/"));
    let bytes = webm(300_000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    assert_eq!(answer["durability"], "local", "{answer}");
    assert_eq!(cloud.keys(BUCKET).len(), 1, "a part of it is there");
    cloud.clear_faults();
    reaches_the_bucket(&gateway, &cloud, answer["file_path"].as_str().unwrap(), &bytes).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_before_the_client_hangs_up_leaves_no_name_reserved() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, PATIENT).await;
    let Fault::Status(refusal) = Fault::policy_refusal() else { panic!("a status") };
    let refused = cloud.fault(Fault::EarlyStatus(refusal), uploads());
    let (pieces, form) = dripping_form();
    pieces.send(webm(3_000_000, 1)).unwrap();
    let hung = async {
        eventually("the cloud refused it", async || refused.hits() > 0 && cloud.open_uploads() == 0).await;
        // The transfer has ended; the client goes on for a while.
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    tokio::select! {
        _ = gateway.upload_form("s", form) => panic!("nobody ended the form"),
        () = hung => {}
    }
    drop(pieces);
    gateway.settle().await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_lands_late_under_a_name_that_was_given_up_is_not_shown() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("supabase.patience", "300ms")]).await;
    let bytes = webm(6_000_000, 1);
    let hang = cloud.fault(Fault::ReadThenHang, uploads());
    let (pieces, form) = dripping_form();
    pieces.send(bytes[..5_000_000].to_vec()).unwrap();
    let form = form.text("recording_type", "scene");
    let rest = async {
        let everything = recording_gateway::storage::ListScope::Everything;
        eventually("it is under way", async || {
            !gateway.services.catalog.view(&everything).await.unwrap().reserved.is_empty()
        })
        .await;
        pieces.send(bytes[5_000_000..].to_vec()).unwrap();
        drop(pieces);
    };
    let ((_, answer), ()) = tokio::join!(gateway.upload_form("s", form), rest);
    assert_eq!(answer["durability"], "local", "{answer}");
    gateway.settle().await;
    let path = answer["file_path"].as_str().unwrap();
    let given_up = path.replace("scene_recording", "session_recording");
    // The bucket was asked and had nothing; what hung in it lands now.
    cloud.put_object(BUCKET, &given_up, &bytes, "video/webm");
    hang.remove();
    reaches_the_bucket_beside(&gateway, &cloud, path, &given_up).await;
    assert_eq!(rows(&gateway, "s").await.len(), 1, "the same recording twice");
    gateway.delete(&format!("/recordings/{path}")).await;
    assert!(rows(&gateway, "s").await.is_empty(), "what was deleted came back under another name");
    assert_eq!(gateway.get(&format!("/recordings/{given_up}")).await.status(), 404);
    gateway.stop().await;
}

async fn reaches_the_bucket_beside(gateway: &Gateway, cloud: &FakeSupabase, path: &str, other: &str) {
    eventually("it is in the bucket", async || {
        let keys = cloud.keys(BUCKET);
        keys.iter().any(|key| key == path) && keys.iter().any(|key| key == other)
    })
    .await;
    assert_eq!(gateway.get(&format!("/recordings/{path}")).await.status(), 200);
}
