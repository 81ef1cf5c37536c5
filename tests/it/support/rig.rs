//! A directory on which the real program lives many lives, with the faults under it, the cloud behind it, and the
//! ledger of what it promised.
//!
//! Apart from the suites that choose the faults. It never chooses one itself.

use std::path::PathBuf;

use super::eventually;
use super::fake_supabase::FakeSupabase;
use super::gateway::cloud_settings;
use super::ledger::Ledger;
use super::process::{Process, command};
use super::shim::Faults;

/// See the module.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub faults: Faults,
    pub cloud: Option<FakeSupabase>,
    pub ledger: Ledger,
    settings: Vec<String>,
}

impl Rig {
    /// Without a cloud. `None` where faults cannot be made, which is said by name.
    pub fn local(suite: &str, settings: &[(&str, &str)]) -> Option<Self> {
        Self::new(suite, None, settings)
    }

    /// Behind a cloud of its own.
    pub async fn with_cloud(suite: &str, settings: &[(&str, &str)]) -> Option<Self> {
        Self::new(suite, Some(FakeSupabase::start().await), settings)
    }

    fn new(suite: &str, cloud: Option<FakeSupabase>, more: &[(&str, &str)]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::below(suite, dir.path())?;
        let mut settings = cloud.as_ref().map(cloud_settings).unwrap_or_default();
        settings.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let settings =
            settings.into_iter().flat_map(|(key, value)| ["--set".into(), format!("{key}={value}")]);
        Some(Self { dir, faults, cloud, ledger: Ledger::new(), settings: settings.collect() })
    }

    /// Its fake cloud.
    pub fn cloud(&self) -> &FakeSupabase {
        self.cloud.as_ref().expect("made with a cloud")
    }

    /// Where the recordings are.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("recordings")
    }

    /// What starts it, with the faults under it.
    pub fn command(&self) -> std::process::Command {
        let settings: Vec<_> = self.settings.iter().map(String::as_str).collect();
        self.faults.under(command(self.dir.path(), &settings))
    }

    /// Starts it without faults.
    pub fn start(&self) -> Process {
        self.faults.disarm();
        Process::run(self.command()).unwrap_or_else(|(_, log)| panic!("it does not start again: {log:?}"))
    }

    /// Kills it, starts it without faults and waits for the cloud.
    pub async fn crash(&self, process: Process) -> Process {
        let log = process.kill();
        if let Some(panicked) = log.iter().find(|line| line.contains("panicked at")) {
            panic!("{panicked}");
        }
        let process = self.start();
        self.cloud_answers(&process).await;
        process
    }

    /// The same, and checks what it promised.
    pub async fn crash_and_check(&self, process: Process) -> Process {
        let process = self.crash(process).await;
        self.ledger.check(&process.url, &self.root()).await;
        process
    }

    /// Waits until the gateway has its cloud, if there is one.
    pub async fn cloud_answers(&self, process: &Process) {
        if self.cloud.is_some() {
            eventually("the cloud answers the gateway", async || {
                self.ledger.json(&process.url, "/readyz").await["status"] == "ready"
            })
            .await;
        }
    }
}
