//! What operators and machines rely on: probes, figures, the interface's description, an orderly stop, one process to a
//! directory, logs that machines read.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::cloud::deletions;
use crate::support::eventually;
use crate::support::fake_supabase::{FakeSupabase, Fault};
use crate::support::gateway::{Gateway, within};
use crate::support::media::webm;
use crate::support::process::{Process, command};
use crate::support::raw_client::{RawClient, RawForm, bare, exchange, upload, upload_head};

/// The status of one part, and the answer's own.
async fn readiness(gateway: &Gateway, part: &str) -> (u16, String, String) {
    let response = gateway.get("/readyz").await;
    let code = response.status().as_u16();
    let view: Value = response.json().await.unwrap();
    let check = view["checks"].as_array().unwrap().iter().find(|check| check["name"] == part).cloned();
    let status = check.map_or(String::new(), |check| check["status"].as_str().unwrap().to_owned());
    (code, view["status"].as_str().unwrap().to_owned(), status)
}

fn is(code: u16, all: &str, part: &str) -> (u16, String, String) {
    (code, all.to_owned(), part.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_the_part_that_fails() {
    let gateway = Gateway::local().await;
    assert_eq!(gateway.get_json("/healthz").await, serde_json::json!({"status": "ok"}));
    for (part, status) in [("disk", "ok"), ("spool", "ok"), ("catalogue", "ok"), ("cloud", "off")] {
        assert_eq!(readiness(&gateway, part).await, is(200, "ready", status), "{part}");
    }
    // The spool's directory is gone: not even root writes there.
    let (spool, away) = (gateway.recordings_dir().join(".spool"), gateway.recordings_dir().join(".away"));
    std::fs::rename(&spool, &away).unwrap();
    assert_eq!(readiness(&gateway, "spool").await, is(503, "unavailable", "unavailable"));
    let (status, problem) = gateway.upload("s", webm(100, 1)).await;
    assert_eq!((status, problem["code"].as_str().unwrap()), (503, "spool_unavailable"));
    assert_eq!(gateway.get("/healthz").await.status(), 200, "it is alive all the same");
    std::fs::rename(&away, &spool).unwrap();
    assert_eq!(readiness(&gateway, "spool").await, is(200, "ready", "ok"));
    assert_eq!(gateway.upload("s", webm(100, 1)).await.0, 200);
    gateway.stop().await;

    let gateway = Gateway::start(&[("storage.min_free", "900TiB")]).await;
    assert_eq!(readiness(&gateway, "disk").await, is(503, "unavailable", "unavailable"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_cloud_is_degraded_and_not_unready() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud_and(&cloud, &[("supabase.breaker_failures", "1")]).await;
    assert_eq!(readiness(&gateway, "cloud").await, is(200, "ready", "ok"));
    cloud.stop().await;
    let (status, answer) = gateway.upload("s", webm(100, 1)).await;
    assert_eq!((status, answer["storage_type"].as_str().unwrap()), (200, "local"));
    assert_eq!(readiness(&gateway, "cloud").await, is(200, "degraded", "degraded"));
    cloud.restart_on_same_port().await;
    eventually("the cloud is well again", async || {
        readiness(&gateway, "cloud").await == is(200, "ready", "ok")
    })
    .await;
    gateway.stop().await;
}

/// A figure of the Prometheus text; 0 if it is not there.
fn figure(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// The metrics are the process's, so the suites that run beside this one count too: a real process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happened() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path(), &[]);
    let bytes = webm(70_000, 1);
    for _ in 0..3 {
        let answer = exchange(&process.url, upload("m", &RawForm::new().file(&bytes).end())).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(exchange(&process.url, upload("m", &RawForm::new().file("").end())).await.status, 422);
    assert_eq!(exchange(&process.url, bare("GET", "/recordings/m/none.webm")).await.status, 404);
    assert_eq!(exchange(&process.url, bare("GET", "/nowhere/at/all?token=secret")).await.status, 404);
    let answer = exchange(&process.url, bare("GET", "/metrics")).await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(answer.body).unwrap();
    assert_eq!(figure(&text, "gateway_uploads_total{outcome=\"local\"}"), 3.0, "{text}");
    assert_eq!(figure(&text, "gateway_upload_bytes_total"), 210_000.0);
    assert_eq!(figure(&text, "gateway_recordings"), 3.0);
    assert_eq!(figure(&text, "gateway_uploads_in_flight"), 0.0);
    assert_eq!(figure(&text, "gateway_upload_seconds_count"), 3.0);
    assert!(figure(&text, "gateway_disk_free_bytes") > 0.0);
    let route =
        "gateway_requests_total{method=\"POST\",route=\"/recordings/upload/{session_id}\",status=\"200\"}";
    assert_eq!(figure(&text, route), 3.0);
    assert!(
        !text.contains("secret") && !text.contains("none.webm") && !text.contains("nowhere"),
        "no raw paths"
    );
    // The text format: comments, and samples of known families.
    let mut families = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(!families.contains(&name.to_owned()), "{name} is described twice");
            families.push(name.to_owned());
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(families.iter().any(|known| known == family || known == name), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    process.stop_in_order();
}

/// A deletion that the cloud refuses is tried on, and seen by who looks: a policy may have to be changed for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_does_not_succeed_is_told() {
    let cloud = FakeSupabase::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(dir.path(), &["--set", "sync.interval=200ms"]);
    command.env("SUPABASE_URL", cloud.url()).env("SUPABASE_SERVICE_ROLE_KEY", cloud.service_key());
    let process = Process::run(command).unwrap();
    let answer = exchange(&process.url, upload("s", &RawForm::new().file(webm(5000, 1)).end())).await;
    let told: Value = serde_json::from_slice(&answer.body).unwrap();
    let path = told["file_path"].as_str().unwrap();
    let refusal = cloud.fault(Fault::policy_refusal(), deletions());
    let deleted = exchange(&process.url, bare("DELETE", &format!("/recordings/{path}"))).await;
    assert_eq!(deleted.status, 202);
    let text =
        async |path: &str| String::from_utf8(exchange(&process.url, bare("GET", path)).await.body).unwrap();
    eventually("it is told", async || text("/readyz").await.contains("1 deletion does not succeed")).await;
    let figures = text("/metrics").await;
    assert_eq!(figure(&figures, "gateway_stuck_deletions"), 1.0, "{figures}");
    let of_kind = |kind: &str| format!("gateway_unfinished_jobs{{kind=\"{kind}\",state=\"open\"}}");
    assert_eq!(figure(&figures, &of_kind("delete")), 1.0, "{figures}");
    assert!(figures.contains(&format!("{} 0", of_kind("sync"))), "{figures}");
    refusal.remove();
    eventually("it goes in the end", async || !text("/readyz").await.contains("deletion")).await;
    assert_eq!(cloud.keys("interview-recordings"), Vec::<String>::new());
    assert_eq!(figure(&text("/metrics").await, "gateway_stuck_deletions"), 0.0);
    process.stop_in_order();
}

#[tokio::test(flavor = "multi_thread")]
async fn version_and_limits() {
    let gateway = Gateway::start(&[("uploads.max_bytes", "7MiB")]).await;
    let version = gateway.get_json("/version").await;
    assert_eq!(
        version,
        serde_json::json!({"name": "recording-gateway", "version": env!("CARGO_PKG_VERSION")})
    );
    let limits = gateway.get_json("/config.json").await;
    assert_eq!(limits["max_bytes"], 7 << 20);
    assert_eq!(limits["cloud_configured"], false);
    assert_eq!(limits["allowed_types"], serde_json::json!(["audio/*", "video/*"]));
    gateway.stop().await;
}

/// The interface is a promise: it changes on purpose only. To renew the file after such a change, run
/// `recording-gateway openapi > tests/it/snapshots/openapi.json` and read the difference.
#[tokio::test(flavor = "multi_thread")]
async fn the_interface_is_the_one_in_the_snapshot() {
    let gateway = Gateway::local().await;
    let response = gateway.get("/openapi.json").await;
    assert_eq!(response.headers()["content-type"], "application/json");
    let served: Value = response.json().await.unwrap();
    let snapshot: Value = serde_json::from_str(include_str!("snapshots/openapi.json")).unwrap();
    assert!(
        served == snapshot,
        "the interface changed; if it should, run: cargo run -- openapi > tests/it/snapshots/openapi.json"
    );
    assert!(served["openapi"].as_str().unwrap().starts_with("3."));
    let mut operations = Vec::new();
    for (path, item) in served["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            assert!(!operations.contains(&id), "{id} is there twice");
            assert!(operation["summary"].is_string(), "{method} {path} says what it is");
            assert!(!operation["responses"].as_object().unwrap().is_empty(), "{method} {path}");
            for name in path.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
                let described = operation["parameters"].as_array().unwrap().iter();
                let mut described =
                    described.filter(|p| p["in"] == "path" && p["name"] == name && p["required"] == true);
                assert!(described.next().is_some(), "{method} {path}: {name}");
            }
            // What is described is there: with a name that cannot be, never "no such address".
            let url = path.replace("{session_id}", "none").replace("{filename}", "none.webm");
            // Events would never end.
            let url = url.replace("/events", "/events?session_id=.none");
            let answer = exchange(&gateway.url, bare(&method.to_uppercase(), &url)).await;
            assert!(
                !["route_not_found", "method_not_allowed"].contains(&answer.code().as_str()),
                "{method} {path}"
            );
            operations.push(id);
        }
    }
    let handlers = include_str!("../../src/http/openapi.rs");
    for id in &operations {
        assert!(handlers.contains(&format!("::{id}")), "no handler has the name of operation {id}");
    }
    // Every reference leads somewhere.
    let text = served.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(served.pointer(reference).is_some(), "{reference}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_docs_page_needs_nothing_from_elsewhere() {
    let gateway = Gateway::local().await;
    let page = gateway.get("/docs/").await;
    assert_eq!(page.status(), 200);
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("script-src 'self'") && policy.contains("connect-src 'self'"), "{policy}");
    assert!(!policy.contains("sandbox") && !policy.contains("http"), "{policy}");
    let html = page.text().await.unwrap();
    let links = html.split(['"', '\'']).filter(|text| text.ends_with(".js") || text.ends_with(".css"));
    let links: Vec<_> = links.map(str::to_owned).collect();
    assert!(links.len() >= 3, "{html}");
    for link in links {
        assert!(!link.contains("//"), "{link} is elsewhere");
        let asset = gateway.get(&format!("/docs/{}", link.trim_start_matches("./"))).await;
        assert_eq!(asset.status(), 200, "{link}");
        let text = asset.text().await.unwrap();
        if link.contains("initializer") {
            assert!(text.contains("/openapi.json"), "{text}");
            assert!(!text.contains("petstore"), "{text}");
        }
    }
    let redirect = gateway.get("/docs").await;
    assert!([200, 303, 307, 308].contains(&redirect.status().as_u16()), "{}", redirect.status());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_running_uploads_finish_and_takes_no_new_ones() {
    let gateway = Gateway::local().await;
    let request = upload("last", &RawForm::new().file(webm(300_000, 1)).end());
    let mut running = RawClient::connect(&gateway.url).await;
    running.send(&request[..200_000]).await;
    eventually("the upload runs", async || gateway.services.upload_slots.available_permits() < 2000).await;
    let mut idle = RawClient::connect(&gateway.url).await;
    idle.send(bare("GET", "/healthz")).await;
    idle.answer().await;

    gateway.services.tasks.stopping().cancel();
    let address: SocketAddr = gateway.url.trim_start_matches("http://").parse().unwrap();
    eventually("new connections are refused", async || {
        tokio::net::TcpStream::connect(address).await.is_err()
    })
    .await;
    idle.closed().await;
    running.send(&request[200_000..]).await;
    let answer = running.answer().await;
    assert_eq!(answer.status, 200, "{:?}", answer.json());
    let path = gateway.recordings_dir().join(answer.json()["file_path"].as_str().unwrap());
    assert_eq!(std::fs::read(path).unwrap(), webm(300_000, 1));
    running.closed().await;
}

/// HUP comes when the terminal it was started from is closed. reliability 16
#[tokio::test(flavor = "multi_thread")]
async fn every_polite_signal_lets_a_running_upload_finish() {
    for signal in ["TERM", "INT", "HUP"] {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::start(dir.path(), &[]);
        let mut client = RawClient::connect(&process.url).await;
        let body = RawForm::new().file(webm(1000, 1)).end();
        client.send(upload_head("s", &format!("Content-Length: {}\r\n", body.len()))).await;
        client.send(&body[..900]).await;
        eventually("the upload runs", async || {
            std::fs::read_dir(dir.path().join("recordings/.spool")).unwrap().count() == 1
        })
        .await;
        process.signal(signal);
        eventually("it takes no more connections", async || {
            tokio::net::TcpStream::connect(process.url.trim_start_matches("http://")).await.is_err()
        })
        .await;
        client.send(&body[900..]).await;
        assert_eq!(client.answer().await.status, 200, "{signal}");
        assert_eq!(within("the stop", process.ended()).await, Some(0), "{signal}");
    }
}

/// reliability 1, 16
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_no_longer_than_the_grace() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path(), &["--set", "server.shutdown_grace=1s"]);
    let mut stuck = RawClient::connect(&process.url).await;
    stuck.send(upload_head("s", "Content-Length: 100000\r\n")).await;
    stuck.send(&RawForm::new().file(webm(1000, 1)).unfinished()[..900]).await;
    eventually("the upload runs", async || {
        std::fs::read_dir(dir.path().join("recordings/.spool")).unwrap().count() == 1
    })
    .await;
    let started = Instant::now();
    process.signal("TERM");
    assert_eq!(within("the stop", process.ended()).await, Some(0));
    // One grace for the connections, one for what they leave to be tidied up.
    assert!(started.elapsed() >= Duration::from_secs(1) && started.elapsed() < Duration::from_secs(5));
    drop(stuck);
    let process = Process::start(dir.path(), &[]);
    let list = exchange(&process.url, bare("GET", "/recordings/s/list")).await;
    assert_eq!(list.json()["total_count"], 0);
    assert_eq!(std::fs::read_dir(dir.path().join("recordings/.spool")).unwrap().count(), 0);
    process.stop_in_order();
}

/// reliability 12
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_never_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path(), &[]);
    let second = command(dir.path(), &[]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains("another gateway runs on") && text.contains("--local-dir"), "{text}");
    assert_eq!(exchange(&process.url, bare("GET", "/healthz")).await.status, 200, "the first one goes on");
    let port = process.url.rsplit(':').next().unwrap().to_owned();
    let elsewhere = tempfile::tempdir().unwrap();
    let second = command(elsewhere.path(), &["--port", &port]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains("cannot listen on") && text.contains("--port"), "{text}");
    process.stop_in_order();
    Process::start(dir.path(), &[]).stop_in_order();
}

/// Each line that is not for a person is one JSON object, with the request's id and no secret.
#[tokio::test(flavor = "multi_thread")]
async fn logs_are_json_where_nobody_reads_them_and_the_process_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path(), &[]);
    let hostile = "a.webm%0D%0A{%22level%22:%22ERROR%22,%22message%22:%22forged%22}";
    let body = RawForm::new().file_as(hostile, "video/webm", webm(100, 1)).end();
    let head = upload_head("logs", &format!("X-Request-Id: my-id-1\r\nContent-Length: {}\r\n", body.len()));
    assert_eq!(exchange(&process.url, [head.as_bytes(), &body].concat()).await.status, 200);
    assert_eq!(exchange(&process.url, bare("GET", "/no%0Awhere")).await.status, 404);
    let lines = process.stop_in_order();
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).expect(line)).collect();
    let answered = |path: &str| {
        let line = lines.iter().find(|line| line["message"] == "answered" && line["http.path"] == path);
        line.unwrap_or_else(|| panic!("no line for {path}: {lines:?}"))
    };
    let line = answered("/recordings/upload/logs");
    assert_eq!(line["http.status"], 200);
    assert_eq!(line["span"]["request.id"], "my-id-1");
    assert_eq!(answered("/no%0Awhere")["http.status"], 404);
    assert!(lines.iter().any(|line| line["message"] == "stopped"), "{lines:?}");
    assert!(lines.iter().all(|line| line["message"] != "forged"));
}

/// What hostile clients cost is bounded: none of them makes the process grow.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_clients_do_not_make_it_grow() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path(), &[]);
    let file = webm(3 << 20, 1);
    assert_eq!(exchange(&process.url, upload("warm", &RawForm::new().file(&file).end())).await.status, 200);
    let parts = "------WebKitFormBoundary7MA4YWxkTrZu0gW\r\n\r\n\r\n".repeat(400_000);
    let header = format!("X: {}", "a".repeat(20 << 20));
    let bodies = [
        parts.into_bytes(),
        RawForm::new().part(header, "").end(),
        RawForm::new().text("notes", vec![b'x'; 20 << 20]).end(),
        RawForm::new().text("recording_type", vec![b'x'; 20 << 20]).end(),
        vec![b'\r'; 20 << 20],
    ];
    // Once to warm up buffers and allocator, then again.
    let mut peaks = Vec::new();
    for _ in 0..2 {
        for body in &bodies {
            let answer = exchange(&process.url, upload("hostile", body)).await;
            assert!((400..500).contains(&answer.status), "{}", answer.status);
        }
        peaks.push(process.peak_kib());
    }
    assert!(peaks[0] < 128 << 10, "a peak of {} KiB", peaks[0]);
    assert!(peaks[1] - peaks[0] < 8 << 10, "it grows: {peaks:?} KiB");
    process.stop_in_order();
}
