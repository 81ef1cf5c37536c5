//! Work in the background: what is taken when, how long it is held, what a failure means for the rest, and that nothing
//! that waits is ever given up.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use recording_gateway::catalog::{Changed, JobKind, JobQuery, JobRecord, JobState, Work};
use recording_gateway::domain::ObjectKey;
use recording_gateway::domain::recording::micros;
use reqwest::multipart::Form;
use time::OffsetDateTime;

use crate::support::cloud::{BUCKET, deletions, reaches_the_bucket, rows, seen_uploads, uploads};
use crate::support::fake_supabase::{
    BucketSpec, Canned, FakeOptions, FakeSupabase, Fault, Matcher, SeenRequest,
};
use crate::support::gateway::{Gateway, cloud_settings, file_part};
use crate::support::media::webm;
use crate::support::wire_proxy::{Wire, WireProxy};
use crate::support::{aged, eventually};

/// Keeps a recording here first; the cloud is the background's business.
async fn keep(gateway: &Gateway, session: &str, bytes: &[u8]) -> String {
    let form = Form::new().part("recording", file_part(bytes.to_vec(), "talk.webm", "video/webm"));
    let request = gateway.request("POST", &format!("/recordings/upload/{session}")).multipart(form);
    let response = request.header("prefer", "respond-async").send().await.unwrap();
    assert_eq!(response.status(), 202);
    let answer: serde_json::Value = response.json().await.unwrap();
    answer["file_path"].as_str().unwrap().to_owned()
}

async fn jobs(gateway: &Gateway) -> Vec<JobRecord> {
    gateway.services.catalog.list_jobs(&JobQuery { limit: 1000, ..JobQuery::default() }).await.unwrap()
}

async fn job_of(gateway: &Gateway, path: &str) -> JobRecord {
    let kind = JobKind::Sync(ObjectKey::parse(path).unwrap());
    jobs(gateway).await.into_iter().find(|job| job.kind == kind).expect("it has a job")
}

async fn parked_reason(gateway: &Gateway, path: &str) -> Option<String> {
    let row = gateway.services.catalog.get(&ObjectKey::parse(path).unwrap()).await.unwrap();
    row.expect("it has a row").parked_reason
}

fn now_us() -> i64 {
    micros(OffsetDateTime::now_utc())
}

fn pieces(cloud: &FakeSupabase, method: &str) -> Vec<SeenRequest> {
    let wanted = |r: &SeenRequest| r.method == method && r.path.contains("/upload/resumable");
    cloud.requests().into_iter().filter(wanted).collect()
}

fn bucket(file_size_limit: Option<u64>, types: Option<&str>) -> BucketSpec {
    let allowed_mime_types = types.map(|text| vec![text.to_owned()]);
    BucketSpec { name: BUCKET.into(), public: true, file_size_limit, allowed_mime_types }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_syncs_as_allowed_go_at_once_and_deletions_wait_for_none() {
    let cloud = FakeSupabase::start().await;
    let settings = [("sync.max_concurrent", "3"), ("supabase.idle_timeout", "60s")];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    cloud.put_object(BUCKET, "old/talk.webm", b"bytes", "video/webm");
    cloud.fault(Fault::BlackHole, uploads());
    for seed in 0..5 {
        keep(&gateway, "s", &webm(5000, seed)).await;
    }
    eventually("three are under way", async || seen_uploads(&cloud).len() == 3).await;
    let broken = cloud.fault(Fault::internal_error(), deletions());
    assert_eq!(gateway.delete("/recordings/old/talk.webm").await.0, 202);
    broken.remove();
    eventually("the deletion is done", async || cloud.keys(BUCKET).is_empty()).await;
    assert_eq!(seen_uploads(&cloud).len(), 3);
    let of_state = |jobs: &[JobRecord], state| jobs.iter().filter(|job| job.state == state).count();
    eventually("its job has ended", async || {
        let jobs = jobs(&gateway).await;
        (of_state(&jobs, JobState::Running), of_state(&jobs, JobState::Waiting)) == (3, 2)
    })
    .await;
    let metrics = gateway.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("gateway_jobs_running{kind=\"sync\"}"), "{metrics}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_needs_the_cloud_is_claimed_while_it_takes_nothing() {
    let cloud = FakeSupabase::start().await;
    let settings = [("supabase.breaker_failures", "1"), ("supabase.breaker_pause", "5min")];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    cloud.fault(Fault::internal_error(), uploads());
    for seed in 0..20 {
        keep(&gateway, "s", &webm(2000, seed)).await;
    }
    eventually("it is left alone", async || !gateway.services.stores.primary_takes_writes()).await;
    eventually("nothing runs any more", async || {
        jobs(&gateway).await.iter().all(|job| job.state == JobState::Waiting)
    })
    .await;
    for work in [Work::All, Work::Deletions] {
        let claimed = gateway.services.claim_job(now_us() + 3_600_000_000, 1, work).await.unwrap();
        assert_eq!(claimed, None, "{work:?}");
    }
    let tries: i64 = jobs(&gateway).await.iter().map(|job| job.attempts).sum();
    assert!((1..=2).contains(&tries), "those that found out, and no other: {tries}");
    // The files of deleted recordings go all the same.
    let key = ObjectKey::parse(rows(&gateway, "s").await[0]["file_path"].as_str().unwrap()).unwrap();
    let here = recording_gateway::domain::StoreSet { local: true, supabase: true };
    gateway
        .services
        .catalog
        .entomb(std::slice::from_ref(&key), here, &gateway.services.origin)
        .await
        .unwrap();
    gateway.services.bell.send_replace(());
    let file = gateway.recordings_dir().join(key.to_string());
    eventually("its file is gone", async || !file.exists()).await;
    gateway.stop().await;

    let gateway = Gateway::local().await;
    gateway.services.catalog.entomb(&[key], here, &gateway.services.origin).await.unwrap();
    gateway.services.bell.send_replace(());
    eventually("what is local is done", async || {
        let jobs = jobs(&gateway).await;
        jobs.iter().all(|job| matches!(job.kind, JobKind::Delete(_)) == (job.state != JobState::Done))
    })
    .await;
    let waiting: Vec<i64> = jobs(&gateway)
        .await
        .iter()
        .filter(|job| job.state != JobState::Done)
        .map(|job| job.attempts)
        .collect();
    assert_eq!(waiting, [0], "without a cloud nobody tries");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_keeps_its_lease_and_is_dropped_when_it_loses_it() {
    let cloud = FakeSupabase::start().await;
    // One at a time: as long as the first is held nothing else goes.
    let settings = [("sync.max_concurrent", "1"), ("supabase.idle_timeout", "60s")];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    cloud.fault(Fault::BlackHole, uploads().times(1));
    let began = now_us();
    let bytes = webm(300_000, 1);
    let path = keep(&gateway, "s", &bytes).await;
    eventually("it is being sent", async || seen_uploads(&cloud).len() == 1).await;
    let job = job_of(&gateway, &path).await;
    // The lease is 120 s from the claim on; what is renewed lasts longer.
    let file = gateway.recordings_dir().join(".catalog/catalog.sqlite");
    sqlx::any::install_default_drivers();
    let pool = sqlx::AnyPool::connect(&format!("sqlite://{}?mode=ro", file.display())).await.unwrap();
    eventually("its lease was renewed", async || {
        let until: i64 = sqlx::query_scalar("SELECT leased_until FROM jobs WHERE id = $1")
            .bind(&job.id)
            .fetch_one(&pool)
            .await
            .unwrap();
        until > began + 122_000_000
    })
    .await;
    assert_eq!(seen_uploads(&cloud).len(), 1, "it was sent once all the while");
    pool.close().await;

    let cancelled = gateway.services.catalog.cancel_job(&job.id, &gateway.services.origin).await.unwrap();
    assert!(matches!(cancelled, Changed::Yes(_)));
    let next = keep(&gateway, "t", &webm(5000, 2)).await;
    eventually("it is dropped", async || cloud.object(BUCKET, &next).is_some()).await;
    assert!(parked_reason(&gateway, &path).await.unwrap().contains("cancelled"));
    assert!(gateway.bytes(&path).await == bytes);
    gateway.services.queue_refused().await.unwrap();
    assert!(parked_reason(&gateway, &path).await.is_some(), "what somebody cancelled stays so");
    gateway.services.catalog.retry_job(&job.id, now_us()).await.unwrap();
    gateway.services.bell.send_replace(());
    eventually("it follows", async || cloud.object(BUCKET, &path).is_some_and(|o| o.bytes == bytes)).await;
    gateway.stop().await;
}

/// Taken over by another gateway, or given out again after this one seemed to be gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_given_to_another_is_dropped() {
    let cloud = FakeSupabase::start().await;
    // One at a time: as long as the first is held nothing else goes.
    let settings = [("sync.max_concurrent", "1"), ("supabase.idle_timeout", "60s")];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    cloud.fault(Fault::BlackHole, uploads().times(1));
    let bytes = webm(300_000, 1);
    let path = keep(&gateway, "s", &bytes).await;
    eventually("it is being sent", async || seen_uploads(&cloud).len() == 1).await;
    let catalog = &gateway.services.catalog;
    let other = catalog.claim_job(now_us() + 3_600_000_000, 1000, Work::All).await.unwrap().unwrap();
    let next = keep(&gateway, "t", &webm(5000, 2)).await;
    eventually("it is dropped", async || cloud.object(BUCKET, &next).is_some()).await;
    catalog.postpone_job(&other, now_us(), "the other gave up").await.unwrap();
    eventually("it follows", async || cloud.object(BUCKET, &path).is_some_and(|o| o.bytes == bytes)).await;
    gateway.stop().await;
}

/// reliability 19, 33: no breaker opens, the pauses are long, and still they need not wait for their end.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_off_follows_as_soon_as_the_cloud_takes_something() {
    let cloud = FakeSupabase::start().await;
    let proxy = WireProxy::start(cloud.address());
    let url = proxy.url();
    let settings =
        [("supabase.url", url.as_str()), ("supabase.breaker_failures", "1000"), ("sync.interval", "5min")];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    proxy.becomes(Wire::ResetUp(0));
    let kept = [keep(&gateway, "s", &webm(5000, 1)).await, keep(&gateway, "s", &webm(6000, 2)).await];
    eventually("both failed and wait for minutes", async || {
        let jobs = jobs(&gateway).await;
        let soon = OffsetDateTime::now_utc() + Duration::from_secs(120);
        jobs.iter().all(|job| job.attempts == 1 && job.run_at.is_some_and(|at| at > soon))
    })
    .await;
    assert!(gateway.services.stores.primary_takes_writes(), "the breaker is closed");
    proxy.becomes(Wire::Well);
    let (_, answer) = gateway.upload("t", webm(5000, 3)).await;
    assert_eq!(answer["storage_type"], "supabase", "{answer}");
    eventually("they follow", async || kept.iter().all(|path| cloud.object(BUCKET, path).is_some())).await;
    gateway.stop().await;
}

/// reliability 22: the job waits for as long as it was asked to, whatever hurries the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_as_long_as_the_cloud_asks_for() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let busy = Canned::raw(503, "text/html", "<html>busy</html>").retry_after(90);
    cloud.fault(Fault::Status(busy), uploads());
    let path = keep(&gateway, "s", &webm(5000, 1)).await;
    let waits = async || {
        let job = job_of(&gateway, &path).await;
        job.run_at.is_some_and(|at| at > OffsetDateTime::now_utc() + Duration::from_secs(70))
    };
    eventually("it is put off for that long", waits).await;
    gateway.services.hurry_jobs().await;
    assert!(waits().await, "it is not hurried");
    assert_eq!(seen_uploads(&cloud).len(), 1);
    gateway.stop().await;
}

/// reliability 27: a restart of the gateway costs what was on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_sync_goes_on_after_a_restart_where_it_was() {
    let cloud = FakeSupabase::start().await;
    let proxy = WireProxy::start(cloud.address());
    let url = proxy.url();
    let settings = [
        ("supabase.url", url.as_str()),
        ("supabase.resumable_from", "1MiB"),
        ("supabase.idle_timeout", "60s"),
    ];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    proxy.becomes(Wire::BlackHole(8 << 20));
    let bytes = webm(24 << 20, 1);
    let path = keep(&gateway, "s", &bytes).await;
    eventually("a third of it is there, and no more comes", async || proxy.broken() == 1).await;
    assert_eq!((pieces(&cloud, "PATCH").len(), cloud.open_uploads()), (1, 1));
    let dir = gateway.stop().await;
    proxy.becomes(Wire::Well);
    let mut settings: Vec<(String, String)> =
        settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    settings.splice(0..0, cloud_settings(&cloud));
    let gateway = Gateway::start_in(dir, settings).await;
    reaches_the_bucket(&gateway, &cloud, &path, &bytes).await;
    assert_eq!(pieces(&cloud, "POST").len(), 1, "it was begun once");
    let sent = pieces(&cloud, "PATCH");
    let offset: u64 = sent[1].header("upload-offset").unwrap().parse().unwrap();
    assert!(offset > 6 << 20, "it went on from {offset}");
    let received: u64 = sent.iter().map(|piece| piece.body_len).sum();
    assert_eq!(received, 24 << 20, "nothing was sent that had arrived");
    let job = job_of(&gateway, &path).await;
    assert_eq!((job.state, job.attempts), (JobState::Done, 1), "to be stopped is no try");
    gateway.stop().await;
}

/// reliability 29: the bucket takes more than before, while the gateway runs and while it does not.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_tried_again_when_the_bucket_takes_it() {
    let cloud = FakeSupabase::start().await;
    cloud.create_bucket(bucket(Some(2_000_000), None));
    let gateway = Gateway::with_cloud_and(&cloud, &[("supabase.breaker_failures", "1")]).await;
    let bytes = webm(3_000_000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    assert!(answer["parked_reason"].is_string(), "{answer}");
    let (_, other) = gateway.upload("damaged", webm(3_000_000, 2)).await;
    let (path, damaged) = (answer["file_path"].as_str().unwrap(), other["file_path"].as_str().unwrap());
    let key = ObjectKey::parse(damaged).unwrap();
    gateway.services.catalog.park(&key, "damaged", &gateway.services.origin).await.unwrap();
    cloud.create_bucket(bucket(None, Some("video/mp4")));
    // A failed listing has the cloud asked how it is.
    cloud.fault(Fault::internal_error(), Matcher::any().path("/object/list-v2/").times(1));
    gateway.get("/recordings/s/list").await;
    eventually("the other limit is known, and the other types", async || {
        parked_reason(&gateway, path).await.is_some_and(|why| why.contains("takes only video/mp4"))
    })
    .await;
    assert!(seen_uploads(&cloud).iter().all(|upload| upload.status != Some(200)));

    cloud.create_bucket(bucket(None, None));
    let gateway = gateway.restart().await;
    reaches_the_bucket(&gateway, &cloud, path, &bytes).await;
    assert_eq!(parked_reason(&gateway, damaged).await.as_deref(), Some("damaged"), "no limit is in its way");
    gateway.stop().await;
}

/// reliability 29: the limit of single requests is lower than the bucket's.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_one_request_follows_in_pieces() {
    let options = FakeOptions { standard_limit: Some(500_000), ..FakeOptions::default() };
    let cloud = FakeSupabase::start_with(options).await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let bytes = webm(900_000, 1);
    // The type comes first, so that the length is known; the server limits only what it is told the length of.
    let form = Form::new().text("recording_type", "session");
    let form = form.part("recording", file_part(bytes.clone(), "talk.webm", "video/webm"));
    let (_, answer) = gateway.upload_form("s", form).await;
    assert_eq!(
        (&answer["storage_type"], &answer["parked_reason"]),
        (&"local".into(), &serde_json::Value::Null)
    );
    reaches_the_bucket(&gateway, &cloud, answer["file_path"].as_str().unwrap(), &bytes).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_of_failed_tries_is_too_many() {
    let cloud = FakeSupabase::start().await;
    let settings = [("supabase.breaker_failures", "1"), ("supabase.breaker_pause", "2s")];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    cloud.fault(Fault::internal_error(), uploads());
    let bytes = webm(5000, 1);
    let path = keep(&gateway, "s", &bytes).await;
    let catalog = &gateway.services.catalog;
    let mut tries = 0;
    while tries < 500 {
        // As after months; the runner may have it at this moment.
        match catalog.claim_job(now_us() + 3_600_000_000, 1, Work::All).await.unwrap() {
            Some(job) => {
                tries = job.attempt;
                catalog.postpone_job(&job, now_us(), "no").await.unwrap();
            }
            None => tokio::task::yield_now().await,
        }
    }
    assert!(gateway.bytes(&path).await == bytes);
    cloud.clear_faults();
    reaches_the_bucket(&gateway, &cloud, &path, &bytes).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_done_are_forgotten_after_a_while() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("sync.keep_jobs", "3s")]).await;
    let path = keep(&gateway, "s", &webm(5000, 1)).await;
    eventually("its job is done and can be looked at", async || {
        job_of(&gateway, &path).await.state == JobState::Done
    })
    .await;
    eventually("it is forgotten", async || jobs(&gateway).await.is_empty()).await;
    gateway.stop().await;
}

/// reliability 30: a file that somebody took away. The loss is told, and it heals when the file is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_told_and_not_tried_for_ever() {
    let cloud = FakeSupabase::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (here, away) = (dir.path().join("recordings/old/talk.webm"), dir.path().join("away.webm"));
    std::fs::create_dir_all(here.parent().unwrap()).unwrap();
    std::fs::write(&here, webm(3000, 1)).unwrap();
    aged(&here);
    let everything = cloud.fault(Fault::internal_error(), Matcher::any());
    let gateway = Gateway::start_in(dir, cloud_settings(&cloud)).await;
    eventually("it waits for the cloud", async || !jobs(&gateway).await.is_empty()).await;
    std::fs::rename(&here, &away).unwrap();
    assert_eq!(parked_reason(&gateway, "old/talk.webm").await, None);
    everything.remove();
    eventually("the loss is told", async || {
        parked_reason(&gateway, "old/talk.webm").await.is_some_and(|why| why.contains("missing"))
    })
    .await;
    assert_eq!(gateway.services.catalog.counts().await.unwrap().jobs, 0);
    std::fs::create_dir_all(here.parent().unwrap()).unwrap();
    std::fs::rename(&away, &here).unwrap();
    let gateway = gateway.restart().await;
    reaches_the_bucket(&gateway, &cloud, "old/talk.webm", &webm(3000, 1)).await;
    gateway.stop().await;
}

/// reliability 19, 33: hundreds that waited, in the order they came, each once, while clients go on.
#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_drain_once_and_the_oldest_first() {
    let cloud = FakeSupabase::start().await;
    let settings =
        [("sync.max_concurrent", "1"), ("supabase.breaker_failures", "1"), ("supabase.breaker_pause", "2s")];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    cloud.stop().await;
    let mut kept = Vec::new();
    for seed in 0..300 {
        kept.push(keep(&gateway, &format!("s{}", seed % 7), &webm(1000 + seed as usize, seed)).await);
    }
    let tried: HashSet<String> = jobs(&gateway)
        .await
        .into_iter()
        .filter(|job| job.attempts > 0)
        .filter_map(|job| Some(job.kind.key()?.to_string()))
        .collect();
    assert!(tried.len() < 20, "the cloud was away: {}", tried.len());
    cloud.restart_on_same_port().await;
    let mut meanwhile = Vec::new();
    // A deadline for each part of them: how long all take is the machine's.
    for left in (0..=200).rev().step_by(50) {
        eventually("they get fewer", async || {
            if meanwhile.len() < 10 {
                let (_, answer) = gateway.upload("client", webm(2000, 1000 + meanwhile.len() as u64)).await;
                meanwhile.push(answer["file_path"].as_str().unwrap().to_owned());
            }
            let counts = gateway.services.catalog.counts().await.unwrap();
            meanwhile.len() == 10 && counts.unsynced <= left && counts.jobs <= left
        })
        .await;
    }
    let stored: Vec<String> = seen_uploads(&cloud)
        .into_iter()
        .filter(|upload| upload.status == Some(200))
        .map(|upload| upload.path.split_once("/interview-recordings/").unwrap().1.to_owned())
        .collect();
    let mut expected: Vec<String> = kept.iter().chain(&meanwhile).cloned().collect();
    // Those that had found out that the cloud is away come a moment after it is back.
    let untried = |paths: &[String]| -> Vec<String> {
        paths.iter().filter(|path| kept.contains(path) && !tried.contains(*path)).cloned().collect()
    };
    assert_eq!(untried(&stored), untried(&kept), "the oldest first");
    let (mut sorted, mut keys) = (stored.clone(), cloud.keys(BUCKET));
    for paths in [&mut sorted, &mut keys, &mut expected] {
        paths.sort();
    }
    assert_eq!(sorted, expected, "each once");
    assert_eq!(keys, expected, "and nothing else");
    gateway.stop().await;
}

/// reliability 33: the rate is the background's alone.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_a_client_is_not_held_to_the_rate_of_the_background() {
    let cloud = FakeSupabase::start().await;
    let settings =
        [("sync.max_rate", "100KiB"), ("supabase.patience", "20s"), ("supabase.idle_timeout", "20s")];
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    let began = Instant::now();
    for seed in 0..3 {
        keep(&gateway, "s", &webm(600_000, seed)).await;
    }
    eventually("the background sends", async || cloud.open_uploads() > 0).await;
    let sent = Instant::now();
    let (_, answer) = gateway.upload("t", webm(3 << 20, 9)).await;
    assert_eq!(answer["storage_type"], "supabase", "{answer}");
    assert!(sent.elapsed() < Duration::from_secs(10), "at the rate it would take 30 s: {:?}", sent.elapsed());
    assert!(gateway.services.catalog.counts().await.unwrap().unsynced > 0, "others are still on their way");
    eventually("all are there", async || cloud.keys(BUCKET).len() == 4).await;
    // At 100 KiB a second, less the pieces that went first.
    assert!(began.elapsed() >= Duration::from_secs(12), "{:?}", began.elapsed());
    gateway.stop().await;
}
