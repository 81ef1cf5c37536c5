//! The page in a real browser, and the recording it makes: sent with curl as the README says, then compared byte for
//! byte from every place it can be had.
//!
//! Apart because it needs node, Chromium, curl and `npm ci` in `tests/js`; without them the suite is skipped by name.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::Value;

use crate::support::cloud::{deletions, uploads};
use crate::support::fake_supabase::{FakeSupabase, Fault};
use crate::support::gateway::Gateway;
use crate::support::media::sha256;
use crate::support::skip::skip_or_fail;

const BUCKET: &str = "interview-recordings";

#[tokio::test(flavor = "multi_thread")]
async fn it_works_without_a_cloud() {
    if let Some(missing) = missing() {
        return skip_or_fail("page", &missing);
    }
    let gateway = Gateway::local().await;
    let work = tempfile::tempdir().unwrap();
    let recording = drive(&gateway.url, work.path(), None).await;
    let bytes = std::fs::read(&recording).unwrap();
    for order in [FILE_FIRST, FILE_LAST] {
        let (path, name) = send(&gateway, &recording, order).await;
        assert_eq!(std::fs::read(gateway.recordings_dir().join(&path)).unwrap(), bytes, "on the disk");
        for place in ["content", "content?via=proxy", "content?via=redirect", "download"] {
            let got = curl(&["-sSfL", &format!("{}/recordings/{path}/{place}", gateway.url)]).await;
            assert_eq!(sha256(&got), sha256(&bytes), "{place} of {name}");
        }
        let newest = curl(&["-sSf", &format!("{}/recordings/curl/download", gateway.url)]).await;
        assert_eq!(sha256(&newest), sha256(&bytes), "the session's download");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_with_a_cloud() {
    if let Some(missing) = missing() {
        return skip_or_fail("page", &missing);
    }
    let cloud = Arc::new(FakeSupabase::start().await);
    let gateway = Gateway::with_cloud(&cloud).await;
    let work = tempfile::tempdir().unwrap();
    let recording = drive(&gateway.url, work.path(), Some(cloud.clone())).await;
    let bytes = std::fs::read(&recording).unwrap();
    for order in [FILE_FIRST, FILE_LAST] {
        let (path, name) = send(&gateway, &recording, order).await;
        assert_eq!(cloud.object(BUCKET, &path).expect("it is in the bucket").bytes, bytes, "in the bucket");
        assert!(!gateway.recordings_dir().join(&path).exists(), "the cloud has it, the disk need not");
        for place in ["content", "content?via=proxy", "content?via=redirect"] {
            let got = curl(&["-sSfL", &format!("{}/recordings/{path}/{place}", gateway.url)]).await;
            assert_eq!(sha256(&got), sha256(&bytes), "{place} of {name}");
        }
        for place in [format!("{path}/download"), "curl/download".to_owned()] {
            let told = curl(&["-sSf", &format!("{}/recordings/{place}", gateway.url)]).await;
            let told: Value = serde_json::from_slice(&told).unwrap();
            assert_eq!(told["file_path"], path.as_str());
            let got = curl(&["-sSf", told["public_url"].as_str().expect("the bucket is public")]).await;
            assert_eq!(sha256(&got), sha256(&bytes), "the address that {place} gives");
        }
    }
    gateway.stop().await;
}

/// The fields as the README types them, and the other way round.
const FILE_FIRST: [usize; 2] = [0, 1];
const FILE_LAST: [usize; 2] = [1, 0];

/// Uploads with curl; returns the path and the name.
async fn send(gateway: &Gateway, recording: &Path, order: [usize; 2]) -> (String, String) {
    let fields = [format!("recording=@{}", recording.display()), "recording_type=session".to_owned()];
    let url = format!("{}/recordings/upload/curl", gateway.url);
    let [first, second] = order.map(|n| fields[n].as_str());
    let told = curl(&["-sSf", "-X", "POST", &url, "-F", first, "-F", second]).await;
    let told: Value = serde_json::from_slice(&told).unwrap();
    assert_eq!(told["success"], true, "{told}");
    assert_eq!(told["content_type"], "video/webm", "{told}");
    let [path, name] = ["file_path", "filename"].map(|field| told[field].as_str().unwrap().to_owned());
    assert!(name.starts_with("session_recording_curl_"), "{name}");
    (path, name)
}

async fn curl(arguments: &[&str]) -> Vec<u8> {
    let done = run(Command::new("curl").args(["--max-time", "60"]).args(arguments)).await;
    assert!(done.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// Drives the page through everything a person does there; returns the recording it made. With a cloud, that does what
/// the script wants of it.
async fn drive(url: &str, work: &Path, cloud: Option<Arc<FakeSupabase>>) -> PathBuf {
    let script = root().join("tests/browser/page.mjs");
    let mut command = Command::new("node");
    command.arg(script).arg(url).arg(work);
    if cloud.is_some() {
        command.arg("cloud");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let runtime = tokio::runtime::Handle::current();
    let driven = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("node starts");
        let mut stdin = child.stdin.take().unwrap();
        let mut told = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let (Some(wish), Some(cloud)) = (line.strip_prefix("want "), &cloud) {
                runtime.block_on(grant(cloud, wish));
                writeln!(stdin, "done").unwrap();
            }
            told.push_str(&line);
            told.push('\n');
        }
        child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        (child.wait().unwrap(), told)
    });
    let (status, told) = driven.await.unwrap();
    assert!(status.success(), "{told}");
    assert!(
        told.contains("ok browser had nothing to complain about"),
        "it ended before its last step: {told}"
    );
    if let Some(place) = std::env::var_os("PAGE_PICTURES") {
        keep_pictures(work, Path::new(&place));
    }
    work.join("fake-camera.webm")
}

async fn grant(cloud: &FakeSupabase, wish: &str) {
    match wish {
        "away" => cloud.stop().await,
        "back" => cloud.restart_on_same_port().await,
        "refuse" => drop(cloud.fault(Fault::policy_refusal(), uploads())),
        "keep" => drop(cloud.fault(Fault::policy_refusal(), deletions())),
        "allow" => cloud.clear_faults(),
        other => panic!("the script wants {other}"),
    }
}

/// For people who want to see what the page looked like.
fn keep_pictures(work: &Path, place: &Path) {
    std::fs::create_dir_all(place).unwrap();
    for entry in std::fs::read_dir(work).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "png") {
            std::fs::copy(&path, place.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// Runs a program without keeping the gateway under test from its thread.
async fn run(command: &mut Command) -> std::process::Output {
    let mut command = std::mem::replace(command, Command::new("true"));
    tokio::task::spawn_blocking(move || command.output()).await.unwrap().expect("the program starts")
}

/// What this suite needs and the machine has not.
fn missing() -> Option<String> {
    let starts = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    if !starts("node") {
        return Some("node".to_owned());
    }
    if !starts("curl") {
        return Some("curl".to_owned());
    }
    if !root().join("tests/js/node_modules/playwright-core").exists() {
        return Some("tests/js/node_modules (npm ci in tests/js)".to_owned());
    }
    (!Path::new(&chromium).exists()).then(|| format!("chromium ({chromium})"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
