//! Jobs over HTTP and on the command line: what waits, why it is parked, trying again, stopping, syncs on request, and
//! the parent of a bulk load.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use recording_gateway::domain::page::Position;
use reqwest::multipart::Form;
use serde_json::{Value, json};

use crate::support::cloud::{BUCKET, rows, seen_uploads, uploads};
use crate::support::eventually;
use crate::support::fake_supabase::{BucketSpec, FakeSupabase, Fault, Matcher};
use crate::support::gateway::{Gateway, file_part};
use crate::support::media::webm;
use crate::support::postgres;

async fn post(gateway: &Gateway, path: &str, body: Option<Value>) -> (u16, Value) {
    let request = gateway.request("POST", path);
    let request = match body {
        Some(body) => request.json(&body),
        None => request,
    };
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn jobs(gateway: &Gateway, query: &str) -> Vec<Value> {
    let list = gateway.get_json(&format!("/jobs?{query}")).await;
    list["jobs"].as_array().unwrap_or_else(|| panic!("no jobs: {list}")).clone()
}

/// The command against this gateway; it must not hold the thread that serves it.
async fn cli(gateway: &Gateway, args: &[&str]) -> Output {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"));
    command.current_dir(Path::new("/")).env_clear().args(args).args(["--url", &gateway.url]);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A gateway whose cloud refuses every upload for now, and does not try again by itself.
async fn cloud_that_refuses() -> (FakeSupabase, Gateway) {
    let cloud = FakeSupabase::start().await;
    let more =
        [("sync.interval", "1h"), ("supabase.breaker_failures", "1000"), ("supabase.patience", "300ms")];
    let gateway = Gateway::with_cloud_and(&cloud, &more).await;
    cloud.fault(Fault::internal_error(), uploads());
    (cloud, gateway)
}

/// Waits until this many syncs were tried so often, in vain, and none is being tried.
async fn have_failed(gateway: &Gateway, count: usize, tries: u64) {
    eventually("the syncs were tried in vain", async || {
        let jobs = jobs(gateway, "state=waiting&kind=sync").await;
        jobs.iter().filter(|job| job["attempts"].as_u64() >= Some(tries)).count() == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_listed_and_goes_when_it_is_retried() {
    let (cloud, gateway) = cloud_that_refuses().await;
    let (_, answer) = gateway.upload("s", webm(5000, 1)).await;
    gateway.upload("other", webm(5000, 2)).await;
    let filename = answer["filename"].as_str().unwrap();
    have_failed(&gateway, 2, 1).await;
    let waiting = jobs(&gateway, "state=waiting&kind=sync&session_id=s").await;
    assert_eq!(waiting.len(), 1, "{waiting:#?}");
    let job = &waiting[0];
    assert_eq!((job["filename"].as_str(), job["kind"].as_str()), (Some(filename), Some("sync")));
    assert!(job["last_error"].as_str().unwrap().contains("supabase"), "{job}");
    assert!(
        job["next_time"].is_string() && job["finished_at"].is_null() && job["gateway"].is_string(),
        "{job}"
    );
    let key = cloud.service_key();
    assert!(!job.to_string().contains(&key), "the key is nobody's to read");
    let id = job["id"].as_str().unwrap();
    assert_eq!(gateway.get_json(&format!("/jobs/{id}")).await["id"], id);

    cloud.clear_faults();
    let (status, job) = post(&gateway, &format!("/jobs/{id}/retry"), None).await;
    assert_eq!(status, 200, "{job}");
    eventually("the retried one is in the bucket", async || {
        gateway.get_json(&format!("/jobs/{id}")).await["state"] == "done"
    })
    .await;
    assert_eq!(rows(&gateway, "s").await[0]["stores"], json!(["supabase"]));
    assert_eq!(rows(&gateway, "other").await[0]["stores"], json!(["local"]), "only that one was hurried");
    let (status, problem) = post(&gateway, &format!("/jobs/{id}/retry"), None).await;
    assert_eq!((status, problem["code"].as_str()), (409, Some("job_not_changeable")), "{problem}");
    let (status, problem) = post(&gateway, &format!("/jobs/{id}/cancel"), None).await;
    assert_eq!((status, problem["code"].as_str()), (409, Some("job_not_changeable")), "{problem}");
    for path in ["/jobs/none", "/jobs/none/retry", "/jobs/none/cancel"] {
        let method = if path.ends_with("none") { "GET" } else { "POST" };
        let response = gateway.request(method, path).send().await.unwrap();
        assert_eq!(response.status(), 404, "{path}");
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "job_not_found", "{path}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_cover_every_job_once_and_filters_are_judged() {
    let (_cloud, gateway) = cloud_that_refuses().await;
    for seed in 0..5 {
        gateway.upload(&format!("s{seed}"), webm(2000, seed)).await;
    }
    let (mut seen, mut path) = (Vec::new(), "/jobs?kind=sync&limit=2".to_owned());
    loop {
        let response = gateway.get(&path).await;
        let link = response.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let page: Value = response.json().await.unwrap();
        let ids = page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned());
        seen.extend(ids);
        let Some(link) = link else {
            assert_eq!(page["next_cursor"], Value::Null);
            break;
        };
        assert!(
            link.ends_with(">; rel=\"next\"") && link.contains("kind=sync") && link.contains("limit=2"),
            "{link}"
        );
        path = link.trim_start_matches('<').split('>').next().unwrap().to_owned();
    }
    let mut sorted = seen.clone();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted.dedup();
    assert_eq!((seen.len(), &seen), (5, &sorted), "newest first, each once");
    for (query, code) in [
        ("state=asleep", "filter_invalid"),
        ("kind=dance", "filter_invalid"),
        ("session_id=.x", "session_id_invalid"),
        ("parent=a%00", "filter_invalid"),
        ("limit=0", "limit_invalid"),
        ("cursor=x", "cursor_invalid"),
    ] {
        let response = gateway.get(&format!("/jobs?{query}")).await;
        assert_eq!(response.status(), 422, "{query}");
        assert_eq!(response.json::<Value>().await.unwrap()["code"], code, "{query}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_sync_stays_here_and_a_deletion_is_never_cancelled() {
    let (cloud, gateway) = cloud_that_refuses().await;
    let (_, answer) = gateway.upload("s", webm(3000, 1)).await;
    let path = answer["file_path"].as_str().unwrap();
    have_failed(&gateway, 1, 1).await;
    let id = jobs(&gateway, "kind=sync").await[0]["id"].as_str().unwrap().to_owned();
    let (status, job) = post(&gateway, &format!("/jobs/{id}/cancel"), None).await;
    assert_eq!((status, job["state"].as_str()), (200, Some("cancelled")), "{job}");
    cloud.clear_faults();
    let info = gateway.get_json(&format!("/recordings/{path}")).await;
    assert!(info["parked_reason"].as_str().unwrap().contains("cancelled"), "{info}");

    cloud.fault(Fault::internal_error(), Matcher::any().method("DELETE"));
    assert_eq!(gateway.delete(&format!("/recordings/{path}")).await.0, 202);
    let deletion = jobs(&gateway, "kind=delete").await[0].clone();
    let id = deletion["id"].as_str().unwrap();
    let (status, problem) = post(&gateway, &format!("/jobs/{id}/cancel"), None).await;
    assert_eq!((status, problem["code"].as_str()), (409, Some("job_not_changeable")));
    assert!(problem["detail"].as_str().unwrap().starts_with("A deletion cannot be cancelled"), "{problem}");
    cloud.clear_faults();
    assert_eq!(post(&gateway, &format!("/jobs/{id}/retry"), None).await.0, 200, "but it can be hurried");
    eventually("it is confirmed", async || gateway.get_json(&format!("/jobs/{id}")).await["state"] == "done")
        .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_on_request_is_one_job_with_parts() {
    let (cloud, gateway) = cloud_that_refuses().await;
    for seed in 0..2 {
        gateway.upload("s", webm(4000, seed)).await;
    }
    let (status, plan) = post(&gateway, "/sync?dry_run=true&session_id=s", None).await;
    assert_eq!(status, 200);
    assert_eq!(plan, json!({"dry_run": true, "session_id": "s", "count": 2, "bytes": 8000, "parked": 0}));
    let (_, plan) = post(&gateway, "/sync", Some(json!({"dry_run": true}))).await;
    assert_eq!((&plan["count"], &plan["bytes"]), (&json!(2), &json!(8000)));
    have_failed(&gateway, 2, 1).await;
    let made = jobs(&gateway, "").await.len();
    assert_eq!(made, 2, "a dry run makes no job");

    let (status, parent) = post(&gateway, "/sync?now=false", Some(json!({"session_id": "s"}))).await;
    assert_eq!(status, 202, "{parent}");
    assert_eq!((parent["kind"].as_str(), parent["session_id"].as_str()), (Some("sync_session"), Some("s")));
    assert_eq!(
        (parent["state"].as_str(), &parent["children"]["total"]),
        (Some("running"), &json!(2)),
        "{parent}"
    );
    let id = parent["id"].as_str().unwrap();
    assert_eq!(jobs(&gateway, &format!("parent={id}")).await.len(), 2);
    cloud.clear_faults();
    let (_, again) = post(&gateway, "/sync?session_id=s", None).await;
    assert_eq!(again["id"], id, "the open one is found again");
    eventually("the parent is done with its parts", async || {
        let parent = gateway.get_json(&format!("/jobs/{id}")).await;
        parent["state"] == "done" && parent["children"]["done"] == 2
    })
    .await;
    assert_eq!(cloud.keys(BUCKET).iter().filter(|key| key.starts_with("s/")).count(), 2);
    let (_, nothing) = post(&gateway, "/sync?session_id=s", None).await;
    assert_eq!((nothing["state"].as_str(), &nothing["children"]["total"]), (Some("done"), &json!(0)));

    for (body, code) in [("{\"sesion_id\": 1}", "json_invalid"), ("[", "json_invalid")] {
        let response = gateway.request("POST", "/sync").body(body).send().await.unwrap();
        assert_eq!(response.status(), 400, "{body}");
        assert_eq!(response.json::<Value>().await.unwrap()["code"], code, "{body}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cloud_there_is_nothing_to_sync_with() {
    let gateway = Gateway::local().await;
    for path in ["/sync", "/sync?dry_run=true"] {
        let (status, problem) = post(&gateway, path, None).await;
        assert_eq!((status, problem["code"].as_str()), (409, Some("cloud_not_configured")), "{problem}");
    }
    let ran = cli(&gateway, &["sync"]).await;
    assert_eq!(ran.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("No cloud is configured"), "{ran:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_parked_at_its_upload_has_a_job_to_retry() {
    let cloud = FakeSupabase::start().await;
    let spec = |limit| BucketSpec {
        name: "small".into(),
        public: true,
        file_size_limit: limit,
        allowed_mime_types: None,
    };
    cloud.create_bucket(spec(Some(1000)));
    let gateway =
        Gateway::with_cloud_and(&cloud, &[("supabase.bucket", "small"), ("sync.interval", "1h")]).await;
    let (_, answer) = gateway.upload("s", webm(2000, 1)).await;
    let reason = answer["parked_reason"].as_str().unwrap();
    let parked = jobs(&gateway, "state=parked").await;
    assert_eq!(parked.len(), 1, "{parked:#?}");
    assert_eq!(
        (parked[0]["filename"].as_str(), parked[0]["last_error"].as_str()),
        (answer["filename"].as_str(), Some(reason))
    );
    assert_eq!(gateway.services.catalog.counts().await.unwrap().jobs, 0, "nothing waits");
    let ran = cli(&gateway, &["sync", "--dry-run"]).await;
    assert_eq!((ran.status.code(), out(&ran).contains("1 are parked")), (Some(1), true), "{ran:?}");

    // Deleted, it waits for nobody any more.
    let path = answer["file_path"].as_str().unwrap();
    assert_eq!(gateway.delete(&format!("/recordings/{path}")).await.0, 200);
    assert_eq!(jobs(&gateway, "state=parked").await, Vec::<Value>::new());
    let job = gateway.get_json(&format!("/jobs/{}", parked[0]["id"].as_str().unwrap())).await;
    assert_eq!(
        (job["state"].as_str(), job["last_error"].as_str()),
        (Some("cancelled"), Some("the recording was deleted"))
    );
    gateway.stop().await;
}

/// PostgreSQL takes no NUL; that is no failure of the catalogue.
#[tokio::test(flavor = "multi_thread")]
async fn a_nul_is_a_mistake_of_the_request() {
    let Some(url) = postgres::database("requests with a NUL").await else { return };
    let gateway = Gateway::start(&[("catalog.url", url.as_str())]).await;
    let cursor = Position { time_us: 1, name: "a\0".into() }.to_cursor();
    for (method, path, status, code) in [
        ("GET", "/jobs/%00", 404, "job_not_found"),
        ("POST", "/jobs/%00/retry", 404, "job_not_found"),
        ("POST", "/jobs/a%00b/cancel", 404, "job_not_found"),
        ("GET", "/jobs?parent=%00", 422, "filter_invalid"),
        ("GET", "/jobs?kind=%00", 422, "filter_invalid"),
        ("GET", "/jobs?session_id=%00", 422, "session_id_invalid"),
        ("GET", &format!("/jobs?cursor={cursor}"), 422, "cursor_invalid"),
        ("GET", "/audit?actor=%00", 422, "filter_invalid"),
        ("GET", "/audit?filename=a%00", 422, "filter_invalid"),
        ("GET", "/audit?session_id=a%00", 422, "session_id_invalid"),
        ("GET", &format!("/audit?cursor={cursor}"), 422, "cursor_invalid"),
        ("GET", &format!("/recordings?cursor={cursor}"), 422, "cursor_invalid"),
        ("GET", "/recordings/s%00/list", 422, "session_id_invalid"),
        ("DELETE", "/recordings/s/a%00", 422, "filename_invalid"),
        ("POST", "/sync?session_id=%00", 422, "session_id_invalid"),
        ("POST", "/verify?session_id=%00", 422, "session_id_invalid"),
        ("GET", "/events?session_id=%00", 422, "session_id_invalid"),
    ] {
        let response = gateway.request(method, path).send().await.unwrap();
        let told = response.status().as_u16();
        let problem: Value = response.json().await.unwrap();
        assert_eq!((told, problem["code"].as_str()), (status, Some(code)), "{method} {path}: {problem}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_syncs_of_a_bulk_load_are_its_parts() {
    let (cloud, gateway) = cloud_that_refuses().await;
    let (status, job) = post(&gateway, "/jobs", Some(json!({"kind": "migration"}))).await;
    assert_eq!((status, job["kind"].as_str()), (201, Some("migration")), "{job}");
    let id = job["id"].as_str().unwrap();
    let (_, other) = post(&gateway, "/jobs", Some(json!({"kind": "migration"}))).await;
    assert_ne!(other["id"], id, "two loads are two jobs");
    let (status, problem) = post(&gateway, "/jobs", Some(json!({"kind": "delete"}))).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("job_kind_invalid")), "{problem}");

    let upload = async |load: &str, seed| {
        let form = Form::new().part("recording", file_part(webm(3000, seed), "a.webm", "video/webm"));
        let request =
            gateway.request("POST", "/recordings/upload/s").header("gateway-job", load).multipart(form);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    for load in ["none", &jobs(&gateway, "kind=migration").await[0]["id"].as_str().unwrap().replace('-', "")]
    {
        let (status, problem) = upload(load, 1).await;
        assert_eq!((status, problem["code"].as_str()), (422, Some("load_unknown")), "{problem}");
    }
    assert_eq!(upload(id, 1).await.0, 200);
    assert_eq!(upload(id, 2).await.0, 200);
    let sync = jobs(&gateway, "kind=sync").await[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(upload(&sync, 3).await.1["code"], "load_unknown", "only a bulk load has such parts");
    let load = gateway.get_json(&format!("/jobs/{id}")).await;
    assert_eq!((load["state"].as_str(), &load["children"]["total"]), (Some("running"), &json!(2)), "{load}");
    have_failed(&gateway, 2, 1).await;
    cloud.clear_faults();
    post(&gateway, &format!("/jobs/{id}/retry"), None).await;
    eventually("the load is in the cloud", async || {
        let load = gateway.get_json(&format!("/jobs/{id}")).await;
        load["state"] == "done" && load["children"]["done"] == 2
    })
    .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_show_change_and_wait() {
    let (cloud, gateway) = cloud_that_refuses().await;
    let (_, answer) = gateway.upload("s", webm(3000, 1)).await;
    gateway.upload("s", webm(3000, 2)).await;
    let name = answer["filename"].as_str().unwrap();
    have_failed(&gateway, 2, 1).await;

    let listed = cli(&gateway, &["jobs", "ls", "--kind", "sync", "--session", "s", "--json"]).await;
    let listed: Value = serde_json::from_str(&out(&listed)).unwrap();
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 2);
    let job = listed["jobs"].as_array().unwrap().iter().find(|job| job["filename"] == name).unwrap();
    let id = job["id"].as_str().unwrap();
    let table = out(&cli(&gateway, &["jobs", "ls", "--limit", "1"]).await);
    assert_eq!(table.lines().count(), 2, "a head and one row: {table}");
    assert!(out(&cli(&gateway, &["jobs", "show", id]).await).contains(&format!("filename: {name}")));
    assert_eq!(cli(&gateway, &["jobs", "cancel", id]).await.status.code(), Some(0));
    let refused = cli(&gateway, &["jobs", "cancel", id]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nothing to cancel"), "{refused:?}");

    cloud.clear_faults();
    let sent = seen_uploads(&cloud).len();
    let waited = cli(&gateway, &["sync", "--now", "--wait", "--json"]).await;
    assert_eq!(waited.status.code(), Some(0), "{waited:?}");
    let waited: Value = serde_json::from_str(&out(&waited)).unwrap();
    assert_eq!((&waited["job"]["children"]["done"], &waited["parked"]), (&json!(2), &json!(0)), "{waited}");
    assert_eq!(seen_uploads(&cloud).len(), sent + 2);
    assert_eq!(cloud.keys(BUCKET).len(), 2, "also the cancelled one was taken up again");

    let again = cli(&gateway, &["sync"]).await;
    assert!(out(&again).starts_with("0 recordings"), "{again:?}");
    gateway.stop().await;
}

/// Polls it so often and drops it, as when a client hangs up.
async fn dropped_after(polls: usize, future: impl Future) {
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        if futures_util::poll!(&mut future).is_ready() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_leaves_no_job_open_that_has_no_parts() {
    let (_cloud, gateway) = cloud_that_refuses().await;
    for polls in 1..8 {
        dropped_after(polls, gateway.services.begin_migration()).await;
        dropped_after(polls, gateway.services.sync_now(None, false)).await;
    }
    eventually("every job is made and done", async || {
        let done = jobs(&gateway, "state=done").await;
        let loads = done.iter().filter(|job| job["kind"] == "migration").count();
        loads == 7 && jobs(&gateway, "state=running").await.is_empty()
    })
    .await;
    gateway.stop().await;
}
