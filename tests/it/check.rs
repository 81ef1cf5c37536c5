//! `check` on the real binary, against clouds of every kind: one line each, with the remedy.

use assert_cmd::Command;
use sqlx::{Connection, Executor};

use crate::support::fake_supabase::{BucketSpec, FakeSupabase};
use crate::support::gateway::Gateway;
use crate::support::media::webm;

fn check(cloud_url: &str, key: &str, more: &[&str]) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_recording-gateway"));
    command
        .env_clear()
        .current_dir(dir.path())
        .env("SUPABASE_URL", cloud_url)
        .env("SUPABASE_SERVICE_ROLE_KEY", key);
    let output = command.arg("check").args(["--port", "0"]).args(more).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// The line about the cloud.
fn cloud_line(out: &str) -> &str {
    out.lines()
        .find(|line| line.contains(" cloud "))
        .unwrap_or_else(|| panic!("no line about the cloud:\n{out}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cloud_as_it_is() {
    let cloud = FakeSupabase::start().await;
    let (code, out) = check(&cloud.url(), &cloud.service_key(), &[]);
    assert!(
        cloud_line(&out).starts_with("ok ") && out.contains("interview-recordings is there: public"),
        "{out}"
    );
    assert_eq!(code, 0, "{out}");

    cloud.create_bucket(BucketSpec {
        name: "small".into(),
        public: false,
        file_size_limit: Some(1_000_000),
        allowed_mime_types: Some(vec!["video/webm".into()]),
    });
    let (_, out) = check(&cloud.url(), &cloud.service_key(), &["--set", "supabase.bucket=small"]);
    assert!(out.contains("private") && out.contains("video/webm"), "{out}");

    let (code, out) = check(&cloud.url(), &cloud.service_key(), &["--set", "supabase.bucket=none"]);
    assert_eq!(code, 1);
    assert!(cloud_line(&out).starts_with("FAILURE") && out.contains("supabase.create_bucket"), "{out}");

    let (code, out) = check(&cloud.url(), &cloud.expired_key(), &[]);
    assert_eq!(code, 1);
    assert!(out.contains("service role key again"), "{out}");

    cloud.stop().await;
    let (code, out) = check(&cloud.url(), &cloud.service_key(), &[]);
    assert_eq!(code, 1);
    assert!(out.contains("cannot be reached") && out.contains("check SUPABASE_URL"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_of_a_newer_version() {
    let dir = Gateway::local().await.stop().await;
    let file = dir.path().join("recordings/.catalog/catalog.sqlite");
    let mut catalogue =
        sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (99, 'newer', true, x'00', 0)";
    catalogue.execute(newer).await.unwrap();
    catalogue.close().await.unwrap();
    let folder = dir.path().join("recordings");
    let cloud = FakeSupabase::start().await;
    let (code, out) = check(&cloud.url(), &cloud.service_key(), &["--local-dir", folder.to_str().unwrap()]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("newer version (migration 99)"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn something_that_is_no_supabase() {
    let wrong = crate::support::gateway::Gateway::local().await;
    let (code, out) = check(&wrong.url, "some-key", &[]);
    assert_eq!(code, 1);
    assert!(cloud_line(&out).contains("->"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_asks_whether_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |port: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_recording-gateway"));
        let output =
            command.env_clear().current_dir(dir.path()).args(["check", "--running", "--port", port]).output();
        let output = output.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let gateway = crate::support::gateway::Gateway::local().await;
    let port = gateway.url.rsplit(':').next().unwrap().to_owned();
    let (code, out) = ask(&port);
    assert!(code == 0 && out.starts_with("ok"), "{out}");
    gateway.stop().await;
    let (code, out) = ask(&port);
    assert!(code == 1 && out.contains("recording-gateway serve"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_cloud_and_what_it_will_not_take() {
    let cloud = FakeSupabase::start().await;
    let spec = BucketSpec {
        name: "small".into(),
        public: true,
        file_size_limit: Some(1_000_000),
        allowed_mime_types: None,
    };
    cloud.create_bucket(spec);
    let gateway = Gateway::with_cloud_and(&cloud, &[("supabase.bucket", "small")]).await;
    let folder = gateway.recordings_dir();
    let here = |name: &str| {
        let args = ["--json", "--set", "supabase.bucket=small", "--local-dir", folder.to_str().unwrap()];
        let (_, out) = check(&cloud.url(), &cloud.service_key(), &args);
        let lines: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
        let line = lines.into_iter().find(|line| line["name"] == name).unwrap();
        (line["status"].as_str().unwrap().to_owned(), line["detail"].as_str().unwrap().to_owned())
    };
    assert_eq!(here("unsynced"), ("ok".to_owned(), "nothing waits for the cloud".to_owned()));
    assert_eq!(here("parked"), ("ok".to_owned(), "none".to_owned()));
    assert!(here("disk").1.contains(" free"));

    let (status, answer) = gateway.upload("s", webm(1_500_000, 1)).await;
    assert_eq!((status, answer["storage_type"].as_str().unwrap()), (200, "local"));
    cloud.stop().await;
    let (status, answer) = gateway.upload("s", webm(5000, 2)).await;
    assert_eq!((status, answer["storage_type"].as_str().unwrap()), (200, "local"));
    let (status, detail) = here("parked");
    assert!(status == "warning" && detail.starts_with("1 recordings"), "{detail}");
    let (status, detail) = here("unsynced");
    assert!(
        status == "ok" && detail.starts_with("1 recordings (") && detail.contains("the oldest for"),
        "{detail}"
    );
    let ready = gateway.get_json("/readyz").await.to_string();
    assert!(ready.contains("1 parked") && ready.contains("only on this disk, the oldest for"), "{ready}");
    gateway.stop().await;
}
