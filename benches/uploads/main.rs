//! The gateway beside the limits of the machine it runs on: one run, one table of ratios.
//!
//! Every case starts its own servers in an empty directory and removes both, the directory at once or in the end. Cases
//! are interleaved round by round, so that a slow minute of the machine hits all of them; see `benches/README.md` for
//! what each line means.

mod catalogue;
mod chart;
mod client;
mod cloud;
mod curves;
mod floor;
mod growth;
mod process;
mod rivals;
mod scale;
mod slow;
mod sync;
mod table;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use client::{Connection, Data, FRAMES_16K, Framing, LARGE, WRITES_16K};
use growth::Growth;
use process::{Process, recordings};
use table::Samples;

const MIB: u64 = 1 << 20;
/// Uploads at once, of so many parts of the large one each.
const MANY: u64 = 64;
const GROUPS: [&str; 11] = [
    "one",
    "many",
    "rivals",
    "small",
    "cloud",
    "content",
    "sync",
    "first-page",
    "start",
    "catalogue",
    "scale",
];

struct Options {
    /// Bytes of the large upload.
    size: u64,
    /// Bytes of the very large one; 0 leaves it out.
    huge: u64,
    rounds: usize,
    json: Option<PathBuf>,
    chart: Option<PathBuf>,
    scale_chart: Option<PathBuf>,
    groups: Vec<String>,
}

struct Bench {
    options: Options,
    data: Data,
    dir: tempfile::TempDir,
    /// Directories with many small files, which stay until the end: ext4 without a journal looks past each inode that was
    /// freed in the last minutes whenever it makes a file (`recently_deleted` in fs/ext4/ialloc.c of Linux), so that whoever
    /// comes later would pay for it.
    crowded: Vec<tempfile::TempDir>,
    samples: Samples,
    /// SHA-256 of the large upload.
    digest: String,
    /// What was wanted and is not possible here, and what it needs.
    missing: BTreeSet<String>,
    /// How figures grow.
    growth: Vec<Growth>,
}

fn main() -> anyhow::Result<()> {
    let mut options = Options {
        size: 1024 * MIB,
        huge: 10240 * MIB,
        rounds: 5,
        json: None,
        chart: None,
        scale_chart: None,
        groups: Vec::new(),
    };
    let mut place = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--bench" => {} // from cargo
            "--role" => return process::play(&value()?),
            "--quick" => (options.size, options.huge, options.rounds) = (64 * MIB, 0, 3),
            "--json" => options.json = Some(value()?.into()),
            "--chart" => options.chart = Some(value()?.into()),
            "--scale-chart" => options.scale_chart = Some(value()?.into()),
            "--rounds" => options.rounds = value()?.parse()?,
            "--dir" => place = value()?.into(),
            "--only" => options.groups = value()?.split(',').map(str::to_owned).collect(),
            _ => bail!(
                "unknown: {arg}; there are --quick, --rounds N, --json FILE, --chart FILE.svg, --scale-chart FILE.svg, --dir DIR, \
                 --only {}",
                GROUPS.join(",")
            ),
        }
    }
    if let Some(group) = options.groups.iter().find(|group| !GROUPS.contains(&group.as_str())) {
        bail!("no such group: {group}; there are {}", GROUPS.join(","));
    }
    std::fs::create_dir_all(&place)?;
    let place = place.canonicalize()?;
    let dir = tempfile::Builder::new().prefix("uploads-bench-").tempdir_in(&place)?;
    let (data, samples, missing) = (Data::new(), Samples::default(), BTreeSet::new());
    let (digest, crowded, growth) = (String::new(), Vec::new(), Vec::new());
    let mut bench = Bench { options, data, dir, crowded, samples, digest, missing, growth };
    bench.run()?;
    println!("{}", table::markdown(&bench.samples));
    for growth in &bench.growth {
        println!("{}", growth.markdown());
    }
    for missing in &bench.missing {
        println!("Left out: {missing}");
    }
    if let Some(path) = &bench.options.json {
        let json = serde_json::json!({
            "bytes": bench.options.size, "lines": table::json(&bench.samples),
            "growth": bench.growth.iter().map(Growth::json).collect::<Vec<_>>(), "missing": bench.missing,
        });
        std::fs::write(path, format!("{json:#}\n"))?;
    }
    if let Some(path) = &bench.options.chart {
        std::fs::write(path, chart::svg(&bench.samples, bench.options.size))?;
    }
    if let Some(path) = &bench.options.scale_chart {
        std::fs::write(path, curves::svg(&bench.growth))?;
    }
    Ok(())
}

impl Bench {
    fn run(&mut self) -> anyhow::Result<()> {
        self.digest = floor::hash(&self.data, self.options.size).1;
        self.write_file("large.webm", self.options.size)?;
        for round in 1..=self.options.rounds {
            eprintln!("round {round} of {}", self.options.rounds);
            if self.wanted("one") {
                self.one()?;
            }
            if self.wanted("many") {
                self.many()?;
            }
            if self.wanted("rivals") {
                self.rivals()?;
            }
            if self.wanted("small") {
                self.small()?;
            }
            if self.wanted("scale") {
                self.peak_of_a_mib()?;
                self.thousand_slow()?;
            }
            if self.wanted("cloud") {
                self.cloud()?;
            }
            if self.wanted("content") {
                self.content()?;
            }
            if self.wanted("sync") {
                self.sync()?;
            }
        }
        if self.wanted("first-page") {
            self.first_page()?;
        }
        if self.wanted("start") {
            self.start()?;
        }
        if self.wanted("catalogue") {
            let sizes: &[u64] = if self.options.huge == 0 { &[1, 10_000] } else { &[1, 10_000, 1_000_000] };
            let growth = catalogue::run(sizes, self.fresh()?.path())?;
            self.growth.push(growth);
        }
        if self.wanted("scale") {
            self.slow_growth()?;
            self.upload_growth()?;
            self.session_growth()?;
        }
        Ok(())
    }

    fn wanted(&self, group: &str) -> bool {
        self.options.groups.is_empty() || self.options.groups.iter().any(|wanted| wanted == group)
    }

    /// An empty directory, after everything written before is on the disk.
    fn fresh(&self) -> anyhow::Result<tempfile::TempDir> {
        rustix::fs::sync();
        // A virtual machine's host takes free memory back, and the next to use it pays for it: let that be nobody
        // under measurement. The file is gone before it reaches the disk.
        self.write_file("touched", self.options.size)?;
        std::fs::remove_file(self.file("touched"))?;
        Ok(tempfile::tempdir_in(self.dir.path())?)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_file(&self, name: &str, size: u64) -> anyhow::Result<()> {
        use std::io::Write;
        let mut file = std::fs::File::create(self.file(name))?;
        self.data.pieces(size, 128 << 10).try_for_each(|piece| file.write_all(piece))?;
        Ok(())
    }

    /// Limits, and one upload by several hands.
    fn one(&mut self) -> anyhow::Result<()> {
        let size = self.options.size;
        self.samples.add("sha", floor::hash(&self.data, size).0.as_secs_f64());
        self.samples.add("copy", floor::copy(&self.data, size).as_secs_f64());
        for (name, early) in [("disk", false), ("disk early", true)] {
            let dir = self.fresh()?;
            self.samples.add(name, floor::write(&self.data, size, dir.path(), early)?.as_secs_f64());
        }
        let dir = self.fresh()?;
        let discard = Process::role("discard", dir.path())?;
        let (wall, _) = self.timed_upload(&discard, LARGE, false)?;
        self.samples.add("discard", wall);

        let dir = self.fresh()?;
        let floor = Process::role("bare-loop", dir.path())?;
        let (wall, cpu) = self.timed_upload(&floor, LARGE, true)?;
        self.samples.add("floor", wall);
        self.samples.add("floor cpu", cpu);
        drop((floor, dir));

        for (name, framing) in
            [("one", LARGE), ("one, 16 KiB writes", WRITES_16K), ("one, 16 KiB frames", FRAMES_16K)]
        {
            self.gateway_one(name, framing)?;
        }
        for (name, protocol) in [("one, curl", "--http1.1"), ("one, curl, HTTP/2", "--http2-prior-knowledge")]
        {
            let dir = self.fresh()?;
            let gateway = self.warm_gateway(dir.path(), None, &[])?;
            let wall = self.curl_form(&gateway.url(), "large.webm", "local", &[protocol])?;
            self.samples.add(name, wall);
        }
        for (name, protocol) in [("one, curl, TLS", "--http1.1"), ("one, curl, TLS, HTTP/2", "--http2")] {
            let dir = self.fresh()?;
            let gateway = self.warm_gateway(dir.path(), None, &[])?;
            let Some((_proxy, url)) = Process::tls_before(&gateway, dir.path())? else {
                self.missing.insert("TLS by nginx: benches/rivals/install nginx, and openssl".into());
                continue;
            };
            let wall = self.curl_form(&url, "large.webm", "local", &["--insecure", protocol])?;
            self.samples.add(name, wall);
        }
        Ok(())
    }

    fn gateway_one(&mut self, name: &str, framing: Framing) -> anyhow::Result<()> {
        let dir = self.fresh()?;
        let gateway = self.warm_gateway(dir.path(), None, &[])?;
        let (wall, cpu) = self.timed_upload(&gateway, framing, true)?;
        self.samples.add(name, wall);
        self.samples.add(&format!("{name} cpu"), cpu);
        self.samples.add(&format!("{name} peak"), gateway.peak_mib()?);
        Ok(())
    }

    /// A gateway that has taken an upload already, to wherever they go.
    fn warm_gateway(
        &self,
        dir: &Path,
        cloud: Option<&Process>,
        settings: &[&str],
    ) -> anyhow::Result<Process> {
        let gateway = Process::gateway(dir, cloud, settings)?;
        // Whether its cloud can be reached the gateway finds out by itself; how soon is not measured.
        let deadline = Instant::now() + Duration::from_secs(10);
        let wanted = if cloud.is_some() { "supabase" } else { "local" };
        loop {
            let answer = Connection::open(gateway.address)?.upload(&self.data, "warm", 64 << 10, LARGE)?;
            if answer.json["storage_type"] == wanted {
                return Ok(gateway);
            }
            ensure!(Instant::now() < deadline, "the gateway does not reach its cloud");
        }
    }

    /// Wall and processor seconds of one large upload.
    fn timed_upload(&self, server: &Process, framing: Framing, hashes: bool) -> anyhow::Result<(f64, f64)> {
        let before = server.cpu()?;
        let answer =
            Connection::open(server.address)?.upload(&self.data, "bench", self.options.size, framing)?;
        ensure!(!hashes || answer.json["sha256"] == self.digest, "other bytes arrived: {}", answer.json);
        Ok((answer.whole.as_secs_f64(), server.cpu()? - before))
    }

    fn many(&mut self) -> anyhow::Result<()> {
        let dir = self.fresh()?;
        let floor = Process::role("bare-loop", dir.path())?;
        self.many_to("floor 64", &floor)?;
        drop((floor, dir));
        self.gateway_many()
    }

    fn gateway_many(&mut self) -> anyhow::Result<()> {
        let dir = self.fresh()?;
        let gateway = Process::gateway(dir.path(), None, &[])?;
        self.many_to("many", &gateway)
    }

    fn many_to(&mut self, name: &str, server: &Process) -> anyhow::Result<()> {
        let size = self.options.size / MANY;
        let before = server.cpu()?;
        let wall = self.at_once(MANY as usize, |n| {
            let mut connection = Connection::open(server.address)?;
            connection.upload(&self.data, &format!("bench-{n}"), size, LARGE)?;
            Ok(())
        })?;
        self.samples.add(name, wall);
        self.samples.add(&format!("{name} cpu"), server.cpu()? - before);
        self.samples.add(&format!("{name} peak"), server.peak_mib()?);
        Ok(())
    }

    /// Runs `work` in that many threads; the seconds from the first one's start to the last one's end. The threads tell
    /// both: with few cores whoever waits for them beside them may be late.
    fn at_once(
        &self,
        threads: usize,
        work: impl Fn(usize) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<f64> {
        let barrier = Barrier::new(threads);
        std::thread::scope(|scope| {
            let (work, barrier) = (&work, &barrier);
            let timed = move |n| -> anyhow::Result<(Instant, Instant)> {
                barrier.wait();
                let start = Instant::now();
                work(n)?;
                Ok((start, Instant::now()))
            };
            let workers: Vec<_> = (0..threads).map(|n| scope.spawn(move || timed(n))).collect();
            let mut times = Vec::with_capacity(threads);
            for worker in workers {
                times.push(worker.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
            }
            let start = times.iter().map(|(start, _)| *start).min().context("no threads")?;
            let end = times.iter().map(|(_, end)| *end).max().context("no threads")?;
            Ok((end - start).as_secs_f64())
        })
    }

    fn small(&mut self) -> anyhow::Result<()> {
        const CLIENTS: usize = 64;
        const SIZE: u64 = 64 << 10;
        let each = if self.options.huge == 0 { 8 } else { 32 };
        for (name, threads, each) in [("small floor 1", 1, CLIENTS * each), ("small floor", CLIENTS, each)] {
            let dir = self.fresh()?;
            self.samples.add(name, floor::small_files(&self.data, SIZE, threads, each, dir.path())?);
            self.crowded.push(dir);
        }
        let rate = |server: &Process| -> anyhow::Result<f64> {
            let wall = self.at_once(CLIENTS, |n| {
                let mut connection = Connection::open(server.address)?;
                let session = format!("bench-{n}");
                (0..each).try_for_each(|_| connection.upload(&self.data, &session, SIZE, LARGE).map(drop))
            })?;
            Ok((CLIENTS * each) as f64 / wall)
        };
        let dir = self.fresh()?;
        let discarded = rate(&Process::role("discard", dir.path())?)?;
        let dir = self.fresh()?;
        let gateway = self.warm_gateway(dir.path(), None, &[])?;
        let before = gateway.cpu()?;
        let uploaded = rate(&gateway)?;
        self.samples.add("small discard", discarded);
        self.samples.add("small", uploaded);
        self.samples.add("small cpu ms each", (gateway.cpu()? - before) * 1e3 / (CLIENTS * each) as f64);
        self.crowded.push(dir);
        Ok(())
    }

    fn content(&mut self) -> anyhow::Result<()> {
        let size = self.options.size;
        let dir = self.fresh()?;
        let gateway = Process::gateway(dir.path(), None, &[])?;
        let answer = Connection::open(gateway.address)?.upload(&self.data, "bench", size, LARGE)?;
        let path = answer.json["file_path"].as_str().context("no path")?.to_owned();
        let nginx = Process::nginx(dir.path(), &recordings(dir.path()), "")?;
        if nginx.is_none() {
            self.missing.insert("nginx serving files: benches/rivals/install nginx".into());
        }
        // An upload goes past the page cache, and whoever came first would pay for the disk.
        std::io::copy(&mut File::open(recordings(dir.path()).join(&path))?, &mut std::io::sink())?;
        let gateway = (&gateway, format!("/recordings/{path}/content"), "content", "ranges");
        let nginx = nginx.as_ref().map(|nginx| (nginx, format!("/{path}"), "nginx content", "nginx ranges"));
        for (server, path, whole, ranges) in nginx.into_iter().chain([gateway]) {
            let mut connection = Connection::open(server.address)?;
            connection.get(&path, Some((0, 0)))?;
            let start = Instant::now();
            ensure!(connection.get(&path, None)? == size, "{whole}: not the whole file");
            self.samples.add(whole, start.elapsed().as_secs_f64());
            let start = Instant::now();
            for n in 0..1000u64 {
                // All over the file, in no order.
                let first = n.wrapping_mul(7_919_000_003) % (size - (64 << 10));
                connection.get(&path, Some((first, first + (64 << 10) - 1)))?;
            }
            self.samples.add(ranges, start.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
