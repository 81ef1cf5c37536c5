//! The real program in a process of its own: started on a directory, told to stop, killed.
//!
//! Apart from `gateway`, which runs the gateway inside the test and looks into it. Here only what an operator and a client
//! see counts. What goes wrong below the process is `shim`'s business.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::PATIENCE;

/// A running gateway; killed when dropped.
pub struct Process {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    child: Child,
    log: std::thread::JoinHandle<Vec<String>>,
}

/// What starts the program in `dir`, on any free port; recordings are below `dir/recordings`.
pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("recording-gateway"));
    command.current_dir(dir).env_clear().env("GATEWAY_SERVER__PORT", "0").arg("serve").args(args);
    command
}

impl Process {
    /// Starts it in `dir` and waits until it listens.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Self::run(command(dir, args)).unwrap_or_else(|(_, log)| panic!("it does not listen: {log:?}"))
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// How it ended, and what it logged, if it ended before that.
    pub fn run(mut command: Command) -> Result<Self, (ExitStatus, Vec<String>)> {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut begun = Vec::new();
        let Some(url) = Self::listening(&mut lines, &mut begun) else {
            return Err((child.wait().unwrap(), begun));
        };
        let log = std::thread::spawn(move || {
            begun.extend(lines.map_while(Result::ok));
            begun
        });
        Ok(Self { url, child, log })
    }

    fn listening(
        lines: &mut impl Iterator<Item = std::io::Result<String>>,
        begun: &mut Vec<String>,
    ) -> Option<String> {
        for line in lines.map_while(Result::ok) {
            let address = serde_json::from_str::<Value>(&line)
                .ok()
                .and_then(|l| l["address"].as_str().map(str::to_owned));
            begun.push(line);
            if address.is_some() {
                return address;
            }
        }
        None
    }

    /// Sends a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        let sent =
            Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it at once, wherever it is, and returns what it logged.
    pub fn kill(mut self) -> Vec<String> {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        self.logged()
    }

    /// Whether it was killed by now, by `shim` for example.
    ///
    /// # Panics
    /// When it ended in another way.
    pub fn was_killed(&mut self) -> bool {
        let Some(status) = self.child.try_wait().unwrap() else { return false };
        assert_eq!(status.signal(), Some(9), "it ended by itself: {status:?} {:?}", self.logged());
        true
    }

    /// Waits for its end and returns its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Tells it to stop, checks that it ends well, and returns what it logged.
    pub fn stop_in_order(mut self) -> Vec<String> {
        self.signal("TERM");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.code(), Some(0));
        self.logged()
    }

    fn logged(&mut self) -> Vec<String> {
        std::mem::replace(&mut self.log, std::thread::spawn(Vec::new)).join().unwrap()
    }

    /// The most memory it ever had resident.
    pub fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
