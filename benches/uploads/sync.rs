//! What was kept here goes to the cloud: against `curl` sending the same files straight to the same server, two at a
//! time as the gateway does by itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::client::{Connection, LARGE};
use super::process::{Process, recordings};
use super::{Bench, MIB};

/// Uploads at once while the recordings are brought here: that is not measured.
const CLIENTS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(600);

impl Bench {
    /// Many small recordings and one very large one.
    pub(super) fn sync(&mut self) -> anyhow::Result<()> {
        let (many, large) = if self.options.huge == 0 { (100, 256 * MIB) } else { (1000, 4096 * MIB) };
        for (count, size, straight, through) in
            [(many, MIB, "sync many straight", "sync many"), (1, large, "sync large straight", "sync large")]
        {
            let dir = self.fresh()?;
            let cloud = Process::role("cloud", dir.path())?;
            let files = self.keep_here(dir.path(), count, size)?;
            rustix::fs::sync();
            let (wall, _) = self.curl_all(&cloud, dir.path(), &files)?;
            self.samples.add(straight, wall);
            rustix::fs::sync();
            let start = Instant::now();
            let gateway = Process::gateway(dir.path(), Some(&cloud), &[])?;
            drained(&gateway)?;
            self.samples.add(through, start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Uploads to a gateway that has no cloud; the files it kept.
    fn keep_here(&self, dir: &Path, count: usize, size: u64) -> anyhow::Result<Vec<PathBuf>> {
        let gateway = Process::gateway(dir, None, &[])?;
        let clients = CLIENTS.min(count);
        self.at_once(clients, |client| {
            let mut connection = Connection::open(gateway.address)?;
            (client..count).step_by(clients).try_for_each(|_| {
                connection.upload(&self.data, &format!("bench-{client}"), size, LARGE).map(drop)
            })
        })?;
        let mut files = Vec::new();
        for session in std::fs::read_dir(recordings(dir))? {
            let session = session?;
            if session.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            for file in std::fs::read_dir(session.path())? {
                files.push(file?.path());
            }
        }
        ensure!(files.len() == count, "{} files were kept, not {count}", files.len());
        Ok(files)
    }

    fn curl_all(&self, cloud: &Process, dir: &Path, files: &[PathBuf]) -> anyhow::Result<(f64, Vec<u8>)> {
        let mut config = String::new();
        for (n, file) in files.iter().enumerate() {
            let next = if n == 0 { "" } else { "next\n" };
            writeln!(
                config,
                "{next}url = \"http://{}/storage/v1/object/interview-recordings/straight/{n}.webm\"\n\
                 upload-file = \"{}\"\nrequest = \"POST\"\nsilent\nfail\noutput = \"/dev/null\"\n\
                 header = \"Content-Type: video/webm\"\nheader = \"Authorization: Bearer {}\"",
                cloud.address,
                file.display(),
                cloud.key
            )?;
        }
        let path = dir.join("curl.config");
        std::fs::write(&path, config)?;
        let start = Instant::now();
        let status = std::process::Command::new("curl")
            .args(["--parallel", "--parallel-max", "2", "--config"])
            .arg(&path)
            .status()
            .context("curl is needed")?;
        ensure!(status.success(), "curl: {status}");
        Ok((start.elapsed().as_secs_f64(), Vec::new()))
    }
}

/// Waits until the gateway says that nothing is only here, and that it let its own copies go.
fn drained(gateway: &Process) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = Connection::open(gateway.address)?.text("/metrics")?;
        let figure =
            |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        if figure("gateway_unsynced_recordings ") == Some(0.0) && figure("gateway_jobs_waiting ") == Some(0.0)
        {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not everything reached the cloud:\n{metrics}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
