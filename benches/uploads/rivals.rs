//! Servers that others would take instead, from the package registries, at the same work in the same run.
//!
//! `benches/rivals/install` brings them; one that is not there is named as missing. Each is started anew for every case
//! and gets a small upload first, as the gateway does.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::client::{Connection, Data, LARGE};
use super::process::{Process, free_address, installed};
use super::{Bench, MANY};

/// One of them.
pub struct Rival {
    /// How its samples' names begin; the table has it in its lines.
    name: &'static str,
    upload: Upload,
    /// Starts it in that directory. `None` if it is not installed.
    start: fn(&Path) -> anyhow::Result<Option<Process>>,
    /// What `benches/rivals/install` calls it.
    install: &'static str,
}

/// How it takes a file.
enum Upload {
    /// The gateway's form, at a path that ends with the name.
    Form(&'static str),
    Put,
    Tus,
}

const RIVALS: [Rival; 6] = [
    Rival { name: "FastAPI", upload: Upload::Form("/plain"), start: fastapi, install: "fastapi" },
    Rival { name: "FastAPI tuned", upload: Upload::Form("/tuned"), start: fastapi, install: "fastapi" },
    Rival { name: "FastAPI streamed", upload: Upload::Form("/streamed"), start: fastapi, install: "fastapi" },
    Rival { name: "@tus/server", upload: Upload::Tus, start: tus, install: "tus" },
    Rival { name: "dufs", upload: Upload::Put, start: dufs, install: "dufs" },
    Rival { name: "nginx PUT", upload: Upload::Put, start: nginx, install: "nginx" },
];

impl Bench {
    /// One large upload, then as many at once as the gateway gets, by each of them and by the gateway.
    pub(super) fn rivals(&mut self) -> anyhow::Result<()> {
        // With these groups the gateway had its turn in this round.
        if !self.wanted("one") {
            self.gateway_one("one", LARGE)?;
        }
        self.each_rival(|bench, rival, server| {
            let before = server.cpu()?;
            let start = Instant::now();
            let answer = rival.send(server, &bench.data, "large", bench.options.size)?;
            let digest = &answer["sha256"];
            ensure!(digest.is_null() || *digest == bench.digest, "other bytes arrived: {answer}");
            bench.take(rival.name, "", start.elapsed().as_secs_f64(), before, server)
        })?;
        if !self.wanted("many") {
            self.gateway_many()?;
        }
        self.each_rival(|bench, rival, server| {
            let before = server.cpu()?;
            let size = bench.options.size / MANY;
            let wall = bench.at_once(MANY as usize, |n| {
                rival.send(server, &bench.data, &format!("one-of-many-{n}"), size).map(drop)
            })?;
            bench.take(rival.name, " 64", wall, before, server)
        })
    }

    fn each_rival(
        &mut self,
        work: impl Fn(&mut Self, &Rival, &Process) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for rival in &RIVALS {
            let dir = self.fresh()?;
            let Some(server) = (rival.start)(dir.path()).with_context(|| rival.name)? else {
                let missing = format!("{}: benches/rivals/install {}", rival.name, rival.install);
                self.missing.insert(missing);
                continue;
            };
            rival.send(&server, &self.data, "warm", 64 << 10).with_context(|| rival.name)?;
            work(self, rival, &server).with_context(|| rival.name)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        name: &str,
        case: &str,
        wall: f64,
        cpu_before: f64,
        server: &Process,
    ) -> anyhow::Result<()> {
        self.samples.add(&format!("{name}{case}"), wall);
        self.samples.add(&format!("{name}{case} cpu"), server.cpu()? - cpu_before);
        self.samples.add(&format!("{name}{case} peak"), server.peak_mib()?);
        Ok(())
    }
}

impl Rival {
    /// Uploads, on a connection of its own; what it answers, if that is more than a status.
    fn send(&self, server: &Process, data: &Data, name: &str, size: u64) -> anyhow::Result<Value> {
        let mut connection = Connection::open(server.address)?;
        match self.upload {
            Upload::Form(path) => {
                return Ok(connection.form(data, &format!("{path}/{name}"), size, LARGE)?.json);
            }
            Upload::Put => connection.put(data, &format!("/{name}.webm"), size)?,
            Upload::Tus => connection.tus(data, "/files", size)?,
        }
        Ok(Value::Null)
    }
}

/// Where `benches/rivals` has its own files, and where its script puts what it brings.
fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/rivals")
}

fn brought() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-rivals")
}

fn fastapi(dir: &Path) -> anyhow::Result<Option<Process>> {
    let python = brought().join("python/bin/python");
    if !brought().join("python/pinned").exists() {
        return Ok(None);
    }
    let address = free_address()?;
    let mut command = Command::new(python);
    command
        .args(["-m", "uvicorn", "forms:app", "--log-level", "warning", "--no-access-log", "--app-dir"])
        .arg(files())
        .args(["--port", &address.port().to_string()])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // Forms are spooled there: on the disk under measurement.
        .env("TMPDIR", dir)
        .current_dir(dir);
    Process::listening(&mut command, address).map(Some)
}

fn tus(dir: &Path) -> anyhow::Result<Option<Process>> {
    let Some(node) = installed("node").filter(|_| files().join("node_modules/pinned").exists()) else {
        return Ok(None);
    };
    let address = free_address()?;
    let mut command = Command::new(node);
    command.arg(files().join("tus.mjs")).arg(address.port().to_string()).current_dir(dir);
    Process::listening(&mut command, address).map(Some)
}

fn dufs(dir: &Path) -> anyhow::Result<Option<Process>> {
    let program = brought().join("bin/dufs");
    if !program.exists() {
        return Ok(None);
    }
    let address = free_address()?;
    let mut command = Command::new(program);
    command
        .args(["--allow-upload", "--log-format", "", "--bind", "127.0.0.1"])
        .args(["--port", &address.port().to_string()])
        .arg(dir);
    Process::listening(command.stderr(Stdio::null()), address).map(Some)
}

fn nginx(dir: &Path) -> anyhow::Result<Option<Process>> {
    let Some(program) = installed("nginx") else { return Ok(None) };
    // How it was built is told there.
    let built = Command::new(program).arg("-V").output()?.stderr;
    if !String::from_utf8_lossy(&built).contains("http_dav_module") {
        return Ok(None);
    }
    let kept = dir.join("kept");
    std::fs::create_dir(&kept)?;
    // Its default buffer of 16 KiB makes it slower.
    Process::nginx(
        dir,
        &kept,
        "location / { dav_methods PUT; client_max_body_size 0; client_body_buffer_size 128k; }",
    )
}
