//! The command `health` on the real binary: the answer a container's health check works with.

use assert_cmd::Command;

use crate::support::gateway::Gateway;

async fn health(url: &str, more: &[&str]) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_recording-gateway"));
    command.env_clear().current_dir(dir.path()).args(["health", "--url", url]).args(more);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_is_told_and_a_missing_cloud_is_no_failure() {
    let gateway = Gateway::local().await;
    let (code, out, _) = health(&gateway.url, &[]).await;
    assert_eq!(code, 0, "{out}");
    for (status, name) in [("ok", "disk"), ("ok", "spool"), ("ok", "catalogue"), ("off", "cloud")] {
        assert!(out.lines().any(|line| line.starts_with(status) && line.contains(name)), "{name}: {out}");
    }
    let (_, out, _) = health(&gateway.url, &["--json"]).await;
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["status"], "ready");

    let url = gateway.url.clone();
    gateway.stop().await;
    let (code, _, complaint) = health(&url, &[]).await;
    assert_eq!(code, 1);
    assert!(complaint.contains("no gateway answers"), "{complaint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_takes_nothing_is_a_failure_with_its_cause() {
    let gateway = Gateway::start(&[("storage.min_free", "1000TiB")]).await;
    let (code, out, _) = health(&gateway.url, &[]).await;
    assert_eq!(code, 1, "{out}");
    assert!(out.lines().any(|line| line.starts_with("unavailable") && line.contains("disk")), "{out}");
    gateway.stop().await;
}
