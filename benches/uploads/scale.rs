//! What much costs: pages of long sessions, the first answer after a start, very large uploads.
//!
//! Apart because the most of it begins with a directory that was filled past HTTP.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use recording_gateway::catalog::{Gateways, Origin, Recordings, sqlite};
use recording_gateway::domain::{
    ContentDigest, Durability, GatewayId, ObjectKey, Recording, StoreKind, StoreSet,
};
use sha2::{Digest, Sha256};
use sqlx::{AnyConnection, Connection as _, Row};

use super::client::{Connection, LARGE};
use super::growth::{Growth, grouped};
use super::process::{Process, recordings};
use super::table::Spread;
use super::{Bench, MIB, catalogue};

/// Recordings of the long session.
const LONG: usize = 10_000;
/// Recordings in a page, unless a client asks for another number.
const PAGE: usize = 100;
/// Questions of a round; their median counts.
const TIMES: usize = 50;
/// Pages that are asked for after an upload.
const AFTER: usize = 10;
/// What the catalogue knows when the gateway starts.
const SESSIONS: usize = 100;
const EACH: usize = 1000;
/// The bytes of each of those recordings.
const CONTENT: &[u8] = b"\x1a\x45\xdf\xa3 a recording";

impl Bench {
    /// The first page of a session through HTTP on a kept connection, beside the one query that it needs.
    pub(super) fn first_page(&mut self) -> anyhow::Result<()> {
        let dir = self.fresh()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(fill(dir.path(), 1, LONG))?;
        let gateway = Process::gateway(dir.path(), None, &[])?;
        let mut connection = Connection::open(gateway.address)?;
        let page: serde_json::Value = serde_json::from_str(&connection.text("/recordings/long-0/list")?)?;
        let rows = page["recordings"].as_array().map_or(0, Vec::len);
        ensure!(page["total_count"] == LONG && rows == PAGE, "{rows} of {}", page["total_count"]);
        let address = format!("sqlite://{}?mode=ro", catalogue_file(dir.path()).display());
        let mut database = runtime.block_on(AnyConnection::connect(&address))?;
        for _ in 0..self.options.rounds {
            let query = times_ms(|| runtime.block_on(one_query(&mut database)))?;
            self.samples.add("page query", query.median);
            let page = times_ms(|| connection.text("/recordings/long-0/list").map(drop))?;
            self.samples.add("page", page.median);
        }
        self.crowded.push(dir);
        Ok(())
    }

    /// One session that grows, all of it on the local disk.
    pub(super) fn session_growth(&mut self) -> anyhow::Result<()> {
        let sizes: &[usize] = if self.options.huge == 0 { &[1000, 10_000] } else { &[1000, 10_000, 100_000] };
        let mut growth = Growth::new("session", "a session on the local disk, by its recordings");
        for each in sizes.iter().copied() {
            eprintln!("a session of {each}");
            let dir = self.fresh()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(fill(dir.path(), 1, each))?;
            let gateway = Process::gateway(dir.path(), None, &[])?;
            let mut connection = Connection::open(gateway.address)?;
            growth.column(grouped(each as u64), Some(each as f64));
            let start = Instant::now();
            let page = connection.text("/recordings/long-0/list")?;
            growth.add_one("first page, the first time", "ms", start.elapsed().as_secs_f64() * 1e3);
            ensure!(page.contains(&format!("\"total_count\":{each}")), "not everything is there");
            let middle = middle(&mut connection, each)?;
            for (what, path) in [
                ("first page", "/recordings/long-0/list"),
                ("page in the middle", &middle),
                ("newest recording", "/recordings/long-0"),
                ("list of sessions", "/recordings"),
            ] {
                growth.add(what, "ms", times_ms(|| connection.text(path).map(drop))?);
            }
            // What is in the directory is looked at anew.
            let mut after = Vec::with_capacity(AFTER);
            for _ in 0..AFTER {
                connection.upload(&self.data, "long-0", 64 << 10, LARGE)?;
                let start = Instant::now();
                connection.text("/recordings/long-0/list")?;
                after.push(start.elapsed().as_secs_f64() * 1e3);
            }
            growth.add("first page after an upload", "ms", Spread::of(&after).context("no uploads")?);
            growth.add_one("peak memory", "MiB", gateway.peak_mib()?);
            self.crowded.push(dir);
        }
        self.growth.push(growth);
        Ok(())
    }

    /// One upload that grows. The least and the most of them have a target.
    pub(super) fn upload_growth(&mut self) -> anyhow::Result<()> {
        let mut sizes = vec![(MIB, "1 MiB"), (100 * MIB, "100 MiB"), (1024 * MIB, "1 GiB")];
        if self.options.huge > 0 {
            sizes.push((self.options.huge, "10 GiB"));
        }
        let mut growth = Growth::new("size", "one upload, by its size");
        for (size, label) in sizes {
            eprintln!("one upload of {label}");
            let dir = self.fresh()?;
            let gateway = Process::gateway(dir.path(), None, &[])?;
            let before = gateway.cpu()?;
            let mut connection = Connection::open(gateway.address)?;
            connection.begin_form("/recordings/upload/bench", size, false)?;
            let (mut sent, mut descriptors) = (0, None);
            for piece in self.data.pieces(size, LARGE.piece) {
                connection.send(piece, false)?;
                sent += piece.len() as u64;
                if descriptors.is_none() && sent >= size / 2 {
                    descriptors = Some(gateway.descriptors()?);
                }
            }
            connection.end_upload(false)?;
            connection.json()?;
            let peak = gateway.peak_mib()?;
            growth.column(label.to_owned(), Some(size as f64 / MIB as f64));
            growth.add_one("peak memory", "MiB", peak);
            growth.add_one("open descriptors", "files and sockets", descriptors.unwrap_or_default());
            if size >= 100 * MIB {
                // What is below the clock's tick tells nothing.
                let gib = size as f64 / (1024 * MIB) as f64;
                growth.add_one("processor time for a GiB", "s", (gateway.cpu()? - before) / gib);
            }
            if size == self.options.huge {
                self.samples.add("peak 10 GiB", peak);
            }
        }
        self.growth.push(growth);
        Ok(())
    }

    /// The most memory that one upload takes.
    pub(super) fn peak_of_a_mib(&mut self) -> anyhow::Result<()> {
        let dir = self.fresh()?;
        let gateway = Process::gateway(dir.path(), None, &[])?;
        Connection::open(gateway.address)?.upload(&self.data, "bench", MIB, LARGE)?;
        self.samples.add("peak 1 MiB", gateway.peak_mib()?);
        Ok(())
    }

    /// From the start of the process to its first answer.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        self.samples.add(
            "binary",
            std::fs::metadata(env!("CARGO_BIN_EXE_recording-gateway"))?.len() as f64 / 1024.0 / 1024.0,
        );
        let dir = self.fresh()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(fill(dir.path(), SESSIONS, EACH))?;
        for round in 0..self.options.rounds {
            rustix::fs::sync();
            let start = Instant::now();
            let gateway = Process::gateway(dir.path(), None, &[])?;
            let mut connection = Connection::open(gateway.address)?;
            connection.text("/healthz")?;
            self.samples.add("start", start.elapsed().as_secs_f64() * 1e3);
            let text = connection.text(&format!("/recordings/long-{round}/list"))?;
            self.samples.add("start page", start.elapsed().as_secs_f64() * 1e3);
            ensure!(text.contains(&format!("\"total_count\":{EACH}")), "not everything is there");
        }
        self.crowded.push(dir);
        Ok(())
    }
}

/// Some repetitions, in milliseconds.
fn times_ms(mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Spread> {
    let mut times = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Spread::of(&times).context("no repetitions")
}

/// Goes through the session page by page up to the middle. The path of the page of 100 there.
fn middle(connection: &mut Connection, each: usize) -> anyhow::Result<String> {
    let (mut cursor, mut passed) = (String::new(), 0);
    while passed < each / 2 {
        let limit = (each / 2 - passed).min(1000);
        let text = connection.text(&format!("/recordings/long-0/list?limit={limit}{cursor}"))?;
        let page: serde_json::Value = serde_json::from_str(&text)?;
        passed += page["recordings"].as_array().map_or(0, Vec::len);
        let next = page["next_cursor"].as_str().context("the session ends before its middle")?;
        cursor = format!("&cursor={next}");
    }
    ensure!(passed == each / 2, "{passed} recordings before the middle");
    Ok(format!("/recordings/long-0/list?limit=100{cursor}"))
}

/// A page by the index that is made for it, with every column that an answer shows.
async fn one_query(database: &mut AnyConnection) -> anyhow::Result<()> {
    // A bare `LIMIT $2` would be prepared anew each time it is bound.
    let rows = sqlx::query(
        "SELECT filename, sha256, content_type, original_filename, durability, local_gateway, parked_reason,
             size_bytes, in_supabase, uploaded_at
         FROM recordings WHERE session_id = $1 ORDER BY uploaded_at DESC, filename DESC
         LIMIT CAST($2 AS BIGINT)",
    )
    .bind("long-0")
    .bind(PAGE as i64 + 1)
    .fetch_all(database)
    .await?;
    ensure!(rows.len() == PAGE + 1, "{} rows", rows.len());
    for row in &rows {
        for column in 0..7 {
            std::hint::black_box(row.try_get::<Option<String>, _>(column)?);
        }
        for column in 7..10 {
            std::hint::black_box(row.try_get::<i64, _>(column)?);
        }
    }
    Ok(())
}

fn catalogue_file(dir: &Path) -> std::path::PathBuf {
    recordings(dir).join(".catalog/catalog.sqlite")
}

/// Files and rows of that many recordings in each of so many sessions, as a gateway that ran in `dir` would have left
/// them an hour ago.
async fn fill(dir: &Path, sessions: usize, each: usize) -> anyhow::Result<()> {
    // Its first start makes the catalogue and names the gateway.
    drop(Process::gateway(dir, None, &[])?);
    let name = std::fs::read_to_string(recordings(dir).join(".catalog/gateway"))?;
    let (catalog, _) = sqlite::open(&catalogue_file(dir), GatewayId(name.trim().to_owned())).await?;
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let digest = ContentDigest::from_bytes(Sha256::digest(CONTENT).into());
    for session in 0..sessions {
        let place = recordings(dir).join(format!("long-{session}"));
        std::fs::create_dir(&place)?;
        let mut batch = Vec::with_capacity(each);
        for n in 0..each {
            let uploaded = hour_ago - Duration::from_secs((each - n) as u64);
            let filename = format!("r{n:07}.webm");
            let file = std::fs::File::create(place.join(&filename))?;
            std::io::Write::write_all(&mut &file, CONTENT)?;
            file.set_modified(uploaded)?;
            batch.push(Recording {
                key: ObjectKey::parse(&format!("long-{session}/{filename}")).context("a legal key")?,
                size_bytes: CONTENT.len() as u64,
                sha256: Some(digest),
                durability: Durability::Local,
                stores: StoreSet::only(StoreKind::Local),
                uploaded_at: uploaded.into(),
                ..catalogue::recording(0, false)
            });
        }
        catalog.adopt(&batch, false, &Origin::gateway("bench")).await?;
    }
    catalog.close().await;
    // A directory that changed within three seconds is read anew for each page: its time could not tell the next change.
    std::thread::sleep(Duration::from_secs(4));
    Ok(())
}
