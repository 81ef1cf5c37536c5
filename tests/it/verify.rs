//! Verification: each difference made on purpose is found, told without touching anything, healed on request, and gone
//! at the second look; beside live traffic it finds nothing and harms nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use recording_gateway::catalog::{Action, AuditQuery, JobQuery, JobState};
use recording_gateway::domain::SessionId;
use recording_gateway::service::verify::{Event, Finding, Summary, Treated, VerifyOptions};
use recording_gateway::storage::ListScope;
use serde_json::Value;

use crate::support::cloud::{BUCKET, PATIENT, rows, uploads};
use crate::support::fake_supabase::{FakeSupabase, Fault, Matcher};
use crate::support::gateway::Gateway;
use crate::support::media::webm;
use crate::support::{aged, eventually};

/// Nothing happens by itself, and copies stay in both places.
const KEEPING: &[(&str, &str)] =
    &[("sync.interval", "1h"), ("sync.keep_local", "true"), ("supabase.patience", "20s")];

/// Everything, also what was made just now.
fn at_once() -> VerifyOptions {
    VerifyOptions { settled_after: Duration::ZERO, ..VerifyOptions::default() }
}

async fn verify(gateway: &Gateway, options: &VerifyOptions) -> (Vec<Finding>, Summary) {
    let mut events = gateway.services.verify(options.clone()).unwrap();
    let mut findings = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Progress(_) => {}
            Event::Finding(finding) => findings.push(*finding),
            Event::Summary(summary) => return (findings, *summary),
            Event::Failed(why) => panic!("{why}"),
        }
    }
    panic!("no summary");
}

/// `word store name`, for comparing.
fn told(findings: &[Finding]) -> Vec<String> {
    let mut told: Vec<String> = findings
        .iter()
        .map(|f| {
            let store = f.store.map_or("-", |store| store.as_str());
            let session = f.session.as_ref().map_or("-", |session| session.as_str());
            let name = f.name.as_deref().unwrap_or("-");
            format!("{} {store} {session}/{name}", f.word.as_str())
        })
        .collect();
    told.sort();
    told
}

fn files(dir: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name == ".catalog") {
            continue;
        }
        if path.is_dir() {
            into.insert(path.display().to_string(), Vec::new());
            files(&path, into);
        } else {
            into.insert(path.display().to_string(), std::fs::read(&path).unwrap());
        }
    }
}

/// Disk, bucket, rows and audit, as far as a verification could change them.
async fn everything(gateway: &Gateway, cloud: Option<&FakeSupabase>) -> String {
    let mut disk = BTreeMap::new();
    files(&gateway.recordings_dir(), &mut disk);
    let mut view = gateway.services.catalog.view(&ListScope::Everything).await.unwrap();
    view.recordings.sort_by(|a, b| a.key.cmp(&b.key));
    let mut deleted: Vec<_> = view.deleted.keys.into_iter().collect();
    deleted.sort();
    let counts = gateway.services.catalog.counts().await.unwrap();
    let audit =
        gateway.services.catalog.audit(&AuditQuery { limit: 1000, ..AuditQuery::default() }).await.unwrap();
    let bucket: Vec<_> = cloud
        .map(|cloud| {
            let keys = cloud.keys(BUCKET).into_iter();
            keys.map(|key| (cloud.object(BUCKET, &key).unwrap().md5, key)).collect()
        })
        .unwrap_or_default();
    let disk: Vec<_> = disk.into_iter().map(|(path, b)| (path, crate::support::media::sha256(&b))).collect();
    format!("{disk:?} {bucket:?} {:?} {deleted:?} {counts:?} {}", view.recordings, audit.len())
}

async fn repairs(gateway: &Gateway) -> usize {
    let query = AuditQuery { action: Some(Action::Repaired), limit: 1000, ..AuditQuery::default() };
    gateway.services.catalog.audit(&query).await.unwrap().len()
}

/// A dry run finds `expected` and changes nothing; a repair heals all of it; a second one finds nothing.
async fn finds_and_heals(
    gateway: &Gateway,
    cloud: Option<&FakeSupabase>,
    options: &VerifyOptions,
    expected: &[String],
) {
    let before = everything(gateway, cloud).await;
    let (findings, summary) = verify(gateway, options).await;
    assert_eq!(told(&findings), expected, "{findings:#?}");
    assert!(findings.iter().all(|f| f.treated == Treated::Found || f.lost), "{findings:#?}");
    assert_eq!(summary.remaining(), expected.len() as u64);
    assert_eq!(everything(gateway, cloud).await, before, "a dry run changes nothing");

    let repair = VerifyOptions { repair: true, ..options.clone() };
    let noted = repairs(gateway).await;
    let (findings, summary) = verify(gateway, &repair).await;
    assert_eq!(told(&findings), expected);
    assert!(findings.iter().all(|f| matches!(f.treated, Treated::Repaired(_))), "{findings:#?}");
    assert_eq!((summary.remaining(), summary.repaired), (0, expected.len() as u64));
    let adopted = expected.iter().filter(|line| line.starts_with("unknown") && !line.contains("_recording_"));
    assert_eq!(repairs(gateway).await - noted, expected.len() - adopted.count(), "each is in the audit");

    eventually("the work it left is done", async || {
        hurry(gateway).await;
        gateway.services.catalog.counts().await.unwrap().jobs == 0
    })
    .await;
    let healed = everything(gateway, cloud).await;
    let (findings, summary) = verify(gateway, &repair).await;
    assert!(findings.is_empty() && summary.remaining() == 0, "{findings:#?}");
    assert_eq!(everything(gateway, cloud).await, healed, "the second repair changes nothing");
}

async fn upload(gateway: &Gateway, session: &str, seed: u64) -> (String, Vec<u8>) {
    let bytes = webm(50_000, seed);
    let (status, answer) = gateway.upload(session, bytes.clone()).await;
    assert_eq!(status, 200, "{answer}");
    (answer["file_path"].as_str().unwrap().to_owned(), bytes)
}

/// What failed a moment ago is tried again now.
async fn hurry(gateway: &Gateway) {
    let now = i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap();
    gateway.services.catalog.hurry_jobs(now).await.unwrap();
    gateway.services.bell.send_replace(());
}

/// A recording that is in the bucket and here.
async fn in_both(gateway: &Gateway, cloud: &FakeSupabase, seed: u64) -> (String, Vec<u8>) {
    let fault = cloud.fault(Fault::internal_error(), uploads());
    let (path, bytes) = upload(gateway, "s", seed).await;
    fault.remove();
    eventually("it is in both", async || {
        hurry(gateway).await;
        rows(gateway, "s").await.iter().any(|row| {
            row["file_path"] == path.as_str() && row["stores"] == serde_json::json!(["supabase", "local"])
        })
    })
    .await;
    eventually("its job is done", async || gateway.services.catalog.counts().await.unwrap().jobs == 0).await;
    (path, bytes)
}

/// Changes the catalogue behind the gateway's back, as a restored backup would.
async fn behind_its_back(gateway: &Gateway, statement: &'static str) {
    let path = gateway.recordings_dir().join(".catalog/catalog.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query(statement).execute(&pool).await.unwrap();
    pool.close().await;
}

/// reliability 4
#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_file_and_a_file_without_a_row() {
    let gateway = Gateway::start(&[("sync.interval", "1h")]).await;
    let (lost, _) = upload(&gateway, "s", 1).await;
    let (kept, bytes) = upload(&gateway, "s", 2).await;
    let file = gateway.recordings_dir().join("s/found.webm");
    std::fs::write(&file, webm(1000, 3)).unwrap();
    finds_and_heals(&gateway, None, &at_once(), &["unknown local s/found.webm".into()]).await;

    std::fs::remove_file(gateway.recordings_dir().join(&lost)).unwrap();
    let before = everything(&gateway, None).await;
    let repair = VerifyOptions { repair: true, ..at_once() };
    let (findings, summary) = verify(&gateway, &repair).await;
    assert_eq!(told(&findings), [format!("missing - {lost}")]);
    assert!(findings[0].lost && summary.lost == 1 && summary.remaining() == 1, "{findings:?}");
    assert_eq!(everything(&gateway, None).await, before, "a repair never removes a row");
    let (_, summary) = verify(&gateway, &VerifyOptions { forget_lost: true, ..at_once() }).await;
    assert_eq!((summary.remaining(), summary.repaired), (0, 1));
    assert!(verify(&gateway, &repair).await.0.is_empty());
    assert!(gateway.bytes(&kept).await == bytes && gateway.bytes("s/found.webm").await == webm(1000, 3));
    gateway.stop().await;
}

/// reliability 18
#[tokio::test(flavor = "multi_thread")]
async fn bit_rot_in_a_local_file() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, KEEPING).await;
    let (path, bytes) = in_both(&gateway, &cloud, 1).await;
    let file = gateway.recordings_dir().join(&path);
    let mut rotten = bytes.clone();
    rotten[20_000] ^= 1;
    std::fs::write(&file, &rotten).unwrap();
    assert!(verify(&gateway, &at_once()).await.0.is_empty(), "its size says nothing");
    let read = VerifyOptions { read: true, ..at_once() };
    finds_and_heals(&gateway, Some(&cloud), &read, &[format!("different local {path}")]).await;
    assert!(!file.exists());
    let aside = std::fs::read(gateway.recordings_dir().join(".quarantine").join(&path)).unwrap();
    assert!(aside == rotten, "the damaged file is put aside, not destroyed");
    assert!(gateway.bytes(&path).await == bytes);
    assert_eq!(rows(&gateway, "s").await[0]["stores"], serde_json::json!(["supabase"]));

    // Where the cloud has no good copy either, nothing is touched.
    let (path, bytes) = in_both(&gateway, &cloud, 2).await;
    let file = gateway.recordings_dir().join(&path);
    std::fs::write(&file, &bytes[..100]).unwrap();
    cloud.remove_object(BUCKET, &path);
    let before = everything(&gateway, Some(&cloud)).await;
    let (findings, _) = verify(&gateway, &VerifyOptions { repair: true, forget_lost: true, ..read }).await;
    assert_eq!(told(&findings), [format!("different local {path}"), format!("missing supabase {path}")]);
    assert!(findings.iter().all(|f| matches!(f.treated, Treated::Left(_)) && !f.lost), "{findings:?}");
    assert_eq!(everything(&gateway, Some(&cloud)).await, before);
    gateway.stop().await;
}

/// reliability 26
#[tokio::test(flavor = "multi_thread")]
async fn a_short_object_in_the_bucket() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, KEEPING).await;
    let (path, bytes) = in_both(&gateway, &cloud, 1).await;
    let object = cloud.object(BUCKET, &path).unwrap();
    cloud.put_object_with(BUCKET, &path, &bytes[..1000], "video/webm", object.metadata);
    finds_and_heals(&gateway, Some(&cloud), &at_once(), &[format!("different supabase {path}")]).await;
    assert!(cloud.object(BUCKET, &path).unwrap().bytes == bytes);

    // One that somebody else put there, of the same size: only its bytes tell.
    let other = webm(bytes.len(), 9);
    cloud.put_object(BUCKET, &path, &other, "video/webm");
    let (findings, _) = verify(&gateway, &at_once()).await;
    assert_eq!(told(&findings), [format!("different supabase {path}")], "doubt is enough to read it");
    let (_, summary) = verify(&gateway, &VerifyOptions { repair: true, ..at_once() }).await;
    assert_eq!(summary.repaired, 1);
    eventually("it says why it stays", async || rows(&gateway, "s").await[0]["parked_reason"].is_string())
        .await;
    assert!(gateway.bytes(&path).await == bytes, "the good copy is served");
    assert!(cloud.object(BUCKET, &path).unwrap().bytes == other, "nobody's object is overwritten");
    let (findings, summary) = verify(&gateway, &VerifyOptions { repair: true, ..at_once() }).await;
    assert_eq!((told(&findings).len(), summary.repaired), (1, 0), "told again, and left: {findings:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_gone_is_made_up_for_by_the_other() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, KEEPING).await;
    let (path, bytes) = in_both(&gateway, &cloud, 1).await;
    cloud.remove_object(BUCKET, &path);
    finds_and_heals(&gateway, Some(&cloud), &at_once(), &[format!("missing supabase {path}")]).await;
    assert!(cloud.object(BUCKET, &path).unwrap().bytes == bytes, "it was sent again");

    std::fs::remove_file(gateway.recordings_dir().join(&path)).unwrap();
    finds_and_heals(
        &gateway,
        Some(&cloud),
        &at_once(),
        &[format!("missing local {path}"), "orphaned local s/-".to_owned()],
    )
    .await;
    assert_eq!(rows(&gateway, "s").await[0]["stores"], serde_json::json!(["supabase"]));

    // Put back by hand, and then gone from the bucket.
    std::fs::create_dir_all(gateway.recordings_dir().join("s")).unwrap();
    std::fs::write(gateway.recordings_dir().join(&path), &bytes).unwrap();
    finds_and_heals(&gateway, Some(&cloud), &at_once(), &[format!("unknown local {path}")]).await;
    cloud.remove_object(BUCKET, &path);
    finds_and_heals(&gateway, Some(&cloud), &at_once(), &[format!("missing supabase {path}")]).await;
    assert!(gateway.bytes(&path).await == bytes);
    gateway.stop().await;
}

/// reliability 63
#[tokio::test(flavor = "multi_thread")]
async fn a_late_push_after_a_deletion() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, KEEPING).await;
    let (path, bytes) = upload(&gateway, "s", 1).await;
    let object = cloud.object(BUCKET, &path).unwrap();
    assert_eq!(gateway.delete(&format!("/recordings/{path}")).await.0, 200);
    let put_back = || {
        cloud.put_object_with(BUCKET, &path, &bytes, "video/webm", object.metadata.clone());
        std::fs::create_dir_all(gateway.recordings_dir().join("s")).unwrap();
        std::fs::write(gateway.recordings_dir().join(&path), &bytes).unwrap();
    };
    put_back();
    let expected = [format!("orphaned local {path}"), format!("orphaned supabase {path}")];
    finds_and_heals(&gateway, Some(&cloud), &at_once(), &expected).await;
    assert!(cloud.object(BUCKET, &path).is_none() && !gateway.recordings_dir().join(&path).exists());
    assert!(rows(&gateway, "s").await.is_empty());

    // What others put there is theirs: told and left.
    cloud.put_object(BUCKET, &path, &bytes, "video/webm");
    let (findings, summary) = verify(&gateway, &VerifyOptions { repair: true, ..at_once() }).await;
    assert_eq!((told(&findings).len(), summary.repaired), (1, 0), "{findings:?}");
    assert!(cloud.object(BUCKET, &path).is_some());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_put_into_the_bucket_is_adopted() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, KEEPING).await;
    cloud.put_object(BUCKET, "old/talk.webm", &webm(1000, 1), "video/webm");
    cloud.put_object(BUCKET, "old/deeper/talk.webm", &webm(1000, 1), "video/webm");
    let (findings, _) = verify(&gateway, &VerifyOptions::default()).await;
    assert!(findings.is_empty(), "what is fresh may be on its way: {findings:?}");
    finds_and_heals(&gateway, Some(&cloud), &at_once(), &["unknown supabase old/talk.webm".into()]).await;
    assert_eq!(gateway.services.catalog.counts().await.unwrap().recordings, 1);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_and_directories_that_nobody_needs_and_jobs_that_are_missing() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, KEEPING).await;
    let fault = cloud.fault(Fault::internal_error(), uploads());
    let (path, bytes) = upload(&gateway, "s", 1).await;
    let (gone, _) = upload(&gateway, "t", 2).await;
    eventually("both were tried and wait", async || {
        let query = JobQuery { state: Some(JobState::Waiting), limit: 10, ..JobQuery::default() };
        let jobs = gateway.services.catalog.list_jobs(&query).await.unwrap();
        jobs.len() == 2 && jobs.iter().all(|job| job.attempts > 0)
    })
    .await;
    fault.remove();
    behind_its_back(&gateway, "DELETE FROM jobs WHERE session_id = 's'").await;
    behind_its_back(&gateway, "DELETE FROM recordings WHERE session_id = 't'").await;
    std::fs::remove_file(gateway.recordings_dir().join(&gone)).unwrap();
    let expected = [
        "orphaned - t/".to_owned() + gone.split_once('/').unwrap().1,
        format!("orphaned local {path}"),
        "orphaned local t/-".to_owned(),
    ];
    finds_and_heals(&gateway, Some(&cloud), &at_once(), &expected).await;
    assert!(cloud.object(BUCKET, &path).unwrap().bytes == bytes, "it was brought to the cloud");
    assert!(!gateway.recordings_dir().join("t").exists());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_cannot_be_asked_and_other_gateways_disks_are_no_losses() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, KEEPING).await;
    upload(&gateway, "s", 1).await;
    let (both, _) = in_both(&gateway, &cloud, 2).await;
    std::fs::remove_file(gateway.recordings_dir().join(&both)).unwrap();
    cloud.stop().await;
    let before = everything(&gateway, None).await;
    let brave = VerifyOptions { repair: true, forget_lost: true, read: true, ..at_once() };
    let (findings, summary) = verify(&gateway, &brave).await;
    assert_eq!(told(&findings), ["orphaned local s/-"], "only the empty directory");
    assert!(summary.cloud_unavailable.is_some() && summary.not_checkable >= 2, "{summary:?}");
    assert!(everything(&gateway, None).await != before, "that is gone");
    assert_eq!(gateway.services.catalog.counts().await.unwrap().recordings, 2);
    cloud.restart_on_same_port().await;
    let dir = gateway.stop().await;

    let gateway = Gateway::start_in(dir, vec![("sync.interval".into(), "1h".into())]).await;
    let (here, _) = upload(&gateway, "u", 3).await;
    behind_its_back(&gateway, "UPDATE recordings SET local_gateway = 'other' WHERE session_id = 'u'").await;
    std::fs::remove_file(gateway.recordings_dir().join(&here)).unwrap();
    std::fs::remove_dir(gateway.recordings_dir().join("u")).unwrap();
    let only = VerifyOptions { session: Some(SessionId::parse("u").unwrap()), ..brave };
    let (findings, summary) = verify(&gateway, &only).await;
    assert!(findings.is_empty() && summary.not_checkable == 1, "{findings:?}");
    assert_eq!(gateway.services.catalog.view(&ListScope::Everything).await.unwrap().recordings.len(), 3);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_in_the_spool_is_told_and_what_runs_is_not() {
    let gateway = Gateway::start(&[("sync.interval", "1h")]).await;
    let left = gateway.recordings_dir().join(".spool/form-of-nobody");
    std::fs::write(&left, b"bytes").unwrap();
    assert!(verify(&gateway, &VerifyOptions::default()).await.0.is_empty(), "it may have begun just now");
    aged(&left);
    let (pieces, form) = crate::support::cloud::dripping_form();
    pieces.send(webm(600_000, 1)).unwrap();
    let running = tokio::spawn(gateway.request("POST", "/recordings/upload/s").multipart(form).send());
    let spooled = || std::fs::read_dir(gateway.recordings_dir().join(".spool")).unwrap().count();
    eventually("an upload is running", async || spooled() == 2).await;
    let (findings, _) = verify(&gateway, &VerifyOptions { repair: true, ..at_once() }).await;
    assert_eq!(told(&findings), ["orphaned - -/form-of-nobody"]);
    drop(pieces);
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    std::fs::remove_file(left).unwrap();
    gateway.stop().await;
}

/// Uploads, deletes and syncs while repairs run without a pause; nothing is lost, nothing comes back.
#[tokio::test(flavor = "multi_thread")]
async fn repairs_beside_live_traffic_do_no_harm() {
    let cloud = FakeSupabase::start().await;
    let settings = [PATIENT, &[("sync.interval", "100ms")]].concat();
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    let over = tokio_util::sync::CancellationToken::new();
    let repairing = async {
        let mut runs = 0;
        while !over.is_cancelled() {
            let options = VerifyOptions { repair: true, forget_lost: true, read: runs % 2 == 0, ..at_once() };
            let (findings, _) = verify(&gateway, &options).await;
            assert!(findings.iter().all(|f| !f.lost && f.word.as_str() != "different"), "{findings:#?}");
            runs += 1;
        }
        runs
    };
    let traffic = async {
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for round in 0..12 {
            // Every other round the bucket refuses, so that it is kept here and synced after that.
            let fault = (round % 2 == 0).then(|| cloud.fault(Fault::internal_error(), uploads()));
            let these = futures_util::future::join_all(
                (0..5).map(|n| upload(&gateway, if n % 2 == 0 { "s" } else { "t" }, round * 10 + n)),
            )
            .await;
            if let Some(fault) = fault {
                fault.remove();
            }
            for (n, (path, bytes)) in these.into_iter().enumerate() {
                if n % 2 == 0 {
                    let (status, answer) = gateway.delete(&format!("/recordings/{path}")).await;
                    assert!(status == 200 || status == 202, "{answer}");
                    gone.push(path);
                } else {
                    kept.push((path, bytes));
                }
            }
        }
        eventually("everything is in the bucket", async || {
            let keys = cloud.keys(BUCKET);
            kept.iter().all(|(path, _)| keys.contains(path))
                && gateway.services.catalog.counts().await.unwrap().jobs == 0
        })
        .await;
        over.cancel();
        (kept, gone)
    };
    let (runs, (kept, gone)) = tokio::join!(repairing, traffic);
    assert!(runs > 3, "it ran {runs} times");
    for (path, bytes) in &kept {
        assert!(gateway.bytes(path).await == *bytes, "{path}");
    }
    for path in &gone {
        assert_eq!(gateway.get(&format!("/recordings/{path}/content")).await.status(), 404, "{path}");
        assert!(cloud.object(BUCKET, path).is_none(), "{path}");
    }
    let (findings, summary) = verify(&gateway, &VerifyOptions { read: true, ..at_once() }).await;
    assert!(findings.is_empty() && summary.progress.recordings == kept.len() as u64, "{findings:#?}");
    gateway.stop().await;
}

async fn lines(response: reqwest::Response) -> Vec<Value> {
    let text = response.text().await.unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_it_tells_lines_and_runs_once_at_a_time() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, KEEPING).await;
    let (path, _) = upload(&gateway, "s", 1).await;
    cloud.remove_object(BUCKET, &path);
    let response = gateway.request("POST", "/verify?session_id=s").send().await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["content-type"]),
        (200.try_into().unwrap(), &"application/x-ndjson".parse().unwrap())
    );
    let told = lines(response).await;
    let finding = told.iter().find(|line| line["type"] == "finding").unwrap();
    assert_eq!((&finding["word"], &finding["lost"]), (&"missing".into(), &true.into()), "{finding}");
    let last = told.last().unwrap();
    assert_eq!((&last["type"], &last["remaining"], &last["lost"]), (&"summary".into(), &1.into(), &1.into()));
    for body in [r#"{"digests": "some"}"#, r#"{"repiar": true}"#, "[]x"] {
        let refused = gateway.request("POST", "/verify").body(body).send().await.unwrap();
        assert_eq!(refused.status(), 422, "{body}");
    }

    // One that takes long: the bucket answers nothing.
    let hole = cloud.fault(Fault::BlackHole, Matcher::any());
    let first = gateway.request("POST", "/verify").send().await.unwrap();
    let second = gateway.request("POST", "/verify").send().await.unwrap();
    assert_eq!(second.status(), 409);
    assert_eq!(second.json::<Value>().await.unwrap()["code"], "verify_running");
    drop(first);
    hole.remove();
    eventually("it stops when its client has gone", async || {
        gateway.services.verifying.available_permits() == 1
    })
    .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_a_table_and_ends_with_1_while_differences_remain() {
    let gateway = Gateway::start(&[("sync.interval", "1h")]).await;
    let (path, _) = upload(&gateway, "s", 1).await;
    let run = async |args: &[&str]| {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"));
        command.env_clear().args(["verify", "--url", &gateway.url]).args(args);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = run(&["--read"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("1 recordings in 1 sessions: 0 missing"), "{text}");
    std::fs::remove_file(gateway.recordings_dir().join(&path)).unwrap();
    std::fs::remove_dir(gateway.recordings_dir().join("s")).unwrap();
    behind_its_back(&gateway, "UPDATE recordings SET uploaded_at = 1").await;
    let (code, text) = run(&["--session", "s", "--repair"]).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("missing") && text.contains(&path) && text.contains("--forget-lost"), "{text}");
    let (code, text) = run(&["--forget-lost", "--json"]).await;
    assert_eq!(code, 0, "{text}");
    let finding = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    assert!(finding.clone().any(|line| line["treated"] == "repaired"), "{text}");
    assert_eq!(run(&[]).await.0, 0);
    gateway.stop().await;
}

/// Whoever asked stays connected and reads nothing: the next one is not kept out for ever.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_does_not_hold_it() {
    let gateway = Gateway::start(&[("sync.interval", "1h")]).await;
    for n in 0..40 {
        let dir = gateway.recordings_dir().join(format!("empty-{n}"));
        std::fs::create_dir(&dir).unwrap();
    }
    let impatient = VerifyOptions { patience: Duration::from_millis(100), ..at_once() };
    let _unread = gateway.services.verify(impatient).unwrap();
    eventually("another one may begin", async || gateway.services.verify(at_once()).is_ok()).await;
    gateway.stop().await;
}
