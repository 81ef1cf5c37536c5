//! `check` on the real binary, against clouds of every kind: one line each, with the remedy.

use assert_cmd::Command;

use crate::support::fake_supabase::{BucketSpec, FakeSupabase};

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
