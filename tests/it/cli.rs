//! The real binary: what it prints, how it ends, and how its client commands speak to a gateway.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use assert_cmd::Command;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::any;
use futures_util::{FutureExt as _, stream};
use recording_gateway::catalog::Action;
use recording_gateway::service::jobs::{JOB_KINDS, JobState};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// What a command did.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by itself"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The command in a folder of its own, with nothing of this process's environment.
fn gateway(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"));
    command.current_dir(dir).env_clear().args(args);
    command
}

fn run(args: &[&str]) -> Ran {
    let dir = TempDir::new().unwrap();
    gateway(dir.path(), args).output().unwrap().into()
}

/// One request that reached the scripted server.
#[derive(Clone)]
pub struct Seen {
    pub line: String,
    pub headers: HeaderMap,
    body: Vec<u8>,
}

/// A server on a free port that answers as told and remembers what it was asked.
pub struct Scripted {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    pub fn start(answer: impl Fn(&Seen) -> Response + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel::<()>();
        let remembered = seen.clone();
        let handler = move |request: Request| {
            let (answer, remembered) = (answer.clone(), remembered.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
                let seen =
                    Seen { line: format!("{} {}", head.method, head.uri), headers: head.headers, body };
                let response = answer(&seen);
                remembered.lock().unwrap().push(seen);
                response
            }
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let app = axum::Router::new().fallback(any(handler));
                let serve = axum::serve(listener, app);
                tokio::select! { served = serve.into_future() => served.unwrap(), _ = stopped => {} }
            });
        });
        Self { url, seen, stop: Some(stop), thread: Some(thread) }
    }

    fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|seen| seen.line.clone()).collect()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

pub fn reply(status: u16, body: &Value) -> Response {
    let kind = if status < 400 { "application/json" } else { "application/problem+json" };
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("content-type", kind)
        .body(Body::from(body.to_string()))
        .unwrap()
}

/// The parts of a form: name, file name, bytes.
fn parts(seen: &Seen) -> Vec<(String, Option<String>, Vec<u8>)> {
    let kind = seen.headers["content-type"].to_str().unwrap();
    let boundary = multer::parse_boundary(kind).unwrap();
    let body = seen.body.clone();
    let read = async {
        let mut form = multer::Multipart::new(stream::iter([Ok::<_, std::io::Error>(body)]), boundary);
        let mut parts = Vec::new();
        while let Some(field) = form.next_field().await.unwrap() {
            let name = field.name().unwrap().to_owned();
            let filename = field.file_name().map(str::to_owned);
            parts.push((name, filename, field.bytes().await.unwrap().to_vec()));
        }
        parts
    };
    read.now_or_never().expect("all of it is here already")
}

#[test]
fn help_and_version_tell_what_there_is() {
    let help = run(&["--help"]);
    assert_eq!(help.code, 0);
    for word in [
        "serve",
        "check",
        "upload",
        "migrate",
        "sync",
        "jobs",
        "audit",
        "ls",
        "rm",
        "verify",
        "catalogue",
        "config",
        "openapi",
        "completions",
        "--set",
        "--config",
    ] {
        assert!(help.out.contains(word), "{word} is not in\n{}", help.out);
    }
    assert!(!help.out.contains("\n  keys "), "there are none yet");
    assert_eq!(run(&["--version"]).out, format!("recording-gateway {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn usage_mistakes_end_with_2() {
    for args in [
        &["nonsense"][..],
        &["--nonsense"],
        &["upload", "x.webm"],
        &["upload", "--session", "s"],
        &["config"],
        &["completions", "tcsh"],
        &["--set", "server.port"],
        &["--set", "port=1"],
        &["ls", "--url", "ftp://host"],
        &["ls", "--port", "0"],
        &["ls", "--url", "http://127.0.0.1:1", ".."],
        &["rm", "--yes", "--url", "http://127.0.0.1:1", "session", ""],
        &["upload", "--session", "a/b", "x.webm"],
        &["upload", "--session", "s", "--type", "A", "x.webm"],
        &["ls", "--url", "127.0.0.1:8000"],
        &["rm", "--yes", "session", "a/b.webm"],
        &["sync", "--session", ".s"],
        &["verify", "--session", "a b"],
        &["jobs", "ls", "--state", "foo"],
        &["jobs", "ls", "--kind", "foo"],
        &["audit", "--action", "foo"],
        &["audit", "--since", "yesterday"],
        &["migrate"],
        &["migrate", "absent-directory"],
        &["migrate", ".", "--session", "a b"],
        &["migrate", ".", "--recording-type", "A"],
        &["migrate", ".", "--jobs", "0"],
        &["migrate", ".", "--dry-run", "--report", "x"],
    ] {
        let ran = run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}{}", ran.out, ran.err);
        assert!(!ran.err.is_empty() && ran.out.is_empty(), "{args:?}");
    }
}

/// Whoever mistypes is told which argument, what may be there, and once; a gateway is not asked.
#[test]
fn mistakes_are_told_with_what_to_do() {
    let told = |args: &[&str], words: &[&str]| {
        let ran = run(args);
        for word in words {
            assert_eq!(ran.err.matches(word).count(), 1, "{args:?}: {word} is not once in {}", ran.err);
        }
    };
    told(&["upload", "--session", "a/b", "x.webm"], &["--session", "a session id is 1 to 128 characters"]);
    told(&["ls", "--url", "localhost:8000"], &["--url", "http://127.0.0.1:8000"]);
    told(&["--host", "nonsense.invalid", "--port", "0"], &["cannot listen on", "address of this machine"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    told(&["--port", &port], &["cannot listen on", "another port with --port"]);
    // Not even root may make a directory there.
    told(&["--port", "0", "--local-dir", "/proc/nothing"], &["cannot make /proc/nothing", "--local-dir"]);
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("recordings"), "").unwrap();
    let ran: Ran = gateway(dir.path(), &["--port", "0"]).output().unwrap().into();
    assert!(ran.code == 1 && ran.err.contains("--local-dir"), "{}", ran.err);
    let ran: Ran = gateway(dir.path(), &["--port", "0", "--local-dir", "other"])
        .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none")
        .output()
        .unwrap()
        .into();
    assert!(ran.code == 1 && ran.err.contains("check its address (DATABASE_URL"), "{}", ran.err);
    assert_eq!(ran.err.matches("refused").count(), 1, "{}", ran.err);
}

/// The words that the command line knows are the gateway's.
#[test]
fn the_words_of_jobs_and_changes_are_all_known() {
    let jobs = run(&["jobs", "ls", "--help"]).out;
    for word in JOB_KINDS.into_iter().chain(JobState::ALL.map(JobState::as_str)) {
        assert!(jobs.contains(word), "{word}: {jobs}");
    }
    let audit = run(&["audit", "--help"]).out;
    for word in Action::ALL.map(Action::as_str) {
        assert!(audit.contains(word), "{word}: {audit}");
    }
}

#[test]
fn config_show_prints_every_value_with_its_source_and_no_secret() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("config")).unwrap();
    fs::write(dir.path().join("config/default.toml"), "[sync]\ninterval = \"5s\"\n").unwrap();
    fs::write(dir.path().join("own.toml"), "[uploads]\nmax_bytes = \"5GiB\"\n").unwrap();
    fs::write(dir.path().join(".env"), "SUPABASE_SERVICE_ROLE_KEY=hidden-thing\n").unwrap();
    let ran = |json: &[&str]| -> Ran {
        gateway(dir.path(), &["config", "show", "--config", "own.toml", "--port", "9000"])
            .args(["--set", "uploads.allowed_types=audio/*"])
            .args(json)
            .env("SUPABASE_URL", "https://abc.supabase.co")
            .output()
            .unwrap()
            .into()
    };
    let text = ran(&[]);
    assert_eq!((text.code, text.err.as_str()), (0, ""));
    let row = |key: &str| {
        let line = text.out.lines().find(|line| line.split_whitespace().next() == Some(key));
        line.unwrap_or_else(|| panic!("{key} is not in\n{}", text.out))
            .split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
    };
    assert_eq!(row("server.port"), ["9000", "flag", "--port"]);
    assert_eq!(row("server.host"), ["127.0.0.1", "default"]);
    assert_eq!(row("sync.interval"), ["5s", "config/default.toml:2"]);
    assert_eq!(row("uploads.max_bytes"), ["5GiB", "own.toml:2"]);
    assert_eq!(row("uploads.allowed_types"), ["audio/*", "flag", "--set", "uploads.allowed_types"]);
    assert_eq!(row("supabase.url"), ["https://abc.supabase.co", "environment", "SUPABASE_URL"]);
    assert_eq!(row("supabase.key"), ["***", ".env", "SUPABASE_SERVICE_ROLE_KEY"]);

    let json = ran(&["--json"]);
    let values: Vec<Value> = serde_json::from_str(&json.out).unwrap();
    assert_eq!(values.len() + 1, text.out.lines().count());
    assert!(
        values.contains(&json!({"key": "sync.interval", "value": "5s", "source": "config/default.toml:2"}))
    );
    assert!(!format!("{}{}{}", text.out, json.out, json.err).contains("hidden-thing"));
}

#[test]
fn a_wrong_configuration_ends_with_2_and_tells_everything() {
    for command in [&["serve"][..], &[], &["check"], &["config", "show"], &["ls"]] {
        let dir = TempDir::new().unwrap();
        let ran: Ran = gateway(dir.path(), command)
            .args(["--set", "server.prot=1", "--config", "absent.toml"])
            .env("GATEWAY_SYNC__INTERVAL", "30")
            .env("SUPABASE_URL", "https://abc.supabase.co")
            .output()
            .unwrap()
            .into();
        assert_eq!(ran.code, 2, "{command:?}: {}", ran.err);
        assert!(ran.err.contains("4 problems"), "{}", ran.err);
        for told in ["server.prot", "server.port?", "absent.toml", "needs a unit", "supabase.key is missing"]
        {
            assert!(ran.err.contains(told), "{told} is not in {}", ran.err);
        }
    }
}

#[test]
fn completions_and_the_interface_description() {
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef recording-gateway"), ("fish", "complete -c")]
    {
        let ran = run(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains(word), "{shell}: {}", ran.out);
    }
    let ran = run(&["openapi"]);
    let document: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let dir = TempDir::new().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = std::process::Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"))
        .current_dir(dir.path())
        .env_clear()
        .args(["completions", "bash"])
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn no_gateway_is_told_with_what_to_do() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    for command in [&["ls"][..], &["rm", "--yes", "session"], &["upload", "--session", "s", "-"]] {
        let ran = run(&[command, &["--port", &port]].concat());
        assert_eq!(ran.code, 1, "{command:?}");
        assert!(ran.err.contains(&format!("no gateway answers at http://127.0.0.1:{port}")), "{}", ran.err);
        assert!(ran.err.contains("recording-gateway serve"), "{}", ran.err);
    }
}

#[test]
fn something_else_at_that_address_is_told() {
    let page = Scripted::start(|_| Response::builder().status(404).body(Body::from("<html>")).unwrap());
    let ran = run(&["ls", "--url", &page.url]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("is another program there?"), "{}", ran.err);

    let moved = Scripted::start(|_| {
        Response::builder().status(308).header("location", "https://x/").body(Body::empty()).unwrap()
    });
    let ran = run(&["ls", "--url", &moved.url]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("https://x/"), "{}", ran.err);
}

/// Answers an upload as a gateway does.
fn stored(seen: &Seen) -> Response {
    let parts = parts(seen);
    let bytes = &parts.last().unwrap().2;
    reply(
        200,
        &json!({
            "success": true,
            "file_path": "talk.1/name.webm",
            "file_size": bytes.len(),
            "message": "Recording saved locally: name.webm",
            "sha256": hex::encode(Sha256::digest(bytes)),
            "public_url": null,
        }),
    )
}

#[test]
fn upload_streams_forms_and_prints_a_line_each() {
    let server = Scripted::start(stored);
    let dir = TempDir::new().unwrap();
    let large: Vec<u8> = (0..1_000_003_u32).map(|n| (n % 251) as u8).collect();
    fs::write(dir.path().join("large.webm"), &large).unwrap();
    fs::write(dir.path().join("a \"b\".webm"), b"small").unwrap();
    let ran: Ran = gateway(
        dir.path(),
        &["upload", "large.webm", "a \"b\".webm", "--session", "talk.1", "--type", "interview"],
    )
    .args(["--url", &server.url])
    .output()
    .unwrap()
    .into();
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(
        ran.out,
        "large.webm: Recording saved locally: name.webm\na \"b\".webm: Recording saved locally: name.webm\n"
    );

    let seen = server.seen.lock().unwrap().clone();
    assert_eq!(server.lines(), ["POST /recordings/upload/talk.1", "POST /recordings/upload/talk.1"]);
    let form = parts(&seen[0]);
    assert_eq!(form[0], ("recording_type".into(), None, b"interview".to_vec()));
    assert_eq!((form[1].0.as_str(), form[1].1.as_deref()), ("recording", Some("large.webm")));
    assert!(form[1].2 == large, "the bytes differ");
    assert_eq!(seen[0].headers["content-length"], seen[0].body.len().to_string().as_str());
    assert_eq!(parts(&seen[1])[1].1.as_deref(), Some("a %22b%22.webm"));
}

#[test]
fn upload_reads_stdin_without_knowing_its_length() {
    let server = Scripted::start(stored);
    let dir = TempDir::new().unwrap();
    let ran: Ran = gateway(dir.path(), &["upload", "-", "-s", "live", "--json", "--url", &server.url])
        .write_stdin(vec![7_u8; 600_000])
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.code, 0, "{}", ran.err);
    let line: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((line["file"].as_str(), line["file_size"].as_u64()), (Some("-"), Some(600_000)));
    let seen = server.seen.lock().unwrap()[0].clone();
    assert!(!seen.headers.contains_key("content-length"));
    let form = parts(&seen);
    assert_eq!(form[0].2, b"session");
    assert!(form[1].2 == vec![7_u8; 600_000], "the bytes differ");
}

#[test]
fn a_refused_upload_ends_while_stdin_is_still_open() {
    // Answers before the form has ended, as a gateway does when a live recording grows too large.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut heard = Vec::new();
        while !heard.windows(5).any(|window| window == b"AAAAA") {
            let mut block = [0; 4096];
            let read = connection.read(&mut block).unwrap();
            assert_ne!(read, 0, "the form ended early");
            heard.extend_from_slice(&block[..read]);
        }
        let body = r#"{"detail": "The recording is larger than 1 GiB."}"#;
        let head = format!(
            "HTTP/1.1 413 .\r\ncontent-type: application/problem+json\r\ncontent-length: {}",
            body.len()
        );
        write!(connection, "{head}\r\nconnection: close\r\n\r\n{body}").unwrap();
    });
    let dir = TempDir::new().unwrap();
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"))
        .current_dir(dir.path())
        .env_clear()
        .args(["upload", "-", "-s", "live", "--url", &url])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = command.stdin.take().unwrap();
    stdin.write_all(b"AAAAA").unwrap();
    let (tell, ended) = mpsc::channel();
    let waiting = std::thread::spawn(move || tell.send(Ran::from(command.wait_with_output().unwrap())));
    let ran = ended.recv_timeout(Duration::from_secs(30));
    drop(stdin);
    let ran = ran.expect("the command waits for bytes that nobody wants");
    waiting.join().unwrap().unwrap();
    server.join().unwrap();
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("The recording is larger than 1 GiB. (status 413)"), "{}", ran.err);
}

#[test]
fn one_failed_file_does_not_stop_the_others() {
    let server = Scripted::start(|seen| match parts(seen)[1].2.as_slice() {
        b"refused" => reply(
            415,
            &json!({"title": "no", "status": 415, "detail": "Send audio or video.", "code": "unsupported_type",
                    "request_id": "req-7"}),
        ),
        b"garbled" => reply(200, &json!({"success": true, "message": "fine", "sha256": "00"})),
        _ => stored(seen),
    });
    let dir = TempDir::new().unwrap();
    for name in ["refused", "garbled", "good"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    fs::create_dir(dir.path().join("folder")).unwrap();
    let args = ["upload", "refused", "absent", "folder", "garbled", "good", "-s", "s", "--url", &server.url];
    let ran: Ran = gateway(dir.path(), &args).output().unwrap().into();
    assert_eq!(ran.code, 1);
    assert_eq!(ran.out, "good: Recording saved locally: name.webm\n");
    let told: Vec<_> = ran.err.lines().collect();
    assert_eq!(told.len(), 4, "{}", ran.err);
    for (line, words) in told.iter().zip([
        &["refused: Send audio or video.", "status 415", "unsupported_type", "req-7"][..],
        &["absent: cannot be opened", "No such file"],
        &["folder: is a folder"],
        &["garbled: the gateway stored other bytes"],
    ]) {
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }

    let ran: Ran = gateway(dir.path(), &args).arg("--json").output().unwrap().into();
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    let lines: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(
        lines[0],
        json!({"file": "refused", "success": false, "error":
               {"detail": "Send audio or video.", "status": 415, "code": "unsupported_type", "request_id": "req-7"}})
    );
    assert_eq!(lines[4]["success"], true);
}

/// Three pages of two rows.
fn pages(seen: &Seen, field: &str, row: impl Fn(usize) -> Value) -> Response {
    let page = match seen.line.split_once("cursor=") {
        None => 0,
        Some((_, "c%2B1")) => 1,
        Some((_, "c%2B2")) => 2,
        Some((_, other)) => panic!("cursor {other}"),
    };
    let rows: Vec<_> = (page * 2..page * 2 + 2).map(row).collect();
    let next = (page < 2).then(|| format!("c+{}", page + 1));
    reply(
        200,
        &json!({"session_id": "talk", field: rows, "total_count": 6, "next_cursor": next, "degraded": page == 1}),
    )
}

fn recording(n: usize) -> Value {
    json!({"filename": format!("n{n}.webm"), "file_size": 1536 * (n + 1), "upload_time": format!("2024-12-0{}T10:00:00Z", n + 1),
           "storage_type": "local", "stores": ["supabase", "local"], "extra": n})
}

#[test]
fn ls_follows_the_pages_to_the_end() {
    let server = Scripted::start(|seen| pages(seen, "recordings", recording));
    let text = run(&["ls", "talk", "--url", &server.url]);
    assert_eq!(text.code, 0, "{}", text.err);
    assert!(text.err.contains("the cloud could not be asked"), "{}", text.err);
    let lines: Vec<_> = text.out.lines().collect();
    assert_eq!(lines[0], "UPLOADED              SIZE     STORES          FILENAME");
    assert_eq!(lines[1], "2024-12-01T10:00:00Z  1.5 KiB  supabase+local  n0.webm");
    assert_eq!(lines.len(), 7);
    assert!(server.lines().iter().all(|line| line.starts_with("GET /recordings/talk/list?limit=")));

    let json = run(&["ls", "talk", "--json", "--url", &server.url]);
    let listing: Value = serde_json::from_str(&json.out).unwrap();
    let rows: Vec<_> = (0..6).map(recording).collect();
    assert_eq!(
        listing,
        json!({"session_id": "talk", "recordings": rows, "total_count": 6, "degraded": true})
    );
}

#[test]
fn ls_without_a_session_lists_the_sessions() {
    let row = |n: usize| json!({"session_id": format!("talk\u{1b}[{n}"), "count": n, "bytes": 10, "newest": "2024-12-01T10:00:00Z"});
    let server = Scripted::start(move |seen| pages(seen, "sessions", row));
    let ran = run(&["ls", "--url", &format!("{}/", server.url)]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(lines[0], "NEWEST                RECORDINGS  SIZE  SESSION");
    assert_eq!(lines[6], "2024-12-01T10:00:00Z  5           10 B  talk?[5");
    assert!(server.lines()[0].starts_with("GET /recordings?limit="));
}

#[test]
fn ls_gives_up_on_a_listing_without_end() {
    let server = Scripted::start(|_| reply(200, &json!({"recordings": [], "next_cursor": "same"})));
    let ran = run(&["ls", "talk", "--url", &server.url]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("same page"), "{}", ran.err);
}

#[test]
fn rm_deletes_only_when_told_so() {
    let server = Scripted::start(|seen| match seen.line.as_str() {
        "DELETE /recordings/talk/a%20b%23c.webm" => reply(
            202,
            &json!({"success": true, "message": "Deletion from Supabase is pending: x", "pending": ["supabase"]}),
        ),
        "DELETE /recordings/talk" => reply(200, &json!({"success": true, "message": "Gone."})),
        _ => reply(404, &json!({"detail": "There is no such recording.", "request_id": "req-1"})),
    });
    let asked = run(&["rm", "talk", "a b#c.webm", "--url", &server.url]);
    assert_eq!(asked.code, 2);
    assert!(asked.err.contains("--yes"), "{}", asked.err);
    assert_eq!(server.lines(), Vec::<String>::new());

    let one = run(&["rm", "--yes", "talk", "a b#c.webm", "--url", &server.url]);
    assert_eq!((one.code, one.out.as_str()), (0, "Deletion from Supabase is pending: x\n"));
    let all = run(&["rm", "-y", "talk", "--json", "--url", &server.url]);
    assert_eq!(serde_json::from_str::<Value>(&all.out).unwrap()["message"], "Gone.");
    let absent = run(&["rm", "-y", "talk", "absent", "--url", &server.url]);
    assert_eq!((absent.code, absent.out.as_str()), (1, ""));
    assert!(absent.err.contains("There is no such recording. (status 404, request req-1)"), "{}", absent.err);
}

#[test]
fn check_tells_each_thing_with_its_remedy() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let other = Scripted::start(|_| reply(200, &json!({"hello": "world"})));
    let port = other.url.rsplit(':').next().unwrap();
    let ran: Ran = gateway(dir.path(), &["check", "--json", "--port", port, "--local-dir", "file/below"])
        .args(["--set", "storage.min_free=1000000TiB"])
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.code, 1, "{}", ran.err);
    let lines: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    let line = |name: &str| lines.iter().find(|line| line["name"] == name).unwrap();
    assert_eq!(line("configuration")["status"], "warning");
    for (name, detail, remedy) in [
        ("folder", "is no folder", "storage.local_dir"),
        ("disk", "every upload is refused", "storage.min_free"),
        ("port", "another program", "--port"),
    ] {
        let line = line(name);
        assert_eq!(line["status"], "failure", "{line}");
        assert!(line["detail"].as_str().unwrap().contains(detail), "{line}");
        assert!(line["remedy"].as_str().unwrap().contains(remedy), "{line}");
    }

    let running = Scripted::start(|_| reply(200, &json!({"version": "9.9.9"})));
    let port = running.url.rsplit(':').next().unwrap();
    let args = ["check", "--port", port, "--local-dir", "here", "--set", "storage.min_free=0"];
    let ran: Ran = gateway(dir.path(), &args).output().unwrap().into();
    assert!(ran.out.contains("gateway 9.9.9 is running"), "{}", ran.out);
    assert!(ran.out.contains("here will be made at start"), "{}", ran.out);
    assert!(ran.out.contains("recordings stay on this disk -> set SUPABASE_URL"), "{}", ran.out);
    assert!(!dir.path().join("here").exists());
}
