//! With a cloud behind, and what is fed by `curl`.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};

use super::Bench;
use super::client::{Connection, LARGE};
use super::process::Process;

impl Bench {
    /// `curl` straight and through the gateway; how fast a client gets its bytes away while the cloud is well or a black hole.
    pub(super) fn cloud(&mut self) -> anyhow::Result<()> {
        // The client sends faster than a line carries: the answer may take as long as the line.
        let patient: &[&str] = &["supabase.patience=60s"];
        for (role, line, settings) in [("cloud", "", &[][..]), ("cloud-on-a-line", ", line", patient)] {
            let dir = self.fresh()?;
            let cloud = Process::role(role, dir.path())?;
            let gateway = self.warm_gateway(dir.path(), Some(&cloud), settings)?;
            self.samples.add(&format!("cloud direct{line}"), self.curl_straight(&cloud)?);
            let wall = self.curl_form(&gateway.url(), "large.webm", "supabase", &["--http1.1"])?;
            self.samples.add(&format!("cloud{line}"), wall);
        }
        for (role, name) in [("cloud", "client healthy"), ("black-hole", "client black hole")] {
            let dir = self.fresh()?;
            let cloud = Process::role(role, dir.path())?;
            // No upload before this one: it would wait for the black hole, and teach the gateway.
            let settings: &[&str] = if role == "cloud" { &[] } else { &["supabase.patience=100ms"] };
            let gateway = Process::gateway(dir.path(), Some(&cloud), settings)?;
            let mut connection = Connection::open(gateway.address)?;
            let answer = connection.upload(&self.data, "bench", self.options.size, LARGE)?;
            let wanted = if role == "cloud" { "supabase" } else { "local" };
            ensure!(answer.json["storage_type"] == wanted, "landed elsewhere: {}", answer.json);
            self.samples.add(name, answer.sending.as_secs_f64());
        }
        Ok(())
    }

    fn curl_straight(&self, cloud: &Process) -> anyhow::Result<f64> {
        let url =
            format!("http://{}/storage/v1/object/interview-recordings/bench/direct.webm", cloud.address);
        let authorization = format!("Authorization: Bearer {}", cloud.key);
        let head = ["-X", "POST", "-H", "Content-Type: video/webm", "-H", &authorization];
        Ok(self.curl(&url, &head, &["-T", &self.file("large.webm").display().to_string()])?.0)
    }

    /// The documented upload by curl to the gateway at this address, which begins with how it is spoken to.
    pub(super) fn curl_form(
        &self,
        gateway: &str,
        file: &str,
        lands_in: &str,
        options: &[&str],
    ) -> anyhow::Result<f64> {
        let form = format!("recording=@{};type=video/webm", self.file(file).display());
        let url = format!("{gateway}/recordings/upload/bench");
        let (wall, answer) = self.curl(&url, options, &["-F", &form, "-F", "recording_type=session"])?;
        let answer: serde_json::Value = serde_json::from_slice(&answer)?;
        ensure!(answer["storage_type"] == lands_in, "landed elsewhere: {answer}");
        Ok(wall)
    }

    fn curl(&self, url: &str, some: &[&str], more: &[&str]) -> anyhow::Result<(f64, Vec<u8>)> {
        let start = Instant::now();
        let out = Command::new("curl")
            .args(["--silent", "--show-error", "--fail"])
            .args(some)
            .args(more)
            .arg(url)
            .stderr(Stdio::inherit())
            .output()
            .context("curl is needed")?;
        let wall = start.elapsed().as_secs_f64();
        ensure!(out.status.success(), "curl {url}: {}", out.status);
        Ok((wall, out.stdout))
    }
}
