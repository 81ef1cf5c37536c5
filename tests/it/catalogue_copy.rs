//! `catalogue copy` with the real binary: what it moves, what it refuses, and how it goes on after an interruption.

use assert_cmd::Command;
use recording_gateway::catalog::{Arrival, Origin, Recordings, SqlCatalog, sqlite};
use recording_gateway::domain::{
    Durability, Filename, GatewayId, ObjectKey, Recording, SessionId, StoreKind, StoreSet,
};
use serde_json::Value;
use sqlx::Row as _;
use time::OffsetDateTime;
use url::Url;

use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::media::webm;
use crate::support::postgres;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

async fn copy(dir: &std::path::Path, args: &[&str]) -> Ran {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"));
    command.current_dir(dir).env_clear().args(["catalogue", "copy", "--local-dir", "recordings"]).args(args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

async fn execute(url: &Url, statement: &'static str) -> u64 {
    let pool = sqlx::PgPool::connect(url.as_str()).await.unwrap();
    let done = sqlx::query(statement).execute(&pool).await.unwrap().rows_affected();
    pool.close().await;
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_goes_on_where_it_was_on_postgres() {
    let Some(url) = postgres::database("moving a catalogue to PostgreSQL").await else { return };
    let gateway = Gateway::local().await;
    let mut stored = Vec::new();
    for seed in 0..5 {
        let bytes = webm(3000, seed);
        let (status, answer) = gateway.upload("s", bytes.clone()).await;
        assert_eq!(status, 200, "{answer}");
        stored.push((answer["file_path"].as_str().unwrap().to_owned(), bytes));
    }
    let (deleted, _) = stored.pop().unwrap();
    assert_eq!(gateway.delete(&format!("/recordings/{deleted}")).await.0, 200);
    let list = gateway.get("/recordings/s/list").await.text().await.unwrap();
    let id = gateway.services.catalog.gateway_id().clone();
    let (port_dir, running) = (gateway.recordings_dir(), ["--to", url.as_str()]);
    let ran = copy(port_dir.parent().unwrap(), &running).await;
    assert_eq!(ran.code, 1, "not while a gateway runs");
    assert!(ran.err.contains("another gateway runs"), "{}", ran.err);
    let dir = gateway.stop().await;

    assert_eq!(copy(dir.path(), &[]).await.code, 2, "it has to be told where to");
    assert_eq!(copy(dir.path(), &["--to", "mysql://x/y"]).await.code, 2);
    let ran = copy(dir.path(), &["--to", url.as_str(), "--json"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(told["equal"], true);
    let tables = told["tables"].as_array().unwrap();
    let count = |name: &str| tables.iter().find(|table| table["table"] == name).unwrap()["target"].clone();
    assert_eq!((count("recordings"), count("tombstones")), (4.into(), 1.into()));
    assert!(count("audit").as_u64().unwrap() >= 6, "{told}");
    assert!(tables.len() >= 9, "{told}");
    // Once more: compared, not written; and as text.
    let ran = copy(dir.path(), &["--to", url.as_str()]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("recordings") && ran.out.contains("equal"), "{}", ran.out);

    // What was copied away does not start any more.
    let mut old = Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"));
    old.current_dir(dir.path()).env_clear().args(["--local-dir", "recordings", "--port", "0"]);
    let old = tokio::task::spawn_blocking(move || {
        old.timeout(std::time::Duration::from_secs(20)).output().unwrap()
    })
    .await
    .unwrap();
    assert_eq!(old.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&old.stderr).contains("copied to PostgreSQL"));

    let settings = vec![("catalog.url".to_owned(), url.to_string())];
    let gateway = Gateway::start_in(dir, settings).await;
    assert_eq!(*gateway.services.catalog.gateway_id(), id);
    assert_eq!(gateway.get("/recordings/s/list").await.text().await.unwrap(), list);
    for (path, bytes) in &stored {
        assert!(gateway.bytes(path).await == *bytes);
    }
    assert_eq!(gateway.delete(&format!("/recordings/{deleted}")).await.0, 404, "its tombstone came along");
    // The audit stays append-only.
    let rows = gateway.services.catalog.audit(&Default::default()).await;
    assert!(rows.is_ok());
    let path = &stored[0].0;
    assert_eq!(gateway.delete(&format!("/recordings/{path}")).await.0, 200);
    let dir = gateway.stop().await;
    // Repeated by mistake long after: the deleted one does not come back, and the difference is told.
    let ran = copy(dir.path(), &["--to", url.as_str()]).await;
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(ran.out.contains("DIFFERENT"), "{}", ran.out);
    let gateway = Gateway::start_in(dir, vec![("catalog.url".to_owned(), url.to_string())]).await;
    assert_eq!(gateway.names("s").await.len(), 3);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_rows_of_another_origin_is_left_alone() {
    let Some(url) = postgres::database("a target that is not empty").await else { return };
    let first = Gateway::local().await;
    assert_eq!(first.upload("s", webm(3000, 1)).await.0, 200);
    let first = first.stop().await;
    let on_postgres = Gateway::start(&[("catalog.url", url.as_str())]).await;
    assert_eq!(on_postgres.upload("t", webm(3000, 2)).await.0, 200);
    on_postgres.stop().await;
    let ran = copy(first.path(), &["--to", url.as_str()]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("give an empty database"), "{}", ran.err);
    assert_eq!(execute(&url, "DELETE FROM recordings WHERE session_id = 's'").await, 0);
    // The embedded one still starts.
    let gateway = Gateway::start_in(first, Vec::new()).await;
    assert_eq!(gateway.names("s").await.len(), 1);
    gateway.stop().await;
}

async fn fill(catalog: &SqlCatalog, count: usize) {
    let session = SessionId::parse("s").unwrap();
    let recording = |n: usize| Recording {
        key: ObjectKey::new(session.clone(), Filename::parse(&format!("r{n}.webm")).unwrap()),
        size_bytes: 5_000_000_000,
        sha256: None,
        content_type: "video/webm".into(),
        original_filename: Some(format!("März \"{n}\"\\\n.webm")),
        durability: Durability::Local,
        stores: StoreSet::only(StoreKind::Local),
        held_by: None,
        uploaded_at: OffsetDateTime::from_unix_timestamp(1_700_000_000 + n as i64).unwrap(),
        parked_reason: None,
        upload_id: format!("u{n}"),
    };
    let recordings: Vec<Recording> = (0..count).map(recording).collect();
    assert_eq!(catalog.adopt(&recordings, true, &Origin::gateway("test")).await.unwrap(), count as u64);
    let arrival = Arrival {
        recording: &Recording { original_filename: Some("a\0b".into()), ..recording(count) },
        name_from: None,
        sync: false,
        parent: None,
        request: None,
        answer: &|_| String::new(),
    };
    catalog.commit(arrival, &Origin::gateway("test")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_copy_is_not_run_on_and_goes_on() {
    let Some(url) = postgres::database("a copy that is interrupted").await else { return };
    const COUNT: usize = 33_000;
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("recordings/.catalog");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("gateway"), "g1").unwrap();
    let (catalog, _) = sqlite::open(&place.join("catalog.sqlite"), GatewayId("g1".into())).await.unwrap();
    fill(&catalog, COUNT).await;
    recording_gateway::catalog::Gateways::close(&catalog).await;

    // Killed as soon as there are rows in the target.
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"));
    command.current_dir(dir.path()).env_clear().stdout(std::process::Stdio::null());
    command.args(["catalogue", "copy", "--local-dir", "recordings", "--to", url.as_str()]);
    let mut child = command.spawn().unwrap();
    let pool = sqlx::PgPool::connect(url.as_str()).await.unwrap();
    eventually("the copy has begun", async || {
        let counted = sqlx::query("SELECT count(*) FROM audit").fetch_one(&pool).await;
        counted.is_ok_and(|row| row.get::<i64, _>(0) > 0)
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    let left: i64 = sqlx::query("SELECT count(*) FROM recordings").fetch_one(&pool).await.unwrap().get(0);
    assert!(left < COUNT as i64, "it was interrupted");
    let config = crate::support::gateway::config(dir.path(), &[("catalog.url".to_owned(), url.to_string())]);
    let refused = recording_gateway::app::App::build(&config).await.err().expect("no gateway on half a copy");
    assert!(format!("{refused:#}").contains("was interrupted"), "{refused:#}");

    let ran = copy(dir.path(), &["--to", url.as_str(), "--json"]).await;
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM recordings WHERE local_gateway = 'g1' AND size_bytes = 5000000000),
             (SELECT original_filename FROM recordings WHERE filename = 'r7.webm'),
             (SELECT original_filename FROM recordings WHERE filename = 'r33000.webm'),
             (SELECT count(*) FROM jobs WHERE state = 'open' AND gateway = 'g1' AND parent_id IS NULL)",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(row.get::<i64, _>(0), COUNT as i64 + 1);
    assert_eq!(row.get::<String, _>(1), "März \"7\"\\\n.webm");
    assert_eq!(row.get::<String, _>(2), "ab");
    assert_eq!(row.get::<i64, _>(3), COUNT as i64);
    pool.close().await;
}
