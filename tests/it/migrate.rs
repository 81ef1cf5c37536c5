//! `migrate`: the real command against a real gateway. What it plans, what it loads, and that killing either of them
//! anywhere leaves nothing out and makes nothing double.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::http::header::RETRY_AFTER;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::cli::{Scripted, reply};
use crate::support::gateway::Gateway;
use crate::support::media::{sha256, webm};
use crate::support::{PATIENCE, eventually};

fn migrate(cwd: &Path, url: &str, tree: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"));
    command.current_dir(cwd).env_clear().arg("migrate").arg(tree).args(["--url", url]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a run did.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The lines of `--json`: one a file, and the totals.
    fn lines(&self) -> (Vec<Value>, Value) {
        lines(&self.out)
    }
}

fn lines(text: &str) -> (Vec<Value>, Value) {
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.pop().expect("there are totals");
    (lines, last["totals"].clone())
}

async fn run(cwd: &Path, url: &str, tree: &Path, more: &[&str]) -> Ran {
    let mut command = migrate(cwd, url, tree, more);
    Ran::of(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap())
}

/// Writes a file that was last changed this many seconds after some moment long ago.
fn write(tree: &Path, path: &str, bytes: &[u8], second: u64) {
    let path = tree.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000 + second);
    File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
}

fn by_path<'a>(lines: &'a [Value], path: &str) -> &'a Value {
    lines.iter().find(|line| line["path"] == path).unwrap_or_else(|| panic!("{path} is not in {lines:#?}"))
}

async fn list(url: &str, session: &str) -> Vec<Value> {
    let answer = reqwest::get(format!("{url}/recordings/{session}/list?limit=1000")).await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["next_cursor"], Value::Null, "the tests' sessions fit one page");
    answer["recordings"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_the_plan_and_changes_nothing() {
    let gateway = Gateway::local().await;
    let (tree, cwd) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(tree.path(), "Talk 1/day/a.webm", &webm(3000, 1), 2);
    write(tree.path(), "b/b.webm", &webm(2000, 2), 1);
    let before = || fs::read_dir(tree.path()).unwrap().count();
    let ran = run(cwd.path(), &gateway.url, tree.path(), &["--dry-run"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
    let told: Vec<Vec<&str>> = ran.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(told[1], ["b", "2.0", "KiB", "video/webm", "b/b.webm"], "the oldest first: {}", ran.out);
    assert_eq!(told[2], ["Talk-1", "2.9", "KiB", "video/webm", "Talk", "1/day/a.webm"]);
    assert!(ran.out.contains("2 files (4.9 KiB) would go into 2 sessions; 0 left out"), "{}", ran.out);

    write(tree.path(), "top.webm", &webm(10, 3), 3);
    write(tree.path(), "b/notes.txt", b"words", 3);
    write(tree.path(), ".DS_Store", b"x", 3);
    let ran = run(cwd.path(), &gateway.url, tree.path(), &["--dry-run", "--json"]).await;
    assert_eq!(ran.code, Some(1), "two files are for a person to decide on");
    let (files, totals) = ran.lines();
    assert_eq!(by_path(&files, "b/b.webm")["outcome"], "planned");
    let reason = |path| by_path(&files, path)["reason"].as_str().unwrap().to_owned();
    assert!(reason("top.webm").contains("--session"), "{}", reason("top.webm"));
    assert!(reason("b/notes.txt").contains("which the gateway does not take"), "{}", reason("b/notes.txt"));
    assert_eq!(
        (&totals["files"], &totals["left_out"], &totals["to_decide"]),
        (&2.into(), &3.into(), &2.into())
    );
    let ran =
        run(cwd.path(), &gateway.url, tree.path(), &["--dry-run", "--session", "s", "--exclude", ".txt"])
            .await;
    assert_eq!(ran.code, Some(0), "everything was decided: {}{}", ran.out, ran.err);

    assert_eq!(gateway.get_json("/recordings").await["total_count"], 0);
    assert_eq!((before(), fs::read_dir(cwd.path()).unwrap().count()), (4, 0), "no file was made");
    gateway.stop().await;
    let ran = run(cwd.path(), "http://127.0.0.1:1", tree.path(), &["--dry-run"]).await;
    assert!(ran.code == Some(1) && ran.err.contains("no gateway answers"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_tree_arrives_whole_and_a_repeat_sends_nothing() {
    let gateway = Gateway::local().await;
    let (tree, cwd) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let names = [
        "plain.webm",
        "Zoë & 日本 (1).webm",
        "quote\".webm",
        "100%22 back\\slash\\.webm",
        "line\nbreak\t.webm",
        "deep/er/plain.webm",
    ];
    let mut expected = BTreeMap::new();
    for (i, name) in names.iter().enumerate() {
        let bytes = webm(2000 + i, i as u64);
        expected.insert((*name).to_owned(), sha256(&bytes));
        // Some in one second.
        write(tree.path(), &format!("talk/{name}"), &bytes, 10 - i as u64 / 2);
    }
    // Equal bytes are as many recordings, and equal names in two sessions are two.
    let twin = webm(5000, 77);
    write(tree.path(), "talk/twin 1.webm", &twin, 11);
    write(tree.path(), "talk/twin 2.webm", &twin, 12);
    write(tree.path(), "other/plain.webm", &twin, 1);
    expected.insert("twin 1.webm".into(), sha256(&twin));
    expected.insert("twin 2.webm".into(), sha256(&twin));
    write(tree.path(), "talk/empty.webm", b"", 1);
    write(tree.path(), "talk/.hidden.webm", &twin, 1);
    write(tree.path(), "one two/x.webm", &webm(100, 5), 1);
    write(tree.path(), "one+two/x.webm", &webm(100, 6), 1);
    std::os::unix::fs::symlink("plain.webm", tree.path().join("talk/link.webm")).unwrap();
    assert!(Command::new("mkfifo").arg(tree.path().join("talk/pipe.webm")).status().unwrap().success());

    let ran = run(cwd.path(), &gateway.url, tree.path(), &["--json", "--report", "first.jsonl"]).await;
    assert_eq!(ran.code, Some(1), "some are left out: {}", ran.err);
    let (files, totals) = ran.lines();
    assert_eq!(
        (&totals["loaded"], &totals["compared"], &totals["listed"]),
        (&9.into(), &9.into(), &9.into())
    );
    assert_eq!(
        (&totals["failed"], &totals["different"], &totals["to_decide"]),
        (&0.into(), &0.into(), &5.into())
    );
    for (path, word) in [
        ("talk/empty.webm", "empty"),
        ("talk/.hidden.webm", "hidden"),
        ("talk/link.webm", "symbolic link"),
        ("talk/pipe.webm", "no regular file"),
        ("one two/x.webm", "\"one+two\""),
        ("one+two/x.webm", "session one-two"),
    ] {
        let line = by_path(&files, path);
        assert_eq!(line["outcome"], "left_out", "{line}");
        assert!(line["reason"].as_str().unwrap().contains(word), "{line}");
    }
    let rows = list(&gateway.url, "talk").await;
    assert_eq!(rows[0]["original_filename"], "twin 2.webm", "the newest stays the newest");
    assert_eq!(rows[7]["original_filename"], "deep/er/plain.webm", "the oldest of the oldest second");
    let listed: BTreeMap<String, String> = rows
        .iter()
        .map(|row| {
            let text = |field: &str| row[field].as_str().unwrap().to_owned();
            (text("original_filename"), text("sha256"))
        })
        .collect();
    assert_eq!(listed, expected);
    let (reported, report_totals) = lines(&fs::read_to_string(cwd.path().join("first.jsonl")).unwrap());
    assert_eq!((reported.len(), &report_totals), (files.len(), &totals));
    let line = by_path(&reported, "talk/twin 1.webm");
    let filename = line["filename"].as_str().unwrap();
    assert_eq!(gateway.bytes(&format!("talk/{filename}")).await, twin);
    assert_eq!((&line["outcome"], &line["sha256"]), (&"loaded".into(), &sha256(&twin).into()));

    let ran = run(cwd.path(), &gateway.url, tree.path(), &[]).await;
    assert!(
        ran.out.contains("0 loaded (0 B), 9 skipped, 6 left out (5 for you to decide on)"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("9 of 9 files"), "{}", ran.out);
    assert!(
        ran.err.contains("left out: talk/empty.webm is empty") && !ran.err.contains("hidden"),
        "{}",
        ran.err
    );
    let reports = fs::read_dir(cwd.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let named = reports.filter(|name| name.to_str().unwrap().starts_with("migrate-report-2"));
    assert_eq!(named.count(), 1, "a report by default");
    assert_eq!(list(&gateway.url, "talk").await.len(), 8);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_in_past_the_gateway_is_compared_and_not_doubled() {
    let gateway = Gateway::local().await;
    let (tree, cwd) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(tree.path(), "s/same.webm", &webm(3000, 1), 1);
    write(tree.path(), "s/other.webm", &webm(3000, 2), 2);
    // As a crash between the file and its row leaves it, or an operator: no row, no digest.
    write(&gateway.recordings_dir(), "s/session_recording_s_20240101_000000.webm", &webm(3000, 1), 1);
    assert_eq!(list(&gateway.url, "s").await[0]["sha256"], Value::Null);
    let ran = run(cwd.path(), &gateway.url, tree.path(), &["--json"]).await;
    let (files, totals) = ran.lines();
    assert_eq!(
        (ran.code, &totals["compared"], &totals["listed"]),
        (Some(0), &2.into(), &2.into()),
        "{}",
        ran.out
    );
    let same = by_path(&files, "s/same.webm");
    assert_eq!(
        (&same["outcome"], &same["reason"]),
        (&"skipped".into(), &"compared by reading it back".into())
    );
    assert_eq!(same["filename"], "session_recording_s_20240101_000000.webm");
    assert_eq!(by_path(&files, "s/other.webm")["outcome"], "loaded", "of the same size only");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_does_not_come_back_and_is_told() {
    let gateway = Gateway::local().await;
    let (tree, cwd) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(tree.path(), "s/a.webm", &webm(3000, 1), 1);
    assert_eq!(run(cwd.path(), &gateway.url, tree.path(), &[]).await.code, Some(0));
    assert_eq!(gateway.delete("/recordings/s").await.0, 200);
    let ran = run(cwd.path(), &gateway.url, tree.path(), &[]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("different: s/a.webm the gateway does not list"), "{}", ran.err);
    assert!(ran.out.contains("1 different") && ran.out.contains("0 of 1 files"), "{}", ran.out);
    assert_eq!(list(&gateway.url, "s").await.len(), 0);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_gateway_is_waited_for_and_a_refusal_is_not() {
    let (tree, cwd) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(tree.path(), "s/a.webm", &webm(3000, 1), 1);
    write(tree.path(), "t/refused.webm", &webm(3000, 2), 2);
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    static KEYS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let server = |patient: bool| {
        TRIES.store(0, Ordering::SeqCst);
        Scripted::start(move |seen| {
            let problem = |status, detail| reply(status, &json!({"detail": detail, "code": "c"}));
            if seen.line.starts_with("POST /recordings/upload/s") {
                let told = |name: &str| seen.headers[name].to_str().unwrap().to_owned();
                KEYS.lock().unwrap().insert(told("idempotency-key"));
                let digest = format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(webm(3000, 1))));
                assert_eq!(told("repr-digest"), digest);
            }
            let row = json!({"filename": "n.webm", "file_size": 3000, "sha256": sha256(&webm(3000, 1))});
            match seen.line.split('?').next().unwrap() {
                "GET /config.json" => reply(200, &json!({"allowed_types": ["video/*"], "max_bytes": 4000})),
                "POST /recordings/upload/t" => problem(415, "Send something else."),
                "POST /recordings/upload/s" if !patient || TRIES.fetch_add(1, Ordering::SeqCst) < 2 => {
                    let mut full = problem(507, "The disk is full.");
                    full.headers_mut().insert(RETRY_AFTER, "1".parse().unwrap());
                    full
                }
                "POST /recordings/upload/s" => reply(200, &row),
                "GET /recordings/s/list" if TRIES.load(Ordering::SeqCst) > 2 => {
                    reply(200, &json!({"recordings": [row]}))
                }
                _ => reply(200, &json!({"recordings": [], "degraded": true})),
            }
        })
    };
    let waiting = server(true);
    let begun = Instant::now();
    let ran = run(cwd.path(), &waiting.url, tree.path(), &["--json"]).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "twice a second was asked for");
    let (files, totals) = ran.lines();
    assert_eq!(
        (ran.code, &totals["loaded"], &totals["failed"]),
        (Some(1), &1.into(), &1.into()),
        "{}",
        ran.err
    );
    assert_eq!(totals["degraded"], true);
    assert!(ran.err.contains("the cloud could not be asked"), "{}", ran.err);
    assert_eq!(by_path(&files, "t/refused.webm")["reason"], "Send something else. (status 415, code c)");
    assert!(
        ran.err.contains("The disk is full. (status 507, code c); trying again for up to 5m"),
        "{}",
        ran.err
    );
    drop(waiting);

    let full = server(false);
    let ran = run(cwd.path(), &full.url, tree.path(), &["--wait", "1s", "--jobs", "1", "--json"]).await;
    let (files, totals) = ran.lines();
    assert_eq!((ran.code, &totals["failed"], &totals["compared"]), (Some(1), &1.into(), &Value::Null));
    assert!(by_path(&files, "s/a.webm")["reason"].as_str().unwrap().contains("The disk is full."));
    assert!(ran.err.contains("given up: The disk is full."), "{}", ran.err);
    let (reported, _) = lines(&newest_report(cwd.path()));
    assert_eq!(KEYS.lock().unwrap().len(), 1, "every try in every run carries the same key");
    let told = by_path(&reported, "t/refused.webm");
    assert_eq!(
        (&told["outcome"], told["reason"].as_str().unwrap().contains("the same command")),
        (&"left_out".into(), true)
    );
}

fn newest_report(cwd: &Path) -> String {
    let reports = fs::read_dir(cwd).unwrap().map(|entry| entry.unwrap().path());
    fs::read_to_string(reports.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap()).unwrap())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_in_order_and_the_same_command_goes_on() {
    const FILES: usize = 400;
    let gateway = Gateway::local().await;
    let (tree, cwd) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for i in 0..FILES {
        write(tree.path(), &format!("{}.webm", i), &webm(2000, i as u64), i as u64);
    }
    let child = migrate(cwd.path(), &gateway.url, tree.path(), &["--session", "all"]).spawn().unwrap();
    eventually("some are there", async || stored(&gateway.recordings_dir()) >= 20).await;
    signal(&child, "INT");
    let ran = Ran::of(tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap());
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("once more stops at once") && ran.err.contains("stopped. The same"),
        "{}",
        ran.err
    );
    let (reported, totals) = lines(&newest_report(cwd.path()));
    let there = stored(&gateway.recordings_dir());
    assert!(there < FILES, "it was stopped on the way");
    assert_eq!(
        (reported.len(), totals["loaded"].as_u64()),
        (FILES, Some(there as u64)),
        "what was sent was waited for"
    );

    let ran = run(cwd.path(), &gateway.url, tree.path(), &["--session", "all", "--json"]).await;
    let (_, totals) = ran.lines();
    assert_eq!(
        (ran.code, totals["skipped"].as_u64(), &totals["compared"], &totals["listed"]),
        (Some(0), Some(there as u64), &FILES.into(), &FILES.into())
    );
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_interrupt_ends_at_once() {
    const SLOW: Duration = Duration::from_secs(5);
    static BEGUN: AtomicUsize = AtomicUsize::new(0);
    let server = Scripted::start(|seen| match seen.line.split('?').next().unwrap() {
        "GET /config.json" => reply(200, &json!({"allowed_types": ["video/*"], "max_bytes": 4000})),
        "GET /recordings/s/list" => reply(200, &json!({"recordings": []})),
        "POST /jobs" => reply(201, &json!({"id": "j"})),
        _ => {
            BEGUN.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(SLOW);
            reply(503, &json!({"detail": "Too late."}))
        }
    });
    let (tree, cwd) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(tree.path(), "s/a.webm", &webm(3000, 1), 1);
    write(tree.path(), "s/b.webm", &webm(3000, 2), 2);
    let mut child = migrate(cwd.path(), &server.url, tree.path(), &[]).spawn().unwrap();
    eventually("a file is being sent", async || BEGUN.load(Ordering::SeqCst) == 1).await;
    let begun = Instant::now();
    signal(&child, "INT");
    let mut told = String::new();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    err.read_line(&mut told).unwrap();
    assert!(told.contains("once more stops at once"), "{told}");
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(begun.elapsed() < SLOW, "it did not wait for the answer");
    let (_, totals) = lines(&newest_report(cwd.path()));
    assert_eq!(totals["left_out"], 2);
}

/// A gateway that can be killed, on a port it gets again.
struct Process {
    dir: PathBuf,
    port: u16,
    child: Child,
}

impl Process {
    fn start(dir: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { dir: dir.to_owned(), port, child: Self::spawn(dir, port) }
    }

    fn spawn(dir: &Path, port: u16) -> Child {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"));
        command.current_dir(dir).env_clear().args([
            "serve",
            "--log-level",
            "warn",
            "--port",
            &port.to_string(),
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn listens(&self) {
        eventually("the gateway listens", async || TcpStream::connect(("127.0.0.1", self.port)).is_ok())
            .await;
    }

    fn kill_and_start_again(&mut self) {
        kill(&mut self.child);
        self.child = Self::spawn(&self.dir, self.port);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
}

/// Files in the gateway's sessions.
fn stored(recordings: &Path) -> usize {
    let sessions = fs::read_dir(recordings).into_iter().flatten().flatten();
    let visible = sessions.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    visible.map(|session| fs::read_dir(session.path()).unwrap().count()).sum()
}

/// A tree of small recordings with odd names, and what each session has to have.
fn large_tree(tree: &Path, files: usize) -> BTreeMap<String, Vec<String>> {
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for i in 0..files {
        let directory = ["plain", "Zoë's talks", "日本", "a b c", "x.y", "with-dash", "Üb", "z"][i % 8];
        let session = ["plain", "Zo--s-talks", "--", "a-b-c", "x.y", "with-dash", "-b", "z"][i % 8];
        let name = match i % 5 {
            0 => format!("take {i}.webm"),
            1 => format!("täke/{i}/interview.webm"),
            2 => format!("100%22 \"{i}\".webm"),
            3 => format!("{i}\n.webm"),
            _ => format!("{i}"),
        };
        // Every hundredth has the bytes of the one eight before, in the same session.
        let seed = if i % 100 == 99 { i - 8 } else { i };
        let bytes = webm(1000 + seed % 4000, seed as u64);
        // Three in the same second.
        write(tree, &format!("{directory}/{name}"), &bytes, i as u64 / 3);
        expected.entry(session.to_owned()).or_default().push(sha256(&bytes));
    }
    expected.values_mut().for_each(|digests| digests.sort());
    expected
}

/// The digests of a session's recordings; those that the gateway does not know are read.
async fn digests(url: &str, session: &str) -> Vec<String> {
    let mut digests = Vec::new();
    for row in list(url, session).await {
        assert_eq!(row["missing"], false, "{row}");
        digests.push(match row["sha256"].as_str() {
            Some(sha256) => sha256.to_owned(),
            None => {
                let path = row["file_path"].as_str().unwrap();
                let content = reqwest::get(format!("{url}/recordings/{path}/content")).await.unwrap();
                sha256(&content.bytes().await.unwrap())
            }
        });
    }
    digests.sort();
    digests
}

/// Runs the command until nothing is killed any more. `kills` says at how many stored files who is killed.
async fn migrated_through_kills(files: usize, kills: &[(usize, char)]) {
    let (tree, cwd, home) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let expected = large_tree(tree.path(), files);
    let mut gateway = Process::start(home.path());
    let url = gateway.url();
    gateway.listens().await;
    let recordings = home.path().join("recordings");
    let start = || migrate(cwd.path(), &url, tree.path(), &["--jobs", "8"]).spawn().unwrap();
    let mut command = start();
    for (at, who) in kills {
        eventually("that many are there", async || stored(&recordings) >= *at).await;
        assert!(command.try_wait().unwrap().is_none(), "it is still at work at {at}");
        match who {
            'g' => gateway.kill_and_start_again(),
            _ => {
                kill(&mut command);
                command = start();
            }
        }
    }
    let ran = tokio::task::spawn_blocking(|| command.wait_with_output().unwrap());
    let ran = Ran::of(tokio::time::timeout(4 * PATIENCE, ran).await.unwrap().unwrap());
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    let said = format!(
        "{files} of {files} files have a recording with their size and SHA-256; their 8 sessions have {files} recordings"
    );
    assert!(ran.out.contains(&said), "{}", ran.out);
    for (session, expected) in &expected {
        assert!(digests(&url, session).await == *expected, "session {session} has other recordings");
    }
    assert_eq!(stored(&recordings), files, "as many files as recordings");

    let ran = run(cwd.path(), &url, tree.path(), &["--json"]).await;
    let (_, totals) = ran.lines();
    assert_eq!(
        (ran.code, &totals["loaded"], &totals["skipped"], &totals["listed"]),
        (Some(0), &0.into(), &files.into(), &files.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_files_through_four_kills_end_with_equal_counts_and_digests() {
    migrated_through_kills(2000, &[(300, 'm'), (800, 'g'), (1100, 'm'), (1600, 'm')]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "half a minute: the gateway is killed often enough to hit every place between a file and its row"]
async fn however_often_the_gateway_is_killed_nothing_is_double() {
    let kills: Vec<_> = (1..60).map(|n| (n * 30, 'g')).collect();
    migrated_through_kills(2000, &kills).await;
}
